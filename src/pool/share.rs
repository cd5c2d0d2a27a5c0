//! What bounds the connections of one node, whoever's they are.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Count, refusals::Refusals};

/// Before a server has said how many connections it has.
const UNKNOWN_LIMIT: usize = 100;

/// All connections of one node, whoever's: bounded together.
pub struct NodeShare {
    pub address: Arc<str>,
    /// One for each connection that there may be; taken by those that there are.
    permits: Arc<Semaphore>,
    limit: Mutex<usize>,
    /// Permits taken beyond it, since it was lowered: each is given up by whoever gets it next. Written with
    /// the limit locked.
    surplus: AtomicUsize,
    /// Those who wait for a permit that some pool's connection has.
    starving: AtomicUsize,
    pub refusals: Refusals,
}

impl NodeShare {
    pub fn new(address: Arc<str>) -> Self {
        Self {
            address,
            permits: Arc::new(Semaphore::new(UNKNOWN_LIMIT)),
            limit: Mutex::new(UNKNOWN_LIMIT),
            surplus: AtomicUsize::new(0),
            starving: AtomicUsize::new(0),
            refusals: Refusals::default(),
        }
    }

    /// The right to a connection, where there is one to be had at once.
    pub(super) fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let permit = self.permits.clone().try_acquire_owned().ok()?;
            if let Some(permit) = self.within_bound(permit) {
                return Some(permit);
            }
        }
    }

    /// Waits for one, in the order of asking; behind a lowered limit not quite.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        loop {
            let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            if let Some(permit) = self.within_bound(permit) {
                return permit;
            }
        }
    }

    fn within_bound(&self, permit: OwnedSemaphorePermit) -> Option<OwnedSemaphorePermit> {
        let _limit = self.limit.lock();
        let surplus = self.surplus.load(Ordering::Relaxed);
        if surplus == 0 {
            return Some(permit);
        }
        self.surplus.store(surplus - 1, Ordering::Relaxed);
        permit.forget();
        None
    }

    /// How many connections there may be.
    pub fn limit(&self) -> usize {
        *self.limit.lock()
    }

    /// Whether there is no connection left to be had. Those that are given back beyond a lowered limit are
    /// none.
    pub(super) fn is_exhausted(&self) -> bool {
        self.permits.available_permits() <= self.surplus.load(Ordering::Relaxed)
    }

    /// Says that somebody waits for a permit which some pool's connection has, until dropped.
    pub(super) fn starve(&self) -> Count<'_> {
        Count::up(&self.starving)
    }

    /// Whether somebody waits for a permit. Sequentially consistent, as is the counting: who waits has
    /// either found what was put back before, or is found.
    pub(super) fn is_starved(&self) -> bool {
        self.is_starved_beyond(0)
    }

    /// Whether somebody else does than the `own` waiters of one pool.
    pub(super) fn is_starved_beyond(&self, own: usize) -> bool {
        self.starving.load(Ordering::SeqCst) > own
    }

    /// Sets how many connections there may be. Connections beyond a lowered limit are not closed,
    /// but not replaced either.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.max(1);
        let mut before = self.limit.lock();
        if limit > *before {
            let more = limit - *before;
            let surplus = self.surplus.load(Ordering::Relaxed);
            let kept = more.min(surplus);
            self.surplus.store(surplus - kept, Ordering::Relaxed);
            self.permits.add_permits(more - kept);
        } else {
            let fewer = *before - limit;
            let taken = fewer - self.permits.forget_permits(fewer);
            self.surplus.fetch_add(taken, Ordering::Relaxed);
        }
        *before = limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(share: &NodeShare) -> Vec<OwnedSemaphorePermit> {
        std::iter::from_fn(|| share.try_permit()).collect()
    }

    #[test]
    fn a_lowered_limit_holds_once_connections_beyond_it_are_closed() {
        let share = NodeShare::new("node:1".into());
        share.set_limit(8);
        let mut taken = take_all(&share);
        assert_eq!(taken.len(), 8);

        share.set_limit(3);

        taken.truncate(5);
        assert!(share.is_exhausted(), "what came back is beyond the limit");
        assert!(share.try_permit().is_none(), "five are more than three");
        taken.truncate(2);
        assert_eq!(take_all(&share).len(), 1);
    }

    #[test]
    fn a_limit_that_is_lowered_and_raised_again_is_what_it_was() {
        let share = NodeShare::new("node:1".into());
        share.set_limit(8);
        let taken = take_all(&share);

        share.set_limit(3);
        share.set_limit(10);

        assert_eq!(take_all(&share).len(), 2);
        drop(taken);
        assert_eq!(take_all(&share).len(), 10);
    }
}
