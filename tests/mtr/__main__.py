"""MariaDB's own test cases through the proxy, compared with a run without it.

Each case of the list is run by mariadb-test against fresh servers (a primary and two replicas), first
directly and then through the proxy, by text and by prepared statements. What a case prints through the
proxy has to be what it prints without, but for the lines in known.diff beside this file; the reasons
stand in docs/differences.md.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
from proxied import Proxy, difference, read_known, require_replicas

# A case that takes longer hangs.
CASE_LIMIT = 180
# mariadb-test's exit code for a case that says itself that it does not apply.
SKIPPED = 62
PROTOCOLS = {"text": [], "prepared": ["--ps-protocol"]}
# What mysql-test-run's own configuration says of the servers, where it shapes results.
SERVER_OPTIONS = [
    "--skip-name-resolve=0",
    "--character-set-server=latin1",
    "--default-storage-engine=myisam",
    "--use-stat-tables=preferably",
    "--histogram-type=json_hb",
    "--log-bin-trust-function-creators=1",
    "--binlog-direct-non-transactional-updates",
    "--key-buffer-size=1M",
    "--sort-buffer-size=256K",
    "--max-heap-table-size=1M",
    "--plugin-maturity=unknown",
    "--secure-file-priv=",
    "--default-time-zone=SYSTEM",
    "--general-log=0",
]
# Databases that stay from one case to the next.
OWN_DATABASES = {"information_schema", "mysql", "performance_schema", "sys", "mtr"}
OWN_USERS = {"root", "mariadb.sys", "mysql", "replicator", "pointsman", "app", "PUBLIC", ""}


def make_vardir(suite):
    """What mysql-test-run calls so: cases and servers write there. Its path has to be short, as sockets' have."""
    vardir = pathlib.Path(tempfile.mkdtemp(prefix="pointsman-mtr-"))
    vardir.chmod(0o755)
    for name in ("tmp", "log"):
        (vardir / name).mkdir()
        # The servers may run as another user.
        (vardir / name).chmod(0o777)
    (vardir / "std_data").symlink_to(suite / "std_data")
    return vardir


