//! What a database's own catalog says of functions and relations.

use std::collections::{HashMap, HashSet};

use xxhash_rust::xxh3::Xxh3;

use super::backend::{Backend, Row};
use crate::{
    protocol::Fault,
    sql::catalog::{Catalog, Link, Relation, UserFunction},
};

/// Functions of users and extensions. A trigger function is never called by name.
///
/// `plain`: written in SQL or PL/pgSQL, so that its body can be read.
const FUNCTIONS: &str = "\
SELECT p.proname, p.provolatile = 'v', l.lanname IN ('sql', 'plpgsql'), p.prosrc, \
 p.prorettype = 'pg_catalog.trigger'::pg_catalog.regtype OR p.prorettype = 'pg_catalog.event_trigger'::pg_catalog.regtype, \
 p.oid::text \
FROM pg_catalog.pg_proc p \
JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
WHERE p.oid >= 16384 AND p.prokind <> 'a' \
ORDER BY p.oid";

/// Relations that are more than an ordinary table: kind, persistence, row security, user triggers,
/// rules, and the functions their views, policies, triggers, defaults and rules depend on.
const RELATIONS: &str = "\
SELECT c.relname, c.relkind, c.relpersistence, c.relrowsecurity, \
 EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal), \
 EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'), \
 (SELECT string_agg(DISTINCT d.refobjid::text, ',') FROM ( \
   SELECT d.refobjid FROM pg_catalog.pg_rewrite r \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
     WHERE r.ev_class = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT d.refobjid FROM pg_catalog.pg_policy p \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid = p.oid \
     WHERE p.polrelid = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT o.oprcode FROM pg_catalog.pg_rewrite r \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
     JOIN pg_catalog.pg_operator o ON o.oid = d.refobjid \
     WHERE r.ev_class = c.oid AND d.refclassid = 'pg_catalog.pg_operator'::regclass) d), \
 (SELECT string_agg(DISTINCT f.oid::text, ',') FROM ( \
   SELECT t.tgfoid AS oid FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal \
   UNION SELECT d.refobjid FROM pg_catalog.pg_attrdef a \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = a.oid \
     WHERE a.adrelid = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT d.refobjid FROM pg_catalog.pg_constraint k \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid \
     WHERE k.conrelid = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass) f), \
 EXISTS (SELECT FROM pg_catalog.pg_attrdef a WHERE a.adrelid = c.oid \
   AND pg_catalog.pg_get_expr(a.adbin, a.adrelid) ~* '(currval|lastval)'), \
 c.oid::text, \
 (SELECT string_agg(DISTINCT d.refobjid::text, ',') FROM pg_catalog.pg_rewrite r \
   JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
   WHERE r.ev_class = c.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> c.oid) \
FROM pg_catalog.pg_class c \
WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' \
 AND (c.relkind IN ('v', 'f', 'S') OR c.relpersistence = 'u' OR c.relrowsecurity OR c.relhastriggers OR c.relhasrules \
  OR EXISTS (SELECT FROM pg_catalog.pg_attrdef a WHERE a.adrelid = c.oid)) \
ORDER BY c.oid";

/// Tables that a write of one also changes: partitions and inheritance both ways, and the
/// referencing side of foreign keys with an action.
const RELATIVES: &str = "\
SELECT p.relname, c.relname, true FROM pg_catalog.pg_inherits i \
 JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
 WHERE p.relkind IN ('r', 'p', 'f') \
UNION SELECT p.relname, c.relname, false FROM pg_catalog.pg_constraint k \
 JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
 WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd')) \
ORDER BY 1, 2";

/// Operators over functions of users that write: whatever uses them does.
const VOLATILE_OPERATORS: &str = "\
SELECT count(*) FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode \
WHERE o.oid >= 16384 AND p.provolatile = 'v'";

