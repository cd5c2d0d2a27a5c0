//! What relations call of the server's own functions and views.

use std::collections::{HashMap, HashSet};

use super::{super::backend::Row, is_true, text};
use crate::sql::{
    Dialect,
    functions::{Builtin, builtin},
    system_view,
};

/// By the relation's oid.
#[derive(Default)]
pub(super) struct Builtins<'a> {
    /// What a read does.
    pub reads: HashMap<&'a str, Vec<Builtin>>,
    /// A write leaves state behind, or asks for what was left.
    pub touches: HashSet<&'a str>,
}

impl<'a> Builtins<'a> {
    pub fn read(rows: &'a [Row]) -> Self {
        let mut builtins = Self::default();
        for row in rows {
            let (Some(relation), Some(meaning)) = (text(row, 0), meaning(row)) else { continue };
            if text(row, 1) == Some("r") {
                builtins.reads.entry(relation).or_default().push(meaning);
            } else if matches!(meaning, Builtin::SetConfig | Builtin::AdvisoryLock | Builtin::Previous) {
                builtins.touches.insert(relation);
            }
        }
        builtins
    }
}

/// What a function or view does besides reading; `None`: nothing.
fn meaning(row: &Row) -> Option<Builtin> {
    let name = text(row, 2)?;
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
    }
}
