//! The pools of one user and database, and what all pools of a cluster share.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Instant,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{CheckoutFault, Held, Limits, NodePool, NodeShare, Siblings};
use crate::{
    protocol::{Identity, Protocol},
    topology::{Node, Role},
};

/// Address and role: a replica's connections are opened otherwise than a primary's.
pub type NodeKey = (Arc<str>, Role);

/// A node's limit, and the pools that it bounds.
type SharedNode<P> = (Arc<NodeShare>, Siblings<P>);

/// The pools of one user and database, on every node.
pub struct Pools<P: Protocol> {
    pub identity: Arc<ArcSwap<Identity<P>>>,
    link: Arc<ArcSwap<P::Link>>,
    nodes: ArcSwap<HashMap<NodeKey, Arc<NodePool<P>>>>,
    shared: Arc<Shares<P>>,
}

/// What the pools of all users share.
pub struct Shares<P: Protocol> {
    limits: ArcSwap<Limits>,
    /// Threads that connections are kept apart by.
    pub(super) workers: usize,
    nodes: Mutex<HashMap<Arc<str>, SharedNode<P>>>,
}

impl<P: Protocol> Shares<P> {
    pub fn new(limits: Limits, workers: usize) -> Self {
        Self { limits: ArcSwap::from_pointee(limits), workers, nodes: Mutex::new(HashMap::new()) }
    }

    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    pub fn share(&self, address: &Arc<str>) -> Arc<NodeShare> {
        self.entry(address).0
    }

    /// Every pool that somebody has a connection of, with those that were replaced since.
    pub fn alive(&self) -> Vec<Arc<NodePool<P>>> {
        let siblings: Vec<_> = self.nodes.lock().values().map(|(_, siblings)| siblings.clone()).collect();
        siblings
            .iter()
            .flat_map(|siblings| siblings.lock().iter().filter_map(Weak::upgrade).collect::<Vec<_>>())
            .collect()
    }

    /// Forgets nodes that were taken away, once nobody has a pool of theirs.
    pub fn forget(&self, gone: impl Fn(&str) -> bool) {
        self.nodes.lock().retain(|address, (_, siblings)| {
            !gone(address) || siblings.lock().iter().any(|sibling| sibling.strong_count() > 0)
        });
    }

    fn entry(&self, address: &Arc<str>) -> SharedNode<P> {
        self.nodes
            .lock()
            .entry(address.clone())
            .or_insert_with(|| (Arc::new(NodeShare::new(address.clone())), Siblings::default()))
            .clone()
    }
}

impl<P: Protocol> Pools<P> {
    pub fn new(identity: Identity<P>, link: Arc<ArcSwap<P::Link>>, shared: Arc<Shares<P>>) -> Self {
        Self {
            identity: Arc::new(ArcSwap::from_pointee(identity)),
            link,
            nodes: ArcSwap::from_pointee(HashMap::new()),
            shared,
        }
    }

    /// The pool of one node, made at its first use.
    pub fn node(&self, address: &Arc<str>, role: Role) -> Arc<NodePool<P>> {
        let key = (address.clone(), role);
        if let Some(pool) = self.nodes.load().get(&key) {
            return pool.clone();
        }
        let (share, siblings) = self.shared.entry(address);
        let made = Arc::new(NodePool::new(
            share,
            self.identity.clone(),
            self.link.clone(),
            role,
            siblings.clone(),
            &self.shared,
        ));
        self.nodes.rcu(|nodes| {
            let mut nodes = HashMap::clone(nodes);
            nodes.entry(key.clone()).or_insert_with(|| made.clone());
            nodes
        });
        let kept = self.nodes.load().get(&key).cloned().unwrap_or(made);
        let mut siblings = siblings.lock();
        siblings.retain(|sibling| sibling.strong_count() > 0);
        siblings.push(Arc::downgrade(&kept));
        kept
    }

    /// Whether there is no connection, and nobody waits for one.
    pub fn is_empty(&self) -> bool {
        self.nodes.load().values().all(|pool| {
            let status = pool.status();
            status.idle + status.in_use + status.waiters == 0
        })
    }

    pub fn all(&self) -> Vec<(NodeKey, Arc<NodePool<P>>)> {
        self.nodes.load().iter().map(|(key, pool)| (key.clone(), pool.clone())).collect()
    }

    /// Replaces the pools that `stale` picks: connections in use end when they come back.
    pub fn replace(&self, stale: impl Fn(&str, Role) -> bool) {
        let mut dropped = Vec::new();
        self.nodes.rcu(|nodes| {
            dropped.clear();
            let mut kept = HashMap::clone(nodes);
            kept.retain(|(address, role), pool| {
                let stale = stale(address, *role);
                if stale {
                    dropped.push(pool.clone());
                }
                !stale
            });
            kept
        });
        for pool in dropped {
            pool.close();
        }
    }

    /// Takes a connection to a node, on this worker and ready for a request.
    ///
    /// # Errors
    /// When none was to be had within `checkout_timeout`. Dropping the future gives up the place
    /// in the queue.
    pub async fn checkout(&self, node: &Node) -> Result<Held<P>, CheckoutFault> {
        let pool = self.node(&node.address, node.role);
        Held::take(pool, node, Instant::now()).await
    }
}
