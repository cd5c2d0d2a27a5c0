//! The topology at one moment, and what a floor means in it.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{
    Facts, GtidSet, Incarnation, Lsn, Node, NodeId, Position, ProbeNumber, Role, State, Timelines, Writers,
    gtid::{Origin, read_uuid},
    writers::Place,
};
use crate::route::Floor;

/// The topology at one moment. Immutable; published whole.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub version: u64,
    pub taken: Instant,
    pub nodes: Arc<[Node]>,
    /// The node that gets writes.
    pub primary: Option<NodeId>,
    /// Since when there is no primary, and the wall clock then, for the refusal's text.
    pub without_primary_since: Option<(Instant, SystemTime)>,
    /// Why there is none, for people.
    pub nobody: Option<Arc<str>>,
    /// Recent positions of the primary, oldest first: what turns "after that write" into a floor.
    pub samples: Arc<[Sample]>,
    /// What failovers and restarts did to positions known from before.
    pub history: Arc<History>,
}

/// A primary's position by one probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub number: ProbeNumber,
    pub sent: Instant,
    pub incarnation: Incarnation,
    pub written: Position,
}

/// What became of positions over failovers and crashes (hard case 5).
#[derive(Clone, Debug, Default)]
pub struct History {
    pub timelines: Timelines,
    /// The last time the primary's position fell on its timeline.
    pub fall: Option<Fall>,
    /// MySQL and MariaDB: what the primary had executed when it was elected, and who it is.
    pub elected: Option<ElectedSet>,
}

/// A primary that crashed and came back with less than it had acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fall {
    pub timeline: u32,
    /// The highest position seen before; up to here positions of before may be lost.
    pub from: Lsn,
    /// The first position seen after.
    pub to: Lsn,
}

/// What a MySQL or MariaDB primary had executed when it was elected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectedSet {
    pub executed: Arc<GtidSet>,
    /// By what it numbers its own transactions.
    pub origin: Origin,
    /// MariaDB: who had written what, by its binary log.
    pub writers: Option<Arc<Writers>>,
}

impl ElectedSet {
    pub(super) fn new(executed: Arc<GtidSet>, facts: &Facts) -> Self {
        Self {
            executed,
            origin: Origin {
                uuid: read_uuid(&facts.incarnation.system).ok(),
                group: facts.group.as_deref().and_then(|name| read_uuid(name).ok()),
                server_id: facts.server_id,
            },
            writers: facts.writers.clone(),
        }
    }

    /// What there is of a floor: all that it numbered itself, which may be newer than the last probe,
    /// and what it has of the others'. `None`: nothing is lost.
    fn left_of(&self, floor: &GtidSet) -> Option<GtidSet> {
        if self.executed.covers_foreign(floor, self.origin) && self.writers.is_none() {
            return None;
        }
        if let Some(writers) = &self.writers {
            let left = floor.with_domains(|reached| Some(self.reached(writers, reached)));
            return (left != *floor).then_some(left);
        }
        let (own, foreign) = floor.split_by_origin(self.origin);
        Some(foreign.intersection(&self.executed).union(&own))
    }

    /// MariaDB: how far it has what a floor asks for of one server.
    fn reached(&self, writers: &Writers, reached: (u32, u32, u64)) -> u64 {
        match writers.place(reached, self.origin.server_id) {
            Place::Within => reached.2,
            Place::Beyond { last } => last,
            Place::Unknown => reached.2.min(self.executed.reached(reached.0)),
        }
    }
}

/// What a floor means at the moment of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolved<'a> {
    /// Nothing to wait for.
    None,
    /// This position; keep it in place of an unsampled floor.
    At(Cow<'a, Position>),
    /// Not sampled yet: only the primary is known to meet it.
    Pending,
    /// The floor lay in history that a failover or crash threw away; this is what is left of it.
    /// Log it, count it, and keep `At(left)` in its place.
    Lost { left: Position },
}

impl Snapshot {
    /// A cluster of which nothing is known yet.
    pub fn empty(now: Instant) -> Self {
        Self {
            version: 0,
            taken: now,
            nodes: Arc::new([]),
            primary: None,
            without_primary_since: None,
            nobody: None,
            samples: Arc::new([]),
            history: Arc::default(),
        }
    }

