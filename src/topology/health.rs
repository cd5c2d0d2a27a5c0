//! Whether a node can be used: one function that changes the state, with time as a parameter.

use std::time::{Duration, Instant};

use super::ProbeFault;

/// How long a node that goes down again and again is kept from reads, the first time.
const FIRST_BENCH: Duration = Duration::from_secs(1);
/// The longest that it is kept from them.
const LONGEST_BENCH: Duration = Duration::from_secs(60);
/// A node that stayed up for so long starts with a clean sheet.
const FORGIVEN_AFTER: Duration = Duration::from_secs(120);
/// Refused connections between two good probes that count as one fall.
const REFUSALS_PER_FALL: u32 = 3;
/// Refusals closer to each other than this are one series; one that has lasted as long keeps the node
/// suspect whatever its probes say. Longer than waiting clients are kept from asking again.
const REFUSAL_SERIES: Duration = Duration::from_secs(1);

/// What probes and traffic say of a node, apart from what people and elections say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not probed yet.
    New,
    Up,
    /// Missed fewer than `failures` probes, or its connections broke.
    Suspect,
    Down,
}

/// One node's health. Changed by [`step`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub status: Status,
    /// Since when it has this status.
    pub since: Instant,
    /// When it began to take load again; `None` for a node that was there from the start.
    pub ramp_from: Option<Instant>,
    /// No reads until then: it came and went too often.
    pub benched_until: Option<Instant>,
    /// When traffic last had trouble with it; a probe sent later clears the suspicion.
    pub trouble: Option<Instant>,
    /// The fault of the last probe, if it failed.
    pub fault: Option<ProbeFault>,
    /// Probes in a row that failed.
    pub unanswered: u32,
    /// Those of them that count towards down.
    misses: u32,
    refusals: u32,
    refusing: Option<Refusing>,
    falls: u32,
    /// It fell since its last good probe: what else happens until then is the same fall.
    fell: bool,
    came_up: Option<Instant>,
    /// Joined a cluster that was running already.
    late: bool,
}

/// New connections that are refused one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusing {
    first: Instant,
    last: Instant,
}

impl Refusing {
    fn again(series: Option<Self>, now: Instant) -> Self {
        let goes_on = |series: &Self| now.saturating_duration_since(series.last) <= REFUSAL_SERIES;
        Self { first: series.filter(goes_on).map_or(now, |series| series.first), last: now }
    }

    /// Clients cannot get in, though probes are answered.
    fn lasts(self, now: Instant) -> bool {
        self.last.saturating_duration_since(self.first) >= REFUSAL_SERIES
            && now.saturating_duration_since(self.last) <= REFUSAL_SERIES
    }
}

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A probe sent at that time was answered.
    Answered { sent: Instant },
    /// A probe failed.
    Missed(ProbeFault),
    /// A connection that served a client broke, or a write was refused as read-only.
    Broke,
    /// A new connection for a client was refused.
    Refused,
}

/// What the configuration says about health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Probes missed in a row that make a node down.
    pub failures: u32,
}

impl Health {
    pub fn new(now: Instant) -> Self {
        Self {
            status: Status::New,
            since: now,
            ramp_from: None,
            benched_until: None,
            trouble: None,
            fault: None,
            unanswered: 0,
            misses: 0,
            refusals: 0,
            refusing: None,
            falls: 0,
            fell: false,
            came_up: None,
            late: false,
        }
    }

    /// A node that is added to a running cluster: it ramps up when it first answers.
    pub fn late(now: Instant) -> Self {
        Self { late: true, ..Self::new(now) }
    }

    /// Whether statements may be sent to it.
    pub fn usable(&self) -> bool {
        matches!(self.status, Status::Up | Status::Suspect)
    }

    /// Whether it is kept from reads for coming and going.
    pub fn benched(&self, now: Instant) -> bool {
        self.benched_until.is_some_and(|until| now < until)
    }

    /// Begins the ramp anew: a person gave the node back.
    #[must_use]
    pub fn ramped(self, now: Instant) -> Self {
        Self { ramp_from: Some(now), ..self }
    }

    fn turn(self, status: Status, now: Instant) -> Self {
        if self.status == status { self } else { Self { status, since: now, ..self } }
    }
}

/// The health of a node after `signal`.
#[must_use]
pub fn step(health: Health, signal: Signal, now: Instant, rules: Rules) -> Health {
    match signal {
        Signal::Answered { sent } => answered(health, sent, now),
        Signal::Missed(fault) => missed(health, fault, now, rules),
        Signal::Broke => troubled(health, now),
        Signal::Refused => {
            let refusals = health.refusals.saturating_add(1);
            let refusing = Some(Refusing::again(health.refusing, now));
            let health = troubled(Health { refusals, refusing, ..health }, now);
            // Probes are answered, yet clients cannot get in.
            if refusals.is_multiple_of(REFUSALS_PER_FALL) && health.usable() {
                fallen(health, now)
            } else {
                health
            }
        }
    }
}

