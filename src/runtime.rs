//! The data plane's threads: one current-thread runtime per core.
//!
//! A connection stays on the worker it was handed to: no work stealing, no task hop per statement
//! (15–25 % less CPU per transaction than one shared runtime). Between two statements it may be asked
//! to go on on another worker: see [`balance`].

mod balance;

use std::{
    cell::{Cell, OnceCell},
    fs::File,
    io::{self, Read, Seek},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use self::balance::{Balance, Order};
use crate::flights;

/// How often the workers' loads are compared.
const TURN: Duration = Duration::from_millis(200);

/// Deep expressions recurse in the SQL parser, and in freeing what it made.
const STACK: usize = 8 * 1024 * 1024;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
    static DEPARTURES: OnceCell<Arc<Departures>> = const { OnceCell::new() };
}

/// The index of the worker this runs on; `usize::MAX` on the control plane's thread.
pub fn worker() -> usize {
    WORKER.get()
}

/// The worker on which a session of this one is to go on, if one is: whoever asks is taken to go,
/// unless it `may` not.
pub fn departure(may: impl FnOnce() -> bool) -> Option<usize> {
    DEPARTURES.with(|departures| departures.get()?.take(may))
}

/// Sessions that a worker is to give up.
#[derive(Default)]
struct Departures {
    /// Where to in the upper half, how many in the lower.
    order: AtomicU64,
    /// How many it has given up so far.
    taken: AtomicU64,
}

impl Departures {
    fn order(&self, to: usize, sessions: u32) {
        self.order.store((to as u64) << 32 | u64::from(sessions), Ordering::Relaxed);
    }

    fn take(&self, may: impl FnOnce() -> bool) -> Option<usize> {
        let order = self.order.load(Ordering::Relaxed);
        let left = order as u32;
        if left == 0 || !may() {
            return None;
        }
        // Given anew meanwhile: the next one to ask goes.
        self.order.compare_exchange(order, order - 1, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some((order >> 32) as usize)
    }
}

/// The worker threads. Dropping it ends them, with all that runs on them.
pub struct Workers {
    places: Arc<Places>,
    threads: Vec<Worker>,
}

struct Worker {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Where sessions run, for whoever hands them over; without a claim on the threads.
pub struct Places {
    places: Vec<Place>,
    next: AtomicUsize,
    balance: Mutex<Balance>,
}

struct Place {
    handle: Handle,
    departures: Arc<Departures>,
    clock: CpuClock,
}

/// How long a thread has been on a core.
struct CpuClock {
    /// `/proc/PID/task/TID/schedstat`, see proc(5): nanoseconds on a core come first. `None`: the system
    /// has no such file.
    schedstat: Option<Mutex<File>>,
    handle: Handle,
}

impl CpuClock {
    /// Time on a core; where that is not to be known, time not asleep.
    fn read(&self) -> Duration {
        let read = |file: &Mutex<File>| {
            let (mut file, mut text) = (file.lock(), String::new());
            file.rewind().ok()?;
            file.read_to_string(&mut text).ok()?;
            text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
        };
        self.schedstat
            .as_ref()
            .and_then(read)
            .unwrap_or_else(|| self.handle.metrics().worker_total_busy_duration(0))
    }
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let started = (0..count.get()).map(Worker::start).collect::<io::Result<Vec<_>>>()?;
        let (threads, places): (Vec<_>, Vec<_>) = started.into_iter().unzip();
        let balance = Mutex::new(Balance::new(places.len()));
        Ok(Self { places: Arc::new(Places { places, next: AtomicUsize::new(0), balance }), threads })
    }

    pub fn count(&self) -> usize {
        self.threads.len()
    }

    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }
}

impl Places {
    /// Compares the workers' loads for ever and has sessions moved. On the control plane.
    pub async fn balance(self: Arc<Self>) {
        let (mut before, mut at) = (self.clocks(), Instant::now());
        let mut relieved = None;
        loop {
            tokio::time::sleep(TURN).await;
            let (now, elapsed) = (self.clocks(), at.elapsed().as_secs_f64());
            let busy =
                |(now, before): (&Duration, &Duration)| now.saturating_sub(*before).as_secs_f64() / elapsed;
            let busy: Vec<f64> = now.iter().zip(&before).map(busy).collect();
            (before, at) = (now, Instant::now());
            let order = self.balance.lock().step(&busy);
            if let Some(relieved) = relieved.take() {
                self.relieve(relieved, relieved, 0);
            }
            if let Some(Order { from, to, sessions }) = order {
                self.relieve(from, to, sessions);
                relieved = Some(from);
            }
        }
    }

    /// Has so many sessions of one worker go on on another, as they end statements. What was asked for
    /// before is forgotten.
    pub fn relieve(&self, from: usize, to: usize, sessions: u32) {
        self.places[from].departures.order(to, sessions);
    }

    /// How many sessions have moved so far.
    pub fn moved(&self) -> u64 {
        self.places.iter().map(|place| place.departures.taken.load(Ordering::Relaxed)).sum()
    }

    fn clocks(&self) -> Vec<Duration> {
        self.places.iter().map(|place| place.clock.read()).collect()
    }

    /// The runtime whose turn it is to take a connection that cannot be moved later on.
    pub fn next(&self) -> &Handle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.at(turn % self.places.len())
    }

    /// The runtime for a connection that can.
    pub fn place(&self) -> &Handle {
        self.at(self.balance.lock().place())
    }

    /// The runtime of a worker that [`departure`] has named.
    pub fn at(&self, worker: usize) -> &Handle {
        &self.places[worker].handle
    }
}

impl Worker {
    fn start(index: usize) -> io::Result<(Self, Place)> {
        let runtime = Builder::new_current_thread().enable_all().on_thread_park(flights::leave).build()?;
        let handle = runtime.handle().clone();
        let departures = Arc::<Departures>::default();
        let (stop, stopped) = oneshot::channel();
        let (opened, schedstat) = std::sync::mpsc::sync_channel(1);
        let own = departures.clone();
        let thread =
            thread::Builder::new().name(format!("worker-{index}")).stack_size(STACK).spawn(move || {
                WORKER.set(index);
                DEPARTURES.with(|departures| departures.get_or_init(|| own).clone());
                let _ = opened.send(File::open("/proc/thread-self/schedstat").ok());
                flights::keep();
                let _ = runtime.block_on(stopped);
                {
                    let _entered = runtime.enter();
                    flights::leave();
                }
                // What is left has been asked to end, and was given its time.
                runtime.shutdown_background();
            })?;
        let schedstat = schedstat.recv().ok().flatten().map(Mutex::new);
        let clock = CpuClock { schedstat, handle: handle.clone() };
        Ok((Self { stop: Some(stop), thread: Some(thread) }, Place { handle, departures, clock }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the runtime.
            let _ = thread.join();
        }
    }
}
