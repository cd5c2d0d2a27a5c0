//! Splits text into tokens as the server would; fail-safe.
//!
//! One scanner feeds two sinks: [`strip`] (the statement with its literals stripped: what the
//! cache is keyed by and what the parser reads) and [`tokens`] (what the recognisers of session
//! commands read). Whatever the scanner is not sure of makes the text *unclean*: it is then keyed
//! by its exact bytes and is a write.
//!
//! Sources: PostgreSQL `src/backend/parser/scan.l`, MySQL `sql/sql_lex.cc` (`lex_one_token`).

pub(super) mod strip;
pub(super) mod tokens;

use super::{Dialect, LexModes};

/// What a token is, as far as anybody here cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or an unquoted identifier.
    Word,
    /// A quoted identifier, quotes included.
    Quoted,
    /// A string literal of any kind, prefix and quotes included.
    Text,
    Number,
    /// `$1` or, in MySQL, `?`.
    Param,
    /// MySQL `@name`.
    UserVariable,
    /// MySQL `@@name`, scope included (`@@session.sql_mode`).
    SystemVariable,
    /// One byte of punctuation or of an operator.
    Punct,
    /// `;`
    Semicolon,
}

/// Takes the tokens of a text, in order.
pub(super) trait Sink {
    fn token(&mut self, kind: Kind, start: usize, end: usize);
    /// A token of the commonest kind.
    fn word(&mut self, start: usize, end: usize) {
        self.token(Kind::Word, start, end);
    }
    /// A token of the second commonest kind: one byte.
    fn punct(&mut self, start: usize) {
        self.token(Kind::Punct, start, start + 1);
    }
    /// White space or a comment.
    fn gap(&mut self, start: usize, end: usize);
    /// The inside of a comment that begins with `pointsman:`.
    fn hint(&mut self, start: usize, end: usize);
}

/// What a scan has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Every byte was understood.
    pub clean: bool,
    /// A comment addresses the proxy.
    pub hint: bool,
    /// MySQL `/*! … */`, `/*M! … */`: its inside was read as code.
    pub executable: bool,
}

/// Reads `text` and gives its tokens to `sink`; stops at the first thing it does not understand.
pub(super) fn scan<S: Sink>(text: &[u8], dialect: Dialect, modes: LexModes, sink: &mut S) -> Scan {
    let mut scanner = Scanner {
        text,
        at: 0,
        mysql: dialect == Dialect::Mysql,
        modes,
        escape_string: false,
        executable_ends: None,
        seen: Scan::default(),
    };
    scanner.seen.clean = modes.for_text(text).are_known() && scanner.run(sink).is_some();
    scanner.seen
}

/// Classes of bytes that may begin a token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Quote,
    Punct,
    /// Begins something that depends on what follows or on the dialect.
    Special,
    Bad,
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Bad; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Class::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            b'\'' => Class::Quote,
            b'(' | b')' | b',' | b'.' | b'=' | b'+' | b'*' | b'<' | b'>' | b'!' | b'%' | b'^' | b'&'
            | b'|' | b'~' | b'[' | b']' | b':' => Class::Punct,
            b'-' | b'/' | b'"' | b'`' | b'$' | b'#' | b';' | b'@' | b'?' | b'{' | b'}' => Class::Special,
            _ => Class::Bad,
        };
        byte += 1;
    }
    table
};

/// Whether a byte may continue an identifier (both servers allow `$` inside).
const CONTINUES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte as u8, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'$' | 0x80..);
        byte += 1;
    }
    table
};

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    mysql: bool,
    modes: LexModes,
    /// The last token was an `E''` string: a string right behind it would continue in its mode.
    escape_string: bool,
    /// Where a server that skips the executable comment that is open takes it to end.
    executable_ends: Option<usize>,
    seen: Scan,
}

