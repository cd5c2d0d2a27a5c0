//! The primary's past: its positions so far, and what failovers and crashes made of them.

use std::{borrow::Cow, sync::Arc};

use super::{Board, Event, SAMPLES};
use crate::topology::{
    Claim, Facts, History, Lsn, NodeId, Position, Sample,
    election::Fence,
    snapshot::{ElectedSet, Fall},
    timelines::Fork,
};

impl Board {
    /// Notes what the change of primary means for positions known from before.
    pub(super) fn learn_history(&mut self, id: NodeId, facts: &Facts) {
        let node = &self.nodes[id.0];
        let mut history = History::clone(&self.history);
        match (&facts.written, self.incumbent.as_ref().and_then(|incumbent| incumbent.timeline)) {
            (Some(Position::Postgres { timeline, lsn, .. }), Some(parent)) if *timeline > parent => {
                // What the node had replayed in this very life, it still has.
                let at_least = match &node.replayed {
                    Some(Position::Postgres { timeline, lsn, .. }) if *timeline == parent => *lsn,
                    _ => Lsn(0),
                };
                history.timelines.learn(Fork {
                    parent,
                    child: *timeline,
                    at_least,
                    at_most: lsn.replayable(),
                });
            }
            (Some(Position::Mysql(executed)), _) => {
                history.elected = Some(ElectedSet::new(Arc::clone(executed), facts));
            }
            _ => {}
        }
        self.history = Arc::new(history);
    }

    /// Keeps what the primary's last answer said of its position: the lag clock's history and the
    /// samples that floors are made of.
    pub(super) fn record(&mut self, id: NodeId) {
        let node = &self.nodes[id.0];
        let (Some(answer), Some(facts)) = (node.answer, node.facts.clone()) else { return };
        if facts.claim != Claim::Primary {
            return;
        }
        self.writers = facts.writers.clone().map(|writers| (writers, facts.server_id));
        if let Some(flushed) = &facts.flushed {
            self.clock.record(answer.sent, answer.came, &replayable(flushed), &self.history.timelines);
        }
        let Some(written) = facts.shown.as_ref().map(replayable) else { return };
        if self.samples.back().is_some_and(|last| answer.number <= last.number) {
            return;
        }
        self.note_fall(&written, &facts);
        self.samples_shared = None;
        match self.samples.back_mut() {
            // What a floor between the two would resolve to is the same.
            Some(last) if last.incarnation == facts.incarnation && last.written == written => {
                (last.number, last.sent) = (answer.number, answer.sent);
            }
            _ => {
                if self.samples.len() == SAMPLES {
                    self.samples.pop_front();
                }
                let (number, sent) = (answer.number, answer.sent);
                self.samples.push_back(Sample { number, sent, incarnation: facts.incarnation, written });
            }
        }
    }

    /// A primary that restarted with less than it had said before: what lies between is lost. In MySQL
    /// and MariaDB it numbers anew from there, so that of its own numbers it can't be told.
    fn note_fall(&mut self, written: &Position, facts: &Facts) {
        let Some(last) = self.samples.back() else { return };
        match (&last.written, written) {
            (
                Position::Postgres { timeline, lsn: from, .. },
                Position::Postgres { timeline: now_on, lsn: to, .. },
            ) if timeline == now_on && to < from => {
                let fall = Fall { timeline: *timeline, from: *from, to: *to };
                Arc::make_mut(&mut self.history).fall = Some(fall);
            }
            (Position::Mysql(from), Position::Mysql(to))
                if last.incarnation.system == facts.incarnation.system && !to.covers(from) =>
            {
                let elected = ElectedSet::new(Arc::clone(to), facts);
                Arc::make_mut(&mut self.history).elected = Some(elected);
            }
            _ => return,
        }
        let address = self.primary.map(|id| Arc::clone(&self.nodes[id.0].config.address)).unwrap_or_default();
        let (from, to) = (last.written.clone(), written.clone());
        self.push_event(Event::PositionFell { address, from, to });
    }

    /// Fences replicas that replayed what the primary's history does not have.
    pub(super) fn fence_diverged(&mut self) {
        self.fence_strayed();
        let Some(Sample { written: newest, .. }) = self.samples.back() else { return };
        let Some(primary) = newest.timeline() else { return };
        for node in self.nodes.iter_mut().filter(|node| node.is_replica() && node.fence.is_none()) {
            let Some(reached) = node.reached().filter(|_| node.position.is_some()) else { continue };
            if self.history.timelines.lost(&reached, newest) {
                let own = reached.timeline().unwrap_or_default();
                node.set_fence(Some(&Fence::Diverged { own, primary }));
            }
        }
    }

    /// The same for MariaDB, where such a replica would count as far ahead: who wrote before the
    /// primary may not have written more than the primary has of it.
    fn fence_strayed(&mut self) {
        let Some((writers, primary)) = &self.writers else { return };
        for node in self.nodes.iter_mut().filter(|node| node.is_replica() && node.fence.is_none()) {
            let Some(Position::Mysql(position)) = &node.position else { continue };
            if writers.lack(position, *primary) {
                node.set_fence(Some(&Fence::Strayed { position: position.to_string().into() }));
            }
        }
    }

    /// What a node's position tells of how much it has of the primary's history. A MariaDB replica may
    /// have followed somebody else: a number says nothing where it is not known to be of that history.
    pub(super) fn telling<'a>(&self, position: &'a Position) -> Cow<'a, Position> {
        match (position, &self.writers) {
            (Position::Mysql(reached), Some((writers, primary))) => {
                Cow::Owned(Position::Mysql(Arc::new(writers.known_part(reached, *primary))))
            }
            _ => Cow::Borrowed(position),
        }
    }
}

/// PostgreSQL's insert and flush positions may stand behind the header of a page without records.
pub(super) fn replayable(position: &Position) -> Position {
    match position {
        Position::Postgres { system, timeline, lsn } => {
            Position::Postgres { system: *system, timeline: *timeline, lsn: lsn.replayable() }
        }
        Position::Mysql(_) => position.clone(),
    }
}
