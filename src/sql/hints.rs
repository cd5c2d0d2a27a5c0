//! `/* pointsman: … */` comments.

use std::time::Duration;

use crate::route::Consistency;

/// What the comments of one statement ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// `primary`, `replica` or `node=host:port`.
    pub target: Option<Target>,
    /// Zero allows no staleness at all.
    pub max_lag: Option<Duration>,
    pub consistency: Option<Consistency>,
    /// What was not understood, as written: for the log. At most [`MAX_UNKNOWN`] items.
    pub unknown: Vec<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Primary,
    Replica,
    Node(Box<str>),
}

/// Items that are remembered for the log; the rest is dropped.
pub const MAX_UNKNOWN: usize = 4;

/// The items of a comment that addresses the proxy: what follows `pointsman:`.
pub(super) fn addressed(comment: &[u8]) -> Option<&[u8]> {
    let start = comment.iter().position(|b| !b.is_ascii_whitespace())?;
    let rest = &comment[start..];
    let name = rest.get(..9)?;
    if !name.eq_ignore_ascii_case(b"pointsman") {
        return None;
    }
    let colon = rest[9..].iter().position(|b| !b.is_ascii_whitespace())? + 9;
    (rest[colon] == b':').then(|| &rest[colon + 1..])
}

impl Hints {
    /// Adds the items of one comment, separated by commas, semicolons or white space, which may also
    /// stand around an equals sign. Of two that contradict each other the later one counts.
    pub(super) fn add(&mut self, items: &[u8]) {
        let items = without_space_at_equals(&String::from_utf8_lossy(items));
        for item in
            items.split(|c: char| ",;".contains(c) || c.is_whitespace()).filter(|item| !item.is_empty())
        {
            if self.take(item).is_none() && self.unknown.len() < MAX_UNKNOWN {
                self.unknown.push(item.into());
            }
        }
    }

    /// These, and what they say nothing of as `others` have it.
    pub fn over(&self, others: &Self) -> Self {
        let unknown = if self.unknown.is_empty() { &others.unknown } else { &self.unknown };
        Self {
            target: self.target.clone().or_else(|| others.target.clone()),
            max_lag: self.max_lag.or(others.max_lag),
            consistency: self.consistency.or(others.consistency),
            unknown: unknown.clone(),
        }
    }

    fn take(&mut self, item: &str) -> Option<()> {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name, Some(value.trim_matches(['\'', '"']))),
            None => (item, None),
        };
        match (name.to_ascii_lowercase().as_str(), value) {
            ("primary", None) => self.target = Some(Target::Primary),
            ("replica", None) => self.target = Some(Target::Replica),
            ("node", Some(node)) if !node.is_empty() => self.target = Some(Target::Node(node.into())),
            ("max_lag", Some(lag)) => self.max_lag = Some(humantime::parse_duration(lag).ok()?),
            ("consistency", Some(value)) => self.consistency = Some(consistency(value)?),
            _ => return None,
        }
        Some(())
    }
}

fn without_space_at_equals(items: &str) -> String {
    let sides: Vec<&str> = items.split('=').map(str::trim).collect();
    sides.join("=")
}

fn consistency(value: &str) -> Option<Consistency> {
    Some(match value.to_ascii_lowercase().as_str() {
        "eventual" => Consistency::Eventual,
        "session" => Consistency::Session,
        "monotonic" => Consistency::Monotonic,
        "user" => Consistency::User,
        "global" => Consistency::Global,
        _ => return None,
    })
}
