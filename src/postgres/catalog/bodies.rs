//! What functions do, as far as their bodies tell.

use std::collections::{HashMap, HashSet};

use super::{
    super::backend::Row,
    builtins::{Builtins, SETTINGS},
    is_true, text,
};
use crate::sql::{
    body::{self, DEFINITIONS},
    catalog::{Catalog, EventTriggers, FunctionRules, UserFunction},
};

/// What is known of functions' bodies, by oid.
pub(super) struct Bodies<'a> {
    pub writes: HashSet<&'a str>,
    pub touches: HashSet<&'a str>,
    /// In C and immutable: extensions' views over these are read like any other.
    pub computes: HashSet<&'a str>,
    /// Those of which nothing worse is known yet, and may become known.
    clean: Vec<Body<'a>>,
    /// Names of functions that touch, and of what does when it is read.
    suspicious: Names,
    /// Names of tables that touch when they are written.
    triggering: Names,
}

struct Body<'a> {
    name: &'a str,
    oid: &'a str,
    source: String,
    /// It has a verb that changes rows.
    writes: bool,
}

/// A function as the catalog tells of it.
struct Function<'a> {
    name: &'a str,
    oid: &'a str,
    /// In lower case.
    source: String,
    is_readable: bool,
    /// It is VOLATILE.
    is_volatile: bool,
    /// As far as its own body tells.
    leaves_state: bool,
    needs_primary: bool,
}

impl<'a> Function<'a> {
    fn read(row: &'a Row, builtins: &Builtins<'_>) -> Option<Self> {
        let (name, oid) = (text(row, 0)?, text(row, 5)?);
        // One in the SQL standard's way has no source; defaults of arguments are known as it is.
        let parsed = builtins.bodies.get(oid).map_or("", String::as_str);
        let source = [parsed, text(row, 3).unwrap_or("")].join(" ");
        let is_readable = is_true(row, 2);
        // Not in lower case: there the tags of its dollar quotes may be others.
        let own = is_readable.then(|| body::Body::read(&source));
        Some(Self {
            name,
            oid,
            leaves_state: own.is_none_or(|body| body.leaves),
            needs_primary: own.is_some_and(|body| body.needs_primary),
            source: source.to_lowercase(),
            is_readable,
            is_volatile: is_true(row, 1),
        })
    }
}

/// Those that need the primary, or call one that does. Whatever they are declared as they run there: a standby
/// would let them, and nobody sees its locks.
fn of_primary<'a>(functions: &[Function<'a>], rules: &FunctionRules) -> HashSet<&'a str> {
    let may = |function: &&Function<'_>| function.is_readable && !rules.read.contains(function.name);
    let (mut found, mut rest): (Vec<_>, Vec<_>) =
        functions.iter().filter(may).partition(|function| function.needs_primary);
    let (mut oids, mut names) = (HashSet::new(), Names::default());
    while !found.is_empty() {
        oids.extend(found.iter().map(|function| function.oid));
        names.extend(found.iter().map(|function| function.name));
        (found, rest) = rest.into_iter().partition(|function| names.are_in(&function.source));
    }
    oids
}

impl<'a> Bodies<'a> {
    pub fn read(functions: &'a [Row], builtins: &Builtins<'_>, rules: &FunctionRules) -> Self {
        let mut bodies = Self {
            writes: HashSet::new(),
            touches: HashSet::new(),
            computes: HashSet::new(),
            clean: Vec::new(),
            suspicious: Names::default(),
            triggering: Names::from_iter([SETTINGS]),
        };
        bodies.computes =
            functions.iter().filter(|row| is_true(row, 6)).filter_map(|row| text(row, 5)).collect();
        let functions: Vec<Function<'a>> =
            functions.iter().filter_map(|row| Function::read(row, builtins)).collect();
        let of_primary = of_primary(&functions, rules);
        for Function { name, oid, source, is_volatile, leaves_state, .. } in functions {
            let writes = is_volatile || of_primary.contains(oid);
            let does = rules.judge(name, UserFunction { writes, touches: leaves_state });
            if does.writes {
                bodies.writes.insert(oid);
            }
            if does.touches {
                bodies.touches.insert(oid);
                bodies.suspicious.insert(name);
            } else if !rules.clean.contains(name) {
                let writes = words(&source).any(|word| VERBS.contains(&word));
                bodies.clean.push(Body { name, oid, source, writes });
            }
        }
        bodies.spread();
        bodies
    }

