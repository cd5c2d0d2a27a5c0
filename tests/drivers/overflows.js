// An expression for the dashboard: see tests/it/dashboard.rs.
(() => {
  const sample = structuredClone(samples[samples.length - 1]), one = sample.clusters[0];
  const node = (name, changes) => ({ ...one.nodes[0], role: "replica", state: "up", lag_seconds: 0, weight: 1, timeline: 4294967295,
    address: name + ".eu-central-1.compute.internal.example.com:5432", reads: 123456, ...changes });
  one.nodes = [
    node("postgres-primary-01", { role: "primary" }),
    node("postgres-replica-02", { lag_seconds: 12345, weight: 0 }),
    node("postgres-replica-03", { state: "draining", lag_seconds: 0.0123 }),
    node("postgres-replica-04", { role: "unknown", state: "down", why: "connection refused by " + "x".repeat(60), lag_seconds: null }),
    { ...one.nodes[1], address: "127.0.0.1:41002", role: "replica", state: "up", lag_seconds: 11, weight: 0, reads: 0, writes: 0 },
  ];
  one.primary = one.nodes[0].address;
  one.events.push({ time: sample.time, text: one.primary + " is the primary, on timeline 4294967295, after 171 ms without one" });
  samples.push({ ...sample, time: sample.time + 1 });
  try { draw(); } finally { samples.pop(); }
  const beyond = (inner, outer) => inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
  const place = element => element.getBoundingClientRect(), found = [];
  for (const group of document.querySelectorAll("#topology g")) {
    for (const text of group.querySelectorAll("text")) if (beyond(place(text), place(group.querySelector("rect")))) found.push("box: " + text.textContent);
  }
  for (const text of document.querySelectorAll("svg text")) if (beyond(place(text), place(text.closest("svg")))) found.push("drawing: " + text.textContent);
  for (const element of document.body.querySelectorAll("*:not(.sr):not(script)")) {
    const scrolls = element.parentElement.closest(".scroll");
    if (!scrolls && (place(element).left < 0 || place(element).right > document.documentElement.clientWidth)) found.push("page: " + element.tagName + " " + element.textContent.slice(0, 60));
  }
  const texts = document.querySelectorAll("#topology g text").length, nodes = document.querySelectorAll("#topology g").length;
  return { found, nodes, texts };
})()
