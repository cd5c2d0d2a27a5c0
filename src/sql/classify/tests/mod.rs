//! Tables of statements and what they are taken for.

mod calls;
mod catalog;
mod mysql;
mod postgres;
mod robust;

use super::*;
use crate::sql::effects::Shown;

fn loaded() -> Catalog {
    Catalog { loaded: true, ..Catalog::empty() }
}

fn postgres(text: &str) -> Intent {
    postgres_in(text, &loaded())
}

fn postgres_in(text: &str, catalog: &Catalog) -> Intent {
    let modes = LexModes::default_of(Dialect::Postgres);
    classify(text.as_bytes(), Dialect::Postgres, modes, catalog, &FunctionRules::default())
}

fn mysql(text: &str) -> Intent {
    let modes = LexModes::default_of(Dialect::Mysql);
    classify(text.as_bytes(), Dialect::Mysql, modes, &loaded(), &FunctionRules::default())
}

/// A setting carried with exactly this statement.
fn set(name: &str, value: &str, statement: &str) -> Effect {
    use crate::sql::effects::Scope;
    Effect::Set { name: name.into(), value: value.into(), statement: statement.into(), scope: Scope::Session }
}

/// A setting of the proxy's own that is asked for, and has to be there.
fn asked(name: &str, column: &str) -> Shown {
    Shown { name: name.into(), column: column.into(), missing_ok: false }
}
