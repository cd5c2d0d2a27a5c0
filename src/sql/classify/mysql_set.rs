//! MySQL's and MariaDB's SET.

use super::{
    Cx, Reading, classify_inner,
    mysql::{judge_values, system_variable},
    transaction,
    verdict::Verdict,
};
use crate::sql::{
    Access, Dialect, LexModes, PROXY_VARIABLES, Reason,
    effects::{Effect, Isolation, PinReason, ProxyCommand, Scope, TransactionModes},
    lexer::{
        Kind,
        tokens::{Phrase, Tokens},
    },
};

/// Variables that hold for the next statement, or tell the connection apart: they are neither set again
/// elsewhere nor, having no default, set back.
const OF_ONE_CONNECTION: [&str; 10] = [
    "gtid_next",
    "gtid_seq_no",
    "identity",
    "insert_id",
    "last_insert_id",
    "pseudo_slave_mode",
    "pseudo_thread_id",
    "rand_seed1",
    "rand_seed2",
    "skip_replication",
];

/// Variables that MySQL keeps the other way round and sets to the opposite of the server's value by DEFAULT
/// (`Sys_var_bit` with `REVERSE`; seen on 9.7, not on MariaDB): to go back to that takes its name.
pub const TURNED_AROUND: [&str; 2] = ["foreign_key_checks", "unique_checks"];

/// The setting that `@pointsman_name` names, quoted or not.
pub(super) fn proxy_variable(raw: &[u8]) -> Option<Box<str>> {
    let name = std::str::from_utf8(raw).ok()?.strip_prefix('@')?;
    let quoted = |quote| name.strip_prefix(quote)?.strip_suffix(quote);
    let name = ['`', '\'', '"'].into_iter().find_map(quoted).unwrap_or(name);
    name.is_ascii().then(|| name.to_lowercase())?.strip_prefix(PROXY_VARIABLES).map(Into::into)
}

/// `@name`, folded: user variables are not case-sensitive. `None` for quoted ones, and for those whose
/// characters depend on the character set.
fn user_variable(raw: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(raw).ok()?;
    (name.is_ascii() && !name.contains(['\'', '"', '`'])).then(|| name.to_lowercase())
}

pub(super) fn set(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    match () {
        () if phrase.is(1, "statement") => set_statement(phrase, cx),
        () if phrase.is_any(1, &["password", "default"]) => {
            Verdict::write(Reason::Ddl).with(Effect::Logins).outdoing()
        }
        () if phrase.says(1, &["resource", "group"]) => Verdict::write(Reason::Ddl).apart(),
        () if phrase.is(1, "transaction") => set_transaction(phrase, 2, None),
        () if phrase.is_any(1, &["session", "local"]) && phrase.is(2, "transaction") => {
            set_transaction(phrase, 3, Some("SESSION"))
        }
        () if phrase.is(1, "global") && phrase.is(2, "transaction") => {
            Verdict::write(Reason::Command).with(Effect::Logins)
        }
        () if phrase.is(1, "role") => role(phrase),
        () => assignments(phrase, cx),
    }
}

/// MariaDB's `SET STATEMENT a = 1 FOR query`: its settings end with it.
fn set_statement(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let Some(at) = (2..phrase.len()).find(|&at| phrase.is(at, "for")) else {
        return Verdict::write(Reason::Unparsed).with(Effect::Touches);
    };
    let mut verdict = classify_inner(&phrase.from(at + 1), cx);
    verdict.raise(Reason::Command);
    Verdict { plain: false, ..verdict }
}

fn set_transaction(phrase: &Phrase<'_>, at: usize, scope: Option<&str>) -> Verdict {
    let Some(modes) = transaction::modes(phrase, at).filter(|_| phrase.len() > at) else { return odd() };
    if scope.is_none() {
        return Verdict::session().with(Effect::SetTransaction(modes));
    }
    session_modes(modes).into_iter().fold(Verdict::session(), Verdict::with)
}

