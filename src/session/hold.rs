//! Statements that wait: for a node, for RESUME, for a connection; bounded in number and time.

use std::time::{Duration, Instant};

use super::{
    Session,
    cancel::{Activity, Call},
    execute::Attempt,
};
use crate::{
    cluster::Cluster,
    line::{Line, Ticket},
    protocol::{Frontend, Protocol},
    refusal::{Refusal, RefusalKind},
    route::Nowhere,
    topology::{Node, Snapshot, State},
};

/// What a wait for a pool may take beyond the pool's own deadline.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// A statement that waits for a node: counted, bounded in number and time.
pub(super) struct Hold<'a> {
    pub(super) until: Instant,
    pub(super) nowhere: Nowhere,
    pub(super) ticket: Option<Ticket<'a>>,
    /// The place in the line, also while it is left for a pool's queue.
    place: Option<u64>,
    gauge: &'a prometheus::IntGauge,
}

impl<'a> Hold<'a> {
    pub(super) fn begin<P: Protocol>(cluster: &'a Cluster<P>, nowhere: Nowhere) -> Result<Self, Refusal> {
        let config = cluster.config.load();
        let wait = match nowhere {
            Nowhere::NoReplica => config.pool.checkout_timeout,
            _ => config.failover.hold,
        };
        let gauge = &cluster.metrics.held;
        gauge.inc();
        let hold = Self { until: Instant::now() + wait, nowhere, ticket: None, place: None, gauge };
        // Those that wait for a RESUME have no place in the line.
        if usize::try_from(gauge.get()).is_ok_and(|held| held > config.failover.hold_limit) {
            return Err(hold.refusal(&cluster.topology.load()));
        }
        Ok(hold)
    }

    /// The place in the line: the same one again after a pool that was replaced meanwhile.
    pub(super) fn ticket(&mut self, line: &'a Line) -> &Ticket<'a> {
        self.ticket.get_or_insert_with(|| {
            let ticket = self.place.map_or_else(|| line.join(), |place| line.rejoin(place));
            self.place = Some(ticket.number());
            ticket
        })
    }

    pub(super) fn refusal(&self, snapshot: &Snapshot) -> Refusal {
        if self.nowhere == Nowhere::NoReplica {
            return Refusal::new(
                RefusalKind::NoReplica,
                "no replica may serve this read, and reads do not use the primary",
            );
        }
        let since = snapshot
            .without_primary_since
            .map(|(_, wall)| humantime::format_rfc3339_millis(wall).to_string());
        let text = match (since, snapshot.primary()) {
            (Some(since), _) => format!("there has been no primary since {since}"),
            // By the console's word.
            (None, Some(Node { state: state @ (State::Draining | State::Banned), address, .. })) => {
                format!("the primary, {address}, is {}", state.label())
            }
            (None, Some(primary)) => format!(
                "the primary, {}, takes no connections, or is on an older timeline than the position that was set",
                primary.address
            ),
            (None, None) => "no node may run this statement".to_owned(),
        };
        Refusal::new(RefusalKind::NoPrimary, text)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl<P: Protocol> Session<P> {
    /// Waits until the console's RESUME, as long as for a primary that is missing.
    pub(super) async fn wait_for_resume(&mut self, attempt: &mut Attempt) -> Result<(), Refusal> {
        let cluster = self.cluster.clone();
        let entry = self.registered.entry.clone();
        let pause = &cluster.operator.pause;
        let hold = Hold::begin(&cluster, Nowhere::NoPrimary).map_err(|_| {
            let text = "the cluster is paused, and as many statements wait as failover.hold_limit allows";
            Refusal::new(RefusalKind::NoPrimary, text)
        })?;
        loop {
            entry.set_activity(Activity::Idle);
            let resumed = pause.resumed.notified();
            if pause.is_paused() && self.patiently(hold.until, resumed).await?.is_none() {
                let text = "the cluster was paused, and not resumed in time";
                return Err(Refusal::new(RefusalKind::NoPrimary, text));
            }
            entry.set_activity(Activity::Active);
            // PAUSE waits for whom it sees active: look again after having said so.
            if !pause.is_paused() {
                attempt.waited = attempt.began.elapsed();
                return Ok(());
            }
        }
    }

    /// Waits for `event` as long as the client does, and until a deadline: then `None`.
    ///
    /// # Errors
    /// When the client has gone or has cancelled, and when `limits.statement_timeout` is over.
    pub(super) async fn patiently<T>(
        &mut self,
        until: Instant,
        event: impl Future<Output = T>,
    ) -> Result<Option<T>, Refusal> {
        let entry = self.registered.entry.clone();
        entry.set_waiting(true);
        let deadline = self.deadline.filter(|deadline| *deadline < until);
        let result = tokio::select! {
            happened = event => Ok(Some(happened)),
            () = tokio::time::sleep_until(deadline.unwrap_or(until).into()) => match deadline {
                None => Ok(None),
                Some(_) => {
                    let text = "canceling statement due to statement timeout";
                    Err(Refusal::new(RefusalKind::Cancelled, text))
                }
            },
            () = self.frontend.gone() => Err(Refusal::fatal(RefusalKind::Cancelled, "the client has gone")),
            () = entry.called(&[Call::Cancel, Call::Kill]) => {
                entry.take(Call::Cancel);
                Err(Refusal::new(RefusalKind::Cancelled, "canceling statement due to user request"))
            }
        };
        entry.set_waiting(false);
        result
    }
}
