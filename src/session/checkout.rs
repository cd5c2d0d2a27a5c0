//! Finds a node for a request and takes a connection from its pool, or waits for either.

use std::{sync::Arc, task::Poll, time::Instant};

use rand::Rng;

use super::{
    Session,
    cancel::Entry,
    execute::Attempt,
    hold::{GRACE, Hold},
};
use crate::{
    cluster::Cluster,
    pool::{CheckoutFault, Fate, Held, NodePool},
    protocol::{Backend, ConnectFault, Protocol, Refused, RefusedCause, Request},
    refusal::{Refusal, RefusalKind},
    route::{self, Choice, Consistency, Floor, Nowhere, Policy, Question, Why},
    sql::{Access, Intent, hints::Target},
    standing::Watch,
    topology::{Incarnation, Node, NodeId, Role, Snapshot, board::Traffic},
};

/// Why a connection was not to be had.
enum TakeFault {
    NextNode,
    /// The topology has changed meanwhile.
    LookAgain,
    Refusal(Box<Refusal>),
}

/// Whether a new connection is to the server that probes measure.
enum Vouched {
    Yes,
    /// A probe will tell.
    NotYet,
    /// It could not be asked.
    Broken,
}

impl From<Refusal> for TakeFault {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(Box::new(refusal))
    }
}

impl<P: Protocol> Session<P> {
    /// A connection from a pool of the node that routing chooses, waiting for a node as long as
    /// statements may wait.
    pub(super) async fn checkout(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        let snapshot = self.snapshot();
        if let Ok(node) = self.choose(&request.intent, attempt, &snapshot)
            && (self.cluster.line.is_empty() || snapshot.primary != Some(node))
        {
            match self.take_from_pool(&request.intent, &snapshot, node, attempt, &mut None).await {
                Ok(held) => return Ok(held),
                Err(TakeFault::NextNode) => attempt.exclude.push(node),
                Err(TakeFault::LookAgain) => {}
                Err(TakeFault::Refusal(refusal)) => return Err(*refusal),
            }
        }
        // Rare and long: its state is kept out of every statement's future.
        Box::pin(self.checkout_patiently(&request.intent, attempt)).await
    }

    async fn checkout_patiently(
        &mut self,
        intent: &Intent,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        let cluster = self.cluster.clone();
        let mut hold: Option<Hold<'_>> = None;
        loop {
            let snapshot = cluster.topology.load_full();
            match self.choose(intent, attempt, &snapshot) {
                Ok(node) => {
                    if snapshot.primary == Some(node)
                        && !self.has_turn(&cluster, &mut hold, &snapshot).await?
                    {
                        continue;
                    }
                    match self.take_from_pool(intent, &snapshot, node, attempt, &mut hold).await {
                        Ok(held) => return Ok(held),
                        Err(TakeFault::NextNode) => attempt.exclude.push(node),
                        Err(TakeFault::LookAgain) => {}
                        Err(TakeFault::Refusal(refusal)) => return Err(*refusal),
                    }
                }
                Err(Nowhere::UnknownNode) => {
                    return Err(Refusal::new(
                        RefusalKind::UnknownNode,
                        "the hint names no node that may be used",
                    ));
                }
                Err(nowhere) => {
                    let hold = match &mut hold {
                        Some(hold) => hold,
                        None => hold.insert(Hold::begin(&cluster, nowhere)?),
                    };
                    hold.nowhere = nowhere;
                    cluster.topology.want_position();
                    // A node that failed this attempt may be back when the topology has changed.
                    attempt.exclude.clear();
                    let until = hold.until;
                    let ticket = hold.ticket(&cluster.line);
                    self.patiently(until, ticket.changed(snapshot.version))
                        .await?
                        .ok_or_else(|| hold.refusal(&cluster.topology.load()))?;
                    attempt.waited = attempt.began.elapsed();
                }
            }
        }
    }