/// What sets the modes of a session's transactions, by the statement that every server knows: MariaDB has
/// `transaction_isolation` from 11.1 on, MySQL no `tx_isolation` any more.
fn session_modes(modes: TransactionModes) -> Vec<Effect> {
    let isolation = modes.isolation.map(|isolation| {
        let value = isolation_value(isolation);
        session_setting("transaction_isolation", &format!("'{}'", value.replace(' ', "-")), || {
            format!("SET SESSION TRANSACTION ISOLATION LEVEL {value}")
        })
    });
    let read_only = modes.read_only.map(|read_only| {
        let (value, word) = if read_only { ("1", "ONLY") } else { ("0", "WRITE") };
        session_setting("transaction_read_only", value, || format!("SET SESSION TRANSACTION READ {word}"))
    });
    isolation.into_iter().chain(read_only).collect()
}

const fn isolation_value(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadUncommitted => "READ UNCOMMITTED",
        Isolation::ReadCommitted => "READ COMMITTED",
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    }
}

fn session_setting(name: &str, value: &str, statement: impl FnOnce() -> String) -> Effect {
    Effect::Set {
        name: name.into(),
        value: value.into(),
        statement: statement().into(),
        scope: Scope::Session,
    }
}

fn role(phrase: &Phrase<'_>) -> Verdict {
    match phrase
        .source_text()
        .filter(|source| phrase.len() > 2 && source.is_ascii() && !source.contains('\\'))
    {
        Some(source) => {
            let value = phrase.from(2).source_text().unwrap_or_default();
            Verdict::session().with(session_setting("role", value, || source.to_owned()))
        }
        None => odd(),
    }
}

/// A setting that cannot be carried.
fn odd() -> Verdict {
    Verdict::state().with(Effect::Pin(PinReason::Setting))
}

/// `SET a = 1, @b = 2, @@session.c = 3`.
fn assignments(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut verdict = Verdict::session();
    // The scope word holds for the assignments behind it, too.
    let mut scope = Wanted::Session;
    let items = phrase.from(1).split_commas();
    // Its texts are read by what was set before it.
    let sets_reading = items.iter().any(sets_reading);
    for item in items {
        let outcome = match assignment(&item, &mut scope) {
            Some(Outcome::Carried(_)) if sets_reading && is_text_variable(&item) => Some(Outcome::Variable),
            outcome => outcome,
        };
        match outcome {
            Some(Outcome::Carried(effect)) => verdict.effect(effect),
            Some(Outcome::Server) => {
                verdict.raise(Reason::Command);
                verdict.effect(Effect::Logins);
            }
            Some(Outcome::Variable) => {
                verdict.raise(Reason::State);
                verdict.effect(assigns(item.raw(0)));
                weigh_value(&mut verdict, &item, cx);
            }
            None => {
                verdict.raise(Reason::State);
                verdict.pin(PinReason::Setting);
            }
        }
    }
    if verdict.access == Access::Write {
        verdict.joins = false;
    }
    verdict
}

/// How text is read behind a statement that has run.
pub(super) fn reading_behind(phrase: &Phrase<'_>, verdict: &Verdict) -> Reading {
    let said = verdict.effects.iter().map(|effect| match effect {
        Effect::Set { name, value, .. } => reading_behind_set(name, value, phrase.modes),
        Effect::Reset { name } if is_reading(name) => Reading::Unknown,
        Effect::SetComputed { .. } => reading_behind_computed(phrase),
        // A statement in a text of its own.
        Effect::Touches => Reading::Quotes,
        Effect::Pin(PinReason::Setting) if phrase.is(0, "set") => {
            let sets = phrase.from(1).split_commas().iter().any(sets_reading);
            if sets { Reading::Unknown } else { Reading::Same }
        }
        _ => Reading::Same,
    });
    said.max().unwrap_or(Reading::Same)
}

fn reading_behind_set(name: &str, value: &str, modes: LexModes) -> Reading {
    match name {
        "sql_mode" => {
            let then = modes.with_sql_mode(value.trim_matches(['\'', '"']));
            match () {
                () if then == modes => Reading::Same,
                () if then.are_known() => Reading::Quotes,
                () => Reading::Unknown,
            }
        }
        "names" | "character set" | "character_set_client" => {
            // The server's default may be any.
            let known = !value.eq_ignore_ascii_case("default") && modes.with_charset(value).are_known();
            if known { Reading::Same } else { Reading::Unknown }
        }
        _ => Reading::Same,
    }
}

