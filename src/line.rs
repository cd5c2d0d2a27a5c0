//! The line of statements that wait for a node: first come, first served.
//!
//! Whoever waits holds a [`Ticket`]. When the topology changes all are woken, look again in the
//! order of their tickets, and leave the line once they stand in a pool's queue, which keeps the
//! order from there on.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    task::{Poll, Waker},
};

use parking_lot::Mutex;

/// See the module.
#[derive(Debug, Default)]
pub struct Line {
    queue: Mutex<BTreeMap<u64, Waiter>>,
    length: AtomicUsize,
    next: AtomicU64,
    /// The version of the topology that was published last.
    version: AtomicU64,
}

#[derive(Debug)]
struct Waiter {
    /// The version by which it could not be served; 0 for one that has not looked yet.
    seen: u64,
    waker: Option<Waker>,
}

/// A place in the line; dropping it gives the place up.
#[derive(Debug)]
pub struct Ticket<'a> {
    line: &'a Line,
    number: u64,
}

impl Line {
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the last place.
    pub fn join(&self) -> Ticket<'_> {
        let mut queue = self.queue.lock();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        queue.insert(number, Waiter { seen: 0, waker: None });
        self.length.store(queue.len(), Ordering::Relaxed);
        Ticket { line: self, number }
    }

    /// Takes the place of before again, for one who left the line for a pool that was then replaced.
    pub fn rejoin(&self, number: u64) -> Ticket<'_> {
        let mut queue = self.queue.lock();
        queue.insert(number, Waiter { seen: 0, waker: None });
        self.length.store(queue.len(), Ordering::Relaxed);
        Ticket { line: self, number }
    }

    /// A topology was published: everybody looks again, the first in line first.
    pub fn wake(&self, version: u64) {
        self.version.store(version, Ordering::Release);
        if self.is_empty() {
            return;
        }
        let wakers: Vec<Waker> =
            self.queue.lock().values_mut().filter_map(|waiter| waiter.waker.take()).collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Those behind `number` may have their turn now.
    fn pass(queue: &mut BTreeMap<u64, Waiter>, number: u64) -> Option<Waker> {
        let behind = (Bound::Excluded(number), Bound::Unbounded);
        queue.range_mut(behind).find_map(|(_, waiter)| waiter.waker.take())
    }
}

impl Ticket<'_> {
    /// What [`Line::rejoin`] asks for.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Waits for a topology newer than `version`, which did not serve.
    pub async fn changed(&self, version: u64) {
        std::future::poll_fn(|context| {
            let mut queue = self.line.queue.lock();
            if self.line.version.load(Ordering::Acquire) > version {
                return Poll::Ready(());
            }
            let waiter = queue.get_mut(&self.number).expect("a ticket is in the line until it is dropped");
            let first_look = waiter.seen < version;
            waiter.seen = version;
            waiter.waker = Some(context.waker().clone());
            let next = if first_look { Line::pass(&mut queue, self.number) } else { None };
            drop(queue);
            next.into_iter().for_each(Waker::wake);
            Poll::Pending
        })
        .await;
    }

    /// Waits until all who came earlier have left, or cannot be served by this `version`.
    pub async fn turn(&self, version: u64) {
        std::future::poll_fn(|context| {
            let mut queue = self.line.queue.lock();
            if queue.range(..self.number).all(|(_, earlier)| earlier.seen >= version) {
                return Poll::Ready(());
            }
            let waiter = queue.get_mut(&self.number).expect("a ticket is in the line until it is dropped");
            waiter.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut queue = self.line.queue.lock();
        queue.remove(&self.number);
        self.line.length.store(queue.len(), Ordering::Relaxed);
        let next = Line::pass(&mut queue, self.number);
        drop(queue);
        next.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context};

    use super::*;

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_comes_back_has_the_place_of_before() {
        let line = Line::default();
        let (first, second) = (line.join(), line.join());
        let number = first.number();
        drop(first);
        let first = line.rejoin(number);
        line.wake(7);

        assert!(!is_ready(second.turn(7)));
        drop(first);
        assert!(is_ready(second.turn(7)));
    }

    #[test]
    fn nobody_is_served_before_those_who_came_earlier_have_looked() {
        let line = Line::default();
        let (first, second, third) = (line.join(), line.join(), line.join());
        line.wake(7);

        assert!(is_ready(first.turn(7)));
        assert!(!is_ready(second.turn(7)));
        drop(first);
        assert!(is_ready(second.turn(7)));

        // The second looks and cannot be served: it does not keep the third from it.
        assert!(!is_ready(second.changed(7)));
        assert!(is_ready(third.turn(7)));
        line.wake(8);
        assert!(is_ready(second.changed(7)));
        assert!(!is_ready(third.turn(8)));
    }

    #[test]
    fn a_topology_published_while_nobody_looked_is_not_missed() {
        let line = Line::default();
        line.wake(3);
        let ticket = line.join();
        assert!(is_ready(ticket.changed(2)));
        assert!(!is_ready(ticket.changed(3)));
        assert_eq!(line.len(), 1);
        drop(ticket);
        assert!(line.is_empty());
    }
}
