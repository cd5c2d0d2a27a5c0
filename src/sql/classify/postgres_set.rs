//! PostgreSQL's SET, RESET, SHOW and `SELECT set_config(…)`.

use super::{transaction, verdict::Verdict};
use crate::sql::{
    Dialect, LexModes, Reason,
    effects::{Effect, Isolation, PinReason, ProxyCommand, Scope, Shown, TransactionModes},
    functions::PRIMARY_SETTINGS,
    lexer::{
        Kind,
        tokens::{Phrase, Tokens},
    },
};

/// The namespace of the proxy's own settings.
const PROXY: &str = "pointsman.";

/// Settings of the current transaction, however they are set.
const OF_TRANSACTIONS: [&str; 3] =
    ["transaction_read_only", "transaction_isolation", "transaction_deferrable"];

/// A setting whose meaning is not known: the connection stays with the session.
fn odd() -> Verdict {
    Verdict::state().with(Effect::Pin(PinReason::Setting))
}

pub(super) fn set(phrase: &Phrase<'_>) -> Verdict {
    if phrase.is(1, "constraints") {
        return Verdict::transaction(Effect::SetConstraints);
    }
    let (scope, at) = match () {
        () if phrase.says(1, &["session", "authorization"]) => (Scope::Session, 1),
        () if phrase.says(1, &["session", "characteristics"]) => return characteristics(phrase),
        () if phrase.is(1, "session") => (Scope::Session, 2),
        () if phrase.is(1, "local") => (Scope::Local, 2),
        () => (Scope::Session, 1),
    };
    if phrase.is(at, "transaction") {
        return match transaction::modes(phrase, at + 1) {
            Some(modes) if phrase.len() > at + 1 => Verdict::session().with(Effect::SetTransaction(modes)),
            // SNAPSHOT '…': only the server that exported it knows it.
            _ => Verdict::state(),
        };
    }
    assignment(phrase, scope, at).unwrap_or_else(odd)
}

/// `name = value` from `at` on.
fn assignment(phrase: &Phrase<'_>, scope: Scope, at: usize) -> Option<Verdict> {
    let (name, value_at) = setting(phrase, at)?;
    // Setting a seed again elsewhere would draw the same numbers a second time.
    if phrase.ends_at(value_at) || name == "seed" {
        return None;
    }
    let value = phrase.from(value_at);
    let is_default = value.len() == 1
        && (value.is(0, "default") || (name == "timezone" && phrase.is(at, "time") && value.is(0, "local")));
    if let Some(name) = name.strip_prefix(PROXY) {
        let name = name.into();
        let command = match is_default {
            true if scope == Scope::Session => ProxyCommand::Reset { name },
            true => ProxyCommand::Set { name, value: "default".into(), scope, column: None },
            false => ProxyCommand::Set { name, value: plain_value(&value)?.into(), scope, column: None },
        };
        return Some(Verdict::session().with(Effect::Proxy(command)));
    }
    if let Some(modes) = transaction_setting(&name, &value) {
        return Some(Verdict::session().with(Effect::SetTransaction(modes)));
    }
    if is_default && scope == Scope::Session {
        return Some(Verdict::session().with(Effect::Reset { name: name.into() }));
    }
    let source = phrase.from(at).source_text()?;
    if !is_literal(&value) || source.contains('\\') {
        // What a backslash means depends on a setting, which may be another when it is set again.
        return None;
    }
    let word = if scope == Scope::Local { "LOCAL" } else { "SESSION" };
    Some(Verdict::session().with(Effect::Set {
        name: name.into(),
        value: value.source_text()?.into(),
        statement: format!("SET {word} {source}").into(),
        scope,
    }))
}

/// `SET transaction_read_only = on` and its like mean the current transaction only.
fn transaction_setting(name: &str, value: &Phrase<'_>) -> Option<TransactionModes> {
    let text = plain_value(value)?.to_ascii_lowercase();
    let flag = || match text.as_str() {
        "on" | "true" | "t" | "yes" | "y" | "1" => Some(true),
        "off" | "false" | "f" | "no" | "n" | "0" => Some(false),
        _ => None,
    };
    let modes = TransactionModes::default();
    Some(match name {
        "transaction_read_only" => TransactionModes { read_only: Some(flag()?), ..modes },
        "transaction_deferrable" => TransactionModes { deferrable: Some(flag()?), ..modes },
        "transaction_isolation" => {
            let isolation = match text.as_str() {
                "serializable" => Isolation::Serializable,
                "repeatable read" => Isolation::RepeatableRead,
                "read committed" => Isolation::ReadCommitted,
                "read uncommitted" => Isolation::ReadUncommitted,
                _ => return None,
            };
            TransactionModes { isolation: Some(isolation), ..modes }
        }
        _ => return None,
    })
}

