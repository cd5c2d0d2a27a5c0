//! Who wrote what of a MariaDB server's history.

use std::{collections::BTreeMap, str::FromStr};

use super::gtid::{GtidFault, GtidSet, MAX_TEXT};

/// The last sequence number of every server that wrote to a history, by domain
/// (`gtid_binlog_state`).
///
/// A position names the last transaction of a domain only: of two histories that went apart, the
/// one that counted further would seem to contain the other.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Writers(BTreeMap<(u32, u32), u64>);

/// Where a transaction is, seen from a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Within,
    /// Of a server that wrote no more to it than up to `last`.
    Beyond {
        last: u64,
    },
    /// Of a server that this binary log does not name: it may have begun later.
    Unknown,
}

impl Writers {
    /// Whether the history has everything up to `position`.
    pub fn have(&self, position: &GtidSet) -> bool {
        position.domains().all(|(domain, server, sequence)| {
            self.0.get(&(domain, server)).is_some_and(|last| *last >= sequence)
        })
    }

    /// Where a position lies that this history's primary, `primary`, did not tell of itself.
    pub fn place(&self, (domain, server, sequence): (u32, u32, u64), primary: Option<u64>) -> Place {
        match self.0.get(&(domain, server)) {
            // It may have written since.
            _ if Some(u64::from(server)) == primary => Place::Within,
            Some(last) if *last >= sequence => Place::Within,
            Some(&last) => Place::Beyond { last },
            None => Place::Unknown,
        }
    }

    /// Whether `position` lies beyond what somebody wrote to this history, which `primary` alone
    /// writes to now.
    pub fn lack(&self, position: &GtidSet, primary: Option<u64>) -> bool {
        position.domains().any(|reached| matches!(self.place(reached, primary), Place::Beyond { .. }))
    }

    /// The domains in which `position` is known to lie in this history.
    pub fn known_part(&self, position: &GtidSet, primary: Option<u64>) -> GtidSet {
        let known = |reached: (u32, u32, u64)| self.place(reached, primary) == Place::Within;
        position.with_domains(|reached| known(reached).then_some(reached.2))
    }

    /// What a position names was written, too: a server without `log_slave_updates` has nobody
    /// else's transactions in its binary log.
    #[must_use]
    pub fn with(mut self, position: &GtidSet) -> Self {
        for (domain, server, sequence) in position.domains() {
            self.add(domain, server, sequence);
        }
        self
    }

    fn add(&mut self, domain: u32, server: u32, sequence: u64) {
        let last = self.0.entry((domain, server)).or_default();
        *last = sequence.max(*last);
    }
}

impl FromStr for Writers {
    type Err = GtidFault;

    fn from_str(text: &str) -> Result<Self, GtidFault> {
        if text.len() > MAX_TEXT {
            return Err(GtidFault::TooLong);
        }
        let mut writers = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let one: GtidSet = part.parse()?;
            writers = writers.with(&one);
        }
        Ok(writers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> GtidSet {
        text.parse().expect("a position")
    }

    #[test]
    fn a_history_has_what_each_server_wrote_to_it_and_no_more() {
        let writers: Writers = "0-1-100,0-2-105,7-1-3".parse().expect("a state");
        for (position, has, lacks) in [
            ("", true, false),
            ("0-1-100", true, false),
            ("0-2-104,7-1-3", true, false),
            // 101 to 104 were written by 2: what 1 calls so is another history's.
            ("0-1-101", false, true),
            ("0-2-105,7-1-4", false, true),
            // Nothing is known of these.
            ("0-3-50", false, false),
            ("8-1-1", false, false),
        ] {
            assert_eq!(writers.have(&set(position)), has, "has {position}");
            assert_eq!(writers.lack(&set(position), None), lacks, "lacks {position}");
        }
        assert!(!writers.lack(&set("0-2-106"), Some(2)), "what the primary has written since");
        for (position, known) in
            [("0-2-105,7-1-3", "0-2-105,7-1-3"), ("0-3-50,7-1-3", "7-1-3"), ("8-1-1", "")]
        {
            assert_eq!(writers.known_part(&set(position), Some(2)), set(known), "known of {position}");
        }
        assert!(writers.with(&set("0-3-106")).have(&set("0-3-106")));
        assert!("0-1".parse::<Writers>().is_err());
    }
}
