//! Connections that wait for their next session, on a shelf for each worker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool::managed::Object;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::Places;
use crate::{
    protocol::{Backend, Protocol},
    runtime,
    session::cancel::CancelTarget,
};

/// A server connection and its share of the node's.
pub(super) struct Pooled<P: Protocol> {
    pub backend: P::Backend,
    /// What a cancel request needs to know.
    pub target: Arc<CancelTarget>,
    pub expires: Option<Instant>,
    pub opened: Instant,
    /// It is known to be to the server that probes measure.
    pub vouched: bool,
    pub idle_since: Instant,
    pub _share: OwnedSemaphorePermit,
    /// Of an idle connection that can be taken without asking deadpool. The last field: the
    /// connection goes before its place does, so that there are never more than places.
    pub place: Option<Object<Places>>,
}

impl<P: Protocol> Pooled<P> {
    /// A look at flags: whatever needs a round trip was done when the connection came back.
    fn is_usable(&mut self, now: Instant) -> bool {
        !self.is_expired(now) && self.backend.is_fresh()
    }

    /// Its lifetime is over.
    fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

/// One pool's idle connections.
pub(super) struct Idle<P: Protocol> {
    shelves: Vec<Shelf<P>>,
}

/// One worker's, the one used last on top. On a cache line of its own.
#[repr(align(128))]
struct Shelf<P: Protocol>(Mutex<Vec<Box<Pooled<P>>>>);

impl<P: Protocol> Shelf<P> {
    /// The connection used last among those that are wanted.
    fn take(&self, wanted: impl Fn(&Pooled<P>) -> bool) -> Option<Box<Pooled<P>>> {
        let mut shelf = self.0.lock();
        let at = shelf.iter().rposition(|pooled| wanted(pooled))?;
        Some(shelf.remove(at))
    }
}

impl<P: Protocol> Idle<P> {
    pub(super) fn for_workers(workers: usize) -> Self {
        // One more for the control plane's thread.
        Self { shelves: (0..=workers).map(|_| Shelf(Mutex::new(Vec::new()))).collect() }
    }

    /// Number of the calling worker's shelf.
    fn here(&self) -> usize {
        runtime::worker().min(self.shelves.len() - 1)
    }

    /// The connection used last that may still be used and is wanted: this worker's first.
    pub(super) fn take(&self, now: Instant, wanted: impl Fn(&Pooled<P>) -> bool) -> Option<Box<Pooled<P>>> {
        let (here, count) = (self.here(), self.shelves.len());
        for turn in 0..count {
            let shelf = &self.shelves[(here + turn) % count];
            while let Some(mut pooled) = shelf.take(&wanted) {
                if pooled.is_usable(now) && pooled.backend.adopt().is_ok() {
                    return Some(pooled);
                }
            }
        }
        None
    }

    /// Puts one on this worker's shelf.
    pub(super) fn put(&self, pooled: Box<Pooled<P>>) {
        self.shelves[self.here()].0.lock().push(pooled);
    }

    /// Takes the place of one of this worker's that has kept it.
    pub(super) fn take_place(&self) -> Option<Object<Places>> {
        self.shelves[self.here()].0.lock().iter_mut().find_map(|pooled| pooled.place.take())
    }

    /// How many there are, and how many of them have kept their place.
    pub(super) fn count(&self) -> (usize, usize) {
        let (mut idle, mut kept) = (0, 0);
        for shelf in &self.shelves {
            let shelf = shelf.0.lock();
            idle += shelf.len();
            kept += shelf.iter().filter(|pooled| pooled.place.is_some()).count();
        }
        (idle, kept)
    }

    /// Process number and idle time of each.
    pub(super) fn ages(&self, now: Instant) -> Vec<(u32, Duration)> {
        let mut ages = Vec::new();
        for shelf in &self.shelves {
            let shelf = shelf.0.lock();
            ages.extend(
                shelf.iter().map(|pooled| (pooled.target.key.process, now.duration_since(pooled.idle_since))),
            );
        }
        ages
    }

    /// Closes one. `false`: there is none.
    pub(super) fn close_one(&self) -> bool {
        self.shelves.iter().any(|shelf| {
            let mut shelf = shelf.0.lock();
            !shelf.is_empty() && {
                drop(shelf.remove(0));
                true
            }
        })
    }

    /// Closes those at the end of their lifetime.
    pub(super) fn close_expired(&self, now: Instant) {
        for shelf in &self.shelves {
            let expired: Vec<_> = shelf.0.lock().extract_if(.., |pooled| pooled.is_expired(now)).collect();
            // Closed outside of the lock.
            drop(expired);
        }
    }

    /// Closes those that were idle for `timeout` or longer, but for `keep` of all.
    pub(super) fn close_old(&self, now: Instant, timeout: Duration, keep: usize) {
        let mut spare = self.count().0.saturating_sub(keep);
        for shelf in &self.shelves {
            let mut shelf = shelf.0.lock();
            // The ones idle for longest lie at the bottom.
            let old =
                shelf.iter().take_while(|pooled| now.duration_since(pooled.idle_since) >= timeout).count();
            let closed: Vec<_> = shelf.drain(..old.min(spare)).collect();
            drop(shelf);
            spare -= closed.len();
        }
    }

    pub(super) fn close_all(&self) {
        for shelf in &self.shelves {
            let idle = std::mem::take(&mut *shelf.0.lock());
            drop(idle);
        }
    }
}
