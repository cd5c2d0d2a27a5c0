//! The monitor's own picture of one cluster: probes and reports go in, snapshots and events come
//! out. Pure; the monitor brings the times and does the talking.

mod events;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod gtid_simulation;
mod memory;
mod node;
mod past;
mod publish;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

pub use self::{
    events::{Counters, Event},
    memory::{MAX_MEMORY, Remembered},
};
use self::{
    node::{Orders, Tracked},
    past::replayable,
};
use super::{
    Claim, Engine, Facts, History, Incarnation, NodeId, Probe, ProbeFault, Sample, Writers,
    election::{self, Ballot, Candidate, Incumbent, Nobody},
    health::{self, Signal},
    lag::LagClock,
};

/// Positions of the primary kept for floors: 13 s at 25 ms, 100 s at 200 ms; an idle primary's
/// count as one. An older floor gets the oldest of them.
pub const SAMPLES: usize = 512;
/// Traffic's reports may bring a probe forward, but no closer to the one before than this.
const AT_ONCE_SPACING: Duration = Duration::from_millis(5);

/// Nodes that have gone whose orders are kept; those of the first that went make room.
const MAX_GONE: usize = 64;

/// Bounds the pauses between probes that a server refuses; `monitor.interval` is the other bound.
const MAX_DOUBLINGS: u32 = 16;

/// One node as configured or discovered.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// `host:port`.
    pub address: Arc<str>,
    /// Share of the reads, relative to the others'.
    pub weight: f64,
    pub zone: Option<Arc<str>>,
    /// Patroni's `noloadbalance`: serves no reads unless a hint names it.
    pub no_load_balance: bool,
}

/// What the configuration says about measuring and weighing nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub engine: Engine,
    /// `monitor.interval`.
    pub interval: Duration,
    /// `monitor.fast_interval`.
    pub fast_interval: Duration,
    /// `monitor.failures`.
    pub failures: u32,
    /// `routing.max_lag`; zero for no limit.
    pub max_lag: Duration,
    /// `routing.lag_half_weight`; zero where lag is not to count.
    pub lag_half_weight: Duration,
    /// `routing.slow_start`; zero for none.
    pub slow_start: Duration,
    /// `routing.zone`: where this proxy runs.
    pub zone: Option<Arc<str>>,
}

/// What traffic found out about a node between probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A server connection was reset, or closed with `57P01`.
    Broken,
    /// A new server connection could not be made. Not for a login that was refused, nor for
    /// `53300`/1040: the server is there.
    Refused,
    /// A write was refused as read-only though the client had not asked for that.
    ReadOnly,
    /// A new connection turned out to belong to this incarnation.
    Opened(Incarnation),
}

/// See the module.
#[derive(Debug)]
pub struct Board {
    settings: Settings,
    nodes: Vec<Tracked>,
    /// What people said about nodes that have gone: Patroni's list does not name one that is stopped for
    /// long, which is what people drain it for. Bounded by [`MAX_GONE`].
    gone: VecDeque<(Arc<str>, Orders)>,
    /// PostgreSQL's system identifier of this cluster, from its first election on.
    system: Option<Arc<str>>,
    /// Patroni's word.
    leader: Option<Option<Arc<str>>>,
    incumbent: Option<Incumbent>,
    primary: Option<NodeId>,
    nobody: Option<Nobody>,
    without_since: Option<Instant>,
    clock: LagClock,
    samples: VecDeque<Sample>,
    /// `samples` as published last, until they change.
    samples_shared: Option<Arc<[Sample]>>,
    history: Arc<History>,
    /// MariaDB: who wrote what the primary had by its last answer, and its `server_id`.
    writers: Option<(Arc<Writers>, Option<u64>)>,
    events: VecDeque<Event>,
    counters: Counters,
    version: u64,
    /// Both clocks at the start, to tell wall time without asking for it.
    started: (Instant, SystemTime),
}

