//! What a server says of its routines, views, triggers and tables without transactions: of all schemas together, by bare name.

mod routines;

use std::collections::HashMap;

use self::routines::{Code, PARAMETERS, ROUTINES, TRIGGERS};
use super::backend::{Backend, Row};
use crate::{
    protocol::Fault,
    sql::{
        Dialect,
        catalog::{self, Catalog, FunctionRules, Link, Relation, UserFunction},
        functions::{Builtin, builtin},
    },
};

type Functions = HashMap<Box<str>, UserFunction>;

const VIEWS: &str = "\
SELECT LOWER(table_name), view_definition FROM information_schema.views \
WHERE table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') ORDER BY table_schema, table_name";

/// The referencing side of foreign keys that change it.
const REFERENCES: &str = "\
SELECT LOWER(referenced_table_name), LOWER(table_name) FROM information_schema.referential_constraints \
WHERE delete_rule IN ('CASCADE', 'SET NULL') OR update_rule IN ('CASCADE', 'SET NULL') ORDER BY 1, 2";

/// Tables of MyISAM and other engines without transactions.
const IRREVOCABLE: &str = "\
SELECT LOWER(t.table_name) FROM information_schema.tables t \
JOIN information_schema.engines e ON e.engine = t.engine WHERE COALESCE(e.transactions, 'NO') <> 'YES' \
AND t.table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') ORDER BY 1";

/// What sessions begin with that matters to them, or to how the proxy reads them. Those that move by themselves are
/// left out; the others' changes are rare.
const DEFAULTS: &str = "SHOW GLOBAL VARIABLES WHERE variable_name IN (\
'autocommit', 'character_set_client', 'character_set_results', 'character_set_server', 'collation_connection', \
'collation_server', 'completion_type', 'default_storage_engine', 'default_week_format', 'div_precision_increment', \
'explicit_defaults_for_timestamp', 'foreign_key_checks', 'group_concat_max_len', 'init_connect', \
'innodb_lock_wait_timeout', 'lc_time_names', 'lock_wait_timeout', 'max_execution_time', 'max_join_size', \
'max_sort_length', 'max_statement_time', 'old_mode', 'optimizer_switch', 'sql_big_selects', 'sql_mode', \
'sql_safe_updates', 'sql_select_limit', 'time_zone', 'transaction_isolation', 'transaction_read_only', \
'tx_isolation', 'tx_read_only', 'unique_checks', 'updatable_views_with_limit')";

/// Reads the catalog in seven round trips.
pub(super) async fn read(server: &mut Backend, rules: &FunctionRules) -> Result<Catalog, Fault> {
    let routines = server.query_all(ROUTINES).await?;
    let parameters = server.query_all(PARAMETERS).await?;
    let views = server.query_all(VIEWS).await?;
    let triggers = server.query_all(TRIGGERS).await?;
    let references = server.query_all(REFERENCES).await?;
    let irrevocable = server.query_all(IRREVOCABLE).await?;
    let defaults = server.query_all(DEFAULTS).await?;
    let mut catalog = Catalog {
        loaded: true,
        session_defaults: Some(catalog::version(&[&defaults])),
        ..Catalog::default()
    };
    let code = Code::read(&routines, &parameters, &triggers, rules);
    // What code writes may set off triggers, and what it reads may be a view over functions: until nothing is new.
    loop {
        let news = code.spread(&mut catalog);
        for row in &views {
            let (Some(name), definition) = (text(row, 0), text(row, 1)) else { continue };
            let relation: &mut Relation = catalog.relations.entry(name.into()).or_default();
            read_view(relation, definition.unwrap_or_default(), &catalog.functions);
        }
        read_views_of_views(&views, &mut catalog.relations);
        if !news {
            break;
        }
    }
    for name in irrevocable.iter().filter_map(|row| text(row, 0)) {
        catalog.relations.entry(name.into()).or_default().irrevocable = true;
    }
    let link = |row| Some(Link { from: text(row, 0)?, to: text(row, 1)?, contains: false });
    let links: Vec<Link<'_>> = references.iter().filter_map(link).collect();
    catalog.relate(&links);
    let told = catalog::version(&[&routines, &parameters, &views, &triggers, &references, &irrevocable]);
    catalog.version = told ^ rules.version();
    Ok(catalog)
}

fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

