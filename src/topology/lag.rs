//! The lag clock: how far behind the primary a replica is, in time, with no agreement of clocks.
//!
//! The clock keeps when the primary was seen at which position, all by the proxy's own monotonic
//! clock. A replica's lag is the age of the oldest of these positions that it has not replayed,
//! so an idle primary means no lag.

use std::time::{Duration, Instant};

use super::{position::Position, timelines::Timelines};

/// Positions kept. With [`RESOLUTION`] that is enough for 25 ms steps over the last second and a
/// day of history.
pub const CAPACITY: usize = 512;
/// Gaps in the history are at most 1/16 of their age: lag is right to 6 %, and better while it is
/// short.
const RESOLUTION: u32 = 16;
/// Positions older than this are forgotten; a replica behind them all is at least that late.
const HORIZON: Duration = Duration::from_secs(24 * 60 * 60);

/// Bounded history of the primary's durable positions.
#[derive(Clone, Debug, Default)]
pub struct LagClock {
    /// Oldest first; each position contains the one before.
    history: Vec<Mark>,
}

/// A stretch of time in which the primary stayed at one position.
#[derive(Clone, Debug)]
struct Mark {
    /// Sending time of the first probe that saw it.
    since: Instant,
    /// Its answer's time: from here on the position certainly existed.
    known: Instant,
    /// Sending time of the last probe that saw it.
    until: Instant,
    position: Position,
}

/// What the clock says of one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Age of the oldest primary position that the replica has not replayed; `None` when the
    /// history does not reach back to it, or the positions do not compare.
    pub lag: Option<Duration>,
    /// A lower bound where `lag` is not known: the replica is behind the whole history.
    pub at_least: Option<Duration>,
    /// Sending time of the newest primary sample that it has replayed.
    pub fresh_as_of: Option<Instant>,
    /// Bytes or transactions behind the newest position.
    pub distance: Option<u64>,
}

impl LagClock {
    /// Notes that a probe sent at `sent` and answered at `answered` found the primary at
    /// `position`. History that `position` does not contain is of no more use and is dropped.
    pub fn record(&mut self, sent: Instant, answered: Instant, position: &Position, timelines: &Timelines) {
        while let Some(newest) = self.history.last_mut() {
            if newest.until > sent {
                return; // an answer that was overtaken
            }
            if newest.position == *position {
                newest.until = sent;
                return;
            }
            if timelines.covers(position, &newest.position) == Some(true) {
                break;
            }
            self.history.pop();
        }
        if self.history.len() >= CAPACITY {
            self.thin(sent);
        }
        self.history.push(Mark { since: sent, known: answered, until: sent, position: position.clone() });
    }

    /// The newest position seen.
    pub fn newest(&self) -> Option<&Position> {
        self.history.last().map(|mark| &mark.position)
    }

    /// Reads the clock for a replica found at `replayed` by a probe sent at `measured`.
    ///
    /// `frozen` is when the primary was lost, while there is none: lag does not grow from there
    /// on, since nobody writes what could be missed (hard case 15).
    pub fn read(
        &self,
        replayed: &Position,
        measured: Instant,
        frozen: Option<Instant>,
        timelines: &Timelines,
    ) -> Reading {
        let Some(newest) = self.history.last() else { return Reading::default() };
        let Some(_) = timelines.covers(replayed, &newest.position) else { return Reading::default() };
        // Positions contain each other in order, so "has replayed" splits the history in two.
        let behind =
            self.history.partition_point(|mark| timelines.covers(replayed, &mark.position) == Some(true));
        // What the primary wrote after the replica was asked is no lag yet.
        let missed = self.history.get(behind).filter(|mark| mark.known <= measured);
        let as_of = frozen.map_or(measured, |frozen| frozen.min(measured));
        let age = missed.map_or(Duration::ZERO, |mark| as_of.saturating_duration_since(mark.since));
        let known = behind > 0;
        Reading {
            lag: known.then_some(age),
            at_least: (!known).then_some(age),
            fresh_as_of: behind.checked_sub(1).map(|last| self.history[last].until),
            distance: replayed.distance_to(&newest.position),
        }
    }

    /// Makes room: drops a mark where the gap that it leaves is small for its age, so that recent
    /// history stays fine-grained and old history coarse.
    fn thin(&mut self, now: Instant) {
        let mut newer = now;
        let mut kept: Vec<Mark> = Vec::with_capacity(CAPACITY);
        for at in (0..self.history.len()).rev() {
            let mark = &self.history[at];
            let age = now.saturating_duration_since(mark.since);
            let older = at.checked_sub(1).map(|older| self.history[older].since);
            let gap = older.map(|older| newer.saturating_duration_since(older));
            if age <= HORIZON && gap.is_none_or(|gap| gap * RESOLUTION > age) {
                newer = mark.since;
                kept.push(mark.clone());
            }
        }
        // Probes that come far faster than they should must not defeat the bound.
        kept.truncate(CAPACITY * 7 / 8);
        kept.reverse();
        self.history = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Lsn, timelines::Fork};

