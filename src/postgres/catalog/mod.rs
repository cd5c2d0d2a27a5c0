//! What a database's own catalog says of functions and relations.

mod bodies;
mod builtins;
mod queries;

use std::collections::HashMap;

use self::{
    bodies::Bodies,
    builtins::Builtins,
    queries::{BUILTINS, CONFIGURED, DATABASE, FUNCTIONS, RELATIONS, RELATIVES, ROLE_SETTINGS, UNNAMED},
};
use super::backend::{Backend, Row};
use crate::{
    protocol::Fault,
    sql::catalog::{self, Catalog, EventTriggers, FunctionRules, Link, Relation, UserFunction},
};

/// Reads the catalog in eight round trips.
pub(super) async fn read(server: &mut Backend, rules: &FunctionRules) -> Result<Catalog, Fault> {
    let functions = server.query_all(FUNCTIONS).await?;
    let relations = server.query_all(RELATIONS).await?;
    let builtins = server.query_all(BUILTINS).await?;
    let relatives = server.query_all(RELATIVES).await?;
    let unnamed = server.query_all(UNNAMED).await?;
    let database = server.query_all(DATABASE).await?;
    let role_settings = role_settings(server).await?;
    let configured = server.query_all(CONFIGURED).await?;
    let known = Builtins::read(&builtins);
    let links: Vec<Link<'_>> = relatives.iter().filter_map(read_link).collect();
    let mut bodies = Bodies::read(&functions, &known, rules);
    let event_triggers = database.first().and_then(|row| text(row, 0));
    let judge = |bodies: &Bodies<'_>| {
        let mut catalog = judge(&functions, &relations, &links, bodies, &known);
        read_unnamed(&unnamed, bodies, &mut catalog);
        Catalog { event_triggers: judge_event_triggers(event_triggers, bodies), ..catalog }
    };
    let mut catalog = judge(&bodies);
    // What a function writes may set off triggers, whose functions write: until nothing is new.
    while bodies.suspect(&catalog) {
        catalog = judge(&bodies);
    }
    let told = catalog::version(&[&functions, &relations, &builtins, &relatives, &unnamed, &database]);
    catalog.version = told ^ rules.version();
    catalog.session_defaults = role_settings;
    catalog.configured = configured.first().and_then(|row| text(row, 0)).map(Into::into);
    Ok(catalog)
}

