//! Relations that a statement names, judged by the catalog.

use super::{
    Cx, calls,
    survey::Named,
    verdict::{Touched, Verdict},
};
use crate::sql::{
    Dialect, Reason,
    catalog::EventTriggers,
    effects::{Effect, PinReason},
    functions::Builtin,
    lexer::tokens::Phrase,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}

pub(super) fn weigh(verdict: &mut Verdict, relation: &Named, how: Use, cx: &Cx<'_>) {
    verdict.tables.add(&relation.name);
    match system_relation(relation, cx.dialect) {
        Some(System::Shows(state)) => calls::weigh_known(verdict, state),
        Some(System::Sequence) => verdict.raise(Reason::Relation),
        None => {}
    }
    let schema = relation.schema.as_deref();
    if how == Use::Write && is_settings(schema, &relation.name, cx) {
        verdict.pin(PinReason::Setting);
    }
    if how == Use::Write && !cx.catalog.loaded {
        // It may have triggers.
        verdict.effect(Effect::Touches);
    }
    let Some(known) = cx.catalog.relations.get(relation.name.as_str()) else { return };
    if known.primary_only {
        verdict.raise(Reason::Relation);
        verdict.plain = false;
    }
    if known.writes_on_read {
        verdict.raise(Reason::Relation);
        verdict.plain = false;
        verdict.effect(Effect::DrawsSequence);
    }
    if known.touches_on_read {
        verdict.plain = false;
        verdict.effect(Effect::Touches);
    }
    for call in &known.calls {
        calls::weigh_known(verdict, *call);
    }
    let everything = if how == Use::Write { known.writes_all || known.reads_all } else { known.reads_all };
    if everything {
        verdict.tables = Touched::All;
    }
    if how == Use::Write {
        verdict.plain &= !known.writes_all && !known.touches && !known.irrevocable;
        for relative in &known.relatives {
            verdict.tables.add(relative);
        }
        if known.writes_all {
            verdict.effect(Effect::DrawsSequence);
        }
        if known.touches {
            verdict.effect(Effect::DrawsSequence);
            verdict.effect(Effect::Touches);
        }
    }
}

/// A row of `pg_settings` that is updated is a setting of the session.
fn is_settings(schema: Option<&str>, name: &str, cx: &Cx<'_>) -> bool {
    let of_server = schema.is_none_or(|schema| schema == "pg_catalog");
    cx.dialect == Dialect::Postgres && of_server && name == "pg_settings"
}

/// What a statement that changes definitions sets off.
pub(super) fn weigh_definition(verdict: &mut Verdict, cx: &Cx<'_>) {
    let triggers = match cx.catalog.loaded {
        true => cx.catalog.event_triggers,
        false => EventTriggers::Touching,
    };
    if triggers != EventTriggers::None {
        verdict.effect(Effect::DrawsSequence);
    }
    if triggers == EventTriggers::Touching {
        verdict.effect(Effect::Touches);
    }
}

/// What the `list` of a DROP names without a schema, or in PostgreSQL's for temporary relations.
pub(super) fn drops(list: &Phrase<'_>) -> Effect {
    let names = if list.says(0, &["if", "exists"]) { list.from(2) } else { *list };
    let bare = |item: &Phrase<'_>| {
        let is_temporary = list.dialect == Dialect::Postgres && item.is(0, "pg_temp") && item.punct(1, b'.');
        let at = if is_temporary { 2 } else { 0 };
        item.name(at).filter(|_| !item.punct(at + 1, b'.')).map(Into::into)
    };
    Effect::Drops(names.split_commas().iter().filter_map(bare).collect())
}

/// TRUNCATE runs triggers of its own, with CASCADE those of tables that it does not name.
pub(super) fn weigh_truncate(verdict: &mut Verdict, phrase: &Phrase<'_>, cx: &Cx<'_>) {
    weigh_tokens(verdict, phrase, cx);
    let known = &cx.catalog.relations;
    let cascades = phrase.is(phrase.len() - 1, "cascade");
    let named = (1..phrase.len())
        .filter_map(|at| phrase.name(at))
        .any(|name| known.get(name.as_str()).is_some_and(|relation| relation.writes_all || relation.touches));
    if !cx.catalog.loaded || named || cascades {
        verdict.effect(Effect::DrawsSequence);
    }
    if cascades && known.values().any(|relation| relation.touches) {
        verdict.effect(Effect::Touches);
    }
}

