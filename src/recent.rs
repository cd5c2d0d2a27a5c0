//! The last routed statements, for people to look at: by fingerprint, never with a literal.
//!
//! Off unless `admin.recent_statements` says how many. Then every statement takes a lock for as
//! long as it takes to store a few numbers.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use crate::{
    route::Why,
    sql::{Access, Reason},
};

/// What may be kept at most.
pub const MAX: usize = 1000;

/// One answered statement.
#[derive(Clone, Debug)]
pub struct Routed {
    pub at: SystemTime,
    pub fingerprint: u64,
    pub node: Arc<str>,
    pub access: Access,
    pub reason: Reason,
    /// How the node was chosen; `None` where it was not: a transaction's, or a pinned one.
    pub why: Option<Why>,
    pub waited: Duration,
    /// From its arrival to the end of its answer.
    pub took: Duration,
}

/// Statements of one cluster, the latest last. Bounded by [`MAX`].
#[derive(Debug, Default)]
pub struct Recent {
    limit: AtomicUsize,
    kept: Mutex<VecDeque<Routed>>,
}

impl Recent {
    /// How many are kept from now on; 0 forgets all and turns it off.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.min(MAX);
        let mut kept = self.kept.lock();
        self.limit.store(limit, Ordering::Relaxed);
        let surplus = kept.len().saturating_sub(limit);
        kept.drain(..surplus);
        kept.shrink_to(limit);
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Keeps what `routed` makes, if anything is to be kept.
    pub fn add(&self, routed: impl FnOnce() -> Routed) {
        if self.limit() == 0 {
            return;
        }
        let routed = routed();
        let mut kept = self.kept.lock();
        // Looked at again: it may have been turned off in between.
        let limit = self.limit();
        if limit == 0 {
            return;
        }
        while kept.len() >= limit {
            kept.pop_front();
        }
        kept.push_back(routed);
    }

    /// Oldest first.
    pub fn all(&self) -> Vec<Routed> {
        self.kept.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(fingerprint: u64) -> Routed {
        Routed {
            at: SystemTime::UNIX_EPOCH,
            fingerprint,
            node: "a:5432".into(),
            access: Access::Read,
            reason: Reason::Read,
            why: Some(Why::Replica),
            waited: Duration::ZERO,
            took: Duration::from_millis(1),
        }
    }

    fn kept(recent: &Recent) -> Vec<u64> {
        recent.all().iter().map(|routed| routed.fingerprint).collect()
    }

    #[test]
    fn only_the_latest_are_kept_and_none_while_it_is_off() {
        let recent = Recent::default();
        recent.add(|| unreachable!("it is off"));
        recent.set_limit(3);
        (0..5).for_each(|number| recent.add(|| routed(number)));
        assert_eq!(kept(&recent), [2, 3, 4]);

        recent.set_limit(2);
        assert_eq!(kept(&recent), [3, 4]);
        recent.set_limit(0);

        assert!(recent.all().is_empty());
        recent.set_limit(usize::MAX);
        assert_eq!(recent.limit(), MAX);
    }
}
