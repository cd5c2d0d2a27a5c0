//! PostgreSQL's statements other than queries, recognised by their tokens.

use super::{
    Cx, anonymous, calls, classify_inner, postgres_set, query, relations,
    survey::Named,
    transaction,
    verdict::{Touched, Verdict},
};
use crate::sql::{
    Access, Reason,
    effects::{Discard, Effect, PinReason},
    lexer::{Kind, tokens::Phrase},
};

/// Judges one statement.
pub(super) fn judge(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let leading = phrase.leading();
    match leading.as_str() {
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            transaction::command(phrase).unwrap_or_else(|| Verdict::write(Reason::Unparsed).apart())
        }
        // Inside EXPLAIN, DECLARE or COPY it may not run, or not now.
        "select" if cx.depth == 0 => {
            let setting = postgres_set::set_config(phrase).or_else(|| postgres_set::current_setting(phrase));
            setting.unwrap_or_else(|| query::judge(phrase, cx))
        }
        "select" | "insert" | "update" | "delete" | "merge" | "with" | "values" | "table" | "" => {
            query::judge(phrase, cx)
        }
        "set" => postgres_set::set(phrase),
        "reset" => postgres_set::reset(phrase),
        "show" => postgres_set::show(phrase),
        "explain" => explain(phrase, cx),
        "prepare" | "execute" | "deallocate" => prepared(phrase, &leading, cx),
        "discard" => discard(phrase),
        "copy" => copy(phrase, cx),
        "declare" | "fetch" | "move" | "close" => cursor(phrase, &leading, cx),
        "lock" => Verdict::write(Reason::Lock),
        "listen" => listening().with(Effect::Pin(PinReason::Listen)),
        "unlisten" if phrase.punct(1, b'*') => listening().with(Effect::Unpin(PinReason::Listen)),
        "unlisten" => listening(),
        "notify" => notification(),
        "load" => Verdict::state().with(Effect::Pin(PinReason::Library)),
        "do" => anonymous::judge(phrase, cx),
        // A procedure is a function to the catalog.
        "call" => query::unparsed(phrase, cx, Reason::Command).apart(),
        _ => definition(phrase, &leading, cx),
    }
}

/// Changes what the session hears, and no data: no later read has to wait for it.
fn listening() -> Verdict {
    Verdict { tables: Touched::none(), ..Verdict::state() }
}

fn notification() -> Verdict {
    Verdict { tables: Touched::none(), ..Verdict::write(Reason::Command) }
}

fn explain(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let at = if phrase.punct(1, b'(') {
        phrase.closing(1).map(|closing| closing + 1)
    } else {
        Some(
            (1..).take_while(|&at| phrase.is_any(at, &["analyze", "analyse", "verbose"])).last().unwrap_or(0)
                + 1,
        )
    };
    let Some(inner) = at.map(|at| phrase.from(at)).filter(|inner| inner.len() > 0) else {
        return Verdict::write(Reason::Unparsed);
    };
    // `EXPLAIN (…)` may also be a query in parentheses.
    if phrase.punct(1, b'(') && phrase.is_any(2, &["select", "with", "values", "table"]) {
        return Verdict { plain: false, ..query::judge(&phrase.from(1), cx) };
    }
    if inner.is(0, "execute") {
        return match inner.name(1) {
            Some(name) => Verdict::write(Reason::Command).with(Effect::Execute { name: name.into() }),
            None => Verdict::write(Reason::Unparsed),
        };
    }
    Verdict { plain: false, ..query_only(&inner, cx) }
}

/// Judges what stands inside another statement, where only a query may stand.
fn query_only(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    const ALLOWED: [&str; 11] = [
        "select", "insert", "update", "delete", "merge", "with", "values", "table", "declare", "create",
        "refresh",
    ];
    if phrase.punct(0, b'(') || phrase.is_any(0, &ALLOWED) {
        classify_inner(phrase, cx)
    } else {
        Verdict::write(Reason::Unparsed)
    }
}