/// Reads the catalog in four round trips.
pub(super) async fn read(server: &mut Backend) -> Result<Catalog, Fault> {
    let functions = server.query_all(FUNCTIONS).await?;
    let relations = server.query_all(RELATIONS).await?;
    let relatives = server.query_all(RELATIVES).await?;
    let operators = server.query_all(VOLATILE_OPERATORS).await?;
    let mut catalog = Catalog { loaded: true, ..Catalog::default() };
    let bodies = Bodies::read(&functions);
    for row in &functions {
        read_function(row, &bodies, &mut catalog);
    }
    read_relations(&relations, &bodies, &mut catalog);
    let links: Vec<Link<'_>> = relatives.iter().filter_map(read_link).collect();
    catalog.relate(&links);
    catalog.writing_operators =
        operators.first().and_then(|row| text(row, 0)).is_some_and(|count| count != "0");
    catalog.version = version(&[&functions, &relations, &relatives, &operators]);
    Ok(catalog)
}

fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

fn is_true(row: &Row, column: usize) -> bool {
    text(row, column) == Some("t")
}

/// A number that changes when anything that was read changes.
fn version(results: &[&Vec<Row>]) -> u64 {
    let mut hasher = Xxh3::new();
    for value in results.iter().flat_map(|rows| rows.iter()).flatten() {
        let bytes = value.as_deref().unwrap_or("\0");
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes.as_bytes());
    }
    hasher.digest()
}

/// What is known of functions' bodies, by oid.
struct Bodies<'a> {
    writes: HashSet<&'a str>,
    touches: HashSet<&'a str>,
}

/// Words in a body that may leave state in the connection, or hide what would.
const TELLTALES: [&str; 13] = [
    "set_config",
    "set ",
    "reset",
    "advisory",
    "temp",
    "listen",
    "prepare",
    "currval",
    "lastval",
    "execute",
    "discard",
    "load",
    "declare",
];

impl<'a> Bodies<'a> {
    fn read(functions: &'a [Row]) -> Self {
        let mut bodies = Self { writes: HashSet::new(), touches: HashSet::new() };
        let mut suspicious_names: HashSet<String> = HashSet::new();
        let mut sources: Vec<(&str, &str, String)> = Vec::new();
        for row in functions {
            let (Some(name), Some(oid)) = (text(row, 0), text(row, 5)) else { continue };
            if is_true(row, 1) {
                bodies.writes.insert(oid);
            }
            let source = text(row, 3).unwrap_or("").to_lowercase();
            if !is_true(row, 2) || tells(&source) {
                bodies.touches.insert(oid);
                suspicious_names.insert(name.to_lowercase());
            } else {
                sources.push((name, oid, source));
            }
        }
        bodies.spread(sources, suspicious_names);
        bodies
    }

    /// A body that names a suspicious function is suspicious itself, until nothing changes.
    fn spread(&mut self, mut sources: Vec<(&'a str, &'a str, String)>, mut suspicious: HashSet<String>) {
        loop {
            let (found, rest): (Vec<_>, Vec<_>) = sources
                .into_iter()
                .partition(|(_, _, source)| words(source).any(|word| suspicious.contains(word)));
            if found.is_empty() {
                return;
            }
            for (name, oid, _) in found {
                self.touches.insert(oid);
                suspicious.insert(name.to_lowercase());
            }
            sources = rest;
        }
    }

    fn any(set: &HashSet<&str>, oids: Option<&str>) -> bool {
        oids.is_some_and(|oids| oids.split(',').any(|oid| set.contains(oid)))
    }
}

/// Whether a body has a word that may leave state behind. Whole words only where a telltale is a
/// whole word of SQL; `set ` also as `SET LOCAL`, which errs on the safe side — but not the SET of
/// an UPDATE.
fn tells(source: &str) -> bool {
    let mut previous = "";
    let mut in_update = false;
    for word in words(source) {
        match word {
            "update" => in_update = true,
            "set" if in_update => in_update = false,
            "set" if previous != "do" => return true,
            // DECLARE of a PL/pgSQL block is none of a cursor; a held one says so.
            "declare" => {}
            "hold" if previous == "with" => return true,
            word if TELLTALES.contains(&word) => return true,
            word if word.contains("advisory") || word == "temporary" || word == "dblink" => return true,
            _ => {}
        }
        previous = word;
    }
    false
}

