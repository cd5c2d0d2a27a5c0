//! A statement with its literals stripped.
//!
//! Strings become `''`, numbers `0`, parameters `$1`, white space and comments one space. Lists of
//! equal literals and rows of literals fold into their first: `IN (1, 2, 3)` and
//! `VALUES (1, 'a'), (2, NULL)` read the same for any length. The parser reads the very text that
//! is hashed here, so whatever shares a key also shares its classification.

use xxhash_rust::xxh3::xxh3_128;

use super::{Kind, Scan, Sink, scan};
use crate::sql::{Dialect, LexModes, PROXY_VARIABLES};

/// Stripped bytes that are gathered on the stack before they are hashed.
const CHUNK: usize = 768;
/// Bytes from which on a run that is taken over as it is counts as long.
const LONG_RUN: usize = 256;
/// Room that is always left for what is written without asking: the flags at the end.
const SPARE: usize = 16;

/// The key of one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sql) struct Stripped {
    pub hash: u128,
    pub scan: Scan,
    /// The meaning of the statement may lie in its literals: key it by the exact text.
    pub exact: bool,
}

/// Hashes `text` without its literals. Does not allocate.
pub(in crate::sql) fn stripped(text: &[u8], dialect: Dialect, modes: LexModes) -> Stripped {
    let mut out = Chained { buffer: [0; CHUNK], length: 0 };
    let mut sink = Strip::new(&mut out, text, dialect, modes);
    let scan = scan(text, dialect, modes, &mut sink);
    let exact = sink.finish() || scan.hint || !scan.clean;
    out.append(&[0, u8::from(scan.executable)]);
    Stripped { hash: xxh3_128(out.bytes()), scan, exact }
}

/// The stripped text itself.
pub(in crate::sql) fn strip(text: &[u8], dialect: Dialect, modes: LexModes) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len().min(4096));
    let mut sink = Strip::new(&mut out, text, dialect, modes);
    scan(text, dialect, modes, &mut sink);
    sink.finish();
    out
}

/// Where stripped bytes go.
trait Output {
    fn bytes(&self) -> &[u8];
    fn push(&mut self, bytes: &[u8]);
    fn truncate(&mut self, length: usize);
    /// Whether positions given by [`Self::bytes`] stop being valid before `more` bytes.
    fn would_turn(&self, more: usize) -> bool;
    fn turn(&mut self);
}

impl Output for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn push(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
    fn truncate(&mut self, length: usize) {
        Vec::truncate(self, length);
    }
    fn would_turn(&self, _more: usize) -> bool {
        false
    }
    fn turn(&mut self) {}
}

/// A buffer that is hashed whenever it is full; the hash then begins the next one.
struct Chained {
    buffer: [u8; CHUNK],
    length: usize,
}

impl Chained {
    #[inline]
    fn append(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        self.buffer[self.length..end].copy_from_slice(bytes);
        self.length = end;
    }
}

impl Output for Chained {
    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        // A long run goes in as its hash.
        if bytes.len() >= LONG_RUN {
            self.append(&xxh3_128(bytes).to_le_bytes());
        } else {
            self.append(bytes);
        }
    }
    fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
    #[inline]
    fn would_turn(&self, more: usize) -> bool {
        self.length + more.min(LONG_RUN) + SPARE > CHUNK
    }
    #[cold]
    fn turn(&mut self) {
        let hash = xxh3_128(self.bytes());
        self.length = 0;
        self.append(&hash.to_le_bytes());
    }
}

/// What stands for a literal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Text,
    Number,
    Dollar,
    QuestionMark,
}

impl Placeholder {
    const fn bytes(self) -> &'static [u8] {
        match self {
            Self::Text => b"''",
            Self::Number => b"0",
            Self::Dollar => b"$1",
            Self::QuestionMark => b"?",
        }
    }
}

struct Strip<'a, O> {
    out: &'a mut O,
    text: &'a [u8],
    /// What is to be taken over as it is, but has not been copied yet.
    pending: (usize, usize),
    mysql: bool,
    modes: LexModes,
    exact: bool,
    /// The next token begins a statement.
    leading: bool,
    /// Behind the last emitted literal.
    literal_end: Option<(usize, Placeholder)>,
    /// Where a parenthesis was opened that has held nothing but literals since.
    row_start: Option<usize>,
    /// Behind the last such parenthesis that was closed.
    row_end: Option<usize>,
}