impl Board {
    /// A cluster of which nothing is known yet.
    pub fn new(nodes: Vec<NodeConfig>, settings: Settings, now: Instant, wall: SystemTime) -> Self {
        let nodes = nodes.into_iter().map(|config| Tracked::new(config, now, false)).collect();
        Self {
            settings,
            nodes,
            gone: VecDeque::new(),
            system: None,
            leader: None,
            incumbent: None,
            primary: None,
            nobody: None,
            without_since: Some(now),
            clock: LagClock::default(),
            samples: VecDeque::with_capacity(SAMPLES),
            samples_shared: None,
            history: Arc::default(),
            writers: None,
            events: VecDeque::new(),
            counters: Counters::default(),
            version: 0,
            started: (now, wall),
        }
    }

    /// Takes in one probe's outcome. One that was overtaken by a later one, or is of no node, is
    /// ignored.
    pub fn observe(&mut self, id: NodeId, probe: Probe) {
        let Some(node) = self.nodes.get_mut(id.0) else { return };
        if probe.number <= node.last_probe {
            return;
        }
        let now = probe.answered;
        let restarted = node.take_in(&probe);
        let signal = match &probe.outcome {
            Ok(_) => Signal::Answered { sent: probe.sent },
            Err(fault) => Signal::Missed(*fault),
        };
        node.health = health::step(node.health, signal, now, self.settings.health_rules());
        if restarted {
            // Its caches are cold, however short it was away.
            node.health = node.health.ramped(now);
            let address = Arc::clone(&node.config.address);
            self.push_event(Event::Restarted { address });
        }
        if let Ok(facts) = &probe.outcome
            && self.is_kin(facts)
        {
            if facts.claim == Claim::Replica && self.incumbent.is_some() {
                self.nodes[id.0].followed = true;
            }
            self.hear_incumbent(id, facts);
        }
        self.hold_election(now);
        if self.primary == Some(id) && probe.outcome.is_ok() {
            self.record(id);
        }
        self.note_changes(now);
    }

    /// Takes in what traffic found out at `now`.
    pub fn report(&mut self, id: NodeId, traffic: Traffic, now: Instant) {
        let Some(node) = self.nodes.get_mut(id.0) else { return };
        let signal = match traffic {
            Traffic::Broken | Traffic::ReadOnly => Signal::Broke,
            Traffic::Refused => Signal::Refused,
            Traffic::Opened(incarnation) => match &node.facts {
                Some(facts) if facts.incarnation == incarnation => return,
                _ => Signal::Broke,
            },
        };
        // It may be another incarnation by now, further back than the last one (hard case 4).
        node.position = None;
        node.health = health::step(node.health, signal, now, self.settings.health_rules());
        self.hold_election(now);
        self.note_changes(now);
    }

    /// Patroni's word: `Some(Some(address))` for its leader, `Some(None)` where it says that there
    /// is none, `None` where it does not answer or is not used.
    pub fn set_leader(&mut self, leader: Option<Option<Arc<str>>>, now: Instant) {
        self.leader = leader;
        self.hold_election(now);
        self.note_changes(now);
    }

    /// Nothing new begins on the node; open transactions may end. `false` if there is no such node.
    pub fn drain(&mut self, address: &str, now: Instant) -> bool {
        self.order(address, now, |orders| orders.drained = true)
    }

    pub fn undrain(&mut self, address: &str, now: Instant) -> bool {
        self.order(address, now, |orders| orders.drained = false)
    }

    /// The node gets nothing. `false` if there is no such node.
    pub fn ban(&mut self, address: &str, now: Instant) -> bool {
        self.order(address, now, |orders| orders.banned = true)
    }

    pub fn unban(&mut self, address: &str, now: Instant) -> bool {
        self.order(address, now, |orders| orders.banned = false)
    }

    fn order(&mut self, address: &str, now: Instant, order: impl FnOnce(&mut Orders)) -> bool {
        let Some(node) = self.nodes.iter_mut().find(|node| &*node.config.address == address) else {
            return false;
        };
        let before = node.orders;
        order(&mut node.orders);
        if node.orders != before && node.orders.is_serving() {
            node.health = node.health.ramped(now);
        }
        self.note_changes(now);
        true
    }

    /// A node that is new, or back: then what people said about it still stands.
    fn come(&mut self, config: NodeConfig, now: Instant, late: bool) -> Tracked {
        let known = self.gone.iter().position(|(address, _)| *address == config.address);
        let orders = known.and_then(|at| self.gone.remove(at)).map(|(_, orders)| orders);
        let mut node = Tracked::new(config, now, late);
        node.orders = orders.unwrap_or_default();
        node
    }

