//! What became of a COMMIT whose answer was lost with its server: the new primary is asked.
//!
//! Its word counts only under hard case 2's conditions. An id that it has never given to anybody,
//! or that was rolled back, means that the transaction is gone. "Committed" is believed of an id
//! that lay below the bound which the new primary named while it was still a replica of the lost
//! one: above it the id may be another transaction's, given anew after the promotion. A server
//! that merely restarted is not asked at all: it gives the ids of lost transactions anew as well.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Session,
    execute::{Attempt, Next},
    hold::Hold,
    recover::in_doubt_refusal,
};
use crate::{
    pool::{Fate, Held},
    protocol::{Answer, Backend, Frontend, Protocol, Reply, Request, Transaction, TransactionFate},
    refusal::{Refusal, RefusalKind},
    route::Nowhere,
    sql::{Effect, Intent},
    topology::{Horizon, Node, ProbeNumber, Role, Snapshot, State},
};

/// Between two attempts to ask a new primary that could not be asked.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A COMMIT that was sent and not answered, of a transaction whose id is known.
pub(super) struct LostCommit {
    id: u64,
    /// The server that it was sent to, and the timeline that it was on.
    address: Arc<str>,
    timeline: u32,
    /// The last probe sent when it was lost.
    after: ProbeNumber,
}

/// Who could know of it.
enum Successor<'a> {
    /// It will be seen.
    Awaited,
    /// The server goes on, has restarted, or was followed by one whose history is not known to
    /// hold its own.
    Nobody,
    Found(&'a Node, Horizon),
}

impl LostCommit {
    fn successor<'s>(&self, snapshot: &'s Snapshot) -> Successor<'s> {
        let Some(node) = snapshot.primary() else { return Successor::Awaited };
        if *node.address == *self.address {
            // It may be dead, and nobody have noticed yet.
            let answered = node.measured.is_some_and(|(_, number)| number > self.after);
            return if answered { Successor::Nobody } else { Successor::Awaited };
        }
        match node.horizon {
            _ if !matches!(node.state, State::Up | State::Suspect) => Successor::Awaited,
            Some(horizon) if horizon.timeline == self.timeline => Successor::Found(node, horizon),
            _ => Successor::Nobody,
        }
    }

    /// What the new primary's word is worth.
    fn believe(&self, fate: TransactionFate, horizon: Horizon) -> TransactionFate {
        match fate {
            TransactionFate::Committed if self.id >= horizon.below => TransactionFate::Unknown,
            fate => fate,
        }
    }
}

impl<P: Protocol> Session<P> {
    /// Whether a request's transaction should say its id: a plain COMMIT of one that has written.
    pub(super) fn wants_id(&self, intent: &Intent, role: Role) -> bool {
        matches!(intent.effects[..], [Effect::Commit { chain: false }])
            && intent.statements == 1
            && role == Role::Primary
            && self.state.transaction == Transaction::Open
            && self.state.commits(intent).is_some()
            && self.cluster.config.load().failover.commit_outcome
    }

    /// The COMMIT that a connection was lost with, if its fate can be asked for.
    pub(super) fn lost_commit(&self, request: &Request<P::Wire>, held: &mut Held<P>) -> Option<LostCommit> {
        if !self.wants_id(&request.intent, held.role) || self.frontend.text(request).is_none() {
            return None;
        }
        let topology = &self.cluster.topology;
        Some(LostCommit {
            id: held.backend().transaction_id()?,
            timeline: topology.load().find(held.address())?.timeline?,
            address: held.address().clone(),
            after: topology.probes.current(),
        })
    }

    /// Answers the COMMIT by what became of it, as soon as somebody can tell.
    pub(super) async fn settle_commit(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &Attempt,
        commit: LostCommit,
    ) -> Next {
        let (fate, held) = self.fate_of(&commit).await;
        self.cluster.metrics.commit_settled(fate);
        tracing::info!(
            cluster = %self.cluster.name,
            user = %self.registered.entry.user,
            node = %commit.address,
            transaction = commit.id,
            ?fate,
            "asked what became of a commit whose answer was lost"
        );
        match (fate, held) {
            (TransactionFate::Committed, Some(held)) => self.confirm(request, attempt, held).await,
            (TransactionFate::RolledBack, _) => {
                self.state.lose_transaction(Some(&request.intent));
                Next::Over(self.refuse(request, rolled_back_refusal(&commit.address)).await)
            }
            _ => {
                self.state.lose_transaction(Some(&request.intent));
                Next::Over(self.refuse(request, in_doubt_refusal(&commit.address)).await)
            }
        }
    }

