//! What the board keeps of one node.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{NodeConfig, Settings};
use crate::topology::{
    Claim, Facts, Horizon, Load, NodeId, Position, Probe, ProbeFault, ProbeNumber, Role, State,
    election::{Candidate, Fence},
    health::{Health, Status},
};

/// What people are told of a replica that cannot tell on whose history it is, and so serves no reads.
const NO_TIMELINE: &str = "its timeline is unknown, so it serves no reads: it receives nothing from a primary, or \
                           monitor.user is no member of pg_monitor";

/// Weight of a node in another zone than the proxy's, of what it would have at home.
const OTHER_ZONE: f64 = 0.1;
/// What a node begins its slow start with, of its whole weight.
const FIRST_SHARE: f64 = 0.05;

/// What people said about a node. Neither takes the other back: who undrains it need not know why
/// it was banned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) drained: bool,
    pub(super) banned: bool,
}

impl Orders {
    pub(super) fn is_serving(self) -> bool {
        self == Self::default()
    }
}

/// A probe that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) number: ProbeNumber,
    pub(super) sent: Instant,
    pub(super) came: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) config: NodeConfig,
    pub(super) health: Health,
    pub(super) orders: Orders,
    /// Its last answer.
    pub(super) facts: Option<Facts>,
    /// The replica's replayed or the primary's written position, by a probe that is to be trusted.
    pub(super) position: Option<Position>,
    /// What a replica's readers may have seen, by the same probe.
    pub(super) shown: Option<Position>,
    /// When the probe behind `position` was sent, and its number.
    pub(super) measured: Option<(Instant, ProbeNumber)>,
    /// Number of the last probe with any outcome, and when it was sent.
    pub(super) last_probe: ProbeNumber,
    pub(super) asked: Option<Instant>,
    /// What the last probe met, if it failed.
    pub(super) trouble: Option<Arc<str>>,
    /// Its timeline, kept while a replica of the same incarnation cannot tell.
    timeline: Option<u32>,
    /// The probe behind `facts`.
    pub(super) answer: Option<Answer>,
    claimed: Option<Instant>,
    pub(super) followed: bool,
    /// It had the role, lost it to another node and has not been a replica since.
    pub(super) deposed: bool,
    /// The last position replayed by this incarnation as a replica.
    pub(super) replayed: Option<Position>,
    /// What it said of transaction ids as a replica, in this incarnation.
    pub(super) horizon: Option<Horizon>,
    pub(super) fence: Option<(Fence, Arc<str>)>,
    pub(super) load: Arc<Load>,
    /// Role and state as last reported, and since when the state holds.
    pub(super) noted: (Role, State),
    pub(super) since: Instant,
}

impl Tracked {
    pub(super) fn new(config: NodeConfig, now: Instant, late: bool) -> Self {
        Self {
            config,
            health: if late { Health::late(now) } else { Health::new(now) },
            orders: Orders::default(),
            facts: None,
            position: None,
            shown: None,
            measured: None,
            last_probe: ProbeNumber::default(),
            asked: None,
            trouble: None,
            timeline: None,
            answer: None,
            claimed: None,
            followed: false,
            deposed: false,
            replayed: None,
            horizon: None,
            fence: None,
            load: Arc::default(),
            noted: (Role::Unknown, State::New),
            since: now,
        }
    }

    /// Takes in a probe's facts or the loss of them; `true` if the server was restarted.
    pub(super) fn take_in(&mut self, probe: &Probe) -> bool {
        self.last_probe = probe.number;
        self.asked = Some(probe.sent);
        self.trouble = probe.outcome.as_ref().err().map(|fault| probe.said(*fault));
        match &probe.outcome {
            Ok(facts) => self.learn(probe, facts),
            Err(fault) => {
                // A server that is slow is still the same; one that refuses may come back as
                // another incarnation, further back than this one (hard case 4).
                if *fault != ProbeFault::TimedOut {
                    self.position = None;
                }
                false
            }
        }
    }

    fn learn(&mut self, probe: &Probe, facts: &Facts) -> bool {
        let same = self.facts.as_ref().is_some_and(|before| before.incarnation == facts.incarnation);
        let restarted = self.facts.is_some() && !same;
        let other = |before: &Facts| before.incarnation.system != facts.incarnation.system;
        if self.facts.as_ref().is_some_and(other) {
            // What another server did at this address says nothing of this one.
            (self.followed, self.deposed) = (false, false);
        }
        if !same {
            (self.timeline, self.replayed, self.claimed, self.horizon) = (None, None, None, None);
        }
        self.answer = Some(Answer { number: probe.number, sent: probe.sent, came: probe.answered });
        self.timeline = facts.timeline.or(self.timeline);
        match facts.claim {
            Claim::Primary => self.claimed = self.claimed.or(Some(probe.answered)),
            Claim::Replica => (self.claimed, self.deposed) = (None, false),
        }
        let position = match facts.claim {
            Claim::Primary => facts.written.as_ref().map(super::past::replayable),
            Claim::Replica => facts.replayed.as_ref().map(|position| self.with_timeline(position)),
        };
        if facts.claim == Claim::Replica {
            self.replayed.clone_from(&position);
        }
        // A standby that cannot tell its timeline is on the one that it had, or on a newer one:
        // what it says then counts for neither.
        if let (Some(below), Some(timeline)) = (facts.horizon, facts.timeline) {
            self.horizon = Some(Horizon { timeline, below });
        }
        // A question asked before a connection broke may have been answered by a server that is
        // gone.
        let trusted = self.health.trouble.is_none_or(|trouble| probe.sent > trouble);
        self.position = position.filter(|_| trusted);
        // On a timeline that the server cannot name it bounds nothing.
        self.shown = facts
            .shown
            .clone()
            .filter(|position| !matches!(position, Position::Postgres { timeline: 0, .. }));
        self.measured = self.position.is_some().then_some((probe.sent, probe.number));
        self.facts = Some(facts.clone());
        restarted
    }

