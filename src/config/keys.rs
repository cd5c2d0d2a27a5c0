//! Every key of the configuration file: its default, unit and reason, once.
//!
//! Reading a file takes defaults from here, `docs/configuration.md` and `config/pointsman.toml` are
//! made from here, and a key that stands in a file but not here is a fault.

mod tables;

pub use tables::TABLES;

/// A table of the file.
pub struct Table {
    /// Dotted, without list positions: `cluster.pool`. Empty: the top level.
    pub path: &'static str,
    pub about: &'static str,
    pub shape: Shape,
    pub keys: &'static [Key],
}

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `[path]`; the top level without.
    Single,
    /// `[[path]]`.
    List,
    /// `{ … }`, inside a value of its parent.
    Inline,
}

/// A key of a table.
pub struct Key {
    pub name: &'static str,
    pub preset: Preset,
    /// What it counts or measures, or the form of its value.
    pub unit: &'static str,
    /// What it does, and why the default is as it is.
    pub why: &'static str,
}

/// What holds where the file is silent. Values are TOML.
pub enum Preset {
    /// The file has to say; an example.
    Required(&'static str),
    Default(&'static str),
    /// No value is the default; what that means, and an example of a value.
    Unset {
        means: &'static str,
        example: &'static str,
    },
}

impl Table {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The last part of its path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    pub fn parent(&self) -> Option<&'static str> {
        match self.path.rsplit_once('.') {
            Some((parent, _)) => Some(parent),
            None => (!self.path.is_empty()).then_some(""),
        }
    }
}

/// The table of this path.
pub fn table(path: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.path == path)
}

/// The names that may stand in a table: its keys and the tables below it.
pub fn names_in(path: &str) -> impl Iterator<Item = &'static str> + use<'_> {
    let keys = table(path).into_iter().flat_map(|table| table.keys.iter().map(|key| key.name));
    let below = TABLES
        .iter()
        .filter(move |table| table.shape != Shape::Inline && table.parent() == Some(path))
        .map(Table::name);
    keys.chain(below)
}
