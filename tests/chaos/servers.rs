//! The servers of either database: what is done to them, by one set of names.

mod mysql;
mod postgres;

use std::time::Duration;

use clap::ValueEnum;
use pointsman::demo::{
    mysql::Flavour,
    servers::{ServerError, Stop},
};

use crate::history::Rows;

use mysql::Mysql;
use postgres::Postgres;

/// Which servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    Postgres,
    /// MariaDB.
    Mysql,
    /// MySQL 9, from scripts/mysql9.
    Mysql9,
}

impl Engine {
    /// The value of `engine` in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mysql | Self::Mysql9 => "mysql",
        }
    }

    /// Starts a primary (number 0) and two replicas with an empty table `log`. A write is
    /// acknowledged when a replica has it, whoever is primary.
    pub fn start(self) -> Result<Box<dyn Servers>, ServerError> {
        Ok(match self {
            Self::Postgres => Box::new(Postgres::start()?),
            Self::Mysql => Box::new(Mysql::start(Flavour::MariaDb)?),
            Self::Mysql9 => {
                let root = concat!(env!("CARGO_MANIFEST_DIR"), "/target/mysql9/root").into();
                Box::new(Mysql::start(Flavour::Mysql { root })?)
            }
        })
    }
}

/// A primary and its replicas. The numbers of the nodes stay, whatever role they have.
pub trait Servers {
    fn addresses(&self) -> Vec<String>;
    fn port(&self, node: usize) -> u16;
    fn start(&self, node: usize) -> Result<(), ServerError>;
    fn stop(&self, node: usize, how: Stop) -> Result<(), ServerError>;
    fn freeze(&self, node: usize);
    fn thaw(&self, node: usize);
    fn pause_replay(&self, replica: usize) -> Result<(), ServerError>;
    fn resume_replay(&self, replica: usize) -> Result<(), ServerError>;
    /// Zero ends it. Where a database counts in seconds, it is a whole one at least.
    fn delay_replay(&self, replica: usize, delay: Duration) -> Result<(), ServerError>;
    /// Ends the connections of the clients, as an administrator would.
    fn end_sessions(&self, node: usize) -> Result<(), ServerError>;

    /// Takes the role from a primary in good order: it acknowledges nothing more, and a replica has
    /// all that it has acknowledged.
    fn retire(&self, primary: usize) -> Result<(), ServerError>;
    /// The replica that has all that was acknowledged. None receives any more from `lost`.
    fn heir(&self, lost: usize) -> Result<usize, ServerError>;
    /// Makes the heir primary; everybody but `lost` follows it.
    fn promote(&self, heir: usize, lost: usize) -> Result<(), ServerError>;
    /// A former primary that still runs as one waits for replicas no longer: [`Servers::rows`] has
    /// what it held back.
    fn release(&self, node: usize) -> Result<(), ServerError>;
    /// Somebody else writes rows of `session` to it, in a transaction each.
    fn write_past_the_proxy(&self, node: usize, session: usize, rows: u64) -> Result<(), ServerError>;
    /// Makes a former primary that is stopped, or retired, a replica.
    fn rejoin(&self, node: usize, primary: usize) -> Result<(), ServerError>;
    /// Waits until every replica is where the primary is now.
    fn settle(&self, primary: usize) -> Result<(), ServerError>;
    /// What a server has of the sessions' writes.
    fn rows(&self, node: usize) -> Result<Rows, ServerError>;
}

/// Reads lines of `session`, `entry` and count.
fn read_rows(text: &str, separator: char) -> Rows {
    let read = |line: &str| {
        let mut columns = line.split(separator).map(|column| column.parse::<u64>().ok());
        let (session, entry, count) = (columns.next()??, columns.next()??, columns.next()??);
        Some(((session as usize, entry), count))
    };
    text.lines().filter_map(read).collect()
}

/// The statement whose answer [`read_rows`] reads.
const COUNTED: &str = "SELECT session, entry, count(*) FROM log GROUP BY session, entry";

/// Statements that write rows of `session`.
fn insertions(session: usize, rows: u64) -> String {
    (1..=rows).map(|entry| format!("INSERT INTO log VALUES ({session}, {entry});")).collect()
}
