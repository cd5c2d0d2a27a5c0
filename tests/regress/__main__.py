"""PostgreSQL's own regression suite through the proxy, compared with a run without it.

Both runs use fresh servers (a primary and two streaming replicas). What differs has to be listed in
known.diff beside this file; the reasons stand in docs/differences.md.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
from proxied import Proxy, difference, read_known, require_replicas

# What pg_regress says of the database that it makes itself.
DATABASE_SETTINGS = [
    "lc_messages TO 'C'",
    "lc_monetary TO 'C'",
    "lc_numeric TO 'C'",
    "lc_time TO 'C'",
    "bytea_output TO 'hex'",
    "timezone_abbreviations TO 'Default'",
    "compute_query_id TO 'regress'",
]
# As many sessions at a time as pools have connections: more would only wait for each other.
PARALLEL = 20


class Servers:
    """A primary and two replicas, as examples/bench_servers starts them."""

    def __init__(self, build):
        program = build / "examples" / "bench_servers"
        self.process = subprocess.Popen([program, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.place = json.loads(self.process.stdout.readline())
        self.port = int(self.place["nodes"][0].rsplit(":", 1)[1])

    def __enter__(self):
        self.run("CREATE DATABASE regression TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        for setting in DATABASE_SETTINGS:
            self.run(f"ALTER DATABASE regression SET {setting}")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def run(self, sql):
        login = self.place["superuser"]
        subprocess.run(
            ["psql", "-qX", "-h", "127.0.0.1", "-p", str(self.port), "-U", login["user"], "-c", sql, "postgres"],
            env=dict(os.environ, PGPASSWORD=login["password"]),
            check=True,
        )


def cluster(servers):
    """What the proxy's configuration says of those servers."""
    login, monitor = servers.place["superuser"], servers.place["monitor"]
    return f"""
name = "regress"
engine = "postgres"
nodes = {json.dumps(servers.place["nodes"])}
users = [{{ name = "{login["user"]}", password = "{login["password"]}" }}]
monitor = {{ user = "{monitor["user"]}", password = "{monitor["password"]}" }}
"""


def pg_regress(suite, servers, port, output):
    """Runs the suite at a port; returns the seconds that it took."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    login = servers.place["superuser"]
    command = [
        suite.program,
        "--use-existing",
        f"--inputdir={suite.folder}",
        f"--outputdir={output}",
        f"--dlpath={suite.folder}",
        f"--bindir={suite.bin}",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--user={login['user']}",
        "--dbname=regression",
        f"--max-connections={PARALLEL}",
        f"--schedule={suite.folder}/parallel_schedule",
    ]
    # The servers write files there as the user that they run as.
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "postgres", output], check=True)
        command = ["runuser", "-u", "postgres", "--", "env", f"PGPASSWORD={login['password']}", *command]
    began = time.monotonic()
    with open(output.with_suffix(".log"), "w") as log:
        subprocess.run(
            command,
            cwd=suite.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PGPASSWORD=login["password"]),
        )
    return time.monotonic() - began


class Suite:
    def __init__(self, folder, bin_folder):
        self.folder, self.bin = folder, bin_folder
        self.program = bin_folder.parent / "lib/pgxs/src/test/regress/pg_regress"


def differences(direct, proxy):
    """Lines that one run has and the other has not, by file."""
    found = {}
    for path in sorted((direct / "results").glob("*.out")):
        other = proxy / "results" / path.name
        one = path.read_text(errors="replace").splitlines()
        two = other.read_text(errors="replace").splitlines() if other.exists() else ["(the proxy's run ended before)"]
        lines = difference(one, two)
        if lines:
            found[path.name] = lines
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--build", type=pathlib.Path, required=True, help="folder of the built programs")
    options.add_argument("--suite", type=pathlib.Path, required=True, help="src/test/regress of PostgreSQL's source")
    options.add_argument("--bin", type=pathlib.Path, required=True, help="PostgreSQL's bin folder")
    options.add_argument("--output", type=pathlib.Path, required=True)
    options = options.parse_args()
    suite, output = Suite(options.suite, options.bin), options.output
    output.mkdir(parents=True, exist_ok=True)

    with Servers(options.build) as servers:
        took = pg_regress(suite, servers, servers.port, output / "direct")
        print(f"without the proxy: {took:.0f} s")
    with Servers(options.build) as servers, Proxy(options.build, output, cluster(servers)) as proxy:
        took = pg_regress(suite, servers, proxy.port, output / "proxy")
        counts = proxy.statements()
        print(f"through the proxy: {took:.0f} s; statements by node: {counts}")
        require_replicas(counts, servers.place["nodes"])

    files = len(list((output / "direct/results").glob("*.out")))
    if files < 180:
        sys.exit(f"only {files} tests ran: see {output}/direct.log")
    known = read_known(HERE / "known.diff")
    found = differences(output / "direct", output / "proxy")
    unknown = 0
    for name, lines in found.items():
        new = [line for line in lines if line not in known.get(name, [])]
        unknown += len(new)
        print(f"{name}: {len(lines)} lines differ, {len(new)} of them not listed")
        for line in new:
            print(f"    {line}")
    print(f"{files} files, {sum(map(len, found.values()))} lines differ, {unknown} not listed in known.diff")
    sys.exit(1 if unknown else 0)


main()
