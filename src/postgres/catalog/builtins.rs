//! What relations and bodies call of the server's own functions and views.

use std::collections::{HashMap, HashSet};

use super::{super::backend::Row, is_true, text};
use crate::sql::{
    Dialect,
    functions::{Builtin, builtin},
    system_view,
};

pub(super) const SETTINGS: &str = "pg_settings";

/// By the oid of the relation or function.
#[derive(Default)]
pub(super) struct Builtins<'a> {
    /// What a read does.
    pub reads: HashMap<&'a str, Vec<Builtin>>,
    /// A write leaves state behind, or asks for what was left.
    pub touches: HashSet<&'a str>,
    /// What a body in the SQL standard's way names, quoted.
    pub bodies: HashMap<&'a str, String>,
}

impl<'a> Builtins<'a> {
    pub fn read(rows: &'a [Row]) -> Self {
        let mut builtins = Self::default();
        for row in rows {
            let (Some(owner), Some(kind), Some(name)) = (text(row, 0), text(row, 1), text(row, 2)) else {
                continue;
            };
            if kind == "b" {
                let body = builtins.bodies.entry(owner).or_default();
                body.extend(["\"", &name.replace('"', "\"\""), "\" "]);
                continue;
            }
            // Updating its rows sets what they show, also through a view.
            if name == SETTINGS {
                builtins.touches.insert(owner);
            }
            if let Some(meaning) = meaning(row, name) {
                builtins.note(owner, kind, meaning);
            }
        }
        builtins
    }

    fn note(&mut self, relation: &'a str, kind: &str, meaning: Builtin) {
        if kind == "r" {
            self.reads.entry(relation).or_default().push(meaning);
        } else if meaning.keeps_state() {
            self.touches.insert(relation);
        }
    }
}

/// What a function or view does besides reading; `None`: nothing.
fn meaning(row: &Row, name: &str) -> Option<Builtin> {
    if !is_true(row, 3) {
        return system_view(name);
    }
    match builtin(Dialect::Postgres, name) {
        Some(Builtin::Pure) => None,
        // A newer server's.
        None if is_true(row, 4) => Some(Builtin::Writes),
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_a_computation_is_told_from_it() {
        let row = |kind: &str, name: &str, function: &str, volatile: &str| -> Row {
            ["1", kind, name, function, volatile].map(|value| Some(value.to_owned())).into()
        };
        for (name, function, volatile, expected) in [
            ("lastval", "t", "t", Some(Builtin::Previous)),
            ("set_config", "t", "t", Some(Builtin::SetConfig)),
            ("pg_is_in_recovery", "t", "t", Some(Builtin::Server)),
            ("current_setting", "t", "f", Some(Builtin::CurrentSetting)),
            ("random", "t", "t", None),
            ("now", "t", "f", None),
            ("timestamp_lt_timestamptz", "t", "f", None),
            ("made_up_by_version_30", "t", "t", Some(Builtin::Writes)),
            ("pg_stat_activity", "f", "t", Some(Builtin::Server)),
            ("pg_cursors", "f", "t", Some(Builtin::ShowsPrepared)),
            ("pg_tables", "f", "t", None),
        ] {
            let rows = [row("r", name, function, volatile)];
            let found = Builtins::read(&rows).reads.remove("1").unwrap_or_default();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{name}");
        }
        for (name, touches) in [("currval", true), ("set_config", true), ("nextval", false)] {
            let rows = [row("w", name, "t", "t")];
            assert_eq!(Builtins::read(&rows).touches.contains("1"), touches, "{name}");
        }
        let rows = [row("b", "insert", "t", "f"), row("b", "o\"dd", "t", "f")];
        assert_eq!(Builtins::read(&rows).bodies["1"], "\"insert\" \"o\"\"dd\" ");
    }
}