    /// A replica without WAL receiver does not know its timeline. What it had replayed while it
    /// did is on the one it had; what came since may be of another.
    fn with_timeline(&self, position: &Position) -> Position {
        match (position, &self.replayed, self.timeline) {
            (
                Position::Postgres { timeline: 0, lsn, .. },
                Some(Position::Postgres { system, timeline: had, lsn: seen }),
                Some(timeline),
            ) if *had == timeline => Position::Postgres { system: *system, timeline, lsn: *lsn.min(seen) },
            _ => position.clone(),
        }
    }

    /// How far a replica has got, on the timeline that it had where it cannot tell: until it has heard
    /// of another, what it replayed last is taken for the end of the old one.
    pub(super) fn reached(&self) -> Option<Position> {
        match (self.facts.as_ref()?.replayed.as_ref()?, self.timeline) {
            (Position::Postgres { system, timeline: 0, lsn }, Some(timeline)) => {
                Some(Position::Postgres { system: *system, timeline, lsn: *lsn })
            }
            (position, _) => Some(position.clone()),
        }
    }

    pub(super) fn candidate(&self, id: NodeId) -> Candidate<'_> {
        Candidate {
            id,
            address: &self.config.address,
            reachable: self.health.usable(),
            probed: self.health.status != Status::New,
            facts: self.facts.as_ref(),
            timeline: self.timeline,
            claimed: self.claimed,
            answered: self.answer.map(|answer| (answer.sent, answer.came)),
            followed: self.followed,
            deposed: self.deposed,
            replayed: self.replayed.as_ref(),
        }
    }

    pub(super) fn is_replica(&self) -> bool {
        self.facts.as_ref().is_some_and(|facts| facts.claim == Claim::Replica)
    }

    /// One that refuses connections or says that it is stopping takes no more writes; silence tells
    /// nothing.
    pub(super) fn may_write(&self) -> bool {
        let has_stopped = matches!(self.health.fault, Some(ProbeFault::Unreachable | ProbeFault::NotReady));
        !has_stopped && !self.is_replica()
    }

    /// What the last probe met, or what its answer lacks so that the node serves no reads.
    pub(super) fn why(&self) -> Option<Arc<str>> {
        let replays = self.facts.as_ref().and_then(|facts| facts.replayed.as_ref());
        let blind = self.timeline.is_none() && matches!(replays, Some(Position::Postgres { .. }));
        self.trouble.clone().or_else(|| blind.then(|| NO_TIMELINE.into()))
    }

    pub(super) fn timeline(&self) -> Option<u32> {
        self.timeline
    }

    /// Sets or lifts the fence; its text is made once.
    pub(super) fn set_fence(&mut self, fence: Option<&Fence>) {
        match fence {
            None => self.fence = None,
            Some(fence) if self.fence.as_ref().is_some_and(|(known, _)| known == fence) => {}
            Some(fence) => self.fence = Some((fence.clone(), fence.to_string().into())),
        }
    }

    pub(super) fn state(&self) -> State {
        match (&self.fence, self.health.status) {
            (Some((_, why)), _) => State::Fenced(Arc::clone(why)),
            (None, Status::Down) => State::Down,
            (None, Status::New) if self.orders.is_serving() => State::New,
            (None, _) if self.orders.banned => State::Banned,
            (None, _) if self.orders.drained => State::Draining,
            (None, Status::Suspect) => State::Suspect,
            (None, Status::Up | Status::New) => State::Up,
        }
    }

    /// Whether the position is recent enough to go by.
    pub(super) fn fresh(&self, now: Instant, settings: &Settings) -> bool {
        self.measured.is_some_and(|(sent, _)| now.saturating_duration_since(sent) <= settings.fresh_for())
    }

    /// Configured weight × lag factor × zone factor × slow start; 0 where it may serve no reads. Being
    /// benched comes on top.
    pub(super) fn weight(&self, role: Role, lag: Option<Duration>, now: Instant, settings: &Settings) -> f64 {
        let serves = matches!(self.state(), State::Up | State::Suspect) && !self.config.no_load_balance;
        let behind = match role {
            Role::Primary => Some(1.0),
            Role::Replica => lag.map(|lag| lag_factor(lag, settings)),
            Role::Unknown => None,
        };
        match behind {
            Some(factor) if serves => {
                self.config.weight.max(0.0) * factor * self.zone_factor(settings) * self.ramp(now, settings)
            }
            _ => 0.0,
        }
    }

    fn zone_factor(&self, settings: &Settings) -> f64 {
        match (&self.config.zone, &settings.zone) {
            (Some(its), Some(ours)) if its != ours => OTHER_ZONE,
            _ => 1.0,
        }
    }

    fn ramp(&self, now: Instant, settings: &Settings) -> f64 {
        match self.health.ramp_from {
            Some(from) if !settings.slow_start.is_zero() => {
                let gone =
                    now.saturating_duration_since(from).as_secs_f64() / settings.slow_start.as_secs_f64();
                gone.clamp(FIRST_SHARE, 1.0)
            }
            _ => 1.0,
        }
    }
}

/// Halves every `lag_half_weight`; 0 from `max_lag` on.
fn lag_factor(lag: Duration, settings: &Settings) -> f64 {
    if !settings.max_lag.is_zero() && lag >= settings.max_lag {
        0.0
    } else if settings.lag_half_weight.is_zero() {
        1.0
    } else {
        0.5_f64.powf(lag.as_secs_f64() / settings.lag_half_weight.as_secs_f64())
    }
}
