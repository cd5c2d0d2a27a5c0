//! What happened, for logs and metrics.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Board;
use crate::topology::{Position, Role, State, election::Nobody};

/// Events kept for a monitor that does not fetch them; the oldest go first.
pub const MAX_EVENTS: usize = 1024;

/// Something worth a person's time, or a metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A node got the primary's role.
    Elected {
        address: Arc<str>,
        timeline: Option<u32>,
        /// How long there was no primary.
        without: Option<Duration>,
        /// Another node had the role before.
        failover: bool,
    },
    /// There is no primary, or the reason for that changed.
    NoPrimary { lost: Option<Arc<str>>, why: Nobody },
    /// A node's role or state changed. `state` has the reason of a fence, `trouble` what the last
    /// probe met.
    Changed { address: Arc<str>, role: Role, was: State, state: State, trouble: Option<Arc<str>> },
    /// A node answers as another incarnation.
    Restarted { address: Arc<str> },
    /// The primary came back with less than it had acknowledged.
    PositionFell { address: Arc<str>, from: Position, to: Position },
}

/// What an operator wants to count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Elections of another node than the one before.
    pub failovers: u64,
    /// Elections after a time without primary, of whatever node; the first one does not count.
    pub recoveries: u64,
    /// Total time without a primary that ended with an election, but for the first.
    pub without_primary: Duration,
    /// The last failover: when, and how long there was no primary.
    pub last_failover: Option<(Instant, Duration)>,
    /// Events dropped because nobody fetched them.
    pub events_dropped: u64,
    any: bool,
}

impl Counters {
    pub(super) fn elected(&mut self, failover: bool, without: Option<Duration>, now: Instant) {
        let gap = without.is_some();
        let without = without.unwrap_or_default();
        if failover {
            self.failovers += 1;
            self.last_failover = Some((now, without));
        }
        if self.any && gap {
            self.recoveries += 1;
            self.without_primary += without;
        }
        self.any = true;
    }
}

impl Board {
    /// What happened since the last call, oldest first.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    pub(super) fn push_event(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
            self.counters.events_dropped += 1;
        }
        self.events.push_back(event);
    }

    /// Compares every node's role and state with what they were last.
    pub(super) fn note_changes(&mut self, now: Instant) {
        for at in 0..self.nodes.len() {
            let role = self.role(at);
            let state = self.nodes[at].state();
            let node = &mut self.nodes[at];
            if node.noted == (role, state.clone()) {
                continue;
            }
            let (_, was) = std::mem::replace(&mut node.noted, (role, state.clone()));
            if was != state {
                node.since = now;
            }
            let address = Arc::clone(&node.config.address);
            let trouble = node.why();
            self.push_event(Event::Changed { address, role, was, state, trouble });
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elected { address, timeline, without, .. } => {
                write!(f, "{address} is the primary")?;
                if let Some(timeline) = timeline {
                    write!(f, ", on timeline {timeline}")?;
                }
                match without {
                    Some(without) => write!(f, ", after {} ms without one", without.as_millis()),
                    None => Ok(()),
                }
            }
            Self::NoPrimary { lost: Some(lost), why } => write!(f, "{lost} is no longer the primary: {why}"),
            Self::NoPrimary { lost: None, why } => write!(f, "there is no primary: {why}"),
            Self::Changed { address, role, was, state, trouble } => {
                if was.label() == state.label() {
                    write!(f, "{address} is {}, role {} from now on", state.label(), role.label())?;
                } else {
                    write!(f, "{address} is {}, was {}, role {}", state.label(), was.label(), role.label())?;
                }
                match (state, trouble) {
                    (State::Fenced(why), _) | (State::Down | State::Suspect | State::Up, Some(why)) => {
                        write!(f, ": {why}")
                    }
                    _ => Ok(()),
                }
            }
            Self::Restarted { address } => write!(f, "{address} was restarted"),
            Self::PositionFell { address, from, to } => {
                write!(
                    f,
                    "{address} came back at {to} after it had been at {from}: what it acknowledged between is lost"
                )
            }
        }
    }
}
