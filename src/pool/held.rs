//! A connection for as long as a session has it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{CheckoutFault, Fate, NodePool, Pooled};
use crate::{
    protocol::{Backend, Protocol},
    session::cancel::CancelTarget,
    sql::effects::Ends,
    standing::Standing,
    topology::{Load, Node, NodeId, Role},
};

/// How long a connection may take to forget a session's state before it is closed instead.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// A checked-out connection. Dropped without being released it is closed: whatever it was in the
/// middle of, nobody else gets to see it.
pub struct Held<P: Protocol> {
    /// With its place.
    pooled: Option<Box<Pooled<P>>>,
    pub node: NodeId,
    pub role: Role,
    pub pool: Arc<NodePool<P>>,
    load: Arc<Load>,
    busy: bool,
    /// What a cancel request was to end in it: it has to show that it is done with that, or is over.
    cancelled: Option<Ends>,
    /// Something ran in it of which nobody knows what it leaves behind.
    doubted: bool,
    /// The topology's version in which its node was last found to be of use to whoever keeps it.
    fit_in: Option<u64>,
}

impl<P: Protocol> Held<P> {
    /// Takes a connection from `pool`, which is that of `node`.
    ///
    /// # Errors
    /// As [`Pools::checkout`].
    pub async fn take(pool: Arc<NodePool<P>>, node: &Node, now: Instant) -> Result<Self, CheckoutFault> {
        match pool.take_at_once(now) {
            Some(pooled) => Ok(Self::new(pooled, pool, node)),
            None => Self::wait(pool, node, now).await,
        }
    }

    /// The same without waiting: `None` where a connection has to be opened or waited for.
    pub fn take_at_once(pool: &Arc<NodePool<P>>, node: &Node, now: Instant) -> Option<Self> {
        pool.take_at_once(now).map(|pooled| Self::new(pooled, pool.clone(), node))
    }

    /// The same where there is none to be had at once.
    ///
    /// # Errors
    /// As [`Pools::checkout`].
    pub async fn wait(pool: Arc<NodePool<P>>, node: &Node, now: Instant) -> Result<Self, CheckoutFault> {
        let pooled = pool.wait(now).await?;
        Ok(Self::new(pooled, pool, node))
    }

    fn new(pooled: Box<Pooled<P>>, pool: Arc<NodePool<P>>, node: &Node) -> Self {
        Self {
            pooled: Some(pooled),
            node: node.id,
            role: node.role,
            pool,
            load: node.load.clone(),
            busy: false,
            cancelled: None,
            doubted: false,
            fit_in: None,
        }
    }

    fn pooled(&self) -> &Pooled<P> {
        self.pooled.as_ref().expect("held until released")
    }

    pub fn backend(&mut self) -> &mut P::Backend {
        &mut self.pooled.as_mut().expect("held until released").backend
    }

    /// The connection, and whether it may go on answering.
    pub fn serving(&mut self) -> (&mut P::Backend, &Standing) {
        let pooled = self.pooled.as_mut().expect("held until released");
        (&mut pooled.backend, &self.pool.standing)
    }

    pub fn address(&self) -> &Arc<str> {
        &self.pool.share.address
    }

    pub fn cancel_target(&self) -> Arc<CancelTarget> {
        self.pooled().target.clone()
    }

    /// Whether nobody has vouched yet that it is to the server that probes measure.
    pub fn is_new(&self) -> bool {
        !self.pooled().vouched
    }

    pub fn vouch(&mut self) {
        self.pooled.as_mut().expect("held until released").vouched = true;
    }

    pub fn opened(&self) -> Instant {
        self.pooled().opened
    }

    /// A statement begins, or has ended, on it: what node selection calls in flight.
    pub fn set_busy(&mut self, busy: bool) {
        if busy != self.busy {
            self.busy = busy;
            if busy { self.load.begin() } else { self.load.end() }
        }
    }

    /// Whether its node was found to be of use in this version of the topology.
    pub fn is_fit_in(&self, version: u64) -> bool {
        self.fit_in == Some(version)
    }

    pub fn note_fit_in(&mut self, version: u64) {
        self.fit_in = Some(version);
    }

    /// It forgets everything before its next session, however clean it seems.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    pub fn mark_cancelled(&mut self, ends: Ends) {
        self.cancelled = self.cancelled.max(Some(ends));
    }

    pub fn take_cancelled(&mut self) -> Option<Ends> {
        self.cancelled.take_if(|ends| *ends == Ends::Statement)
    }

    /// Gives the connection back.
    pub fn release(mut self, fate: Fate, now: Instant) {
        self.set_busy(false);
        let Some(pooled) = self.pooled.take() else { return };
        // Its server was told to end it, and may do so while it serves somebody else.
        let fate = match fate {
            _ if self.cancelled == Some(Ends::Session) => Fate::Close,
            Fate::Reuse if self.doubted => Fate::Reset,
            fate => fate,
        };
        match fate {
            Fate::Reuse => self.pool.put_back(pooled, now),
            Fate::Close => drop(pooled),
            Fate::Reset => {
                // With its place: nobody waits for less than it has.
                tokio::spawn(reset(pooled, self.pool.clone()));
            }
        }
    }
}

async fn reset<P: Protocol>(mut pooled: Box<Pooled<P>>, pool: Arc<NodePool<P>>) {
    let done = tokio::time::timeout(RESET_TIMEOUT, pooled.backend.reset()).await;
    if matches!(done, Ok(Ok(()))) {
        pool.put_back(pooled, Instant::now());
    }
}

impl<P: Protocol> Drop for Held<P> {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}
