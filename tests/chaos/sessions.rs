//! Clients that write and read through the proxy and note what they are told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    client::{Answer, Client, Door, Refused},
    history::{History, Outcome, Write},
    servers::Engine,
};

/// An operation that takes longer hangs: `failover.hold` ends every wait well before.
const PATIENCE: Duration = Duration::from_secs(40);
const PACE: Duration = Duration::from_millis(15);

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    pub door: Door,
    pub stop: AtomicBool,
    /// Reads are asked for as eventual, whatever is expected of them.
    pub weaken: bool,
    /// The newest row of each session that was acknowledged.
    pub acknowledged: Vec<AtomicU64>,
    pub primaries: Arc<Primaries>,
}

/// The ports of the primary and of the one before it, which may be asked until it is gone.
#[derive(Debug)]
pub struct Primaries([AtomicU64; 2]);

impl Primaries {
    pub fn new(first: u16) -> Self {
        Self([AtomicU64::new(first.into()), AtomicU64::new(first.into())])
    }

    /// Before the server at `port` is promoted.
    pub fn change(&self, port: u16) {
        let former = self.0[0].swap(port.into(), Ordering::SeqCst);
        self.0[1].store(former, Ordering::SeqCst);
    }

    fn contain(&self, port: u64) -> bool {
        self.0.iter().any(|primary| primary.load(Ordering::SeqCst) == port)
    }
}

/// What a session expects of its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Session,
    Global,
    Monotonic,
}

impl Level {
    const fn label(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Global => "global",
            Self::Monotonic => "monotonic",
        }
    }
}

/// What a session does all its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    WritesAndReads,
    /// Never waits for a primary, as all who write soon do while there is none: without such sessions
    /// a gap of the writes would be one of the reads.
    Reads,
}

/// One client's life: writes of its own and reads, each checked on the spot.
pub struct Session {
    number: usize,
    level: Level,
    work: Work,
    shared: Arc<Shared>,
    random: StdRng,
    client: Option<Client>,
    /// How often it has logged in.
    connections: usize,
    /// The newest row of its own that was acknowledged on the connection that it has: what a
    /// session is to the proxy, which owes the next one nothing of it.
    own: u64,
    next_row: u64,
    /// The sum of all rows that a monotonic read saw last, and the port of the server that told it.
    seen: (u64, u64),
    history: History,
    last_error: String,
}

