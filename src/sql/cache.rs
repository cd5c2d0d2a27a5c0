//! Bounded cache: statement text → intent.
//!
//! Keyed by the text with its literals stripped (`lexer::strip`), or by the exact text where the
//! meaning of a statement may lie in its literals; and by the database, its catalog's version and
//! the modes it was read in. A hit costs one pass over the text, one look-up and no allocation.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use quick_cache::{Weighter, sync::Cache};
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::{
    Access, Dialect, Effect, Intent, LexModes, Reason, Tables,
    catalog::{Catalog, FunctionRules},
    classify,
    lexer::strip::{strip, stripped},
};

/// Default bound of the cache, in bytes of intents.
pub const DEFAULT_CAPACITY: u64 = 16 * 1024 * 1024;
/// Texts that a replica refused and that are remembered at most; the oldest goes first.
pub const MAX_LEARNED: usize = 1024;
/// How long a refusal is remembered: what made the statement write may be gone.
pub const LEARNED_FOR: Duration = Duration::from_secs(600);
/// Longer texts are classified every time rather than hashed for the cache.
const MAX_CACHED_TEXT: usize = 4 * 1024 * 1024;
/// Texts without literals that are kept for people to read, by fingerprint, and their length in bytes.
const MAX_SHAPES: usize = 2048;
const MAX_SHAPE: usize = 300;
/// What an entry is expected to weigh, to size the cache's tables.
const TYPICAL_WEIGHT: u64 = 512;

/// Classifies statements and remembers what it found. Shared by all sessions of a cluster.
#[derive(Debug)]
pub struct Classifier {
    dialect: Dialect,
    rules: RwLock<Arc<FunctionRules>>,
    /// How often the rules have changed.
    rulings: AtomicU64,
    cache: Cache<Key, Arc<Intent>, ByFootprint>,
    shapes: Cache<u64, Arc<str>>,
    learned: RwLock<HashMap<u128, Instant>>,
    /// Length of `learned`, so that the usual empty one costs no lock.
    learned_count: AtomicUsize,
    /// How often something was learned.
    learnings: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    parse_failures: AtomicU64,
}

/// Counters since the start, for `pointsman_statement_cache_total` and
/// `pointsman_parse_failures_total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub hits: u64,
    pub misses: u64,
    /// Misses whose text was not understood.
    pub parse_failures: u64,
    /// Entries in the cache now.
    pub entries: u64,
    /// Refusals remembered now.
    pub learned: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    text: u128,
    database: u64,
    catalog: u64,
    rulings: u64,
    exact: bool,
    modes: LexModes,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The text's hash is one already; equality compares all fields.
        state.write_u64(self.text as u64 ^ self.database.rotate_left(32) ^ self.catalog);
    }
}

#[derive(Clone, Debug)]
struct ByFootprint;

impl Weighter<Key, Arc<Intent>> for ByFootprint {
    fn weight(&self, _key: &Key, intent: &Arc<Intent>) -> u64 {
        footprint(intent)
    }
}

impl Classifier {
    /// `capacity` bounds the cache in bytes ([`DEFAULT_CAPACITY`]); 0 turns it off.
    pub fn new(dialect: Dialect, rules: FunctionRules, capacity: u64) -> Self {
        let items = usize::try_from(capacity / TYPICAL_WEIGHT).unwrap_or(usize::MAX);
        Self {
            dialect,
            rules: RwLock::new(Arc::new(rules)),
            rulings: AtomicU64::new(0),
            cache: Cache::with_weighter(items, capacity, ByFootprint),
            shapes: Cache::new(MAX_SHAPES),
            learned: RwLock::new(HashMap::new()),
            learned_count: AtomicUsize::new(0),
            learnings: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            parse_failures: AtomicU64::new(0),
        }
    }

    /// Judges by other rules from now on, also what was judged and what is prepared already.
    pub fn set_rules(&self, rules: FunctionRules) {
        *self.rules.write() = Arc::new(rules);
        // Behind the rules: who sees the number goes by them.
        self.rulings.fetch_add(1, Release);
    }

    /// What `text` does in `database` (any number that tells databases apart) by its `catalog`.
    ///
    /// A text that a replica refused lately ([`Self::learn`]) is a write.
    pub fn intent(
        &self,
        database: u64,
        catalog: &Catalog,
        modes: LexModes,
        text: &[u8],
        now: impl FnOnce() -> Instant,
    ) -> Arc<Intent> {
        let intent = self.look_up(database, catalog, modes, text);
        if intent.access == Access::Read
            && self.learned_count.load(Relaxed) > 0
            && self.is_learned(database, text, now())
        {
            return Arc::new(Intent { access: Access::Write, reason: Reason::Learned, ..(*intent).clone() });
        }
        intent
    }