/// The setting named at `at`, under the name that the server knows it by, and where its value
/// begins.
fn setting(phrase: &Phrase<'_>, at: usize) -> Option<(String, usize)> {
    if phrase.says(at, &["time", "zone"]) {
        return Some(("timezone".into(), at + 2));
    }
    if phrase.says(at, &["session", "authorization"]) {
        return Some(("session_authorization".into(), at + 2));
    }
    if phrase.says(at, &["xml", "option"]) {
        return Some(("xmloption".into(), at + 2));
    }
    let (name, after) = dotted(phrase, at)?;
    if phrase.is(after, "to") || phrase.punct(after, b'=') {
        return Some((name, after + 1));
    }
    let alias = match name.as_str() {
        "names" => "client_encoding",
        "schema" => "search_path",
        "role" => "role",
        "seed" => "seed",
        _ => return None,
    };
    Some((alias.into(), after))
}

/// A setting's name: settings are not case-sensitive, quoted or not.
fn dotted(phrase: &Phrase<'_>, at: usize) -> Option<(String, usize)> {
    let mut name = phrase.name(at)?.to_ascii_lowercase();
    let mut at = at + 1;
    while phrase.punct(at, b'.') {
        name.push('.');
        name.push_str(&phrase.name(at + 1)?.to_ascii_lowercase());
        at += 2;
    }
    Some((name, at))
}

/// A list of literals and words, as SET takes it.
fn is_literal(value: &Phrase<'_>) -> bool {
    (0..value.len()).all(|at| match value.kind(at) {
        Some(Kind::Text | Kind::Number | Kind::Quoted) => true,
        Some(Kind::Word) => !value.says(at, &["from", "current"]),
        Some(Kind::Punct) => matches!(value.raw(at), b"," | b"-" | b"+" | b"(" | b")"),
        _ => false,
    })
}

/// A value as the proxy reads it: one literal without its quotes, or the words as written.
fn plain_value(value: &Phrase<'_>) -> Option<String> {
    match (value.len(), value.kind(0)) {
        (1, Some(Kind::Text)) => value.string(0),
        (1, Some(Kind::Quoted)) => value.name(0),
        _ => value.source_text().map(str::to_owned),
    }
}

/// `SET SESSION CHARACTERISTICS AS TRANSACTION …`: defaults for the transactions to come.
fn characteristics(phrase: &Phrase<'_>) -> Verdict {
    let modes = transaction::modes(phrase, 5).filter(|_| phrase.says(3, &["as", "transaction"]));
    let Some(modes) = modes.filter(|_| phrase.len() > 5) else { return odd() };
    let mut verdict = Verdict::session();
    let mut set = |name: &str, value: &str| {
        verdict.effect(Effect::Set {
            name: name.into(),
            value: value.into(),
            statement: format!("SET SESSION {name} = {value}").into(),
            scope: Scope::Session,
        });
    };
    if let Some(isolation) = modes.isolation {
        set("default_transaction_isolation", isolation_value(isolation));
    }
    if let Some(read_only) = modes.read_only {
        set("default_transaction_read_only", if read_only { "on" } else { "off" });
    }
    if let Some(deferrable) = modes.deferrable {
        set("default_transaction_deferrable", if deferrable { "on" } else { "off" });
    }
    verdict
}

const fn isolation_value(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadUncommitted => "'read uncommitted'",
        Isolation::ReadCommitted => "'read committed'",
        Isolation::RepeatableRead => "'repeatable read'",
        Isolation::Serializable => "'serializable'",
    }
}