impl Session {
    pub fn new(number: usize, level: Level, work: Work, shared: Arc<Shared>, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed ^ (number as u64) << 32);
        Self {
            number,
            level,
            work,
            shared,
            random,
            client: None,
            connections: 0,
            own: 0,
            next_row: 1,
            seen: (0, 0),
            history: History::default(),
            last_error: String::new(),
        }
    }

    pub async fn run(mut self) -> History {
        while !self.shared.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(PACE.mul_f64(self.random.random::<f64>() * 2.0)).await;
            if self.client.as_ref().is_none_or(Client::is_closed) && !self.connect().await {
                continue;
            }
            match (self.work, self.random.random_range(0..10)) {
                (Work::WritesAndReads, 0..3) => self.insert().await,
                (Work::WritesAndReads, 3) => self.transaction().await,
                _ => self.read().await,
            }
        }
        self.history
    }

    async fn connect(&mut self) -> bool {
        let Ok(Ok(client)) = tokio::time::timeout(PATIENCE, Client::connect(&self.shared.door)).await else {
            self.count("no connection");
            return false;
        };
        self.client = Some(client);
        self.connections += 1;
        self.forget();
        let level = if self.shared.weaken { "eventual" } else { self.level.label() };
        let set = self.shared.door.engine.set("consistency", level);
        let asked = self.ask(&set).await.is_ok();
        if !asked {
            self.client = None;
        }
        asked
    }

    /// A new session of a client has seen and written nothing yet.
    fn forget(&mut self) {
        (self.seen, self.own) = ((0, 0), 0);
    }

    async fn insert(&mut self) {
        let row = self.take_row();
        let began = Instant::now();
        let result = self.ask(&format!("INSERT INTO log VALUES ({}, {row})", self.number)).await;
        let outcome = self.outcome(result.err());
        self.note(vec![row], began, outcome, "insert");
    }

    /// Two rows in one transaction, or none; some are rolled back by their client.
    async fn transaction(&mut self) {
        let rows = vec![self.take_row(), self.take_row()];
        let began = Instant::now();
        let mut steps = vec!["BEGIN".to_owned()];
        steps.extend(rows.iter().map(|row| format!("INSERT INTO log VALUES ({}, {row})", self.number)));
        let reads = self.random.random_bool(0.3);
        for (at, step) in steps.into_iter().enumerate() {
            if reads && at == 1 {
                // On a replica: the transaction moves to the primary with the first row.
                self.read().await;
            }
            if let Err(error) = self.ask(&step).await {
                // Nothing is committed before COMMIT is sent, whatever the error says.
                self.outcome(Some(error));
                let _ = self.ask("ROLLBACK").await;
                return self.note(rows, began, Outcome::Failed, &step);
            }
        }
        if self.random.random_bool(0.1) {
            let _ = self.ask("ROLLBACK").await;
            return self.note(rows, began, Outcome::Failed, "rolled back");
        }
        let result = self.ask("COMMIT").await;
        let outcome = self.outcome(result.err());
        self.note(rows, began, outcome, "commit");
        if outcome != Outcome::Done {
            let _ = self.ask("ROLLBACK").await;
        }
    }

    async fn read(&mut self) {
        let nonce: u32 = self.random.random();
        let acknowledged = self.acknowledged();
        let sql = format!(
            "SELECT {nonce}, {}, session, max(entry), sum(count(*)) OVER () FROM log GROUP BY session",
            self.shared.door.engine.port()
        );
        match self.ask(&sql).await {
            Ok(rows) => {
                self.history.reads.push(Instant::now());
                let known = self.history.violations.len();
                self.judge(nonce, &rows, &acknowledged);
                if self.history.violations.len() > known {
                    self.ask_why().await;
                }
            }
            Err(error) => drop(self.outcome(Some(error))),
        }
    }

    /// The newest row of each session that was acknowledged by now.
    fn acknowledged(&self) -> Vec<u64> {
        self.shared.acknowledged.iter().map(|newest| newest.load(Ordering::SeqCst)).collect()
    }

    /// Of those, what a read asked now has to see.
    fn owed(&self, acknowledged: &[u64]) -> Vec<u64> {
        match self.level {
            Level::Global => acknowledged.to_vec(),
            Level::Session | Level::Monotonic => {
                let mut floors = vec![0; acknowledged.len()];
                floors[self.number] = self.own;
                floors
            }
        }
    }

    fn judge(&mut self, nonce: u32, rows: &[Vec<String>], acknowledged: &[u64]) {
        let number = |text: Option<&String>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let mut newest = vec![0; acknowledged.len()];
        let (mut total, mut port) = (0, 0);
        for row in rows {
            if number(row.first()) != u64::from(nonce) {
                self.violate(format!("was answered with another's rows: {row:?}, not {nonce}"));
            }
            port = number(row.get(1));
            total = number(row.get(4));
            if let Some(slot) = newest.get_mut(number(row.get(2)) as usize) {
                *slot = number(row.get(3));
            }
        }
        for (session, floor) in self.owed(acknowledged).into_iter().enumerate() {
            if newest[session] < floor {
                self.violate(format!(
                    "{} read of {port} saw row {} of session {session}, {floor} was acknowledged before",
                    self.level.label(),
                    newest[session],
                ));
            }
        }
        if self.level == Level::Monotonic {
            let has_all = newest.iter().zip(acknowledged).all(|(newest, floor)| newest >= floor);
            self.judge_order(total, port, has_all);
        }
    }

    /// A replica shows a commit as soon as it has it, the primary when its synchronous wait is
    /// over: a step from one to the other may go back (hard case 19), but only by rows that nobody
    /// was told of yet.
    fn judge_order(&mut self, total: u64, port: u64, has_all_acknowledged: bool) {
        let (before, from) = std::mem::replace(&mut self.seen, (total, port));
        if before <= total {
            return;
        }
        if from != port && self.shared.primaries.contain(port) && has_all_acknowledged {
            self.count("step back to a primary that waited");
        } else {
            self.violate(format!("a monotonic read of {port} saw {total} rows after {before} on {from}"));
        }
    }

    /// What the proxy says of the read that was answered wrongly.
    async fn ask_why(&mut self) {
        for setting in ["route", "position"] {
            let question = self.shared.door.engine.show(setting);
            let answer = match self.ask(&question).await {
                Ok(rows) => format!("{rows:?}"),
                Err(error) => format!("{error:?}"),
            };
            let at = humantime::format_rfc3339_millis(SystemTime::now());
            self.violate(format!("at {at}, connection {}: {question} says {answer}", self.connections));
        }
    }

    fn violate(&mut self, what: String) {
        self.history.violations.push(format!("session {}: {what}", self.number));
    }

    fn take_row(&mut self) -> u64 {
        self.next_row += 1;
        self.next_row - 1
    }

    fn note(&mut self, rows: Vec<u64>, began: Instant, outcome: Outcome, step: &str) {
        if outcome == Outcome::Done {
            let newest = rows.last().copied().unwrap_or(0);
            self.own = self.own.max(newest);
            self.shared.acknowledged[self.number].fetch_max(newest, Ordering::SeqCst);
        }
        let how = format!("{step}, last error {}", self.last_error);
        let write = Write { session: self.number, rows, began, ended: Instant::now(), outcome, how };
        self.history.writes.push(write);
    }

    async fn ask(&mut self, sql: &str) -> Result<Answer, Refused> {
        let Some(client) = &mut self.client else { return Err(Refused::closed("it was closed before")) };
        let answer = match tokio::time::timeout(PATIENCE, client.ask(sql)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.violate(format!("no answer within {PATIENCE:?} to {sql}"));
                Err(Refused::closed("no answer"))
            }
        };
        if answer.as_ref().is_err_and(|refused| refused.code == "closed") {
            self.client = None;
        }
        answer
    }

    /// What an answer says of a write.
    fn outcome(&mut self, error: Option<Refused>) -> Outcome {
        let Some(refused) = error else {
            self.last_error.clear();
            return Outcome::Done;
        };
        self.count(&refused.code);
        self.last_error = format!("{} {}", refused.code, refused.message);
        refused.outcome()
    }

    fn count(&mut self, code: &str) {
        *self.history.errors.entry(code.to_owned()).or_default() += 1;
    }
}

