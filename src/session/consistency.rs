//! What a read must not be behind of, and what a write leaves for later reads.

use std::{borrow::Cow, sync::Arc, time::Duration};

use super::{Session, execute::Attempt};
use crate::{
    cluster::Cluster,
    floors::{self, Writing},
    pool::Held,
    protocol::{Protocol, Reply},
    refusal::{Refusal, RefusalKind},
    route::{Consistency, Floor, Policy},
    sql::{Access, Dialect, Effect, Intent, Tables, effects::ProxyCommand, hints::Target},
    topology::{Incarnation, Node, Position, PositionFault, ProbeNumber, Resolved, Role, Snapshot},
};

/// What the last read under `monotonic` may have seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// The replica it was read from.
    pub target: Target,
    incarnation: Option<Incarnation>,
    /// A sample of a later probe bounds it.
    after: ProbeNumber,
}

/// Writes of a request that are noted for other sessions when it is answered.
pub(super) struct Noted([Option<Writing>; 2]);

impl Noted {
    pub(super) fn nothing() -> Self {
        Self([None, None])
    }

    /// Whether the request's answer acknowledges a write.
    pub(super) fn commits(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }
}

impl<P: Protocol> Session<P> {
    pub(super) fn consistency(&self, intent: &Intent, policy: &Policy) -> Consistency {
        intent.hints.consistency.or(self.state.own.now.consistency).unwrap_or(policy.consistency)
    }

