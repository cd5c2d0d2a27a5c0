//! What one database says of its functions and relations.

use std::collections::{HashMap, HashSet};

use xxhash_rust::xxh3::Xxh3;

use super::functions::Builtin;

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
    /// Those of MySQL, which may have the names of functions; PostgreSQL's are among these.
    pub procedures: HashMap<Box<str>, UserFunction>,
    /// Only relations that need care are listed; a name that is missing is an ordinary table
    /// or view, or does not exist.
    pub relations: HashMap<Box<str>, Relation>,
    /// What types have run where they are cast to (casts, checks and defaults of domains), and operators
    /// where they are used (PostgreSQL); those of which nothing runs but what computes are not listed.
    pub types: HashMap<Box<str>, UserFunction>,
    pub operators: HashMap<Box<str>, UserFunction>,
    pub event_triggers: EventTriggers,
    /// A digest of what sessions begin with on the whole server (PostgreSQL: of the settings of roles and
    /// databases); no part of `version`. `None`: it has no such settings, or they may not be read.
    pub session_defaults: Option<u64>,
    /// When the server read its configuration files last, as it says it (PostgreSQL).
    pub configured: Option<Box<str>>,
}

/// What the triggers do that changes of definitions set off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventTriggers {
    #[default]
    None,
    /// Their code leaves no state behind.
    Clean,
    Touching,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserFunction {
    /// VOLATILE, or not known to be free of writes; or its body needs the primary otherwise.
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
    /// What the server's own functions and views do that a view or policy reads: a read of it does the same.
    pub calls: Vec<Builtin>,
    /// A view, or a table with row-level security: a read touches more than its name.
    pub reads_all: bool,
    /// User triggers, rules, a view or a foreign table: a write touches more than its name.
    pub writes_all: bool,
    /// Of an engine without transactions: a write to it is not undone with its transaction.
    pub irrevocable: bool,
    /// User triggers, defaults or rules whose code may change session state.
    pub touches: bool,
    /// A view or policy over a function whose code may.
    pub touches_on_read: bool,
    /// Tables that a write of this one also changes, directly or by way of others: partitions,
    /// inheritance both ways, FK actions. Where there are more than [`MAX_RELATIVES`], not all.
    pub relatives: Vec<Box<str>>,
}

/// Relatives that are kept of one relation; with more of them a write counts as touching everything.
pub const MAX_RELATIVES: usize = 64;

impl Catalog {
    /// Whether a name in letters that cannot be read here might be one of these.
    pub(super) fn may_have_foreign_name(&self) -> bool {
        !self.loaded || self.functions.keys().chain(self.relations.keys()).any(|name| !name.is_ascii())
    }
}

impl Relation {
    /// A read of it does what those do.
    pub fn call(&mut self, calls: &[Builtin]) {
        for call in calls {
            if !self.calls.contains(call) {
                self.calls.push(*call);
            }
        }
    }
}

/// A write to one relation that changes another.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    pub from: &'a str,
    pub to: &'a str,
    /// Rows of `to` are rows of `from` as well: a partition, or a table that inherits.
    pub contains: bool,
}

impl Catalog {
    /// Names for which nothing is known to be special.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Follows what a write sets off from relation to relation: a cascade that goes on, a partition
    /// of a partition, the triggers of whatever it reaches.
    pub fn relate(&mut self, links: &[Link<'_>]) {
        let (mut below, mut above) = (Neighbours::new(), Neighbours::new());
        for link in links {
            below.entry(link.from).or_default().push(link.to);
            if link.contains {
                above.entry(link.to).or_default().push(link.from);
            }
        }
        while links.iter().any(|link| self.inherit(link)) {}
        for name in below.keys().chain(above.keys()) {
            self.relations.entry((*name).into()).or_default().relatives = relatives(name, &below, &above);
        }
    }

    /// What a write to the far end of a link sets off, one to the near end does. Returns whether
    /// that was news.
    fn inherit(&mut self, link: &Link<'_>) -> bool {
        let Some(to) = self.relations.get(link.to) else { return false };
        let (writes_all, touches, irrevocable) = (to.writes_all, to.touches, to.irrevocable);
        let from = self.relations.entry(link.from.into()).or_default();
        let news = (writes_all && !from.writes_all)
            || (touches && !from.touches)
            || (irrevocable && !from.irrevocable);
        from.writes_all |= writes_all;
        from.touches |= touches;
        from.irrevocable |= irrevocable;
        news
    }
}

type Neighbours<'a> = HashMap<&'a str, Vec<&'a str>>;

/// Everything that links lead to from `name`, and what contains rows of that.
fn relatives(name: &str, below: &Neighbours<'_>, above: &Neighbours<'_>) -> Vec<Box<str>> {
    let mut found = vec![name];
    for neighbours in [below, above] {
        let mut at = 0;
        while at < found.len() {
            for next in neighbours.get(found[at]).into_iter().flatten() {
                if found.len() > MAX_RELATIVES + 1 {
                    break;
                }
                if !found.contains(next) {
                    found.push(next);
                }
            }
            at += 1;
        }
    }
    found[1..].iter().map(|&name| name.into()).collect()
}

impl UserFunction {
    /// What is known of both together: of functions of one name, or of one that calls the other.
    pub fn or(self, other: Self) -> Self {
        Self { writes: self.writes || other.writes, touches: self.touches || other.touches }
    }
}

/// Names from `routing.read_functions`, `write_functions` and `clean_functions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionRules {
    pub read: HashSet<Box<str>>,
    pub write: HashSet<Box<str>>,
    pub clean: HashSet<Box<str>>,
}

