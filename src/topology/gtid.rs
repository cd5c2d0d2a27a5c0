//! Sets of executed transactions, MySQL's and MariaDB's.

use std::{collections::BTreeMap, fmt, str::FromStr};

use smallvec::{SmallVec, smallvec};

/// Longest text that is read as a set, in bytes: some 20,000 intervals.
pub const MAX_TEXT: usize = 1 << 20;

/// Up to so many sources are looked through one by one.
const FEW: usize = 8;

/// A set of executed transactions: MySQL's `uuid:intervals` (with tags since 8.3) or MariaDB's
/// `domain-server-sequence`.
///
/// A MariaDB position stands for every transaction of its domain up to the sequence number. What two
/// servers wrote to one domain is kept side by side: on which of two histories a number was given its
/// size does not tell.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GtidSet {
    /// In order of source, each once: nearly always one or two, found faster than in a tree.
    sources: Vec<(Source, Intervals)>,
    /// Last sequence number by domain and server.
    domains: BTreeMap<(u32, u32), u64>,
}

/// Who numbers the transactions of an interval.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    uuid: u128,
    /// Empty for none; at most 32 characters, lower case.
    tag: Box<str>,
}

/// Closed intervals of transaction numbers: sorted, apart by at least two, never empty.
type Intervals = SmallVec<[(u64, u64); 1]>;

/// Why a text is not a GTID set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GtidFault {
    #[error("the GTID set is longer than {MAX_TEXT} bytes")]
    TooLong,
    #[error("not a GTID set: expected uuid:1-5 or domain-server-sequence")]
    Shape,
    #[error("a number in the GTID set is out of range")]
    Number,
}

/// By what a server numbers its own transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// MySQL's `server_uuid`.
    pub uuid: Option<u128>,
    /// In a group (Group Replication) its name: every member's commits are numbered by it.
    pub group: Option<u128>,
    /// MariaDB's `server_id`.
    pub server_id: Option<u64>,
}

impl Origin {
    fn has_uuid(self, uuid: u128) -> bool {
        [self.uuid, self.group].contains(&Some(uuid))
    }

    fn has_id(self, server_id: u32) -> bool {
        self.server_id == Some(server_id.into())
    }
}