    /// Takes relations into account that touch by what is known of functions so far. Returns whether that
    /// told anything new of functions.
    pub fn suspect(&mut self, catalog: &Catalog) -> bool {
        for (name, relation) in &catalog.relations {
            if relation.touches {
                self.triggering.insert(name);
            }
            if relation.touches_on_read || relation.calls.iter().any(|call| call.keeps_state()) {
                self.suspicious.insert(name);
            }
        }
        let touching = catalog.types.iter().filter(|(_, runs)| runs.touches);
        self.suspicious.extend(touching.map(|(name, _)| &**name));
        if catalog.event_triggers == EventTriggers::Touching {
            self.suspicious.extend(DEFINITIONS.into_iter().chain(["into"]));
        }
        self.spread()
    }

    /// A body that names something suspicious is suspicious itself, until nothing changes. Returns whether
    /// any is.
    fn spread(&mut self) -> bool {
        let before = self.touches.len();
        loop {
            let (suspicious, triggering) = (&self.suspicious, &self.triggering);
            let (found, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.clean).into_iter().partition(|body| {
                    suspicious.are_in(&body.source) || (body.writes && triggering.are_in(&body.source))
                });
            self.clean = rest;
            if found.is_empty() {
                return self.touches.len() > before;
            }
            for Body { name, oid, .. } in found {
                self.touches.insert(oid);
                self.suspicious.insert(name);
            }
        }
    }

    pub fn any(set: &HashSet<&str>, oids: Option<&str>) -> bool {
        oids.is_some_and(|oids| oids.split(',').any(|oid| set.contains(oid)))
    }

    /// Whether reading a view or policy over these functions may leave state behind.
    pub fn any_read_touches(&self, oids: Option<&str>) -> bool {
        let touches = |oid: &str| self.touches.contains(oid) && !self.computes.contains(oid);
        oids.is_some_and(|oids| oids.split(',').any(touches))
    }
}

/// Names that are looked for in bodies, without regard to schemas and to case: each under the first of its
/// words, as most have no other.
#[derive(Default)]
struct Names(HashMap<String, HashSet<String>>);

impl Names {
    fn insert(&mut self, name: &str) {
        // As it stands between quotes.
        let name = name.to_lowercase().replace('"', "\"\"");
        let first = words(&name).next().unwrap_or_default().to_owned();
        self.0.entry(first).or_default().insert(name);
    }

    /// Whether any of them stands in a body, which is in lower case. One that stands there for something
    /// else counts as well.
    fn are_in(&self, body: &str) -> bool {
        let stands = |name: &String, word: &str| name == word || body.contains(&**name);
        words(body)
            .chain([""])
            .any(|word| self.0.get(word).is_some_and(|names| names.iter().any(|name| stands(name, word))))
    }
}

impl<'a> Extend<&'a str> for Names {
    fn extend<I: IntoIterator<Item = &'a str>>(&mut self, names: I) {
        names.into_iter().for_each(|name| self.insert(name));
    }
}

impl<'a> FromIterator<&'a str> for Names {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        let mut all = Self::default();
        all.extend(names);
        all
    }
}

/// What sets off triggers.
const VERBS: [&str; 6] = ["insert", "update", "delete", "merge", "truncate", "copy"];

