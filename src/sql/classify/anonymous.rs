//! PostgreSQL's DO, whose body stands in the statement.

use super::{
    Cx, calls,
    relations::{self, Use},
    survey::{Call, Named},
    verdict::Verdict,
};
use crate::sql::{
    LexModes, Reason,
    body::{DEFINITIONS, has_telltale},
    effects::Effect,
    lexer::{
        Kind,
        tokens::{Phrase, Tokens},
    },
};

/// Judges a DO: what it does to data is as unknown as before, what it leaves in the session its body tells.
pub(super) fn judge(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut verdict = Verdict::write(Reason::Command).with(Effect::DrawsSequence).apart();
    match plpgsql(phrase).filter(|body| is_readable(body, cx)) {
        Some(body) => weigh(&mut verdict, &body, cx),
        None => verdict.effect(Effect::Touches),
    }
    verdict
}

/// Whether the body is what the server gets, in the letters of the catalog.
fn is_readable(body: &str, cx: &Cx<'_>) -> bool {
    !cx.shortened && (!cx.modes.foreign_letters || body.is_ascii())
}

/// The body of a block in PL/pgSQL, the language where none is named; before or behind it.
fn plpgsql(phrase: &Phrase<'_>) -> Option<String> {
    let (mut body, mut language) = (None, None);
    let mut at = 1;
    while !phrase.ends_at(at) {
        let (before, found) = match phrase.is(at, "language") {
            true => {
                at += 1;
                (&mut language, phrase.name(at).or_else(|| phrase.string(at))?)
            }
            false => (&mut body, phrase.string(at)?),
        };
        // The server refuses what is said twice.
        if before.replace(found).is_some() {
            return None;
        }
        at += 1;
    }
    body.filter(|_| language.is_none_or(|language| language == "plpgsql"))
}

fn weigh(verdict: &mut Verdict, body: &str, cx: &Cx<'_>) {
    // What runs reads its strings by what the session has set by then: it may set that itself, just before.
    let other = LexModes { standard_strings: !cx.modes.standard_strings, ..cx.modes };
    for modes in std::iter::once(cx.modes).chain(body.contains('\\').then_some(other)) {
        weigh_by(verdict, body, modes, cx);
    }
}

fn weigh_by(verdict: &mut Verdict, body: &str, modes: LexModes, cx: &Cx<'_>) {
    let tokens = Tokens::of(body.as_bytes(), cx.dialect, modes);
    let body = Phrase { text: body.as_bytes(), tokens: &tokens.list, dialect: cx.dialect, modes };
    if !tokens.scan.clean || has_telltale(&body) || makes_code(&body) || leaves_state(&body, cx) {
        verdict.effect(Effect::Touches);
    }
    if has_any(&body, &["create", "alter", "drop", "import"]) {
        verdict.effect(Effect::Ddl);
        verdict.effect(Effect::Redefines);
    }
    // (INTO gives a value to a variable here.)
    if has_any(&body, &DEFINITIONS) {
        relations::weigh_definition(verdict, cx);
    }
}

fn has_any(body: &Phrase<'_>, words: &[&str]) -> bool {
    (0..body.len()).any(|at| body.is_any(at, words))
}

/// Whether it may make or replace functions, and call them before any catalog tells of them.
fn makes_code(body: &Phrase<'_>) -> bool {
    has_any(body, &["function", "procedure", "routine", "aggregate", "extension", "rule"])
}

/// Whether something that it names is known to leave state behind, or something that it calls is not known.
fn leaves_state(body: &Phrase<'_>, cx: &Cx<'_>) -> bool {
    let mut named = Verdict::write(Reason::Command);
    calls::weigh_unnamed(&mut named, body, cx);
    relations::weigh_tokens(&mut named, body, cx);
    for at in 0..body.len() {
        let Some(name) = body.name(at) else { continue };
        let qualified = at > 1 && body.punct(at - 1, b'.');
        let schema = if qualified { body.name(at - 2) } else { None };
        let name = Named { schema, name };
        // It may be the target of a write as well as what is read, and a function without its parentheses.
        relations::weigh(&mut named, &name, Use::Write, cx);
        let is_known = cx.catalog.functions.contains_key(name.name.as_str());
        if is_known || (body.punct(at + 1, b'(') && is_call(body, at, qualified)) {
            calls::weigh(&mut named, &Call { function: name, ends_in_true: false }, body, cx);
        }
    }
    let leaves = |effect: &Effect| matches!(effect, Effect::Touches | Effect::Pin(_) | Effect::NeedsPrevious);
    named.effects.iter().any(leaves)
}

/// Whether the name of nothing that is known, before a parenthesis, may be a function's all the same.
fn is_call(body: &Phrase<'_>, at: usize, qualified: bool) -> bool {
    // Of tables and aliases, whose columns stand in the parentheses.
    const BEFORE_TABLES: [&str; 5] = ["into", "table", "exists", "references", "as"];
    let mut first = at;
    while first > 1 && body.punct(first - 1, b'.') {
        first -= 2;
    }
    let names_table = first > 0 && body.is_any(first - 1, &BEFORE_TABLES);
    !names_table && (qualified || !(calls::is_keyword(body, at) || is_grammar(body, at)))
}

/// Whether a word that may stand before a parenthesis is the language's own.
fn is_grammar(body: &Phrase<'_>, at: usize) -> bool {
    const RESERVED: [&str; 7] = ["table", "check", "unique", "default", "to", "do", "into"];
    const STATEMENTS: [&str; 7] = ["if", "elsif", "elseif", "while", "return", "perform", "assert"];
    const OPENERS: [&str; 4] = ["begin", "then", "else", "loop"];
    const PAIRS: [[&str; 2]; 6] = [
        ["primary", "key"],
        ["foreign", "key"],
        ["return", "query"],
        ["return", "next"],
        ["character", "varying"],
        ["bit", "varying"],
    ];
    let before = at.checked_sub(1);
    let begins_statement = before
        .is_none_or(|before| body.kind(before) == Some(Kind::Semicolon) || body.is_any(before, &OPENERS));
    body.is_any(at, &RESERVED)
        || (begins_statement && body.is_any(at, &STATEMENTS))
        || before.is_some_and(|before| PAIRS.iter().any(|pair| body.says(before, pair)))
}