impl GtidSet {
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.domains.is_empty()
    }

    /// Whether both can be of servers of one make, MySQL or MariaDB: an empty set can be of either.
    pub fn is_of_the_make_of(&self, other: &GtidSet) -> bool {
        (self.domains.is_empty() || other.sources.is_empty())
            && (self.sources.is_empty() || other.domains.is_empty())
    }

    /// Whether every transaction of `other` is in `self`.
    pub fn covers(&self, other: &GtidSet) -> bool {
        self.covers_foreign(other, Origin::default())
    }

    /// As [`Self::covers`], without looking at what `own` numbers.
    pub(super) fn covers_foreign(&self, other: &GtidSet, own: Origin) -> bool {
        other.sources.iter().filter(|(source, _)| !own.has_uuid(source.uuid)).all(|(source, wanted)| {
            self.intervals(source).is_some_and(|have| wanted.iter().all(|&want| contains(have, want)))
        }) && other
            .domains
            .iter()
            .filter(|((_, server), _)| !own.has_id(*server))
            .all(|((domain, _), want)| self.reached(*domain) >= *want)
    }

    /// Whether `self` has all of `other` and more.
    pub fn strictly_covers(&self, other: &GtidSet) -> bool {
        self.covers(other) && !other.covers(self)
    }

    /// Adds one transaction, or all of a set.
    pub fn extend(&mut self, other: &GtidSet) {
        if !other.sources.is_empty() {
            self.sources.extend(other.sources.iter().cloned());
            self.normalise();
        }
        for (&(domain, server), &sequence) in &other.domains {
            self.reach(domain, server, sequence);
        }
    }

    #[must_use]
    pub fn union(&self, other: &GtidSet) -> GtidSet {
        let mut union = self.clone();
        union.extend(other);
        union
    }

    /// What both sets have; of a MariaDB domain the lower of the two positions.
    #[must_use]
    pub fn intersection(&self, other: &GtidSet) -> GtidSet {
        let sources = self.sources.iter().filter_map(|(source, mine)| {
            let common = common(mine, other.intervals(source)?);
            (!common.is_empty()).then(|| (source.clone(), common))
        });
        let domains = self.domains.iter().filter_map(|(&(domain, server), &mine)| {
            let (their_server, theirs) = other.last_of(domain)?;
            Some(if theirs < mine { ((domain, their_server), theirs) } else { ((domain, server), mine) })
        });
        GtidSet { sources: sources.collect(), domains: domains.collect() }
    }

    /// Domain, server and sequence number of the last transactions in each MariaDB domain.
    pub(super) fn domains(&self) -> impl Iterator<Item = (u32, u32, u64)> {
        self.domains.iter().map(|(&(domain, server), &sequence)| (domain, server, sequence))
    }

    /// Who came furthest in a MariaDB domain, and how far.
    fn last_of(&self, domain: u32) -> Option<(u32, u64)> {
        let servers = self.domains.range((domain, 0)..=(domain, u32::MAX));
        servers.map(|(&(_, server), &sequence)| (server, sequence)).max_by_key(|&(_, sequence)| sequence)
    }

    /// Up to where it has a MariaDB domain.
    pub(super) fn reached(&self, domain: u32) -> u64 {
        self.last_of(domain).map_or(0, |(_, sequence)| sequence)
    }

    /// The set with other sequence numbers in its MariaDB domains, or without them.
    pub(super) fn with_domains(&self, number: impl Fn((u32, u32, u64)) -> Option<u64>) -> GtidSet {
        let numbered = self.domains().filter_map(|reached| Some(((reached.0, reached.1), number(reached)?)));
        GtidSet { sources: self.sources.clone(), domains: numbered.collect() }
    }

    /// Number of transactions of `other` that `self` lacks.
    pub fn missing(&self, other: &GtidSet) -> u64 {
        let of_sources = other.sources.iter().map(|(source, wanted)| {
            let held = self.intervals(source).map_or(0, |have| count(&common(have, wanted)));
            count(wanted).saturating_sub(held)
        });
        let mut of_domains: BTreeMap<u32, u64> = BTreeMap::new();
        for (domain, _, want) in other.domains() {
            let lacks = of_domains.entry(domain).or_default();
            *lacks = want.saturating_sub(self.reached(domain)).max(*lacks);
        }
        let of_domains = of_domains.into_values();
        of_sources.chain(of_domains).fold(0, u64::saturating_add)
    }

    /// Splits the set by who numbered its transactions: `origin` first, all others second.
    pub(super) fn split_by_origin(&self, origin: Origin) -> (GtidSet, GtidSet) {
        let (mut own, mut others) = (GtidSet::default(), GtidSet::default());
        for (source, have) in &self.sources {
            let side = if origin.has_uuid(source.uuid) { &mut own } else { &mut others };
            side.sources.push((source.clone(), have.clone()));
        }
        for (domain, server, sequence) in self.domains() {
            let side = if origin.has_id(server) { &mut own } else { &mut others };
            side.reach(domain, server, sequence);
        }
        (own, others)
    }

    /// What the server of this `server_uuid` (MySQL) or `server_id` (MariaDB) numbered.
    pub(super) fn numbered_by(&self, uuid: &str, server_id: Option<u64>) -> GtidSet {
        self.split_by_origin(Origin { uuid: read_uuid(uuid).ok(), group: None, server_id }).0
    }

    fn intervals(&self, source: &Source) -> Option<&Intervals> {
        if self.sources.len() <= FEW {
            return self.sources.iter().find(|(own, _)| own == source).map(|(_, intervals)| intervals);
        }
        let at = self.sources.binary_search_by(|(own, _)| own.cmp(source)).ok()?;
        Some(&self.sources[at].1)
    }

    /// Brings sources in order, merges those that are there twice, and their intervals.
    fn normalise(&mut self) {
        self.sources.sort_by(|(one, _), (other, _)| one.cmp(other));
        self.sources.dedup_by(|(source, more), (kept, have)| {
            let same = source == kept;
            if same {
                have.append(more);
            }
            same
        });
        self.sources.iter_mut().for_each(|(_, intervals)| normalise(intervals));
    }

    fn reach(&mut self, domain: u32, server: u32, sequence: u64) {
        let last = self.domains.entry((domain, server)).or_default();
        *last = sequence.max(*last);
    }
}

fn contains(have: &Intervals, (start, end): (u64, u64)) -> bool {
    let at = have.partition_point(|&(_, have_end)| have_end < start);
    have.get(at).is_some_and(|&(have_start, have_end)| have_start <= start && end <= have_end)
}

fn common(one: &Intervals, two: &Intervals) -> Intervals {
    let (mut i, mut j, mut both) = (0, 0, Intervals::new());
    while let (Some(&(a, b)), Some(&(c, d))) = (one.get(i), two.get(j)) {
        if a.max(c) <= b.min(d) {
            both.push((a.max(c), b.min(d)));
        }
        if b < d { i += 1 } else { j += 1 }
    }
    both
}

fn count(intervals: &Intervals) -> u64 {
    intervals.iter().fold(0, |sum: u64, &(start, end)| sum.saturating_add(end - start + 1))
}

/// Sorts and merges intervals that touch.
fn normalise(intervals: &mut Intervals) {
    intervals.sort_unstable();
    let mut kept = 0;
    for next in 1..intervals.len() {
        let (start, end) = intervals[next];
        if start <= intervals[kept].1.saturating_add(1) {
            intervals[kept].1 = intervals[kept].1.max(end);
        } else {
            kept += 1;
            intervals[kept] = (start, end);
        }
    }
    intervals.truncate(kept + 1);
}

impl FromStr for GtidSet {
    type Err = GtidFault;