    /// Waits for a server that can tell, as long as statements wait for a primary, and asks it.
    async fn fate_of(&mut self, commit: &LostCommit) -> (TransactionFate, Option<Held<P>>) {
        let cluster = self.cluster.clone();
        let Ok(hold) = Hold::begin(&cluster, Nowhere::NoPrimary) else {
            return (TransactionFate::Unknown, None);
        };
        loop {
            let changed = cluster.topology.changed.notified();
            let snapshot = cluster.topology.load_full();
            match commit.successor(&snapshot) {
                Successor::Nobody => return (TransactionFate::Unknown, None),
                Successor::Found(node, horizon) => {
                    if let Some((fate, held)) = self.ask(commit, node).await {
                        return (commit.believe(fate, horizon), Some(held));
                    }
                }
                Successor::Awaited => {}
            }
            let news = tokio::time::timeout(ASK_AGAIN, changed);
            if !matches!(self.patiently(hold.until, news).await, Ok(Some(_))) {
                return (TransactionFate::Unknown, None);
            }
        }
    }

    /// `None`: it could not be asked.
    async fn ask(&mut self, commit: &LostCommit, node: &Node) -> Option<(TransactionFate, Held<P>)> {
        let timeout = self.cluster.config.load().monitor.timeout;
        let pool = self.known(&node.address, node.role).pool.clone();
        let asked = async {
            let mut held = Held::take(pool, node, Instant::now()).await.ok()?;
            let fate = held.backend().fate(commit.id).await.ok()?;
            Some((fate, held))
        };
        let (fate, held) = tokio::time::timeout(timeout, asked).await.ok()??;
        // What it says counts as long as it is the primary.
        (!self.cluster.topology.load().forbids(held.address(), held.role)).then_some((fate, held))
    }

    /// The client gets the answer that was lost.
    async fn confirm(&mut self, request: &Request<P::Wire>, attempt: &Attempt, held: Held<P>) -> Next {
        let noted = self.begin_writes(&request.intent, false);
        let reply = Reply {
            transaction: Transaction::Idle,
            failed: false,
            wrote: None,
            told_id: false,
            done: Vec::new(),
            begun_none: false,
            lost: false,
            warned: false,
        };
        self.state.learn(&request.intent, reply.transaction, reply.failed, true);
        self.wrote(&held, &reply, noted);
        let address = held.address().clone();
        self.count(&request.intent, attempt, &address, held.role);
        held.release(Fate::Reuse, Instant::now());
        Next::Over(self.frontend.answer(request, Answer::Done, Transaction::Idle).await)
    }
}

fn rolled_back_refusal(address: &str) -> Refusal {
    Refusal::new(
        RefusalKind::ServerLost,
        format!("the server {address} was lost, and the transaction was rolled back"),
    )
    .with_hint("The new primary does not have it; the transaction can be run again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: fn() -> LostCommit =
        || LostCommit { id: 100, address: "a:1".into(), timeline: 3, after: ProbeNumber(5) };

    #[test]
    fn committed_is_believed_only_of_ids_that_the_replica_had_heard_of() {
        use TransactionFate::{Committed, RolledBack, Unknown};
        for (below, said, believed) in [
            (101, Committed, Committed),
            (100, Committed, Unknown),
            (726, Committed, Committed),
            (99, Committed, Unknown),
            (99, RolledBack, RolledBack),
            (101, RolledBack, RolledBack),
            (101, Unknown, Unknown),
        ] {
            assert_eq!(COMMIT().believe(said, Horizon { timeline: 3, below }), believed, "{below} {said:?}");
        }
    }
}