fn answered(health: Health, sent: Instant, now: Instant) -> Health {
    let came_back = health.status == Status::Down || (health.status == Status::New && health.late);
    let health = Health { misses: 0, unanswered: 0, fault: None, ..health };
    if came_back {
        return Health {
            ramp_from: Some(now),
            came_up: Some(now),
            trouble: None,
            fell: false,
            ..health.turn(Status::Up, now)
        };
    }
    // An answer to a question asked before the trouble says nothing about it.
    if health.trouble.is_some_and(|trouble| sent <= trouble) {
        return health;
    }
    let steady = health.came_up.is_none_or(|up| now.saturating_duration_since(up) >= FORGIVEN_AFTER);
    let (falls, refusals) = if steady { (0, 0) } else { (health.falls, health.refusals) };
    let came_up = health.came_up.or(Some(now));
    let status =
        if health.refusing.is_some_and(|series| series.lasts(now)) { Status::Suspect } else { Status::Up };
    Health { trouble: None, falls, fell: false, refusals, came_up, ..health.turn(status, now) }
}

fn missed(health: Health, fault: ProbeFault, now: Instant, rules: Rules) -> Health {
    // A server that is full is alive: it says nothing new of its role, and does not go down by it.
    let misses = if fault == ProbeFault::Full { 0 } else { health.misses.saturating_add(1) };
    let unanswered = health.unanswered.saturating_add(1);
    let health = Health { misses, unanswered, fault: Some(fault), ..health };
    match health.status {
        Status::Down => health,
        // Never seen: nobody relies on it, so there is nothing to be patient about.
        Status::New => health.turn(Status::Down, now),
        _ if misses == 0 => health,
        _ if misses >= rules.failures.max(1) => fallen(health, now).turn(Status::Down, now),
        _ => health.turn(Status::Suspect, now),
    }
}

fn troubled(health: Health, now: Instant) -> Health {
    let health = Health { trouble: Some(now), ..health };
    if health.status == Status::Up { health.turn(Status::Suspect, now) } else { health }
}

