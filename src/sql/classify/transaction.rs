//! Transaction control: exact forms only.

use super::verdict::Verdict;
use crate::sql::{
    Access, Dialect, Reason,
    effects::{Effect, Isolation, TransactionModes},
    lexer::tokens::Phrase,
};

/// Judges transaction control; `None` if it is something else, or a form that only the server can
/// judge.
pub(super) fn command(phrase: &Phrase<'_>) -> Option<Verdict> {
    let leading = phrase.leading();
    match leading.as_str() {
        "begin" => Some(begin(phrase, after_noise(phrase, 1))),
        "start" if phrase.is(1, "transaction") => Some(begin(phrase, 2)),
        "commit" | "end" | "rollback" | "abort" => end(phrase, &leading),
        "savepoint" if phrase.len() == 2 => named(phrase, 1, Effect::Savepoint),
        "release" => {
            let at = if phrase.is(1, "savepoint") && phrase.len() > 2 { 2 } else { 1 };
            (phrase.len() == at + 1).then(|| named(phrase, at, Effect::Release))?
        }
        _ => None,
    }
}

fn named(phrase: &Phrase<'_>, at: usize, effect: impl Fn(Box<str>) -> Effect) -> Option<Verdict> {
    Some(Verdict::transaction(effect(phrase.name(at)?.into())))
}

/// Behind an optional WORK or TRANSACTION.
fn after_noise(phrase: &Phrase<'_>, at: usize) -> usize {
    let noise: &[&str] = match phrase.dialect {
        Dialect::Postgres => &["work", "transaction"],
        Dialect::Mysql => &["work"],
    };
    if phrase.is_any(at, noise) { at + 1 } else { at }
}

fn begin(phrase: &Phrase<'_>, at: usize) -> Verdict {
    let modes = modes(phrase, at);
    let effect = modes.map_or(Effect::BeginUnknown, Effect::Begin);
    // A standby cannot run serializable transactions, read-only ones included.
    let reads = modes.is_some_and(|modes| {
        modes.read_only == Some(true) && modes.isolation != Some(Isolation::Serializable)
    });
    let access = if reads { Access::Read } else { Access::Write };
    // PostgreSQL goes on with the transaction that is open.
    let outdoes = phrase.dialect == Dialect::Mysql;
    Verdict { access, outdoes, ..Verdict::transaction(effect) }
}

/// Transaction modes from `at` to the end; `None` if anything else stands there.
pub(super) fn modes(phrase: &Phrase<'_>, at: usize) -> Option<TransactionModes> {
    let mut modes = TransactionModes::default();
    let mut at = at;
    let first = at;
    // PostgreSQL needs no commas and takes the last word on each mode; MySQL wants them, and one word.
    let strict = phrase.dialect == Dialect::Mysql;
    while !phrase.ends_at(at) {
        match phrase.punct(at, b',') {
            true if at > first => at += 1,
            _ if strict && at > first => return None,
            _ => {}
        }
        let twice = match phrase.is(at, "read") {
            true => modes.read_only.is_some(),
            false => modes.isolation.is_some() && phrase.is(at, "isolation"),
        };
        if strict && twice {
            return None;
        }
        at += if phrase.says(at, &["read", "only"]) {
            modes.read_only = Some(true);
            2
        } else if phrase.says(at, &["read", "write"]) {
            modes.read_only = Some(false);
            2
        } else if phrase.says(at, &["isolation", "level"]) {
            let (isolation, words) = isolation(phrase, at + 2)?;
            modes.isolation = Some(isolation);
            2 + words
        } else if phrase.is(at, "deferrable") {
            modes.deferrable = Some(true);
            1
        } else if phrase.says(at, &["not", "deferrable"]) {
            modes.deferrable = Some(false);
            2
        } else {
            return None;
        };
    }
    Some(modes)
}

fn isolation(phrase: &Phrase<'_>, at: usize) -> Option<(Isolation, usize)> {
    Some(if phrase.is(at, "serializable") {
        (Isolation::Serializable, 1)
    } else if phrase.says(at, &["repeatable", "read"]) {
        (Isolation::RepeatableRead, 2)
    } else if phrase.says(at, &["read", "committed"]) {
        (Isolation::ReadCommitted, 2)
    } else if phrase.says(at, &["read", "uncommitted"]) {
        (Isolation::ReadUncommitted, 2)
    } else {
        return None;
    })
}

fn end(phrase: &Phrase<'_>, leading: &str) -> Option<Verdict> {
    let commits = matches!(leading, "commit" | "end");
    if matches!(leading, "commit" | "rollback") && phrase.is(1, "prepared") && phrase.len() == 3 {
        return Some(Verdict::write(Reason::Command).apart());
    }
    let at = after_noise(phrase, 1);
    if leading == "rollback" && phrase.is(at, "to") {
        let at = if phrase.is(at + 1, "savepoint") && phrase.len() > at + 2 { at + 2 } else { at + 1 };
        return if phrase.len() == at + 1 { named(phrase, at, Effect::RollbackTo) } else { None };
    }
    let (chain, at) = if phrase.says(at, &["and", "chain"]) {
        (true, at + 2)
    } else if phrase.says(at, &["and", "no", "chain"]) {
        (false, at + 3)
    } else {
        (false, at)
    };
    let (leaves, at) = match phrase.dialect {
        Dialect::Mysql if phrase.says(at, &["no", "release"]) => (false, at + 2),
        Dialect::Mysql if phrase.is(at, "release") => (true, at + 1),
        _ => (false, at),
    };
    let effect = if commits { Effect::Commit { chain } } else { Effect::Rollback { chain } };
    let mut verdict = phrase.ends_at(at).then(|| Verdict::transaction(effect))?;
    verdict.outdoes = phrase.dialect == Dialect::Mysql && !chain;
    Some(if leaves { verdict.with(Effect::Leave) } else { verdict })
}
