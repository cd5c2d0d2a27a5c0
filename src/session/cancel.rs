//! Cancelling what runs elsewhere: keys clients are given, and what they stand for just now.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rand::{Rng, TryRngCore, rngs::OsRng};
use subtle::ConstantTimeEq;

use crate::sql::effects::Ends;

/// What names a connection in a cancel request.
#[derive(Clone, Debug, Eq)]
pub struct CancelKey {
    pub process: u32,
    /// Random; 4 bytes, or 32 where the protocol has room for them.
    pub secret: Box<[u8]>,
}

impl PartialEq for CancelKey {
    fn eq(&self, other: &Self) -> bool {
        self.process == other.process && bool::from(self.secret.ct_eq(&other.secret))
    }
}

impl Hash for CancelKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.process.hash(state);
    }
}

/// The server connection a statement runs on, as a cancel request has to name it.
#[derive(Debug)]
pub struct CancelTarget {
    pub address: Arc<str>,
    pub key: CancelKey,
}

/// What others may want of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// End at the next moment between transactions.
    Drain = 1,
    /// End now.
    Kill = 2,
    /// Give up waiting for a connection or a node.
    Cancel = 4,
    /// The topology has changed: look whether the connection that is held may be used.
    Look = 8,
    /// Another session waits for a connection: give up the one that is only kept softly.
    Yield = 16,
    /// Limits have changed: look how long the client may still be silent.
    Limits = 32,
}

/// What a session is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Its client has nothing running.
    Idle = 0,
    /// A statement of its client is being answered.
    Active = 1,
    /// A transaction is open on a server.
    InTransaction = 2,
}

/// One session as others see it.
pub struct Entry {
    pub id: u64,
    /// What its client knows as the process (MySQL: connection) number.
    pub process: u32,
    pub user: Arc<str>,
    /// As pools know it.
    pub database: Arc<str>,
    /// What it works in, where pools are of all databases: for people to look at.
    schema: Mutex<Option<Arc<str>>>,
    pub peer: String,
    pub since: SystemTime,
    calls: AtomicU8,
    activity: AtomicU8,
    waker: AtomicWaker,
    running: Mutex<Running>,
    /// A statement or transaction has been waiting for a connection since, in microseconds since
    /// `started`; 0: none.
    waiting: AtomicU64,
    started: Instant,
}

/// The server connection a session's statement runs on.
#[derive(Default)]
struct Running {
    at: Option<Arc<CancelTarget>>,
    /// Cancel requests under way.
    cancels: usize,
    /// What was asked to end there since the statement began.
    asked: Option<Ends>,
}

/// A cancel request under way: over when it is dropped.
pub struct Cancelling {
    pub target: Arc<CancelTarget>,
    entry: Arc<Entry>,
}

impl Drop for Cancelling {
    fn drop(&mut self) {
        self.entry.running.lock().cancels -= 1;
        self.entry.call(Call::Look);
    }
}

impl Entry {
    pub fn set_schema(&self, name: &str) {
        *self.schema.lock() = Some(name.into());
    }

    /// The database that it works in.
    pub fn shown_database(&self) -> Arc<str> {
        self.schema.lock().clone().unwrap_or_else(|| self.database.clone())
    }

