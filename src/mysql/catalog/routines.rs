//! What functions, procedures and triggers do, as far as their bodies tell.

use std::collections::HashMap;

use super::{super::backend::Row, text};
use crate::sql::{
    Dialect, LexModes,
    body::mysql::{Body, Names},
    catalog::{Catalog, FunctionRules, UserFunction},
};

/// Schema, name and kind; whether it declares that it writes; the mode that it was made in, and its body, which is
/// NULL if it may not be seen or is in another language.
pub(super) const ROUTINES: &str = "\
SELECT routine_schema, LOWER(routine_name), routine_type, sql_data_access = 'MODIFIES SQL DATA', sql_mode, \
IF(routine_body = 'SQL', routine_definition, NULL) FROM information_schema.routines \
WHERE routine_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') \
ORDER BY routine_schema, routine_type, routine_name";

pub(super) const PARAMETERS: &str = "\
SELECT specific_schema, LOWER(specific_name), routine_type, LOWER(parameter_name) FROM information_schema.parameters \
WHERE parameter_name IS NOT NULL AND specific_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') \
ORDER BY specific_schema, routine_type, specific_name, ordinal_position";

pub(super) const TRIGGERS: &str = "\
SELECT LOWER(event_object_table), sql_mode, action_statement FROM information_schema.triggers \
WHERE trigger_schema <> 'sys' ORDER BY trigger_schema, trigger_name";

/// What code may do that is not shown.
const ANYTHING: UserFunction = UserFunction { writes: true, touches: true };

/// All code that may be called or set off, by what it counts for.
pub(super) struct Code<'a> {
    rules: &'a FunctionRules,
    pieces: Vec<Piece<'a>>,
}

struct Piece<'a> {
    name: &'a str,
    kind: Kind,
    declares_writes: bool,
    /// `None`: it is not shown.
    body: Option<Body>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Function,
    Procedure,
    /// Of the table that it is named by.
    Trigger,
}

impl<'a> Code<'a> {
    /// Rows are those of [`ROUTINES`], [`PARAMETERS`] and [`TRIGGERS`].
    pub fn read(
        routines: &'a [Row],
        parameters: &'a [Row],
        triggers: &'a [Row],
        rules: &'a FunctionRules,
    ) -> Self {
        let mut of_routine: HashMap<&[Option<String>], Names> = HashMap::new();
        for row in parameters {
            if let (Some(routine), Some(name)) = (row.get(..3), text(row, 3)) {
                of_routine.entry(routine).or_default().insert(name.into());
            }
        }
        let none = Names::new();
        let routines = routines.iter().filter_map(|row| {
            let parameters = row.get(..3).and_then(|routine| of_routine.get(routine)).unwrap_or(&none);
            Some(Piece {
                name: text(row, 1)?,
                kind: if text(row, 2) == Some("PROCEDURE") { Kind::Procedure } else { Kind::Function },
                declares_writes: text(row, 3) == Some("1"),
                body: body(text(row, 4), text(row, 5), parameters),
            })
        });
        let triggers = triggers.iter().filter_map(|row| {
            let body = body(text(row, 1), text(row, 2), &none);
            Some(Piece { name: text(row, 0)?, kind: Kind::Trigger, declares_writes: false, body })
        });
        Self { rules, pieces: routines.chain(triggers).collect() }
    }

    /// Notes what the code does by what is known of the rest so far, until nothing is new. Returns whether
    /// anything was. MySQL does not hold a routine to what it declares: that vouches for nothing but a write.
    pub fn spread(&self, catalog: &mut Catalog) -> bool {
        let mut news = false;
        loop {
            let mut changed = false;
            for piece in &self.pieces {
                changed |= self.learn(piece, catalog);
            }
            if !changed {
                return news;
            }
            news = true;
        }
    }

    /// All of one name and kind count together.
    fn learn(&self, piece: &Piece<'_>, catalog: &mut Catalog) -> bool {
        let does = piece.does(catalog);
        let by_name = match piece.kind {
            Kind::Function => &mut catalog.functions,
            Kind::Procedure => &mut catalog.procedures,
            Kind::Trigger => {
                let table = catalog.relations.entry(piece.name.into()).or_default();
                let before = table.clone();
                table.writes_all = true;
                table.touches |= does.touches;
                return *table != before;
            }
        };
        let entry = by_name.entry(piece.name.into()).or_default();
        let before = *entry;
        *entry = before.or(self.rules.judge(piece.name, does));
        *entry != before
    }
}