    fn look_up(&self, database: u64, catalog: &Catalog, modes: LexModes, text: &[u8]) -> Arc<Intent> {
        if text.len() > MAX_CACHED_TEXT {
            return self.classify(catalog, modes, text);
        }
        let modes = modes.for_text(text);
        let stripped = stripped(text, self.dialect, modes);
        let hash = if stripped.exact { xxh3_128(text) } else { stripped.hash };
        let key = Key {
            text: hash,
            database,
            catalog: catalog.version,
            rulings: self.rulings.load(Acquire),
            exact: stripped.exact,
            modes,
        };
        if let Some(intent) = self.cache.get(&key) {
            self.hits.fetch_add(1, Relaxed);
            return intent;
        }
        let intent = self.classify(catalog, modes, text);
        self.cache.insert(key, Arc::clone(&intent));
        intent
    }

    fn classify(&self, catalog: &Catalog, modes: LexModes, text: &[u8]) -> Arc<Intent> {
        self.misses.fetch_add(1, Relaxed);
        let rules = self.rules.read().clone();
        let intent = classify(text, self.dialect, modes, catalog, &rules);
        if matches!(intent.reason, Reason::Unparsed | Reason::TooLong | Reason::Unreadable) {
            self.parse_failures.fetch_add(1, Relaxed);
        }
        self.keep_shape(modes, text, intent.fingerprint);
        Arc::new(intent)
    }

    /// Keeps what a fingerprint stands for. A text that the lexer is not sure of might show a part
    /// of a literal: it is not kept.
    fn keep_shape(&self, modes: LexModes, text: &[u8], fingerprint: u64) {
        if text.len() > MAX_CACHED_TEXT {
            return;
        }
        let modes = modes.for_text(text);
        if !modes.are_known() || !stripped(text, self.dialect, modes).scan.clean {
            return;
        }
        let mut shape = String::from_utf8_lossy(&strip(text, self.dialect, modes)).into_owned();
        if shape.len() > MAX_SHAPE {
            let end = (0..=MAX_SHAPE).rev().find(|at| shape.is_char_boundary(*at));
            shape.truncate(end.unwrap_or(0));
            shape.push('…');
        }
        self.shapes.insert(fingerprint, shape.into());
    }

    /// The text without its literals that a fingerprint stands for, if it is still known.
    pub fn shape(&self, fingerprint: u64) -> Option<Arc<str>> {
        self.shapes.get(&fingerprint)
    }

    /// Remembers that a replica refused this very text in this database because it writes.
    pub fn learn(&self, database: u64, text: &[u8], now: Instant) {
        let mut learned = self.learned.write();
        learned.retain(|_, until| *until > now);
        if learned.len() >= MAX_LEARNED
            && let Some(oldest) = learned.iter().min_by_key(|(_, until)| **until).map(|(&text, _)| text)
        {
            learned.remove(&oldest);
        }
        learned.insert(exact_key(database, text), now + LEARNED_FOR);
        self.learned_count.store(learned.len(), Relaxed);
        self.learnings.fetch_add(1, Relaxed);
    }

    /// Changes whenever a text may be judged otherwise than before by the catalog of this version.
    pub fn generation(&self, catalog: u64) -> u64 {
        let rulings = self.rulings.load(Acquire).rotate_left(32);
        catalog ^ self.learnings.load(Relaxed).rotate_left(48) ^ rulings
    }

    fn is_learned(&self, database: u64, text: &[u8], now: Instant) -> bool {
        let until = self.learned.read().get(&exact_key(database, text)).copied();
        let Some(until) = until else { return false };
        if until <= now {
            let mut learned = self.learned.write();
            learned.retain(|_, until| *until > now);
            self.learned_count.store(learned.len(), Relaxed);
        }
        until > now
    }

    pub fn counts(&self) -> Counts {
        Counts {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            parse_failures: self.parse_failures.load(Relaxed),
            entries: self.cache.len() as u64,
            learned: self.learned_count.load(Relaxed) as u64,
        }
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }
}

fn exact_key(database: u64, text: &[u8]) -> u128 {
    xxh3_128_with_seed(text, database)
}

/// Bytes that an intent holds, roughly.
fn footprint(intent: &Intent) -> u64 {
    let effects: usize = intent.effects.iter().map(effect_footprint).sum();
    let tables = match &intent.tables {
        Tables::All => 0,
        Tables::Some(names) => names.iter().map(|name| name.len() + size_of::<Box<str>>()).sum(),
    };
    (size_of::<Intent>() + size_of::<Key>() + effects + tables) as u64
}