    /// The floor that a read has to meet.
    pub(super) fn floor_of(
        &self,
        intent: &Intent,
        consistency: Consistency,
        snapshot: &Snapshot,
    ) -> Cow<'_, Floor> {
        if matches!(intent.effects[..], [Effect::Commit { .. } | Effect::Rollback { .. }]) {
            // It shows no data.
            return Cow::Owned(Floor::None);
        }
        let own = match consistency {
            Consistency::Eventual => return Cow::Owned(Floor::None),
            Consistency::Session | Consistency::Monotonic => Cow::Borrowed(&self.state.floor),
            Consistency::User => {
                Cow::Owned(self.user_floors.of(&intent.tables, snapshot, |left| self.lost(left)))
            }
            Consistency::Global => {
                Cow::Owned(self.database.floors.of(&intent.tables, snapshot, |left| self.lost(left)))
            }
        };
        match &self.adopted {
            Floor::None => own,
            adopted => Cow::Owned(floors::higher(own.into_owned(), adopted.clone(), snapshot)),
        }
    }

    /// Replaces floors that were waiting for a sample by the sample.
    pub(super) fn renew_floors(&mut self, snapshot: &Snapshot) {
        let lost =
            [&mut self.state.floor, &mut self.adopted].into_iter().filter_map(|floor| renew(floor, snapshot));
        for left in lost.collect::<Vec<_>>() {
            self.cluster.metrics.lost_positions.inc();
            tracing::warn!(
                cluster = %self.cluster.name,
                user = %self.registered.entry.user,
                %left,
                "a session's floor lay in history that a failover threw away"
            );
        }
    }

    /// A floor that sessions share was lowered.
    fn lost(&self, left: &Position) {
        self.cluster.metrics.lost_positions.inc();
        tracing::warn!(
            cluster = %self.cluster.name,
            database = %self.database.name,
            %left,
            "a table's floor lay in history that a failover threw away"
        );
    }

    /// Turns what the last monotonic read may have seen into a floor as soon as that is known.
    /// Until then the session stays where it read.
    pub(super) fn settle_seen(&mut self, snapshot: &Snapshot) {
        let Some(seen) = &self.seen else { return };
        let Target::Node(address) = &seen.target else { return };
        let node = snapshot.find(address).filter(|node| node.role == Role::Replica);
        let same = node.filter(|node| node.incarnation == seen.incarnation);
        let told = match same {
            Some(Node { shown, measured: Some((_, number)), .. }) if *number > seen.after => shown.clone(),
            Some(_) => return,
            None => None,
        };
        let bound = match (told, &seen.incarnation) {
            (Some(position), _) => Floor::At(position),
            // It cannot tell, has restarted or is no replica any more: the primary had all that it
            // showed.
            (None, Some(incarnation)) => {
                Floor::Unsampled { incarnation: incarnation.clone(), after: seen.after }
            }
            (None, None) => return,
        };
        self.seen = None;
        self.state.floor = floors::higher(std::mem::take(&mut self.state.floor), bound, snapshot);
    }

    /// The node the last monotonic read came from is of no more use to the session.
    pub(super) fn leave_seen(&mut self, snapshot: &Snapshot) {
        let Some(Seen { incarnation: Some(incarnation), after, .. }) = self.seen.take() else { return };
        let bound = Floor::Unsampled { incarnation, after };
        self.state.floor = floors::higher(std::mem::take(&mut self.state.floor), bound, snapshot);
    }

    /// Before a request is sent to the primary that may commit something. `learned`: a replica has refused it as
    /// a write, whatever it was taken for.
    pub(super) fn begin_writes(&self, intent: &Intent, learned: bool) -> Noted {
        match self.state.commits(intent) {
            _ if learned => self.begin_writing(&Tables::All),
            Some(tables) => self.begin_writing(&tables),
            None => Noted::nothing(),
        }
    }

    fn begin_writing(&self, tables: &Tables) -> Noted {
        Noted([Some(self.database.floors.begin(tables)), Some(self.user_floors.begin(tables))])
    }

    /// The session, and whoever asks for it, must not read behind what was written just now.
    pub(super) fn wrote(&mut self, held: &Held<P>, reply: &Reply, noted: Noted) {
        let current = self.cluster.topology.probes.current();
        let floor = match &reply.wrote {
            Some(position) => Floor::At(position.clone()),
            None => self.cluster.topology.unsampled(held.address(), current),
        };
        // It was taken for nothing of the kind.
        let noted = if noted.commits() { noted } else { self.begin_writing(&Tables::All) };
        for writing in noted.0.into_iter().flatten() {
            writing.end(&floor, current);
        }
        self.state.floor.raise(&floor, current);
        // Who writes again without a read in between, as in transactions, waits for no position; a read
        // that comes after all asks for one itself.
        if std::mem::take(&mut self.reads) {
            self.cluster.topology.want_position();
        }
    }

    /// Bounds what a read may have seen, where that matters.
    pub(super) fn read(&mut self, held: &Held<P>) {
        let after = self.cluster.topology.probes.current();
        if held.role == Role::Primary {
            self.seen = None;
            let floor = self.cluster.topology.unsampled(held.address(), after);
            self.state.floor.raise(&floor, after);
        } else {
            let incarnation =
                self.cluster.topology.load().find(held.address()).and_then(|node| node.incarnation.clone());
            let target = Target::Node((&**held.address()).into());
            self.seen = Some(Seen { target, incarnation, after });
        }
        self.cluster.topology.want_position();
    }

    /// Whether the last answer may count for monotonic reads. On the primary any may: also a statement
    /// for it, or of a transaction, shows data.
    pub(super) fn is_monotonic_read(&self, intent: &Intent, attempt: &Attempt, on_primary: bool) -> bool {
        (attempt.run.access == Access::Read || on_primary)
            && self.consistency(intent, &attempt.policy) == Consistency::Monotonic
    }

    /// The causal token: what this session's next read must not be behind of. Waits for the sample
    /// of the last write.
    ///
    /// # Errors
    /// When it does not come within `monitor.timeout`.
    pub(super) async fn token(&mut self) -> Result<String, Refusal> {
        let deadline = tokio::time::Instant::now() + self.patience();
        loop {
            let cluster = self.cluster.clone();
            let changed = cluster.topology.changed.notified();
            let snapshot = self.snapshot();
            self.renew_floors(&snapshot);
            self.settle_seen(&snapshot);
            let floor = floors::higher(self.state.floor.clone(), self.adopted.clone(), &snapshot);
            match snapshot.resolve(&floor) {
                Resolved::None if self.seen.is_none() => return Ok(String::new()),
                Resolved::At(position) if self.seen.is_none() => return Ok(position.to_string()),
                Resolved::Lost { left } if self.seen.is_none() => return Ok(left.to_string()),
                _ => {}
            }
            self.cluster.topology.want_position();
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(Refusal::new(
                    RefusalKind::NoPrimary,
                    "the position of the last write is not known yet: no primary has told its position since",
                ));
            }
        }
    }

    /// Adopts a causal token: reads wait for it from now on.
    ///
    /// # Errors
    /// As [`check_token`].
    pub(super) async fn adopt_token(&mut self, text: &str) -> Result<(), Refusal> {
        let Some((position, snapshot)) = check_token(&self.cluster, text).await? else {
            self.adopted = Floor::None;
            return Ok(());
        };
        self.adopted = floors::higher(std::mem::take(&mut self.adopted), Floor::At(position), &snapshot);
        Ok(())
    }

    /// Adopts tokens that were set among other statements. A server has obeyed those already: what is no
    /// token changes nothing.
    pub(super) async fn adopt_tokens_among(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Proxy(ProxyCommand::Set { name, value, .. }) = effect
                && &**name == "position"
                && let Err(refusal) = self.adopt_token(value).await
            {
                tracing::debug!(cluster = %self.cluster.name, why = %refusal.message, "a token is not adopted");
            }
        }
    }

    fn patience(&self) -> Duration {
        self.cluster.config.load().monitor.timeout
    }
}