    /// Applies a new configuration or discovery's new list. Nodes are told by address; what is
    /// known of those that stay is kept, though their ids may change.
    pub fn reconfigure(&mut self, nodes: Vec<NodeConfig>, settings: Settings, now: Instant) {
        let primary = self.primary.map(|id| Arc::clone(&self.nodes[id.0].config.address));
        // Discovery's first list is the start, not an addition.
        let late = !self.nodes.is_empty();
        let mut old: Vec<Option<Tracked>> = self.nodes.drain(..).map(Some).collect();
        for config in nodes {
            let kept = old
                .iter_mut()
                .find(|slot| slot.as_ref().is_some_and(|node| node.config.address == config.address))
                .and_then(Option::take);
            let node = match kept {
                Some(mut node) => {
                    node.config = config;
                    node
                }
                None => self.come(config, now, late),
            };
            self.nodes.push(node);
        }
        for node in old.into_iter().flatten().filter(|node| !node.orders.is_serving()) {
            if self.gone.len() >= MAX_GONE {
                self.gone.pop_front();
            }
            self.gone.push_back((node.config.address, node.orders));
        }
        self.settings = settings;
        self.primary = primary.and_then(|address| self.id_of(&address));
        if self.primary.is_none() && self.without_since.is_none() {
            self.lose_primary(now, Nobody::NoClaimer);
        }
        self.hold_election(now);
        self.note_changes(now);
    }