    /// Asks something of the session and wakes it.
    pub fn call(&self, call: Call) {
        self.calls.fetch_or(call as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Whether `call` was made; forgets it.
    pub fn take(&self, call: Call) -> bool {
        self.is_called(call) && self.calls.fetch_and(!(call as u8), Ordering::AcqRel) & call as u8 != 0
    }

    pub fn is_called(&self, call: Call) -> bool {
        self.calls.load(Ordering::Relaxed) & call as u8 != 0
    }

    /// Ready when any of `calls` was made.
    pub fn poll_called(&self, context: &mut Context<'_>, calls: &[Call]) -> Poll<()> {
        let wanted = calls.iter().fold(0, |all, call| all | *call as u8);
        if self.calls.load(Ordering::Acquire) & wanted != 0 {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        if self.calls.load(Ordering::Acquire) & wanted != 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Has the task woken by the next call, whatever it is.
    pub fn register(&self, context: &Context<'_>) {
        self.waker.register(context.waker());
    }

    /// Resolves when any of `calls` was made.
    pub async fn called(&self, calls: &[Call]) {
        std::future::poll_fn(|context| self.poll_called(context, calls)).await;
    }

    /// Sequentially consistent, as is PAUSE: whoever sets this and then finds no pause is waited
    /// for.
    pub fn set_activity(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::SeqCst);
    }

    pub fn activity(&self) -> Activity {
        match self.activity.load(Ordering::SeqCst) {
            0 => Activity::Idle,
            1 => Activity::Active,
            _ => Activity::InTransaction,
        }
    }

    /// The server connection the session's statement runs on.
    pub fn target(&self) -> Option<Arc<CancelTarget>> {
        self.running.lock().at.clone()
    }

    /// A statement begins on this connection.
    pub fn runs_at(&self, target: Arc<CancelTarget>) {
        let mut running = self.running.lock();
        running.at = Some(target);
        running.asked = None;
    }

    /// It has ended. What a cancel request asked to end meanwhile may still do so: the connection must
    /// not serve anybody else until that is over.
    pub fn runs_no_more(&self) -> Option<Ends> {
        let mut running = self.running.lock();
        running.at = None;
        running.asked.take()
    }

    pub fn is_being_cancelled(&self) -> bool {
        self.running.lock().cancels > 0
    }

    /// Where the session's statement runs, for a cancel request that is about to be sent there.
    pub fn begin_cancel(self: &Arc<Self>, ends: Ends) -> Option<Cancelling> {
        let mut running = self.running.lock();
        let target = running.at.clone()?;
        running.cancels += 1;
        running.asked = running.asked.max(Some(ends));
        Some(Cancelling { target, entry: self.clone() })
    }

    pub fn set_waiting(&self, waiting: bool) {
        let micros = if waiting { self.started.elapsed().as_micros().max(1) as u64 } else { 0 };
        self.waiting.store(micros, Ordering::Relaxed);
    }

    /// How long the session has been waiting for a server connection, in seconds.
    pub fn waiting_seconds(&self) -> Option<f64> {
        let since = self.waiting.load(Ordering::Relaxed);
        (since > 0).then(|| (self.started.elapsed().as_micros() as f64 - since as f64).max(0.0) / 1e6)
    }

    pub fn is_running(&self) -> bool {
        self.running.lock().at.is_some()
    }
}

/// The sessions of one cluster, by number and by cancel key.
#[derive(Default)]
pub struct Registry {
    sessions: Mutex<HashMap<u32, (CancelKey, Weak<Entry>)>>,
    per_user: Mutex<HashMap<Arc<str>, usize>>,
    count: AtomicUsize,
    next: AtomicU64,
}

/// A session's place in the registry; dropping it gives the place up.
pub struct Registered {
    pub entry: Arc<Entry>,
    pub key: CancelKey,
    registry: Arc<Registry>,
}

impl Registry {
    /// Enters a session, under a key that nobody can guess. `number`: it has one already.
    pub fn enter(
        self: &Arc<Self>,
        user: &Arc<str>,
        database: &Arc<str>,
        peer: String,
        number: Option<u32>,
        secret_length: usize,
    ) -> Registered {
        let mut secret = vec![0; secret_length].into_boxed_slice();
        OsRng.try_fill_bytes(&mut secret).expect("the system's random numbers never run out");
        let mut sessions = self.sessions.lock();
        let process = loop {
            if let Some(number) = number {
                // The client was told already; the protocol gives every number out once.
                break number;
            }
            // Positive, as a process id is to clients that read it as a signed number.
            let process = rand::rng().random_range(1..=i32::MAX as u32);
            if !sessions.contains_key(&process) {
                break process;
            }
        };
        let entry = Arc::new(Entry {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            process,
            user: user.clone(),
            database: database.clone(),
            schema: Mutex::default(),
            peer,
            since: SystemTime::now(),
            calls: AtomicU8::new(0),
            activity: AtomicU8::new(Activity::Idle as u8),
            waker: AtomicWaker::new(),
            running: Mutex::default(),
            waiting: AtomicU64::new(0),
            started: Instant::now(),
        });
        let key = CancelKey { process, secret };
        sessions.insert(process, (key.clone(), Arc::downgrade(&entry)));
        drop(sessions);
        *self.per_user.lock().entry(user.clone()).or_default() += 1;
        self.count.fetch_add(1, Ordering::Relaxed);
        Registered { entry, key, registry: self.clone() }
    }

    /// The session that a cancel request names, if it knows the secret.
    pub fn find(&self, key: &CancelKey) -> Option<Arc<Entry>> {
        let sessions = self.sessions.lock();
        let (known, entry) = sessions.get(&key.process)?;
        (known == key).then(|| entry.upgrade())?
    }

    /// The session of a process number, for KILL by somebody who was let in.
    pub fn by_process(&self, process: u32) -> Option<Arc<Entry>> {
        self.sessions.lock().get(&process)?.1.upgrade()
    }

    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.sessions.lock().values().filter_map(|(_, entry)| entry.upgrade()).collect()
    }

    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn of_user(&self, user: &str) -> usize {
        self.per_user.lock().get(user).copied().unwrap_or(0)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.sessions.lock().remove(&self.key.process);
        let mut per_user = self.registry.per_user.lock();
        if let Some(count) = per_user.get_mut(&self.entry.user) {
            *count -= 1;
            if *count == 0 {
                per_user.remove(&self.entry.user);
            }
        }
        self.registry.count.fetch_sub(1, Ordering::Relaxed);
    }
}