    fn at(timeline: u32, lsn: u64) -> Position {
        Position::Postgres { system: 1, timeline, lsn: Lsn(lsn) }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A clock that saw each `(time in ms, position)`; answers take a millisecond.
    fn clock(start: Instant, seen: &[(u64, Position)]) -> LagClock {
        let mut clock = LagClock::default();
        for (when, position) in seen {
            clock.record(start + ms(*when), start + ms(when + 1), position, &Timelines::default());
        }
        clock
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_position_not_replayed() {
        let start = Instant::now();
        let clock = clock(
            start,
            &[(0, at(1, 10)), (200, at(1, 20)), (400, at(1, 20)), (600, at(1, 30)), (800, at(1, 40))],
        );

        for (replayed, lag, fresh, distance) in [
            (40, Some(0), Some(800), 0),
            (45, Some(0), Some(800), 0), // it streams faster than we ask
            (39, Some(200), Some(600), 1),
            (25, Some(400), Some(400), 15), // idle from 200 to 400 at 20
            (10, Some(800), Some(0), 30),
            (9, None, None, 31), // behind all we know: how far in time cannot be told
        ] {
            let reading = clock.read(&at(1, replayed), start + ms(1000), None, &Timelines::default());

            assert_eq!(reading.lag, lag.map(ms), "replayed {replayed}");
            assert_eq!(reading.fresh_as_of, fresh.map(|fresh| start + ms(fresh)), "replayed {replayed}");
            assert_eq!(reading.distance, Some(distance), "replayed {replayed}");
        }
        let behind = clock.read(&at(1, 9), start + ms(1000), None, &Timelines::default());
        assert_eq!(behind.at_least, Some(ms(1000)));
    }

    #[test]
    fn what_the_primary_wrote_after_the_replica_was_asked_is_no_lag() {
        let start = Instant::now();
        let clock = clock(start, &[(0, at(1, 10)), (200, at(1, 20))]);

        let reading = clock.read(&at(1, 10), start + ms(100), None, &Timelines::default());

        assert_eq!(reading.lag, Some(Duration::ZERO));
        assert_eq!(reading.fresh_as_of, Some(start));
    }

    #[test]
    fn an_idle_primary_means_no_lag() {
        let start = Instant::now();
        let seen: Vec<_> = (0..3600).map(|second| (second * 1000, at(1, 10))).collect();
        let clock = clock(start, &seen);

        let reading = clock.read(&at(1, 10), start + ms(3_599_500), None, &Timelines::default());

        assert_eq!((reading.lag, reading.fresh_as_of), (Some(Duration::ZERO), Some(start + ms(3_599_000))));
        assert_eq!(clock.history.len(), 1);
    }

    #[test]
    fn lag_stops_growing_while_there_is_no_primary() {
        let start = Instant::now();
        let clock = clock(start, &[(0, at(1, 10)), (200, at(1, 20))]);

        let reading = clock.read(&at(1, 10), start + ms(9000), Some(start + ms(500)), &Timelines::default());

        assert_eq!(reading.lag, Some(ms(300)));
    }

    #[test]
    fn what_cannot_be_compared_has_no_lag() {
        let start = Instant::now();
        let seen = clock(start, &[(0, at(2, 10))]);

        for position in [at(0, 10), at(1, 10), at(3, 10)] {
            assert_eq!(seen.read(&position, start + ms(1), None, &Timelines::default()), Reading::default());
        }
        assert_eq!(
            LagClock::default().read(&at(1, 10), start, None, &Timelines::default()),
            Reading::default()
        );
    }

    #[test]
    fn history_survives_a_failover_up_to_the_fork() {
        let start = Instant::now();
        let mut clock = clock(start, &[(0, at(1, 10)), (200, at(1, 20)), (400, at(1, 30))]);
        let mut timelines = Timelines::default();
        timelines.learn(Fork { parent: 1, child: 2, at_least: Lsn(25), at_most: Lsn(26) });

        clock.record(start + ms(600), start + ms(601), &at(2, 40), &timelines);

        let on_the_old = clock.read(&at(1, 22), start + ms(700), None, &timelines);
        assert_eq!(on_the_old.lag, Some(ms(100)));
        assert_eq!(on_the_old.fresh_as_of, Some(start + ms(200)));
        let beyond_the_fork = clock.read(&at(1, 30), start + ms(700), None, &timelines);
        assert_eq!(beyond_the_fork, Reading::default());
        let on_the_new = clock.read(&at(2, 40), start + ms(700), None, &timelines);
        assert_eq!(on_the_new.lag, Some(Duration::ZERO));
    }

    #[test]
    fn a_position_that_falls_drops_the_history_above_it() {
        let start = Instant::now();
        let mut clock = clock(start, &[(0, at(1, 10)), (200, at(1, 20)), (400, at(1, 30))]);

        clock.record(start + ms(600), start + ms(601), &at(1, 15), &Timelines::default());

        assert_eq!(clock.newest(), Some(&at(1, 15)));
        assert_eq!(clock.history.len(), 2);
    }

    #[test]
    fn a_day_at_the_fastest_probing_fits_and_stays_exact_within_the_resolution() {
        let start = Instant::now();
        let mut clock = LagClock::default();
        let step = 25;
        // An hour at 25 ms, then a day at 200 ms would be slow in a debug build; six hours show it.
        let steps = 6 * 3600 * 1000 / step;
        for n in 0..steps {
            let now = start + ms(n * step);
            clock.record(now, now + ms(1), &at(1, n + 1), &Timelines::default());
            assert!(clock.history.len() <= CAPACITY);
        }
        let now = start + ms(steps * step);

        for behind in [1, 40, 400, 4_000, 40_000, 400_000, 860_000] {
            let reading = clock.read(&at(1, steps - behind), now, None, &Timelines::default());
            let truth = behind * step;
            let lag = reading.lag.expect("within the history").as_millis() as u64;
            assert!(lag <= truth && lag + truth / 16 + step >= truth, "{lag} ms for {truth} ms");
            let age = now.duration_since(reading.fresh_as_of.expect("within the history")).as_millis() as u64;
            assert!(age >= truth && age <= truth + truth / 16 + 2 * step, "{age} ms for {truth} ms");
        }
    }
}
