//! Prepared statements: what a client has prepared, and what a server connection has of it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::{HashMap, HashMapExt};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::frame;
use crate::sql::Intent;

/// A prepared statement as a client defined it.
#[derive(Debug)]
pub struct Statement {
    /// A Parse message's body behind the name: text, NUL, number of parameter types, types; or a
    /// whole `PREPARE` statement.
    pub body: Box<[u8]>,
    pub origin: Origin,
    /// Hash of `body`, and of `alone`.
    pub key: u128,
    /// Not 0 for a statement that no other session shares.
    alone: u64,
    /// Of the statement behind it.
    pub intent: Arc<Intent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A Parse message: known to servers by a name of ours.
    Parse,
    /// `PREPARE name AS …`: known to servers by the client's own name, which its EXECUTE uses.
    Sql,
}

impl Statement {
    pub fn new(body: &[u8], origin: Origin, intent: Arc<Intent>) -> Self {
        Self { body: body.into(), origin, key: Self::key_of(body, origin), alone: 0, intent }
    }

    /// One that no other session shares.
    pub fn alone(body: &[u8], intent: Arc<Intent>) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self::alone_as(LAST.fetch_add(1, Ordering::Relaxed) + 1, body, intent)
    }

    fn alone_as(alone: u64, body: &[u8], intent: Arc<Intent>) -> Self {
        // Seeds of their own, beside those of the shared.
        let key = xxh3_128_with_seed(body, alone.wrapping_mul(2) + Origin::Parse as u64 + 2);
        Self { body: body.into(), origin: Origin::Parse, key, alone, intent }
    }

    /// Whether a text holds a time that the server reads off its clock once, when it prepares the statement
    /// (`'now'`, `'today'`): another session's would be of another time.
    pub fn reads_clock(text: &[u8]) -> bool {
        const WORDS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
        text.split(|byte| *byte == b'\'').skip(1).any(|behind_quote| {
            let behind_quote = behind_quote.trim_ascii_start();
            WORDS.iter().any(|word| {
                behind_quote.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
            })
        })
    }

    /// The same, of another intent or with types: as much alone as this one.
    pub fn with(&self, body: &[u8], intent: Arc<Intent>) -> Self {
        match self.alone {
            0 => Self::new(body, self.origin, intent),
            alone => Self::alone_as(alone, body, intent),
        }
    }

    pub fn is_shared(&self) -> bool {
        self.alone == 0
    }

    /// Equal for equal definitions.
    pub fn key_of(body: &[u8], origin: Origin) -> u128 {
        xxh3_128_with_seed(body, origin as u64)
    }

    /// Length of a Parse body: its text's end and all its parameter types.
    pub fn is_whole_parse(body: &[u8]) -> bool {
        let Some((_, rest)) = frame::split_cstring(body) else { return false };
        let Some((count, types)) = rest.split_first_chunk::<2>() else { return false };
        types.len() == usize::from(u16::from_be_bytes(*count)) * 4
    }
}

/// What a client has prepared, by its names.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    /// Definitions and removals that a server has not confirmed yet, in the order of the messages.
    pending: VecDeque<Change>,
    /// What came true of it in the present attempt at a request.
    confirmed: Vec<Change>,
    /// Shapes of the results that the client was told for its names: a driver that was told once
    /// decodes by it for ever (hard case 11).
    told: HashMap<Box<[u8]>, Shape>,
    /// That of the classifier and catalog by which the named ones were judged last.
    generation: u64,
    unnamed: Option<Unnamed>,
}

/// A name, and what it is to mean; `None`: nothing any more.
type Change = (Box<[u8]>, Option<Arc<Statement>>);

/// The unnamed statement. Its buffer is reused: drivers define it anew with every execution.
#[derive(Debug)]
struct Unnamed {
    body: Vec<u8>,
    key: u128,
    intent: Arc<Intent>,
    defined: bool,
}

/// A longer buffer is not kept for an idle client.
const UNNAMED_KEPT: usize = 4096;

/// A hash of the names and types of a result's columns.
pub type Shape = u64;

