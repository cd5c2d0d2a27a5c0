//! What the control plane publishes of the nodes, and how the data plane nudges it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    route::Floor,
    topology::{Incarnation, ProbeCounter, ProbeNumber, Snapshot, board::Traffic},
};

/// How long the nodes are probed at `fast_interval` for whoever wants a position: the primary for that
/// of a write, the replicas until they have replayed it.
const WANTED_FOR: Duration = Duration::from_millis(200);

/// What is known of the nodes, and the ways in which data plane and monitor nudge each other.
pub struct Topology {
    snapshot: ArcSwap<Snapshot>,
    /// That of the snapshot, for whoever has one already.
    version: AtomicU64,
    pub probes: ProbeCounter,
    /// Wakes whoever waits for the topology to change.
    pub changed: Notify,
    /// Wakes the monitor: somebody waits for a position, or traffic had trouble.
    pub nudge: Notify,
    /// When somebody last wanted a position, in microseconds since `started`.
    wanted: AtomicU64,
    started: Instant,
    /// Bounded by the number of nodes: one report each, the latest.
    reports: Mutex<HashMap<Arc<str>, Traffic>>,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(Snapshot::empty(Instant::now())),
            version: AtomicU64::new(0),
            probes: ProbeCounter::default(),
            changed: Notify::new(),
            nudge: Notify::new(),
            wanted: AtomicU64::new(0),
            started: Instant::now(),
            reports: Mutex::default(),
        }
    }
}

impl Topology {
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    pub fn load_full(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Whether nothing has been published since `snapshot`. Sequentially consistent: whoever makes a
    /// pool and then finds nothing new is found by the publisher, who fences pools afterwards.
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.version() == snapshot.version
    }

    /// That of the snapshot or, for a moment, of the one before it.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    pub(super) fn store(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.snapshot.store(Arc::new(snapshot));
        self.version.store(version, Ordering::SeqCst);
    }

    /// A read waits for positions measured from now on, or is likely to come.
    pub fn want_position(&self) {
        let now = self.started.elapsed().as_micros() as u64;
        let before = self.wanted.swap(now, Ordering::AcqRel);
        if now.saturating_sub(before) >= WANTED_FOR.as_micros() as u64 || before == 0 {
            self.nudge.notify_one();
        }
    }

    /// Whether somebody has wanted a position lately.
    pub fn is_wanted(&self) -> bool {
        let wanted = self.wanted.load(Ordering::Acquire);
        wanted > 0
            && (self.started.elapsed().as_micros() as u64).saturating_sub(wanted)
                < WANTED_FOR.as_micros() as u64
    }

    /// What the server at `address` had answered when `after` was the last probe sent: the next one bounds it.
    pub fn unsampled(&self, address: &str, after: ProbeNumber) -> Floor {
        let snapshot = self.snapshot.load();
        // A node without facts has answered nothing: any later sample is of another incarnation.
        let incarnation = snapshot.find(address).and_then(|node| node.incarnation.clone());
        let incarnation = incarnation.unwrap_or_else(|| Incarnation { system: Arc::from(""), started: 0 });
        Floor::Unsampled { incarnation, after }
    }

    /// Traffic had trouble with a node.
    pub fn report(&self, address: &Arc<str>, traffic: Traffic) {
        self.reports.lock().insert(address.clone(), traffic);
        self.nudge.notify_one();
    }

    pub fn take_reports(&self) -> HashMap<Arc<str>, Traffic> {
        std::mem::take(&mut *self.reports.lock())
    }
}
