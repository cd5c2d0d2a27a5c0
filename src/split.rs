//! Whose reads the primary gets only because they stand in transactions that may write: with most
//! drivers' defaults all of them do, and nothing is split (hard case 20).

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// Reads of a user after which it is worth judging by them.
const ENOUGH: u64 = 200;
/// Reads that a session counts by itself before it tells.
const BATCH: u64 = 50;
/// Users that are told apart; those beyond are not judged.
const MAX_USERS: usize = 1024;

/// What helps, by driver.
pub const ADVICE: &str = "let reads stand alone or in read-only transactions: psycopg and PyMySQL \
     `autocommit=True`, SQLAlchemy `isolation_level=\"AUTOCOMMIT\"`, Django without ATOMIC_REQUESTS, JDBC \
     `setAutoCommit(true)` or `setReadOnly(true)`, mysql-connector `autocommit=True`; or set \
     `routing.transaction_reads = \"replica\"`";

/// One session's reads that it has not told of yet.
#[derive(Debug, Default)]
pub struct Tally {
    reads: u64,
    in_transactions: u64,
}

impl Tally {
    /// Counts one read; `true`: it is time to tell.
    pub fn count(&mut self, in_transaction: bool) -> bool {
        self.reads += 1;
        self.in_transactions += u64::from(in_transaction);
        self.reads >= BATCH
    }
}

/// The reads of a cluster's users.
#[derive(Debug, Default)]
pub struct Split(Mutex<HashMap<Arc<str>, User>>);

#[derive(Debug, Default)]
struct User {
    reads: u64,
    in_transactions: u64,
    told: bool,
}

impl Split {
    /// Adds what a session has counted; `true` once for each user most of whose reads stand in
    /// transactions.
    pub fn add(&self, user: &Arc<str>, tally: &mut Tally) -> bool {
        let Tally { reads, in_transactions } = std::mem::take(tally);
        let mut users = self.0.lock();
        if users.len() >= MAX_USERS && !users.contains_key(user) {
            return false;
        }
        let user = users.entry(user.clone()).or_default();
        user.reads += reads;
        user.in_transactions += in_transactions;
        user.is_held_together() && !std::mem::replace(&mut user.told, true)
    }

    /// The users most of whose reads stand in transactions, in the order of their names.
    pub fn users(&self) -> Vec<Arc<str>> {
        let users = self.0.lock();
        let together = users.iter().filter(|(_, user)| user.is_held_together());
        let mut names: Vec<Arc<str>> = together.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }
}

impl User {
    fn is_held_together(&self) -> bool {
        self.reads >= ENOUGH && self.in_transactions * 2 > self.reads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_once_most_of_many_reads_stood_in_transactions() {
        let split = Split::default();
        let (app, report): (Arc<str>, Arc<str>) = ("app".into(), "report".into());
        let mut told = 0;
        for read in 0..1_000_u32 {
            let mut tally = Tally::default();
            tally.count(read % 3 > 0);
            told += u32::from(split.add(&app, &mut tally));
            tally.count(read % 3 == 0);
            assert!(!split.add(&report, &mut tally));
            assert!(read > 190 || split.users().is_empty(), "after {read} reads");
        }
        assert_eq!((told, split.users()), (1, vec![app]));
    }
}
