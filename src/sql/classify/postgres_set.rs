//! PostgreSQL's SET, RESET, SHOW and `SELECT set_config(…)`.

use super::{calls::PRIMARY_SETTINGS, transaction, verdict::Verdict};
use crate::sql::{
    Reason,
    effects::{Effect, Isolation, PinReason, ProxyCommand, Scope, Shown, TransactionModes},
    lexer::{Kind, tokens::Phrase},
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
            true => ProxyCommand::Set { name, value: "default".into(), scope },
            false => ProxyCommand::Set { name, value: plain_value(&value)?.into(), scope },
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
        let shown = [Shown { name: own.into(), column: name.as_str().into() }].into();
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
    let at = if item.is(0, "pg_catalog") && item.punct(1, b'.') { 2 } else { 0 };
    let closing = item.closing(at + 1).filter(|_| item.name(at).as_deref() == Some("set_config"))?;
    // Behind it at most an alias.
    let alias = match item.len() - closing - 1 {
        0 => true,
        1 => item.name(closing + 1).is_some(),
        2 => item.is(closing + 1, "as") && item.name(closing + 2).is_some(),
        _ => false,
    };
    let arguments = item.range(at + 2..closing).split_commas();
    let [name, value, local] = arguments.as_slice() else { return None };
    if !alias || name.len() != 1 || value.len() != 1 || local.len() != 1 {
        return None;
    }
    let name = name.string(0)?.to_ascii_lowercase();
    let value_read = value.string(0)?;
    let scope = match () {
        () if local.is(0, "true") => Scope::Local,
        () if local.is(0, "false") => Scope::Session,
        () => match local.string(0)?.to_ascii_lowercase().as_str() {
            "true" | "t" | "on" | "yes" | "1" => Scope::Local,
            "false" | "f" | "off" | "no" | "0" => Scope::Session,
            _ => return None,
        },
    };
    if let Some(name) = name.strip_prefix(PROXY) {
        let (name, value) = (name.into(), value_read.into());
        verdict.effect(Effect::Proxy(ProxyCommand::Set { name, value, scope }));
        return Some(());
    }
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