class Servers:
    """A primary and two replicas, as examples/bench_servers starts them."""

    def __init__(self, build, suite):
        program = build / "examples" / "bench_servers"
        self.vardir = make_vardir(suite)
        self.process = subprocess.Popen(
            [program, "mariadb", *SERVER_OPTIONS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The time zone of the results that the cases come with, and the place of the data: cases name
            # files relative to it.
            env=dict(os.environ, TZ="GMT-3", TMPDIR=str(self.vardir)),
        )
        self.place = json.loads(self.process.stdout.readline())
        self.primary, *self.replicas = self.place["sockets"]
        self.port = int(self.place["nodes"][0].rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.vardir, ignore_errors=True)

    def run(self, sql, node=None, database="mysql"):
        """The rows of a statement that root runs on a node, on the primary if none is named."""
        command = ["mariadb", "--no-defaults", "-NBu", "root", "-S", node or self.primary, database]
        done = subprocess.run(command, input=sql, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise RuntimeError(f"{sql[:200]}: {done.stderr}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def prepare(self):
        """What cases call to name messages in the error log that they expect; nobody reads it here."""
        self.run("CREATE DATABASE mtr")
        self.run("CREATE PROCEDURE add_suppression(pattern VARCHAR(255)) SQL SECURITY INVOKER DO 0", database="mtr")
        # The anonymous users that mariadb-install-db makes; mysql-test-run has none either.
        for [host] in self.run("SELECT host FROM mysql.user WHERE user = ''"):
            self.run(f"DROP USER ''@'{host}'")
        self.variables = self.globals()

    def globals(self):
        return {row[0]: row[1] if len(row) > 1 else "" for row in self.run("SHOW GLOBAL VARIABLES")}

    def reset(self):
        """Takes away what a case has left, so that the next one begins as the first did."""
        databases = [row[0] for row in self.run("SHOW DATABASES") if row[0] not in OWN_DATABASES]
        users = [row for row in self.run("SELECT user, host, is_role FROM mysql.user") if row[0] not in OWN_USERS]
        sql = ["SET foreign_key_checks = 0", "UNLOCK TABLES"]
        sql += [f"DROP DATABASE `{name}`" for name in databases]
        sql += [f"DROP ROLE '{row[0]}'" if row[2] == "Y" else f"DROP USER '{row[0]}'@'{row[1]}'" for row in users]
        sql += ["CREATE DATABASE test"]
        for name, value in self.globals().items():
            if value != self.variables.get(name) and name in self.settable():
                value = self.variables[name]
                sql.append(f"SET GLOBAL {name} = " + (value if re.fullmatch(r"-?[0-9.]+", value) else f"'{value}'"))
        for line in sql:
            try:
                self.run(line)
            except RuntimeError as error:
                print(f"    left behind: {error}", file=sys.stderr)

    def settable(self):
        if not hasattr(self, "_settable"):
            rows = self.run(
                "SELECT lower(variable_name) FROM information_schema.system_variables WHERE read_only = 'NO'"
                " AND variable_scope <> 'SESSION ONLY' AND variable_name NOT LIKE 'GTID%'"
            )
            self._settable = {row[0] for row in rows}
        return self._settable

    def stopped_replica(self):
        """Why a replica does not follow, if one does not."""
        [[written]] = self.run("SELECT @@GLOBAL.gtid_binlog_pos")
        for node in self.replicas:
            if self.run(f"SELECT MASTER_GTID_WAIT('{written}', 20)", node)[0][0] != "0":
                status = self.run("SHOW SLAVE STATUS", node)
                return " ".join(value for value in status[0][18:20]) if status else "no status"
        return None


def cluster(servers):
    """What the proxy's configuration says of those servers."""
    monitor = servers.place["monitor"]
    # Connections of a case see each other's writes, as on one server: that is "global".
    return f"""
name = "mtr"
engine = "mysql"
nodes = {json.dumps(servers.place["nodes"])}
users = [{{ name = "root" }}]
monitor = {{ user = "{monitor["user"]}", password = "{monitor["password"]}" }}
auth = {{ query = "SELECT user, authentication_string FROM mysql.user WHERE user = ? LIMIT 1" }}
routing = {{ consistency = "global", primary_reads = "never" }}
"""


class Runner:
    """mariadb-test at a port, and what cases print there."""

    def __init__(self, suite, vardir, folder):
        self.suite, self.vardir, self.folder = suite, vardir, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def run(self, case, port, protocol):
        """What a case prints and how it ends: None if well, else why not."""
        result = self.folder / protocol / f"{case}.result"
        result.parent.mkdir(exist_ok=True)
        command = [
            "mariadb-test",
            "--no-defaults",
            "--silent",
            "--protocol=tcp",
            "--host=localhost",
            f"--port={port}",
            "--user=root",
            "--database=test",
            "--skip-ssl",
            f"--basedir={self.suite}",
            f"--tmpdir={self.vardir}/tmp",
            f"--logdir={self.vardir}/log",
            f"--test-file={self.suite}/main/{case}.test",
            f"--result-file={result}",
            "--record",
            *PROTOCOLS[protocol],
        ]
        try:
            done = subprocess.run(
                command,
                cwd=self.suite,
                env=self.environment(port),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CASE_LIMIT,
            )
        except subprocess.TimeoutExpired:
            return [], f"took more than {CASE_LIMIT} s"
        printed = result.read_bytes().decode(errors="replace").splitlines() if result.exists() else []
        if done.returncode == 0:
            return printed, None
        why = "does not apply" if done.returncode == SKIPPED else done.stderr.strip() or done.stdout.strip()
        return printed, why or f"exit code {done.returncode}"

    def environment(self, port):
        client = f"--no-defaults --user=root --protocol=tcp --host=localhost --port={port} --skip-ssl"
        names = {
            "MYSQL": f"mariadb {client}",
            "MYSQL_DUMP": f"mariadb-dump {client}",
            "MYSQL_SHOW": f"mariadb-show {client}",
            "MYSQLADMIN": f"mariadb-admin {client}",
            "MYSQL_IMPORT": f"mariadb-import {client}",
            "MYSQL_CHECK": f"mariadb-check {client}",
            "MYSQL_TEST": f"mariadb-test {client}",
            "MYSQL_TEST_DIR": self.suite,
            "MYSQL_TMP_DIR": self.vardir / "tmp",
            "MYSQLTEST_VARDIR": self.vardir,
            "SECURE_LOAD_PATH": self.suite / "std_data",
            "MASTER_MYPORT": port,
            # Named by cases; with --protocol=tcp nobody connects there.
            "MASTER_MYSOCK": self.vardir / "none.sock",
            "DEFAULT_MASTER_PORT": "3306",
            "USE_RUNNING_SERVER": "1",
            "LC_ALL": "C",
            "TZ": "GMT-3",
        }
        return dict(os.environ, **{name: str(value) for name, value in names.items()})


def run_cases(servers, runner, port, cases, protocols, where):
    """Every case by each of the protocols; what they print, and how they end."""
    ends = {}
    servers.prepare()
    for protocol in protocols:
        for case in cases:
            servers.reset()
            stopped = servers.stopped_replica()
            if stopped:
                sys.exit(f"before {case}: a replica stopped: {stopped}")
            began = time.monotonic()
            ends[case, protocol] = runner.run(case, port, protocol)
            why = ends[case, protocol][1]
            end = "" if why is None else f", {why.splitlines()[0]}"
            print(f"{where} {case} ({protocol}): {time.monotonic() - began:.1f} s{end}", flush=True)
    return ends


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--build", type=pathlib.Path, required=True, help="folder of the built programs")
    options.add_argument("--suite", type=pathlib.Path, required=True, help="MariaDB's mysql-test")
    options.add_argument("--output", type=pathlib.Path, required=True)
    options.add_argument("--protocol", choices=PROTOCOLS, action="append", help="default: both")
    options.add_argument("cases", nargs="*", help="default: those in tests/mtr/cases")
    options = options.parse_args()
    cases = options.cases or [line for line in (HERE / "cases").read_text().split("\n") if line and line[0] != "#"]
    protocols = options.protocol or list(PROTOCOLS)
    options.output.mkdir(parents=True, exist_ok=True)
    counts = {}

    def directly():
        with Servers(options.build, options.suite) as servers:
            runner = Runner(options.suite, servers.vardir, options.output / "direct")
            return run_cases(servers, runner, servers.port, cases, protocols, "directly")

    def through():
        servers = Servers(options.build, options.suite)
        with servers, Proxy(options.build, options.output, cluster(servers)) as proxy:
            runner = Runner(options.suite, servers.vardir, options.output / "proxy")
            ends = run_cases(servers, runner, proxy.port, cases, protocols, "through the proxy")
            counts.update(proxy.statements())
            return ends, servers.place["nodes"]

    # Most of the time they wait.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        direct, proxied = pool.submit(directly), pool.submit(through)
        direct, (proxied, nodes) = direct.result(), proxied.result()
    print(f"statements by node: {counts}")
    if not options.cases:
        require_replicas(counts, nodes)
    sys.exit(1 if report(direct, proxied, read_known(HERE / "known.diff")) else 0)


def report(direct, proxied, known):
    """Prints what differs; returns how much of it is not listed."""
    ran, differing, unknown = 0, 0, 0
    for (case, protocol), (printed, why) in direct.items():
        # What fails without the proxy tells nothing of it.
        if why is not None:
            continue
        ran += 1
        lines = difference(printed, proxied[case, protocol][0])
        failure = proxied[case, protocol][1]
        new = [line for line in lines if line not in known.get(f"{case} ({protocol})", [])]
        differing += len(lines)
        unknown += len(new) + (failure is not None)
        if lines or failure:
            print(f"{case} ({protocol}): {len(lines)} lines differ, {len(new)} of them not listed; {failure or 'passed'}")
        for line in new[:40]:
            print(f"    {line}")
    print(f"{ran} runs that pass without the proxy, {differing} lines differ, {unknown} not listed in known.diff")
    return unknown

main()