/// Behind modes that are computed from what they were. Numbers may stand for any.
fn reading_behind_computed(phrase: &Phrase<'_>) -> Reading {
    let source = String::from_utf8_lossy(phrase.source()).to_lowercase();
    let unknown = source.contains("oracle")
        || source.contains("mssql")
        || source.contains("global")
        || (0..phrase.len()).any(|at| phrase.kind(at) == Some(Kind::Number));
    if unknown { Reading::Unknown } else { Reading::Quotes }
}

enum Outcome {
    Carried(Effect),
    /// SET GLOBAL, PERSIST: the server's own setting.
    Server,
    /// A user variable whose value only the server knows.
    Variable,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Session,
    /// `@@name` without a scope: means the next transaction for transaction modes.
    Bare,
    Server,
}

/// What gives a user variable a value that only the server knows.
pub(super) fn assigns(raw: &[u8]) -> Effect {
    match user_variable(raw) {
        Some(name) => Effect::Assigns { name: name.into() },
        None => Effect::Pin(PinReason::UserVariable),
    }
}

/// What computing the value of `@a = expression` asks for and does.
fn weigh_value(verdict: &mut Verdict, item: &Phrase<'_>, cx: &Cx<'_>) {
    let at = if item.punct(1, b':') { 3 } else { 2 };
    let value = judge_values(&item.from(at), cx);
    if value.access == Access::Write {
        verdict.raise(value.reason);
    }
    value.effects.into_iter().for_each(|effect| verdict.effect(effect));
}

fn is_names(item: &Phrase<'_>) -> bool {
    item.is_any(0, &["names", "charset"]) || item.says(0, &["character", "set"])
}

/// Whether text is read by a variable.
fn is_reading(name: &str) -> bool {
    name == "sql_mode" || name.starts_with("character_set_") || name.starts_with("collation_")
}

/// Whether text behind it is read in another way.
fn sets_reading(item: &Phrase<'_>) -> bool {
    is_names(item)
        || (0..item.len()).take(2).any(|at| match item.kind(at) {
            Some(Kind::SystemVariable) => is_reading(&system_variable(item.raw(at))),
            _ => item.name(at).is_some_and(|name| is_reading(&name)),
        })
}

/// `@a = 'text'`.
fn is_text_variable(item: &Phrase<'_>) -> bool {
    item.kind(0) == Some(Kind::UserVariable) && (1..item.len()).any(|at| item.kind(at) == Some(Kind::Text))
}

/// A value as it reads the same whatever the character set and `sql_mode`; `None` if there is no such form.
fn plain(value: &Phrase<'_>) -> Option<String> {
    let quoted = |text: Option<String>| {
        let text = text.filter(|text| text.is_ascii() && !text.contains(['\'', '\\']))?;
        Some(format!("'{text}'"))
    };
    let tokens: Option<Vec<String>> = (0..value.len())
        .map(|at| match value.kind(at)? {
            // X'…' and its like are none.
            Kind::Text if !matches!(value.raw(at).first(), Some(b'\'' | b'"')) => None,
            Kind::Text => quoted(value.string(at)),
            // The server itself makes text of it (`set_var` in `sql/set_var.cc`).
            Kind::Quoted => quoted(value.spelled(at)),
            _ => std::str::from_utf8(value.raw(at)).ok().filter(|raw| raw.is_ascii()).map(str::to_owned),
        })
        .collect();
    Some(tokens?.join(" "))
}

