"""Who is compared: each starts before the same servers and names its address and process."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import time

# Server connections per node, for all that pool.
POOL = 40
# More clients than any run has, for those that fork a process per client.
PGPOOL_CHILDREN = 100


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find(program):
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    return shutil.which(program, path=path)


class Contestant:
    """A proxy that is running, or the reason why it is not."""

    name = ""
    # As whom its clients log in, if not as all others.
    login = None
    # Clients that it can hold idle at a time, if fewer than asked for.
    idle_limit = None

    def __init__(self, servers, folder):
        self.servers = servers
        self.folder = os.path.join(folder, type(self).__name__.lower())
        os.makedirs(self.folder)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.process = None
        command = self.command()
        # Some refuse to run as root; all run as the same user.
        user = None
        if os.geteuid() == 0:
            user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
            for path in [self.folder, *(os.path.join(self.folder, name) for name in os.listdir(self.folder))]:
                shutil.chown(path, user)
        self.log = open(os.path.join(self.folder, "log"), "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, user=user, cwd=self.folder)
        self.wait_until_listening()

    def command(self):
        raise NotImplementedError

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o600)
        return path

    def wait_until_listening(self):
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    with open(os.path.join(self.folder, "log"), errors="replace") as log:
                        raise RuntimeError(f"{self.name} does not listen: {log.read()[-500:]}") from None
                time.sleep(0.05)

    @property
    def pid(self):
        return self.process.pid

    def address_for(self, mode):
        return self.address

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Direct(Contestant):
    """No proxy: the primary itself."""

    name = "direct"

    def __init__(self, servers, folder):
        self.servers, self.process, self.address = servers, None, servers["nodes"][0]

    @property
    def pid(self):
        return None


class Copy(Contestant):
    name = "copy"
    idle_limit = 150

    def command(self):
        program = os.path.join(self.servers["build"], "examples", "copy_proxy")
        return [program, self.address, self.servers["nodes"][0]]


class PgBouncer(Contestant):
    name = "PgBouncer"
    pool_mode = "transaction"

    def command(self):
        host, port = self.servers["nodes"][0].rsplit(":", 1)
        app = self.servers["app"]
        # The stored verifier, as auth_query would bring it: with a clear password here, every login
        # would cost it the 4,096 rounds of the hash.
        users = self.write("users.txt", f'"{app["user"]}" "{self.servers["verifier"]}"\n')
        return [
            find("pgbouncer"),
            self.write(
                "pgbouncer.ini",
                f"""[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {self.pool_mode}
default_pool_size = {POOL if self.pool_mode == "transaction" else 100}
max_client_conn = 10000
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
""",
            ),
        ]


class PgBouncerSession(PgBouncer):
    """Debian's PgBouncer keeps no prepared statements in transaction mode."""

    name = "PgBouncer (session)"
    pool_mode = "session"


class Pgpool(Contestant):
    name = "Pgpool-II"
    idle_limit = PGPOOL_CHILDREN - 20

    def command(self):
        app, monitor = self.servers["app"], self.servers["monitor"]
        self.write("pool_passwd", f'{app["user"]}:TEXT{app["password"]}\n')
        backends = ""
        for number, node in enumerate(self.servers["nodes"]):
            host, port = node.rsplit(":", 1)
            backends += f"backend_hostname{number} = '{host}'\nbackend_port{number} = {port}\n"
            backends += f"backend_weight{number} = {int(number > 0)}\nbackend_flag{number} = 'DISALLOW_TO_FAILOVER'\n"
        config = self.write(
            "pgpool.conf",
            f"""backend_clustering_mode = 'streaming_replication'
listen_addresses = '127.0.0.1'
port = {self.port}
pcp_port = {free_port()}
socket_dir = '{self.folder}'
unix_socket_directories = '{self.folder}'
pcp_socket_dir = '{self.folder}'
pid_file_name = '{self.folder}/pid'
logdir = '{self.folder}'
work_dir = '{self.folder}'
{backends}
num_init_children = {PGPOOL_CHILDREN}
max_pool = 1
load_balance_mode = on
statement_level_load_balance = on
enable_pool_hba = off
pool_passwd = '{self.folder}/pool_passwd'
sr_check_user = '{monitor["user"]}'
sr_check_password = '{monitor["password"]}'
sr_check_database = 'postgres'
sr_check_period = 1
health_check_period = 0
use_watchdog = off
failover_command = ''
""",
        )
        return [find("pgpool"), "-n", "-f", config]


class Pointsman(Contestant):
    name = "Pointsman"
    engine = "postgres"
    more = ""

    def command(self):
        app, monitor = self.servers["app"], self.servers["monitor"]
        nodes = ", ".join(f'"{node}"' for node in self.servers["nodes"])
        config = self.write(
            "pointsman.toml",
            f"""[log]
level = "warn"
[[cluster]]
name = "bench"
engine = "{self.engine}"
listen = ["{self.address}"]
nodes = [{nodes}]
users = [{{ name = "{app["user"]}", password = "{app["password"]}" }}]
[cluster.monitor]
user = "{monitor["user"]}"
password = "{monitor["password"]}"
[cluster.pool]
size = {POOL}
{self.more}""",
        )
        return [os.path.join(self.servers["build"], "pointsman"), "run", "-c", config]


class PointsmanMysql(Pointsman):
    engine = "mysql"
    # MySQL offers TLS, which the others do without here.
    more = "[cluster.tls]\nserver = { mode = \"disable\" }\n"


class MysqlRouter(Contestant):
    """MySQL Router with fixed destinations: all statements of a session go to the primary."""

    name = "MySQL Router"

    def routes(self):
        return f"""[routing:primary]
bind_address = 127.0.0.1
bind_port = {self.port}
protocol = classic
routing_strategy = first-available
destinations = {self.servers["nodes"][0]}
client_ssl_mode = DISABLED
server_ssl_mode = DISABLED
"""

    def command(self):
        config = self.write(
            "router.conf",
            f"""[DEFAULT]
plugin_folder = {self.servers["root"]}/usr/lib/mysqlrouter/plugin
logging_folder =
runtime_folder = {self.folder}
data_folder = {self.folder}
{self.defaults()}[logger]
level = WARNING
{self.routes()}""",
        )
        return self.program("mysqlrouter", "-c", config)

    def defaults(self):
        return ""

    def program(self, name, *arguments):
        """The command that runs a program of the unpacked packages."""
        root = self.servers["root"]
        library = os.path.join(root, "usr/lib")
        loader, libraries = next(
            (os.path.join(root, loader), os.path.join(library, name))
            for loader, name in (
                ("usr/lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
                ("usr/lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
            )
            if os.path.exists(os.path.join(root, loader))
        )
        paths = f"{libraries}:{library}/mysql-router:{library}/mysqlrouter/private"
        return [loader, "--library-path", paths, f"{root}/usr/bin/{name}", *arguments]


class MysqlRouterSplit(MysqlRouter):
    """MySQL Router splitting by itself: of each session reads go to one replica and writes to the primary.

    It has to find its servers in the metadata of an InnoDB ReplicaSet. MySQL Shell makes those; here stands
    what Router 9.7 reads of them. Connections are only shared, and statements split, for clients whose
    password Router knows: without TLS that is none.
    """

    name = "MySQL Router, split"
    login = {"user": "open", "password": ""}
    metadata = {"user": "router", "password": "router-pw"}

    def __init__(self, servers, folder):
        self.make_metadata(servers)
        super().__init__(servers, folder)

    def wait_until_listening(self):
        super().wait_until_listening()
        deadline = time.monotonic() + 20
        ask = ["--no-defaults", "--host=127.0.0.1", f"--port={self.port}", f"--user={self.login['user']}", "-e", "SELECT 1"]
        while subprocess.run(self.program("mysql", *ask), capture_output=True).returncode:
            if time.monotonic() > deadline:
                self.stop()
                with open(os.path.join(self.folder, "log"), errors="replace") as log:
                    raise RuntimeError(f"{self.name} finds no servers: {log.read()[-500:]}")
            time.sleep(0.1)

    def make_metadata(self, servers):
        self.servers = servers
        uuids = [self.sql("SELECT @@server_uuid", socket).strip() for socket in servers["sockets"]]
        members = enumerate(zip(uuids, servers["nodes"]))
        rows = ", ".join(
            f"({number}, 'bench', '{uuid}', '{node}', '{'SECONDARY' if number else 'PRIMARY'}')"
            for number, (uuid, node) in members
        )
        app, reader, schema = servers["app"]["user"], self.metadata, "mysql_innodb_cluster_metadata"
        self.sql(
            f"""
CREATE DATABASE {schema};
USE {schema};
CREATE TABLE members (number INT PRIMARY KEY, cluster_id VARCHAR(9), uuid CHAR(36), endpoint VARCHAR(40),
    role VARCHAR(9));
INSERT INTO members VALUES {rows};
CREATE VIEW schema_version (major, minor, patch) AS SELECT 2, 2, 0;
CREATE VIEW v2_this_instance AS SELECT 'bench' AS cluster_id, 'bench' AS cluster_name, 'ar' AS cluster_type;
CREATE VIEW v2_ar_clusters AS SELECT 1 AS view_id, t.* FROM v2_this_instance t;
CREATE VIEW v2_ar_members AS SELECT 1 AS view_id, cluster_id, number AS instance_id, uuid AS member_id,
    role AS member_role FROM members;
CREATE VIEW v2_instances AS SELECT number AS instance_id, cluster_id, uuid AS mysql_server_uuid, endpoint,
    endpoint AS label, NULL AS xendpoint, '{{}}' AS attributes FROM members;
CREATE VIEW v2_router_options AS SELECT 1 AS router_id, '{{}}' AS router_options;
CREATE TABLE v2_routers (router_id INT PRIMARY KEY, router_name VARCHAR(9), address VARCHAR(40), version VARCHAR(20),
    last_check_in TIMESTAMP NULL, attributes JSON, options JSON);
INSERT INTO v2_routers VALUES (1, 'bench', '127.0.0.1', '', NULL, '{{}}', '{{}}');
CREATE USER {reader["user"]} IDENTIFIED BY '{reader["password"]}';
GRANT SELECT, UPDATE ON {schema}.* TO {reader["user"]};
CREATE USER {self.login["user"]} IDENTIFIED BY '';
GRANT ALL ON {app}.* TO {self.login["user"]};
""",
            servers["sockets"][0],
        )

    def sql(self, text, socket):
        command = self.program("mysql", "--no-defaults", "--user=root", f"--socket={socket}", "-NB")
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout

    def defaults(self):
        keyring, master = (os.path.join(self.folder, name) for name in ("keyring", "master.key"))
        for arguments in (["init", keyring], ["set", keyring, self.metadata["user"], "password", self.metadata["password"]]):
            command = self.program("mysqlrouter_keyring", *arguments, "--master-key-file", master)
            subprocess.run(command, capture_output=True, check=True)
        servers = [f"mysql://{node}" for node in self.servers["nodes"]]
        state = {"metadata-cache": {"group-replication-id": "bench", "cluster-metadata-servers": servers}}
        state = self.write("state.json", json.dumps({**state, "version": "1.0.0"}))
        return f"""keyring_path = {keyring}
master_key_path = {master}
dynamic_state = {state}
max_idle_server_connections = {2 * POOL}
"""

    def routes(self):
        return f"""[metadata_cache:bench]
cluster_type = rs
router_id = 1
user = {self.metadata["user"]}
metadata_cluster = bench
ttl = 5
[routing:split]
bind_address = 127.0.0.1
bind_port = {self.port}
protocol = classic
routing_strategy = round-robin
access_mode = auto
connection_sharing = 1
destinations = metadata-cache://bench/?role=PRIMARY_AND_SECONDARY
client_ssl_mode = DISABLED
server_ssl_mode = DISABLED
"""


class Field:
    """All contestants, and who stands for whom in which mode."""

    def __init__(self, servers, folder, wanted, kinds=(Direct, Copy, PgBouncer, Pgpool, Pointsman)):
        self.running, self.absent = [], {}
        self.session_bouncer = None
        for kind in kinds:
            if kind.name.lower() in wanted:
                self._start(kind, servers, folder)
        if any(isinstance(one, PgBouncer) for one in self.running):
            self.session_bouncer = PgBouncerSession(servers, folder)

    def _start(self, kind, servers, folder):
        try:
            self.running.append(kind(servers, folder))
        except (RuntimeError, OSError, TypeError) as error:
            self.absent[kind.name] = str(error).strip().replace("\n", " ")

    def in_mode(self, mode):
        """The contestants of a run; in prepared mode PgBouncer pools sessions."""
        swap = mode == "prepared" and self.session_bouncer
        return [self.session_bouncer if swap and type(one) is PgBouncer else one for one in self.running]

    def leave_out(self, contestant):
        """One that failed takes no further part."""
        self.running.remove(contestant)
        contestant.stop()

    def stop(self):
        for contestant in [*self.running, self.session_bouncer]:
            if contestant:
                contestant.stop()
