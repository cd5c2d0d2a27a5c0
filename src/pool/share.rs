//! What bounds the connections of one node, whoever's they are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
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
    refusals: Mutex<Refusals>,
}

/// New connections that a node refused, one after the other. While it may not be asked again nobody
/// is: a thousand clients that wait for it would keep themselves and it busy with that alone.
#[derive(Debug, Default)]
struct Refusals {
    count: u32,
    over: Option<Instant>,
    /// Somebody asks again, and the others wait for what becomes of it.
    trying: bool,
    /// The first of the pause came from a server that is full.
    full: bool,
}

/// A node may not be asked for a connection for so long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub left: Duration,
    pub full: bool,
}

/// How long a node is left alone by the first refusal; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest: nobody notices that a server is back much later than its monitor.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl Refusals {
    fn add(&mut self, full: bool, now: Instant) {
        if !self.trying && self.over.is_some_and(|over| now < over) {
            // Asked at the same time as the one that is counted.
            return;
        }
        let over = Some(now + self.next_pause());
        *self = Self { count: self.count.saturating_add(1), over, trying: false, full };
    }

    fn next_pause(&self) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << self.count.min(16)).min(LONGEST_PAUSE)
    }

    /// Whether the node may be asked now; behind a pause by one only, for as long as the next pause
    /// would be.
    fn may_ask(&mut self, now: Instant) -> Result<(), Pause> {
        match (self.over, self.pause(now)) {
            (_, Some(pause)) => Err(pause),
            (Some(_), None) => {
                self.over = Some(now + self.next_pause());
                self.trying = true;
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    fn pause(&self, now: Instant) -> Option<Pause> {
        let left = self.over?.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some(Pause { left, full: self.full })
    }
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
            refusals: Mutex::default(),
        }
    }

    /// How long no connection may be opened yet, because the node has refused some.
    pub(super) fn pause(&self, now: Instant) -> Option<Pause> {
        self.refusals.lock().pause(now)
    }

    /// Asks before a connection is opened.
    pub(super) fn may_ask(&self, now: Instant) -> Result<(), Pause> {
        self.refusals.lock().may_ask(now)
    }

    /// `full`: it has no connection left to give.
    pub(super) fn refused(&self, full: bool, now: Instant) {
        self.refusals.lock().add(full, now);
    }

    /// It has taken a connection, or is back: what it refused before tells nothing any more.
    pub fn forget_refusals(&self) {
        *self.refusals.lock() = Refusals::default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_refuses_is_left_alone_longer_each_time() {
        let mut refusals = Refusals::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            for _ in 0..20 {
                refusals.add(false, now);
            }
            let pause = refusals.pause(now).expect("it was refused just now").left;
            pauses.push(pause.as_millis());
            assert!(refusals.may_ask(now).is_err());
            now += pause;
            assert!(refusals.may_ask(now).is_ok());
            assert!(refusals.may_ask(now).is_err(), "one is enough to find out");
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500]);
    }
}