fn assignment(item: &Phrase<'_>, scope: &mut Wanted) -> Option<Outcome> {
    if is_names(item) {
        let at = if item.is(0, "character") { 2 } else { 1 };
        let name = if item.is(0, "names") { "names" } else { "character set" };
        let value = item.from(at);
        let source = format!("{} {}", name.to_uppercase(), plain(&value)?);
        return Some(Outcome::Carried(carried(name, &value, &source)));
    }
    if item.kind(0) == Some(Kind::UserVariable) {
        return set_user_variable(item);
    }
    let (name, wanted, at) = setting(item, scope)?;
    let at = match () {
        () if item.punct(at, b'=') => at + 1,
        () if item.punct(at, b':') && item.punct(at + 1, b'=') => at + 2,
        () => return None,
    };
    let value = item.from(at);
    if wanted == Wanted::Server {
        return Some(Outcome::Server);
    }
    if OF_ONE_CONNECTION.contains(&&*name) {
        return None;
    }
    // A number stands for a set of modes that only the server names.
    if !is_literal(&value) || name == "sql_mode" && value.kind(0) == Some(Kind::Number) {
        let computed = is_computed_mode(&name, &value).then(|| Effect::SetComputed { name: name.into() });
        return computed.map(Outcome::Carried);
    }
    let name = match name.as_str() {
        "tx_isolation" => "transaction_isolation".to_owned(),
        "tx_read_only" => "transaction_read_only".to_owned(),
        _ => name,
    };
    if value.len() == 1 && value.is(0, "default") && !TURNED_AROUND.contains(&&*name) {
        return Some(Outcome::Carried(Effect::Reset { name: name.into() }));
    }
    if matches!(name.as_str(), "transaction_isolation" | "transaction_read_only") {
        let modes = transaction_modes(&name, &value)?;
        return Some(Outcome::Carried(match wanted {
            Wanted::Bare => Effect::SetNext(modes),
            _ => session_modes(modes).pop()?,
        }));
    }
    let source = format!("SESSION {name} = {}", plain(&value)?);
    Some(Outcome::Carried(carried(&name, &value, &source)))
}

fn carried(name: &str, value: &Phrase<'_>, assignment: &str) -> Effect {
    let has_name = (0..value.len()).any(|at| value.kind(at) == Some(Kind::Quoted));
    let told = match has_name {
        true => plain(value),
        false => value.source_text().map(str::to_owned),
    };
    session_setting(name, &told.unwrap_or_default(), || format!("SET {assignment}"))
}

/// The system variable that an assignment names, its scope, and the index behind it.
fn setting(item: &Phrase<'_>, scope: &mut Wanted) -> Option<(String, Wanted, usize)> {
    if item.kind(0) == Some(Kind::SystemVariable) {
        let raw = String::from_utf8_lossy(item.raw(0)).to_lowercase();
        let wanted = match raw.trim_start_matches('@').split_once('.') {
            None => Wanted::Bare,
            Some(("session" | "local", _)) => Wanted::Session,
            Some(("global" | "persist" | "persist_only", _)) => Wanted::Server,
            Some(_) => return None,
        };
        return Some((system_variable(item.raw(0)), wanted, 1));
    }
    let at = match () {
        () if item.is_any(0, &["global", "persist", "persist_only"]) => {
            *scope = Wanted::Server;
            1
        }
        () if item.is_any(0, &["session", "local"]) => {
            *scope = Wanted::Session;
            1
        }
        () => 0,
    };
    let name = item.name(at)?;
    // `component.variable`: only ever global.
    if item.punct(at + 1, b'.') { None } else { Some((name, *scope, at + 1)) }
}