fn prepared(phrase: &Phrase<'_>, leading: &str, cx: &Cx<'_>) -> Verdict {
    if leading == "prepare" && phrase.is(1, "transaction") && phrase.kind(2) == Some(Kind::Text) {
        return Verdict::write(Reason::Command).with(Effect::PrepareTransaction).apart();
    }
    let odd = || Verdict::state().with(Effect::Pin(PinReason::Setting));
    match leading {
        "prepare" => prepare(phrase, cx).unwrap_or_else(odd),
        "execute" => match phrase.name(1) {
            Some(name) if phrase.len() == 2 || phrase.closing(2) == Some(phrase.len() - 1) => {
                let mut verdict = Verdict::session().with(Effect::Execute { name: name.into() });
                calls::weigh_tokens(&mut verdict, &phrase.from(3), cx);
                verdict
            }
            _ => odd(),
        },
        _ => {
            let at = if phrase.is(1, "prepare") && phrase.len() > 2 { 2 } else { 1 };
            let name = if phrase.is(at, "all") { None } else { phrase.name(at).map(Into::into) };
            match phrase.len() == at + 1 && (name.is_some() || phrase.is(at, "all")) {
                true => Verdict::session().with(Effect::Deallocate { name }),
                false => Verdict::write(Reason::Unparsed),
            }
        }
    }
}

