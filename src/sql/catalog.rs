//! What one database says of its functions and relations.

use std::collections::{HashMap, HashSet};

/// The catalog of one database, read on a server and published whole.
///
/// Keys are bare folded names: a name counts as writing if any function of that name, in any
/// schema, does.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Changes with every content change: part of the statement cache's key.
    pub version: u64,
    /// `false` until it was read: every call of a function that is not built in is then a write.
    pub loaded: bool,
    pub functions: HashMap<Box<str>, UserFunction>,
    /// Only relations that need care are listed; a name that is missing is an ordinary table
    /// or view, or does not exist.
    pub relations: HashMap<Box<str>, Relation>,
    /// Some operator of the users' calls a function that writes: what uses an operator that is
    /// not built in is then a write.
    pub writing_operators: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserFunction {
    /// VOLATILE, or not known to be free of writes.
    pub writes: bool,
    /// Its body may change session state (hard case 7).
    pub touches: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// Unlogged, temporary, foreign, a sequence, a materialized view being … : only the primary can answer.
    pub primary_only: bool,
    /// A view or policy over a function that writes, or a column type whose operators do.
    pub writes_on_read: bool,
    /// A view, or a table with row-level security: a read touches more than its name.
    pub reads_all: bool,
    /// User triggers, rules, a view or a foreign table: a write touches more than its name.
    pub writes_all: bool,
    /// User triggers, defaults or rules whose code may change session state.
    pub touches: bool,
    /// Tables that a write of this one also changes: partitions, inheritance both ways, FK actions.
    pub relatives: Vec<Box<str>>,
}

impl Catalog {
    /// Names for which nothing is known to be special.
    pub fn empty() -> Self {
        Self::default()
    }
}

/// Names from `routing.read_functions`, `write_functions` and `clean_functions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionRules {
    pub read: HashSet<Box<str>>,
    pub write: HashSet<Box<str>>,
    pub clean: HashSet<Box<str>>,
}