/// Reads the shape off a RowDescription's body; `None` where it makes no sense.
pub fn shape(body: &[u8]) -> Option<Shape> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (name, behind) = frame::split_cstring(rest)?;
        // Table, column number, type, length, modifier, format.
        let (numbers, behind) = behind.split_first_chunk::<18>()?;
        hasher.update(name);
        hasher.update(&[0]);
        hasher.update(&numbers[6..10]);
        rest = behind;
    }
    Some(hasher.digest())
}

/// The shape of a statement without result.
pub const NO_RESULT: Shape = 0;

/// How a client's name resolves.
pub enum Resolved<'a> {
    Named(&'a Arc<Statement>),
    Unnamed { key: u128, body: &'a [u8], intent: &'a Arc<Intent> },
}

impl ClientStatements {
    /// What a name means to a message that stands behind all that has arrived.
    pub fn resolve(&self, name: &[u8]) -> Option<Resolved<'_>> {
        if name.is_empty() {
            let unnamed = self.unnamed.as_ref().filter(|unnamed| unnamed.defined)?;
            return Some(Resolved::Unnamed {
                key: unnamed.key,
                body: &unnamed.body,
                intent: &unnamed.intent,
            });
        }
        for (other, statement) in self.pending.iter().rev() {
            if **other == *name {
                return statement.as_ref().map(Resolved::Named);
            }
        }
        self.named.get(name).map(Resolved::Named)
    }

    /// A named statement as servers have confirmed it.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    /// Judges the statements anew when what is known has changed since. `judge`: a text and what it was taken
    /// for → what it is taken for from now on; `keep`: a named statement and its text, as that.
    pub fn renew(
        &mut self,
        generation: u64,
        judge: impl Fn(&[u8], &Arc<Intent>, Origin) -> Arc<Intent>,
        keep: impl Fn(&[u8], &Statement, Arc<Intent>) -> Arc<Statement>,
    ) {
        if self.generation == generation {
            return;
        }
        self.generation = generation;
        for statement in self.named.values_mut() {
            let text = text_of(&statement.body);
            let intent = judge(text, &statement.intent, statement.origin);
            if !Arc::ptr_eq(&intent, &statement.intent) {
                *statement = keep(text, statement, intent);
            }
        }
        if let Some(unnamed) = self.unnamed.as_mut().filter(|unnamed| unnamed.defined) {
            unnamed.intent = judge(text_of(&unnamed.body), &unnamed.intent, Origin::Parse);
        }
    }

    /// The names that PREPARE defined.
    pub fn sql_names(&self) -> impl Iterator<Item = &[u8]> {
        self.named.iter().filter(|(_, statement)| statement.origin == Origin::Sql).map(|(name, _)| &**name)
    }

    /// Defines the unnamed statement; returns its key.
    pub fn define_unnamed(&mut self, body: &[u8], intent: Arc<Intent>) -> u128 {
        let key = xxh3_128_with_seed(body, Origin::Parse as u64);
        match &mut self.unnamed {
            Some(unnamed) => {
                if unnamed.key != key {
                    unnamed.body.clear();
                    unnamed.body.extend_from_slice(body);
                    unnamed.key = key;
                }
                unnamed.intent = intent;
                unnamed.defined = true;
            }
            None => self.unnamed = Some(Unnamed { body: body.to_vec(), key, intent, defined: true }),
        }
        key
    }

    /// The server drops the unnamed statement at every simple query and failed Parse.
    pub fn drop_unnamed(&mut self) {
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.defined = false;
            if unnamed.body.capacity() > UNNAMED_KEPT {
                self.unnamed = None;
            }
        }
    }

    /// A Parse (with a statement) or Close that was sent and is not answered yet.
    pub fn expect(&mut self, name: &[u8], statement: Option<Arc<Statement>>) {
        self.pending.push_back((name.into(), statement));
    }

    /// The oldest expected change came true.
    pub fn confirm(&mut self) {
        let Some(change) = self.pending.pop_front() else { return };
        match &change {
            (name, Some(statement)) => {
                self.named.insert(name.clone(), statement.clone());
            }
            (name, None) => {
                self.named.remove(name);
                self.told.remove(name);
            }
        }
        self.confirmed.push(change);
    }

    /// The request is sent for the first time or again: what an attempt before this one confirmed will
    /// be confirmed once more.
    pub fn begin_attempt(&mut self) {
        for change in self.confirmed.drain(..).rev() {
            self.pending.push_front(change);
        }
    }

    /// The request has been answered.
    pub fn settle(&mut self) {
        self.confirmed.clear();
    }

    /// The client was told the parameter types of the statement `key` under `name`: from now on they
    /// belong to it, whatever another server would infer (hard case 11). `types`: the body of a
    /// ParameterDescription. Returns the statement's new key.
    pub fn fix_types(&mut self, name: &[u8], key: u128, types: &[u8]) -> Option<u128> {
        let statement = self.named.get_mut(name).filter(|statement| statement.key == key)?;
        let (text, declared) = frame::split_cstring(&statement.body)?;
        if declared == types || statement.origin != Origin::Parse {
            return None;
        }
        let body = [text, &[0], types].concat();
        if !Statement::is_whole_parse(&body) {
            return None;
        }
        *statement = Arc::new(statement.with(&body, statement.intent.clone()));
        Some(statement.key)
    }

    /// The client was told what a statement's result looks like.
    pub fn tell(&mut self, name: &[u8], shape: Shape) {
        self.told.insert(name.into(), shape);
    }

    pub fn told(&self, name: &[u8]) -> Option<Shape> {
        if self.told.is_empty() { None } else { self.told.get(name).copied() }
    }

    /// An error: what was expected behind it will not happen.
    pub fn forget_expected(&mut self) {
        self.pending.clear();
        self.confirmed.clear();
    }

    pub fn define(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), statement);
    }

    /// Removes a statement; `false` if there was none.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        self.told.remove(name);
        self.named.remove(name).is_some()
    }

    pub fn clear(&mut self) {
        self.named = HashMap::new();
        self.told = HashMap::new();
        self.pending.clear();
        self.confirmed.clear();
        self.unnamed = None;
    }
}