    /// The node of that address, by the present numbering.
    pub fn id_of(&self, address: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| &*node.config.address == address).map(NodeId)
    }

    /// The last election, to be kept over restarts.
    pub fn remembered(&self) -> Option<Remembered> {
        Some(Remembered { system: self.system.clone(), incumbent: self.incumbent.clone()? })
    }

    /// Brings back the last election before a restart. Only before the first probe.
    pub fn recall(&mut self, remembered: Remembered) {
        self.system = remembered.system;
        self.incumbent = Some(remembered.incumbent);
    }

    /// When the next probe of a node is due: `interval` after the last one was sent, `fast_interval`
    /// while there is no primary, the node is suspect or `urgent` (somebody waits for a position),
    /// at once after traffic had trouble with it. One that refuses the monitor is asked less and
    /// less often, down to `interval`: it has enough to do. A node that was never probed, and one
    /// that does not exist, is due now.
    pub fn probe_due(&self, id: NodeId, now: Instant, urgent: bool) -> Instant {
        let Some(node) = self.nodes.get(id.0) else { return now };
        let Some(asked) = node.asked else { return now };
        let troubled = node.health.trouble.is_some_and(|trouble| asked <= trouble);
        if troubled && node.health.fault.is_none() {
            return (asked + AT_ONCE_SPACING.min(self.settings.fast_interval)).max(now);
        }
        let suspect = node.health.status == health::Status::Suspect;
        let fast = urgent || suspect || self.primary.is_none();
        let pause = if fast { self.fast_pause(&node.health) } else { self.settings.interval };
        (asked + pause).max(now)
    }

    fn fast_pause(&self, health: &health::Health) -> Duration {
        let refused = health.fault.is_some_and(ProbeFault::is_answer);
        let doublings = if refused { health.unanswered.min(MAX_DOUBLINGS) } else { 0 };
        self.settings.fast_interval.saturating_mul(1 << doublings).min(self.settings.interval)
    }

    /// Why there is no primary.
    pub fn nobody(&self) -> Option<&Nobody> {
        self.nobody.as_ref()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether an answer is of this cluster's system, not of another that has taken a node's address.
    fn is_kin(&self, facts: &Facts) -> bool {
        self.settings.engine == Engine::Mysql
            || self.system.as_ref().is_none_or(|system| *system == facts.incarnation.system)
    }

    /// What the incumbent says counts even while its role is contested: a rival must have had it.
    fn hear_incumbent(&mut self, id: NodeId, facts: &Facts) {
        let address = &self.nodes[id.0].config.address;
        if let Some(incumbent) = self.incumbent.as_mut().filter(|incumbent| incumbent.address == *address)
            && facts.claim == Claim::Primary
            && facts.timeline == incumbent.timeline
            && incumbent.server.as_ref().is_none_or(|server| *server == facts.incarnation.system)
            && let Some(written) = &facts.written
        {
            incumbent.written = Some(replayable(written));
        }
    }

    fn hold_election(&mut self, now: Instant) {
        let verdict = {
            let candidates: Vec<Candidate<'_>> =
                self.nodes.iter().enumerate().map(|(at, node)| node.candidate(NodeId(at))).collect();
            let ballot = Ballot {
                engine: self.settings.engine,
                system: self.system.as_deref(),
                incumbent: self.incumbent.as_ref(),
                leader: self.leader.as_ref().map(Option::as_deref),
                timelines: &self.history.timelines,
                without_since: self.without_since,
            };
            election::elect(&candidates, ballot)
        };
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let fence = verdict.fences.iter().find(|(id, _)| id.0 == at).map(|(_, fence)| fence);
            node.set_fence(fence);
        }
        match verdict.primary {
            Ok(id) if self.primary == Some(id) && !self.is_renewed(id) => {}
            Ok(id) => self.install(id, now),
            Err(nobody) => self.lose_primary(now, nobody),
        }
        self.fence_diverged();
    }

    /// Whether the node that has the role has begun another history: a new timeline is a promotion, and
    /// a MySQL or MariaDB server may have been set up anew.
    fn is_renewed(&self, id: NodeId) -> bool {
        let (Some(incumbent), Some(facts)) = (&self.incumbent, &self.nodes[id.0].facts) else { return false };
        let other = |server: &Arc<str>| *server != facts.incarnation.system;
        incumbent.timeline != facts.timeline || incumbent.server.as_ref().is_some_and(other)
    }

    fn lose_primary(&mut self, now: Instant, why: Nobody) {
        if self.nobody.as_ref() == Some(&why) {
            return;
        }
        let lost = self
            .primary
            .take()
            .and_then(|id| self.nodes.get(id.0))
            .map(|node| Arc::clone(&node.config.address));
        if self.without_since.is_none() {
            self.without_since = Some(now);
        }
        self.nobody = Some(why.clone());
        self.push_event(Event::NoPrimary { lost, why });
    }

    /// Gives the role to a node that did not have it.
    fn install(&mut self, id: NodeId, now: Instant) {
        let Some(facts) = self.nodes[id.0].facts.clone() else { return };
        let address = Arc::clone(&self.nodes[id.0].config.address);
        self.learn_history(id, &facts);
        let previous = self.incumbent.take();
        let written = facts.written.as_ref().map(replayable);
        let server = (self.settings.engine == Engine::Mysql).then(|| Arc::clone(&facts.incarnation.system));
        self.incumbent =
            Some(Incumbent { address: Arc::clone(&address), timeline: facts.timeline, written, server });
        if self.settings.engine == Engine::Postgres {
            self.system.get_or_insert_with(|| Arc::clone(&facts.incarnation.system));
        }
        self.primary = Some(id);
        self.nobody = None;
        let without = self.without_since.take().map(|since| now.saturating_duration_since(since));
        let failover = previous.as_ref().is_some_and(|previous| previous.address != address);
        let server = self.incumbent.as_ref().and_then(|incumbent| incumbent.server.as_ref());
        let other_server = previous.as_ref().is_none_or(|previous| previous.server.as_ref() != server);
        if failover || other_server {
            for node in &mut self.nodes {
                node.followed = node.is_replica() && node.health.usable();
                node.deposed |=
                    previous.as_ref().is_some_and(|previous| previous.address == node.config.address);
            }
            self.nodes[id.0].deposed = false;
        }
        self.counters.elected(failover, without, now);
        self.push_event(Event::Elected { address, timeline: facts.timeline, without, failover });
        // The answer that the election went by may have come a while before it.
        self.record(id);
    }
}

impl Settings {
    /// How long a figure counts as known: three probes' time.
    pub fn fresh_for(&self) -> Duration {
        self.interval.saturating_mul(3)
    }

    fn health_rules(&self) -> health::Rules {
        health::Rules { failures: self.failures }
    }
}