/// Reads a causal token and waits until it can be told whether it is of this cluster's history; `None`
/// for an empty one.
///
/// # Errors
/// When it is none, is of another system, or the primary's position cannot be asked for within
/// `monitor.timeout`.
pub async fn check_token<P: Protocol>(
    cluster: &Cluster<P>,
    text: &str,
) -> Result<Option<(Position, Arc<Snapshot>)>, Refusal> {
    let text = text.trim().trim_matches('\'');
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |fault: &dyn std::fmt::Display| {
        Refusal::new(
            RefusalKind::InvalidSetting,
            format!("invalid value for parameter \"pointsman.position\": {fault}"),
        )
    };
    let position: Position = text.parse().map_err(|fault| match P::DIALECT {
        // It was not meant for a GTID set.
        Dialect::Postgres => invalid(&PositionFault::Shape),
        Dialect::Mysql => invalid(&fault),
    })?;
    if matches!(position, Position::Postgres { timeline: 0, .. }) {
        return Err(invalid(&"there is no timeline 0"));
    }
    // What the primary has written since its last probe is no history that was thrown away:
    // that can be told only by a probe sent after the token was made.
    let asked = cluster.topology.probes.current();
    let deadline = tokio::time::Instant::now() + cluster.config.load().monitor.timeout;
    loop {
        let changed = cluster.topology.changed.notified();
        let snapshot = cluster.topology.load_full();
        if snapshot.newest().is_some_and(|newest| !are_kin(&position, newest)) {
            return Err(invalid(&"it is of another system"));
        }
        if snapshot.samples.last().is_some_and(|sample| sample.number > asked) {
            return Ok(Some((position, snapshot)));
        }
        cluster.topology.want_position();
        if tokio::time::timeout_at(deadline, changed).await.is_err() {
            return Err(Refusal::new(
                RefusalKind::NoPrimary,
                "the position cannot be checked: no primary has told its own in time",
            ));
        }
    }
}

/// `Some`: the floor was lost, this is what is left of it.
fn renew(floor: &mut Floor, snapshot: &Snapshot) -> Option<Position> {
    match snapshot.resolve(floor) {
        Resolved::At(position) if !matches!(floor, Floor::At(_)) => {
            *floor = Floor::At(position.into_owned());
            None
        }
        Resolved::Lost { left } => {
            *floor = Floor::At(left.clone());
            Some(left)
        }
        _ => None,
    }
}

/// Whether two positions are of one system, as far as they tell.
fn are_kin(one: &Position, other: &Position) -> bool {
    match (one, other) {
        (Position::Postgres { system, .. }, Position::Postgres { system: other, .. }) => system == other,
        (Position::Mysql(one), Position::Mysql(other)) => one.is_of_the_make_of(other),
        _ => false,
    }
}
