//! One database of a cluster, and what is known of it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::{floors::SharedFloors, sql::catalog::Catalog};

/// One database of the cluster: its catalog, as last read.
pub struct Database {
    id: u64,
    pub name: Arc<str>,
    catalog: ArcSwap<Catalog>,
    /// DDL passed through: the catalog has to be read again.
    pub stale: AtomicBool,
    /// lastval and its like were asked for here: sessions keep connections that drew a value.
    pub sequences_matter: AtomicBool,
    /// ROW_COUNT() or FOUND_ROWS() were asked for here: sessions set aside what their last
    /// statement ran on.
    pub counts_matter: AtomicBool,
    read_at: AtomicU64,
    read: Notify,
    /// Reading the catalog has failed in a way that will not mend itself.
    hopeless: AtomicBool,
    /// How often names came to stand for something else, and what of it the catalog shows.
    redefined: AtomicU64,
    known: AtomicU64,
    /// What `global` reads must not be behind of.
    pub floors: Arc<SharedFloors>,
    /// A session has begun here.
    entered: AtomicBool,
}

impl Database {
    pub fn new(id: u64, name: Arc<str>) -> Self {
        Self {
            id,
            name,
            catalog: ArcSwap::from_pointee(Catalog::empty()),
            stale: AtomicBool::new(true),
            sequences_matter: AtomicBool::new(false),
            counts_matter: AtomicBool::new(false),
            read_at: AtomicU64::new(0),
            read: Notify::new(),
            hopeless: AtomicBool::new(false),
            redefined: AtomicU64::new(0),
            known: AtomicU64::new(0),
            floors: Arc::default(),
            entered: AtomicBool::new(false),
        }
    }

    /// A session begins here: from now on it is remembered.
    pub fn enter(&self) {
        self.entered.store(true, Ordering::Relaxed);
    }

    pub fn was_entered(&self) -> bool {
        self.entered.load(Ordering::Relaxed)
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn catalog(&self) -> arc_swap::Guard<Arc<Catalog>> {
        self.catalog.load()
    }

    pub fn set_catalog(&self, catalog: Catalog) {
        if !self.catalog.load().loaded || self.catalog.load().version != catalog.version {
            self.catalog.store(Arc::new(catalog));
        }
        self.read_at.fetch_add(1, Ordering::Release);
        self.read.notify_waiters();
    }

    /// The catalog cannot be read: nobody waits for it until it has been.
    pub fn give_up(&self) {
        self.hopeless.store(true, Ordering::Release);
        self.read.notify_waiters();
    }

    /// Resolves when the catalog has been read, or cannot be.
    pub async fn settled(&self) {
        loop {
            let read = self.read.notified();
            if self.catalog.load().loaded || self.hopeless.load(Ordering::Acquire) {
                return;
            }
            read.await;
        }
    }

    /// DDL passed through after which a name may stand for something that the catalog does not tell.
    pub fn redefined(&self) {
        self.redefined.fetch_add(1, Ordering::AcqRel);
    }

    pub fn redefinitions(&self) -> u64 {
        self.redefined.load(Ordering::Acquire)
    }

    /// The catalog shows the first `redefinitions` of them, or could not be read at all: then nobody
    /// waits for it.
    pub fn knows(&self, redefinitions: u64) {
        self.known.fetch_max(redefinitions, Ordering::AcqRel);
    }

    pub fn known_redefinitions(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    pub fn has_new_names(&self) -> bool {
        self.redefined.load(Ordering::Relaxed) > self.known.load(Ordering::Relaxed)
    }

    /// Grows with every reading of the catalog.
    pub fn readings(&self) -> u64 {
        self.read_at.load(Ordering::Acquire)
    }
}