/// Everybody may read them, unless somebody took that away.
async fn role_settings(server: &mut Backend) -> Result<Option<u64>, Fault> {
    match server.query_all(ROLE_SETTINGS).await {
        Ok(rows) => Ok(Some(catalog::version(&[&rows]))),
        Err(Fault::Refused(refused)) if refused.code == *b"42501" => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn judge(
    functions: &[Row],
    relations: &[Row],
    links: &[Link<'_>],
    bodies: &Bodies<'_>,
    builtins: &Builtins<'_>,
) -> Catalog {
    let mut catalog = Catalog { loaded: true, ..Catalog::default() };
    for row in functions {
        read_function(row, bodies, &mut catalog);
    }
    read_relations(relations, bodies, builtins, &mut catalog);
    catalog.relate(links);
    catalog
}

fn judge_event_triggers(functions: Option<&str>, bodies: &Bodies<'_>) -> EventTriggers {
    match functions {
        None => EventTriggers::None,
        functions if Bodies::any(&bodies.touches, functions) => EventTriggers::Touching,
        Some(_) => EventTriggers::Clean,
    }
}

fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

fn is_true(row: &Row, column: usize) -> bool {
    text(row, column) == Some("t")
}

fn read_function(row: &Row, bodies: &Bodies<'_>, catalog: &mut Catalog) {
    let (Some(name), Some(oid), false) = (text(row, 0), text(row, 5), is_true(row, 4)) else { return };
    let does = UserFunction { writes: bodies.writes.contains(oid), touches: bodies.touches.contains(oid) };
    let entry = catalog.functions.entry(name.into()).or_default();
    *entry = entry.or(does);
}

/// What runs without being named, as far as it does more than compute.
fn read_unnamed(rows: &[Row], bodies: &Bodies<'_>, catalog: &mut Catalog) {
    for row in rows {
        let (Some(kind), Some(name), Some(oid)) = (text(row, 0), text(row, 1), text(row, 2)) else {
            continue;
        };
        let does = UserFunction {
            writes: bodies.writes.contains(oid),
            touches: bodies.touches.contains(oid) && !is_true(row, 3),
        };
        if does == UserFunction::default() {
            continue;
        }
        let by_name = if kind == "o" { &mut catalog.operators } else { &mut catalog.types };
        let entry = by_name.entry(name.into()).or_default();
        *entry = entry.or(does);
    }
}

fn read_relations(rows: &[Row], bodies: &Bodies<'_>, builtins: &Builtins<'_>, catalog: &mut Catalog) {
    // What a view's relations do on reading, the view does: found by going over them until
    // nothing changes.
    let mut by_oid: HashMap<&str, Relation> = HashMap::new();
    for row in rows {
        if let Some(oid) = text(row, 8) {
            by_oid.insert(oid, read_relation(row, bodies, builtins));
        }
    }
    loop {
        let mut changed = false;
        for row in rows {
            let (Some(oid), Some(below), true) = (text(row, 8), text(row, 9), text(row, 1) != Some("m"))
            else {
                continue;
            };
            let mut sum = by_oid.get(oid).expect("every row was read above").clone();
            for below in below.split(',').filter_map(|oid| by_oid.get(oid)) {
                sum.writes_on_read |= below.writes_on_read;
                sum.primary_only |= below.primary_only;
                sum.touches_on_read |= below.touches_on_read;
                // A write to a view may be one to its table.
                sum.touches |= below.touches;
                sum.call(&below.calls);
            }
            changed |= by_oid.insert(oid, sum.clone()).as_ref() != Some(&sum);
        }
        if !changed {
            break;
        }
    }
    for row in rows {
        let (Some(name), Some(oid)) = (text(row, 0), text(row, 8)) else { continue };
        merge(catalog.relations.entry(name.into()).or_default(), &by_oid[oid]);
    }
}

fn read_relation(row: &Row, bodies: &Bodies<'_>, builtins: &Builtins<'_>) -> Relation {
    let kind = text(row, 1).unwrap_or("");
    let oid = text(row, 8).unwrap_or("");
    // What a materialized view calls ran when it was filled.
    let calls = builtins.reads.get(oid).filter(|_| kind != "m").cloned().unwrap_or_default();
    let functions_read = text(row, 6).filter(|_| kind != "m");
    let unlogged = text(row, 2) == Some("u");
    let security = is_true(row, 3);
    let code = is_true(row, 4) || is_true(row, 5);
    Relation {
        primary_only: unlogged || matches!(kind, "f" | "S"),
        writes_on_read: Bodies::any(&bodies.writes, text(row, 6)),
        reads_all: kind == "v" || security,
        writes_all: code || matches!(kind, "v" | "f") || security,
        touches: Bodies::any(&bodies.touches, text(row, 7))
            || Bodies::any(&bodies.touches, text(row, 6))
            || builtins.touches.contains(oid),
        touches_on_read: bodies.any_read_touches(functions_read),
        calls,
        irrevocable: false,
        relatives: Vec::new(),
    }
}

/// All relations of one name count together.
fn merge(into: &mut Relation, from: &Relation) {
    into.primary_only |= from.primary_only;
    into.writes_on_read |= from.writes_on_read;
    into.reads_all |= from.reads_all;
    into.writes_all |= from.writes_all;
    into.touches |= from.touches;
    into.touches_on_read |= from.touches_on_read;
    into.call(&from.calls);
}

fn read_link(row: &Row) -> Option<Link<'_>> {
    Some(Link { from: text(row, 0)?, to: text(row, 1)?, contains: is_true(row, 2) })
}
