//! Where a server is in its history: [`Lsn`] on a timeline, or a [`GtidSet`].

use std::{fmt, str::FromStr, sync::Arc};

pub use super::gtid::{GtidFault, GtidSet};

/// A PostgreSQL write-ahead log location, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// `XLOG_BLCKSZ`: what every packaged PostgreSQL is built with.
const WAL_PAGE: u64 = 8192;
/// `SizeOfXLogShortPHD`, the header of a WAL page.
const PAGE_HEADER: u64 = 24;
/// `SizeOfXLogLongPHD`, the header of a segment's first page.
const SEGMENT_HEADER: u64 = 40;

impl Lsn {
    /// The position that a replica reports once it has replayed everything below `self`, where
    /// `self` is a `pg_current_wal_insert_lsn()`.
    ///
    /// The insert position steps over the header of a page that holds no record yet; a replica
    /// that has replayed all there is stays at the page's start (hard case 3). Rounding down is
    /// never too low: the shortest record (24 bytes) cannot end at offset 24 or 40 of the page it
    /// begins on, and one that began on the page before is replayed whole or not at all.
    #[must_use]
    pub fn replayable(self) -> Lsn {
        match self.0 % WAL_PAGE {
            offset @ (PAGE_HEADER | SEGMENT_HEADER) => Lsn(self.0 - offset),
            _ => self,
        }
    }

    /// Bytes from `self` up to `ahead`; 0 where `self` is not behind.
    #[must_use]
    pub fn bytes_to(self, ahead: Lsn) -> u64 {
        ahead.0.saturating_sub(self.0)
    }
}

/// As the server prints it: `0/16B3748`.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// What a text that should have been a position is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PositionFault {
    #[error("not a WAL location such as 0/16B3748")]
    Lsn,
    #[error("not a position: expected system:timeline:location, or a GTID set of MySQL")]
    Shape,
    #[error(transparent)]
    Gtid(#[from] GtidFault),
}

impl FromStr for Lsn {
    type Err = PositionFault;

    /// Reads `pg_lsn`'s text: two hexadecimal numbers of 1 to 8 digits.
    fn from_str(text: &str) -> Result<Self, PositionFault> {
        let (high, low) = text.split_once('/').ok_or(PositionFault::Lsn)?;
        Ok(Lsn(u64::from(hex_word(high)?) << 32 | u64::from(hex_word(low)?)))
    }
}

fn hex_word(text: &str) -> Result<u32, PositionFault> {
    // `from_str_radix` would take a sign.
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(PositionFault::Lsn);
    }
    u32::from_str_radix(text, 16).map_err(|_| PositionFault::Lsn)
}

/// A position in a cluster's history, comparable only within one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// Timeline 0: not known (a replica without a running WAL receiver).
    Postgres {
        system: u64,
        timeline: u32,
        lsn: Lsn,
    },
    Mysql(Arc<GtidSet>),
}

impl Position {
    /// Whether a server here has all that `floor` asks for; `None` where the two cannot be
    /// compared: another system, another database, or timelines whose relation is not known.
    ///
    /// [`Timelines::covers`](super::Timelines::covers) knows of forks and answers more often.
    pub fn covers(&self, floor: &Position) -> Option<bool> {
        match (self, floor) {
            (
                Self::Postgres { system, timeline, lsn },
                Self::Postgres { system: floor_system, timeline: floor_timeline, lsn: floor_lsn },
            ) => (system == floor_system && timeline == floor_timeline && *timeline != 0)
                .then_some(lsn >= floor_lsn),
            (Self::Mysql(have), Self::Mysql(want)) => Some(have.covers(want)),
            _ => None,
        }
    }

    /// How far `self` is behind `ahead`: bytes (PostgreSQL) or transactions (MySQL); `None` where
    /// the two are of different systems or databases. Timelines are not looked at.
    pub fn distance_to(&self, ahead: &Position) -> Option<u64> {
        match (self, ahead) {
            (
                Self::Postgres { system, lsn, .. },
                Self::Postgres { system: ahead_system, lsn: ahead_lsn, .. },
            ) => (system == ahead_system).then(|| lsn.bytes_to(*ahead_lsn)),
            (Self::Mysql(have), Self::Mysql(want)) => Some(have.missing(want)),
            _ => None,
        }
    }