/// Counts one more time that the node let us down; from the second on it is benched, longer each
/// time, so that a node that comes and goes does not take the reads with it.
fn fallen(health: Health, now: Instant) -> Health {
    if health.fell {
        return health;
    }
    let falls = health.falls.saturating_add(1);
    let doublings = falls.saturating_sub(2).min(16);
    let bench = (falls > 1).then(|| FIRST_BENCH.saturating_mul(1 << doublings).min(LONGEST_BENCH));
    let benched_until = bench.map(|bench| now + bench).or(health.benched_until);
    // The sheet is wiped by time spent up, counted from here.
    Health { falls, fell: true, benched_until, came_up: Some(now), ..health }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules { failures: 3 };

    fn after(signals: &[(u64, Signal)], start: Instant) -> Health {
        signals.iter().fold(Health::new(start), |health, &(when, signal)| {
            step(health, signal, start + Duration::from_millis(when), RULES)
        })
    }

    #[test]
    fn a_status_changes_as_probes_and_traffic_say() {
        let start = Instant::now();
        let ok = |sent| Signal::Answered { sent: start + Duration::from_millis(sent) };
        let miss = Signal::Missed(ProbeFault::TimedOut);
        let full = Signal::Missed(ProbeFault::Full);
        let table: [(&[(u64, Signal)], Status); 12] = [
            (&[], Status::New),
            (&[(1, ok(0))], Status::Up),
            (&[(1, miss)], Status::Down), // nobody relied on it
            (&[(1, ok(0)), (2, miss), (3, miss)], Status::Suspect),
            (&[(1, ok(0)), (2, miss), (3, miss), (4, ok(3))], Status::Up),
            (&[(1, ok(0)), (2, miss), (3, miss), (4, miss)], Status::Down),
            (&[(1, ok(0)), (2, miss), (3, miss), (4, ok(3)), (5, miss)], Status::Suspect),
            (&[(1, ok(0)), (5, Signal::Broke), (6, ok(4))], Status::Suspect), // asked before it broke
            (&[(1, ok(0)), (5, Signal::Broke), (7, ok(6))], Status::Up),
            (&[(1, full)], Status::Down), // nobody knows what it is
            (&[(1, ok(0)), (2, full), (3, full), (4, full), (5, full)], Status::Up),
            (&[(1, ok(0)), (2, miss), (3, miss), (4, full), (5, miss), (6, miss)], Status::Suspect),
        ];
        for (signals, status) in table {
            assert_eq!(after(signals, start).status, status, "{signals:?}");
        }
    }

    #[test]
    fn a_node_that_refuses_connections_for_long_stays_suspect_until_it_has_stopped() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut health = after(&[(0, Signal::Answered { sent: start })], start);
        let mut turns = 0;
        for tenth in 1..100 {
            let now = 100 * tenth;
            let before = health.status;
            if tenth % 5 == 0 {
                health = step(health, Signal::Refused, at(now), RULES);
            }
            health = step(health, Signal::Answered { sent: at(now + 1) }, at(now + 2), RULES);
            turns += u32::from(health.status != before);
        }
        assert_eq!((health.status, turns), (Status::Suspect, 1));

        health = step(health, Signal::Answered { sent: at(11_000) }, at(11_001), RULES);

        assert_eq!(health.status, Status::Up);
    }

    #[test]
    fn a_node_that_comes_and_goes_is_kept_from_reads_longer_each_time() {
        let start = Instant::now();
        let mut health = after(&[(0, Signal::Answered { sent: start })], start);
        let mut now = start;
        let mut benches = Vec::new();
        for _ in 0..9 {
            for _ in 0..3 {
                health = step(health, Signal::Missed(ProbeFault::Unreachable), now, RULES);
            }
            benches
                .push(health.benched_until.map_or(0, |until| until.saturating_duration_since(now).as_secs()));
            now += Duration::from_secs(1);
            health = step(health, Signal::Answered { sent: now }, now, RULES);
        }
        assert_eq!(benches, [0, 1, 2, 4, 8, 16, 32, 60, 60]);

        now += FORGIVEN_AFTER;
        health = step(health, Signal::Answered { sent: now }, now, RULES);
        for _ in 0..3 {
            health = step(health, Signal::Missed(ProbeFault::Unreachable), now, RULES);
        }
        assert!(!health.benched(now), "two good minutes and all is forgiven");
    }

    #[test]
    fn refused_connections_bench_a_node_that_answers_probes() {
        let start = Instant::now();
        let mut health = after(&[(0, Signal::Answered { sent: start })], start);
        for second in 1..=2 * u64::from(REFUSALS_PER_FALL) {
            let now = start + Duration::from_secs(second);
            health = step(health, Signal::Refused, now, RULES);
            let later = now + Duration::from_millis(1);
            health = step(health, Signal::Answered { sent: later }, later, RULES);
        }
        assert_eq!(health.status, Status::Suspect, "its clients know better");
        assert!(health.benched(start + Duration::from_secs(6)));
    }

    #[test]
    fn many_clients_that_are_refused_at_once_are_one_fall() {
        let start = Instant::now();
        let mut health = after(&[(0, Signal::Answered { sent: start })], start);
        let now = start + Duration::from_secs(1);
        for _ in 0..20 * REFUSALS_PER_FALL {
            health = step(health, Signal::Refused, now, RULES);
        }
        for _ in 0..RULES.failures {
            health = step(health, Signal::Missed(ProbeFault::Unreachable), now, RULES);
        }
        assert_eq!(health.status, Status::Down);
        assert!(!health.benched(now), "the first fall is forgiven");
    }

    fn signals() -> impl Strategy<Value = Vec<(u64, u8)>> {
        prop::collection::vec((1..500u64, 0..5u8), 1..200)
    }

    proptest! {
        #[test]
        fn whatever_happens_down_means_enough_misses_and_up_means_an_answer(history in signals()) {
            let start = Instant::now();
            let (mut now, mut health) = (start, Health::new(start));
            let mut misses = 0;
            for (gap, kind) in history {
                now += Duration::from_millis(gap);
                let before = health.status;
                let signal = match kind {
                    0 | 1 => Signal::Answered { sent: now },
                    2 => Signal::Missed(ProbeFault::TimedOut),
                    3 => Signal::Broke,
                    _ => Signal::Refused,
                };
                health = step(health, signal, now, RULES);
                match signal {
                    Signal::Answered { .. } => misses = 0,
                    Signal::Missed(_) => misses += 1,
                    Signal::Broke | Signal::Refused => {}
                }
                if health.status == Status::Down && before != Status::Down {
                    prop_assert!(misses >= RULES.failures || before == Status::New);
                }
                if health.status == Status::Up {
                    prop_assert!(misses == 0 && health.trouble.is_none());
                }
                prop_assert!(health.since <= now);
                let bench = health.benched_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
                prop_assert!(bench <= LONGEST_BENCH);
            }
        }
    }
}