/// Read-your-writes ends with the connection; `global` does not.
pub fn self_test() {
    let shared = Arc::new(Shared {
        door: Door { engine: Engine::Postgres, port: 0 },
        stop: AtomicBool::new(false),
        weaken: false,
        acknowledged: vec![AtomicU64::new(7), AtomicU64::new(9)],
        primaries: Arc::new(Primaries::new(1)),
    });
    for (level, before, after) in [
        (Level::Session, [0, 5], [0, 0]),
        (Level::Monotonic, [0, 5], [0, 0]),
        (Level::Global, [7, 9], [7, 9]),
    ] {
        let mut session = Session::new(1, level, Work::WritesAndReads, shared.clone(), 0);
        session.own = 5;
        let acknowledged = session.acknowledged();
        assert_eq!(session.owed(&acknowledged), before, "{level:?}");
        session.forget();
        assert_eq!(session.owed(&acknowledged), after, "{level:?} on a new connection");
    }
    shared.primaries.change(2);
    shared.primaries.change(3);
    // From a replica, 1, to a former primary and to this one, and within one.
    for (from, port, has_all, allowed) in [
        (1, 2, true, true),
        (1, 3, true, true),
        (1, 3, false, false),
        (3, 1, true, false),
        (1, 1, true, false),
        (3, 3, true, false),
    ] {
        let mut session = Session::new(1, Level::Monotonic, Work::WritesAndReads, shared.clone(), 0);
        session.judge_order(8, from, true);
        session.judge_order(7, port, has_all);
        assert_eq!(session.history.violations.is_empty(), allowed, "{from} {port} {has_all}");
    }
}
