//! Statements: classifying and splitting never panic, in any dialect and mode; and texts that share
//! an entry of the statement cache have the same intent.
#![no_main]

use std::{sync::Arc, time::Instant};

use libfuzzer_sys::fuzz_target;
use pointsman::sql::{
    Dialect, LexModes,
    cache::Classifier,
    catalog::{Catalog, FunctionRules},
    classify, split,
};

/// Bytes of the cache: one input and its variants.
const CACHE: u64 = 16 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, text)) = data.split_first() else { return };
    let dialect = if choice & 1 == 0 { Dialect::Postgres } else { Dialect::Mysql };
    let modes = LexModes {
        standard_strings: choice & 2 == 0,
        ansi_quotes: choice & 4 != 0,
        unreadable: choice & 24 == 24,
        foreign_letters: choice & 64 != 0,
        foreign: false,
    };
    let catalog = Catalog { loaded: choice & 32 == 0, ..Catalog::empty() };
    let rules = FunctionRules::default();
    let classifier = Classifier::new(dialect, rules.clone(), CACHE);

    let first = classifier.intent(1, &catalog, modes, text, Instant::now);
    for other in [with_other_digits(text), with_other_letters(text)] {
        let second = classifier.intent(1, &catalog, modes, &other, Instant::now);
        if Arc::ptr_eq(&first, &second) {
            assert_eq!(*second, classify(&other, dialect, modes, &catalog, &rules), "{other:?}");
        }
    }
    if let Ok(text) = std::str::from_utf8(text) {
        split(text, dialect, modes);
    }
});

/// The text with each digit replaced by the next one.
fn with_other_digits(text: &[u8]) -> Vec<u8> {
    let next = |&byte: &u8| if byte.is_ascii_digit() { b'0' + (byte - b'0' + 1) % 10 } else { byte };
    text.iter().map(next).collect()
}

/// The text with other letters inside quotes, or what looks like that.
fn with_other_letters(text: &[u8]) -> Vec<u8> {
    let mut inside = false;
    let other = |&byte: &u8| {
        inside ^= byte == b'\'';
        if inside && byte.is_ascii_lowercase() { b'a' + (byte - b'a' + 1) % 26 } else { byte }
    };
    text.iter().map(other).collect()
}
