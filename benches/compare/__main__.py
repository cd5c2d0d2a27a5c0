"""Compares proxies before the same servers, interleaved, and prints Markdown tables.

Every figure is the median of its rounds. CPU is user and system time of the proxy's whole process
tree, from /proc, divided by the transactions that pgbench counted."""

import argparse
import glob
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import mysql
import processes
from contestants import Field
from wire import Connection

READ = "\\set aid random(1, 100000 * :scale)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
WRITE = (
    "\\set aid random(1, 100000 * :scale)\n\\set delta random(-5000, 5000)\n"
    "UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;\n"
)
ROWS = "SELECT repeat('x', 100) FROM generate_series(1, 1000000)"
COPY = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--engine", choices=("postgres", "mysql"), default="postgres", help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short round, 16 clients only, few connections")
    parser.add_argument("--rounds", type=int, help="rounds of each run (3)")
    parser.add_argument("--seconds", type=int, help="length of a run (5)")
    parser.add_argument("--clients", help="comma-separated (1,16,64)")
    parser.add_argument("--modes", default="simple,extended,prepared", help="of pgbench (%(default)s)")
    parser.add_argument("--workloads", default="select,mix", help="(%(default)s); empty: none")
    parser.add_argument("--only", default="direct,copy,pgbouncer,pgpool-ii,pointsman", help="(%(default)s)")
    parser.add_argument("--idle", type=int, help="idle clients for the memory figure (5000)")
    parser.add_argument("--logins", type=int, help="logins for the CPU figure (1000)")
    parser.add_argument("--build", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    defaults = {
        "rounds": (1, 3),
        "seconds": (2, 5),
        "clients": ("16", "1,16,64"),
        "idle": (500, 5000),
        "logins": (200, 1000),
    }
    for name, (quick, full) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    return options


class Servers:
    """The servers of benches/bench_servers.rs, for as long as this is open."""

    def __init__(self, build, *arguments):
        program = os.path.join(build, "examples", "bench_servers")
        self.process = subprocess.Popen([program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the servers did not start")
        self.place = json.loads(line) | {"build": os.path.abspath(build)}

    def stop(self):
        self.process.stdin.close()
        self.process.wait(30)


class Run:
    """One pgbench run: what came out of it."""

    def __init__(self, servers, contestant, workload, mode, clients, seconds):
        with tempfile.TemporaryDirectory() as folder:
            scripts = []
            for name, text, weight in (("read", READ, 9 if workload == "mix" else 1), ("write", WRITE, 1)):
                if name == "read" or workload == "mix":
                    path = os.path.join(folder, f"{name}.sql")
                    with open(path, "w") as file:
                        file.write(text)
                    scripts += ["-f", f"{path}@{weight}"]
            host, port = contestant.address_for(mode).rsplit(":", 1)
            command = [servers["pgbench"], "-n", "-M", mode, "-c", str(clients), "-j", str(min(clients, 2))]
            command += ["-T", str(seconds), "-D", f"scale={servers['scale']}", "-l", f"--log-prefix={folder}/log"]
            command += [*scripts, "-h", host, "-p", port, "-U", servers["app"]["user"], servers["app"]["user"]]
            before = processes.cpu_seconds(contestant.pid) if contestant.pid else 0
            done = subprocess.run(
                command,
                env=os.environ | {"PGPASSWORD": servers["app"]["password"]},
                capture_output=True,
                text=True,
                timeout=seconds + 60,
            )
            cpu = processes.cpu_seconds(contestant.pid) - before if contestant.pid else None
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            latencies = []
            for log in glob.glob(f"{folder}/log*"):
                with open(log) as lines:
                    latencies += [int(line.split()[2]) for line in lines]
        latencies.sort()
        self.tps = float(next(line for line in done.stdout.splitlines() if line.startswith("tps")).split()[2])
        self.p50 = latencies[len(latencies) // 2] / 1000
        self.p99 = latencies[len(latencies) * 99 // 100] / 1000
        self.cpu = cpu / len(latencies) * 1e6 if cpu is not None else None


def throughput(options, servers, field, workload, mode, clients):
    """Rounds of one run, the contestants taking turns; prints the table's rows."""
    results = {}
    contestants = field.in_mode(mode)
    for contestant in contestants:
        warm_up(servers, contestant, workload, mode, clients)
    for turn in range(options.rounds):
        for contestant in contestants[turn % len(contestants) :] + contestants[: turn % len(contestants)]:
            try:
                run = Run(servers, contestant, workload, mode, clients, options.seconds)
                results.setdefault(contestant.name, []).append(run)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                results[contestant.name] = f"{error}"[:60]

    def median(name, figure):
        runs = results.get(name)
        if not isinstance(runs, list):
            return None
        figures = [getattr(run, figure) for run in runs]
        return None if None in figures else statistics.median(figures)

    bouncer = next((name for name in results if name.startswith("PgBouncer")), None)
    for contestant in contestants:
        name = contestant.name
        if isinstance(results.get(name), str):
            print(f"| {clients} | {name} | failed: {results[name]} | | | | | |", flush=True)
            continue
        cpu = median(name, "cpu")
        cells = [number(median(name, "tps"), 0), number(median(name, "p50"), 2), number(median(name, "p99"), 2)]
        cells += [number(cpu, 1), ratio(cpu, median("copy", "cpu")), ratio(cpu, median(bouncer, "cpu"))]
        print(f"| {clients} | {name} | {' | '.join(cells)} |", flush=True)


def warm_up(servers, contestant, workload, mode, clients):
    """Opens server connections and fills caches; whoever fails here says why in the measured run."""
    try:
        Run(servers, contestant, workload, mode, clients, 1)
    except (RuntimeError, subprocess.TimeoutExpired):
        pass


def number(value, digits):
    return "" if value is None else f"{value:,.{digits}f}"


def ratio(value, of):
    return "" if not value or not of else f"{value / of:.2f}"


def idle_memory(options, servers, contestant):
    """Bytes per idle client that has logged in and asked once, and how many there were."""
    clients = min(options.idle, contestant.idle_limit or options.idle)
    before = processes.memory_bytes(contestant.pid)
    connections = [log_in(servers, contestant) for _ in range(clients)]
    time.sleep(1)
    used = (processes.memory_bytes(contestant.pid) - before) / clients
    for connection in connections:
        connection.close()
    return used, clients


def log_in(servers, contestant):
    app = servers["app"]
    connection = Connection(contestant.address, app["user"], app["password"], app["user"])
    connection.query("SELECT 1")
    return connection


def login_cpu(options, servers, contestant):
    """Microseconds of CPU for a login, one statement and the goodbye."""
    before = processes.cpu_seconds(contestant.pid)
    for _ in range(options.logins):
        log_in(servers, contestant).close()
    return (processes.cpu_seconds(contestant.pid) - before) / options.logins * 1e6


def transfer_cpu(options, servers, contestant, sql):
    """Seconds of CPU per gigabyte of answer, and the memory it took on top, in bytes."""
    connection = log_in(servers, contestant)
    start, before = processes.memory_bytes(contestant.pid), processes.cpu_seconds(contestant.pid)
    received = sum(connection.query(sql) for _ in range(3 if options.quick else 10))
    used = (processes.cpu_seconds(contestant.pid) - before) / received * 1e9
    grown = processes.memory_bytes(contestant.pid) - start
    connection.close()
    return used, grown


def costs(options, servers, field):
    """Memory, logins and transfers of everybody who is a process of his own."""
    measured = {}
    for contestant in field.running:
        if contestant.pid:
            try:
                figures = [login_cpu(options, servers, contestant)]
                figures += [transfer_cpu(options, servers, contestant, sql)[0] for sql in (ROWS, COPY)]
                measured[contestant.name] = (*idle_memory(options, servers, contestant), *figures)
            except (OSError, ConnectionError) as error:
                print(f"{contestant.name}: {error}", file=sys.stderr)
    print("\n### Clients that wait, clients that come, large answers\n")
    print("| | memory per idle client, KiB | of clients | CPU per login, µs | CPU per GB of rows, s | ÷ copy | CPU per GB of COPY, s | ÷ copy |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    copy = measured.get("copy", (None,) * 5)
    for name, (memory, clients, login, rows, copied) in measured.items():
        cells = [number(memory / 1024, 1), str(clients), number(login, 0), number(rows, 2), ratio(rows, copy[3])]
        print(f"| {name} | {' | '.join([*cells, number(copied, 2), ratio(copied, copy[4])])} |")


def main():
    options = arguments()
    if options.engine == "mysql":
        return mysql.compare(options, Servers)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    servers = Servers(options.build)
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as folder:
        os.chmod(folder, 0o755)
        field = None
        try:
            field = Field(servers.place, folder, options.only.lower().split(","))
            print(f"{os.cpu_count()} cores, {options.rounds} rounds of {options.seconds} s, scale {servers.place['scale']}")
            for name, reason in field.absent.items():
                print(f"\n{name} is missing: {reason}")
            for workload in filter(None, options.workloads.split(",")):
                for mode in options.modes.split(","):
                    what = "select-only" if workload == "select" else "90 % reads, 10 % writes"
                    print(f"\n### {what}, {mode}\n")
                    print("| clients | | TPS | p50 ms | p99 ms | CPU µs per transaction | ÷ copy | ÷ PgBouncer |")
                    print("|--:|---|--:|--:|--:|--:|--:|--:|")
                    for clients in options.clients.split(","):
                        throughput(options, servers.place, field, workload, mode, int(clients))
            costs(options, servers.place, field)
        finally:
            if field:
                field.stop()
            servers.stop()


main()
