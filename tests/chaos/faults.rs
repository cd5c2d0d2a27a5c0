//! What is done to the servers meanwhile, one thing after the other.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use pointsman::demo::servers::{ServerError, Stop};
use rand::{Rng, rngs::StdRng};

use crate::{Proxy, history::Rows, link::Link, servers::Servers, sessions::Primaries};

/// The session number of whoever writes past the proxy. No row of it may ever be found in the
/// surviving primary.
const OUTSIDER: usize = 1_000_000;
/// More than the new primary has written meanwhile: a former one is not the newer for that.
const OUTSIDE_ROWS: u64 = 1_500;
/// How long the proxy may take to find a new primary: logins are slow on a machine with much to do.
const ELECTED_WITHIN: Duration = Duration::from_secs(60);

/// The servers and the links that the proxy reaches them by.
pub struct Stage {
    pub servers: Box<dyn Servers>,
    pub links: Vec<Link>,
    pub proxy: Proxy,
    pub primary: usize,
    /// What the sessions know of who that is.
    pub primaries: Arc<Primaries>,
    /// Every fault, and when it began.
    pub done: Vec<(Instant, &'static str)>,
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
                self.begin("crash a replica");
                self.restart(replica)?;
                self.settle()
            }
            5 => {
                self.begin("crash a replica behind its former self");
                self.servers.delay_replay(replica, Duration::from_secs(60))?;
                sleep(pause);
                self.restart(replica)?;
                sleep(pause);
                self.servers.delay_replay(replica, Duration::ZERO)?;
                self.settle()
            }
            6 => {
                self.begin("freeze a replica");
                self.servers.freeze(replica);
                sleep(pause * 2);
                self.servers.thaw(replica);
                Ok(())
            }
            7 => {
                self.begin("delay replay");
                self.servers.delay_replay(replica, Duration::from_millis(400))?;
                sleep(pause * 2);
                self.servers.delay_replay(replica, Duration::ZERO)?;
                self.settle()
            }
            8 => {
                self.begin("pause replay");
                self.servers.pause_replay(replica)?;
                sleep(pause);
                self.servers.resume_replay(replica)
            }
            9 => {
                self.begin("break connections");
                self.links[random.random_range(0..self.links.len())].cut();
                Ok(())
            }
            10 => {
                self.begin("stall a link");
                let node = random.random_range(0..self.links.len());
                self.links[node].stall();
                sleep(pause);
                self.links[node].resume();
                Ok(())
            }
            _ => {
                self.begin("terminate sessions");
                let node = random.random_range(0..self.links.len());
                self.servers.end_sessions(node)
            }
        }
    }

    fn begin(&mut self, what: &'static str) {
        self.done.push((Instant::now(), what));
    }

    /// The faults by name, and how often.
    pub fn count(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (_, name) in &self.done {
            *counts.entry(*name).or_default() += 1;
        }
        counts
    }

    /// The last fault that had begun by then.
    pub fn last_before(&self, when: Instant) -> Option<&'static str> {
        self.done.iter().rfind(|(began, _)| *began < when).map(|(_, name)| *name)
    }

    fn fail_over(&mut self, name: &'static str, loss: Loss, random: &mut StdRng) -> Result<(), ServerError> {
        self.begin(name);
        let old = self.primary;
        match loss {
            Loss::Kill => self.servers.stop(old, Stop::Kill)?,
            Loss::Switchover => self.servers.retire(old)?,
            Loss::Freeze => self.servers.freeze(old),
            Loss::Partition => self.links[old].stall(),
        }
        sleep(Duration::from_millis(random.random_range(0..400)));
        self.primary = self.servers.heir(old)?;
        self.primaries.change(self.servers.port(self.primary));
        self.servers.promote(self.primary, old)?;
        self.bring_back(old, loss, random)
    }

    /// The old primary comes back as one, and is made a replica a while later.
    fn bring_back(&mut self, old: usize, loss: Loss, random: &mut StdRng) -> Result<(), ServerError> {
        // Until then it has the old one's word for everything, an operator's `release` included.
        self.wait_until_elected()?;
        let fenced = Instant::now();
        let alive = match loss {
            Loss::Kill => random.random_bool(0.5),
            Loss::Freeze | Loss::Partition => true,
            Loss::Switchover => false,
        };
        match loss {
            Loss::Kill if alive => self.servers.start(old)?,
            Loss::Freeze => self.servers.thaw(old),
            Loss::Partition => self.links[old].resume(),
            _ => {}
        }
        if alive {
            self.servers.release(old)?;
            if random.random_bool(0.5) {
                self.begin("write past the proxy");
                self.servers.write_past_the_proxy(old, OUTSIDER, OUTSIDE_ROWS)?;
            }
            sleep(Duration::from_millis(random.random_range(500..1_500)));
            self.fenced.push((self.servers.rows(old)?, fenced));
            self.servers.stop(old, Stop::Immediate)?;
        }
        self.servers.rejoin(old, self.primary)?;
        self.settle()
    }

    /// Waits until the proxy knows the new primary.
    fn wait_until_elected(&self) -> Result<(), ServerError> {
        let deadline = Instant::now() + ELECTED_WITHIN;
        let heir = self.links[self.primary].address();
        while self.proxy.primary().as_ref() != Some(&heir) {
            if Instant::now() >= deadline {
                let what = format!("the proxy to find the new primary {heir}");
                return Err(ServerError::TimedOut { what, waited: ELECTED_WITHIN });
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn restart(&self, replica: usize) -> Result<(), ServerError> {
        self.servers.stop(replica, Stop::Immediate)?;
        self.servers.start(replica)
    }

    /// The next fault finds all replicas where the primary is: what one of them alone had received
    /// is lost to a crash of both.
    fn settle(&self) -> Result<(), ServerError> {
        self.servers.settle(self.primary)
    }
}