impl Scanner<'_> {
    /// `None`: something is not understood.
    fn run<S: Sink>(&mut self, sink: &mut S) -> Option<()> {
        while let Some(&byte) = self.text.get(self.at) {
            match CLASS[usize::from(byte)] {
                Class::Space => {
                    let start = self.at;
                    self.at += 1;
                    self.skip_while(|b| CLASS[usize::from(b)] == Class::Space);
                    sink.gap(start, self.at);
                    continue;
                }
                Class::Letter => self.word(sink)?,
                Class::Punct => {
                    if self.executable_ends.is_some() && byte == b'*' && self.peek(1) == Some(b'/') {
                        // For whom it is too new it has ended in a string or in a comment of its inside.
                        if self.executable_ends.take() != Some(self.at) {
                            return None;
                        }
                        self.at += 2;
                        sink.gap(self.at - 2, self.at);
                        continue;
                    }
                    self.escape_string = false;
                    sink.punct(self.at);
                    self.at += 1;
                }
                Class::Digit => self.number(sink),
                Class::Quote => {
                    if self.escape_string {
                        return None;
                    }
                    let backslashes = !self.modes.standard_strings;
                    self.string(self.at, self.at, b'\'', backslashes, sink)?;
                }
                Class::Special => {
                    if self.special(byte, sink)? == Was::Gap {
                        continue;
                    }
                }
                Class::Bad => return None,
            }
        }
        self.executable_ends.is_none().then_some(())
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    #[inline(always)]
    fn skip_while(&mut self, belongs: impl Fn(u8) -> bool) {
        while self.text.get(self.at).is_some_and(|&byte| belongs(byte)) {
            self.at += 1;
        }
    }

    #[inline]
    fn emit<S: Sink>(&mut self, kind: Kind, length: usize, sink: &mut S) {
        let start = self.at;
        self.at += length;
        self.escape_string = false;
        sink.token(kind, start, self.at);
    }

    #[inline]
    fn word<S: Sink>(&mut self, sink: &mut S) -> Option<()> {
        let start = self.at;
        self.at += 1;
        self.skip_while(|b| CONTINUES[usize::from(b)]);
        if self.at - start == 1 {
            let quote = self.at;
            match (self.text[start] | 0x20, self.peek(0), self.peek(1)) {
                (b'e', Some(b'\''), _) if !self.mysql => {
                    self.string(start, quote, b'\'', true, sink)?;
                    self.escape_string = true;
                    return Some(());
                }
                (b'n', Some(b'\''), _) => {
                    return self.string(start, quote, b'\'', !self.modes.standard_strings, sink);
                }
                (b'x' | b'b', Some(b'\''), _) => return self.bits(start, sink),
                (b'u', Some(b'&'), Some(b'\'')) if !self.mysql => {
                    // Refused by the server while standard_conforming_strings is off.
                    return match self.modes.standard_strings {
                        true => self.string(start, quote + 1, b'\'', false, sink),
                        false => None,
                    };
                }
                // An identifier whose letters are spelt by escapes: its name is not read.
                (b'u', Some(b'&'), Some(b'"')) if !self.mysql => return None,
                _ => {}
            }
        }
        self.escape_string = false;
        sink.word(start, self.at);
        Some(())
    }

    /// `X'1f'`, `B'01'`; anything but digits inside is left to the server.
    fn bits<S: Sink>(&mut self, start: usize, sink: &mut S) -> Option<()> {
        self.at += 1;
        self.skip_while(|b| b.is_ascii_hexdigit());
        if self.peek(0) != Some(b'\'') {
            return None;
        }
        self.at += 1;
        self.escape_string = false;
        sink.token(Kind::Text, start, self.at);
        Some(())
    }

    /// A string whose token begins at `start` and whose opening quote stands at `open`.
    fn string<S: Sink>(
        &mut self,
        start: usize,
        open: usize,
        quote: u8,
        backslashes: bool,
        sink: &mut S,
    ) -> Option<()> {
        self.at = self.close_quote(open + 1, quote, backslashes)?;
        self.escape_string = false;
        sink.token(Kind::Text, start, self.at);
        Some(())
    }

    /// The position behind the quote that closes a literal whose inside begins at `from`.
    fn close_quote(&self, from: usize, quote: u8, backslashes: bool) -> Option<usize> {
        let mut at = from;
        // Most of them are short words: a call of memchr would cost more than they do.
        while self.text.get(at).is_some_and(|&byte| CONTINUES[usize::from(byte)]) {
            at += 1;
        }
        loop {
            let rest = self.text.get(at..)?;
            let found = match backslashes {
                true => memchr::memchr3(quote, b'\\', 0, rest)?,
                false => memchr::memchr2(quote, 0, rest)?,
            };
            at += found;
            match self.text[at] {
                b'\\' => at += 2,
                0 => return None,
                _ if self.text.get(at + 1) == Some(&quote) => at += 2,
                _ => return Some(at + 1),
            }
        }
    }

    fn number<S: Sink>(&mut self, sink: &mut S) {
        let start = self.at;
        self.skip_while(|b| b.is_ascii_digit());
        let digits = self.at - start;
        if self.peek(0) == Some(b'.') && self.peek(1).is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
            self.skip_while(|b| b.is_ascii_digit());
        }
        if self.peek(0).is_some_and(|b| CONTINUES[usize::from(b)]) {
            let tail = self.at;
            let signed =
                matches!(self.peek(0), Some(b'e' | b'E')) && matches!(self.peek(1), Some(b'+' | b'-'));
            self.at += if signed { 2 } else { 0 };
            self.skip_while(|b| CONTINUES[usize::from(b)]);
            let (head, rest) = (&self.text[start..tail], &self.text[tail..self.at]);
            if !is_number_tail(head, rest, digits, self.mysql) {
                // MySQL lets an identifier begin with a digit; PostgreSQL refuses it.
                self.escape_string = false;
                sink.token(Kind::Word, start, self.at);
                return;
            }
        }
        self.escape_string = false;
        sink.token(Kind::Number, start, self.at);
    }

    fn special<S: Sink>(&mut self, byte: u8, sink: &mut S) -> Option<Was> {
        match (byte, self.peek(1)) {
            (b'-', Some(b'-')) if !self.mysql || self.peek(2).is_none_or(|b| b <= b' ') => {
                return self.line_comment(2, sink);
            }
            (b'#', _) if self.mysql => return self.line_comment(1, sink),
            (b'/', Some(b'*')) => return self.block_comment(sink),
            (b'"', _) if self.mysql && !self.modes.ansi_quotes => {
                self.string(self.at, self.at, b'"', !self.modes.standard_strings, sink)?;
            }
            (b'"', _) => self.quoted(b'"', sink)?,
            (b'`', _) if self.mysql => self.quoted(b'`', sink)?,
            (b'$', _) if self.mysql => self.word(sink)?,
            (b'$', _) => self.dollar(sink)?,
            (b'@', _) if self.mysql => self.variable(sink)?,
            (b'?', _) if self.mysql => self.emit(Kind::Param, 1, sink),
            (b';', _) => self.emit(Kind::Semicolon, 1, sink),
            (b'{' | b'}', _) if !self.mysql => return None,
            (b'-' | b'/' | b'#' | b'@' | b'?' | b'{' | b'}', _) => self.emit(Kind::Punct, 1, sink),
            _ => return None,
        }
        Some(Was::Token)
    }

    fn quoted<S: Sink>(&mut self, quote: u8, sink: &mut S) -> Option<()> {
        let end = self.close_quote(self.at + 1, quote, false)?;
        self.emit(Kind::Quoted, end - self.at, sink);
        Some(())
    }

    /// `$1` or `$tag$ … $tag$`.
    fn dollar<S: Sink>(&mut self, sink: &mut S) -> Option<()> {
        let rest = &self.text[self.at + 1..];
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits > 0 {
            // `$1abc` is a parameter and a word, or an error, by server version.
            if rest.get(digits).is_some_and(|&b| CONTINUES[usize::from(b)]) {
                return None;
            }
            self.emit(Kind::Param, digits + 1, sink);
            return Some(());
        }
        let tag = rest.iter().take_while(|&&b| b != b'$' && CONTINUES[usize::from(b)]).count();
        if rest.get(tag) != Some(&b'$') {
            return None;
        }
        let delimiter = &self.text[self.at..self.at + tag + 2];
        let inside = self.at + delimiter.len();
        let length = memchr::memmem::find(&self.text[inside..], delimiter)?;
        let end = inside + length + delimiter.len();
        self.emit(Kind::Text, end - self.at, sink);
        Some(())
    }

    /// `@name`, `@'name'`, `@@scope.name`.
    fn variable<S: Sink>(&mut self, sink: &mut S) -> Option<()> {
        let part_of_name = |b: u8| CONTINUES[usize::from(b)] || b == b'.';
        let start = self.at;
        self.at += 1;
        let kind = match self.peek(0) {
            Some(b'@') => {
                self.at += 1;
                loop {
                    self.skip_while(part_of_name);
                    if self.peek(0) != Some(b'`') {
                        break;
                    }
                    self.at = self.close_quote(self.at + 1, b'`', false)?;
                }
                Kind::SystemVariable
            }
            Some(quote @ (b'\'' | b'"' | b'`')) => {
                let backslashes = quote != b'`' && !self.modes.standard_strings;
                self.at = self.close_quote(self.at + 1, quote, backslashes)?;
                Kind::UserVariable
            }
            _ => {
                self.skip_while(part_of_name);
                Kind::UserVariable
            }
        };
        self.escape_string = false;
        sink.token(kind, start, self.at);
        Some(())
    }

    fn line_comment<S: Sink>(&mut self, marker: usize, sink: &mut S) -> Option<Was> {
        // Inside an executable comment it may or may not hide the end mark.
        if self.executable_ends.is_some() {
            return None;
        }
        let start = self.at + marker;
        let rest = &self.text[start.min(self.text.len())..];
        let end = match self.mysql {
            true => memchr::memchr(b'\n', rest),
            false => memchr::memchr2(b'\n', b'\r', rest),
        };
        self.at = start + end.unwrap_or(rest.len());
        self.comment_seen(start, self.at, sink);
        Some(Was::Gap)
    }

    fn block_comment<S: Sink>(&mut self, sink: &mut S) -> Option<Was> {
        if self.mysql {
            let mark = match (self.peek(2), self.peek(3)) {
                (Some(b'!'), _) => 3,
                (Some(b'M'), Some(b'!')) => 4,
                _ => 0,
            };
            if mark > 0 {
                self.seen.executable = true;
                let start = self.at;
                self.at += mark;
                let inside = &self.text[self.at..];
                let length = memchr::memmem::find(inside, b"*/").unwrap_or(inside.len());
                self.executable_ends = Some(self.at + length);
                self.skip_while(|b| b.is_ascii_digit());
                sink.gap(start, self.at);
                return Some(Was::Gap);
            }
        }
        let start = self.at + 2;
        self.at = self.close_comment(start)?;
        self.comment_seen(start, self.at - 2, sink);
        Some(Was::Gap)
    }

    /// The position behind a block comment whose inside begins at `from`. PostgreSQL's nest.
    fn close_comment(&self, from: usize) -> Option<usize> {
        let mut at = from;
        let mut depth = 1_usize;
        loop {
            at += memchr::memchr2(b'*', b'/', self.text.get(at..)?)?;
            match (self.text[at], self.text.get(at + 1)?) {
                (b'*', b'/') => {
                    at += 2;
                    depth -= 1;
                    if depth == 0 {
                        return Some(at);
                    }
                }
                (b'/', b'*') if !self.mysql => {
                    at += 2;
                    depth += 1;
                }
                _ => at += 1,
            }
        }
    }

    fn comment_seen<S: Sink>(&mut self, start: usize, end: usize, sink: &mut S) {
        if let Some(inside) = super::hints::addressed(&self.text[start..end]) {
            self.seen.hint = true;
            sink.hint(end - inside.len(), end);
        }
        sink.gap(start, end);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Was {
    Token,
    Gap,
}

/// Whether letters right behind digits still belong to a number: an exponent, or `0x1f`, `0b01`,
/// `0o17` and, in PostgreSQL, `1_000`.
fn is_number_tail(head: &[u8], tail: &[u8], digits: usize, mysql: bool) -> bool {
    let decimal = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    match tail {
        [b'e' | b'E', b'+' | b'-', exponent @ ..] => decimal(exponent),
        [b'e' | b'E', exponent @ ..] => decimal(exponent),
        [b'x' | b'X' | b'b' | b'B' | b'o' | b'O', hex @ ..] => {
            digits == 1 && head == b"0" && !hex.is_empty() && hex.iter().all(u8::is_ascii_hexdigit)
        }
        // An identifier to MySQL.
        [b'_', ..] => !mysql && tail.iter().all(|b| b.is_ascii_digit() || *b == b'_'),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
