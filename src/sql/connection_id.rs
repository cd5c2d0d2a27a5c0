//! `CONNECTION_ID()` means the client's connection, whose number no server knows: in the text that
//! servers get, the number stands in its place.

use super::{
    Dialect, LexModes,
    lexer::{
        Kind,
        tokens::{Phrase, Tokens},
    },
};

/// Statements in which the name is left alone: what a definition means is decided when it is used, and
/// KILL is the proxy's to read.
const LEFT_ALONE: [&str; 3] = ["create", "alter", "kill"];

/// Words before the first item of a select list.
const SELECT_MODIFIERS: [&str; 6] =
    ["select", "distinct", "all", "high_priority", "straight_join", "sql_no_cache"];

/// Words behind a select list.
const ENDS_LIST: [&str; 10] =
    ["from", "where", "group", "having", "order", "limit", "union", "into", "for", "procedure"];

/// Whether a statement calls the function where its call may be replaced.
pub(super) fn asks(phrase: &Phrase<'_>) -> bool {
    !phrase.is_any(0, &LEFT_ALONE)
        && (0..phrase.len()).any(|at| is_call(phrase, at))
        && !asks_for_holder(phrase)
}

/// Whether the statement asks who holds a lock: the answer is a server's number, and has to be compared
/// with a server's. A session with a lock keeps the connection that holds it.
fn asks_for_holder(phrase: &Phrase<'_>) -> bool {
    (0..phrase.len())
        .take_while(|at| phrase.kind(*at) != Some(Kind::Semicolon))
        .any(|at| phrase.is(at, "is_used_lock") && phrase.punct(at + 1, b'('))
}

/// The text with `number` in the place of every call. An item of a select list keeps its name.
pub fn replace(text: &[u8], modes: LexModes, number: u32) -> Vec<u8> {
    let tokens = Tokens::of(text, Dialect::Mysql, modes);
    let phrase = Phrase { text, tokens: &tokens.list, dialect: Dialect::Mysql, modes };
    let mut out = Vec::with_capacity(text.len() + 32);
    let (mut copied, mut begins, mut leave) = (0, true, false);
    // Whether what is read stands in a select list, by depth of parentheses.
    let mut lists = vec![false];
    for at in 0..phrase.len() {
        if begins {
            leave = phrase.is_any(at, &LEFT_ALONE) || asks_for_holder(&phrase.from(at));
        }
        if begins && phrase.is_any(at, &LEFT_ALONE[..2]) {
            // The body of a routine holds statements of its own.
            break;
        }
        begins = phrase.kind(at) == Some(Kind::Semicolon);
        if phrase.punct(at, b'(') {
            lists.push(false);
        } else if phrase.punct(at, b')') && lists.len() > 1 {
            lists.pop();
        } else if let Some(list) = lists.last_mut() {
            *list = phrase.is(at, "select") || (*list && !begins && !phrase.is_any(at, &ENDS_LIST));
        }
        if leave || !is_call(&phrase, at) {
            continue;
        }
        let (start, end) = (phrase.tokens[at].start, phrase.tokens[at + 2].end);
        out.extend_from_slice(&text[copied..start]);
        out.extend_from_slice(format!("CAST({number} AS UNSIGNED)").as_bytes());
        if lists.last() == Some(&true) && is_whole_item(&phrase, at) {
            out.extend_from_slice(b" AS `");
            out.extend_from_slice(&text[start..end]);
            out.push(b'`');
        }
        copied = end;
    }
    out.extend_from_slice(&text[copied..]);
    out
}

fn is_call(phrase: &Phrase<'_>, at: usize) -> bool {
    phrase.is(at, "connection_id")
        && phrase.punct(at + 1, b'(')
        && phrase.punct(at + 2, b')')
        && !(at > 0 && phrase.punct(at - 1, b'.'))
}

/// Whether the call at `at` is all of an item that has no name of its own.
fn is_whole_item(phrase: &Phrase<'_>, at: usize) -> bool {
    let first = at > 0 && (phrase.punct(at - 1, b',') || phrase.is_any(at - 1, &SELECT_MODIFIERS));
    let behind = at + 3;
    let last = phrase.ends_at(behind)
        || phrase.kind(behind) == Some(Kind::Semicolon)
        || [b',', b')'].iter().any(|byte| phrase.punct(behind, *byte))
        || (phrase.kind(behind) == Some(Kind::Word) && phrase.is_any(behind, &ENDS_LIST));
    first && last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_number_stands_in_the_place_of_every_call() {
        for (text, expected) in [
            ("SELECT CONNECTION_ID()", "SELECT CAST(7 AS UNSIGNED) AS `CONNECTION_ID()`"),
            ("select connection_id ( ) , 1;", "select CAST(7 AS UNSIGNED) AS `connection_id ( )` , 1;"),
            ("SELECT connection_id() AS id FROM t", "SELECT CAST(7 AS UNSIGNED) AS id FROM t"),
            ("SELECT connection_id() id", "SELECT CAST(7 AS UNSIGNED) id"),
            ("SELECT 1 + connection_id()", "SELECT 1 + CAST(7 AS UNSIGNED)"),
            ("SELECT f(1, connection_id())", "SELECT f(1, CAST(7 AS UNSIGNED))"),
            (
                "SELECT 1 FROM t WHERE id = connection_id() ORDER BY 1, connection_id()",
                "SELECT 1 FROM t WHERE id = CAST(7 AS UNSIGNED) ORDER BY 1, CAST(7 AS UNSIGNED)",
            ),
            ("INSERT INTO t VALUES (1, connection_id())", "INSERT INTO t VALUES (1, CAST(7 AS UNSIGNED))"),
            (
                "SELECT * FROM (SELECT connection_id()) t",
                "SELECT * FROM (SELECT CAST(7 AS UNSIGNED) AS `connection_id()`) t",
            ),
            ("SELECT 'connection_id()', `connection_id`", "SELECT 'connection_id()', `connection_id`"),
            ("SELECT shop.connection_id()", "SELECT shop.connection_id()"),
            ("SELECT connection_id(1), connection_id", "SELECT connection_id(1), connection_id"),
            ("KILL connection_id()", "KILL connection_id()"),
            (
                "SELECT IS_USED_LOCK('x') = connection_id(); DO connection_id()",
                "SELECT IS_USED_LOCK('x') = connection_id(); DO CAST(7 AS UNSIGNED)",
            ),
            ("KILL connection_id(); DO connection_id()", "KILL connection_id(); DO CAST(7 AS UNSIGNED)"),
            (
                "CREATE PROCEDURE p() BEGIN SELECT connection_id(); END",
                "CREATE PROCEDURE p() BEGIN SELECT connection_id(); END",
            ),
        ] {
            let replaced = replace(text.as_bytes(), LexModes::default_of(Dialect::Mysql), 7);
            assert_eq!(String::from_utf8_lossy(&replaced), expected);
        }
    }
}
