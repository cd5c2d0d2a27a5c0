//! The configuration as it is used: every value checked, every default filled in.
//!
//! Field names are the keys of the TOML file; `docs/configuration.md` gives each its unit, default
//! and reason. `file` turns text into these types and lists every fault at once, `url` makes them
//! of a connection URL, `reload` says what differs between two of them.

pub mod address;
pub mod choice;
mod document;
mod endpoint;
pub mod entries;
pub mod fault;
pub mod file;
pub mod keys;
mod pem;
#[cfg(test)]
mod reference;
pub mod reload;
pub mod secret;
mod url;
mod values;

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

pub use address::HostPort;
pub use choice::Choice;
pub use endpoint::Endpoint;
pub use fault::{Fault, Faults, Place};
pub use pem::PemFile;
pub use secret::{Secret, SecretForm};

use crate::{
    route::{Consistency, Policy, PrimaryReads},
    sql::{Dialect, catalog::FunctionRules},
};

/// Everything that a running proxy was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Runtimes, one thread each; one per core.
    pub workers: NonZeroUsize,
    /// How long open transactions may take to end after SIGTERM.
    pub shutdown_timeout: Duration,
    pub log: Log,
    pub admin: Admin,
    /// At least one; names are unique.
    pub clusters: Vec<Cluster>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// A filter as in `info` or `info,pointsman::monitor=debug`; known to be valid.
    pub level: String,
    /// Statements that take longer are logged with node, route and wait; `None`: off.
    pub statements_over: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    Text,
    Json,
}

/// The doors of the control plane. A door that is `None` is closed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admin {
    pub http: Option<HostPort>,
    pub postgres: Option<HostPort>,
    pub mysql: Option<HostPort>,
    /// Who may use the console; while empty it is closed. Each has a password.
    pub users: Vec<User>,
    /// Routed statements of each cluster that are kept to be looked at; 0: none.
    pub recent_statements: usize,
}

/// One replicated database and the endpoint before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Unique; a metrics label.
    pub name: Arc<str>,
    pub engine: Engine,
    /// At least one; none overlaps another listener. Port 0 lets the system choose.
    pub listen: Vec<HostPort>,
    /// Other proxies before the same servers: cancel requests for their clients go on to them.
    pub peers: Vec<HostPort>,
    pub members: Members,
    /// May be empty where `auth.query` or `auth.trust_loopback` lets clients in.
    pub users: Vec<User>,
    pub monitor: Monitor,
    pub auth: Auth,
    pub pool: Pool,
    pub routing: Routing,
    pub failover: Failover,
    pub limits: Limits,
    pub tls: Tls,
}

/// Which protocol a cluster speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    Postgres,
    /// MySQL and MariaDB, told apart by asking.
    Mysql,
}

impl Engine {
    /// The port of a node that names none.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::Mysql => 3306,
        }
    }

    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Postgres => Dialect::Postgres,
            Self::Mysql => Dialect::Mysql,
        }
    }
}

/// Where a cluster's nodes are learned from.
#[derive(Clone, Debug, PartialEq)]
pub enum Members {
    /// `nodes`: at least one, no address twice.
    Nodes(Vec<NodeConfig>),
    Patroni(PatroniSource),
}

/// `discovery = { patroni = […] }`.
#[derive(Clone, Debug, PartialEq)]
pub struct PatroniSource {
    /// REST endpoints, at least one.
    pub endpoints: Vec<Endpoint>,
    /// PEM: who signs the certificates of `https` endpoints; the system's roots if not named.
    pub ca: Option<PathBuf>,
}

/// A server as the file names it. Its role is never configured: the servers are asked.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// `host:port`, the port filled in: the node's name in metrics, logs, hints and console.
    pub address: Arc<str>,
    /// The same, apart, for connecting.
    pub at: HostPort,
    /// Share of reads relative to the others; finite, 0 or more. 0 serves no reads by weight.
    pub weight: f64,
    pub zone: Option<Arc<str>>,
}

