//! What the clusters in miniature have in common: the proxy's side of them, and what holds of its picture
//! whatever the servers are.

use std::time::{Instant, SystemTime};

use super::{
    fixture::{config, ms, settings},
    *,
};
use crate::{
    route::{self, Consistency, Floor, Policy, PrimaryReads, Question},
    sql::Access,
    topology::{Role, Snapshot, State},
};

pub(super) const NODES: usize = 3;
pub(super) const SESSIONS: usize = 3;

pub(super) fn new_board(engine: Engine, now: Instant) -> Board {
    let configs = ["a:1", "b:1", "c:1"].map(config).to_vec();
    Board::new(configs, settings(engine), now, SystemTime::UNIX_EPOCH)
}

/// The node that a session's statement goes to; `turn` is odd or even, as dice fall.
pub(super) fn choose(
    snapshot: &Snapshot,
    access: Access,
    floor: &Floor,
    now: Instant,
    turn: u64,
) -> Option<usize> {
    let policy = Policy {
        consistency: Consistency::Session,
        max_lag: ms(10_000),
        primary_reads: PrimaryReads::Fallback,
        fresh_for: ms(600),
    };
    let consistency = Consistency::Session;
    let question = Question { access, target: None, consistency, floor, max_lag: None, exclude: &[] };
    let mut dice = [0.1, 0.7].into_iter().cycle().skip(turn as usize % 2);
    let mut throw = || dice.next().expect("endless");
    route::choose(&question, snapshot, &policy, now, &mut throw).ok().map(|choice| choice.node.0)
}

pub(super) fn check_nodes(snapshot: &Snapshot) {
    for node in snapshot.nodes.iter() {
        assert!(node.weight == 0.0 || matches!(node.state, State::Up | State::Suspect));
        assert!(node.weight == 0.0 || node.role == Role::Primary || node.lag.is_some());
        assert!(node.lag.is_none() || node.position.is_some(), "a lag without a position");
        assert_eq!(node.role == Role::Primary, snapshot.primary == Some(node.id));
    }
    match snapshot.primary() {
        None => assert!(snapshot.without_primary_since.is_some()),
        Some(primary) => assert!(!matches!(primary.state, State::Fenced(_) | State::Down)),
    }
}

/// All nodes but the first, the primary, are replicas that lack nothing.
pub(super) fn check_replicas_serve(snapshot: &Snapshot) {
    for node in &snapshot.nodes[1..] {
        let seen = (&node.state, node.lag, node.weight);
        assert_eq!(seen, (&State::Up, Some(ms(0)), 1.0), "{}", node.address);
    }
}
