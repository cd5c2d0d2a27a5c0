//! What was asked and answered, and what must hold of it. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

/// How a write ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged.
    Done,
    /// It was refused, or ended with an error that says that it had no effect.
    Failed,
    /// Nobody knows.
    InDoubt,
}

/// Rows `(session, from..=to)` that one autocommit statement or one transaction wrote.
#[derive(Clone, Debug)]
pub struct Write {
    pub session: usize,
    pub rows: Vec<u64>,
    pub began: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
    /// The step that did not succeed, and its error.
    pub how: String,
}

/// Everything that happened.
#[derive(Debug, Default)]
pub struct History {
    pub writes: Vec<Write>,
    /// When a read was answered.
    pub reads: Vec<Instant>,
    /// Errors by SQLSTATE, and how often.
    pub errors: BTreeMap<String, usize>,
    /// What was found wrong at once: a stale read, another's rows …
    pub violations: Vec<String>,
}

/// A time without.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    pub lasted: Duration,
    pub ended: Instant,
}

/// How often each row was found in a server.
pub type Rows = HashMap<(usize, u64), u64>;

impl History {
    pub fn merge(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
        self.violations.extend(other.violations);
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
    }

    /// Checks the writes against what the surviving primary has.
    pub fn check(&self, rows: &Rows) -> Vec<String> {
        let mut violations = self.violations.clone();
        let mut known: HashMap<(usize, u64), ()> = HashMap::new();
        for write in &self.writes {
            let found: Vec<u64> =
                write.rows.iter().map(|row| rows.get(&(write.session, *row)).copied().unwrap_or(0)).collect();
            known.extend(write.rows.iter().map(|row| ((write.session, *row), ())));
            if let Some(fault) = fault(write.outcome, &found) {
                let Write { session, rows, how, .. } = write;
                violations.push(format!("session {session} rows {rows:?}: {fault} ({how})"));
            }
        }
        for row in rows.keys().filter(|row| !known.contains_key(row)) {
            violations.push(format!("row {row:?} was written by nobody"));
        }
        violations
    }

    /// Rows on a server that was fenced at `fenced` whose writes began after that.
    pub fn on_fenced(&self, rows: &Rows, fenced: Instant) -> Vec<String> {
        let late = self.writes.iter().filter(|write| write.began > fenced);
        late.filter(|write| write.rows.iter().any(|row| rows.contains_key(&(write.session, *row))))
            .map(|write| {
                format!("session {} rows {:?} were written to a fenced server", write.session, write.rows)
            })
            .collect()
    }

    /// The longest time without an acknowledged write, and without an answered read.
    pub fn gaps(&self) -> (Gap, Gap) {
        let written =
            self.writes.iter().filter(|write| write.outcome == Outcome::Done).map(|write| write.ended);
        (longest_gap(written.collect()), longest_gap(self.reads.clone()))
    }
}

fn fault(outcome: Outcome, found: &[u64]) -> Option<&'static str> {
    let all = found.iter().all(|count| *count == 1);
    let none = found.iter().all(|count| *count == 0);
    match outcome {
        _ if found.iter().any(|count| *count > 1) => Some("applied twice"),
        Outcome::Done if !all => Some("acknowledged and lost"),
        Outcome::Failed if !none => Some("refused and yet applied"),
        _ if !all && !none => Some("half of a transaction was applied"),
        _ => None,
    }
}

fn longest_gap(mut times: Vec<Instant>) -> Gap {
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| Gap { lasted: pair[1] - pair[0], ended: pair[1] });
    gaps.max_by_key(|gap| gap.lasted).unwrap_or(Gap { lasted: Duration::ZERO, ended: Instant::now() })
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |outcome| self.writes.iter().filter(|write| write.outcome == outcome).count();
        writeln!(
            f,
            "operations: {} writes ({} refused, {} in doubt), {} reads",
            self.writes.len(),
            count(Outcome::Failed),
            count(Outcome::InDoubt),
            self.reads.len()
        )?;
        let errors: Vec<String> = self.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
        write!(f, "errors: {}", if errors.is_empty() { "none".into() } else { errors.join(", ") })
    }
}

/// The checker checks itself before anybody relies on it: each fault has to be found.
pub fn self_test() {
    let now = Instant::now();
    let write =
        |outcome| Write { session: 1, rows: vec![1, 2], began: now, ended: now, outcome, how: String::new() };
    let rows = |counts: [u64; 2]| -> Rows {
        (1..).zip(counts).filter(|(_, count)| *count > 0).map(|(row, count)| ((1, row), count)).collect()
    };
    for (outcome, counts, clean) in [
        (Outcome::Done, [1, 1], true),
        (Outcome::Done, [1, 0], false),
        (Outcome::Done, [0, 0], false),
        (Outcome::Done, [2, 1], false),
        (Outcome::Failed, [0, 0], true),
        (Outcome::Failed, [1, 1], false),
        (Outcome::InDoubt, [0, 0], true),
        (Outcome::InDoubt, [1, 1], true),
        (Outcome::InDoubt, [0, 1], false),
        (Outcome::InDoubt, [2, 2], false),
    ] {
        let history = History { writes: vec![write(outcome)], ..History::default() };
        assert_eq!(history.check(&rows(counts)).is_empty(), clean, "{outcome:?} {counts:?}");
    }
    let foreign = History::default().check(&rows([1, 0]));
    assert_eq!(foreign.len(), 1, "a row of nobody");
}
