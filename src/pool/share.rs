//! What bounds the connections of one node, whoever's they are.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;

/// All connections of one node, whoever's: bounded together.
pub struct NodeShare {
    pub address: Arc<str>,
    pub(super) permits: Arc<Semaphore>,
    /// Permits that exist, taken ones included.
    limit: AtomicUsize,
    limit_known: AtomicBool,
    /// Those who wait for a permit that some pool's connection has.
    pub(super) starving: AtomicUsize,
}

/// Before a server has said how many connections it has.
const UNKNOWN_LIMIT: usize = 100;

impl NodeShare {
    pub fn new(address: Arc<str>) -> Self {
        Self {
            address,
            permits: Arc::new(Semaphore::new(UNKNOWN_LIMIT)),
            limit: AtomicUsize::new(UNKNOWN_LIMIT),
            limit_known: AtomicBool::new(false),
            starving: AtomicUsize::new(0),
        }
    }

    /// Whether somebody waits for a permit. Sequentially consistent, as is the counting: who waits has
    /// either found what was put back before, or is found.
    pub(super) fn is_starved(&self) -> bool {
        self.starving.load(Ordering::SeqCst) > 0
    }

    /// Sets how many connections there may be. Connections beyond a lowered limit are not closed,
    /// but not replaced either.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.max(1);
        self.limit_known.store(true, Ordering::Relaxed);
        let before = self.limit.swap(limit, Ordering::Relaxed);
        if limit > before {
            self.permits.add_permits(limit - before);
        } else {
            self.permits.forget_permits(before - limit);
        }
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }
}
