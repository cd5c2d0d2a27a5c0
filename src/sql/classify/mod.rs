//! One statement string → its intent.
//!
//! Session and transaction commands are recognised by their tokens, in exact forms only
//! (`transaction`, `postgres`, `mysql`); queries and data-modifying statements are parsed from
//! their stripped text (`query`) and judged by what they call (`calls`) and name (`relations`).

mod anonymous;
mod calls;
mod mysql;
mod mysql_kill;
mod mysql_set;
mod postgres;
mod postgres_set;
mod query;
mod relations;
mod survey;
mod transaction;
mod verdict;

pub(super) use self::mysql::{system_variable, tells_servers_apart};
use self::verdict::{Touched, Verdict};
pub use self::{
    mysql_set::{TURNED_AROUND, bound_variable},
    postgres_set::bound_set_config,
    relations::system_view,
};
use super::{
    Access, Dialect, Hints, Intent, LexModes, Reason,
    catalog::{Catalog, FunctionRules},
    effects::{Effect, Left, PinReason, said_of_next},
    hints::Target,
    lexer::{
        Kind,
        strip::{strip, stripped},
        tokens::{Phrase, Tokens},
    },
};

/// Text that is split into tokens as it is; of a longer one only the stripped text is read.
const MAX_EXACT_BYTES: usize = 32 * 1024;
/// Statements of one string that are judged one by one; a string of more is a write of anything.
const MAX_STATEMENTS: usize = 1000;

/// What a statement is judged by.
pub(super) struct Cx<'a> {
    dialect: Dialect,
    modes: LexModes,
    catalog: &'a Catalog,
    rules: &'a FunctionRules,
    /// Statements around the one that is judged (EXPLAIN, PREPARE, DECLARE …).
    depth: u8,
    /// The literals of the text are not those that the client sent.
    shortened: bool,
    /// Of the string, where it is one statement: a PREPARE hands them on.
    hints: &'a Hints,
}

/// Statements inside statements that are followed at most; the grammars know three.
const MAX_DEPTH: u8 = 4;

/// Reads `text` as `dialect` under `modes`; what it calls and touches is judged by `catalog` and
/// `rules`. Never fails: what cannot be understood is a write.
pub fn classify(
    text: &[u8],
    dialect: Dialect,
    modes: LexModes,
    catalog: &Catalog,
    rules: &FunctionRules,
) -> Intent {
    let modes = modes.for_text(text);
    let fingerprint = stripped(text, dialect, modes).hash as u64;
    let short = (text.len() > MAX_EXACT_BYTES).then(|| strip(text, dialect, modes));
    let shortened = short.is_some();
    let cx = Cx { dialect, modes, catalog, rules, depth: 0, shortened, hints: &Hints::default() };
    let intent = match &short {
        Some(short) if short.len() > MAX_EXACT_BYTES => too_long(text),
        Some(short) => judge(short, &cx),
        None => judge(text, &cx),
    };
    Intent { fingerprint, ..intent }
}

/// Whether a statement shows how something was defined. MariaDB (10.11) tells of a view what was so when
/// the statement was prepared, and dies where the view has become a table since.
pub fn shows_definition(text: &[u8], modes: LexModes) -> bool {
    let tokens = Tokens::of(text, Dialect::Mysql, modes);
    Phrase { text, tokens: &tokens.list, dialect: Dialect::Mysql, modes }.says(0, &["show", "create"])
}

/// Judges a whole string.
fn judge(text: &[u8], cx: &Cx<'_>) -> Intent {
    let tokens = Tokens::of(text, cx.dialect, cx.modes);
    let mut hints = Hints::default();
    for range in &tokens.hints {
        hints.add(&text[range.clone()]);
    }
    if !tokens.scan.clean {
        return Intent { hints, ..unreadable(text, cx) };
    }
    let whole = Phrase { text, tokens: &tokens.list, dialect: cx.dialect, modes: cx.modes };
    let has_foreign_name = cx.modes.foreign_letters && names_beyond_ascii(&whole);
    if has_foreign_name && cx.catalog.may_have_foreign_name() {
        return Intent { hints, ..publish(opaque(Reason::Unreadable), Hints::default(), 1) };
    }
    let phrases = statements(&whole);
    let cx = if phrases.len() == 1 { &Cx { hints: &hints, ..*cx } } else { cx };
    let verdict = if phrases.len() > MAX_STATEMENTS {
        opaque(Reason::TooLong)
    } else if tokens.scan.executable {
        executable(text, &phrases, cx)
    } else {
        judge_each(text, &phrases, cx)
    };
    let mut verdict = if cx.shortened { without_text(verdict) } else { verdict };
    if has_foreign_name {
        // Other sessions may write the same names in other bytes.
        verdict.tables = Touched::All;
    }
    let verdict = asked_for(verdict, &hints, matches!(phrases.as_slice(), [one] if is_query(one)));
    publish(verdict, hints, phrases.len())
}