fn prepare(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Option<Verdict> {
    let name = phrase.name(1)?.into();
    let at = if phrase.punct(2, b'(') { phrase.closing(2)? + 1 } else { 2 };
    if !phrase.is(at, "as") || phrase.ends_at(at + 1) {
        return None;
    }
    let inner = phrase.from(at + 1);
    if !inner.punct(0, b'(')
        && !inner.is_any(0, &["select", "insert", "update", "delete", "merge", "with", "values", "table"])
    {
        return None;
    }
    let inner = Box::new(super::intent_of(&inner, cx));
    let statement = phrase.source_text()?.into();
    Some(Verdict::session().with(Effect::Prepare { name, statement, inner }))
}

fn discard(phrase: &Phrase<'_>) -> Verdict {
    let what = match () {
        () if phrase.len() != 2 => return Verdict::write(Reason::Unparsed),
        () if phrase.is(1, "all") => Discard::All,
        () if phrase.is(1, "plans") => Discard::Plans,
        () if phrase.is(1, "sequences") => Discard::Sequences,
        () if phrase.is_any(1, &["temp", "temporary"]) => Discard::Temp,
        () => return Verdict::write(Reason::Unparsed),
    };
    let verdict = match what {
        Discard::All => Verdict::session().apart(),
        Discard::Plans => Verdict::session(),
        Discard::Sequences | Discard::Temp => Verdict::state(),
    };
    verdict.with(Effect::Discard(what))
}

/// `COPY … TO STDOUT` reads; everything else writes, a table or the server's files.
fn copy(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let (source, at) = if phrase.punct(1, b'(') {
        let Some(closing) = phrase.closing(1) else { return Verdict::write(Reason::Unparsed) };
        (Some(query_only(&phrase.range(2..closing), cx)), closing + 1)
    } else {
        let Some((_, mut at)) = phrase.qualified(1) else { return Verdict::write(Reason::Unparsed) };
        if phrase.punct(at, b'(') {
            at = phrase.closing(at).map_or(phrase.len(), |closing| closing + 1);
        }
        (None, at)
    };
    if phrase.says(at, &["to", "stdout"]) {
        let verdict = source.unwrap_or_else(|| copied_table(phrase, cx));
        return Verdict { plain: false, ..verdict };
    }
    if phrase.is(at, "from") && source.is_none() {
        let mut verdict = Verdict { plain: false, ..written_table(phrase, cx) };
        verdict.effect(Effect::DrawsSequence);
        return verdict;
    }
    let mut verdict = source.unwrap_or_else(|| Verdict::write(Reason::Command));
    verdict.raise(Reason::Command);
    Verdict { plain: false, ..verdict }
}

fn named_table(phrase: &Phrase<'_>) -> Named {
    let (name, end) = phrase.qualified(1).unwrap_or_default();
    let schema = if end > 2 { phrase.name(end.saturating_sub(3)) } else { None };
    Named { schema, name }
}

fn copied_table(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut verdict = Verdict::read();
    relations::weigh(&mut verdict, &named_table(phrase), relations::Use::Read, cx);
    if !cx.catalog.loaded {
        verdict.tables = Touched::All;
    }
    verdict
}

fn written_table(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut verdict = Verdict { tables: Touched::none(), ..Verdict::write(Reason::Dml) };
    relations::weigh(&mut verdict, &named_table(phrase), relations::Use::Write, cx);
    if !cx.catalog.loaded {
        verdict.tables = Touched::All;
    }
    verdict
}

fn cursor(phrase: &Phrase<'_>, leading: &str, cx: &Cx<'_>) -> Verdict {
    if leading == "close" && phrase.is(1, "all") {
        return Verdict { access: Access::Read, ..Verdict::state() }
            .with(Effect::Cursor)
            .with(Effect::Unpin(PinReason::HoldCursor));
    }
    if leading != "declare" {
        let verdict = Verdict { access: Access::Read, ..Verdict::state() }.with(Effect::Cursor);
        return match phrase.name(1) {
            Some(name) if leading == "close" => verdict.with(Effect::ClosesCursor(name.into())),
            _ => verdict,
        };
    }
    let Some(at) = (2..phrase.len()).find(|&at| phrase.is(at, "cursor")) else {
        return Verdict::write(Reason::Unparsed).with(Effect::Pin(PinReason::HoldCursor));
    };
    let (holds, at) = match () {
        () if phrase.says(at + 1, &["with", "hold"]) => (true, at + 3),
        () if phrase.says(at + 1, &["without", "hold"]) => (false, at + 3),
        () => (false, at + 1),
    };
    if !phrase.is(at, "for") {
        return Verdict::write(Reason::Unparsed).with(Effect::Pin(PinReason::HoldCursor));
    }
    let mut verdict = Verdict { plain: false, ..query_only(&phrase.from(at + 1), cx) };
    if holds {
        verdict.raise(Reason::State);
        verdict.pin(PinReason::HoldCursor);
        if let Some(name) = phrase.name(1) {
            verdict.effect(Effect::HoldsCursor(name.into()));
        }
    } else if verdict.access == Access::Read {
        verdict.reason = Reason::State;
    }
    verdict.with(Effect::Cursor)
}

/// Data definition and everything else that only a primary runs.
fn definition(phrase: &Phrase<'_>, leading: &str, cx: &Cx<'_>) -> Verdict {
    let mut verdict = Verdict::write(Reason::Ddl);
    match leading {
        "create" => {
            verdict.effect(Effect::Ddl);
            create(&mut verdict, phrase, cx);
        }
        "alter" | "import" => {
            verdict.effect(Effect::Ddl);
            if leading == "import" || redefines(phrase) {
                verdict.effect(Effect::Redefines);
            }
        }
        "drop" => {
            verdict.effect(Effect::Ddl);
            if phrase.is_any(1, &["table", "view", "sequence"]) {
                verdict.effect(relations::drops(&phrase.from(2)));
            }
        }
        // User code inside these runs in a restricted context that undoes its settings.
        "refresh" | "reindex" | "cluster" | "analyze" | "vacuum" => verdict.effect(Effect::DrawsSequence),
        "truncate" => relations::weigh_truncate(&mut verdict, phrase, cx),
        "grant" | "revoke" | "comment" | "checkpoint" | "reassign" | "security" => {}
        // The list of commands is complete: to the server it is a syntax error.
        _ => verdict.reason = Reason::Unparsed,
    }
    if phrase.is(1, "database")
        && let Some(database) = emptied_database(phrase, leading)
    {
        verdict.effect(Effect::NeedsAlone { database: database.into() });
    }
    if leading == "alter" && sets_for_sessions(phrase) {
        verdict.effect(Effect::Logins);
    }
    if leading == "alter" {
        verdict.effect(Effect::DrawsSequence);
        if phrase.contains(&["default"]) || phrase.contains(&["using"]) {
            calls::weigh_tokens(&mut verdict, phrase, cx);
        }
    }
    if sets_off_triggers(phrase, leading) {
        relations::weigh_definition(&mut verdict, cx);
    }
    verdict.joins = !is_apart(phrase, leading);
    verdict
}

/// The database that nobody may be connected to while it is dropped, renamed, moved or copied.
fn emptied_database(phrase: &Phrase<'_>, leading: &str) -> Option<String> {
    let at = match leading {
        "drop" if phrase.says(2, &["if", "exists"]) => 4,
        "drop" => 2,
        "alter" if phrase.is(3, "rename") || phrase.says(3, &["set", "tablespace"]) => 2,
        "create" => {
            let template = (3..phrase.len()).find(|&at| phrase.is(at, "template"))? + 1;
            if phrase.punct(template, b'=') { template + 1 } else { template }
        }
        _ => return None,
    };
    phrase.name(at)
}

/// `ALTER ROLE … SET` and its like: what sessions begin with.
fn sets_for_sessions(phrase: &Phrase<'_>) -> bool {
    // ALTER ROLE a IN DATABASE d SET …
    phrase.is_any(1, &["role", "user", "database"])
        && (3..phrase.len().min(7)).any(|at| phrase.is_any(at, &["set", "reset"]))
        && !phrase.says(3, &["set", "tablespace"])
}

/// Whether it is among the commands for which event triggers run: not what concerns all databases.
fn sets_off_triggers(phrase: &Phrase<'_>, leading: &str) -> bool {
    const SHARED: [&str; 7] = ["database", "tablespace", "role", "user", "group", "system", "subscription"];
    match leading {
        "create" | "alter" | "drop" => !phrase.is_any(1, &SHARED[..6]),
        "grant" | "revoke" | "comment" | "security" | "import" | "refresh" | "reindex" | "reassign" => true,
        _ => false,
    }
}

/// Whether an ALTER may change what a name stands for; new columns and constraints do not.
fn redefines(phrase: &Phrase<'_>) -> bool {
    const CHANGES: [&str; 9] =
        ["rename", "attach", "detach", "inherit", "unlogged", "logged", "enable", "disable", "schema"];
    !phrase.is(1, "table") || (2..phrase.len()).any(|at| phrase.is_any(at, &CHANGES))
}

fn create(verdict: &mut Verdict, phrase: &Phrase<'_>, cx: &Cx<'_>) {
    let temporary = (1..phrase.len().min(6)).any(|at| phrase.is_any(at, &["temp", "temporary"]));
    let in_temporary_schema = (0..phrase.len().min(10)).any(|at| {
        phrase.punct(at + 1, b'.') && phrase.name(at).is_some_and(|name| name.starts_with("pg_temp"))
    });
    if temporary || in_temporary_schema {
        verdict.reason = Reason::State;
        verdict.pin(PinReason::TempTable);
        if let Some(name) = created_name(phrase) {
            let until_end = phrase.contains(&["on", "commit", "drop"]);
            verdict.effect(Effect::Temporary { name: name.into(), until_end });
        }
        // Nobody else sees it, and this session's reads stay with it.
        verdict.effects.retain(|effect| *effect != Effect::Ddl);
    } else if !phrase.is_any(1, &["table", "index", "unique"]) {
        verdict.effect(Effect::Redefines);
    }
    // CREATE TABLE … AS runs a query; a new column's default and CREATE INDEX run expressions.
    if let Some(at) = (2..phrase.len()).find(|&at| phrase.is(at, "as"))
        && (2..at).all(|at| !phrase.is_any(at, &["function", "procedure", "view", "rule"]))
        && phrase.is_any(1, &["table", "temp", "temporary", "unlogged", "materialized", "local", "global"])
    {
        let inner = phrase.from(at + 1);
        if inner.is(0, "execute") {
            if let Some(name) = inner.name(1) {
                verdict.effect(Effect::Execute { name: name.into() });
            }
        } else {
            let query = query_only(&inner, cx);
            if query.access == Access::Write {
                verdict.raise(query.reason);
            }
            for effect in query.effects {
                verdict.effect(effect);
            }
        }
    }
}

/// The bare name of the relation that CREATE makes; `None` where it is not where it usually is.
fn created_name(phrase: &Phrase<'_>) -> Option<String> {
    let kind = (1..phrase.len().min(8)).find(|&at| phrase.is_any(at, &["table", "view", "sequence"]))?;
    let at = if phrase.says(kind + 1, &["if", "not", "exists"]) { kind + 4 } else { kind + 1 };
    let at = if phrase.punct(at + 1, b'.') { at + 2 } else { at };
    phrase.name(at)
}

/// Statements that refuse to run behind others in one implicit transaction.
///
/// Source: the callers of `PreventInTransactionBlock` in PostgreSQL 15 to 18.
fn is_apart(phrase: &Phrase<'_>, leading: &str) -> bool {
    let second = |words: &[&str]| phrase.is_any(1, words);
    let says = |word: &str| (1..phrase.len()).any(|at| phrase.is(at, word));
    match leading {
        "create" | "drop" => second(&["database", "tablespace", "subscription"]) || says("concurrently"),
        "alter" => second(&["system", "database", "subscription", "type"]) || says("concurrently"),
        "vacuum" | "cluster" | "reindex" => true,
        "grant" | "revoke" | "comment" | "truncate" | "checkpoint" | "reassign" | "security" | "analyze"
        | "refresh" | "import" => says("concurrently"),
        _ => true,
    }
}
