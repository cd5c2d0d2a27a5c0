//! Function calls, judged by the configuration, the built-in list and the catalog.

use super::{
    Cx,
    survey::{Call, Named},
    verdict::{Touched, Verdict},
};
use crate::sql::{
    Dialect, Reason,
    catalog::Catalog,
    effects::{Effect, Left, PinReason},
    functions::{Builtin, PRIMARY_SETTINGS, builtin},
    lexer::{Kind, tokens::Phrase},
};

pub(super) fn weigh(verdict: &mut Verdict, call: &Call, phrase: &Phrase<'_>, cx: &Cx<'_>) {
    let Named { schema, name } = &call.function;
    let name = name.as_str();
    if cx.rules.write.contains(name) {
        verdict.raise(Reason::Function);
        return user_code(verdict, !cx.rules.clean.contains(name));
    }
    if cx.rules.read.contains(name) {
        verdict.plain = false;
        verdict.tables = Touched::All;
        let touches = cx.catalog.functions.get(name).is_some_and(|user| user.touches);
        if touches && !cx.rules.clean.contains(name) {
            verdict.effect(Effect::Touches);
        }
        return;
    }
    let may_be_builtin = match (cx.dialect, schema.as_deref()) {
        (_, None) => true,
        (Dialect::Postgres, Some(schema)) => schema == "pg_catalog",
        (Dialect::Mysql, Some(_)) => false,
    };
    // The helpers of its views (`_pg_expandarray` …), which JDBC calls: none is volatile.
    let of_information_schema = cx.dialect == Dialect::Postgres
        && schema.as_deref() == Some("information_schema")
        && name.starts_with("_pg_");
    let known = match of_information_schema {
        true => Some(Builtin::Pure),
        false => builtin(cx.dialect, name).filter(|_| may_be_builtin),
    };
    if let Some(known) = known {
        weigh_builtin(verdict, known, call, phrase);
    }
    match cx.catalog.functions.get(name) {
        Some(user) => {
            if user.writes {
                verdict.raise(Reason::Function);
                verdict.effect(Effect::DrawsSequence);
            }
            if user.touches && !cx.rules.clean.contains(name) {
                verdict.effect(Effect::Touches);
                if cx.dialect == Dialect::Mysql {
                    // Nothing is declared of that here: GET_LOCK() in a body means the whole database, and what
                    // is asked next of a variable the primary.
                    verdict.raise(Reason::State);
                }
            }
            verdict.plain = false;
            verdict.tables = Touched::All;
        }
        None if known.is_none() => {
            verdict.raise(Reason::Function);
            user_code(verdict, !cx.rules.clean.contains(name));
        }
        None => {}
    }
}

fn user_code(verdict: &mut Verdict, touches: bool) {
    verdict.plain = false;
    verdict.tables = Touched::All;
    verdict.effect(Effect::DrawsSequence);
    if touches {
        verdict.effect(Effect::Touches);
    }
}

/// Code of which nothing is known runs.
pub(super) fn unknown_code(verdict: &mut Verdict) {
    user_code(verdict, true);
}

fn weigh_builtin(verdict: &mut Verdict, known: Builtin, call: &Call, phrase: &Phrase<'_>) {
    match known {
        // Until the end of the transaction, not for as long as the session lasts.
        Builtin::SetConfig if call.ends_in_true => {
            verdict.plain = false;
            verdict.raise(Reason::State);
        }
        Builtin::CurrentSetting if !asks_for_primary(phrase) => verdict.plain = false,
        Builtin::Previous if sets_insert_id(phrase) => {
            weigh_known(verdict, known);
            verdict.effect(Effect::DrawsSequence);
        }
        known => weigh_known(verdict, known),
    }
}

/// What a function of the server's own does, with arguments that are not known to make it harmless.
pub(super) fn weigh_known(verdict: &mut Verdict, known: Builtin) {
    verdict.plain &= known == Builtin::Pure;
    match known {
        Builtin::Pure => {}
        Builtin::ReadsAll => verdict.tables = Touched::All,
        Builtin::Writes => verdict.raise(Reason::Function),
        Builtin::Server | Builtin::CurrentSetting => verdict.raise(Reason::Server),
        Builtin::State => verdict.raise(Reason::State),
        Builtin::Draws => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::DrawsSequence);
        }
        Builtin::Previous => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::NeedsPrevious);
        }
        Builtin::Counts => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::NeedsLast(Left::Counts));
        }
        Builtin::Found => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::NeedsLast(Left::Found));
        }
        Builtin::AdvisoryLock => {
            verdict.raise(Reason::State);
            verdict.pin(PinReason::AdvisoryLock);
        }
        Builtin::AdvisoryUnlockAll => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::Unpin(PinReason::AdvisoryLock));
        }
        Builtin::NamedLock => {
            verdict.raise(Reason::State);
            verdict.pin(PinReason::NamedLock);
        }
        Builtin::ReleaseAllLocks => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::Unpin(PinReason::NamedLock));
        }
        Builtin::SetConfig => {
            verdict.raise(Reason::State);
            verdict.pin(PinReason::Setting);
        }
        Builtin::ShowsPrepared => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::ShowsPrepared);
        }
    }
}