/// Whether a name has letters beyond ASCII.
fn names_beyond_ascii(phrase: &Phrase<'_>) -> bool {
    (0..phrase.len())
        .any(|at| matches!(phrase.kind(at), Some(Kind::Word | Kind::Quoted)) && !phrase.raw(at).is_ascii())
}

/// Judges the statements of a string one after the other.
fn judge_each(text: &[u8], phrases: &[Phrase<'_>], cx: &Cx<'_>) -> Verdict {
    let mut left = InString::default();
    let mut whole: Option<Verdict> = None;
    for (at, phrase) in phrases.iter().enumerate() {
        let mut verdict = classify_phrase(phrase, cx);
        if has_body(phrase) && goes_on_behind_body(phrase) {
            verdict.effect(Effect::Touches);
        }
        let behind = phrase.tokens.last().map_or(&[][..], |last| &text[last.end..]);
        if at + 1 < phrases.len() && cx.dialect == Dialect::Mysql && rereads(phrase, &verdict, behind) {
            return opaque(Reason::Command);
        }
        if at + 1 < phrases.len() && begins_transactions(&verdict) {
            // What stands behind it may be in one, which is then open where it ran.
            verdict.raise(Reason::State);
        }
        let uses_next = !verdict.tables.is_none() || verdict.outdoes;
        if uses_next && cx.dialect == Dialect::Mysql && whole.as_ref().is_some_and(sets_next) {
            verdict.effect(Effect::UsesNext);
        }
        let verdict = left.of_itself(verdict);
        whole = Some(match whole {
            Some(before) => before.then(verdict),
            None => verdict,
        });
    }
    whole.unwrap_or_else(Verdict::session)
}

/// `SET autocommit = …` of MySQL.
fn begins_transactions(verdict: &Verdict) -> bool {
    verdict.effects.iter().any(|effect| matches!(effect, Effect::Set { name, .. } if &**name == "autocommit"))
}

/// All of a text that can be read, but for the semicolons at its end.
fn whole<'a>(text: &'a [u8], tokens: &'a Tokens, dialect: Dialect, modes: LexModes) -> Option<Phrase<'a>> {
    let end = tokens.list.iter().rposition(|token| token.kind != Kind::Semicolon)?;
    tokens.scan.clean.then(|| Phrase { text, tokens: &tokens.list[..=end], dialect, modes })
}

/// Whether something was said of the next transaction, as MySQL has it.
fn sets_next(verdict: &Verdict) -> bool {
    said_of_next(&verdict.effects).is_some()
}

/// Whether the server may read what stands behind a statement by other modes than it was read by here:
/// it looks at it only when the statement has run.
fn rereads(phrase: &Phrase<'_>, verdict: &Verdict, behind: &[u8]) -> bool {
    match mysql_set::reading_behind(phrase, verdict) {
        Reading::Same => false,
        Reading::Quotes => behind.iter().any(|byte| matches!(byte, b'\\' | b'"')),
        Reading::Unknown => true,
    }
}

/// How text is read behind a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reading {
    /// As before.
    Same,
    /// Backslashes and double quotes may mean something else.
    Quotes,
    /// In a way that is not known here.
    Unknown,
}

fn publish(verdict: Verdict, hints: Hints, statements: usize) -> Intent {
    let local = statements == 1 && matches!(verdict.reason, Reason::Read | Reason::Dml);
    Intent {
        access: verdict.access,
        reason: verdict.reason,
        effects: verdict.effects,
        tables: verdict.tables.publish(),
        hints,
        fingerprint: 0,
        statements: u32::try_from(statements).unwrap_or(u32::MAX),
        plain: verdict.plain && local,
        joins: verdict.joins,
        outdoes: verdict.outdoes,
        by_text: verdict.by_text,
    }
}

/// Judges a statement inside another one.
fn classify_inner(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    if cx.depth == MAX_DEPTH {
        return opaque(Reason::Unparsed);
    }
    classify_phrase(phrase, &Cx { depth: cx.depth + 1, ..*cx })
}

