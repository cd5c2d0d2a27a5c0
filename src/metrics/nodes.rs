//! One node: its gauges, and the counters of the statements it has answered.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{GaugeVec, IntGaugeVec, Registry};

use super::{cells::Cells, families as f, float, gauge};
use crate::{
    sql::{Access, Reason},
    topology::{Node, Role, State},
};

#[derive(Clone)]
pub(super) struct NodeGauges {
    lag_seconds: GaugeVec,
    lag_bytes: GaugeVec,
    weight: GaugeVec,
    role: IntGaugeVec,
    state: IntGaugeVec,
    timeline: IntGaugeVec,
    in_flight: IntGaugeVec,
    connections: IntGaugeVec,
    limit: IntGaugeVec,
    waiters: IntGaugeVec,
}

impl NodeGauges {
    pub(super) fn on(r: &Registry) -> Self {
        Self {
            lag_seconds: float(r, &f::REPLICA_LAG_SECONDS),
            lag_bytes: float(r, &f::REPLICA_LAG_BYTES),
            weight: float(r, &f::NODE_WEIGHT),
            role: gauge(r, &f::NODE_ROLE),
            state: gauge(r, &f::NODE_STATE),
            timeline: gauge(r, &f::NODE_TIMELINE),
            in_flight: gauge(r, &f::NODE_IN_FLIGHT),
            connections: gauge(r, &f::POOL_CONNECTIONS),
            limit: gauge(r, &f::POOL_LIMIT),
            waiters: gauge(r, &f::POOL_WAITERS),
        }
    }

    pub(super) fn show(&self, cluster: &str, node: &Node) {
        let of: [&str; 2] = [cluster, &node.address];
        match node.lag {
            Some(lag) => self.lag_seconds.with_label_values(&of).set(lag.as_secs_f64()),
            None => drop(self.lag_seconds.remove_label_values(&of)),
        }
        match node.lag_distance {
            Some(bytes) => self.lag_bytes.with_label_values(&of).set(bytes as f64),
            None => drop(self.lag_bytes.remove_label_values(&of)),
        }
        match node.timeline {
            Some(timeline) => self.timeline.with_label_values(&of).set(i64::from(timeline)),
            None => drop(self.timeline.remove_label_values(&of)),
        }
        let in_flight = i64::try_from(node.load.in_flight()).unwrap_or(i64::MAX);
        self.in_flight.with_label_values(&of).set(in_flight);
        self.weight.with_label_values(&of).set(node.weight);
        for role in Role::ALL {
            let value = i64::from(node.role == role);
            self.role.with_label_values(&[of[0], of[1], role.label()]).set(value);
        }
        for label in State::LABELS {
            let value = i64::from(node.state.label() == label);
            self.state.with_label_values(&[of[0], of[1], label]).set(value);
        }
    }

    /// What a node's pools have just now.
    pub(super) fn show_pools(&self, cluster: &str, node: &str, connections: Connections) {
        let of = [cluster, node];
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in CONNECTION_STATES.into_iter().zip([connections.idle, connections.in_use]) {
            self.connections.with_label_values(&[of[0], of[1], state]).set(number(count));
        }
        self.waiters.with_label_values(&of).set(number(connections.waiters));
        self.limit.with_label_values(&of).set(number(connections.limit));
    }

    /// A node that is configured no more.
    pub(super) fn forget(&self, cluster: &str, node: &str) {
        // What was not there need not go: both answers of a removal are fine.
        let of = [cluster, node];
        for family in [&self.lag_seconds, &self.lag_bytes, &self.weight] {
            let _ = family.remove_label_values(&of);
        }
        for family in [&self.timeline, &self.in_flight, &self.limit, &self.waiters] {
            let _ = family.remove_label_values(&of);
        }
        let parts: [(&IntGaugeVec, &[&str]); 3] = [
            (&self.role, &Role::ALL.map(Role::label)),
            (&self.state, &State::LABELS),
            (&self.connections, &CONNECTION_STATES),
        ];
        for (family, labels) in parts {
            for label in labels {
                let _ = family.remove_label_values(&[cluster, node, label]);
            }
        }
    }
}

const CONNECTION_STATES: [&str; 2] = ["idle", "in_use"];

/// A node's server connections at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub idle: usize,
    pub in_use: usize,
    pub waiters: usize,
    /// What all pools of the node may have together.
    pub limit: usize,
}

pub(super) const ACCESSES: [&str; 2] = ["read", "write"];

pub(super) const fn index(access: Access) -> usize {
    match access {
        Access::Read => 0,
        Access::Write => 1,
    }
}

type Counts = [[AtomicU64; Reason::ALL.len()]; 2];

/// One node's statement counters.
#[derive(Default)]
pub struct NodeMetrics(Cells<Counts>);

impl NodeMetrics {
    pub fn statement(&self, access: Access, reason: Reason) {
        self.0.mine()[index(access)][reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Reads or writes counted so far.
    pub fn total(&self, access: Access) -> u64 {
        self.counts()
            .filter(|(label, _, _)| *label == ACCESSES[index(access)])
            .map(|(_, _, count)| count)
            .sum()
    }

    /// Every access and reason with its count.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, Reason, u64)> {
        ACCESSES.into_iter().enumerate().flat_map(move |(at, access)| {
            Reason::ALL.into_iter().map(move |reason| {
                let cells = self.0.all().map(|cell| cell[at][reason as usize].load(Ordering::Relaxed));
                (access, reason, cells.sum())
            })
        })
    }
}
