//! Several sends in one system call, by Linux' io_uring.
//!
//! Containers and hardened systems may forbid it, and old kernels lack it; then there is none.

use std::{io, os::fd::AsRawFd};

use io_uring::{IoUring, Probe, opcode, types};

use super::Flight;

pub struct Ring(IoUring);

impl Ring {
    /// For so many sends at a time, all of them by the thread that makes it.
    ///
    /// # Errors
    /// When the system does not give one, or one without sends (Linux before 5.6).
    pub fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(entries)
            // Linux before 6.0 knows no such wishes.
            .or_else(|_| IoUring::new(entries))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if probe.is_supported(opcode::Send::CODE) {
            Ok(Self(ring))
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Sends `flights`, which lie in `bytes`, and notes what the kernel says of each.
    ///
    /// # Errors
    /// When the ring is of no use any more; nothing is said of flights that were not sent.
    pub fn send(&mut self, flights: &mut [Flight], bytes: &[u8]) -> io::Result<()> {
        for (index, flight) in flights.iter().enumerate() {
            let bytes = &bytes[flight.bytes.clone()];
            let socket = types::Fd(flight.socket.tcp().as_raw_fd());
            // Nothing is waited for: all is done, or refused, when the call returns.
            let send = opcode::Send::new(socket, bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
                .build()
                .user_data(index as u64);
            #[expect(
                unsafe_code,
                reason = "a ring cannot see how long bytes and socket live: until it has answered"
            )]
            // SAFETY: `bytes` and the sockets are borrowed for longer than `settle`, which returns when every send
            // that was submitted is answered.
            let pushed = unsafe { self.0.submission().push(&send) };
            pushed.map_err(io::Error::other)?;
        }
        self.settle(flights)
    }

    /// Submits what was pushed and waits for the answers.
    fn settle(&mut self, flights: &mut [Flight]) -> io::Result<()> {
        let mut due = flights.len();
        loop {
            let submitted = self.0.submit_and_wait(due);
            for answer in self.0.completion() {
                flights[answer.user_data() as usize].said = Some(answer.result());
                due -= 1;
            }
            if due == 0 {
                return Ok(());
            }
            // A signal, or no memory at the moment, is no reason to give up; and while a send is under way its bytes
            // have to stay.
            if let Err(error) = submitted
                && !is_passing(&error)
                && self.0.submission().len() == due
            {
                return Err(error);
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}
