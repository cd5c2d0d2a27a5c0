//! Which node runs a statement. Pure: the caller brings the snapshot, the time and the dice.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::{
    sql::{Access, hints::Target},
    topology::{Incarnation, Node, NodeId, Position, ProbeNumber, Resolved, Role, Snapshot, State},
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
#[derive(Clone, Copy, Debug, PartialEq)]
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

impl Consistency {
    /// The word in the configuration, in hints and settings.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Session => "session",
            Self::Monotonic => "monotonic",
            Self::User => "user",
            Self::Global => "global",
        }
    }
}

impl Why {
    /// The word in `SHOW pointsman.route`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Replica => "replica",
            Self::Fallback => "fallback",
            Self::Floor => "floor",
            Self::MaxLag => "max_lag",
            Self::Hint => "hint",
            Self::PrimaryReads => "primary_reads",
        }
    }
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

/// Statements in flight up to which a node is never passed over for its load.
const IDLE: usize = 4;
/// How many times the other's statements per weight are clearly more.
const CLEARLY_MORE: f64 = 2.0;
/// Clusters up to this size are routed without allocating.
const INLINE_NODES: usize = 16;

/// Chooses a node; `dice` gives uniform numbers in 0..1.
///
/// # Errors
/// Says what to wait for where nobody may run the statement now.
pub fn choose(
    question: &Question<'_>,
    snapshot: &Snapshot,
    policy: &Policy,
    now: Instant,
    dice: &mut dyn FnMut() -> f64,
) -> Result<Choice, Nowhere> {
    if question.access == Access::Write {
        return primary_for_writes(question, snapshot).map(|node| Choice { node, why: Why::Write });
    }
    let known_since = now.checked_sub(policy.fresh_for);
    let scene =
        Scene { question, snapshot, policy, now, known_since, floor: snapshot.resolve(question.floor) };
    match question.target {
        Some(Target::Primary) => {
            let node = scene.primary().ok_or(Nowhere::NoPrimary)?;
            Ok(Choice { node, why: Why::Hint })
        }
        Some(Target::Node(address)) => scene.named(address),
        Some(Target::Replica) | None => scene.read(dice),
    }
}

/// The primary, if new statements may begin there.
fn primary_for_writes(question: &Question<'_>, snapshot: &Snapshot) -> Result<NodeId, Nowhere> {
    match snapshot.primary() {
        Some(node) if usable(node) && !question.exclude.contains(&node.id) => Ok(node.id),
        _ => Err(Nowhere::NoPrimary),
    }
}

/// Whether new statements may begin on a node at all.
fn usable(node: &Node) -> bool {
    matches!(node.state, State::Up | State::Suspect)
}

/// What keeps a replica from serving one read; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    /// Down, fenced, banned, excluded, of no weight, of unknown position …
    Unfit,
    /// Too far behind for `max_lag`.
    Late,
    /// Not past the floor.
    Behind,
}

/// One read and everything its choice depends on.
struct Scene<'a> {
    question: &'a Question<'a>,
    snapshot: &'a Snapshot,
    policy: &'a Policy,
    now: Instant,
    /// When the oldest figures were asked for that may be gone by; `None`: nobody could be that old.
    known_since: Option<Instant>,
    floor: Resolved<'a>,
}

type Draws = SmallVec<[(NodeId, f64); INLINE_NODES]>;

