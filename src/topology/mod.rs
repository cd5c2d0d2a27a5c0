//! Who is who right now: the nodes of one cluster, their roles, lag and health.
//!
//! The monitor builds a [`Snapshot`] and publishes it whole; the data plane only reads.

pub mod board;
pub mod election;
mod gtid;
pub mod health;
pub mod lag;
pub mod position;
mod snapshot;
pub mod timelines;
mod writers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub use position::{GtidSet, Lsn, Position, PositionFault};
pub use snapshot::{ElectedSet, Fall, History, Resolved, Sample, Snapshot};
pub use timelines::Timelines;
pub use writers::Writers;

/// Which database's rules of history hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Timelines and one system identifier.
    Postgres,
    /// GTID sets, each server with an identity of its own; MariaDB too.
    Mysql,
}

/// Index of a node in its snapshot, and in the configuration it was built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// What a node is, by the last probe and the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Primary,
    Replica,
    Unknown,
}

impl Role {
    pub const ALL: [Role; 3] = [Self::Primary, Self::Replica, Self::Unknown];

    /// The value of the metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether a node may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not probed yet.
    New,
    Up,
    /// Failed a probe, not yet `failures` of them.
    Suspect,
    Down,
    /// Claims a role that it lost, or diverged: gets nothing, not even on open connections.
    Fenced(Arc<str>),
    /// Drained by a person: open transactions end, nothing new begins.
    Draining,
    /// Banned by a person.
    Banned,
}

impl State {
    /// Every value of [`Self::label`].
    pub const LABELS: [&'static str; 7] = ["new", "up", "suspect", "down", "fenced", "draining", "banned"];

    /// The value of the metric's label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Fenced(_) => "fenced",
            Self::Draining => "draining",
            Self::Banned => "banned",
        }
    }
}

/// One server process's life: positions measured in another are worth nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation {
    /// PostgreSQL system identifier, MySQL `server_uuid`, MariaDB `server_id`.
    pub system: Arc<str>,
    /// Start of the postmaster, or of its processes after a crash, in microseconds; MySQL: now − Uptime, to the second.
    pub started: i64,
}

/// What a probe learned from a server that answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub incarnation: Incarnation,
    pub claim: Claim,
    /// PostgreSQL's timeline; `None` where it cannot be known (hard case 9), and on MySQL.
    pub timeline: Option<u32>,
    /// An upper bound of everything this server has acknowledged as a primary (hard case 3).
    pub written: Option<Position>,
    /// An upper bound of everything its readers may have seen and, of a primary, of `written`: what
    /// floors are made of. `None` where a replica cannot tell.
    pub shown: Option<Position>,
    /// What a primary has made durable: the lag clock's history.
    pub flushed: Option<Position>,
    /// What a replica has made visible.
    pub replayed: Option<Position>,
    /// MariaDB: who wrote all that it has; `None` where it has no binary log to tell.
    pub writers: Option<Arc<Writers>>,
    /// PostgreSQL: transactions below this were begun on the replica's primary, as far as the
    /// replica has replayed; it gives these ids to nobody when it is promoted.
    pub horizon: Option<u64>,
    /// Connections an ordinary user can get: max_connections less the reserved ones.
    pub connections: Option<u32>,
    /// Duplicates of this among the nodes are refused (MySQL `server_id`).
    pub server_id: Option<u64>,
    /// The name of its group, by which every member's commits are numbered (MySQL's Group Replication).
    pub group: Option<Arc<str>>,
    /// PostgreSQL `server_version_num`; MySQL as 80036, 101106.
    pub version: u32,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Primary,
    Replica,
}

/// One probe's outcome. Times are the proxy's own monotonic clock.
#[derive(Clone, Debug)]
pub struct Probe {
    pub number: ProbeNumber,
    pub sent: Instant,
    pub answered: Instant,
    pub outcome: Result<Facts, ProbeFault>,
    /// What went wrong, in the server's or the system's words.
    pub detail: Option<Arc<str>>,
}

