//! The monitor's own logins at one server: one that takes longer than a probe may is gone on with.
//!
//! A server that is slow and alive would never be asked if every probe began its login anew. One
//! that was waited for through a broken network is stuck in it, though: so each probe also begins
//! a login of its own, and the first that gets through is used.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::protocol::ConnectFault;

/// How many times `monitor.timeout` one login may take.
pub(super) const PATIENCE: u32 = 30;

pub(super) type Login<B> = Pin<Box<dyn Future<Output = Result<B, ConnectFault>> + Send>>;

/// Logins that have not got through yet: two at most at a time. Dropping it closes them.
pub(super) struct Logins<B> {
    /// Begun by an earlier probe, and when.
    slow: Option<(Login<B>, Instant)>,
}

impl<B> Logins<B> {
    pub(super) fn new() -> Self {
        Self { slow: None }
    }

    /// Waits for a login begun `now`, or for an earlier one that gets through before it. Dropping
    /// the future leaves the older of the two to the next call, for as long as `patience` allows.
    pub(super) async fn wait(
        &mut self,
        login: Login<B>,
        now: Instant,
        patience: Duration,
    ) -> Result<B, ConnectFault> {
        self.slow.take_if(|(_, begun)| now.saturating_duration_since(*begun) >= patience);
        let mut fresh = match self.slow {
            Some(_) => Some(login),
            None => {
                self.slow = Some((login, now));
                None
            }
        };
        let outcome = poll_fn(|context| {
            if let Some(Poll::Ready(outcome)) = fresh.as_mut().map(|login| login.as_mut().poll(context)) {
                return Poll::Ready(outcome);
            }
            self.poll_slow(context, fresh.is_some())
        })
        .await;
        self.slow = None;
        outcome
    }

    /// The earlier login's success; its end only if there is no newer one, which knows better.
    fn poll_slow(&mut self, context: &mut Context<'_>, newer: bool) -> Poll<Result<B, ConnectFault>> {
        match self.slow.as_mut().map(|(login, _)| login.as_mut().poll(context)) {
            Some(Poll::Ready(Err(_))) if newer => {
                self.slow = None;
                Poll::Pending
            }
            Some(outcome) => outcome,
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future};
    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// A login that ends when it is told to.
    fn login() -> (oneshot::Sender<Result<u8, ConnectFault>>, Login<u8>) {
        let (end, ended) = oneshot::channel();
        (end, Box::pin(async { ended.await.unwrap_or(Err(ConnectFault::NotReady)) }))
    }

    /// One probe's wait, given up when there is nothing at once.
    fn probe(logins: &mut Logins<u8>, login: Login<u8>, now: Instant) -> Option<Result<u8, ConnectFault>> {
        logins.wait(login, now, LONG).now_or_never()
    }

    #[test]
    fn a_login_that_outlasts_its_probe_serves_a_later_one() {
        let (mut logins, now) = (Logins::new(), Instant::now());
        let (end, slow) = login();
        assert!(probe(&mut logins, slow, now).is_none());
        assert!(probe(&mut logins, Box::pin(future::pending()), now + LONG / 4).is_none());

        end.send(Ok(1)).expect("it is waited for");

        let got = probe(&mut logins, Box::pin(future::pending()), now + LONG / 2);
        assert!(matches!(got, Some(Ok(1))));
    }

    #[test]
    fn a_login_that_is_stuck_keeps_no_later_one_from_getting_through() {
        let (mut logins, now) = (Logins::new(), Instant::now());
        assert!(probe(&mut logins, Box::pin(future::pending()), now).is_none());

        assert!(matches!(probe(&mut logins, Box::pin(future::ready(Ok(2))), now), Some(Ok(2))));
        let refused = Box::pin(future::ready(Err(ConnectFault::TooMany)));
        assert!(matches!(probe(&mut logins, refused, now), Some(Err(ConnectFault::TooMany))));
    }

    #[test]
    fn an_earlier_logins_end_says_nothing_while_a_later_one_is_waited_for() {
        let (mut logins, now) = (Logins::new(), Instant::now());
        let (end, slow) = login();
        assert!(probe(&mut logins, slow, now).is_none());

        drop(end);

        assert!(probe(&mut logins, Box::pin(future::pending()), now).is_none());
        assert!(logins.slow.is_none(), "the next probe's login takes its place");
    }

    #[test]
    fn no_login_is_waited_for_without_end() {
        let (mut logins, now) = (Logins::new(), Instant::now());
        let (end, slow) = login();
        assert!(probe(&mut logins, slow, now).is_none());

        assert!(probe(&mut logins, Box::pin(future::pending()), now + LONG).is_none());

        assert!(end.send(Ok(1)).is_err(), "it was given up");
    }
}