/// Whether MySQL's LAST_INSERT_ID() is called with a value to remember, of which the answer of a query does not
/// tell.
fn sets_insert_id(phrase: &Phrase<'_>) -> bool {
    let called = |at: usize| phrase.name(at).is_some_and(|name| name == "last_insert_id");
    let given = |at: usize| phrase.punct(at + 1, b'(') && !phrase.punct(at + 2, b')');
    phrase.dialect == Dialect::Mysql && (0..phrase.len()).any(|at| called(at) && given(at))
}

/// Whether any `current_setting(…)` names a setting that tells primary from replica, or one that
/// cannot be read here.
fn asks_for_primary(phrase: &Phrase<'_>) -> bool {
    (0..phrase.len()).filter(|&at| phrase.name(at).is_some_and(|name| name == "current_setting")).any(|at| {
        match phrase.string(at + 2) {
            Some(setting) => PRIMARY_SETTINGS.contains(&setting.to_ascii_lowercase().as_str()),
            None => true,
        }
    })
}

/// `row.f`: in PostgreSQL a call of `f(row)` unless the row has such a column.
pub(super) fn weigh_attribute(verdict: &mut Verdict, phrase: &Phrase<'_>, at: usize, cx: &Cx<'_>) {
    if cx.dialect != Dialect::Postgres || cx.catalog.functions.is_empty() || phrase.punct(at + 1, b'(') {
        return;
    }
    let Some(name) = phrase.name(at) else { return };
    let Some(user) = cx.catalog.functions.get(name.as_str()) else { return };
    if cx.rules.read.contains(name.as_str()) {
        return;
    }
    if user.writes {
        verdict.raise(Reason::Function);
        verdict.effect(Effect::DrawsSequence);
        verdict.plain = false;
        verdict.tables = Touched::All;
    }
    if user.touches && !cx.rules.clean.contains(name.as_str()) {
        verdict.effect(Effect::Touches);
    }
}

/// What runs by the types and operators that a statement names.
pub(super) fn weigh_unnamed(verdict: &mut Verdict, phrase: &Phrase<'_>, cx: &Cx<'_>) {
    let Catalog { types, operators, .. } = cx.catalog;
    let named = (0..phrase.len()).filter(|_| !types.is_empty()).filter_map(|at| phrase.name(at));
    let by_type = named.filter_map(|name| types.get(name.as_str()));
    let stands = |operator: &str| memchr::memmem::find(phrase.source(), operator.as_bytes()).is_some();
    let by_operator = operators.iter().filter(|(name, _)| stands(name)).map(|(_, runs)| runs);
    for runs in by_type.chain(by_operator) {
        if runs.writes {
            verdict.raise(Reason::Function);
            verdict.effect(Effect::DrawsSequence);
        }
        if runs.touches {
            verdict.effect(Effect::Touches);
        }
        verdict.plain = false;
        verdict.tables = Touched::All;
    }
}

/// In case the tree hides a call: names before a `(` that are known to do more than read.
pub(super) fn weigh_unlisted(verdict: &mut Verdict, listed: &[Call], phrase: &Phrase<'_>, cx: &Cx<'_>) {
    for at in (0..phrase.len()).filter(|&at| phrase.punct(at + 1, b'(')) {
        let Some(name) = phrase.name(at) else { continue };
        let harmful = cx.catalog.functions.get(name.as_str()).is_some_and(|user| user.writes || user.touches)
            || builtin(cx.dialect, &name).is_some_and(|known| known != Builtin::Pure)
            || cx.rules.write.contains(name.as_str());
        if harmful && !listed.iter().any(|call| call.function.name == name) {
            let call = Call { function: Named { schema: None, name }, ends_in_true: false };
            weigh(verdict, &call, phrase, cx);
        }
    }
}

/// For a statement that was not parsed: every name before a `(` may be a call.
pub(super) fn weigh_tokens(verdict: &mut Verdict, phrase: &Phrase<'_>, cx: &Cx<'_>) {
    for at in 0..phrase.len() {
        let after_dot = at > 0 && phrase.punct(at - 1, b'.');
        if after_dot {
            weigh_attribute(verdict, phrase, at, cx);
        }
        if !phrase.punct(at + 1, b'(') || !matches!(phrase.kind(at), Some(Kind::Word | Kind::Quoted)) {
            continue;
        }
        let is_target = at > 0 && phrase.is(at - 1, "into");
        if is_target || (!after_dot && is_keyword(phrase, at)) {
            continue;
        }
        let Some(name) = phrase.name(at) else {
            unknown_code(verdict);
            continue;
        };
        let schema = if after_dot && at > 1 { phrase.name(at - 2) } else { None };
        let call = Call { function: Named { schema, name }, ends_in_true: false };
        weigh(verdict, &call, phrase, cx);
    }
}

/// Whether a word stands before a parenthesis without being called.
pub(super) fn is_keyword(phrase: &Phrase<'_>, at: usize) -> bool {
    phrase.is_any(at, &NOT_CALLS)
}

/// Keywords that stand before a parenthesis without being called.
const NOT_CALLS: [&str; 43] = [
    "in",
    "values",
    "as",
    "over",
    "filter",
    "and",
    "or",
    "not",
    "on",
    "using",
    "exists",
    "any",
    "all",
    "some",
    "select",
    "from",
    "where",
    "having",
    "by",
    "case",
    "when",
    "then",
    "else",
    "union",
    "intersect",
    "except",
    "join",
    "lateral",
    "limit",
    "offset",
    "distinct",
    "returning",
    "set",
    "is",
    "like",
    "between",
    "array",
    "within",
    "group",
    "materialized",
    "with",
    "conflict",
    "columns",
];