/// What uses of a view do, by the functions that its definition calls. It is shown only to whoever may read from
/// the view, and empty to others: such a view may call any function that leaves state. That it writes replicas
/// refuse by themselves.
fn read_view(relation: &mut Relation, definition: &str, functions: &Functions) {
    relation.reads_all = true;
    relation.writes_all = true;
    let mut touches = definition.is_empty() && functions.values().any(|function| function.touches);
    let definition = definition.to_lowercase();
    for name in called(&definition) {
        if let Some(function) = functions.get(name) {
            relation.writes_on_read |= function.writes;
            if function.touches {
                touches = true;
                relation.call(&[Builtin::State]);
            }
        } else if let Some(known) = builtin(Dialect::Mysql, name).filter(|&known| known != Builtin::Pure) {
            relation.call(&[known]);
        }
    }
    relation.touches_on_read |= touches;
    relation.touches |= touches;
}

/// Whether a read of a view does more than reading.
fn does_something(view: &Relation) -> bool {
    view.writes_on_read || view.touches_on_read || !view.calls.is_empty()
}

/// What the views do that a view reads, it does: until nothing changes.
fn read_views_of_views(rows: &[Row], relations: &mut HashMap<Box<str>, Relation>) {
    let definitions: HashMap<&str, String> =
        rows.iter().filter_map(|row| Some((text(row, 0)?, text(row, 1)?.to_lowercase()))).collect();
    loop {
        let mut changed = false;
        for (name, definition) in &definitions {
            let others = words(definition).filter(|other| other != name && definitions.contains_key(other));
            let read: Vec<Relation> = others
                .filter_map(|other| relations.get(other))
                .filter(|view| does_something(view))
                .cloned()
                .collect();
            let Some(view) = relations.get_mut(*name).filter(|_| !read.is_empty()) else { continue };
            let before = view.clone();
            for other in read {
                view.writes_on_read |= other.writes_on_read;
                view.touches_on_read |= other.touches_on_read;
                view.touches |= other.touches;
                view.call(&other.calls);
            }
            changed |= *view != before;
        }
        if !changed {
            return;
        }
    }
}

/// Names that stand before a parenthesis, as servers show definitions: `` `schema`.`function`(`t`.`x`) ``.
fn called(definition: &str) -> impl Iterator<Item = &str> {
    let names = definition.match_indices('(').map(|(at, _)| definition[..at].trim_end_matches('`'));
    names.filter_map(|before| before.rsplit(|c| !is_of_word(c)).next()).filter(|name| !name.is_empty())
}

fn words(source: &str) -> impl Iterator<Item = &str> {
    source.split(|c| !is_of_word(c)).filter(|word| !word.is_empty())
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_does_what_the_functions_do_that_it_calls() {
        let function = |name: &str, writes, touches| (name.into(), UserFunction { writes, touches });
        let functions =
            [function("pure", false, false), function("writes", true, false), function("sets", false, true)];
        let view = |definition: &str, functions: &[_]| {
            let mut view = Relation::default();
            read_view(&mut view, definition, &functions.iter().cloned().collect());
            (view.writes_on_read, view.touches_on_read, view.calls)
        };
        for (definition, does) in [
            (
                "select `s`.`t`.`writes` AS `x` from `s`.`t` where `s`.`t`.`sets` = (1)",
                (false, false, vec![]),
            ),
            ("select `s`.`pure`(`s`.`t`.`x`) AS `x`,max(1) AS `y` from `s`.`t`", (false, false, vec![])),
            ("select `s`.`Writes`() AS `x`", (true, false, vec![])),
            ("select (1 + `s`.`sets`()) AS `x`", (false, true, vec![Builtin::State])),
            ("select get_lock('a',0) AS `x`", (false, false, vec![Builtin::NamedLock])),
            ("", (false, true, vec![])),
        ] {
            assert_eq!(view(definition, &functions), does, "{definition}");
        }
        assert_eq!(view("", &functions[..2]), (false, false, vec![]));
    }

    #[test]
    fn a_view_does_what_the_views_do_that_it_reads() {
        let row = |name: &str, definition: &str| vec![Some(name.to_owned()), Some(definition.to_owned())];
        let rows = [
            row("top", "select `s`.`middle`.`x` AS `x` from `s`.`Middle`"),
            row("middle", "select `s`.`locks`.`x` AS `x` from (`s`.`locks` join `s`.`itself`)"),
            row("locks", "select get_lock('a',0) AS `x`"),
            row("itself", "select `s`.`t`.`itself` AS `x` from `s`.`t`"),
        ];
        let mut relations = HashMap::new();
        for row in &rows {
            let relation = relations.entry(text(row, 0).expect("it has a name").into()).or_default();
            read_view(relation, text(row, 1).expect("it is shown"), &Functions::default());
        }

        read_views_of_views(&rows, &mut relations);

        for (name, calls) in [("top", true), ("middle", true), ("locks", true), ("itself", false)] {
            assert_eq!(relations[name].calls == [Builtin::NamedLock], calls, "{name}");
        }
    }
}