impl Scene<'_> {
    fn read(&self, dice: &mut dyn FnMut() -> f64) -> Result<Choice, Nowhere> {
        let mut draws = Draws::new();
        let mut obstacle = Obstacle::Unfit;
        for node in self.snapshot.nodes.iter().filter(|node| node.role == Role::Replica) {
            match self.obstacle(node) {
                _ if node.benched => {}
                None => draws.push((node.id, node.weight)),
                Some(met) => obstacle = obstacle.max(met),
            }
        }
        let hinted = self.question.target.is_some();
        if self.policy.primary_reads == PrimaryReads::Always
            && !hinted
            && let Some(primary) = self.primary()
            && self.snapshot.node(primary).weight > 0.0
        {
            draws.push((primary, self.snapshot.node(primary).weight));
        }
        if let Some(node) = self.draw(&draws, dice) {
            let why = match self.snapshot.primary {
                _ if hinted => Why::Hint,
                Some(primary) if primary == node => Why::PrimaryReads,
                _ => Why::Replica,
            };
            return Ok(Choice { node, why });
        }
        self.without_replica(obstacle, dice)
    }

    /// No replica may serve: the primary, else a replica of unknown figure for those who take
    /// anything, else nobody.
    fn without_replica(&self, obstacle: Obstacle, dice: &mut dyn FnMut() -> f64) -> Result<Choice, Nowhere> {
        let why = match obstacle {
            Obstacle::Behind => Why::Floor,
            Obstacle::Late => Why::MaxLag,
            Obstacle::Unfit => Why::Fallback,
        };
        let primary = self.primary().filter(|_| self.policy.primary_reads != PrimaryReads::Never);
        // One that came and went too often is better than nobody, and than a primary that may be going.
        if primary.is_none_or(|node| self.snapshot.node(node).state == State::Suspect)
            && let Some(choice) = self.benched(dice)
        {
            return Ok(choice);
        }
        if let Some(node) = primary {
            return Ok(Choice { node, why });
        }
        let mut draws = Draws::new();
        if self.takes_anything() {
            let unknown = self.snapshot.nodes.iter().filter(|node| self.unknown_but_usable(node));
            draws.extend(unknown.map(|node| (node.id, 1.0)));
        }
        match self.draw(&draws, dice) {
            Some(node) => Ok(Choice { node, why: Why::Replica }),
            None if self.policy.primary_reads == PrimaryReads::Never => Err(Nowhere::NoReplica),
            None => Err(Nowhere::NoPrimary),
        }
    }

    /// One of the replicas that nothing keeps from the read but having come and gone.
    fn benched(&self, dice: &mut dyn FnMut() -> f64) -> Option<Choice> {
        let may = |node: &&Node| node.role == Role::Replica && node.benched && self.obstacle(node).is_none();
        let draws: Draws = self.snapshot.nodes.iter().filter(may).map(|node| (node.id, 1.0)).collect();
        let why = if self.question.target.is_some() { Why::Hint } else { Why::Replica };
        self.draw(&draws, dice).map(|node| Choice { node, why })
    }

    /// The node that a hint names. The floor and the staleness bound outrank the hint.
    fn named(&self, address: &str) -> Result<Choice, Nowhere> {
        let node = self.snapshot.meant(address).ok_or(Nowhere::UnknownNode)?;
        if !usable(node) || node.role == Role::Unknown || self.question.exclude.contains(&node.id) {
            return Err(Nowhere::UnknownNode);
        }
        let meets = Some(node.id) == self.primary()
            || (node.role == Role::Replica && self.meets_floor(node) && self.meets_bound(node));
        if meets {
            return Ok(Choice { node: node.id, why: Why::Hint });
        }
        if self.policy.primary_reads == PrimaryReads::Never {
            return Err(Nowhere::NoReplica);
        }
        let why = if self.meets_floor(node) { Why::MaxLag } else { Why::Floor };
        self.primary().map(|node| Choice { node, why }).ok_or(Nowhere::NoPrimary)
    }

    /// The primary, if it may run this read. It meets every floor but one of a timeline newer
    /// than its own: somebody knows of a promotion that this proxy has not seen yet.
    fn primary(&self) -> Option<NodeId> {
        let node = self.snapshot.primary().filter(|node| usable(node))?;
        if self.question.exclude.contains(&node.id) {
            return None;
        }
        let newer = match &self.floor {
            Resolved::At(floor) => {
                floor.timeline().zip(node.timeline).is_some_and(|(floor, its)| floor > its)
            }
            _ => false,
        };
        (!newer).then_some(node.id)
    }

    fn obstacle(&self, node: &Node) -> Option<Obstacle> {
        if !usable(node)
            || node.no_load_balance
            || self.question.exclude.contains(&node.id)
            || !self.known(node)
        {
            return Some(Obstacle::Unfit);
        }
        if self.over_max_lag(node) || !self.meets_bound(node) {
            return Some(Obstacle::Late);
        }
        if node.weight <= 0.0 && !node.benched {
            return Some(Obstacle::Unfit);
        }
        if self.meets_floor(node) { None } else { Some(Obstacle::Behind) }
    }

    /// Whether the node's figures are there and young enough to go by.
    fn known(&self, node: &Node) -> bool {
        node.lag.is_some() && node.position.is_some() && self.is_fresh(node)
    }

    fn is_fresh(&self, node: &Node) -> bool {
        node.measured.is_some_and(|(sent, _)| self.known_since.is_none_or(|since| sent >= since))
    }

    fn over_max_lag(&self, node: &Node) -> bool {
        !self.policy.max_lag.is_zero() && node.lag.is_some_and(|lag| lag >= self.policy.max_lag)
    }

    fn meets_floor(&self, node: &Node) -> bool {
        let floor = match &self.floor {
            Resolved::None => return true,
            Resolved::Pending => return false,
            Resolved::At(floor) => floor.as_ref(),
            Resolved::Lost { left } => left,
        };
        let covers = |position| self.snapshot.covers(position, floor) == Some(true);
        self.is_fresh(node) && node.position.as_ref().is_some_and(covers)
    }

    /// Whether the node's staleness, bounded from above, is within what the statement asks for.
    fn meets_bound(&self, node: &Node) -> bool {
        self.question.max_lag.is_none_or(|bound| {
            node.fresh_as_of.is_some_and(|as_of| self.now.saturating_duration_since(as_of) <= bound)
        })
    }

    /// Whether the read may go to a replica of which nothing is known.
    fn takes_anything(&self) -> bool {
        self.question.consistency == Consistency::Eventual
            && self.question.max_lag.is_none()
            && self.floor == Resolved::None
    }

    /// A replica that answers, but whose lag is not known; not one that is known to be late, nor
    /// one that may be on a history of its own.
    fn unknown_but_usable(&self, node: &Node) -> bool {
        let comparable = match (&node.position, self.snapshot.newest()) {
            (Some(position), Some(newest)) => self.snapshot.covers(position, newest).is_some(),
            _ => true,
        };
        node.role == Role::Replica
            && usable(node)
            && !node.no_load_balance
            && !self.question.exclude.contains(&node.id)
            && !self.known(node)
            && comparable
    }

    /// Draws one by weight and another with replacement; takes the second only if the first has
    /// clearly more statements in flight per weight. At even load the shares are the weights'.
    fn draw(&self, draws: &[(NodeId, f64)], dice: &mut dyn FnMut() -> f64) -> Option<NodeId> {
        if let [] | [_] = draws {
            return draws.first().map(|&(node, _)| node);
        }
        let total: f64 = draws.iter().map(|&(_, weight)| weight).sum();
        let (first, first_weight) = pick(draws, total, dice())?;
        let busy = self.snapshot.node(first).load.in_flight();
        if busy <= IDLE {
            return Some(first);
        }
        let (second, second_weight) = pick(draws, total, dice())?;
        let other = self.snapshot.node(second).load.in_flight() + 1;
        let clearly_more = busy as f64 * second_weight > CLEARLY_MORE * other as f64 * first_weight;
        Some(if clearly_more { second } else { first })
    }
}

fn pick(draws: &[(NodeId, f64)], total: f64, chance: f64) -> Option<(NodeId, f64)> {
    let mut left = chance * total;
    for &(node, weight) in draws {
        left -= weight;
        if left < 0.0 {
            return Some((node, weight));
        }
    }
    // Rounding may leave a crumb.
    draws.last().copied()
}

#[cfg(test)]
mod tests;