    /// # Panics
    /// If `id` is of another snapshot with more nodes.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// As [`Self::node`], for ids that were kept while the configuration may have changed.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0)
    }

    pub fn primary(&self) -> Option<&Node> {
        self.primary.and_then(|id| self.get(id))
    }

    pub fn find(&self, address: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| &*node.address == address)
    }

    /// The node that a person means: by its address, or by its host alone where no other node has the same
    /// one. As host names are, in upper or lower case (RFC 4343).
    pub fn meant(&self, by: &str) -> Option<&Node> {
        let same = |name: &str| name.eq_ignore_ascii_case(by);
        let host = |node: &&Node| node.address.rsplit_once(':').is_some_and(|(host, _)| same(host));
        let mut on_host = self.nodes.iter().filter(host);
        let alone = on_host.next().filter(|_| on_host.next().is_none());
        self.nodes.iter().find(|node| same(&node.address)).or(alone)
    }

    /// Whether a node gets nothing in a role any more, not even on connections that are open: it
    /// is fenced, banned by a person, or another node has the role (hard case 1).
    pub fn forbids(&self, address: &str, role: Role) -> bool {
        let barred = |node: &Node| matches!(node.state, State::Fenced(_) | State::Banned);
        let demoted = || self.primary().is_some_and(|primary| *primary.address != *address);
        self.find(address).is_some_and(barred) || (role == Role::Primary && demoted())
    }

    /// Whether something new may be sent to a node in a role.
    pub fn allows(&self, address: &str, role: Role) -> bool {
        let vacant = role == Role::Primary && self.primary.is_none();
        !vacant && !self.forbids(address, role)
    }

    /// The newest position known of any primary.
    pub fn newest(&self) -> Option<&Position> {
        self.samples.last().map(|sample| &sample.written)
    }

    /// Whether a server at `position` has all that `floor` asks for; `None` where that cannot be
    /// told.
    pub fn covers(&self, position: &Position, floor: &Position) -> Option<bool> {
        self.history.timelines.covers(position, floor)
    }

    /// What `floor` means now. A binary search at most, and no allocation unless the floor was
    /// lost.
    pub fn resolve<'a>(&'a self, floor: &'a Floor) -> Resolved<'a> {
        match floor {
            Floor::None => Resolved::None,
            Floor::At(position) => self.survives(position),
            Floor::Unsampled { after, .. } => {
                // The first later sample of the same incarnation bounds the write from above. If
                // that incarnation is gone, the first later sample is its successor's, and all
                // that survived of the write is below it. A floor older than the ring gets the
                // oldest sample there is: too high, never too low.
                let next = self.samples.partition_point(|sample| sample.number <= *after);
                match self.samples.get(next) {
                    Some(sample) => self.survives(&sample.written),
                    None => Resolved::Pending,
                }
            }
        }
    }

    /// A position as it stands after all failovers since.
    fn survives<'a>(&'a self, position: &'a Position) -> Resolved<'a> {
        match (position, self.newest()) {
            (
                Position::Postgres { system, timeline, lsn },
                Some(
                    newest @ Position::Postgres { system: now_system, timeline: now_timeline, lsn: now_lsn },
                ),
            ) if system == now_system => {
                if timeline == now_timeline {
                    return match self.history.fall {
                        Some(fall)
                            if fall.timeline == *timeline
                                && lsn > now_lsn
                                && *lsn <= fall.from
                                && *lsn > fall.to =>
                        {
                            let left =
                                Position::Postgres { system: *system, timeline: *timeline, lsn: fall.to };
                            Resolved::Lost { left }
                        }
                        _ => Resolved::At(Cow::Borrowed(position)),
                    };
                }
                self.after_failover(position, *timeline, *lsn, newest)
            }
            (Position::Mysql(floor), _) => self.after_election(position, floor),
            _ => Resolved::At(Cow::Borrowed(position)),
        }
    }

    /// A position on another timeline than the primary's.
    fn after_failover<'a>(
        &'a self,
        position: &'a Position,
        timeline: u32,
        lsn: Lsn,
        newest: &'a Position,
    ) -> Resolved<'a> {
        let Position::Postgres { system, timeline: current, .. } = newest else {
            return Resolved::At(Cow::Borrowed(position));
        };
        if timeline == 0 || timeline > *current {
            // Of a promotion that this proxy has not seen: wait for a probe.
            return Resolved::At(Cow::Borrowed(position));
        }
        let Some(fork) = self.history.timelines.fork(timeline, *current) else {
            // Whatever survived of it, the primary has it by now.
            return Resolved::At(Cow::Borrowed(newest));
        };
        if lsn <= fork.at_least {
            return Resolved::At(Cow::Borrowed(position));
        }
        // What survived of it is below the first position written after the fork.
        let left = Position::Postgres { system: *system, timeline: *current, lsn: fork.at_most };
        if lsn > fork.at_most { Resolved::Lost { left } } else { Resolved::At(Cow::Owned(left)) }
    }

    /// A GTID floor: what others numbered and the primary did not have when it was elected is
    /// lost, unless it has it by now.
    fn after_election<'a>(&'a self, position: &'a Position, floor: &Arc<GtidSet>) -> Resolved<'a> {
        let Some(elected) = &self.history.elected else { return Resolved::At(Cow::Borrowed(position)) };
        if elected.writers.is_none() && self.has_by_now(elected, floor) {
            return Resolved::At(Cow::Borrowed(position));
        }
        let Some(left) = elected.left_of(floor) else { return Resolved::At(Cow::Borrowed(position)) };
        Resolved::Lost { left: Position::Mysql(Arc::new(left)) }
    }

    /// Whether the elected server has all of it by its own last sample; the last there is may be its
    /// predecessor's.
    fn has_by_now(&self, elected: &ElectedSet, floor: &GtidSet) -> bool {
        self.samples.last().is_some_and(|sample| {
            read_uuid(&sample.incarnation.system).ok() == elected.origin.uuid
                && matches!(&sample.written, Position::Mysql(have) if have.covers(floor))
        })
    }
}
