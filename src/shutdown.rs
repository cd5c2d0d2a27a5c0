//! From running to stopped: the phases, the signals that move them, and what systemd is told.

use std::{io, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    time,
};
use tracing::{info, warn};

/// Where the process is on its way out. Only moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    #[default]
    Running,
    /// Nothing new is accepted; open transactions may end.
    Draining,
    /// Everything ends now.
    Stopping,
}

/// A handle to the phase: everybody who holds one may wait for it and move it. Works across
/// runtimes; clones share the phase.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    phase: Arc<watch::Sender<Phase>>,
    /// Another process serves the admin doors from now on.
    yielded: Arc<watch::Sender<bool>>,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Stops accepting and lets transactions end. Does nothing when already past that.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Closes the admin doors, which otherwise stay open until the end: another process has them.
    pub fn yield_doors(&self) {
        self.yielded.send_replace(true);
    }

    /// Whether another process serves what this one did.
    pub fn has_yielded(&self) -> bool {
        *self.yielded.borrow()
    }

    /// Answers once nobody new is to be let in by the admin doors: the process stops, or has yielded
    /// them.
    pub async fn doors_close(&self) {
        let mut yielded = self.yielded.subscribe();
        tokio::select! {
            () = self.stopping() => {}
            // The sender is held by this handle.
            _ = yielded.wait_for(|yielded| *yielded) => {}
        }
    }

    /// Ends everything at once.
    pub fn stop(&self) {
        self.advance(Phase::Stopping);
    }

    /// Answers once the phase is [`Phase::Draining`] or later. Dropping it changes nothing.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Answers once the phase is [`Phase::Stopping`]. Dropping it changes nothing.
    pub async fn stopping(&self) {
        self.reached(Phase::Stopping).await;
    }

    /// Waits for `ended` (every session's end), but at most `timeout`, nor longer than until
    /// somebody says stop; then the phase is [`Phase::Stopping`].
    pub async fn finish(&self, ended: impl Future<Output = ()>, timeout: Duration) -> Ending {
        self.drain();
        let ending = tokio::select! {
            // What has ended by itself was not cut off, whatever else is ready.
            biased;
            () = ended => Ending::Drained,
            () = self.stopping() => Ending::Told,
            () = time::sleep(timeout) => Ending::TimedOut,
        };
        self.stop();
        ending
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = to > *phase;
            *phase = (*phase).max(to);
            forward
        });
    }

    async fn reached(&self, phase: Phase) {
        let reached = self.phase.subscribe().wait_for(|now| *now >= phase).await.is_ok();
        debug_assert!(reached, "the sender lives as long as this handle");
    }
}

/// How a drain came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every session had ended.
    Drained,
    /// `shutdown_timeout` ran out.
    TimedOut,
    /// A second signal, or SHUTDOWN in the console.
    Told,
}

/// The signals of a daemon: SIGTERM and SIGINT drain, the second of them ends at once, SIGHUP
/// asks for a reload. SIGUSR1 and SIGUSR2, by which PgBouncer's users pause and resume, would end the
/// process if nobody caught them.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: [Signal; 2],
}

impl Signals {
    /// Catches the signals from now on: call it before listening, so that none kills.
    ///
    /// # Errors
    /// When the system refuses a handler. Panics outside a runtime with I/O enabled.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    /// Serves the signals until the phase is [`Phase::Stopping`]. `reload` is notified for each
    /// SIGHUP; those that come while one is waiting are one.
    pub async fn serve(mut self, shutdown: &Shutdown, reload: &Notify) {
        let [user1, user2] = &mut self.user;
        loop {
            let name = tokio::select! {
                () = shutdown.stopping() => return,
                Some(()) = user1.recv() => {
                    info!(signal = "SIGUSR1", "nothing was done: PAUSE is a command of the console");
                    continue;
                }
                Some(()) = user2.recv() => {
                    info!(signal = "SIGUSR2", "nothing was done: RESUME is a command of the console");
                    continue;
                }
                Some(()) = self.terminate.recv() => "SIGTERM",
                Some(()) = self.interrupt.recv() => "SIGINT",
                Some(()) = self.hangup.recv() => {
                    reload.notify_one();
                    continue;
                }
            };
            match shutdown.phase() {
                Phase::Running => {
                    info!(signal = name, "draining: no new clients, open transactions may end");
                    shutdown.drain();
                }
                Phase::Draining | Phase::Stopping => {
                    warn!(signal = name, "stopping at once");
                    shutdown.stop();
                }
            }
        }
    }
}

/// What a service manager with `Type=notify` or `Type=notify-reload` is told; without one,
/// nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Listening; also the end of a reload.
    Ready,
    Reloading,
    Stopping,
}

/// Tells the service manager. A manager that cannot be reached is logged, never an error: the
/// proxy serves all the same.
pub fn notify(notice: Notice) {
    let told = match notice {
        Notice::Ready => sd_notify::notify(false, &[NotifyState::Ready]),
        // systemd 253 and later insists on the time of the reload's begin.
        Notice::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(false, &[NotifyState::Reloading, now])),
        Notice::Stopping => sd_notify::notify(false, &[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        warn!(%error, ?notice, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime for the test").block_on(future)
    }

    #[test]
    fn the_phase_only_moves_forward_and_every_clone_sees_it() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();

        shutdown.stop();
        shutdown.drain();

        assert_eq!(clone.phase(), Phase::Stopping);
        block_on(async { tokio::join!(clone.draining(), clone.stopping()) });
    }

    #[test]
    fn a_drain_ends_with_the_last_session_the_timeout_or_a_second_word() {
        let long = Duration::from_secs(600);
        let told = Shutdown::new();
        told.stop();

        let endings = block_on(async {
            [
                Shutdown::new().finish(ready(()), long).await,
                Shutdown::new().finish(pending(), Duration::from_millis(1)).await,
                told.finish(pending(), long).await,
            ]
        });

        assert_eq!(endings, [Ending::Drained, Ending::TimedOut, Ending::Told]);
        assert_eq!(told.phase(), Phase::Stopping);
    }

    #[test]
    fn signals_reload_drain_and_then_stop() {
        let send = |number| {
            // SAFETY: raise has no preconditions; a handler for each of these is installed.
            #[expect(unsafe_code, reason = "only the process itself can raise its signals")]
            // SAFETY: the signals raised have handlers by now; raise touches no memory.
            let raised = unsafe { libc::raise(number) };
            assert_eq!(raised, 0);
        };
        let (shutdown, reload) = (Shutdown::new(), Notify::new());

        block_on(async {
            let signals = Signals::install().expect("handlers can be installed");
            let steps = async {
                send(libc::SIGUSR1);
                send(libc::SIGUSR2);
                send(libc::SIGHUP);
                reload.notified().await;
                assert_eq!(shutdown.phase(), Phase::Running);
                send(libc::SIGTERM);
                shutdown.draining().await;
                assert_eq!(shutdown.phase(), Phase::Draining);
                send(libc::SIGINT);
                shutdown.stopping().await;
            };
            let served = async { tokio::join!(signals.serve(&shutdown, &reload), steps) };
            time::timeout(Duration::from_secs(10), served).await.expect("the signals arrive");
        });
    }
}
