"""The comparison before MySQL servers, by sysbench."""

import os
import re
import statistics
import subprocess
import sys
import tempfile

import processes
from contestants import Copy, Direct, Field, MysqlRouter, MysqlRouterSplit, PointsmanMysql

ROOT = os.path.abspath("target/mysql9/root")
WORKLOADS = {"oltp_point_select": [], "oltp_read_only": ["--skip-trx=on"], "oltp_read_write": []}
TABLE = ["--tables=1", "--table-size=10000"]
# A server's own answer to two transactions that meet.
MET = "--mysql-ignore-errors=1213,1205,1020"


def sysbench(servers, address, workload, *arguments, login=None, timeout=120):
    host, port = address.rsplit(":", 1)
    app = login or servers["app"]
    command = ["sysbench", workload, "--db-driver=mysql", f"--mysql-host={host}", f"--mysql-port={port}"]
    command += [f"--mysql-user={app['user']}", f"--mysql-password={app['password']}", f"--mysql-db={servers['app']['user']}"]
    done = subprocess.run([*command, *TABLE, MET, *arguments], capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0 or "FATAL" in done.stdout + done.stderr:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "FATAL" in line]
        raise RuntimeError((lines or ["sysbench failed"])[0])
    return done.stdout


class Run:
    """One run: what came out of it, per statement."""

    def __init__(self, options, servers, contestant, workload, prepared, clients):
        before = processes.cpu_seconds(contestant.pid) if contestant.pid else 0
        said = sysbench(
            servers,
            contestant.address,
            workload,
            f"--threads={clients}",
            f"--time={options.seconds}",
            f"--db-ps-mode={'auto' if prepared else 'disable'}",
            *WORKLOADS[workload],
            "run",
            login=contestant.login,
        )
        cpu = processes.cpu_seconds(contestant.pid) - before if contestant.pid else None
        statements = int(re.search(r"^\s+queries:\s+(\d+)", said, re.M).group(1))
        self.rate = float(re.search(r"^\s+queries:.*\((\S+) per sec", said, re.M).group(1))
        self.p95 = float(re.search(r"^\s+95th percentile:\s+(\S+)", said, re.M).group(1))
        self.cpu = cpu / statements * 1e6 if cpu is not None else None


def throughput(options, servers, field, workload, prepared, clients):
    """Rounds of one run, the contestants taking turns; prints the table's rows."""
    results = {}
    for turn in range(options.rounds):
        order = field.running[turn % len(field.running) :] + field.running[: turn % len(field.running)]
        for contestant in order:
            try:
                run = Run(options, servers, contestant, workload, prepared, clients)
                results.setdefault(contestant.name, []).append(run)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                results[contestant.name] = f"{error}"[:80]
                field.leave_out(contestant)

    def median(name, figure):
        runs = results.get(name)
        figures = [getattr(run, figure) for run in runs] if isinstance(runs, list) else [None]
        return None if None in figures else statistics.median(figures)

    for name, runs in results.items():
        if isinstance(runs, str):
            print(f"| {clients} | {name} | failed: {runs} | | | |", flush=True)
            continue
        cpu, copy = median(name, "cpu"), median("copy", "cpu")
        cells = [f"{median(name, 'rate'):,.0f}", f"{median(name, 'p95'):.2f}"]
        cells += ["" if cpu is None else f"{cpu:.1f}", f"{cpu / copy:.2f}" if cpu and copy else ""]
        print(f"| {clients} | {name} | {' | '.join(cells)} |", flush=True)


def compare(options, start):
    if not os.path.exists(f"{ROOT}/usr/bin/mysqlrouter"):
        sys.exit("scripts/mysql9 --router has to run first")
    servers = start(options.build, "mysql", ROOT)
    servers.place["root"] = ROOT
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as folder:
        os.chmod(folder, 0o755)
        field = None
        try:
            kinds = (Direct, Copy, MysqlRouter, MysqlRouterSplit, PointsmanMysql)
            wanted = [kind.name.lower() for kind in kinds]
            field = Field(servers.place, folder, wanted, kinds)
            print(f"{os.cpu_count()} cores, {options.rounds} rounds of {options.seconds} s")
            for name, reason in field.absent.items():
                print(f"\n{name} is missing: {reason}")
            sysbench(servers.place, servers.place["nodes"][0], "oltp_read_write", "prepare")
            for workload in WORKLOADS:
                for prepared in (False, True):
                    print(f"\n### {workload}, {'prepared' if prepared else 'text'}\n")
                    print("| threads | | statements/s | p95 ms | CPU µs per statement | ÷ copy |")
                    print("|--:|---|--:|--:|--:|--:|")
                    for clients in options.clients.split(","):
                        throughput(options, servers.place, field, workload, prepared, int(clients))
        finally:
            if field:
                field.stop()
            servers.stop()
