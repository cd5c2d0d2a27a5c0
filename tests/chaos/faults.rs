//! What is done to the servers meanwhile, one thing after the other.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use pointsman::demo::servers::{PgCluster, ServerError, Stop};
use rand::{Rng, rngs::StdRng};

use crate::{history::Rows, link::Link};

/// A port on which no server listens.
const NOBODY: u16 = 1;
/// How long replicas take to notice that they are to stream from elsewhere.
const DETACH: Duration = Duration::from_millis(300);

/// The servers and the links that the proxy reaches them by.
pub struct Stage {
    pub cluster: PgCluster,
    pub links: Vec<Link>,
    pub primary: usize,
    /// Faults by name, and how often.
    pub done: BTreeMap<&'static str, usize>,
    /// What servers that had lost the role had when they were stopped, and since when the proxy
    /// had another primary.
    pub fenced: Vec<(Rows, Instant)>,
}

/// How the primary is taken away.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Kill,
    Freeze,
    Partition,
    Switchover,
}

impl Stage {
    /// Does one thing, and undoes it.
    pub fn disturb(&mut self, random: &mut StdRng) -> Result<(), ServerError> {
        let replica = (self.primary + random.random_range(1..self.links.len())) % self.links.len();
        let pause = Duration::from_millis(random.random_range(100..800));
        match random.random_range(0..12) {
            0 => self.fail_over("kill the primary", Loss::Kill, random),
            1 => self.fail_over("freeze the primary", Loss::Freeze, random),
            2 => self.fail_over("cut the primary off", Loss::Partition, random),
            3 => self.fail_over("switch over", Loss::Switchover, random),
            4 => {
                self.count("crash a replica");
                self.cluster.restart(replica, Stop::Immediate)
            }
            5 => {
                self.count("crash a replica behind its former self");
                self.cluster.delay_replay(replica, Duration::from_secs(60))?;
                sleep(pause);
                self.cluster.restart(replica, Stop::Immediate)?;
                sleep(pause);
                self.cluster.delay_replay(replica, Duration::ZERO)
            }
            6 => {
                self.count("freeze a replica");
                self.cluster.node(replica).freeze();
                sleep(pause * 2);
                self.cluster.node(replica).thaw();
                Ok(())
            }
            7 => {
                self.count("delay replay");
                self.cluster.delay_replay(replica, Duration::from_millis(400))?;
                sleep(pause * 2);
                self.cluster.delay_replay(replica, Duration::ZERO)
            }
            8 => {
                self.count("pause replay");
                self.cluster.pause_replay(replica)?;
                sleep(pause);
                self.cluster.resume_replay(replica)
            }
            9 => {
                self.count("break connections");
                self.links[random.random_range(0..self.links.len())].cut();
                Ok(())
            }
            10 => {
                self.count("stall a link");
                let node = random.random_range(0..self.links.len());
                self.links[node].stall();
                sleep(pause);
                self.links[node].resume();
                Ok(())
            }
            _ => {
                self.count("terminate sessions");
                let node = random.random_range(0..self.links.len());
                let all =
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
                self.cluster.node(node).sql("postgres", all).map(drop)
            }
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn fail_over(&mut self, name: &'static str, loss: Loss, random: &mut StdRng) -> Result<(), ServerError> {
        self.count(name);
        let old = self.primary;
        match loss {
            Loss::Kill => self.cluster.stop(old, Stop::Kill)?,
            Loss::Switchover => self.cluster.stop(old, Stop::Fast)?,
            Loss::Freeze => self.cluster.node(old).freeze(),
            Loss::Partition => self.links[old].stall(),
        }
        sleep(Duration::from_millis(random.random_range(0..400)));
        // What still streams could get ahead of the one that is chosen.
        for replica in (0..self.links.len()).filter(|node| *node != old) {
            self.cluster.follow_address(replica, "127.0.0.1", NOBODY)?;
        }
        sleep(DETACH);
        let new = self.most_advanced(old)?;
        self.cluster.promote(new)?;
        self.primary = new;
        for other in (0..self.links.len()).filter(|node| *node != old && *node != new) {
            self.cluster.follow(other, new)?;
        }
        self.bring_back(old, loss, random)
    }

    /// The old primary comes back as one, and is made a replica a while later.
    fn bring_back(&mut self, old: usize, loss: Loss, random: &mut StdRng) -> Result<(), ServerError> {
        // The proxy has seen the new primary by then: three probes that time out, and some.
        sleep(Duration::from_millis(2_000));
        let fenced = Instant::now();
        let alive = match loss {
            Loss::Kill => random.random_bool(0.5),
            Loss::Freeze | Loss::Partition => true,
            Loss::Switchover => false,
        };
        match loss {
            Loss::Kill if alive => self.cluster.start_node(old)?,
            Loss::Freeze => self.cluster.node(old).thaw(),
            Loss::Partition => self.links[old].resume(),
            _ => {}
        }
        if alive {
            sleep(Duration::from_millis(random.random_range(500..1_500)));
            self.fenced.push((rows(&self.cluster, old)?, fenced));
            self.cluster.stop(old, Stop::Immediate)?;
        }
        self.cluster.rejoin(old, self.primary)?;
        self.settle()
    }

    /// With synchronous replication to any one, the replica that has received most has all that was
    /// acknowledged.
    fn most_advanced(&self, lost: usize) -> Result<usize, ServerError> {
        let mut best = None;
        for node in (0..self.links.len()).filter(|node| *node != lost) {
            let received = "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0') - '0/0'";
            let received: u64 = self.cluster.node(node).sql("postgres", received)?.parse().unwrap_or(0);
            best = best.max(Some((received, node)));
        }
        Ok(best.map_or(lost, |(_, node)| node))
    }

    /// Makes every server acknowledge writes only when a replica has them, whoever is primary.
    pub fn settle(&self) -> Result<(), ServerError> {
        for node in self.cluster.nodes() {
            node.set("synchronous_standby_names", "ANY 1 (*)")?;
        }
        self.cluster.wait_until_caught_up(self.primary)
    }
}

/// What a server has of the sessions' writes.
pub fn rows(cluster: &PgCluster, node: usize) -> Result<Rows, ServerError> {
    let text = cluster.node(node).sql("app", "SELECT session, row, count(*) FROM log GROUP BY 1, 2")?;
    let read = |line: &str| {
        let mut columns = line.split('|').map(|column| column.parse::<u64>().ok());
        let (session, row, count) = (columns.next()??, columns.next()??, columns.next()??);
        Some(((session as usize, row), count))
    };
    Ok(text.lines().filter_map(read).collect())
}