/// The intent of a statement that another one prepares.
fn intent_of(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Intent {
    let fingerprint = stripped(phrase.source(), cx.dialect, cx.modes).hash as u64;
    let verdict = asked_for(classify_phrase(phrase, cx), cx.hints, is_query(phrase));
    Intent { fingerprint, ..publish(verdict, cx.hints.clone(), 1) }
}

/// Judges one statement.
fn classify_phrase(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    match cx.dialect {
        Dialect::Postgres => {
            let mut verdict = postgres::judge(phrase, cx);
            calls::weigh_unnamed(&mut verdict, phrase, cx);
            verdict
        }
        Dialect::Mysql => mysql::judge(phrase, cx),
    }
}

/// Splits a string into its statements, without the empty ones.
fn statements<'a>(whole: &Phrase<'a>) -> Vec<Phrase<'a>> {
    let mut phrases = Vec::new();
    let (mut start, mut depth) = (0, 0_i32);
    for at in 0..whole.len() {
        match whole.kind(at) {
            Some(Kind::Punct) if whole.punct(at, b'(') => depth += 1,
            Some(Kind::Punct) if whole.punct(at, b')') => depth -= 1,
            // Inside parentheses only CREATE RULE has it.
            Some(Kind::Semicolon) if depth <= 0 => {
                let phrase = whole.range(start..at);
                if has_body(&phrase) {
                    break;
                }
                if phrase.len() > 0 {
                    phrases.push(phrase);
                }
                start = at + 1;
                depth = 0;
            }
            _ => {}
        }
    }
    let mut last = whole.from(start);
    while last.kind(last.len().wrapping_sub(1)) == Some(Kind::Semicolon) {
        last = last.range(0..last.len() - 1);
    }
    if last.len() > 0 {
        phrases.push(last);
    }
    phrases
}

/// Splits a script into its statements as they stand in it, comments included. Where a statement
/// ends that has a body of its own, or that is not understood, is not known: it goes on to the end.
pub fn split(text: &str, dialect: Dialect, modes: LexModes) -> Vec<&str> {
    let tokens = Tokens::of(text.as_bytes(), dialect, modes);
    if !tokens.scan.clean {
        return Some(text.trim()).filter(|text| !text.is_empty()).into_iter().collect();
    }
    let whole = Phrase { text: text.as_bytes(), tokens: &tokens.list, dialect, modes };
    let around = |phrase: &Phrase<'_>| {
        let (first, last) = (phrase.tokens.first()?, phrase.tokens.last()?);
        // What stands beside a statement is a semicolon or nothing.
        let before = tokens.list.partition_point(|token| token.start < first.start);
        let start = before.checked_sub(1).map_or(0, |before| tokens.list[before].end);
        let behind = tokens.list.partition_point(|token| token.start < last.end);
        let end = tokens.list.get(behind).map_or(text.len(), |token| token.start);
        text.get(start..end).map(str::trim)
    };
    statements(&whole).iter().filter_map(around).collect()
}

/// Whether a statement has a body with semicolons of its own, so that where it ends is not known.
fn has_body(phrase: &Phrase<'_>) -> bool {
    if phrase.says(0, &["begin", "not", "atomic"]) {
        return true;
    }
    if !phrase.is_any(0, &["create", "alter"]) {
        return false;
    }
    match phrase.dialect {
        Dialect::Postgres => phrase.contains(&["begin", "atomic"]),
        Dialect::Mysql => {
            let bodies = ["procedure", "function", "trigger", "event", "package"];
            (1..phrase.len().min(16)).any(|at| phrase.is_any(at, &bodies)) && phrase.contains(&["begin"])
        }
    }
}

/// Whether anything may follow the body of a statement: its statements are not judged.
fn goes_on_behind_body(phrase: &Phrase<'_>) -> bool {
    let begins = (0..phrase.len()).find(|&at| phrase.is(at, "begin"));
    let Some(begins) = begins else { return true };
    let mut depth = 0_i32;
    for at in begins..phrase.len() {
        // An expression's CASE has an END as well, a statement's END CASE.
        if phrase.is_any(at, &["begin", "case"]) && !phrase.is(at.wrapping_sub(1), "end") {
            depth += 1;
        } else if phrase.is(at, "end") && !phrase.is_any(at + 1, &["if", "loop", "while", "repeat", "for"]) {
            depth -= 1;
        }
        if depth <= 0 {
            // `END label`.
            return phrase.len() > at + 2 || phrase.kind(at + 1) == Some(Kind::Semicolon);
        }
    }
    true
}

/// What the statements of a string so far have left in their connection, for those behind them.
#[derive(Default)]
struct InString {
    /// What speaks of the very last statement.
    last: bool,
    /// LAST_INSERT_ID().
    insert_id: bool,
}

impl InString {
    /// A statement asks nothing of other strings for what an earlier one of its own leaves.
    fn of_itself(&mut self, mut verdict: Verdict) -> Verdict {
        let asks_last = |effect: &Effect| matches!(effect, Effect::NeedsLast(_));
        let leaves = !verdict.effects.iter().any(asks_last);
        if self.last {
            let found =
                verdict.effects.iter_mut().filter(|effect| **effect == Effect::NeedsLast(Left::Found));
            found.for_each(|effect| *effect = Effect::AsksFoundItself);
            verdict.effects.retain(|effect| !asks_last(effect));
        }
        if self.insert_id {
            let previous = verdict.effects.iter_mut().filter(|effect| **effect == Effect::NeedsPrevious);
            previous.for_each(|effect| *effect = Effect::AsksItself);
        }
        self.last |= leaves;
        self.insert_id |= verdict.reason == Reason::Dml;
        verdict
    }
}