    /// Reads `@@gtid_executed` or `@@gtid_binlog_pos`; also one GTID. Blanks and line ends around
    /// the parts are the server's own; letters are taken in both cases. Empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, GtidFault> {
        if text.len() > MAX_TEXT {
            return Err(GtidFault::TooLong);
        }
        let mut set = GtidSet::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if part.contains(':') { set.read_source(part)? } else { set.read_domain(part)? }
        }
        set.normalise();
        Ok(set)
    }
}

impl GtidSet {
    /// `uuid:1-5:7:tag:1-3`: a tag holds for the intervals behind it.
    fn read_source(&mut self, part: &str) -> Result<(), GtidFault> {
        let mut fields = part.split(':').map(str::trim);
        let uuid = read_uuid(fields.next().unwrap_or_default())?;
        let mut tag: Box<str> = "".into();
        let mut read: SmallVec<[(u64, u64); 4]> = smallvec![];
        let mut any = false;
        for field in fields {
            if field.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
                self.add_intervals(uuid, &tag, &mut read);
                tag = read_tag(field)?;
            } else {
                read.push(read_interval(field)?);
                any = true;
            }
        }
        if read.is_empty() || !any {
            return Err(GtidFault::Shape);
        }
        self.add_intervals(uuid, &tag, &mut read);
        Ok(())
    }

    fn add_intervals(&mut self, uuid: u128, tag: &str, read: &mut SmallVec<[(u64, u64); 4]>) {
        if !read.is_empty() {
            self.sources.push((Source { uuid, tag: tag.into() }, read.drain(..).collect()));
        }
    }

    fn read_domain(&mut self, part: &str) -> Result<(), GtidFault> {
        let mut fields = part.split('-');
        let (Some(domain), Some(server), Some(sequence), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(GtidFault::Shape);
        };
        let domain = read_number(domain)?.try_into().map_err(|_| GtidFault::Number)?;
        let server = read_number(server)?.try_into().map_err(|_| GtidFault::Number)?;
        self.reach(domain, server, read_number(sequence)?);
        Ok(())
    }
}

/// 32 hexadecimal digits, with hyphens where a UUID has them or none at all.
pub(super) fn read_uuid(text: &str) -> Result<u128, GtidFault> {
    let bytes = text.as_bytes();
    let hyphenated = bytes.len() == 36 && [8, 13, 18, 23].iter().all(|&at| bytes[at] == b'-');
    if !hyphenated && bytes.len() != 32 {
        return Err(GtidFault::Shape);
    }
    let mut uuid: u128 = 0;
    let mut digits = 0;
    for &byte in bytes.iter().filter(|&&byte| !(hyphenated && byte == b'-')) {
        let digit = char::from(byte).to_digit(16).ok_or(GtidFault::Shape)?;
        uuid = uuid << 4 | u128::from(digit);
        digits += 1;
    }
    if digits == 32 { Ok(uuid) } else { Err(GtidFault::Shape) }
}

fn read_tag(text: &str) -> Result<Box<str>, GtidFault> {
    let legal = text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if legal { Ok(text.to_ascii_lowercase().into()) } else { Err(GtidFault::Shape) }
}

fn read_interval(text: &str) -> Result<(u64, u64), GtidFault> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (read_number(start.trim())?, read_number(end.trim())?);
    // MySQL counts from 1 to 2^63 − 2.
    if start == 0 || end < start || end >= i64::MAX as u64 {
        Err(GtidFault::Number)
    } else {
        Ok((start, end))
    }
}

fn read_number(text: &str) -> Result<u64, GtidFault> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(GtidFault::Shape);
    }
    text.parse().map_err(|_| GtidFault::Number)
}

/// As the servers print it, without line ends: sources in order of UUID and tag.
impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last_uuid = None;
        for (source, intervals) in &self.sources {
            if last_uuid != Some(source.uuid) {
                if last_uuid.is_some() {
                    f.write_str(",")?;
                }
                write_uuid(f, source.uuid)?;
                last_uuid = Some(source.uuid);
            }
            if !source.tag.is_empty() {
                write!(f, ":{}", source.tag)?;
            }
            for &(start, end) in intervals {
                if start == end { write!(f, ":{start}")? } else { write!(f, ":{start}-{end}")? }
            }
        }
        for (at, (domain, server, sequence)) in self.domains().enumerate() {
            let comma = if at > 0 || last_uuid.is_some() { "," } else { "" };
            write!(f, "{comma}{domain}-{server}-{sequence}")?;
        }
        Ok(())
    }
}

fn write_uuid(f: &mut fmt::Formatter<'_>, uuid: u128) -> fmt::Result {
    let field = |shift: u32, bits: u32| (uuid >> shift) & ((1 << bits) - 1);
    write!(
        f,
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        field(96, 32),
        field(80, 16),
        field(64, 16),
        field(48, 16),
        field(0, 48)
    )
}

#[cfg(test)]
mod tests;