    /// Waits until those who came earlier have been served by the primary of `snapshot`. `false`:
    /// that took a while, look again.
    async fn has_turn<'c>(
        &mut self,
        cluster: &'c Arc<Cluster<P>>,
        hold: &mut Option<Hold<'c>>,
        snapshot: &Snapshot,
    ) -> Result<bool, Refusal> {
        if cluster.line.is_empty() {
            return Ok(true);
        }
        let hold = match hold {
            Some(hold) => hold,
            None => hold.insert(Hold::begin(cluster, Nowhere::NoPrimary)?),
        };
        let until = hold.until;
        let ticket = hold.ticket(&cluster.line);
        self.patiently(until, ticket.turn(snapshot.version))
            .await?
            .ok_or_else(|| hold.refusal(&cluster.topology.load()))?;
        Ok(cluster.topology.load().version == snapshot.version)
    }

    fn choose(
        &mut self,
        intent: &Intent,
        attempt: &mut Attempt,
        snapshot: &Snapshot,
    ) -> Result<NodeId, Nowhere> {
        // A clock read less for the many that neither waited nor are asked again.
        let now = if attempt.waited.is_zero() && !attempt.again { attempt.began } else { Instant::now() };
        let consistency = self.consistency(intent, &attempt.policy);
        self.renew_floors(snapshot);
        self.reads |= attempt.run.access == Access::Read;
        if attempt.run.access == Access::Read && self.seen.is_some() {
            self.settle_seen(snapshot);
            if consistency != Consistency::Monotonic || intent.hints.target.is_some() {
                self.leave_seen(snapshot);
            } else if let Some(target) = self.seen.as_ref().map(|seen| seen.target.clone()) {
                match self.ask_route(intent, attempt, snapshot, Some(&target), now) {
                    Ok(choice) => return Ok(self.chosen(attempt, choice)),
                    Err(_) => self.leave_seen(snapshot),
                }
            }
        }
        let choice = self.ask_route(intent, attempt, snapshot, intent.hints.target.as_ref(), now)?;
        Ok(self.chosen(attempt, choice))
    }

    pub(super) fn ask_route(
        &mut self,
        intent: &Intent,
        attempt: &Attempt,
        snapshot: &Snapshot,
        target: Option<&Target>,
        now: Instant,
    ) -> Result<Choice, Nowhere> {
        let consistency = self.consistency(intent, &attempt.policy);
        let mut random = self.random.clone();
        let floor = self.floor_of(intent, consistency, snapshot);
        let question = Question {
            access: attempt.run.access,
            target,
            consistency,
            floor: &floor,
            max_lag: intent.hints.max_lag.or(self.state.own.now.max_lag),
            exclude: &attempt.exclude,
        };
        let choice = route::choose(&question, snapshot, &attempt.policy, now, &mut || random.random::<f64>());
        drop(floor);
        self.random = random;
        choice
    }

    fn chosen(&self, attempt: &mut Attempt, choice: Choice) -> NodeId {
        if choice.why == Why::Floor {
            self.cluster.metrics.causal_fallbacks.inc();
            self.cluster.topology.want_position();
        }
        attempt.why = Some(choice.why);
        choice.node
    }

    /// Takes a connection to a node. The place in the line is given up as soon as there is one in
    /// the pool's queue.
    async fn take_from_pool(
        &mut self,
        intent: &Intent,
        snapshot: &Snapshot,
        id: NodeId,
        attempt: &mut Attempt,
        hold: &mut Option<Hold<'_>>,
    ) -> Result<Held<P>, TakeFault> {
        let node = snapshot.node(id);
        if let Some(kept) = self.take_kept_at(node) {
            if let Some(hold) = hold {
                hold.ticket = None;
            }
            attempt.kept = true;
            return Ok(kept);
        }
        let asked = if attempt.again || !attempt.waited.is_zero() { Instant::now() } else { attempt.began };
        let pool = &self.known(&node.address, node.role).pool;
        let mut held = match Held::take_at_once(pool, node, asked) {
            Some(held) => {
                if let Some(hold) = hold {
                    hold.ticket = None;
                }
                held
            }
            None => Box::pin(self.wait_for_pool(node, asked, attempt, hold)).await?,
        };
        // The pool may have been made anew while the topology changed: whoever changes its standing
        // finds it from now on, or has published before.
        let topology = &self.cluster.topology;
        if !topology.is_current(snapshot) && !topology.load().allows(held.address(), held.role) {
            held.release(Fate::Reuse, Instant::now());
            return Err(TakeFault::LookAgain);
        }
        if held.is_new() && self.relies_on_position(intent, snapshot, &attempt.policy) {
            match Box::pin(self.vouch(&mut held, node)).await {
                Vouched::Yes => {}
                Vouched::NotYet => {
                    held.release(Fate::Reuse, Instant::now());
                    return Err(TakeFault::NextNode);
                }
                Vouched::Broken => return Err(TakeFault::NextNode),
            }
        }
        Ok(held)
    }

    /// Opens a connection, or waits in the pool's queue for one.
    async fn wait_for_pool(
        &mut self,
        node: &Node,
        asked: Instant,
        attempt: &mut Attempt,
        hold: &mut Option<Hold<'_>>,
    ) -> Result<Held<P>, TakeFault> {
        let pool = self.known(&node.address, node.role).pool.clone();
        let mut checkout = std::pin::pin!(Held::wait(pool.clone(), node, asked));
        let first = futures_util::poll!(checkout.as_mut());
        if let Some(hold) = hold {
            hold.ticket = None;
        }
        let taken = match first {
            Poll::Ready(taken) => taken,
            Poll::Pending => {
                // The pool's own deadline is earlier.
                let until = asked + self.config.load().pool.checkout_timeout + GRACE;
                let entry = self.registered.entry.clone();
                let checkout = while_usable(&pool, &entry, checkout);
                let taken = self.patiently(until, checkout).await?;
                attempt.waited = attempt.began.elapsed();
                self.cluster.metrics.pool_wait_seconds.observe(asked.elapsed());
                match taken {
                    Some(taken) => taken.unwrap_or(Err(CheckoutFault::Closed)),
                    None => Err(CheckoutFault::TimedOut),
                }
            }
        };
        taken.map_err(|fault| self.checkout_fault(fault, node, attempt))
    }

    /// The kept connection, where it is to the node that a read may use anyway: with another one the
    /// session could wait for what it holds itself.
    fn take_kept_at(&mut self, node: &Node) -> Option<Held<P>> {
        let topology = &self.cluster.topology;
        self.kept.take_if(|kept| {
            *kept.address() == node.address
                && kept.role == node.role
                && !topology.load().forbids(kept.address(), kept.role)
        })
    }

    /// Whether the choice of the node rests on how far it is.
    fn relies_on_position(&self, intent: &Intent, snapshot: &Snapshot, policy: &Policy) -> bool {
        let bounded = intent.hints.max_lag.or(self.state.own.now.max_lag).is_some();
        bounded || *self.floor_of(intent, self.consistency(intent, policy), snapshot) != Floor::None
    }

    /// Whether what is known of a replica's position holds for this new connection: it may be to
    /// a server that was restarted, further back than its former self (hard case 4).
    async fn vouch(&self, held: &mut Held<P>, node: &Node) -> Vouched {
        if held.role == Role::Primary {
            held.vouch();
            return Vouched::Yes;
        }
        let known = node.incarnation.as_ref();
        let (pool, timeout) = (held.pool.clone(), self.cluster.config.load().monitor.timeout);
        let asked = while_usable(&pool, &self.registered.entry, held.backend().started());
        let Ok(Some(Ok(started))) = tokio::time::timeout(timeout, asked).await else {
            return Vouched::Broken;
        };
        let same = match started {
            Some(started) => {
                if let Some(known) = known.filter(|known| known.started != started) {
                    let other = Incarnation { system: known.system.clone(), started };
                    self.cluster.topology.report(&node.address, Traffic::Opened(other));
                }
                known.is_some_and(|known| known.started == started)
            }
            // The server does not say: a probe sent after the connection was opened does.
            None => node.measured.is_some_and(|(sent, _)| sent > held.opened()),
        };
        if same {
            held.vouch();
            return Vouched::Yes;
        }
        self.cluster.topology.want_position();
        Vouched::NotYet
    }

    fn checkout_fault(&self, fault: CheckoutFault, node: &Node, attempt: &mut Attempt) -> TakeFault {
        match fault {
            CheckoutFault::Closed => TakeFault::LookAgain,
            CheckoutFault::TimedOut => Refusal::new(
                RefusalKind::PoolTimeout,
                format!("no connection to {} became free within pool.checkout_timeout", node.address),
            )
            .into(),
            CheckoutFault::Connect(ConnectFault::TooMany) | CheckoutFault::Paused(_) => TakeFault::NextNode,
            CheckoutFault::Connect(ConnectFault::Refused { raw, code }) => {
                attempt.refused = Some(Refused { raw, cause: RefusedCause::MaybeStale, code });
                let is_primary = self.cluster.topology.load().primary == Some(node.id);
                if is_primary || attempt.run.access == Access::Write {
                    Refusal::new(RefusalKind::ServerLost, "the server refused the login").into()
                } else {
                    TakeFault::NextNode
                }
            }
            CheckoutFault::Connect(ConnectFault::NotReady | ConnectFault::Unreachable(_)) => {
                self.cluster.topology.report(&node.address, Traffic::Refused);
                TakeFault::NextNode
            }
        }
    }
}

/// Waits for what a node does only as long as it may be used and answers probes.
async fn while_usable<P: Protocol, T>(
    pool: &NodePool<P>,
    entry: &Entry,
    event: impl Future<Output = T>,
) -> Option<T> {
    let watch = Watch::new(&pool.standing, entry);
    let mut event = std::pin::pin!(event);
    std::future::poll_fn(|context| match event.as_mut().poll(context) {
        Poll::Ready(happened) => Poll::Ready(Some(happened)),
        Poll::Pending => watch.poll_over(context, true).map(|()| None),
    })
    .await
}
