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

impl Writers {
    /// Whether the history has everything up to `position`.
    pub fn have(&self, position: &GtidSet) -> bool {
        position.domains().all(|(domain, server, sequence)| {
            self.0.get(&(domain, server)).is_some_and(|last| *last >= sequence)
        })
    }

    /// Whether `position` lies beyond what one of `servers` wrote to this history, which goes on
    /// without it.
    pub fn lack(&self, position: &GtidSet, servers: impl Fn(u64) -> bool) -> bool {
        position.domains().filter(|(_, server, _)| servers(u64::from(*server))).any(
            |(domain, server, sequence)| self.0.get(&(domain, server)).is_some_and(|last| *last < sequence),
        )
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
            assert_eq!(writers.lack(&set(position), |_| true), lacks, "lacks {position}");
            assert!(!writers.lack(&set(position), |_| false), "asked of nobody");
        }
        assert!(writers.with(&set("0-3-106")).have(&set("0-3-106")));
        assert!("0-1".parse::<Writers>().is_err());
    }
}
