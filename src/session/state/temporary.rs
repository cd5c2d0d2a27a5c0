//! Which temporary tables a session has: the connection is theirs for as long as one of them is there.

use crate::sql::{Effect, Intent, PinReason, Tables};

/// Most that are known by name; with more, all reads stay with them, and the connection until the session ends.
const MAX_TEMPORARY: usize = 256;

/// As far as they are known.
#[derive(Debug)]
pub(super) struct Temporaries {
    /// Names that a read may mean.
    pub names: Tables,
    /// What there is. `None`: there may be more.
    there: Option<Vec<Temporary>>,
    /// What the transaction at hand has dropped, which may be undone. Bounded by what there is.
    dropped: Vec<Box<str>>,
}

#[derive(Debug)]
struct Temporary {
    name: Box<str>,
    /// ON COMMIT DROP.
    until_end: bool,
    /// By the transaction that is open: its ROLLBACK takes it away.
    made_here: bool,
}

impl Default for Temporaries {
    fn default() -> Self {
        Self { names: Tables::default(), there: Some(Vec::new()), dropped: Vec::new() }
    }
}

/// How things stand behind a request that may have made or dropped some.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    pub failed: bool,
    /// A transaction is open behind it.
    pub open: bool,
    /// It has ended one, by COMMIT or as if.
    pub ended: bool,
    pub committed: bool,
    /// A ROLLBACK undoes definitions, as in PostgreSQL.
    pub undoes: bool,
}

impl Temporaries {
    /// Whether none is left, for sure.
    pub fn is_over(&self) -> bool {
        self.there.as_ref().is_some_and(Vec::is_empty)
    }

    /// Takes note of what a request made and dropped.
    pub fn learn(&mut self, intent: &Intent, behind: Behind) {
        // Of several statements it is not known which of them ended a transaction, and where.
        let alone = intent.statements == 1;
        let open = behind.undoes && behind.open;
        let pins = intent.effects.iter().filter(|&effect| *effect == Effect::Pin(PinReason::TempTable));
        let named = intent.effects.iter().filter(|effect| matches!(effect, Effect::Temporary { .. }));
        if pins.count() > named.count() {
            self.names = Tables::All;
            self.there = None;
        }
        for effect in &intent.effects {
            match effect {
                // By itself it has left nothing.
                Effect::Temporary { .. } if alone && behind.undoes && behind.failed => {}
                Effect::Temporary { name, until_end } => self.make(name, *until_end, alone && open),
                Effect::Drops(names) if alone && !behind.failed => self.drop(names, open),
                Effect::RollbackTo(_) => self.dropped.clear(),
                effect if renames(effect) => self.there = None,
                _ => {}
            }
        }
        if intent.effects.contains(&Effect::Ddl) {
            // It may have renamed one, or made a view of one, which is temporary as well.
            self.names = Tables::All;
        }
        if behind.open && behind.ended && !alone {
            self.there = None;
        } else if !behind.open || behind.ended {
            self.end(alone.then_some(behind.committed || !behind.undoes));
        }
    }

    /// More may be there than is known.
    pub fn lose_track(&mut self) {
        self.there = None;
    }

    fn make(&mut self, name: &str, until_end: bool, made_here: bool) {
        self.names = match &self.names {
            Tables::Some(known) if known.len() < MAX_TEMPORARY => {
                Tables::Some(known.iter().cloned().chain([name.into()]).collect())
            }
            _ => Tables::All,
        };
        self.dropped.retain(|dropped| **dropped != *name);
        let Some(there) = &mut self.there else { return };
        if there.len() == MAX_TEMPORARY {
            self.there = None;
        } else if !there.iter().any(|temporary| *temporary.name == *name) {
            there.push(Temporary { name: name.into(), until_end, made_here });
        }
    }