fn words(source: &str) -> impl Iterator<Item = &str> {
    source.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn read_function(row: &Row, bodies: &Bodies<'_>, catalog: &mut Catalog) {
    let (Some(name), Some(oid), false) = (text(row, 0), text(row, 5), is_true(row, 4)) else { return };
    let entry =
        catalog.functions.entry(name.into()).or_insert(UserFunction { writes: false, touches: false });
    entry.writes |= bodies.writes.contains(oid);
    entry.touches |= bodies.touches.contains(oid);
}

fn read_relations(rows: &[Row], bodies: &Bodies<'_>, catalog: &mut Catalog) {
    // What a view's relations do on reading, the view does: found by going over them until
    // nothing changes.
    let mut by_oid: HashMap<&str, Relation> = HashMap::new();
    for row in rows {
        if let Some(oid) = text(row, 9) {
            by_oid.insert(oid, read_relation(row, bodies));
        }
    }
    loop {
        let mut changed = false;
        for row in rows {
            let (Some(oid), Some(below), true) = (text(row, 9), text(row, 10), text(row, 1) != Some("m"))
            else {
                continue;
            };
            let below: Vec<_> = below.split(',').filter_map(|oid| by_oid.get(oid)).collect();
            let writes = below.iter().any(|relation| relation.writes_on_read);
            let primary = below.iter().any(|relation| relation.primary_only);
            let relation = by_oid.get_mut(oid).expect("every row was read above");
            changed |= (writes && !relation.writes_on_read) || (primary && !relation.primary_only);
            relation.writes_on_read |= writes;
            relation.primary_only |= primary;
        }
        if !changed {
            break;
        }
    }
    for row in rows {
        let (Some(name), Some(oid)) = (text(row, 0), text(row, 9)) else { continue };
        merge(catalog.relations.entry(name.into()).or_default(), &by_oid[oid]);
    }
}

fn read_relation(row: &Row, bodies: &Bodies<'_>) -> Relation {
    let kind = text(row, 1).unwrap_or("");
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
            || is_true(row, 8),
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
}

fn read_link(row: &Row) -> Option<Link<'_>> {
    Some(Link { from: text(row, 0)?, to: text(row, 1)?, contains: is_true(row, 2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_may_leave_state_are_found() {
        for (body, expected) in [
            ("select a from t where b = $1", false),
            ("begin update t set a = 1; return 2; end", false),
            ("begin perform set_config('app.tenant', x, false); end", true),
            ("begin set search_path = a; end", true),
            ("begin execute 'select 1'; end", true),
            ("declare i int; begin return i; end", false),
            ("insert into t values (1) on conflict do update set a = 2", false),
            ("select pg_try_advisory_lock(1)", true),
            ("create temporary table x (a int)", true),
        ] {
            assert_eq!(tells(body), expected, "{body}");
        }
    }

    #[test]
    fn a_function_that_calls_a_suspicious_one_is_suspicious() {
        let function = |name: &str, source: &str, oid: &str| {
            vec![
                Some(name.to_owned()),
                Some("f".to_owned()),
                Some("t".to_owned()),
                Some(source.to_owned()),
                Some("f".to_owned()),
                Some(oid.to_owned()),
            ]
        };
        let rows = [
            function("outer_one", "select inner_one()", "1"),
            function("inner_one", "select set_config('a', 'b', false)", "2"),
            function("harmless", "select 1", "3"),
        ];
        let bodies = Bodies::read(&rows);
        assert!(bodies.touches.contains("1") && bodies.touches.contains("2"));
        assert!(!bodies.touches.contains("3"));
    }
}
