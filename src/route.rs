//! Which node runs a statement. Pure: the caller brings the snapshot, the time and the dice.

use std::time::{Duration, Instant};

use crate::{
    sql::{Access, hints::Target},
    topology::{Incarnation, NodeId, Position, ProbeNumber, Snapshot},
};

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Consistency {
    Eventual,
    /// Never behind the session's own writes.
    #[default]
    Session,
    /// Nor behind what the session has already seen.
    Monotonic,
    /// As `Session`, for all sessions of a user and database together, per table.
    User,
    /// Never behind any acknowledged write to the tables it reads.
    Global,
}

/// Whether reads may use the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PrimaryReads {
    /// Only when no replica may serve.
    #[default]
    Fallback,
    Never,
    /// The primary takes its share like a replica without lag.
    Always,
}

/// What a session must not read behind.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Floor {
    #[default]
    None,
    At(Position),
    /// A write on that server was answered when `after` was the last probe sent: the first
    /// sample of a later probe to the same incarnation bounds it.
    Unsampled {
        incarnation: Incarnation,
        after: ProbeNumber,
    },
}

/// What routing needs to know of one statement and its session.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub access: Access,
    pub target: Option<&'a Target>,
    pub consistency: Consistency,
    /// The floor this read has to meet; `Floor::None` under `eventual`.
    pub floor: &'a Floor,
    /// Staleness bound asked for by a hint or a setting, on top of the floor.
    pub max_lag: Option<Duration>,
    /// Nodes that already failed this statement.
    pub exclude: &'a [NodeId],
}

/// Cluster-wide routing rules, from `[cluster.routing]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub consistency: Consistency,
    pub max_lag: Duration,
    pub primary_reads: PrimaryReads,
    /// `3 × monitor.interval`: a figure older than that is not known.
    pub fresh_for: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub node: NodeId,
    pub why: Why,
}

/// Why this node: `SHOW pointsman.route` and the `reason` of reads that missed a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// A write, to the primary.
    Write,
    /// Drawn among the replicas that may serve.
    Replica,
    /// No replica may serve at all.
    Fallback,
    /// No replica has reached the session's floor.
    Floor,
    /// No replica is fresh enough for `max_lag`.
    MaxLag,
    /// A hint named it.
    Hint,
    /// `primary_reads = "always"`.
    PrimaryReads,
}

/// Nobody may run it now; what to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nowhere {
    /// A write, or a read that only the primary could serve, and there is no primary.
    NoPrimary,
    /// `primary_reads = "never"` and no replica may serve.
    NoReplica,
    /// The hint names no node of this cluster, or one that may not be used.
    UnknownNode,
}

/// Chooses a node; `dice` gives uniform numbers in 0..1.
pub fn choose(
    _question: &Question<'_>,
    _snapshot: &Snapshot,
    _policy: &Policy,
    _now: Instant,
    _dice: &mut dyn FnMut() -> f64,
) -> Result<Choice, Nowhere> {
    Err(Nowhere::NoPrimary)
}