    fn drop(&mut self, names: &[Box<str>], undoable: bool) {
        let Some(there) = &mut self.there else { return };
        if undoable {
            let known = names.iter().filter(|name| there.iter().any(|temporary| temporary.name == **name));
            self.dropped.extend(known.cloned());
            self.dropped.truncate(MAX_TEMPORARY);
        } else {
            there.retain(|temporary| !names.contains(&temporary.name));
        }
    }

    /// No transaction is open any more. `None`: what became of it is not known.
    fn end(&mut self, committed: Option<bool>) {
        let dropped = std::mem::take(&mut self.dropped);
        let Some(there) = &mut self.there else { return };
        there.retain(|temporary| {
            let gone = match committed {
                Some(true) => dropped.contains(&temporary.name),
                Some(false) => temporary.made_here,
                None => false,
            };
            !temporary.until_end && !gone
        });
        there.iter_mut().for_each(|temporary| temporary.made_here = false);
    }
}

/// Whether a name may stand for another relation from then on.
fn renames(effect: &Effect) -> bool {
    match effect {
        Effect::Redefines | Effect::UseDatabase(_) => true,
        Effect::Set { name, value, .. } => &**name == "search_path" && value.contains("pg_temp"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Dialect, LexModes, catalog::Catalog, catalog::FunctionRules, classify};

    /// What is over behind each statement of a session, and whether it committed or failed.
    fn over(dialect: Dialect, statements: &[&str]) -> Vec<bool> {
        let catalog = Catalog { loaded: true, ..Catalog::empty() };
        let (mut temporaries, mut open) = (Temporaries::default(), false);
        let mut over = Vec::new();
        for text in statements {
            let (text, failed) = text.strip_suffix(" !").map_or((*text, false), |text| (text, true));
            let modes = LexModes::default_of(dialect);
            let intent = classify(text.as_bytes(), dialect, modes, &catalog, &FunctionRules::default());
            let ended = text.contains("COMMIT") && !text.contains("ON COMMIT") || text.contains("ROLLBACK");
            open = (open || text.starts_with("BEGIN")) && (!ended || text.ends_with("CHAIN"));
            let committed = !text.ends_with("ROLLBACK") && !failed;
            let undoes = dialect == Dialect::Postgres;
            temporaries.learn(&intent, Behind { failed, open, ended, committed, undoes });
            over.push(temporaries.is_over());
        }
        over
    }

    #[test]
    fn postgres_has_them_until_they_are_dropped_or_undone() {
        let cases: &[(&[&str], bool)] = &[
            (&["CREATE TEMP TABLE x (a int)"], false),
            (&["CREATE TEMP TABLE x (a int) !"], true),
            (&["CREATE TEMP TABLE x (a int)", "DROP TABLE x"], true),
            (&["CREATE TEMP TABLE x (a int)", "DROP TABLE x !"], false),
            (
                &[
                    "CREATE TEMP TABLE x (a int)",
                    "CREATE INDEX ON x (a)",
                    "DROP TABLE IF EXISTS y, x CASCADE",
                ],
                true,
            ),
            (&["CREATE TEMP TABLE x (a int)", "CREATE TEMP TABLE y (a int)", "DROP TABLE x"], false),
            (&["CREATE TEMP TABLE x (a int)", "DROP TABLE public.x"], false),
            (&["CREATE TEMP TABLE x (a int)", "DROP TABLE pg_temp.x"], true),
            (&["CREATE TEMP TABLE x (a int)", "ALTER TABLE x RENAME TO y", "DROP TABLE x"], false),
            (&["CREATE TEMP TABLE x (a int)", "CREATE VIEW v AS SELECT a FROM x", "DROP TABLE x"], false),
            (&["SELECT 1 AS a INTO TEMP x", "DROP TABLE x"], false),
            (&["CREATE TEMP TABLE x (a int) ON COMMIT DROP"], true),
            (&["BEGIN", "CREATE TEMP TABLE x (a int) ON COMMIT DROP"], false),
            (&["BEGIN", "CREATE TEMP TABLE x ON COMMIT DROP AS SELECT 1 AS a", "COMMIT"], true),
            (&["BEGIN", "CREATE TEMP TABLE x (a int) ON COMMIT DELETE ROWS", "COMMIT"], false),
            (&["BEGIN", "CREATE TEMP TABLE x (a int)", "ROLLBACK"], true),
            (&["BEGIN", "CREATE TEMP TABLE x (a int)", "COMMIT !"], true),
            (&["CREATE TEMP TABLE x (a int)", "BEGIN", "DROP TABLE x"], false),
            (&["CREATE TEMP TABLE x (a int)", "BEGIN", "DROP TABLE x", "COMMIT"], true),
            (&["CREATE TEMP TABLE x (a int)", "BEGIN", "DROP TABLE x", "ROLLBACK"], false),
            (&["CREATE TEMP TABLE x (a int)", "BEGIN", "DROP TABLE x", "ROLLBACK TO s", "COMMIT"], false),
            (&["BEGIN", "CREATE TEMP TABLE x (a int)", "COMMIT", "BEGIN", "ROLLBACK"], false),
            (&["BEGIN", "CREATE TEMP TABLE x (a int)", "COMMIT AND CHAIN", "ROLLBACK"], false),
            (&["CREATE TEMP TABLE x (a int); BEGIN", "ROLLBACK"], false),
            (&["BEGIN", "CREATE TEMP TABLE x (a int)", "COMMIT; SELECT 1 !"], false),
            (
                &[
                    "BEGIN",
                    "CREATE TEMP TABLE x (a int)",
                    "COMMIT AND CHAIN; SELECT 1; COMMIT AND CHAIN",
                    "ROLLBACK",
                ],
                false,
            ),
            (&["BEGIN", "CREATE TEMP TABLE x (a int)", "COMMIT; BEGIN; ROLLBACK"], false),
            (&["BEGIN; CREATE TEMP TABLE x (a int) ON COMMIT DROP; SELECT 1", "COMMIT"], true),
            (
                &[
                    "BEGIN",
                    "CREATE TEMP TABLE x (a int)",
                    "DROP TABLE x",
                    "CREATE TEMP TABLE x (b int)",
                    "COMMIT",
                ],
                false,
            ),
            (&["CREATE TEMP TABLE x (a int)", "SET search_path = public, pg_temp", "DROP TABLE x"], false),
        ];
        for (statements, expected) in cases {
            assert_eq!(over(Dialect::Postgres, statements).last(), Some(expected), "{statements:?}");
        }
    }

    #[test]
    fn mysql_has_them_until_they_are_dropped() {
        let cases: &[(&[&str], bool)] = &[
            (&["CREATE TEMPORARY TABLE x (a INT)"], false),
            (
                &["CREATE TEMPORARY TABLE IF NOT EXISTS x SELECT 1", "DROP TEMPORARY TABLE IF EXISTS `X`"],
                true,
            ),
            (&["CREATE TEMPORARY TABLE x (a INT)", "DROP TABLE x, y"], true),
            (&["CREATE TEMPORARY TABLE x (a INT)", "DROP TABLE s.x"], false),
            (&["CREATE TEMPORARY TABLE s.x (a INT)", "DROP TABLE x"], false),
            (&["CREATE TEMPORARY TABLE x (a INT)", "USE s", "DROP TABLE x"], false),
            (&["BEGIN", "CREATE TEMPORARY TABLE x (a INT)", "ROLLBACK"], false),
            (&["CREATE TEMPORARY TABLE x (a INT)", "BEGIN", "DROP TEMPORARY TABLE x", "ROLLBACK"], true),
            (&["CREATE TEMPORARY TABLE x (a INT)", "ALTER TABLE x RENAME y", "DROP TABLE x"], false),
        ];
        for (statements, expected) in cases {
            assert_eq!(over(Dialect::Mysql, statements).last(), Some(expected), "{statements:?}");
        }
    }
}