/// A write of which nothing else is known.
fn opaque(reason: Reason) -> Verdict {
    Verdict::write(reason).with(Effect::DrawsSequence).with(Effect::Touches).apart()
}

/// `/*! … */`: whether its inside runs depends on the server's version.
fn executable(text: &[u8], phrases: &[Phrase<'_>], cx: &Cx<'_>) -> Verdict {
    let mut verdict = match phrases {
        [phrase] => classify_phrase(phrase, cx),
        _ => opaque(Reason::Command),
    };
    let hides = matches!(phrases, [phrase] if hides_another(text, phrase));
    if hides || verdict.reason == Reason::Unparsed {
        verdict = opaque(Reason::Command);
    }
    verdict.raise(Reason::Command);
    verdict.plain = false;
    without_text(verdict)
}

/// Whether a statement begins inside such a comment and goes on behind it: without the comment it is
/// another one (`/*M!999999 enable the sandbox mode */ /*!40101 SET …`, as dumps begin).
fn hides_another(text: &[u8], phrase: &Phrase<'_>) -> bool {
    let (Some(first), Some(last)) = (phrase.tokens.first(), phrase.tokens.last()) else { return false };
    let opens = |part: &[u8]| {
        part.windows(3).filter(|bytes| bytes == b"/*!").count()
            + part.windows(4).filter(|bytes| bytes == b"/*M!").count()
    };
    let ends = text[last.end..].trim_ascii_start().starts_with(b"*/");
    opens(&text[..first.start]) > 0 && !(opens(text) == 1 && ends)
}

/// Replaces effects that depend on exact text, where the text is not certain.
fn without_text(mut verdict: Verdict) -> Verdict {
    let uncertain = |effect: &Effect| {
        matches!(
            effect,
            Effect::Set { .. }
                | Effect::Reset { .. }
                | Effect::ResetAll
                | Effect::Prepare { .. }
                | Effect::UseDatabase(_)
                | Effect::Proxy(_)
                | Effect::SetTransaction(_)
                | Effect::SetNext(_)
        )
    };
    if verdict.effects.iter().any(uncertain) {
        verdict.effects.retain(|effect| !uncertain(effect));
        verdict.raise(Reason::State);
        verdict.pin(PinReason::Setting);
    }
    for effect in &mut verdict.effects {
        if matches!(effect, Effect::Begin(_)) {
            *effect = Effect::BeginUnknown;
        }
    }
    verdict
}

/// What cannot be split into tokens.
fn unreadable(text: &[u8], cx: &Cx<'_>) -> Intent {
    let reason = if cx.modes.are_known() { Reason::Unparsed } else { Reason::Unreadable };
    let blank = text.iter().all(u8::is_ascii_whitespace);
    publish(opaque(reason), Hints::default(), usize::from(!blank))
}

/// Too long even without its literals: judged by its leading keyword.
fn too_long(text: &[u8]) -> Intent {
    let word = text.trim_ascii_start();
    let word = &word[..word.iter().take_while(|b| b.is_ascii_alphabetic()).count()];
    let dml: [&[u8]; 5] = [b"insert", b"update", b"delete", b"merge", b"replace"];
    let is_dml = dml.iter().any(|keyword| word.eq_ignore_ascii_case(keyword));
    let mut verdict = opaque(if is_dml { Reason::Dml } else { Reason::TooLong });
    if !is_dml && !word.eq_ignore_ascii_case(b"select") && !word.eq_ignore_ascii_case(b"with") {
        verdict.pin(PinReason::Setting);
    }
    publish(verdict, Hints::default(), 1)
}

fn is_query(phrase: &Phrase<'_>) -> bool {
    phrase.is_any(0, &["select", "with", "values", "table"])
}

/// A client that says `replica` vouches for a query that was not understood or calls a function
/// that is not known to read; the replica itself refuses what writes.
fn asked_for(mut verdict: Verdict, hints: &Hints, is_query: bool) -> Verdict {
    let harmless = |effect: &Effect| matches!(effect, Effect::Touches | Effect::DrawsSequence);
    let doubtful = matches!(verdict.reason, Reason::Function | Reason::Server)
        || (verdict.reason == Reason::Unparsed && is_query);
    if hints.target == Some(Target::Replica) && doubtful && verdict.effects.iter().all(harmless) {
        verdict.access = Access::Read;
        verdict.reason = Reason::Hint;
    }
    verdict
}

#[cfg(test)]
mod tests;
