//! MariaDB and MySQL: GTID replication, semi-synchronous and never falling back.

use std::time::Duration;

use pointsman::{
    demo::{
        mysql::{Flavour, MysqlCluster, MysqlNode, MysqlOptions},
        servers::{APP, ServerError, Stop},
    },
    topology::GtidSet,
};

use super::{COUNTED, Servers, insertions, read_rows};
use crate::history::Rows;

const DATABASE: &str = APP.name;

pub struct Mysql {
    cluster: MysqlCluster,
}

impl Mysql {
    pub fn start(flavour: Flavour) -> Result<Self, ServerError> {
        let arguments = flavour.semi_synchronous().iter().map(|&argument| argument.to_owned()).collect();
        let options = MysqlOptions { flavour, replicas: 2, arguments, ..MysqlOptions::default() };
        let cluster = MysqlCluster::start(options)?;
        cluster.wait_for_replicas(0)?;
        cluster.node(0).sql(DATABASE, "CREATE TABLE log (session INT, entry BIGINT)")?;
        cluster.wait_until_caught_up(0)?;
        Ok(Self { cluster })
    }

    fn others(&self, lost: usize) -> impl Iterator<Item = usize> {
        (0..self.cluster.nodes().len()).filter(move |node| *node != lost)
    }

    fn reached(&self, node: usize) -> Result<GtidSet, ServerError> {
        let text = self.cluster.node(node).sql("", self.cluster.flavour().written())?;
        Ok(text.parse().expect("a server's own position is well-formed"))
    }
}

impl Servers for Mysql {
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
        let seconds = u64::from(delay.subsec_nanos() > 0) + delay.as_secs();
        self.cluster.delay_replay(replica, Duration::from_secs(seconds))
    }

    fn end_sessions(&self, node: usize) -> Result<(), ServerError> {
        let node: &MysqlNode = self.cluster.node(node);
        let ask = format!("SELECT id FROM information_schema.processlist WHERE user = '{}'", APP.name);
        for number in node.sql("", &ask)?.lines() {
            // Whoever has gone meanwhile need not be ended.
            let _ = node.sql("", &format!("KILL CONNECTION {number}"));
        }
        Ok(())
    }

    /// `SET GLOBAL read_only` waits for the commits under way, so that nothing is acknowledged
    /// after it. A server that is only told to stop lets go of those that wait for a replica. It is
    /// stopped when it comes back: MySQL's orderly shutdown takes 10 s where replicas and clients are
    /// connected, however idle (seen on 9.7), and whoever switches over does not wait for that.
    fn retire(&self, primary: usize) -> Result<(), ServerError> {
        self.cluster.node(primary).sql("", "SET GLOBAL read_only = 1")?;
        self.cluster.wait_until_caught_up(primary)
    }

    /// Whoever has more of what any has received. MariaDB takes 4 s to stop receiving from a frozen
    /// server (seen on 10.11), which is most of a gap then.
    fn heir(&self, lost: usize) -> Result<usize, ServerError> {
        let mut best: Option<(usize, GtidSet)> = None;
        for node in self.others(lost) {
            self.cluster.apply_received(node)?;
            let reached = self.reached(node)?;
            if best.as_ref().is_none_or(|(_, most)| reached.covers(most)) {
                best = Some((node, reached));
            }
        }
        Ok(best.map_or(lost, |(node, _)| node))
    }

    fn promote(&self, heir: usize, lost: usize) -> Result<(), ServerError> {
        self.cluster.wait_for_replicas(heir)?;
        self.cluster.promote(heir)?;
        self.others(lost)
            .filter(|other| *other != heir)
            .try_for_each(|other| self.cluster.follow(other, heir))
    }

    fn release(&self, node: usize) -> Result<(), ServerError> {
        self.cluster.wait_for_nobody(node)
    }

    fn write_past_the_proxy(&self, node: usize, session: usize, rows: u64) -> Result<(), ServerError> {
        self.cluster.node(node).sql(DATABASE, &insertions(session, rows)).map(drop)
    }

    /// With what it has, if the new primary has that too; else from the beginning.
    fn rejoin(&self, node: usize, primary: usize) -> Result<(), ServerError> {
        self.cluster.stop(node, Stop::Fast)?;
        self.cluster.start_node(node)?;
        if self.cluster.has_all_of(primary, node)? {
            self.cluster.follow(node, primary)
        } else {
            self.cluster.rebuild(node, primary)
        }
    }

    fn settle(&self, primary: usize) -> Result<(), ServerError> {
        self.cluster.wait_until_caught_up(primary)
    }

    /// Also rows whose commits still wait for a replica.
    fn rows(&self, node: usize) -> Result<Rows, ServerError> {
        let sql = format!("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED; {COUNTED}");
        Ok(read_rows(&self.cluster.node(node).sql(DATABASE, &sql)?, '\t'))
    }
}
