//! Where a server is in its history: [`Lsn`] on a timeline, or a [`GtidSet`].

use std::sync::Arc;

/// A PostgreSQL write-ahead log location, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

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

/// A set of executed transactions: MySQL's `uuid:intervals` or MariaDB's `domain-server-sequence`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GtidSet {}