impl Piece<'_> {
    fn does(&self, catalog: &Catalog) -> UserFunction {
        let Some(body) = &self.body else { return ANYTHING };
        let itself = UserFunction { writes: self.declares_writes || body.writes, touches: body.leaves };
        let functions = body.names.iter().filter_map(|name| catalog.functions.get(name)).copied();
        // Some are the server's own.
        let procedure = |name: &Option<Box<str>>| {
            name.as_ref().and_then(|name| catalog.procedures.get(name)).copied().unwrap_or(ANYTHING)
        };
        let relations = body.names.iter().filter_map(|name| catalog.relations.get(name));
        let of_relations = relations.map(|relation| UserFunction {
            writes: relation.writes_on_read,
            touches: relation.touches_on_read
                || relation.calls.iter().any(|call| call.keeps_state())
                || (body.writes && relation.touches),
        });
        let called = body.called.iter().map(procedure);
        functions.chain(called).chain(of_relations).fold(itself, UserFunction::or)
    }
}

fn body(sql_mode: Option<&str>, text: Option<&str>, parameters: &Names) -> Option<Body> {
    let modes = LexModes::default_of(Dialect::Mysql).with_sql_mode(sql_mode?);
    Some(Body::read(text?, modes, parameters))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::catalog::Relation;

    fn routine(name: &str, kind: &str, declares_writes: &str, body: Option<&str>) -> Row {
        let known = ["s", name, kind, declares_writes, ""].map(|value| Some(value.to_owned()));
        known.into_iter().chain([body.map(str::to_owned)]).collect()
    }

    fn function(name: &str, body: &str) -> Row {
        routine(name, "FUNCTION", "0", Some(body))
    }

    fn procedure(name: &str, body: &str) -> Row {
        routine(name, "PROCEDURE", "0", Some(body))
    }

    fn row(values: &[&str]) -> Row {
        values.iter().map(|&value| Some(value.to_owned())).collect()
    }

    #[test]
    fn a_routine_does_what_its_body_and_its_callees_do() {
        let routines = [
            function("harmless", "RETURN a + 1"),
            function("liar", "BEGIN INSERT INTO t VALUES (1); RETURN 1; END"),
            function("outer_one", "RETURN liar()"),
            function("keeper", "BEGIN SET @x = 1; RETURN 1; END"),
            routine("hidden", "FUNCTION", "0", None),
            routine("honest", "FUNCTION", "1", Some("RETURN 1")),
            function("has_it_called", "BEGIN CALL keeps(1); RETURN 1; END"),
            function("calls_a_clean_one", "BEGIN CALL both(); RETURN 1; END"),
            function("calls_the_servers", "BEGIN CALL sys.table_exists(); RETURN 1; END"),
            function("sets", "BEGIN SET sort_buffer_size = 1; RETURN 1; END"),
            function("sets_its_own", "BEGIN SET given = 1; RETURN 1; END"),
            function("both", "BEGIN SET @x = 1; RETURN 1; END"),
            procedure("both", "UPDATE t SET a = 1"),
            procedure("keeps", "SET @x = 1"),
            procedure("has_it_kept", "CALL s.keeps(1)"),
            procedure("fires", "INSERT INTO fired VALUES (1)"),
            procedure("looks", "SELECT * FROM fired"),
        ];
        let parameters = [row(&["s", "sets_its_own", "FUNCTION", "given"])];
        let triggers = [row(&["fired", "", "SET NEW.x = keeper()"])];
        let rules = FunctionRules::default();
        let mut catalog = Catalog::default();
        assert!(Code::read(&routines, &parameters, &triggers, &rules).spread(&mut catalog));

        for (name, writes, touches) in [
            ("harmless", false, false),
            ("liar", true, false),
            ("outer_one", true, false),
            ("keeper", false, true),
            ("hidden", true, true),
            ("honest", true, false),
            ("has_it_called", true, true),
            ("calls_the_servers", true, true),
            ("sets", false, true),
            ("sets_its_own", false, false),
            ("both", false, true),
        ] {
            assert_eq!(catalog.functions[name], UserFunction { writes, touches }, "function {name}");
        }
        for (name, touches) in
            [("both", false), ("keeps", true), ("has_it_kept", true), ("fires", true), ("looks", false)]
        {
            assert_eq!(catalog.procedures[name].touches, touches, "procedure {name}");
        }
        assert!(catalog.relations["fired"].touches);
    }

    #[test]
    fn what_is_known_of_relations_tells_of_routines() {
        let routines = [procedure("reads", "SELECT * FROM setting_view"), procedure("calls", "CALL reads()")];
        let rules = FunctionRules::default();
        let code = Code::read(&routines, &[], &[], &rules);
        let mut catalog = Catalog::default();
        assert!(code.spread(&mut catalog));
        assert!(!code.spread(&mut catalog));

        let view = Relation { touches_on_read: true, ..Relation::default() };
        catalog.relations.insert("setting_view".into(), view);
        assert!(code.spread(&mut catalog));
        assert!(catalog.procedures["calls"].touches);
    }
}
