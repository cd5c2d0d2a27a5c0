//! A parsed TOML document that is read key by key and collects every fault on the way.
//!
//! serde stops at the first fault, so tables are walked by hand: [`Section::take`] always answers.
//! Where a value is missing or wrong it answers the default or example of [`super::keys`]; a
//! wrong value is recorded as a fault, and a document with faults yields no configuration.

use std::{cell::RefCell, ops::Range, path::Path};

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    fault::{Fault, Place},
    keys::{self, Key, Preset, Table},
};

/// The document, what it may refer to, and what is wrong with it so far.
pub(super) struct Document<'a> {
    pub text: &'a str,
    /// Relative paths start here.
    pub folder: &'a Path,
    /// Reads an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub faults: RefCell<Vec<Fault>>,
    /// Table and key of everything that was asked for: the tests compare it with the schema.
    #[cfg(test)]
    pub taken: RefCell<std::collections::BTreeSet<(&'static str, &'static str)>>,
}

impl<'a> Document<'a> {
    pub fn new(text: &'a str, folder: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            text,
            folder,
            env,
            faults: RefCell::default(),
            #[cfg(test)]
            taken: RefCell::default(),
        }
    }

    pub fn fault(&self, key: &str, offset: usize, message: impl Into<String>) {
        let place = Some(Place::of(self.text, offset));
        self.faults.borrow_mut().push(Fault { place, key: key.to_owned(), message: message.into() });
    }
}

/// What can be read from a value of the file.
pub(super) trait Value: Sized {
    /// The value; `None` after recording why there is none.
    fn read(cell: &Cell<'_>) -> Option<Self>;
}

/// A value, and where it stands.
#[derive(Clone)]
pub(super) struct Cell<'a> {
    pub document: &'a Document<'a>,
    pub value: &'a DeValue<'a>,
    /// `cluster.shop.nodes[1]`
    pub path: String,
    pub span: Range<usize>,
}

impl<'a> Cell<'a> {
    /// Records a fault of this value.
    pub fn fault<T>(&self, message: impl Into<String>) -> Option<T> {
        self.document.fault(&self.path, self.span.start, message);
        None
    }

    /// Records that the value is of another type. The value itself is not shown: it may be secret.
    pub fn expected<T>(&self, what: &str) -> Option<T> {
        self.fault(format!("expected {what}, found {}", type_name(self.value)))
    }

    pub fn text(&self, what: &str) -> Option<&'a str> {
        self.value.as_str().or_else(|| self.expected(what))
    }

    /// The elements of a list.
    pub fn elements(&self) -> Option<Vec<Cell<'a>>> {
        let Some(array) = self.value.as_array() else {
            return self.expected("a list");
        };
        let element = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| Cell {
            document: self.document,
            value: value.get_ref(),
            path: format!("{}[{index}]", self.path),
            span: value.span(),
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    /// Reads every element; `None` if one of them is at fault.
    pub fn list<T>(&self, read: impl Fn(&Cell<'a>) -> Option<T>) -> Option<Vec<T>> {
        let read: Vec<Option<T>> = self.elements()?.iter().map(read).collect();
        read.into_iter().collect()
    }

    /// As [`Cell::list`]; `clash` says what two elements share that they must not.
    pub fn distinct<T>(
        &self,
        read: impl Fn(&Cell<'a>) -> Option<T>,
        clash: impl Fn(&T, &T) -> Option<String>,
    ) -> Option<Vec<T>> {
        let cells = self.elements()?;
        let read: Vec<Option<T>> = cells.iter().map(read).collect();
        let clashes = read.iter().enumerate().filter_map(|(index, one)| {
            let earlier = read[..index].iter().flatten();
            let one = one.as_ref()?;
            earlier.filter_map(|other| clash(other, one)).next().map(|what| (index, what))
        });
        let clashes: Vec<(usize, String)> = clashes.collect();
        for (index, what) in &clashes {
            cells[*index].fault::<()>(what.as_str());
        }
        clashes.is_empty().then(|| read.into_iter().collect())?
    }

    /// The value as a table of the schema.
    pub fn section(&self, schema: &str) -> Option<Section<'a>> {
        let schema = keys::table(schema).expect("callers name tables of the schema");
        let Some(table) = self.value.as_table() else {
            return self.expected("a table");
        };
        let (path, start) = (self.path.clone(), self.span.start);
        Some(Section::new(self.document, schema, Some(table), path, start))
    }
}

/// A table of the document, or the absence of one that may be left out.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    schema: &'static Table,
    table: Option<&'a DeTable<'a>>,
    path: String,
    /// Where a missing key is reported.
    start: usize,
}

