//! What people want of a cluster, and what they want to know of its past.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::topology::board::Event;

/// Events kept for people to look at; the oldest go first.
const MAX_RECORDED: usize = 256;

/// Orders that the monitor has not taken yet.
const MAX_ORDERS: usize = 64;

/// A cluster's pause, its orders and its recent past.
#[derive(Default)]
pub struct Operator {
    pub pause: Pause,
    /// Bounded by [`MAX_ORDERS`].
    orders: Mutex<Vec<(Arc<str>, Order)>>,
    /// Bounded by [`MAX_RECORDED`].
    events: Mutex<VecDeque<Recorded>>,
    /// Cancel requests handed on to peers lately. Bounded by [`MAX_HANDED_ON`].
    handed_on: Mutex<VecDeque<(Instant, u32)>>,
}

/// Cancel requests that are remembered, and for how long: longer than they take from peer to peer.
const MAX_HANDED_ON: usize = 256;
const HANDED_ON_FOR: Duration = Duration::from_secs(2);

/// The console's PAUSE: new statements wait.
#[derive(Default)]
pub struct Pause {
    paused: AtomicBool,
    /// Wakes who waits for RESUME, in the order of asking.
    pub resumed: Notify,
}

/// What a person wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Drain,
    Undrain,
    Ban,
    Unban,
}

/// Something that happened, and when.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub at: SystemTime,
    pub event: Event,
}

impl Pause {
    /// Sequentially consistent, as is [`crate::session::cancel::Entry::set_activity`].
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    pub fn set(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        if !paused {
            self.resumed.notify_waiters();
        }
    }
}

impl Operator {
    /// Leaves an order for the monitor, which has to be nudged. `false`: it does not keep up.
    pub fn order(&self, node: Arc<str>, order: Order) -> bool {
        let mut orders = self.orders.lock();
        let room = orders.len() < MAX_ORDERS;
        if room {
            orders.push((node, order));
        }
        room
    }

    pub fn take_orders(&self) -> Vec<(Arc<str>, Order)> {
        std::mem::take(&mut *self.orders.lock())
    }

    /// Whether a cancel request for this process comes by for the first time; remembers it.
    pub fn is_first(&self, process: u32) -> bool {
        let mut handed_on = self.handed_on.lock();
        handed_on.retain(|(at, _)| at.elapsed() < HANDED_ON_FOR);
        let first = handed_on.len() < MAX_HANDED_ON && handed_on.iter().all(|(_, known)| *known != process);
        if first {
            handed_on.push_back((Instant::now(), process));
        }
        first
    }

    /// Keeps an event for people to look at.
    pub fn record(&self, event: Event) {
        let mut events = self.events.lock();
        if events.len() >= MAX_RECORDED {
            events.pop_front();
        }
        events.push_back(Recorded { at: SystemTime::now(), event });
    }

    /// What happened lately, oldest first.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.events.lock().iter().cloned().collect()
    }
}