fn words(source: &str) -> impl Iterator<Item = &str> {
    source.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{catalog::Relation, functions::Builtin};

    fn function(name: &str, source: &str, oid: &str) -> Row {
        [name, "f", "t", source, "f", oid].map(|value| Some(value.to_owned())).into()
    }

    #[test]
    fn a_function_that_calls_a_suspicious_one_is_suspicious() {
        let rows = [
            function("outer_one", "select inner_one()", "1"),
            function("inner_one", "select set_config('a', 'b', false)", "2"),
            function("harmless", "select 1", "3"),
        ];
        let bodies = Bodies::read(&rows, &Builtins::default(), &FunctionRules::default());
        assert!(bodies.touches.contains("1") && bodies.touches.contains("2"));
        assert!(!bodies.touches.contains("3"));
    }

    #[test]
    fn a_function_that_calls_one_whose_name_is_no_single_word_is_suspicious_too() {
        let sets = "select set_config('a', 'b', false)";
        for (name, call) in [
            ("set$tenant", "set$tenant()"),
            ("set tenant", "app.\"set tenant\"()"),
            ("Sétz-Tenant", "\"Sétz-Tenant\"()"),
            ("a\"b", "\"a\"\"b\"()"),
        ] {
            let source = format!("begin perform {call}; end");
            let rows = [function("outer_one", &source, "1"), function(name, sets, "2")];
            let bodies = Bodies::read(&rows, &Builtins::default(), &FunctionRules::default());
            assert!(bodies.touches.contains("1") && bodies.writes.contains("1"), "{name}");
        }
    }

    #[test]
    fn a_function_that_needs_the_primary_runs_there_whatever_it_is_declared_as() {
        let rows = [
            function("tenant", "select set_config('app.tenant', $1, false)", "1"),
            function("outer_one", "select tenant('a')", "2"),
            function("locks", "select pg_try_advisory_lock(1)", "3"),
            function("hides", "begin return query execute 'select ' || $1; end", "4"),
            function("harmless", "select 1", "5"),
        ];
        let writes = |rules: &FunctionRules| {
            let bodies = Bodies::read(&rows, &Builtins::default(), rules);
            let mut writes: Vec<String> = bodies.writes.into_iter().map(str::to_owned).collect();
            writes.sort_unstable();
            writes
        };
        assert_eq!(writes(&FunctionRules::default()), ["1", "2", "3"]);
        let tenant = HashSet::from(["tenant".into()]);
        let read = FunctionRules { read: tenant.clone(), ..FunctionRules::default() };
        assert_eq!(writes(&read), ["3"], "what calls it reads as well");
        let clean = FunctionRules { clean: tenant, ..FunctionRules::default() };
        assert_eq!(writes(&clean), ["1", "2", "3"], "that it leaves nothing says nothing of where");
    }

    #[test]
    fn a_body_is_read_with_the_tags_of_its_dollar_quotes_as_they_are() {
        let hidden = "select $A$ $a$ $A$, set_config('a.b', 'c', false), $b$ $a$ $b$, $B$ $b$ $B$";
        let rows = [function("hides", hidden, "1")];
        let bodies = Bodies::read(&rows, &Builtins::default(), &FunctionRules::default());
        assert!(bodies.touches.contains("1") && bodies.writes.contains("1"));
    }

    #[test]
    fn a_function_that_sets_off_a_suspicious_event_trigger_is_suspicious() {
        let rows = [
            function("makes", "begin create table t (a int); end", "1"),
            function("gives", "begin reassign owned by a to b; end", "2"),
            function("fills", "select 1 as a into t", "3"),
            function("reads", "select a from t", "4"),
        ];
        let catalog = Catalog { event_triggers: EventTriggers::Touching, ..Catalog::default() };
        let mut bodies = Bodies::read(&rows, &Builtins::default(), &FunctionRules::default());
        assert!(bodies.touches.is_empty() && bodies.suspect(&catalog));
        let mut found: Vec<&str> = bodies.touches.into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, ["1", "2", "3"]);
    }

    #[test]
    fn a_function_that_sets_off_a_suspicious_trigger_is_suspicious() {
        let rows = [
            function("writes", "insert into public.triggered values (1)", "1"),
            function("calls", "select writes()", "2"),
            function("reads", "select * from triggered", "3"),
            function("looks", "select * from view_that_sets", "4"),
            function("elsewhere", "insert into plain values (1)", "5"),
        ];
        let mut catalog = Catalog::default();
        for (name, relation) in [
            ("triggered", Relation { touches: true, ..Relation::default() }),
            ("view_that_sets", Relation { calls: vec![Builtin::SetConfig], ..Relation::default() }),
            ("plain", Relation::default()),
        ] {
            catalog.relations.insert(name.into(), relation);
        }
        let mut bodies = Bodies::read(&rows, &Builtins::default(), &FunctionRules::default());

        assert!(bodies.touches.is_empty());
        assert!(bodies.suspect(&catalog));
        assert!(!bodies.suspect(&catalog));

        let mut found: Vec<&str> = bodies.touches.into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, ["1", "2", "4"]);
    }
}