pub(super) fn reset(phrase: &Phrase<'_>) -> Verdict {
    let name = match () {
        () if phrase.is(1, "all") && phrase.len() == 2 => return Verdict::session().with(Effect::ResetAll),
        () if phrase.says(1, &["time", "zone"]) && phrase.len() == 3 => "timezone".to_owned(),
        () if phrase.says(1, &["session", "authorization"]) && phrase.len() == 3 => {
            "session_authorization".to_owned()
        }
        () => match dotted(phrase, 1) {
            Some((name, after)) if phrase.ends_at(after) => name,
            _ => return odd(),
        },
    };
    match name.strip_prefix(PROXY) {
        Some(name) => Verdict::session().with(Effect::Proxy(ProxyCommand::Reset { name: name.into() })),
        None => Verdict::session().with(Effect::Reset { name: name.into() }),
    }
}

pub(super) fn show(phrase: &Phrase<'_>) -> Verdict {
    if phrase.is(1, "all") && phrase.len() == 2 {
        return Verdict::server();
    }
    let Some((name, after)) = dotted(phrase, 1) else { return Verdict::write(Reason::Unparsed) };
    if !phrase.ends_at(after) {
        // SHOW TIME ZONE, SHOW TRANSACTION ISOLATION LEVEL, SHOW SESSION AUTHORIZATION.
        let known = phrase.says(1, &["time", "zone"])
            || phrase.says(1, &["transaction", "isolation", "level"])
            || phrase.says(1, &["session", "authorization"]);
        return if known { Verdict::session() } else { Verdict::write(Reason::Unparsed) };
    }
    if let Some(own) = name.strip_prefix(PROXY) {
        let shown = [Shown { name: own.into(), column: name.as_str().into(), missing_ok: false }].into();
        return Verdict::session().with(Effect::Proxy(ProxyCommand::Show { shown }));
    }
    if PRIMARY_SETTINGS.contains(&name.as_str()) { Verdict::server() } else { Verdict::session() }
}

/// `SELECT set_config('name', 'value', false)`, once or several times, and nothing else. `None`:
/// any other query.
pub(super) fn set_config(phrase: &Phrase<'_>) -> Option<Verdict> {
    let items = phrase.from(1).split_commas();
    let mut verdict = Verdict::session();
    for item in &items {
        set_config_item(item, &mut verdict)?;
    }
    Some(verdict)
}

fn set_config_item(item: &Phrase<'_>, verdict: &mut Verdict) -> Option<()> {
    let Call { arguments, at, closing, column } = call(item, "set_config")?;
    let [name, value, local] = arguments.as_slice() else { return None };
    if name.len() != 1 {
        return None;
    }
    let name = name.string(0)?.to_ascii_lowercase();
    let scope = scope_of(local);
    if let Some(name) = name.strip_prefix(PROXY) {
        let (name, read) = (name.into(), value.string(0).filter(|_| value.len() == 1));
        let command = match (read, scope) {
            (Some(read), Some(scope)) => {
                ProxyCommand::Set { name, value: read.into(), scope, column: Some(column.into()) }
            }
            _ => ProxyCommand::SetComputed { name },
        };
        verdict.effect(Effect::Proxy(command));
        return Some(());
    }
    let scope = scope.filter(|_| value.len() == 1 && local.len() == 1 && value.string(0).is_some())?;
    if OF_TRANSACTIONS.contains(&name.as_str()) {
        // Nothing to carry either: it ends with the transaction. A replica refuses some of it.
        verdict.raise(Reason::State);
        return Some(());
    }
    if scope == Scope::Local {
        // Nothing to carry; and unlike SET LOCAL it is answered with a row, which only a server knows.
        return Some(());
    }
    let call = item.range(at + 1..closing + 1).source_text()?;
    if call.contains('\\') {
        return None;
    }
    verdict.effect(Effect::Set {
        name: name.into(),
        value: value.source_text()?.into(),
        statement: format!("SELECT pg_catalog.set_config{call}").into(),
        scope,
    });
    Some(())
}

/// The last argument of `set_config`, as a literal.
fn scope_of(local: &Phrase<'_>) -> Option<Scope> {
    boolean(local).map(scope_by)
}

fn scope_by(is_local: bool) -> Scope {
    if is_local { Scope::Local } else { Scope::Session }
}

