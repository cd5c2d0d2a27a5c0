//! Connections that are no session yet: how many there may be, and who goes when there are more.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Those that may always be there, however few clients `limits.clients` allows: so many may well
/// log in at one time.
const ALWAYS: usize = 64;

/// The connections of one cluster that have not logged in yet. Many that say nothing must not keep
/// others out: where there are too many, the oldest has to go.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Those that have not shown who they are, by age.
    strangers: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next: AtomicUsize,
    count: AtomicUsize,
}

/// A connection's place among them; dropping it gives the place up.
#[derive(Debug)]
pub struct Arrival {
    arrivals: Arc<Arrivals>,
    number: u64,
    /// It has to go.
    shed: Arc<Notify>,
}

impl Arrivals {
    /// Lets one more in; `clients` is `limits.clients`.
    pub fn enter(self: &Arc<Self>, clients: usize) -> Arrival {
        let number = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        let shed = Arc::<Notify>::default();
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut strangers = self.strangers.lock();
        strangers.insert(number, shed.clone());
        let excess = strangers.len().saturating_sub(clients.max(ALWAYS));
        send_away(&mut strangers, excess);
        drop(strangers);
        Arrival { arrivals: self.clone(), number, shed }
    }

    /// Sends a quarter of those away that have been there for longest: the system has no descriptor
    /// left for anybody else.
    pub fn make_room(&self) {
        let mut strangers = self.strangers.lock();
        let quarter = strangers.len().div_ceil(4);
        send_away(&mut strangers, quarter);
    }

    /// All that are no session yet.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn send_away(strangers: &mut BTreeMap<u64, Arc<Notify>>, count: usize) {
    for _ in 0..count {
        let Some((_, oldest)) = strangers.pop_first() else { return };
        oldest.notify_one();
    }
}

impl Arrival {
    /// Answers when it has to go.
    pub async fn shed(&self) {
        self.shed.notified().await;
    }

    /// It has shown who it is, and stays.
    pub fn is_known(&self) {
        self.arrivals.strangers.lock().remove(&self.number);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.is_known();
        self.arrivals.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn gone(arrivals: &[Arrival]) -> Vec<usize> {
        let told = |at: &usize| arrivals[*at].shed().now_or_never().is_some();
        (0..arrivals.len()).filter(told).collect()
    }

    #[test]
    fn where_there_are_too_many_the_oldest_strangers_go() {
        let all = Arc::new(Arrivals::default());
        let mut here: Vec<Arrival> = (0..100).map(|_| all.enter(100)).collect();
        assert_eq!(gone(&here), [0; 0]);

        here[0].is_known();
        here.extend((0..3).map(|_| all.enter(100)));
        assert_eq!(gone(&here), [1, 2]);
        assert_eq!(all.len(), 103, "until they have gone");

        all.make_room();
        assert_eq!(gone(&here), (3..28).collect::<Vec<_>>());
        drop(here);
        assert!(all.is_empty());
        let few: Vec<Arrival> = (0..ALWAYS).map(|_| all.enter(1)).collect();
        assert_eq!(gone(&few), [0; 0]);
    }
}
