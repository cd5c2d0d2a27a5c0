//! A statement as a list of tokens: what the recognisers of session commands read.

use std::{borrow::Cow, ops::Range};

use super::{Kind, Scan, Sink, scan};
use crate::sql::{Dialect, LexModes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sql) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// All tokens of a text, and the comments that address the proxy.
#[derive(Debug, Default)]
pub(in crate::sql) struct Tokens {
    pub list: Vec<Token>,
    pub hints: Vec<Range<usize>>,
    pub scan: Scan,
}

impl Tokens {
    pub fn of(text: &[u8], dialect: Dialect, modes: LexModes) -> Self {
        let mut tokens = Self::default();
        tokens.scan = scan(text, dialect, modes, &mut tokens);
        tokens
    }
}

impl Sink for Tokens {
    fn token(&mut self, kind: Kind, start: usize, end: usize) {
        self.list.push(Token { kind, start, end });
    }

    fn gap(&mut self, _start: usize, _end: usize) {}

    fn hint(&mut self, start: usize, end: usize) {
        self.hints.push(start..end);
    }
}

/// One statement: a run of tokens without `;` at its end.
#[derive(Clone, Copy)]
pub(in crate::sql) struct Phrase<'a> {
    pub text: &'a [u8],
    pub tokens: &'a [Token],
    pub dialect: Dialect,
    pub modes: LexModes,
}

impl<'a> Phrase<'a> {
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn from(&self, first: usize) -> Phrase<'a> {
        Phrase { tokens: self.tokens.get(first..).unwrap_or(&[]), ..*self }
    }

    pub fn range(&self, range: Range<usize>) -> Phrase<'a> {
        Phrase { tokens: self.tokens.get(range).unwrap_or(&[]), ..*self }
    }

    pub fn kind(&self, index: usize) -> Option<Kind> {
        self.tokens.get(index).map(|token| token.kind)
    }

    /// The token as written; empty behind the end.
    pub fn raw(&self, index: usize) -> &'a [u8] {
        self.tokens.get(index).map_or(&[], |token| &self.text[token.start..token.end])
    }

    /// Everything from the first token to the last, comments between included.
    pub fn source(&self) -> &'a [u8] {
        match (self.tokens.first(), self.tokens.last()) {
            (Some(first), Some(last)) => &self.text[first.start..last.end],
            _ => &[],
        }
    }

    /// [`Self::source`], if it is UTF-8.
    pub fn source_text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.source()).ok()
    }

    /// Whether the token at `index` is this keyword, unquoted.
    pub fn is(&self, index: usize, keyword: &str) -> bool {
        self.kind(index) == Some(Kind::Word) && self.raw(index).eq_ignore_ascii_case(keyword.as_bytes())
    }

    pub fn is_any(&self, index: usize, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(index, keyword))
    }

    /// Whether these keywords follow each other from `index` on.
    pub fn says(&self, index: usize, keywords: &[&str]) -> bool {
        keywords.iter().enumerate().all(|(offset, keyword)| self.is(index + offset, keyword))
    }

    /// Whether these keywords follow each other anywhere.
    pub fn contains(&self, keywords: &[&str]) -> bool {
        (0..self.len()).any(|index| self.says(index, keywords))
    }

    pub fn punct(&self, index: usize, byte: u8) -> bool {
        self.kind(index) == Some(Kind::Punct) && self.raw(index) == [byte]
    }

    pub fn ends_at(&self, index: usize) -> bool {
        index >= self.len()
    }

    /// The first word in lower case; empty if the statement begins with something else.
    pub fn leading(&self) -> String {
        match self.kind(0) {
            Some(Kind::Word) => String::from_utf8_lossy(self.raw(0)).to_ascii_lowercase(),
            _ => String::new(),
        }
    }

    /// The identifier at `index`, folded as the server folds it.
    pub fn name(&self, index: usize) -> Option<String> {
        let name = self.spelled(index)?;
        Some(match (self.kind(index)?, self.dialect) {
            (Kind::Word, _) => name.to_ascii_lowercase(),
            (_, Dialect::Mysql) => name.to_lowercase(),
            (_, Dialect::Postgres) => name,
        })
    }

    /// The identifier at `index` as it is written, without its quotes.
    pub fn spelled(&self, index: usize) -> Option<String> {
        let raw = self.raw(index);
        match self.kind(index)? {
            Kind::Word => Some(std::str::from_utf8(raw).ok()?.to_owned()),
            Kind::Quoted => {
                let quote = char::from(*raw.first()?);
                let inside = std::str::from_utf8(raw.get(1..raw.len() - 1)?).ok()?;
                Some(inside.replace(&format!("{quote}{quote}"), &quote.to_string()))
            }
            _ => None,
        }
    }

    /// A possibly qualified name from `index` on: its last part and the index behind it.
    pub fn qualified(&self, index: usize) -> Option<(String, usize)> {
        let mut at = index;
        loop {
            let name = self.name(at)?;
            if !self.punct(at + 1, b'.') {
                return Some((name, at + 1));
            }
            at += 2;
        }
    }

    /// The value of the string literal at `index`.
    pub fn string(&self, index: usize) -> Option<String> {
        if self.kind(index) != Some(Kind::Text) {
            return None;
        }
        unquote(std::str::from_utf8(self.raw(index)).ok()?, !self.modes.standard_strings).map(Cow::into_owned)
    }

    /// The index of the `)` that closes the `(` at `index`.
    pub fn closing(&self, index: usize) -> Option<usize> {
        let mut depth = 0_usize;
        for at in index..self.len() {
            if self.punct(at, b'(') {
                depth += 1;
            } else if self.punct(at, b')') {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        None
    }

    /// Splits at commas that stand outside of parentheses.
    pub fn split_commas(&self) -> Vec<Phrase<'a>> {
        let mut parts = Vec::new();
        let (mut depth, mut start) = (0_i32, 0);
        for at in 0..self.len() {
            if self.punct(at, b'(') {
                depth += 1;
            } else if self.punct(at, b')') {
                depth -= 1;
            } else if depth == 0 && self.punct(at, b',') {
                parts.push(self.range(start..at));
                start = at + 1;
            }
        }
        parts.push(self.from(start));
        parts
    }
}

/// The value of a string literal in any of the notations that this module can undo; `None` for
/// `U&''`, bit strings and escapes by number.
pub(in crate::sql) fn unquote(literal: &str, backslashes: bool) -> Option<Cow<'_, str>> {
    if let Some(rest) = literal.strip_prefix('$') {
        let tag = rest.find('$')? + 2;
        return literal.get(tag..literal.len().checked_sub(tag)?).map(Cow::Borrowed);
    }
    let (literal, backslashes) = match literal.as_bytes().first()? {
        b'e' | b'E' => (&literal[1..], true),
        b'n' | b'N' => (&literal[1..], backslashes),
        _ => (literal, backslashes),
    };
    let quote = literal.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inside = literal.get(1..literal.len().checked_sub(1)?)?;
    let has_escapes = inside.contains(quote) || (backslashes && inside.contains('\\'));
    if !has_escapes {
        return Some(Cow::Borrowed(inside));
    }
    let mut value = String::with_capacity(inside.len());
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        if c == quote {
            chars.next();
            value.push(quote);
        } else if c == '\\' && backslashes {
            match chars.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                c if c.is_ascii_alphanumeric() => return None,
                c => value.push(c),
            }
        } else {
            value.push(c);
        }
    }
    Some(Cow::Owned(value))
}