/// A boolean that is written out.
fn boolean(literal: &Phrase<'_>) -> Option<bool> {
    match () {
        () if literal.len() != 1 => None,
        () if literal.is(0, "true") => Some(true),
        () if literal.is(0, "false") => Some(false),
        () => boolean_of(&literal.string(0)?),
    }
}

fn boolean_of(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "on" | "yes" | "1" => Some(true),
        "false" | "f" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// `SELECT current_setting('pointsman.name')`, once or several times, and nothing else.
pub(super) fn current_setting(phrase: &Phrase<'_>) -> Option<Verdict> {
    let shown: Option<Box<[Shown]>> = phrase.from(1).split_commas().iter().map(shown_setting).collect();
    Some(Verdict::session().with(Effect::Proxy(ProxyCommand::Show { shown: shown? })))
}

fn shown_setting(item: &Phrase<'_>) -> Option<Shown> {
    let Call { arguments, column, .. } = call(item, "current_setting")?;
    let (name, missing_ok) = match arguments.as_slice() {
        [name] => (name, false),
        [name, missing_ok] => (name, boolean(missing_ok) == Some(true)),
        _ => return None,
    };
    let name = name.string(0).filter(|_| name.len() == 1)?.to_ascii_lowercase();
    Some(Shown { name: name.strip_prefix(PROXY)?.into(), column: column.into(), missing_ok })
}

/// An item of a SELECT list that is one call, and at most an alias behind it.
struct Call<'a> {
    arguments: Vec<Phrase<'a>>,
    /// Of the name.
    at: usize,
    /// Of the parenthesis behind the arguments.
    closing: usize,
    /// What the server calls the column.
    column: String,
}

fn call<'a>(item: &Phrase<'a>, function: &str) -> Option<Call<'a>> {
    let at = if item.is(0, "pg_catalog") && item.punct(1, b'.') { 2 } else { 0 };
    let closing = item.closing(at + 1).filter(|_| item.name(at).as_deref() == Some(function))?;
    let column = match item.len() - closing - 1 {
        0 => function.to_owned(),
        1 => item.name(closing + 1)?,
        2 if item.is(closing + 1, "as") => item.name(closing + 2)?,
        _ => return None,
    };
    Some(Call { arguments: item.range(at + 2..closing).split_commas(), at, closing, column })
}

/// What `SELECT set_config($1, $2, false)` sets of the proxy's own, with the values of a Bind: NULL, or as
/// sent.
pub fn bound_set_config(text: &[u8], modes: LexModes, values: &[Option<&[u8]>]) -> Option<ProxyCommand> {
    let tokens = Tokens::of(text, Dialect::Postgres, modes);
    let phrase = super::whole(text, &tokens, Dialect::Postgres, modes)?;
    let call = call(&phrase.from(1), "set_config").filter(|_| phrase.is(0, "select"))?;
    let [name, value, local] = call.arguments.as_slice() else { return None };
    let name = bound(name, values)??.to_ascii_lowercase();
    let scope = match scope_of(local) {
        Some(scope) => scope,
        None => match bound(local, values)?.as_deref() {
            // Binary booleans are a byte.
            Some("\0") | None => Scope::Session,
            Some("\u{1}") => Scope::Local,
            Some(text) => scope_by(boolean_of(text)?),
        },
    };
    Some(ProxyCommand::Set {
        name: name.strip_prefix(PROXY)?.into(),
        value: bound(value, values)?.map_or_else(|| "default".into(), Into::into),
        scope,
        column: Some(call.column.into()),
    })
}

/// A literal, or the value of `$1` or `$1::text`; the inner `None` is NULL.
fn bound(argument: &Phrase<'_>, values: &[Option<&[u8]>]) -> Option<Option<String>> {
    if argument.len() == 1 && argument.kind(0) == Some(Kind::Text) {
        return argument.string(0).map(Some);
    }
    let cast = argument.punct(1, b':') && argument.punct(2, b':') && argument.name(3).is_some();
    if argument.kind(0) != Some(Kind::Param) || !(argument.len() == 1 || cast && argument.len() == 4) {
        return None;
    }
    let number: usize = std::str::from_utf8(argument.raw(0)).ok()?.strip_prefix('$')?.parse().ok()?;
    match values.get(number.checked_sub(1)?)? {
        None => Some(None),
        Some(value) => String::from_utf8(value.to_vec()).ok().map(Some),
    }
}
