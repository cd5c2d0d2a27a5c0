//! What a command answers.

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Integer,
    Float,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
}

/// One value as text, `None`: not known, or nothing.
pub type Cell = Option<String>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table. A column whose name ends in `#` holds integers, in `~` floating-point
    /// numbers.
    pub fn new(columns: &[&str]) -> Self {
        let column = |text: &&str| {
            let (name, kind) = match (text.strip_suffix('#'), text.strip_suffix('~')) {
                (Some(name), _) => (name, Kind::Integer),
                (None, Some(name)) => (name, Kind::Float),
                (None, None) => (*text, Kind::Text),
            };
            Column { name: name.to_owned(), kind }
        };
        Self { columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    pub fn push(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a cell per column");
        self.rows.push(row);
    }
}

/// A cell that is there.
pub fn cell(value: impl ToString) -> Cell {
    Some(value.to_string())
}

/// Seconds to the millisecond.
pub fn seconds(value: std::time::Duration) -> Cell {
    Some(format!("{:.3}", value.as_secs_f64()))
}