    /// The timeline, where there is one and it is known.
    pub fn timeline(&self) -> Option<u32> {
        match self {
            Self::Postgres { timeline, .. } => Some(*timeline).filter(|&timeline| timeline != 0),
            Self::Mysql(_) => None,
        }
    }
}

/// The causal token: `system:timeline:location`, or the GTID set as the server prints it.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { system, timeline, lsn } => write!(f, "{system}:{timeline}:{lsn}"),
            Self::Mysql(set) => set.fmt(f),
        }
    }
}

impl FromStr for Position {
    type Err = PositionFault;

    /// Reads a causal token. A slash is in every WAL location and in no GTID set.
    fn from_str(text: &str) -> Result<Self, PositionFault> {
        if !text.contains('/') {
            let set: GtidSet = text.parse()?;
            return if set.is_empty() { Err(PositionFault::Shape) } else { Ok(Self::Mysql(Arc::new(set))) };
        }
        let mut parts = text.trim().splitn(3, ':');
        let (Some(system), Some(timeline), Some(lsn)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(PositionFault::Shape);
        };
        Ok(Self::Postgres {
            system: decimal(system)?,
            timeline: decimal(timeline)?.try_into().map_err(|_| PositionFault::Shape)?,
            lsn: lsn.parse()?,
        })
    }
}

fn decimal(text: &str) -> Result<u64, PositionFault> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PositionFault::Shape);
    }
    text.parse().map_err(|_| PositionFault::Shape)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "[0-9A-Fa-f/:,\\-]{0,60}|\\PC{0,60}") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string().parse(), Ok(position));
            }
            if let Ok(lsn) = text.parse::<Lsn>() {
                prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            }
        }
    }

    #[test]
    fn locations_read_and_print_as_the_server_writes_them() {
        for (text, value) in [
            ("0/0", 0),
            ("0/16B3748", 0x016B_3748),
            ("1/0", 1 << 32),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
            ("A/4000028", 0xA_0400_0028),
        ] {
            assert_eq!(text.parse(), Ok(Lsn(value)), "{text}");
            assert_eq!(Lsn(value).to_string(), text);
        }
        for text in ["", "/", "0", "0/", "/0", "0/+1", "0/123456789", "0/0/0", "g/0", " 0/0", "0/-1"] {
            assert_eq!(text.parse::<Lsn>(), Err(PositionFault::Lsn), "{text:?}");
        }
    }

    #[test]
    fn an_insert_position_behind_a_page_header_means_the_pages_start() {
        for (insert, replayable) in [
            ("0/4000028", "0/4000000"), // after a segment switch
            ("0/4002018", "0/4002000"), // the last record filled its page
            ("0/4000200", "0/4000200"),
            ("0/4000000", "0/4000000"),
            ("0/4002020", "0/4002020"),
        ] {
            let insert: Lsn = insert.parse().expect("a location");
            assert_eq!(insert.replayable().to_string(), replayable);
        }
    }

    #[test]
    fn positions_of_other_systems_or_timelines_do_not_compare() {
        let at = |system, timeline, lsn| Position::Postgres { system, timeline, lsn: Lsn(lsn) };
        let gtids = |text: &str| Position::Mysql(Arc::new(text.parse().expect("a GTID set")));

        for (have, floor, covers) in [
            (at(1, 1, 10), at(1, 1, 10), Some(true)),
            (at(1, 1, 9), at(1, 1, 10), Some(false)),
            (at(2, 1, 99), at(1, 1, 10), None),
            (at(1, 2, 99), at(1, 1, 10), None),
            (at(1, 0, 99), at(1, 0, 10), None),
            (gtids("0-1-7"), gtids("0-2-5"), Some(true)),
            (gtids("0-1-7"), at(1, 1, 1), None),
        ] {
            assert_eq!(have.covers(&floor), covers, "{have} against {floor}");
        }
    }

    #[test]
    fn tokens_survive_being_printed_and_read() {
        for text in ["7300000000000000000:3:1/16B3748", "0-1-100,1-2-5"] {
            assert_eq!(text.parse::<Position>().expect("a token").to_string(), text);
        }
        for text in ["", "1:2", "1:2:3", "x:1:0/1", "1:99999999999:0/1", "1:0/1", "+1:1:0/1"] {
            assert!(text.parse::<Position>().is_err(), "{text:?}");
        }
    }
}
