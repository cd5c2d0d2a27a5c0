//! One database of a cluster, and what is known of it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::{floors::SharedFloors, sql::catalog::Catalog};

/// Definitions of one kind that passed through, and how many of them the catalog tells of.
#[derive(Debug, Default)]
pub struct Definitions {
    so_far: AtomicU64,
    known: AtomicU64,
}

impl Definitions {
    pub fn add(&self) {
        self.so_far.fetch_add(1, Ordering::AcqRel);
    }

    pub fn so_far(&self) -> u64 {
        self.so_far.load(Ordering::Acquire)
    }

    pub fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// The catalog shows the first `count` of them, or could not be read at all: then nobody waits for it.
    pub fn knows(&self, count: u64) {
        self.known.fetch_max(count, Ordering::AcqRel);
    }

    pub fn has_new(&self) -> bool {
        self.so_far.load(Ordering::Relaxed) > self.known.load(Ordering::Relaxed)
    }
}

/// A request under way that may commit definitions; others are in doubt by it from [`Self::begin`] until it is
/// dropped.
pub struct Doubt {
    database: Arc<Database>,
    begun: AtomicBool,
}

impl Doubt {
    pub fn of(database: &Arc<Database>) -> Self {
        Self { database: database.clone(), begun: AtomicBool::new(false) }
    }

    /// Sequentially consistent, as is asking: whoever has heard of the request's answer finds it.
    pub fn begin(&self) {
        if !self.begun.swap(true, Ordering::SeqCst) {
            self.database.committing.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if *self.begun.get_mut() {
            self.database.committing.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// One database of the cluster: its catalog, as last read.
pub struct Database {
    id: u64,
    pub name: Arc<str>,
    catalog: ArcSwap<Catalog>,
    /// That of the catalog or, for a moment, of the one before it.
    catalog_version: AtomicU64,
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
    /// After which a name may stand for something that the catalog does not tell.
    pub names: Definitions,
    /// After which statements may run other code than the catalog tells.
    pub code: Definitions,
    /// Requests under way that may have committed such.
    pub committing: AtomicUsize,
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
            catalog_version: AtomicU64::new(Catalog::empty().version),
            stale: AtomicBool::new(true),
            sequences_matter: AtomicBool::new(false),
            counts_matter: AtomicBool::new(false),
            read_at: AtomicU64::new(0),
            read: Notify::new(),
            hopeless: AtomicBool::new(false),
            names: Definitions::default(),
            code: Definitions::default(),
            committing: AtomicUsize::new(0),
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

    pub fn catalog_version(&self) -> u64 {
        self.catalog_version.load(Ordering::Acquire)
    }

    pub fn set_catalog(&self, catalog: Catalog) {
        if !self.catalog.load().loaded || self.catalog.load().version != catalog.version {
            let version = catalog.version;
            self.catalog.store(Arc::new(catalog));
            self.catalog_version.store(version, Ordering::Release);
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

    /// Grows with every reading of the catalog.
    pub fn readings(&self) -> u64 {
        self.read_at.load(Ordering::Acquire)
    }
}