impl NodeConfig {
    /// A node of weight 1 in no zone.
    pub fn new(at: HostPort) -> Self {
        Self { address: at.to_string().into(), at, weight: 1.0, zone: None }
    }

    /// Says so where a later node is this one again.
    fn clash(&self, later: &Self) -> Option<String> {
        match later.at.names_the_same(&self.at) {
            false => None,
            true if later.address == self.address => Some(format!("{} is listed twice", self.address)),
            true => Some(format!("{} is {}, listed twice", later.address, self.address)),
        }
    }
}

/// Someone who may log in.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub name: Arc<str>,
    /// A clear password or a stored verifier: [`Secret::form`] tells. Never empty.
    /// `None`: no password opens the door, only a client certificate, `auth.query` or
    /// `auth.trust_loopback`.
    pub password: Option<Secret>,
}

/// How roles, lag and health are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Monitor {
    pub user: Arc<str>,
    /// `None` where the servers ask for none.
    pub password: Option<Secret>,
    /// The database the monitor connects to; PostgreSQL only.
    pub database: Arc<str>,
    pub interval: Duration,
    /// Used instead while no primary is known, a node is suspect or somebody waits for a
    /// position; at most `interval`.
    pub fast_interval: Duration,
    /// A probe without an answer by then has failed; a login goes on.
    pub timeout: Duration,
    /// Failed probes in a row that make a node down; at least 1.
    pub failures: u32,
    /// `None`: the catalog is read again only after DDL that passed through.
    pub catalog_refresh: Option<Duration>,
}

/// A whole catalog takes longer than a probe.
const CATALOG_TIMEOUTS: u32 = 10;

impl Monitor {
    /// How long the reading of a catalog may take; a session that begins meanwhile waits for it.
    pub fn catalog_timeout(&self) -> Duration {
        self.timeout * CATALOG_TIMEOUTS
    }

    /// Whether both open the same connections.
    pub fn logs_in_as(&self, other: &Self) -> bool {
        (&self.user, &self.password, &self.database) == (&other.user, &other.password, &other.database)
    }
}

/// Where verifiers of users that the file does not list come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    /// Asks a server for name and verifier; its one parameter is the user's name.
    pub query: Option<Arc<str>>,
    /// Clients from this machine need no password.
    pub trust_loopback: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub mode: PoolMode,
    /// Server connections per node, user and database; at least 1.
    pub size: usize,
    /// Bounds all pools of a node together; `None`: 80 % of what the server says it has.
    pub node_connections: Option<usize>,
    /// Connections kept open per pool even when idle; at most `size`.
    pub min_idle: usize,
    pub checkout_timeout: Duration,
    /// `None`: idle connections stay.
    pub idle_timeout: Option<Duration>,
    /// Age at which a connection is replaced (with jitter); `None`: never.
    pub max_lifetime: Option<Duration>,
    /// Prepared statements kept per server connection; at least 1.
    pub prepared_statements: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolMode {
    /// A server connection serves a session for one transaction.
    Transaction,
    /// … for as long as the client stays.
    Session,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    pub consistency: Consistency,
    /// A replica further behind serves no reads; `None`: no bound.
    pub max_lag: Option<Duration>,
    /// The lag that halves a replica's weight; `None`: lag does not weigh.
    pub lag_half_weight: Option<Duration>,
    /// Time over which a node that comes back reaches its full weight; `None`: at once.
    pub slow_start: Option<Duration>,
    pub primary_reads: PrimaryReads,
    pub transaction_reads: TransactionReads,
    /// Where this proxy stands: nodes of the same zone are preferred.
    pub zone: Option<Arc<str>>,
    /// `read_functions`, `write_functions`, `clean_functions`; no name is both read and write.
    pub functions: FunctionRules,
}