impl<'a, O: Output> Strip<'a, O> {
    fn new(out: &'a mut O, text: &'a [u8], dialect: Dialect, modes: LexModes) -> Self {
        Self {
            out,
            text,
            pending: (0, 0),
            mysql: dialect == Dialect::Mysql,
            modes,
            exact: false,
            leading: true,
            literal_end: None,
            row_start: None,
            row_end: None,
        }
    }

    /// Writes what is pending; whether the text has to be keyed exactly.
    fn finish(&mut self) -> bool {
        self.flush();
        self.exact
    }

    /// Takes over a token as it is.
    #[inline]
    fn keep(&mut self, start: usize, end: usize) {
        if start != self.pending.1 {
            self.flush();
            self.pending.0 = start;
        }
        self.pending.1 = end;
    }

    #[inline]
    fn flush(&mut self) {
        let (start, end) = self.pending;
        if start < end {
            self.push(&self.text[start..end]);
        }
        self.pending = (end, end);
    }

    /// Writes bytes; nothing may be pending.
    fn push(&mut self, bytes: &[u8]) {
        if self.out.would_turn(bytes.len()) {
            self.out.turn();
            self.literal_end = None;
            self.row_start = None;
            self.row_end = None;
        }
        self.out.push(bytes);
    }

    /// The last byte so far.
    fn last(&self) -> Option<u8> {
        let (start, end) = self.pending;
        if start < end { Some(self.text[end - 1]) } else { self.out.bytes().last().copied() }
    }

    fn literal(&mut self, stands_for: Placeholder) {
        self.flush();
        self.leave_rows();
        if stands_for == Placeholder::Number {
            self.drop_sign();
        }
        if let Some((end, before)) = self.literal_end
            && before == stands_for
        {
            let between = &self.out.bytes()[end..];
            let is_string = stands_for == Placeholder::Text;
            if is_list_separator(between) || (is_string && between == b" ") {
                self.out.truncate(end);
                return;
            }
        }
        self.push(stands_for.bytes());
        self.literal_end = Some((self.out.bytes().len(), stands_for));
    }

    /// A token outside of a row: no list of rows goes on behind it.
    fn leave_rows(&mut self) {
        if self.row_start.is_none() {
            self.row_end = None;
        }
    }

    /// Takes back the minus of `(-1` and `, -1`.
    fn drop_sign(&mut self) {
        if let [before @ .., b'-'] = self.out.bytes() {
            let unsigned = before.len();
            let trimmed = before.trim_ascii_end();
            if matches!(trimmed.last(), Some(b'(' | b',')) {
                self.out.truncate(unsigned);
            }
        }
    }

    #[inline(always)]
    fn take_word(&mut self, start: usize, end: usize) {
        let word = &self.text[start..end];
        if self.leading {
            self.leading = false;
            self.exact |= !is_strippable(word);
        }
        self.exact |= carries_name_in_literal(word);
        if self.row_start.is_some() && !is_literal_word(word) {
            self.row_start = None;
        }
        self.literal_end = None;
        self.leave_rows();
        self.keep(start, end);
    }

    #[inline(always)]
    fn take_punct(&mut self, start: usize) {
        match self.text[start] {
            b'(' => {
                self.flush();
                let begins = self.out.bytes().len();
                self.push(b"(");
                self.pending = (start + 1, start + 1);
                self.literal_end = None;
                // After a chunk was turned the position is not the one taken above.
                self.row_start = (self.out.bytes().len() == begins + 1).then_some(begins);
                return;
            }
            b')' => {
                self.flush();
                self.literal_end = None;
                self.close_row();
                self.pending = (start + 1, start + 1);
                return;
            }
            b',' => {}
            b'-' => self.leave_rows(),
            _ => self.leave_lists(),
        }
        self.keep(start, start + 1);
    }

    /// A token that neither a list of literals nor a row may hold.
    #[inline]
    fn leave_lists(&mut self) {
        self.literal_end = None;
        self.row_start = None;
        self.row_end = None;
    }

    fn close_row(&mut self) {
        match (self.row_start.take(), self.row_end) {
            (Some(start), Some(end)) if start > end && is_list_separator(&self.out.bytes()[end..start]) => {
                self.out.truncate(end);
            }
            (Some(_), _) => {
                self.push(b")");
                self.row_end = Some(self.out.bytes().len());
            }
            (None, _) => {
                self.push(b")");
                self.row_end = None;
            }
        }
    }