fn set_user_variable(item: &Phrase<'_>) -> Option<Outcome> {
    let at = match () {
        () if item.punct(1, b'=') => 2,
        () if item.punct(1, b':') && item.punct(2, b'=') => 3,
        () => return None,
    };
    let value = item.from(at);
    if let Some(name) = proxy_variable(item.raw(0)) {
        let value = match value.kind(0) {
            Some(Kind::Text) if value.len() == 1 => value.string(0)?,
            Some(Kind::Number) if value.len() == 1 => value.source_text()?.to_owned(),
            Some(Kind::Word) if value.len() == 1 => match value.is_any(0, &["default", "null"]) {
                true => return Some(Outcome::Carried(Effect::Proxy(ProxyCommand::Reset { name }))),
                false => value.source_text()?.to_owned(),
            },
            _ => return Some(Outcome::Carried(Effect::Proxy(ProxyCommand::SetComputed { name }))),
        };
        let (value, scope, column) = (value.into(), Scope::Session, None);
        return Some(Outcome::Carried(Effect::Proxy(ProxyCommand::Set { name, value, scope, column })));
    }
    let literal = match value.len() {
        1 => {
            matches!(value.kind(0), Some(Kind::Text | Kind::Number))
                || value.is_any(0, &["null", "true", "false"])
        }
        2 => matches!(value.raw(0), b"-" | b"+") && value.kind(1) == Some(Kind::Number),
        _ => false,
    };
    let name = user_variable(item.raw(0)).filter(|_| literal);
    Some(match name {
        Some(name) => Outcome::Carried(carried(&name, &value, item.source_text()?)),
        None => Outcome::Variable,
    })
}

/// What a prepared `SET @pointsman_name = ?` sets; `value`: that of its only parameter, `None` for NULL.
pub fn bound_variable(text: &[u8], modes: LexModes, value: Option<&[u8]>) -> Option<ProxyCommand> {
    let tokens = Tokens::of(text, Dialect::Mysql, modes);
    let phrase = super::whole(text, &tokens, Dialect::Mysql, modes)?;
    let at = if phrase.punct(2, b':') { 4 } else { 3 };
    let alone = phrase.kind(at) == Some(Kind::Param) && phrase.ends_at(at + 1);
    let name = proxy_variable(phrase.raw(1)).filter(|_| alone && phrase.is(0, "set"))?;
    let Some(value) = value else { return Some(ProxyCommand::Reset { name }) };
    let value = std::str::from_utf8(value).ok()?.into();
    Some(ProxyCommand::Set { name, value, scope: Scope::Session, column: None })
}

/// A value that means the same on any server connection.
fn is_literal(value: &Phrase<'_>) -> bool {
    match value.len() {
        1 => matches!(value.kind(0), Some(Kind::Text | Kind::Number | Kind::Word | Kind::Quoted)),
        2 => matches!(value.raw(0), b"-" | b"+") && value.kind(1) == Some(Kind::Number),
        _ => false,
    }
}

/// `sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')`, with which many drivers begin.
fn is_computed_mode(name: &str, value: &Phrase<'_>) -> bool {
    const CALLS: [&str; 5] = ["concat", "concat_ws", "replace", "ifnull", "trim"];
    let fits = |at: usize| match value.kind(at) {
        Some(Kind::Text | Kind::Number) => true,
        Some(Kind::SystemVariable) => system_variable(value.raw(at)) == "sql_mode",
        Some(Kind::Punct) => matches!(value.raw(at), b"(" | b")" | b","),
        _ => value.is_any(at, &CALLS) && value.punct(at + 1, b'('),
    };
    name == "sql_mode" && (0..value.len()).all(fits)
}

/// What a variable of transactions is set to; `None` where only the server can tell.
fn transaction_modes(name: &str, value: &Phrase<'_>) -> Option<TransactionModes> {
    let text = match value.kind(0)? {
        Kind::Text => value.string(0)?,
        Kind::Quoted => value.spelled(0)?,
        _ => value.source_text()?.to_owned(),
    };
    let text = text.to_lowercase();
    let modes = TransactionModes::default();
    match name {
        "transaction_read_only" => match text.as_str() {
            "1" | "on" | "true" => Some(TransactionModes { read_only: Some(true), ..modes }),
            "0" | "off" | "false" => Some(TransactionModes { read_only: Some(false), ..modes }),
            _ => None,
        },
        "transaction_isolation" => {
            let isolation = match text.as_str() {
                "serializable" | "3" => Isolation::Serializable,
                "repeatable-read" | "2" => Isolation::RepeatableRead,
                "read-committed" | "1" => Isolation::ReadCommitted,
                "read-uncommitted" | "0" => Isolation::ReadUncommitted,
                _ => return None,
            };
            Some(TransactionModes { isolation: Some(isolation), ..modes })
        }
        _ => None,
    }
}
