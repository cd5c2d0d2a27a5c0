//! Connections that a node refused, and how long it is left alone for that.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a node is left alone by the first refusal; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest: nobody notices that a server is back much later than its monitor.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Bounds the doublings, which end long before.
const MAX_DOUBLINGS: u32 = 16;

/// New connections that a node refused, one after the other. While it may not be asked again nobody
/// is: a thousand clients that wait for it would keep themselves and it busy with that alone.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Series>);

/// A node may not be asked for a connection for so long.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    pub left: Duration,
    /// It is full, which says nothing of its health.
    pub full: bool,
}

#[derive(Debug, Default)]
struct Series {
    count: u32,
    over: Option<Instant>,
    /// Somebody asks again, and the others wait for what becomes of it.
    trying: bool,
    /// The last came from a server that is full.
    full: bool,
}

impl Refusals {
    /// Asks before a connection is opened: behind a pause one may find out, and the others wait for
    /// as long as the next pause would be.
    ///
    /// # Errors
    /// How long the node may not be asked.
    pub(super) fn may_ask(&self, now: Instant) -> Result<(), Pause> {
        let mut series = self.0.lock();
        match (series.over, series.pause(now)) {
            (_, Some(pause)) => Err(pause),
            (Some(_), None) => {
                series.over = Some(now + series.next_pause());
                series.trying = true;
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    /// How long no connection may be opened yet.
    pub(super) fn pause(&self, now: Instant) -> Option<Pause> {
        self.0.lock().pause(now)
    }

    /// `full`: it has no connection left to give.
    pub(super) fn add(&self, full: bool, now: Instant) {
        let mut series = self.0.lock();
        if !series.trying && series.over.is_some_and(|over| now < over) {
            // Asked at the same time as the one that is counted.
            return;
        }
        let over = Some(now + series.next_pause());
        *series = Series { count: series.count.saturating_add(1), over, trying: false, full };
    }

    /// It has taken a connection, or is back: what it refused before tells nothing any more.
    pub fn forget(&self) {
        *self.0.lock() = Series::default();
    }
}

impl Series {
    fn next_pause(&self) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << self.count.min(MAX_DOUBLINGS)).min(LONGEST_PAUSE)
    }

    fn pause(&self, now: Instant) -> Option<Pause> {
        let left = self.over?.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some(Pause { left, full: self.full })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_refuses_is_left_alone_longer_each_time() {
        let refusals = Refusals::default();
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
