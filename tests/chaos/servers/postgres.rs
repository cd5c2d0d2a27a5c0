//! PostgreSQL: streaming replication, synchronous to any one replica.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use pointsman::demo::servers::{PgCluster, PgOptions, ServerError, Stop};

use super::{COUNTED, Servers, insertions, read_rows};
use crate::history::Rows;

/// A port on which no server listens.
const NOBODY: u16 = 1;
/// How long replicas take to notice that they are to stream from elsewhere.
const DETACH: Duration = Duration::from_millis(300);
/// How long commits may take to notice that nobody has to confirm them.
const RELEASE: Duration = Duration::from_secs(5);

pub struct Postgres {
    cluster: PgCluster,
}

impl Postgres {
    pub fn start() -> Result<Self, ServerError> {
        let cluster = PgCluster::start(PgOptions { replicas: 2, ..PgOptions::default() })?;
        cluster.node(0).sql("app", "SET ROLE app; CREATE TABLE log (session int, entry bigint)")?;
        let servers = Self { cluster };
        servers.settle(0)?;
        Ok(servers)
    }

    fn others(&self, lost: usize) -> impl Iterator<Item = usize> {
        (0..self.cluster.nodes().len()).filter(move |node| *node != lost)
    }
}

impl Servers for Postgres {
    fn addresses(&self) -> Vec<String> {
        self.cluster.addresses()
    }

    fn port(&self, node: usize) -> u16 {
        self.cluster.node(node).port()
    }

    fn start(&self, node: usize) -> Result<(), ServerError> {
        self.cluster.start_node(node)
    }

    fn stop(&self, node: usize, how: Stop) -> Result<(), ServerError> {
        self.cluster.stop(node, how)
    }

    fn freeze(&self, node: usize) {
        self.cluster.node(node).freeze();
    }

    fn thaw(&self, node: usize) {
        self.cluster.node(node).thaw();
    }

    fn pause_replay(&self, replica: usize) -> Result<(), ServerError> {
        self.cluster.pause_replay(replica)
    }

    fn resume_replay(&self, replica: usize) -> Result<(), ServerError> {
        self.cluster.resume_replay(replica)
    }

    fn delay_replay(&self, replica: usize, delay: Duration) -> Result<(), ServerError> {
        self.cluster.delay_replay(replica, delay)
    }

    fn end_sessions(&self, node: usize) -> Result<(), ServerError> {
        let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
        self.cluster.node(node).sql("postgres", all).map(drop)
    }

    fn retire(&self, primary: usize) -> Result<(), ServerError> {
        // Everything is sent to the replicas before it ends.
        self.cluster.stop(primary, Stop::Fast)
    }

    /// With synchronous replication to any one, the replica that has received most has it all.
    fn heir(&self, lost: usize) -> Result<usize, ServerError> {
        // What still streams could get ahead of the one that is chosen.
        for replica in self.others(lost) {
            self.cluster.follow_address(replica, "127.0.0.1", NOBODY)?;
        }
        sleep(DETACH);
        let mut best = None;
        for node in self.others(lost) {
            let received = "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0') - '0/0'";
            let received: u64 = self.cluster.node(node).sql("postgres", received)?.parse().unwrap_or(0);
            best = best.max(Some((received, node)));
        }
        Ok(best.map_or(lost, |(_, node)| node))
    }

    fn promote(&self, heir: usize, lost: usize) -> Result<(), ServerError> {
        self.cluster.promote(heir)?;
        self.others(lost)
            .filter(|other| *other != heir)
            .try_for_each(|other| self.cluster.follow(other, heir))
    }

    fn release(&self, node: usize) -> Result<(), ServerError> {
        let node = self.cluster.node(node);
        node.set("synchronous_standby_names", "")?;
        let held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let deadline = Instant::now() + RELEASE;
        while node.sql("postgres", held)? != "0" && Instant::now() < deadline {
            sleep(DETACH / 10);
        }
        Ok(())
    }

    fn write_past_the_proxy(&self, node: usize, session: usize, rows: u64) -> Result<(), ServerError> {
        self.cluster.node(node).sql("app", &insertions(session, rows)).map(drop)
    }

    fn rejoin(&self, node: usize, primary: usize) -> Result<(), ServerError> {
        self.cluster.rejoin(node, primary)
    }

    fn settle(&self, primary: usize) -> Result<(), ServerError> {
        for node in self.cluster.nodes() {
            node.set("synchronous_standby_names", "ANY 1 (*)")?;
        }
        self.cluster.wait_until_caught_up(primary)
    }

    fn rows(&self, node: usize) -> Result<Rows, ServerError> {
        Ok(read_rows(&self.cluster.node(node).sql("app", COUNTED)?, '|'))
    }
}
