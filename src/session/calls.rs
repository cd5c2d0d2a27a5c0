//! What reaches a session between two requests: what others want of it, and what its server says by itself.

use super::{End, LAST_WORDS, Session, cancel::Call};
use crate::{
    protocol::{Backend, Fault, Frontend, Protocol},
    refusal::{Refusal, RefusalKind},
    sql::Dialect,
    topology::board::Traffic,
};

impl<P: Protocol> Session<P> {
    /// Does what others want. `Some`: the session is over.
    pub(super) async fn heed(&mut self) -> Option<End> {
        let entry = self.registered.entry.clone();
        if entry.is_called(Call::Kill) {
            self.tell_killed().await;
            return Some(End::Ended);
        }
        if self.is_between_transactions() && entry.is_called(Call::Drain) {
            let refusal = Refusal::fatal(RefusalKind::ShuttingDown, "the proxy is shutting down");
            self.dismiss(&refusal).await;
            return Some(End::Ended);
        }
        entry.take(Call::Look);
        entry.take(Call::Limits);
        if entry.is_called(Call::Yield) && self.aside_owes() {
            self.give_up_aside().await;
        }
        self.yield_kept();
        let snapshot = self.snapshot();
        self.release_aside_if_barred(&snapshot);
        if self.kept.as_ref().is_some_and(|kept| snapshot.forbids(kept.address(), kept.role)) {
            // Closed at once: what was open there ends now, whatever the client does.
            if let Some(kept) = self.kept.take() {
                self.lose_previous(&kept);
            }
            if self.state.is_reading() {
                self.state.begin_again();
                return None;
            }
            let refusal = self.lose_kept(None);
            tracing::info!(
                cluster = %self.cluster.name,
                user = %entry.user,
                "ended what was open on a server that is no longer the primary"
            );
            if refusal.fatal {
                self.dismiss(&refusal).await;
                return Some(End::Ended);
            }
        }
        None
    }

    /// Hands on what the kept server connection said by itself; if it has ended, so has what was
    /// in it.
    pub(super) async fn hear_server(&mut self) -> Option<End> {
        let soft = self.is_kept_softly();
        let held = self.kept.as_mut()?;
        match held.backend().pass_on(&mut self.frontend).await {
            Ok(()) => None,
            Err(Fault::Client(_)) => Some(End::Broken),
            Err(_) if soft => {
                if let Some(held) = self.kept.take() {
                    self.lose_previous(&held);
                }
                None
            }
            Err(_) if self.state.is_reading() => {
                self.cluster.topology.report(held.address(), Traffic::Broken);
                self.kept = None;
                self.state.begin_again();
                None
            }
            Err(fault) => {
                self.cluster.topology.report(held.address(), Traffic::Broken);
                let stopped = match &fault {
                    Fault::Refused(refused) => refused.code.starts_with(b"57P"),
                    _ => true,
                };
                if stopped && !self.state.is_pinned() {
                    // The client hears of it when it goes on.
                    self.kept = None;
                    self.state.lose_transaction(None);
                    self.last_words = if let Fault::Refused(refused) = fault { Some(refused) } else { None };
                    return None;
                }
                self.frontend_hears_of_loss(fault).await;
                Some(End::Ended)
            }
        }
    }

    /// As with the server itself, the connection ends with the server's last words.
    async fn frontend_hears_of_loss(&mut self, fault: Fault) {
        self.kept = None;
        match fault {
            Fault::Refused(refused) => {
                let _ = tokio::time::timeout(LAST_WORDS, self.frontend.farewell_raw(&refused.raw)).await;
            }
            // A client of MySQL's takes whatever comes for the answer to its next command.
            _ if P::DIALECT == Dialect::Mysql => {
                self.cluster.metrics.error(RefusalKind::ServerLost.label());
            }
            _ => {
                let refusal =
                    Refusal::fatal(RefusalKind::ServerLost, "the server closed the connection unexpectedly");
                self.dismiss(&refusal).await;
            }
        }
    }
}
