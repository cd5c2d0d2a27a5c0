//! The schema's data.

use super::{
    Key,
    Preset::{self, Default, Required, Unset},
    Shape, Table,
};

const fn key(name: &'static str, preset: Preset, unit: &'static str, why: &'static str) -> Key {
    Key { name, preset, unit, why }
}

const fn unset(means: &'static str, example: &'static str) -> Preset {
    Unset { means, example }
}

/// In the order in which documentation shows them; a parent stands before its children.
pub static TABLES: &[Table] = &[
    Table {
        path: "",
        about: "The process as a whole. A change here needs a restart, but for `shutdown_timeout`.",
        shape: Shape::Single,
        keys: &[
            key(
                "workers",
                unset("one per core", "4"),
                "threads",
                "As many as the load needs are used. More than there are cores only costs switches between them.",
            ),
            key(
                "shutdown_timeout",
                Default("\"30s\""),
                "duration",
                "How long open transactions may take to end after SIGTERM before they are cut off. As long as most service managers wait before they kill.",
            ),
        ],
    },
    Table {
        path: "log",
        about: "What is written to standard error.",
        shape: Shape::Single,
        keys: &[
            key(
                "format",
                Default("\"text\""),
                "`text` or `json`",
                "Text for people, JSON for a log collector.",
            ),
            key(
                "level",
                Default("\"info\""),
                "filter",
                "`off`, `error`, `warn`, `info`, `debug`, `trace`, also by module as in `info,pointsman::monitor=debug`. No statement is logged above `debug`.",
            ),
            key(
                "statements_over",
                Default("\"0s\""),
                "duration, zero: off",
                "Statements that take longer are logged with their node, route and wait.",
            ),
        ],
    },
    Table {
        path: "admin",
        about: "The doors of the control plane. A door that is not named is closed; a change needs a restart, but for `users` and `recent_statements`.",
        shape: Shape::Single,
        keys: &[
            key(
                "http",
                unset("closed", "\"127.0.0.1:9187\""),
                "address",
                "`/metrics`, `/healthz`, `/readyz`, `/api/…` and the dashboard. On loopback it asks for no login, elsewhere for one of `users`.",
            ),
            key(
                "postgres",
                unset("closed", "\"127.0.0.1:6433\""),
                "address",
                "The console for psql. Any database name logs in; that of a cluster limits SHOW to it.",
            ),
            key(
                "mysql",
                unset("closed", "\"127.0.0.1:6434\""),
                "address",
                "The same console for the mysql client.",
            ),
            key(
                "users",
                unset("nobody", "[{ name = \"admin\", password = { env = \"POINTSMAN_ADMIN_PASSWORD\" } }]"),
                "list of `{ name, password }`",
                "Who may log in there. While it is empty the console is closed to everybody.",
            ),
            key(
                "recent_statements",
                Default("0"),
                "number up to 1000, zero: off",
                "Routed statements of each cluster that are kept for `SHOW STATEMENTS` and the dashboard: with fingerprint, node, reason and times, their texts without literals. Every statement takes a lock for it.",
            ),
        ],
    },
    Table {
        path: "admin.users",
        about: "An operator.",
        shape: Shape::Inline,
        keys: &[
            key("name", Required("\"admin\""), "text", "What they log in as."),
            key(
                "password",
                Required("{ env = \"POINTSMAN_ADMIN_PASSWORD\" }"),
                "secret",
                "A secret is a string, `{ env = \"NAME\" }` or `{ file = \"PATH\" }`.",
            ),
        ],
    },
    Table {
        path: "cluster",
        about: "One replicated database and the endpoint before it. At least one.",
        shape: Shape::List,
        keys: &[
            key(
                "name",
                Required("\"shop\""),
                "letters, digits, `_`, `.`, `-`",
                "Its name in logs, metrics and the console; unique.",
            ),
            key(
                "engine",
                Required("\"postgres\""),
                "`postgres` or `mysql`",
                "`mysql` is MySQL and MariaDB, told apart by asking.",
            ),
            key(
                "listen",
                Required("[\"127.0.0.1:6432\"]"),
                "list of addresses",
                "Where clients connect. `0.0.0.0` is every IPv4 address, `[::]` every address; port 0 lets the system choose. A change needs a restart.",
            ),
            key(
                "peers",
                Default("[]"),
                "list of addresses",
                "Other proxies before the same servers, as `host:port`. A balancer may bring a cancel request to any of them; they hand it on to each other (PostgreSQL only), reached as servers are (`tls.server`).",
            ),
            key(
                "nodes",
                unset("`discovery` says", "[\"10.0.0.1:5432\", \"10.0.0.2:5432\"]"),
                "list of `host:port` or `{ address, weight, zone }`",
                "The servers; the port defaults to 5432 or 3306. Who is primary is never configured: the servers are asked.",
            ),
            key(
                "discovery",
                unset("`nodes` says", "{ patroni = [\"http://10.0.0.1:8008\"] }"),
                "`{ patroni = [URL, …], ca }`",
                "Instead of `nodes`: Patroni knows the servers and their roles. PostgreSQL only.",
            ),
            key(
                "users",
                unset("nobody", "[{ name = \"app\", password = \"secret\" }]"),
                "list of `{ name, password }`",
                "Who may log in, with the password that opens the servers too. A user may open any database that the server has.",
            ),
        ],
    },
    Table {
        path: "cluster.nodes",
        about: "A server, where its address alone does not say enough.",
        shape: Shape::Inline,
        keys: &[
            key(
                "address",
                Required("\"10.0.0.1:5432\""),
                "`host:port`",
                "Its name in metrics, logs, hints and the console.",
            ),
            key(
                "weight",
                Default("1.0"),
                "number, 0 or more",
                "Its share of reads relative to the others. 0 keeps reads away from a replica while others serve.",
            ),
            key(
                "zone",
                unset("none", "\"khi\""),
                "text",
                "Where it stands: nodes in the zone of `routing.zone` are preferred.",
            ),
        ],
    },
    Table {
        path: "cluster.discovery",
        about: "Where nodes are learned from.",
        shape: Shape::Inline,
        keys: &[
            key(
                "patroni",
                Required("[\"http://10.0.0.1:8008\"]"),
                "list of URLs",
                "Patroni's REST API on any of its nodes, `http` or `https`; more than one, so that one may be down. A user and a password in a URL are sent (basic authentication) and shown nowhere.",
            ),
            key(
                "ca",
                unset("the system's roots", "\"patroni-ca.crt\""),
                "path of a PEM file",
                "Who signs the certificates of `https` endpoints. They are always checked, and so are the names in them.",
            ),
        ],
    },
    Table {
        path: "cluster.users",
        about: "A user of the database.",
        shape: Shape::Inline,
        keys: &[
            key("name", Required("\"app\""), "text", "The name at the proxy and at the servers."),
            key(
                "password",
                unset("no password opens the door", "\"secret\""),
                "secret",
                "A string, `{ env = \"NAME\" }` or `{ file = \"PATH\" }` (a newline at the end is dropped); a relative path starts at the folder of the configuration file. The password, or what the server stores of it: `SCRAM-SHA-256$…`, `md5…`, or MySQL's `*…` or `$A$…`.",
            ),
        ],
    },
    Table {
        path: "cluster.monitor",
        about: "How roles, lag and health are measured.",
        shape: Shape::Single,
        keys: &[
            key(
                "user",
                Required("\"pointsman\""),
                "text",
                "PostgreSQL: a member of `pg_monitor` that may connect to every database served. MySQL: `REPLICATION CLIENT`, `PROCESS`, `SHOW_ROUTINE`, `SHOW VIEW` and `TRIGGER`, with Group Replication SELECT on `performance_schema.replication_group_members`; MariaDB: `REPLICA MONITOR`, `PROCESS`, `SHOW VIEW`, `TRIGGER` and SELECT on `mysql.*`. What a view calls servers show only to who may also SELECT from it: see `docs/differences.md`.",
            ),
            key(
                "password",
                unset("the servers ask for none", "\"secret\""),
                "secret",
                "As for `users`, but the password itself.",
            ),
            key("database", Default("\"postgres\""), "text, PostgreSQL only", "The database it connects to."),
            key(
                "interval",
                Default("\"200ms\""),
                "duration, at least 1ms",
                "Time between two probes of a node. The resolution of lag and the delay of detection; a probe costs a server less than 0.1 ms.",
            ),
            key(
                "fast_interval",
                Default("\"25ms\""),
                "duration, 1ms to `interval`",
                "Used instead while no primary is known, a node is suspect or a session waits for a position.",
            ),
            key(
                "timeout",
                Default("\"1s\""),
                "duration, at least 1ms",
                "A probe without an answer by then has failed. A login that takes longer is gone on with, up to 30 times as long. A catalog may take 10 times as long; sessions that begin meanwhile wait for it.",
            ),
            key(
                "failures",
                Default("3"),
                "probes, at least 1",
                "Failed probes in a row that make a node down. One lost packet should not move the traffic.",
            ),
            key(
                "catalog_refresh",
                Default("\"10s\""),
                "duration, zero: off",
                "How often functions, relations and what sessions begin with (settings of roles and databases, MySQL's global defaults) are read again; also done at once after DDL that passed through.",
            ),
        ],
    },
    Table {
        path: "cluster.auth",
        about: "Users that the file does not list.",
        shape: Shape::Single,
        keys: &[
            key(
                "query",
                unset("off", "\"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\""),
                "SQL",
                "Run by the monitor user on a server: answers name and verifier of the user who logs in. Its one parameter is `$1`, for MySQL `?`.",
            ),
            key(
                "trust_loopback",
                Default("false"),
                "true or false",
                "Clients from this machine need no password. Off, because everybody on this machine would be everybody in the database.",
            ),
        ],
    },
    Table {
        path: "cluster.pool",
        about: "Connections to the servers.",
        shape: Shape::Single,
        keys: &[
            key(
                "mode",
                Default("\"transaction\""),
                "`transaction` or `session`",
                "How long a client keeps a server connection. Session state is carried along in both.",
            ),
            key(
                "size",
                Default("20"),
                "connections per node, user and database, at least 1",
                "More than the server's cores and disks can serve at a time only queue inside the server.",
            ),
            key(
                "node_connections",
                unset("80 % of what the server says it has", "100"),
                "connections per node, at least 1",
                "Bounds all pools of a node together; leaves room for others and for superusers.",
            ),
            key(
                "min_idle",
                Default("0"),
                "connections per pool, at most `size`",
                "Kept open for the next burst, as far as `node_connections` leaves room.",
            ),
            key(
                "checkout_timeout",
                Default("\"15s\""),
                "duration, at least 1ms",
                "How long a statement may wait for a server connection, first come first served.",
            ),
            key(
                "idle_timeout",
                Default("\"10m\""),
                "duration, zero: off",
                "An idle connection beyond `min_idle` is closed after that.",
            ),
            key(
                "max_lifetime",
                Default("\"1h\""),
                "duration, zero: off",
                "A connection is replaced at that age, with jitter, so that the memory of old server processes is given back.",
            ),
            key(
                "prepared_statements",
                Default("512"),
                "statements per server connection, at least 1",
                "The least recently used is closed beyond that; clients do not notice.",
            ),
        ],
    },
    Table {
        path: "cluster.routing",
        about: "Which node a statement goes to.",
        shape: Shape::Single,
        keys: &[
            key(
                "consistency",
                Default("\"session\""),
                "`eventual`, `session`, `monotonic`, `user` or `global`",
                "How fresh reads are. `session`: never behind the session's own writes; `user`: for apps with a pool of their own, whose next read may use another connection; `global`: never behind any write through this proxy.",
            ),
            key(
                "max_lag",
                Default("\"10s\""),
                "duration, zero: off",
                "A replica further behind serves no reads.",
            ),
            key(
                "lag_half_weight",
                Default("\"1s\""),
                "duration, zero: off",
                "The lag that halves a replica's share of reads.",
            ),
            key(
                "slow_start",
                Default("\"10s\""),
                "duration, zero: off",
                "A node that comes back reaches its full share over that time, so that cold caches do not meet the whole load.",
            ),
            key(
                "primary_reads",
                Default("\"fallback\""),
                "`fallback`, `never` or `always`",
                "Whether reads may use the primary: when no replica may serve, never, or as one node among the others.",
            ),
            key(
                "transaction_reads",
                Default("\"primary\""),
                "`primary`, `replica` or `replica-repeatable-read`",
                "Where reads before the first write of a READ COMMITTED transaction go. `replica` gives up that a transaction reads from one server: what it reads meets the session's floor but may be behind what others wrote, and a write that goes by it goes by that. `replica-repeatable-read` does the same to REPEATABLE READ, MySQL's default, and gives up that it reads from one snapshot.",
            ),
            key(
                "zone",
                unset("none", "\"khi\""),
                "text",
                "Where this proxy stands: nodes of the same zone are preferred.",
            ),
            key(
                "read_functions",
                Default("[]"),
                "list of names",
                "Functions that only read although the catalog calls them VOLATILE, or that replicas may run although their body asks for what the primary has. Names without schema; lower case unless double-quoted.",
            ),
            key(
                "write_functions",
                Default("[]"),
                "list of names",
                "Functions that write although the catalog does not say so. Their calls pin as well, unless the name stands in `clean_functions` too.",
            ),
            key(
                "clean_functions",
                Default("[]"),
                "list of names",
                "Functions known to leave no state in the session: their calls do not pin, nor does what calls them (triggers, views, other functions), unless for another reason.",
            ),
        ],
    },
    Table {
        path: "cluster.failover",
        about: "While there is no primary.",
        shape: Shape::Single,
        keys: &[
            key(
                "hold",
                Default("\"30s\""),
                "duration, zero: off",
                "How long statements wait for a new primary before they are refused; most failovers are done by then.",
            ),
            key("hold_limit", Default("10000"), "statements", "How many may wait; zero refuses at once."),
            key(
                "commit_outcome",
                Default("true"),
                "`true` or `false`, PostgreSQL only",
                "Whether the COMMIT of a transaction that wrote asks for the transaction's id on its way (no round trip, some 20 µs of the server's CPU). With it the new primary can tell whether the transaction was committed, where a failover swallows the answer; without, the client gets the in-doubt error.",
            ),
            key(
                "state_file",
                unset("NAME.state in `$STATE_DIRECTORY` (systemd), else off", "\"shop.state\""),
                "path of a file in a folder that exists",
                "Keeps who was elected last over restarts, so that an old primary that is back is not taken for the primary.",
            ),
        ],
    },
    Table {
        path: "cluster.limits",
        about: "Bounds on clients.",
        shape: Shape::Single,
        keys: &[
            key(
                "clients",
                Default("10000"),
                "connections, at least 1",
                "More are refused with the server's own \"too many connections\". As many again, and at least 64, may be logging in: where more say nothing, the oldest of them make room.",
            ),
            key("clients_per_user", Default("0"), "connections, zero: off", "The same for each user."),
            key(
                "login_timeout",
                Default("\"15s\""),
                "duration, at least 1ms",
                "From the first byte to a login that succeeded.",
            ),
            key(
                "idle_client_timeout",
                Default("\"0s\""),
                "duration, zero: off",
                "A client that is silent outside a transaction for longer is disconnected.",
            ),
            key(
                "idle_transaction_timeout",
                Default("\"0s\""),
                "duration, zero: off",
                "A client that is silent inside a transaction for longer is disconnected, also behind a BEGIN of which no server knows yet.",
            ),
            key(
                "statement_timeout",
                Default("\"0s\""),
                "duration, zero: off",
                "A statement that takes longer, its waiting included, is cancelled.",
            ),
        ],
    },
    Table {
        path: "cluster.tls",
        about: "Encryption on both sides. The files are read again on reload.",
        shape: Shape::Single,
        keys: &[],
    },
    Table {
        path: "cluster.tls.client",
        about: "Toward clients.",
        shape: Shape::Single,
        keys: &[
            key(
                "mode",
                unset("`prefer` with a certificate, else `disable`", "\"require\""),
                "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`",
                "`verify-ca` asks for a client certificate as well as the password, `verify-full` for one whose common name is the user's: on PostgreSQL in place of the password (`cert` in pg_hba.conf), on MySQL beside it. Without a certificate of its own the proxy can offer no encryption.",
            ),
            key(
                "certificate",
                unset("none", "\"server.crt\""),
                "path of a PEM file",
                "The chain shown to clients; goes with `key`. A relative path starts at the folder of the configuration file.",
            ),
            key(
                "key",
                unset("none", "\"server.key\""),
                "path of a PEM file",
                "The private key of `certificate`.",
            ),
            key(
                "ca",
                unset("none", "\"clients-ca.crt\""),
                "path of a PEM file",
                "Who signs client certificates; needed by `verify-ca` and `verify-full`.",
            ),
        ],
    },
    Table {
        path: "cluster.tls.server",
        about: "Toward the servers. A change replaces the connections of before as they become free.",
        shape: Shape::Single,
        keys: &[
            key(
                "mode",
                Default("\"prefer\""),
                "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`",
                "As libpq's `sslmode`, with its default.",
            ),
            key(
                "ca",
                unset("the system's roots", "\"servers-ca.crt\""),
                "path of a PEM file",
                "Who signs the servers' certificates; used by `verify-ca` and `verify-full`.",
            ),
            key(
                "certificate",
                unset("none", "\"pointsman.crt\""),
                "path of a PEM file",
                "A client certificate, where the servers ask for one; goes with `key`.",
            ),
            key(
                "key",
                unset("none", "\"pointsman.key\""),
                "path of a PEM file",
                "The private key of `certificate`.",
            ),
        ],
    },
];