impl Probe {
    fn said(&self, fault: ProbeFault) -> Arc<str> {
        self.detail.clone().unwrap_or_else(|| fault.label().into())
    }
}

/// Grows by one with every probe sent by a cluster's monitor. Compared with the number current
/// when a write's answer was read, it tells whether a probe was sent after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProbeNumber(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeFault {
    /// Could not connect, or was refused.
    Unreachable,
    /// No answer within `monitor.timeout`.
    TimedOut,
    /// The server is starting, stopping or recovering (57P03, 57P01).
    NotReady,
    /// The server refused the monitor's login or question.
    Refused,
    /// The server has no connection left for the monitor (53300, 1040): it is there.
    Full,
    /// The answer made no sense.
    Nonsense,
}

impl ProbeFault {
    /// In words, for whoever asks why a node is not up.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "the connection broke",
            Self::TimedOut => "gives no answer in time",
            Self::NotReady => "is starting or stopping",
            Self::Refused => "refuses the monitor's question",
            Self::Full => "has no connection left for the monitor",
            Self::Nonsense => "answers what the monitor cannot understand",
        }
    }

    /// The server is there and will hardly say anything else a moment later.
    pub fn is_answer(self) -> bool {
        matches!(self, Self::Refused | Self::Full | Self::Nonsense)
    }
}

/// One node as the data plane sees it.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: NodeId,
    /// `host:port` as in the configuration: the metrics' label.
    pub address: Arc<str>,
    pub role: Role,
    pub state: State,
    pub incarnation: Option<Incarnation>,
    pub timeline: Option<u32>,
    /// Last known replayed (replica) or written (primary) position of this incarnation.
    pub position: Option<Position>,
    /// A replica's [`Facts::shown`] by the same probe.
    pub shown: Option<Position>,
    /// When the probe that brought `position` was sent and its number.
    pub measured: Option<(Instant, ProbeNumber)>,
    /// What it said of transaction ids while it was a replica, in this life.
    pub horizon: Option<Horizon>,
    /// Age of the oldest primary position not replayed; `None` when not known.
    pub lag: Option<Duration>,
    /// Bytes (PostgreSQL) or transactions (MySQL) behind.
    pub lag_distance: Option<u64>,
    /// Sending time of the newest primary sample that this replica has replayed: now minus it
    /// bounds its staleness from above (hard case 15).
    pub fresh_as_of: Option<Instant>,
    /// Configured weight × lag factor × zone factor × slow start; 0 serves no reads.
    pub weight: f64,
    /// It came and went too often, which is all that keeps it from reads: they use it where the
    /// choice is between it and nobody.
    pub benched: bool,
    /// Patroni's `noloadbalance`.
    pub no_load_balance: bool,
    /// Whether it may be taking writes, whoever has the role: it has not stopped, as far as anybody can
    /// tell, and does not call itself a replica.
    pub may_write: bool,
    /// What the last probe met, if it failed; else why it gets no reads, where it is benched or cannot tell
    /// its timeline.
    pub trouble: Option<Arc<str>>,
    pub load: Arc<Load>,
    /// Since when it is in this state.
    pub since: Instant,
}

/// Up to where a replica's history named transactions when it last said so as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// The timeline that it followed.
    pub timeline: u32,
    /// Ids below this are those of transactions on that timeline, and of no later ones.
    pub below: u64,
}

/// Statements running on a node through this proxy.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicUsize,
}

impl Load {
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// The number of the last probe sent; shared by the monitor (writer) and sessions (readers).
#[derive(Debug, Default)]
pub struct ProbeCounter(AtomicU64);

impl ProbeCounter {
    /// The number for a probe about to be sent.
    pub fn next(&self) -> ProbeNumber {
        ProbeNumber(self.0.fetch_add(1, Ordering::AcqRel) + 1)
    }
    /// The number of the last probe sent.
    pub fn current(&self) -> ProbeNumber {
        ProbeNumber(self.0.load(Ordering::Acquire))
    }
}
