//! Small flights of bytes that leave together, when all who were ready have run.
//!
//! A send passes through the kernel's network code down to whoever it wakes, who often runs next on the same
//! core: behind it little of the worker's code is left in the caches, and it is gone through anew for the next
//! session. So a worker keeps what its sessions send, hands it to the kernel before it sleeps, and where the
//! system has io_uring in one system call. That takes a sixth off the CPU of a point select
//! (docs/benchmarks.md).
//!
//! Nobody waits for long: a worker keeps [`BATCH`] flights at most, those that have overtaken them included.

#[cfg(target_os = "linux")]
mod ring;

use std::{cell::RefCell, future::poll_fn, io, ops::Range, sync::Arc, time::Duration};

#[cfg(target_os = "linux")]
use self::ring::Ring;
use crate::stream::{Socket, Stage};

/// Flights that leave together at most, and that the first of them waits for.
const BATCH: usize = 32;

/// What is longer goes by itself, in bytes.
const SHORT: usize = 4096;

/// How often the rest of a flight asks whether its connection is still anybody's.
const LINGER: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(5) };

thread_local! {
    /// `None` where nobody would let them leave.
    static FLIGHTS: RefCell<Option<Flights>> = const { RefCell::new(None) };
}

/// What a worker's sessions have sent since it slept last.
#[derive(Default)]
struct Flights {
    waiting: Vec<Flight>,
    /// Others that have left since the first of them came.
    overtaken: usize,
    /// Of all of them, one behind the other.
    bytes: Vec<u8>,
    #[cfg(target_os = "linux")]
    ring: Option<Ring>,
}

struct Flight {
    socket: Arc<Socket>,
    /// Where it lies among those that wait.
    bytes: Range<usize>,
    /// What the kernel has said of it, as [`send(2)`] or an error's negative number.
    ///
    /// [`send(2)`]: https://man7.org/linux/man-pages/man2/send.2.html
    said: Option<i32>,
}

/// Has this thread keep flights, whose runtime calls [`leave`] before it sleeps.
pub fn keep() {
    let flights = Flights {
        #[cfg(target_os = "linux")]
        ring: Ring::new(BATCH as u32)
            .inspect_err(|error| tracing::debug!(%error, "no io_uring here: each flight is a system call"))
            .ok(),
        ..Flights::default()
    };
    FLIGHTS.set(Some(flights));
}

/// Keeps a short flight until [`leave`]; `false`: its owner has to write it.
pub fn add(socket: &Arc<Socket>, bytes: &[u8]) -> bool {
    if bytes.len() > SHORT || socket.stage() != Stage::Clear {
        return false;
    }
    FLIGHTS.with_borrow_mut(|flights| {
        let Some(flights) = flights else { return false };
        socket.enter(Stage::Waiting);
        let start = flights.bytes.len();
        flights.bytes.extend_from_slice(bytes);
        let bytes = start..flights.bytes.len();
        flights.waiting.push(Flight { socket: socket.clone(), bytes, said: None });
        flights.leave_if_due();
        true
    })
}

/// A flight of this thread's leaves by itself.
#[inline]
pub fn overtake() {
    if_any_wait(|flights| {
        flights.overtaken += 1;
        flights.leave_if_due();
    });
}

/// Hands what this thread keeps to the kernel. Where a kernel takes only a part, this is to be called within a
/// runtime, which writes the rest.
#[inline]
pub fn leave() {
    if_any_wait(Flights::leave);
}

#[inline]
fn if_any_wait(act: fn(&mut Flights)) {
    FLIGHTS.with_borrow_mut(|flights| {
        if let Some(flights) = flights.as_mut().filter(|flights| !flights.waiting.is_empty()) {
            act(flights);
        }
    });
}

impl Flights {
    fn leave_if_due(&mut self) {
        if self.waiting.len() + self.overtaken >= BATCH {
            self.leave();
        }
    }

    fn leave(&mut self) {
        self.leave_together();
        for Flight { socket, bytes, said } in self.waiting.drain(..) {
            let bytes = &self.bytes[bytes];
            let taken = match said {
                Some(count) if count >= 0 => Ok(count as usize),
                Some(error) => Err(io::Error::from_raw_os_error(-error)),
                None => socket.tcp().try_write(bytes),
            };
            settle(socket, bytes, taken);
        }
        self.bytes.clear();
        self.overtaken = 0;
    }

    #[cfg(not(target_os = "linux"))]
    fn leave_together(&mut self) {}

    /// In one system call, where that is less than a call each.
    #[cfg(target_os = "linux")]
    fn leave_together(&mut self) {
        let Some(ring) = self.ring.as_mut().filter(|_| self.waiting.len() > 1) else { return };
        if let Err(error) = ring.send(&mut self.waiting, &self.bytes) {
            tracing::warn!(%error, "io_uring has failed: from here on each flight is a system call");
            self.ring = None;
        }
    }
}

/// Takes note of how much of a flight the kernel has taken.
fn settle(socket: Arc<Socket>, bytes: &[u8], taken: io::Result<usize>) {
    let taken = match taken {
        Ok(count) if count == bytes.len() => return socket.enter(Stage::Clear),
        Ok(count) => count,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
        // Its owner finds that out by reading, or writing again.
        Err(_) => return socket.enter(Stage::Refused),
    };
    socket.enter(Stage::Left);
    tokio::spawn(write_rest(socket, bytes[taken..].to_vec()));
}

/// Writes what the kernel had no room for, as long as anybody has the connection.
async fn write_rest(socket: Arc<Socket>, rest: Vec<u8>) {
    let mut written = 0;
    while written < rest.len() {
        let write = poll_fn(|cx| socket.poll_write_rest(cx, &rest[written..]));
        match tokio::time::timeout(LINGER, write).await {
            Ok(Ok(count)) if count > 0 => written += count,
            // Whoever writes or reads next meets the same.
            Ok(_) => break,
            Err(_) if Arc::strong_count(&socket) == 1 => return,
            Err(_) => {}
        }
    }
    socket.end_rest();
}

#[cfg(test)]
mod tests;
