"""What the servers' own test suites share that are run through the proxy (tests/regress, tests/mtr)."""

import difflib
import socket
import subprocess
import sys
import time
import urllib.request

START_LIMIT = 60
# A replica that answered fewer statements took no part.
FEWEST = 500


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Proxy:
    """The proxy, in transaction pooling; `cluster` is what its configuration says of the servers."""

    def __init__(self, build, folder, cluster):
        self.port, self.admin = free_port(), free_port()
        config = folder / "pointsman.toml"
        config.write_text(
            f"""
[admin]
http = "127.0.0.1:{self.admin}"
[[cluster]]
listen = ["127.0.0.1:{self.port}"]
{cluster}"""
        )
        self.log = open(folder / "pointsman.log", "w")
        self.process = subprocess.Popen([build / "pointsman", "run", "-c", config], stderr=self.log)

    def __enter__(self):
        deadline = time.monotonic() + START_LIMIT
        while self.up_replicas() < 2:
            if time.monotonic() > deadline:
                sys.exit(f"the proxy does not find its servers: see {self.log.name}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def metrics(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as answer:
                return answer.read().decode().splitlines()
        except OSError:
            return []

    def up_replicas(self):
        return sum('role="replica"' in line and line.endswith(" 1") for line in self.metrics() if "node_role{" in line)

    def statements(self):
        """How many statements ran on each node, by the proxy's own count."""
        counts = {}
        for line in self.metrics():
            if line.startswith("pointsman_statements_total{"):
                node = line.split('node="')[1].split('"')[0]
                counts[node] = counts.get(node, 0) + int(float(line.rsplit(" ", 1)[1]))
        return counts


def require_replicas(counts, nodes):
    """Ends the program unless every node but the first, the primary, has answered enough of a run."""
    if not all(counts.get(node, 0) > FEWEST for node in nodes[1:]):
        sys.exit("the replicas took no part: this run shows nothing")


def difference(one, two):
    """Lines that one of two lists has and the other has not."""
    return [
        line
        for line in difflib.unified_diff(one, two, n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]


def read_known(path):
    """The lines that may differ, by the name of what prints them."""
    known, name = {}, None
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            name = line[3:]
            known[name] = []
        elif line[:1] in ("+", "-") and name:
            known[name].append(line)
    return known
