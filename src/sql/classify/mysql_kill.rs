//! `KILL [HARD|SOFT] [CONNECTION|QUERY] number`, and what else MariaDB takes for the number.

use super::verdict::Verdict;
use crate::sql::{
    Reason,
    effects::{Effect, Ending, Ends, Force, Whom},
    lexer::{Kind, tokens::Phrase},
};

pub(super) fn kill(phrase: &Phrase<'_>) -> Verdict {
    let force = if phrase.is(1, "soft") { Force::Soft } else { Force::Hard };
    let at = if phrase.is_any(1, &["hard", "soft"]) { 2 } else { 1 };
    let ends = if phrase.is(at, "query") { Ends::Statement } else { Ends::Session };
    let at = if phrase.is_any(at, &["query", "connection"]) { at + 1 } else { at };
    match whom(phrase.from(at)) {
        Some(whom) => Verdict::session().with(Effect::Kill { whom, ending: Ending { ends, force } }),
        None => Verdict::write(Reason::Command),
    }
}

/// `None`: the server is to say, which knows a query by its number, or that this is nobody's.
fn whom(expression: Phrase<'_>) -> Option<Whom> {
    let inside = within_parentheses(expression);
    let number = if inside.punct(0, b'+') { inside.from(1) } else { inside };
    if let (1, Some(id)) = (number.len(), literal(&number)) {
        return Some(Whom::Number(id));
    }
    let calls = inside.is(0, "connection_id") && inside.punct(1, b'(') && inside.punct(2, b')');
    match inside.len() {
        3 if calls => Some(Whom::Itself),
        // Of no table there is a column.
        0 | 1 if inside.kind(0).is_none_or(|kind| kind == Kind::Word) && !inside.is(0, "true") => None,
        _ if expression.is(0, "id") => None,
        _ => Some(Whom::Computed),
    }
}

fn within_parentheses(expression: Phrase<'_>) -> Phrase<'_> {
    let mut inside = expression;
    while inside.punct(0, b'(') && inside.closing(0) == Some(inside.len() - 1) {
        inside = inside.range(1..inside.len() - 1);
    }
    inside
}

fn literal(number: &Phrase<'_>) -> Option<u64> {
    match number.kind(0)? {
        Kind::Number => std::str::from_utf8(number.raw(0)).ok()?.parse().ok(),
        Kind::Text => number.string(0)?.parse().ok(),
        _ => None,
    }
}