/// The text of a body, which is all of it for a PREPARE.
fn text_of(body: &[u8]) -> &[u8] {
    frame::split_cstring(body).map_or(body, |(text, _)| text)
}

/// What a server has under a client's own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Of the statement.
    pub key: u128,
    /// Of what its plan depended on when it was prepared.
    pub plan_key: u64,
}

/// What no client has prepared.
const NOBODYS: Own = Own { key: u128::MAX, plan_key: 0 };

/// What a server connection has prepared for its sessions.
#[derive(Debug)]
pub struct ServerStatements {
    /// By key of statement and of what its plan depends on; the number makes its name.
    shared: HashMap<u128, Shared>,
    capacity: usize,
    next: u32,
    clock: u64,
    /// Statements under clients' own names (SQL PREPARE).
    own: HashMap<Box<[u8]>, Own>,
    /// Key of the unnamed statement, if there is one.
    pub unnamed: Option<u128>,
    /// How often something was defined anew: in the database so far, and on this connection, where it counts
    /// before it is committed.
    definitions: u64,
    own_definitions: u64,
}

#[derive(Clone, Copy, Debug)]
struct Shared {
    number: u32,
    used: u64,
    /// What had been defined by then.
    definitions: u64,
    /// What it returns, once that is known. The server holds it to that.
    shape: Option<Shape>,
}

impl ServerStatements {
    /// `capacity`: how many are kept, at least 1.
    pub fn new(capacity: usize) -> Self {
        Self {
            shared: HashMap::new(),
            capacity,
            next: 0,
            clock: 0,
            own: HashMap::new(),
            unnamed: None,
            definitions: 0,
            own_definitions: 0,
        }
    }

    /// The number of a statement that is prepared.
    pub fn find(&mut self, key: u128) -> Option<u32> {
        self.clock += 1;
        let entry = self.shared.get_mut(&key)?;
        entry.used = self.clock;
        Some(entry.number)
    }

