//! The nodes as Patroni names them, and its word on who leads.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::Monitor;
use crate::{
    config::{self, Endpoint, Members},
    discovery::{DiscoveryFault, Membership, Patroni},
    protocol::Protocol,
    topology,
};

/// How often Patroni is asked: its own view changes no faster than its agents' loop, but for a
/// failover.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(1);

/// … and while there is no primary, or the one there is has trouble.
const DISCOVERY_FAST: Duration = Duration::from_millis(100);

/// Rounds without any answer after which Patroni's last word counts no more.
const SILENT_ROUNDS: u32 = 3;

impl<P: Protocol> Monitor<P> {
    /// Starts to ask Patroni, where it is to be asked.
    pub(super) fn start_discovery(self: &Arc<Self>, config: &config::Cluster) -> JoinHandle<()> {
        let source = match &config.members {
            Members::Nodes(_) => None,
            Members::Patroni(source) => Some(source.clone()),
        };
        let monitor = self.clone();
        tokio::spawn(async move {
            match source {
                Some(source) => monitor.follow_patroni(Patroni::new(source)).await,
                None => monitor.board.lock().set_leader(None, Instant::now()),
            }
        })
    }

    async fn follow_patroni(&self, mut patroni: Patroni) {
        let mut silent = 0;
        loop {
            let timeout = self.cluster.config.load().monitor.timeout;
            match patroni.ask(timeout).await {
                Ok(membership) => {
                    let again = silent >= SILENT_ROUNDS;
                    if again {
                        tracing::info!(cluster = %self.cluster.name, "patroni answers again");
                    }
                    silent = 0;
                    self.take_membership(membership, again);
                }
                Err(faults) => {
                    silent += 1;
                    if silent == SILENT_ROUNDS {
                        self.lose_patroni(&faults);
                    }
                }
            }
            let hurried =
                self.cluster.topology.load().primary().is_none_or(|node| node.state != topology::State::Up);
            tokio::time::sleep(if hurried { DISCOVERY_FAST } else { DISCOVERY_PAUSE }).await;
        }
    }

    /// `again`: its last word had ceased to count.
    fn take_membership(&self, membership: Membership, again: bool) {
        let mut members = self.members.lock();
        let nodes = members.as_ref().is_none_or(|known| known.nodes != membership.nodes);
        let leader = members.as_ref().map(|known| &known.leader) != Some(&membership.leader);
        let word = membership.leader.clone();
        *members = Some(membership);
        drop(members);
        if nodes {
            self.reconfigure();
            self.cluster.topology.nudge.notify_one();
        }
        if leader {
            tracing::info!(cluster = %self.cluster.name, leader = word.as_deref().unwrap_or("nobody"), "patroni's leader");
        }
        if nodes || leader || again {
            self.board.lock().set_leader(Some(word), Instant::now());
            self.publish();
            self.hurry.notify_waiters();
        }
    }

    /// Nobody answers for Patroni: the nodes stay, and who leads the servers' own words tell.
    fn lose_patroni(&self, faults: &[(Endpoint, DiscoveryFault)]) {
        for (endpoint, fault) in faults {
            tracing::warn!(cluster = %self.cluster.name, %endpoint, "patroni does not answer: {fault}");
        }
        self.board.lock().set_leader(None, Instant::now());
        self.publish();
    }
}
