//! The board as a snapshot for the data plane.

use std::{borrow::Cow, sync::Arc, time::Instant};

use super::{Board, node::Tracked};
use crate::topology::{Node, NodeId, Position, Role, Snapshot, lag::Reading};

/// What people are told of a node that answers and yet gets no reads.
pub(super) const BENCHED: &str = "went down too often lately: it serves reads only where nobody else can";

impl Board {
    /// The topology as it is known at `now`.
    pub fn snapshot(&mut self, now: Instant) -> Snapshot {
        self.version += 1;
        let samples = match &self.samples_shared {
            Some(shared) => Arc::clone(shared),
            None => {
                let shared: Arc<[_]> = self.samples.iter().cloned().collect();
                Arc::clone(self.samples_shared.insert(shared))
            }
        };
        let (start, wall) = self.started;
        Snapshot {
            version: self.version,
            taken: now,
            nodes: (0..self.nodes.len()).map(|at| self.publish(at, now)).collect(),
            primary: self.primary,
            without_primary_since: self
                .without_since
                .map(|since| (since, wall + since.saturating_duration_since(start))),
            nobody: self.nobody.as_ref().map(|why| why.to_string().into()),
            samples,
            history: Arc::clone(&self.history),
        }
    }

    pub(super) fn role(&self, at: usize) -> Role {
        if self.primary == Some(NodeId(at)) {
            Role::Primary
        } else if self.nodes[at].is_replica() {
            Role::Replica
        } else {
            Role::Unknown
        }
    }

    fn publish(&self, at: usize, now: Instant) -> Node {
        let node = &self.nodes[at];
        let role = self.role(at);
        let position = node.position.as_ref().map(|position| match role {
            Role::Replica => self.telling(position),
            _ => Cow::Borrowed(position),
        });
        let reading = match (role, &position) {
            (Role::Replica, Some(position)) => self.read_clock(node, position, now),
            _ => Reading::default(),
        };
        // Behind everything the clock remembers, and that is longer than it may be: the exact
        // figure would change nothing.
        let hopeless = reading.at_least.filter(|least| {
            let max_lag = self.settings.max_lag;
            !max_lag.is_zero() && *least >= max_lag
        });
        let lag = reading.lag.or(hopeless);
        let weight = node.weight(role, lag, now, &self.settings);
        let benched = weight > 0.0 && node.health.benched(now);
        Node {
            id: NodeId(at),
            address: Arc::clone(&node.config.address),
            role,
            state: node.state(),
            incarnation: node.facts.as_ref().map(|facts| facts.incarnation.clone()),
            timeline: node.timeline(),
            position: position.map(Cow::into_owned),
            shown: node.position.as_ref().and(node.shown.clone()),
            measured: node.position.as_ref().and(node.measured),
            horizon: node.horizon,
            lag,
            lag_distance: reading.distance,
            fresh_as_of: reading.fresh_as_of,
            weight: if benched { 0.0 } else { weight },
            benched,
            no_load_balance: node.config.no_load_balance,
            may_write: node.may_write(),
            trouble: node.why().or_else(|| benched.then(|| BENCHED.into())),
            load: Arc::clone(&node.load),
            since: node.since,
        }
    }

    fn read_clock(&self, node: &Tracked, position: &Position, now: Instant) -> Reading {
        match node.measured {
            Some((measured, _)) if node.fresh(now, &self.settings) => {
                self.clock.read(position, measured, self.without_since, &self.history.timelines)
            }
            _ => Reading::default(),
        }
    }
}
