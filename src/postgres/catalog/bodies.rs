//! What functions do, as far as their bodies tell.

use std::collections::HashSet;

use super::{super::backend::Row, is_true, text};

/// What is known of functions' bodies, by oid.
pub(super) struct Bodies<'a> {
    pub writes: HashSet<&'a str>,
    pub touches: HashSet<&'a str>,
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
    pub fn read(functions: &'a [Row]) -> Self {
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

    pub fn any(set: &HashSet<&str>, oids: Option<&str>) -> bool {
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
