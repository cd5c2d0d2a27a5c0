//! New connections, and room for them among those of the node's other pools.

use std::{sync::Arc, time::Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::{CheckoutFault, Count, NodePool, idle::Pooled};
use crate::{
    protocol::{Backend, ConnectFault, Protocol},
    session::cancel::CancelTarget,
};

/// Shares of its lifetime by which a connection's end is spread, so that connections opened
/// together do not end together.
const LIFETIME_JITTER: f64 = 0.2;

/// What came to whoever had no room for a new connection.
enum Room<P: Protocol> {
    Share(OwnedSemaphorePermit),
    /// Without a place.
    Connection(Box<Pooled<P>>),
}

impl<P: Protocol> NodePool<P> {
    /// A new connection, or one that came back while there was no room for a new one.
    pub(super) async fn open(&self) -> Result<Box<Pooled<P>>, CheckoutFault> {
        match self.room().await {
            Room::Share(share) => self.open_with(share).await,
            Room::Connection(pooled) => Ok(pooled),
        }
    }

    pub(super) async fn open_with(
        &self,
        share: OwnedSemaphorePermit,
    ) -> Result<Box<Pooled<P>>, CheckoutFault> {
        let identity = self.identity.load_full();
        let link = self.link.load_full();
        let refusals = &self.share.refusals;
        refusals.may_ask(Instant::now()).map_err(CheckoutFault::Paused)?;
        let connected = P::Backend::connect(&self.share.address, &link, &identity, self.role).await;
        match &connected {
            // Who is refused by name and password was let in so far.
            Ok(_) | Err(ConnectFault::Refused { .. }) => refusals.forget(),
            Err(ConnectFault::Unreachable(_) | ConnectFault::NotReady) => {
                refusals.add(false, Instant::now());
            }
            Err(ConnectFault::TooMany) => {
                refusals.add(true, Instant::now());
                // A place on the server is worth more to who waits than to who may come back.
                self.relieve_siblings();
            }
        }
        let backend = connected?;
        let target = CancelTarget { address: self.share.address.clone(), key: backend.cancel_key() };
        let now = Instant::now();
        let expires = self
            .limits
            .max_lifetime
            .map(|life| now + life.mul_f64(1.0 - LIFETIME_JITTER * rand::random::<f64>()));
        Ok(Box::new(Pooled {
            backend,
            target: Arc::new(target),
            expires,
            opened: now,
            vouched: false,
            idle_since: now,
            _share: share,
            place: None,
        }))
    }

    /// Closes an idle connection of another pool of the node, or asks for one that is kept softly: the same
    /// user's first, who may have a limit of its own.
    fn relieve_siblings(&self) {
        let mut siblings: Vec<_> = self.siblings.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        let user = self.identity.load().user.clone();
        siblings.sort_by_key(|sibling| sibling.identity.load().user != user);
        for sibling in siblings {
            if sibling.idle.close_one() || sibling.ask_back() {
                break;
            }
        }
    }

    /// A share of the node's connections: a free one, or that of another pool's idle connection. Or a connection
    /// of this pool, whichever comes first.
    async fn room(&self) -> Room<P> {
        if let Some(permit) = self.share.try_permit() {
            return Room::Share(permit);
        }
        // From here on another pool that gets one back gives it up, and this one hands it on.
        let _starving = (self.share.starve(), Count::up(&self.starving));
        let _wanting = Count::up(&self.wanting);
        self.relieve_siblings();
        // Whoever gives one back first; the caller's deadline bounds the wait.
        let mut permit = std::pin::pin!(self.share.permit());
        loop {
            let returned = self.returned.notified();
            if let Some(pooled) = self.idle.take(Instant::now(), |_| true) {
                return Room::Connection(pooled);
            }
            tokio::select! {
                permit = &mut permit => return Room::Share(permit),
                () = returned => {}
            }
        }
    }
}
