//! A statement with its literals stripped.
//!
//! Strings become `''`, numbers `0`, parameters `$1`, white space and comments one space. Lists of
//! equal literals and rows of literals fold into their first: `IN (1, 2, 3)` and
//! `VALUES (1, 'a'), (2, NULL)` read the same for any length. The parser reads the very text that
//! is hashed here, so whatever shares a key also shares its classification.

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use super::{Kind, Scan, Sink, scan};
use crate::sql::{Dialect, LexModes};

/// Stripped bytes that are gathered on the stack before they are hashed.
const CHUNK: usize = 1024;

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
    let mut sink = Strip::new(Chained(SmallVec::new()), dialect, modes);
    let scan = scan(text, dialect, modes, &mut sink);
    let exact = sink.exact || scan.hint || !scan.clean;
    let mut chained = sink.out;
    chained.0.push(0);
    chained.0.push(u8::from(scan.executable));
    Stripped { hash: xxh3_128(&chained.0), scan, exact }
}

/// The stripped text itself.
pub(in crate::sql) fn strip(text: &[u8], dialect: Dialect, modes: LexModes) -> Vec<u8> {
    let mut sink = Strip::new(Vec::with_capacity(text.len().min(4096)), dialect, modes);
    scan(text, dialect, modes, &mut sink);
    sink.out
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
struct Chained(SmallVec<[u8; CHUNK]>);

impl Output for Chained {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn push(&mut self, bytes: &[u8]) {
        // Longer tokens than a chunk (a giant identifier) go in as their hash.
        if bytes.len() >= CHUNK / 2 {
            self.0.extend_from_slice(&xxh3_128(bytes).to_le_bytes());
        } else {
            self.0.extend_from_slice(bytes);
        }
    }
    fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }
    fn would_turn(&self, more: usize) -> bool {
        self.0.len() + more.min(CHUNK / 2) + 4 > CHUNK
    }
    fn turn(&mut self) {
        let hash = xxh3_128(&self.0);
        self.0.clear();
        self.0.extend_from_slice(&hash.to_le_bytes());
    }
}

struct Strip<O> {
    out: O,
    mysql: bool,
    modes: LexModes,
    exact: bool,
    /// The next token begins a statement.
    leading: bool,
    /// Behind the last emitted literal.
    literal_end: Option<(usize, &'static [u8])>,
    /// Where a parenthesis was opened that has held nothing but literals since.
    row_start: Option<usize>,
    /// Behind the last such parenthesis that was closed.
    row_end: Option<usize>,
}

impl<O: Output> Strip<O> {
    fn new(out: O, dialect: Dialect, modes: LexModes) -> Self {
        Self {
            out,
            mysql: dialect == Dialect::Mysql,
            modes,
            exact: false,
            leading: true,
            literal_end: None,
            row_start: None,
            row_end: None,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.out.would_turn(bytes.len()) {
            self.out.turn();
            self.literal_end = None;
            self.row_start = None;
            self.row_end = None;
        }
        self.out.push(bytes);
    }

    fn literal(&mut self, stands_for: &'static [u8]) {
        self.leave_rows();
        if stands_for == b"0" {
            self.drop_sign();
        }
        if let Some((end, before)) = self.literal_end
            && before == stands_for
        {
            let between = &self.out.bytes()[end..];
            let is_string = stands_for == b"''";
            if is_list_separator(between) || (is_string && between == b" ") {
                self.out.truncate(end);
                return;
            }
        }
        self.push(stands_for);
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

    fn word(&mut self, word: &[u8]) {
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
        self.push(word);
    }

    fn punct(&mut self, byte: u8) {
        match byte {
            b'(' => {
                let begins = self.out.bytes().len();
                self.push(b"(");
                self.literal_end = None;
                // After a chunk was turned the position is not the one taken above.
                self.row_start = (self.out.bytes().len() == begins + 1).then_some(begins);
                return;
            }
            b')' => {
                self.literal_end = None;
                self.close_row();
                return;
            }
            b',' => {}
            b'-' => self.leave_rows(),
            _ => {
                self.literal_end = None;
                self.row_start = None;
                self.row_end = None;
            }
        }
        self.push(&[byte]);
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

    /// MySQL's `"x"` under ANSI_QUOTES, in the backticks that the parser knows.
    fn quoted(&mut self, quoted: &[u8]) {
        self.leading = false;
        self.literal_end = None;
        self.row_start = None;
        self.row_end = None;
        self.exact |= carries_name_in_literal(&quoted[1..quoted.len() - 1]);
        if self.mysql && self.modes.ansi_quotes && quoted[0] == b'"' {
            let inside = &quoted[1..quoted.len() - 1];
            self.push(b"`");
            for part in inside.split_inclusive(|&b| b == b'`') {
                self.push(part);
                if part.ends_with(b"`") {
                    self.push(b"`");
                }
            }
            self.push(b"`");
        } else {
            self.push(quoted);
        }
    }
}

impl<O: Output> Sink for Strip<O> {
    fn token(&mut self, kind: Kind, text: &[u8], start: usize, end: usize) {
        let token = &text[start..end];
        match kind {
            Kind::Word => self.word(token),
            Kind::Punct => self.punct(token[0]),
            Kind::Text => self.literal(b"''"),
            Kind::Number => {
                // `db.1`: part of a name in MySQL.
                if self.mysql && self.out.bytes().last() == Some(&b'.') {
                    self.push(token);
                } else {
                    self.literal(b"0");
                }
            }
            Kind::Param => self.literal(if self.mysql { b"?" } else { b"$1" }),
            Kind::Quoted => self.quoted(token),
            Kind::UserVariable | Kind::SystemVariable => {
                self.literal_end = None;
                self.row_start = None;
                self.row_end = None;
                self.push(token);
            }
            Kind::Semicolon => {
                self.punct(b';');
                self.leading = true;
            }
        }
        // A statement that begins with a parenthesis is a query.
        self.leading &= matches!(kind, Kind::Semicolon | Kind::Punct);
    }

    fn gap(&mut self) {
        if !matches!(self.out.bytes().last(), None | Some(b' ')) {
            // No turn: a space fits behind every token, and positions stay valid.
            self.out.push(b" ");
        }
    }

    fn hint(&mut self, _start: usize, _end: usize) {}
}

fn is_list_separator(between: &[u8]) -> bool {
    between.trim_ascii() == b","
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

/// Functions whose first argument decides what a call does.
fn carries_name_in_literal(word: &[u8]) -> bool {
    match word.len() {
        10 => word.eq_ignore_ascii_case(b"set_config"),
        15 => word.eq_ignore_ascii_case(b"current_setting"),
        _ => false,
    }
}