impl FunctionRules {
    /// What is to be thought of a function of which a catalog tells this.
    pub fn judge(&self, name: &str, told: UserFunction) -> UserFunction {
        let UserFunction { writes, touches } = told;
        let write = self.write.contains(name);
        UserFunction {
            writes: write || (writes && !self.read.contains(name)),
            touches: (write || touches) && !self.clean.contains(name),
        }
    }

    /// A number that differs for other rules.
    pub fn version(&self) -> u64 {
        let Self { read, write, clean } = self;
        let sorted = [read, write, clean].map(|names| {
            let mut names: Vec<Vec<Option<String>>> =
                names.iter().map(|name| vec![Some(name.to_string())]).collect();
            names.sort_unstable();
            names.push(vec![None]);
            names
        });
        version(&sorted.each_ref())
    }
}

/// A number that changes when anything that was read changes; `results`: rows of text columns.
pub fn version(results: &[&Vec<Vec<Option<String>>>]) -> u64 {
    let mut hasher = Xxh3::new();
    for value in results.iter().flat_map(|rows| rows.iter()).flatten() {
        let bytes = value.as_deref().unwrap_or("\0");
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes.as_bytes());
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn link<'a>(from: &'a str, to: &'a str, contains: bool) -> Link<'a> {
        Link { from, to, contains }
    }

    fn relatives_of(catalog: &Catalog, name: &str) -> Vec<String> {
        let mut names: Vec<String> =
            catalog.relations[name].relatives.iter().map(|name| name.to_string()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_write_reaches_as_far_as_what_it_sets_off() {
        let mut catalog = Catalog::default();
        for (name, relation) in [
            ("item", Relation { touches: true, ..Relation::default() }),
            ("y2024", Relation { writes_all: true, ..Relation::default() }),
        ] {
            catalog.relations.insert(name.into(), relation);
        }
        catalog.relate(&[
            link("customer", "orders", false),
            link("orders", "item", false),
            link("item", "orders", false),
            link("events", "y2024", true),
            link("y2024", "may", true),
            link("y2024", "june", true),
        ]);

        for (name, relatives) in [
            ("customer", &["item", "orders"][..]),
            ("orders", &["item"]),
            ("events", &["june", "may", "y2024"]),
            ("may", &["events", "y2024"]),
        ] {
            assert_eq!(relatives_of(&catalog, name), relatives, "{name}");
        }
        let flags = |name: &str| (catalog.relations[name].touches, catalog.relations[name].writes_all);
        assert_eq!(
            (flags("customer"), flags("events"), flags("may")),
            ((true, false), (false, true), (false, false))
        );
    }

    #[test]
    fn the_file_outranks_what_a_catalog_tells_of_a_function() {
        let set = |name: &str| HashSet::from([name.into()]);
        let read = FunctionRules { read: set("f"), ..FunctionRules::default() };
        let write = FunctionRules { write: set("f"), ..FunctionRules::default() };
        let clean = FunctionRules { clean: set("f"), ..FunctionRules::default() };
        let both = FunctionRules { clean: set("f"), ..write.clone() };
        for (rules, name, (writes, touches), expected) in [
            (&read, "f", (true, true), (false, true)),
            (&read, "g", (true, true), (true, true)),
            (&write, "f", (false, false), (true, true)),
            (&write, "g", (false, false), (false, false)),
            (&clean, "f", (true, true), (true, false)),
            (&both, "f", (false, true), (true, false)),
        ] {
            let does = rules.judge(name, UserFunction { writes, touches });
            assert_eq!((does.writes, does.touches), expected, "{name} by {rules:?}");
        }

        let versions = [&FunctionRules::default(), &read, &write, &clean, &both].map(FunctionRules::version);
        let different: HashSet<u64> = versions.into_iter().collect();
        assert_eq!(different.len(), versions.len());
    }

    #[test]
    fn of_very_many_relatives_only_so_many_are_kept_that_they_count_as_everything() {
        let names: Vec<String> = (0..5_000).map(|number| format!("p{number}")).collect();
        let links: Vec<Link<'_>> = names.iter().map(|name| link("root", name, true)).collect();
        let mut catalog = Catalog::default();
        catalog.relate(&links);

        assert_eq!(catalog.relations["root"].relatives.len(), MAX_RELATIVES + 1);
        assert_eq!(relatives_of(&catalog, "p4999"), ["root"]);
    }
}