impl<'a> Section<'a> {
    /// A table; names in it that the schema does not know are faults.
    pub fn new(
        document: &'a Document<'a>,
        schema: &'static Table,
        table: Option<&'a DeTable<'a>>,
        path: String,
        start: usize,
    ) -> Self {
        let section = Self { document, schema, table, path, start };
        for name in table.into_iter().flat_map(DeTable::keys) {
            if !keys::names_in(schema.path).any(|known| known == name.get_ref()) {
                let path = section.path_of(name.get_ref());
                document.fault(&path, name.span().start, unknown(schema, name.get_ref()));
            }
        }
        section
    }

    pub fn path_of(&self, name: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{name}", self.path)
    }

    /// The value of a key as it stands in the file.
    pub fn cell(&self, name: &str) -> Option<Cell<'a>> {
        let value = self.table?.get(name)?;
        Some(Cell {
            document: self.document,
            value: value.get_ref(),
            path: self.path_of(name),
            span: value.span(),
        })
    }

    /// The value of a key that has a default or is required.
    pub fn take<T: Value>(&self, name: &str) -> T {
        self.take_by(name, T::read)
    }

    /// As [`Section::take`], by a reader of the caller's.
    pub fn take_by<T>(&self, name: &str, read: impl Fn(&Cell<'_>) -> Option<T>) -> T {
        let key = self.key(name);
        let read_here = match self.cell(name) {
            Some(cell) => read(&cell),
            None => {
                if let Preset::Required(_) = key.preset {
                    self.fault(name, "is missing");
                }
                None
            }
        };
        read_here.unwrap_or_else(|| preset(key, read))
    }

    /// The value of a key that may be left out.
    pub fn optional<T: Value>(&self, name: &str) -> Option<T> {
        self.optional_by(name, T::read)
    }

    /// As [`Section::optional`], by a reader of the caller's.
    pub fn optional_by<T>(&self, name: &str, read: impl Fn(&Cell<'_>) -> Option<T>) -> Option<T> {
        self.key(name);
        read(&self.cell(name)?)
    }

    /// A table below this one; an absent one has every default.
    pub fn table(&self, name: &str) -> Section<'a> {
        let path = match self.schema.path {
            "" => name.to_owned(),
            parent => format!("{parent}.{name}"),
        };
        let schema = keys::table(&path).expect("callers name tables of the schema");
        let present = self.cell(name).and_then(|cell| cell.section(&path));
        present.unwrap_or_else(|| Section::new(self.document, schema, None, self.path_of(name), self.start))
    }

    /// Records a fault at a key, or where the table begins when the key is not there.
    pub fn fault(&self, name: &str, message: impl Into<String>) {
        let start = self.cell(name).map_or(self.start, |cell| cell.span.start);
        self.document.fault(&self.path_of(name), start, message);
    }

    fn key(&self, name: &str) -> &'static Key {
        let key = self.schema.key(name).expect("a test reads every key of the schema, and no other");
        #[cfg(test)]
        self.document.taken.borrow_mut().insert((self.schema.path, key.name));
        key
    }
}

/// The default of a key, or, to go on with after a fault, its example.
fn preset<T>(key: &Key, read: impl Fn(&Cell<'_>) -> Option<T>) -> T {
    let (Preset::Default(text) | Preset::Required(text) | Preset::Unset { example: text, .. }) = key.preset;
    let value = DeValue::parse(text).expect("a test parses every preset");
    let anything = |_: &str| Some(String::from("set"));
    let scratch = Document::new(text, Path::new(""), &anything);
    let cell = Cell { document: &scratch, value: value.get_ref(), path: String::new(), span: 0..0 };
    read(&cell).expect("a test reads every preset")
}

fn unknown(schema: &Table, name: &str) -> String {
    /// As near as a slip of the finger: "siez" to "size" is about 0.8.
    const SIMILAR: f64 = 0.75;
    if let Some(near) = nearest(name, keys::names_in(schema.path), SIMILAR) {
        return format!("unknown key; did you mean `{near}`?");
    }
    let elsewhere = keys::TABLES.iter().find(|table| table.key(name).is_some() && !table.path.is_empty());
    match elsewhere {
        Some(table) => format!("unknown key here; `{name}` belongs to `{}`", table.path),
        None => "unknown key".to_owned(),
    }
}

/// The candidate that looks most like a word, if one does.
pub(super) fn nearest<'n>(
    word: &str,
    candidates: impl Iterator<Item = &'n str>,
    least: f64,
) -> Option<&'n str> {
    candidates
        .map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= least)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