fn effect_footprint(effect: &Effect) -> usize {
    let text = match effect {
        Effect::Set { name, value, statement, .. } => name.len() + value.len() + statement.len(),
        Effect::Prepare { name, statement, inner } => {
            name.len() + statement.len() + usize::try_from(footprint(inner)).unwrap_or(usize::MAX)
        }
        _ => 32,
    };
    size_of::<Effect>() + text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classifier() -> Classifier {
        Classifier::new(Dialect::Postgres, FunctionRules::default(), DEFAULT_CAPACITY)
    }

    const MODES: LexModes = LexModes::default_of(Dialect::Postgres);

    #[test]
    fn statements_that_differ_in_their_literals_share_an_entry() {
        let (classifier, catalog, now) = (classifier(), Catalog::empty(), Instant::now());

        let first =
            classifier.intent(1, &catalog, MODES, b"SELECT a FROM t WHERE id = 1 AND b = 'x'", || now);
        let second =
            classifier.intent(1, &catalog, MODES, b"SELECT a FROM t WHERE id = 22 AND b = 'it''s'", || now);

        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!((classifier.counts().hits, classifier.counts().misses), (1, 1));
    }

    #[test]
    fn the_text_of_a_fingerprint_has_no_literals() {
        let (classifier, catalog, now) = (classifier(), Catalog::empty(), Instant::now());
        let cases = [
            (
                "SELECT a FROM t WHERE b = 'hush' AND c IN (1, 2)",
                Some("SELECT a FROM t WHERE b = '' AND c IN (0)"),
            ),
            ("SET app.tenant = 'hush'", Some("SET app.tenant = ''")),
            ("ALTER ROLE r PASSWORD 'hush'", Some("ALTER ROLE r PASSWORD ''")),
            ("SELECT $x$hush$x$, E'hu\\'sh', 42 -- hush", Some("SELECT '', 0")),
            // Who knows where it ends.
            ("SELECT 'hush", None),
        ];
        for (text, shape) in cases {
            let intent = classifier.intent(1, &catalog, MODES, text.as_bytes(), || now);
            let kept = classifier.shape(intent.fingerprint);
            assert_eq!(kept.as_deref().map(str::trim_end), shape, "{text}");
        }
        let unreadable = LexModes { unreadable: true, ..MODES };
        let intent = classifier.intent(1, &catalog, unreadable, "SELECT 'é hush'".as_bytes(), || now);
        assert_eq!(classifier.shape(intent.fingerprint), None);
    }

    #[test]
    fn another_database_catalog_or_mode_never_shares_an_entry() {
        let (classifier, now) = (classifier(), Instant::now());
        let catalog = Catalog::empty();
        let newer = Catalog { version: 1, ..Catalog::empty() };
        let other = LexModes { standard_strings: false, ..MODES };
        for (database, catalog, modes) in
            [(1, &catalog, MODES), (2, &catalog, MODES), (1, &newer, MODES), (1, &catalog, other)]
        {
            classifier.intent(database, catalog, modes, b"SELECT 1", || now);
        }
        assert_eq!(classifier.counts().misses, 4);
    }

    #[test]
    fn settings_are_kept_by_their_exact_text() {
        let (classifier, catalog, now) = (classifier(), Catalog::empty(), Instant::now());
        let first = classifier.intent(1, &catalog, MODES, b"SET search_path = 'a'", || now);
        let second = classifier.intent(1, &catalog, MODES, b"SET search_path = 'b'", || now);
        assert_ne!(first.effects, second.effects);
    }

    #[test]
    fn what_a_variable_of_the_proxys_own_is_called_is_kept_by_its_exact_text() {
        let (catalog, now) = (Catalog::empty(), Instant::now());
        let classifier = Classifier::new(Dialect::Mysql, FunctionRules::default(), DEFAULT_CAPACITY);
        let modes = LexModes::default_of(Dialect::Mysql);
        for variable in ["@pointsman_route", "(@`Pointsman_route`)"] {
            let [first, second] = ["a", "b"].map(|alias| {
                let text = format!("SELECT {variable} AS '{alias}'");
                classifier.intent(1, &catalog, modes, text.as_bytes(), || now)
            });
            assert_ne!(first.effects, second.effects, "{variable}");
        }
    }

    #[test]
    fn a_refused_text_is_a_write_for_a_limited_time_in_its_database_only() {
        let (classifier, catalog, now) = (classifier(), Catalog::empty(), Instant::now());
        let text = b"SELECT sneaky FROM t WHERE id = 1";
        assert_eq!(classifier.intent(1, &catalog, MODES, text, || now).access, Access::Read);

        classifier.learn(1, text, now);

        let refused = classifier.intent(1, &catalog, MODES, text, || now);
        assert_eq!((refused.access, refused.reason), (Access::Write, Reason::Learned));
        assert_eq!(classifier.intent(2, &catalog, MODES, text, || now).access, Access::Read);
        let other = b"SELECT sneaky FROM t WHERE id = 2";
        assert_eq!(classifier.intent(1, &catalog, MODES, other, || now).access, Access::Read);
        let later = now + LEARNED_FOR;
        assert_eq!(classifier.intent(1, &catalog, MODES, text, || later).access, Access::Read);
    }

    #[test]
    fn learned_refusals_are_bounded() {
        let (classifier, now) = (classifier(), Instant::now());
        for number in 0..2 * MAX_LEARNED {
            classifier.learn(1, format!("SELECT {number}").as_bytes(), now);
        }
        assert_eq!(classifier.counts().learned, MAX_LEARNED as u64);
    }

    #[test]
    fn the_cache_is_bounded_by_bytes() {
        let classifier = Classifier::new(Dialect::Postgres, FunctionRules::default(), 64 * 1024);
        let catalog = Catalog::empty();
        for number in 0..2000 {
            let text = format!("SELECT a{number} FROM t");
            classifier.intent(1, &catalog, MODES, text.as_bytes(), Instant::now);
        }
        assert!(classifier.counts().entries < 64 * 1024 / 100);
    }
}