    /// So much has been defined in the database when the next request is sent.
    pub fn know_definitions(&mut self, count: u64) {
        self.definitions = count;
    }

    /// Something was defined here, in a transaction that may be open still.
    pub fn define(&mut self) {
        self.own_definitions += 1;
    }

    /// All that was defined so far, as far as this connection shows it.
    fn defined(&self) -> u64 {
        self.definitions + self.own_definitions
    }

    /// Whether a statement was prepared before something was defined: to whoever prepares it now it is to be
    /// what it is now.
    pub fn is_outdated(&self, key: u128) -> bool {
        self.shared.get(&key).is_some_and(|entry| entry.definitions < self.defined())
    }

    /// Makes room and takes a number for a statement about to be prepared. The second value is
    /// one that has to be closed for it.
    pub fn insert(&mut self, key: u128) -> (u32, Option<u32>) {
        let evicted = if self.shared.len() >= self.capacity { self.evict() } else { None };
        self.clock += 1;
        self.next = self.next.wrapping_add(1);
        let definitions = self.defined();
        self.shared.insert(key, Shared { number: self.next, used: self.clock, definitions, shape: None });
        (self.next, evicted)
    }

    fn evict(&mut self) -> Option<u32> {
        let (&key, _) = self.shared.iter().min_by_key(|(_, entry)| entry.used)?;
        self.shared.remove(&key).map(|entry| entry.number)
    }

    pub fn shape(&self, key: u128) -> Option<Shape> {
        self.shared.get(&key)?.shape
    }

    /// Whether its shape is known, and no definition has come since it was prepared.
    pub fn has_current_shape(&self, key: u128) -> bool {
        let current = |entry: &Shared| entry.shape.is_some() && entry.definitions >= self.defined();
        self.shared.get(&key).is_some_and(current)
    }

    pub fn set_shape(&mut self, key: u128, shape: Shape) {
        if let Some(entry) = self.shared.get_mut(&key) {
            entry.shape = Some(shape);
        }
    }

    /// What is prepared for `from` is the statement `to` as well, and known by that key from now on.
    pub fn rename(&mut self, from: u128, to: u128) {
        if !self.shared.contains_key(&to)
            && let Some(entry) = self.shared.remove(&from)
        {
            self.shared.insert(to, entry);
        }
    }

    /// Forgets a statement that the server still has: its number is to be closed.
    pub fn retire(&mut self, key: u128) -> Option<u32> {
        self.shared.remove(&key).map(|entry| entry.number)
    }

    /// A statement was not prepared after all, or is gone.
    pub fn remove(&mut self, key: u128) {
        self.shared.remove(&key);
    }

    /// The statement that the server has under a client's own name.
    pub fn own(&self, name: &[u8]) -> Option<Own> {
        self.own.get(name).copied()
    }

    pub fn set_own(&mut self, name: &[u8], own: Own) {
        self.own.insert(name.into(), own);
    }

    pub fn remove_own(&mut self, name: &[u8]) {
        self.own.remove(name);
    }

    pub fn own_names(&self) -> impl Iterator<Item = &[u8]> {
        self.own.keys().map(|name| &**name)
    }

    /// What the server has under a client's own name is not known: it is closed before the name is used
    /// again.
    pub fn doubt_own(&mut self, name: &[u8]) {
        self.own.insert(name.into(), NOBODYS);
    }

    /// Of all that is prepared it is not known whether the server still has it. Returns the numbers that
    /// are to be closed.
    pub fn doubt(&mut self) -> Vec<u32> {
        self.own.values_mut().for_each(|own| *own = NOBODYS);
        self.unnamed = None;
        self.shared.drain().map(|(_, entry)| entry.number).collect()
    }

    /// DEALLOCATE ALL, DISCARD ALL.
    pub fn clear(&mut self) {
        self.shared.clear();
        self.own.clear();
        self.unnamed = None;
    }
}

/// The name a shared statement has on a server. Clients may choose any name, so ours carry a
/// prefix that no client uses by accident; one that does only meets the server's own error.
pub fn put_server_name(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(b"pointsman_");
    let mut digits = [0u8; 10];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.push(0);
}
