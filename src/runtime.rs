//! The data plane's threads: one current-thread runtime per core.
//!
//! A connection stays on the worker it was handed to: no work stealing, no task hop per statement
//! (15–25 % less CPU per transaction than one shared runtime).

use std::{
    cell::Cell,
    io,
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// Deep expressions recurse in the SQL parser, and in freeing what it made.
const STACK: usize = 8 * 1024 * 1024;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The index of the worker this runs on; `usize::MAX` on the control plane's thread.
pub fn worker() -> usize {
    WORKER.get()
}

/// The worker threads. Dropping it ends them, with all that runs on them.
pub struct Workers {
    workers: Vec<Worker>,
    next: AtomicUsize,
}

struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let workers = (0..count.get()).map(Worker::start).collect::<io::Result<_>>()?;
        Ok(Self { workers, next: AtomicUsize::new(0) })
    }

    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// The runtime whose turn it is to take a new connection.
    pub fn next(&self) -> &Handle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.workers[turn % self.workers.len()].handle
    }
}

impl Worker {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread =
            thread::Builder::new().name(format!("worker-{index}")).stack_size(STACK).spawn(move || {
                WORKER.set(index);
                let _ = runtime.block_on(stopped);
                // What is left has been asked to end, and was given its time.
                runtime.shutdown_background();
            })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
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