/// For a statement that was not parsed: any name in it may be the target of a write.
pub(super) fn weigh_tokens(verdict: &mut Verdict, phrase: &Phrase<'_>, cx: &Cx<'_>) {
    let touches = |name: String| {
        cx.catalog.relations.get(name.as_str()).is_some_and(|known| known.touches || known.touches_on_read)
    };
    let mut names = (0..phrase.len()).filter_map(|at| phrase.name(at));
    if names.clone().any(|name| is_settings(None, &name, cx)) {
        verdict.pin(PinReason::Setting);
    }
    if !cx.catalog.loaded || names.any(touches) {
        verdict.effect(Effect::Touches);
    }
}

enum System {
    /// What a function shows as well: the state of one server ([`Builtin::Server`]), its session's
    /// ([`Builtin::State`]), names of prepared statements or portals ([`Builtin::ShowsPrepared`]).
    Shows(Builtin),
    Sequence,
}

fn system_relation(relation: &Named, dialect: Dialect) -> Option<System> {
    let schema = relation.schema.as_deref();
    match dialect {
        Dialect::Postgres => match schema {
            Some(schema) if schema.starts_with("pg_temp") => Some(System::Shows(Builtin::State)),
            Some("information_schema") => None,
            Some(schema) if schema != "pg_catalog" => extension_relation(&relation.name),
            _ => postgres_relation(&relation.name),
        },
        Dialect::Mysql => mysql_relation(schema, &relation.name),
    }
}

/// What the server's own view of this name shows beyond what replicas have as well.
pub fn system_view(name: &str) -> Option<Builtin> {
    postgres_relation(name).map(|system| match system {
        System::Shows(state) => state,
        System::Sequence => Builtin::Server,
    })
}

fn postgres_relation(name: &str) -> Option<System> {
    match name {
        "pg_prepared_statements" | "pg_cursors" => Some(System::Shows(Builtin::ShowsPrepared)),
        "pg_sequences" => Some(System::Sequence),
        "pg_locks"
        | "pg_prepared_xacts"
        | "pg_settings"
        | "pg_file_settings"
        | "pg_hba_file_rules"
        | "pg_ident_file_mappings"
        | "pg_replication_slots"
        | "pg_replication_origin_status"
        | "pg_shmem_allocations"
        | "pg_backend_memory_contexts"
        | "pg_config"
        | "pg_aios"
        | "pg_wait_events"
        | "pg_dsm_registry_allocations" => Some(System::Shows(Builtin::Server)),
        _ => extension_relation(name),
    }
}

/// Views over one server's memory, whose extension may live in any schema.
fn extension_relation(name: &str) -> Option<System> {
    let of_server =
        name.starts_with("pg_stat_") || name.starts_with("pg_statio_") || name == "pg_buffercache";
    of_server.then_some(System::Shows(Builtin::Server))
}

fn mysql_relation(schema: Option<&str>, name: &str) -> Option<System> {
    match schema {
        Some("performance_schema" | "sys") => Some(System::Shows(Builtin::Server)),
        Some("information_schema") => {
            let of_server = name.starts_with("innodb_")
                || name.starts_with("global_")
                || name.starts_with("session_")
                || matches!(name, "processlist" | "profiling" | "optimizer_trace" | "system_variables")
                || matches!(name, "metadata_lock_info" | "user_statistics" | "client_statistics" | "events");
            of_server.then_some(System::Shows(Builtin::Server))
        }
        Some("mysql") => {
            let of_server = name.starts_with("slave_") || name.starts_with("gtid_") || name.ends_with("_log");
            of_server.then_some(System::Shows(Builtin::Server))
        }
        _ => None,
    }
}
