// A browser that obeys lines of JSON on standard input and answers each with a line of JSON:
// {"wait": "an expression"}, {"shot": "a file", "width": 390, "dark": true} (the whole page, or "height" of it),
// {"read": "an expression"}, that in another size and light: {"read": "an expression", "width": 390, "dark": true}.
const { chromium } = require("playwright-core");
const readline = require("readline");

async function look(page, line) {
  await page.emulateMedia({ colorScheme: line.dark ? "dark" : "light" });
  await page.setViewportSize({ width: line.width || 1280, height: line.height || 900 });
}

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
  const page = await browser.newPage();
  const faults = [];
  const requests = new Set();
  page.on("pageerror", error => faults.push(String(error)));
  page.on("request", request => requests.add(new URL(request.url()).origin));
  await page.goto(process.argv[2]);
  const obey = async line => {
    if (line.wait) {
      // Not waitForFunction: it evaluates inside the page, which the page's policy forbids.
      for (let turn = 0; turn < 400; turn++) {
        if (await page.evaluate(line.wait)) return true;
        await page.waitForTimeout(50);
      }
      throw new Error("waited in vain; the page says: " + await page.evaluate("document.body.innerText"));
    }
    if (line.read && line.width) await look(page, line);
    if (line.read) return page.evaluate(line.read);
    if (line.faults) return faults;
    if (line.origins) return [...requests].filter(origin => origin !== "null");
    if (line.shot) {
      await look(page, line);
      // A sample later everything is drawn in this width.
      await page.waitForTimeout(1200);
      return (await page.screenshot({ path: line.shot, fullPage: !line.height }), true);
    }
    throw new Error("unknown line");
  };
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const answer = await obey(JSON.parse(line)).then(value => ({ value }), error => ({ error: String(error) }));
    console.log(JSON.stringify(answer));
  }
  await browser.close();
}
main().catch(error => { console.error(error); process.exit(1); });