impl Cluster {
    /// What [`crate::route::choose`] needs of it.
    pub fn policy(&self) -> Policy {
        /// A position that three probes did not renew is not known any more (design, section 4).
        const FRESH_INTERVALS: u32 = 3;
        Policy {
            consistency: self.routing.consistency,
            max_lag: self.routing.max_lag.unwrap_or(Duration::MAX),
            primary_reads: self.routing.primary_reads,
            fresh_for: self.monitor.interval.saturating_mul(FRESH_INTERVALS),
        }
    }
}

/// Where reads inside a transaction that may write go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TransactionReads {
    #[default]
    Primary,
    /// Reads before the first write of a READ COMMITTED transaction may use a replica.
    Replica,
    /// Of a REPEATABLE READ transaction as well: what it reads before and after its first write is
    /// of different snapshots.
    ReplicaRepeatableRead,
}

/// What happens to statements while there is no primary.
#[derive(Clone, Debug, PartialEq)]
pub struct Failover {
    /// How long a statement may wait; zero refuses at once.
    pub hold: Duration,
    /// How many statements may wait; zero refuses at once.
    pub hold_limit: usize,
    /// Whether a COMMIT asks for its transaction's id, so that its fate can be asked for where the
    /// answer is lost.
    pub commit_outcome: bool,
    /// Where the last election is kept over restarts; `None`: in systemd's state folder, if any.
    pub state_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Client connections of this cluster; at least 1.
    pub clients: usize,
    pub clients_per_user: Option<usize>,
    pub login_timeout: Duration,
    pub idle_client_timeout: Option<Duration>,
    /// Counts from BEGIN, also while BEGIN is held back.
    pub idle_transaction_timeout: Option<Duration>,
    pub statement_timeout: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub client: ClientTls,
    pub server: ServerTls,
}

impl Tls {
    /// What clients reach us by.
    pub fn client_parameters(&self) -> crate::tls::Parameters {
        tls_parameters(self.client.mode, self.client.identity.as_ref(), self.client.ca.as_ref())
    }

    /// What we reach servers by.
    pub fn server_parameters(&self) -> crate::tls::Parameters {
        tls_parameters(self.server.mode, self.server.identity.as_ref(), self.server.ca.as_ref())
    }
}

fn tls_parameters(
    mode: TlsMode,
    identity: Option<&Identity>,
    ca: Option<&PemFile>,
) -> crate::tls::Parameters {
    use crate::tls::Mode;
    crate::tls::Parameters {
        mode: match mode {
            TlsMode::Disable => Mode::Disable,
            TlsMode::Allow => Mode::Allow,
            TlsMode::Prefer => Mode::Prefer,
            TlsMode::Require => Mode::Require,
            TlsMode::VerifyCa => Mode::VerifyCa,
            TlsMode::VerifyFull => Mode::VerifyFull,
        },
        certificate: identity.map(|identity| identity.certificate.path().to_owned()),
        key: identity.map(|identity| identity.key.path().to_owned()),
        ca: ca.map(|ca| ca.path().to_owned()),
    }
}

/// TLS toward clients; a server's part.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientTls {
    pub mode: TlsMode,
    /// Certificate chain and private key, PEM. Present unless `mode` is `Disable`.
    pub identity: Option<Identity>,
    /// Who signs client certificates. Present when `mode` verifies.
    pub ca: Option<PemFile>,
}

/// TLS toward the servers; a client's part.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerTls {
    pub mode: TlsMode,
    /// Who signs server certificates, PEM; `None`: the system's roots.
    pub ca: Option<PemFile>,
    /// A client certificate, where servers ask for one.
    pub identity: Option<Identity>,
}

/// PEM files; they existed and could be read when the configuration was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub certificate: PemFile,
    pub key: PemFile,
}

/// As libpq's `sslmode`. Toward clients `VerifyCa` asks for a client certificate and `VerifyFull`
/// for one whose common name is the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl TlsMode {
    /// Whether the peer's certificate is checked.
    pub const fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}