    fn quoted(&mut self, start: usize, end: usize) {
        self.leading = false;
        self.leave_lists();
        let inside = &self.text[start + 1..end - 1];
        self.exact |= carries_name_in_literal(inside);
        if self.mysql && self.modes.ansi_quotes && self.text[start] == b'"' {
            self.backticks(inside);
            self.pending = (end, end);
        } else {
            self.keep(start, end);
        }
    }

    /// MySQL's `"x"` under ANSI_QUOTES, in the backticks that the parser knows.
    fn backticks(&mut self, inside: &[u8]) {
        self.flush();
        self.push(b"`");
        for part in inside.split_inclusive(|&b| b == b'`') {
            self.push(part);
            if part.ends_with(b"`") {
                self.push(b"`");
            }
        }
        self.push(b"`");
    }
}

impl<O: Output> Sink for Strip<'_, O> {
    #[inline]
    fn word(&mut self, start: usize, end: usize) {
        self.take_word(start, end);
    }

    #[inline]
    fn punct(&mut self, start: usize) {
        self.take_punct(start);
    }

    fn token(&mut self, kind: Kind, start: usize, end: usize) {
        match kind {
            Kind::Word => return self.take_word(start, end),
            Kind::Punct => return self.take_punct(start),
            Kind::Quoted => return self.quoted(start, end),
            Kind::Text => self.literal(Placeholder::Text),
            // `db.1`: part of a name in MySQL.
            Kind::Number if self.mysql && self.last() == Some(b'.') => return self.keep(start, end),
            Kind::Number => self.literal(Placeholder::Number),
            Kind::Param if self.mysql => self.literal(Placeholder::QuestionMark),
            Kind::Param => self.literal(Placeholder::Dollar),
            Kind::UserVariable | Kind::SystemVariable => {
                self.exact |= is_the_proxys(&self.text[start..end]);
                self.leading = false;
                self.leave_lists();
                return self.keep(start, end);
            }
            Kind::Semicolon => {
                self.leave_lists();
                self.leading = true;
                return self.keep(start, end);
            }
        }
        self.leading = false;
        self.pending = (end, end);
    }

    #[inline]
    fn gap(&mut self, start: usize, end: usize) {
        if end == start + 1 && self.text[start] == b' ' && start == self.pending.1 && start > self.pending.0 {
            self.pending.1 = end;
        } else if !matches!(self.last(), None | Some(b' ')) {
            self.flush();
            self.push(b" ");
            self.pending = (end, end);
        }
    }

    fn hint(&mut self, _start: usize, _end: usize) {}
}

fn is_list_separator(between: &[u8]) -> bool {
    matches!(between, b"," | b", ") || between.trim_ascii() == b","
}

/// Words that may stand in a row of literals.
fn is_literal_word(word: &[u8]) -> bool {
    match word.len() {
        4 => word.eq_ignore_ascii_case(b"null") || word.eq_ignore_ascii_case(b"true"),
        5 => word.eq_ignore_ascii_case(b"false"),
        7 => word.eq_ignore_ascii_case(b"default"),
        _ => false,
    }
}

/// Statements whose meaning never lies in their literals, by leading keyword.
fn is_strippable(word: &[u8]) -> bool {
    const STRIPPABLE: [&[u8]; 13] = [
        b"select",
        b"insert",
        b"update",
        b"delete",
        b"with",
        b"values",
        b"begin",
        b"commit",
        b"rollback",
        b"replace",
        b"merge",
        b"start",
        b"end",
    ];
    STRIPPABLE.iter().any(|keyword| word.eq_ignore_ascii_case(keyword))
}

/// A variable of the proxy's own: what it is called in the answer may stand in a literal.
fn is_the_proxys(variable: &[u8]) -> bool {
    let name = match variable {
        [b'@', b'`' | b'\'' | b'"', name @ ..] | [b'@', name @ ..] => name,
        name => name,
    };
    let begins = name.get(..PROXY_VARIABLES.len());
    begins.is_some_and(|begins| begins.eq_ignore_ascii_case(PROXY_VARIABLES.as_bytes()))
}

/// Functions whose first argument decides what a call does.
#[inline]
fn carries_name_in_literal(word: &[u8]) -> bool {
    match word.len() {
        10 => word.eq_ignore_ascii_case(b"set_config"),
        15 => word.eq_ignore_ascii_case(b"current_setting"),
        _ => false,
    }
}
