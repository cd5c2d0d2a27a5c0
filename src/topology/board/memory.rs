//! What a proxy remembers of the last election over a restart.

use std::{fmt, str::FromStr, sync::Arc};

use crate::topology::{Position, election::Incumbent};

/// Longest state file that is read, in bytes: a GTID set and a few lines.
pub const MAX_MEMORY: usize = super::super::gtid::MAX_TEXT + 4096;

/// The last election, for the state file: what a restarted proxy must know to refuse an old
/// primary (hard case 8). Worth saving after every [`Event::Elected`](super::Event::Elected) and
/// at the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// PostgreSQL's system identifier.
    pub system: Option<Arc<str>>,
    pub incumbent: Incumbent,
}

/// A state file that cannot be used. The proxy then starts as if there had been no election.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryFault {
    #[error("longer than {MAX_MEMORY} bytes")]
    TooLong,
    #[error("line {0} is not `key = value` with a known key")]
    Line(usize),
    #[error("no primary in it")]
    NoPrimary,
}

/// One `key = value` to a line.
impl fmt::Display for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "primary = {}", self.incumbent.address)?;
        if let Some(system) = &self.system {
            writeln!(f, "system = {system}")?;
        }
        if let Some(server) = &self.incumbent.server {
            writeln!(f, "server = {server}")?;
        }
        if let Some(timeline) = self.incumbent.timeline {
            writeln!(f, "timeline = {timeline}")?;
        }
        match &self.incumbent.written {
            Some(written) => writeln!(f, "written = {written}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Remembered {
    type Err = MemoryFault;

    fn from_str(text: &str) -> Result<Self, MemoryFault> {
        if text.len() > MAX_MEMORY {
            return Err(MemoryFault::TooLong);
        }
        let (mut system, mut address, mut server, mut timeline, mut written) = (None, None, None, None, None);
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fault = MemoryFault::Line(at + 1);
            let (key, value) = line.split_once('=').ok_or(fault.clone())?;
            match (key.trim(), value.trim()) {
                (_, "") => return Err(fault),
                ("primary", value) => address = Some(Arc::from(value)),
                ("server", value) => server = Some(Arc::from(value)),
                ("system", value) => system = Some(Arc::from(value)),
                ("timeline", value) => timeline = Some(value.parse().map_err(|_| fault)?),
                ("written", value) => written = Some(value.parse::<Position>().map_err(|_| fault)?),
                _ => return Err(fault),
            }
        }
        let address = address.ok_or(MemoryFault::NoPrimary)?;
        Ok(Self { system, incumbent: Incumbent { address, timeline, written, server } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::board::fixture::{at, gtids};

    #[test]
    fn what_was_remembered_is_read_back() {
        for (system, timeline, written, server) in [
            (Some("7300000000000000000".into()), Some(3), Some(at(3, 0x16B_3748)), None),
            (None, None, Some(gtids("0-1-100,1-2-5")), Some("1".into())),
            (None, None, None, None),
        ] {
            let incumbent = Incumbent { address: "[::1]:5432".into(), timeline, written, server };
            let remembered = Remembered { system, incumbent };
            assert_eq!(remembered.to_string().parse(), Ok(remembered));
        }
    }

    #[test]
    fn a_file_that_makes_no_sense_is_an_error() {
        for (text, fault) in [
            ("", MemoryFault::NoPrimary),
            ("primary = a:1\nhello", MemoryFault::Line(2)),
            ("primary =", MemoryFault::Line(1)),
            ("primary = a:1\ntimeline = x", MemoryFault::Line(2)),
            ("primary = a:1\nwritten = 1:2", MemoryFault::Line(2)),
            ("secondary = a:1", MemoryFault::Line(1)),
        ] {
            assert_eq!(text.parse::<Remembered>(), Err(fault), "{text:?}");
        }
    }
}
