//! A board with a clock of its own, for tests.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::*;
use crate::topology::{Lsn, Node, Position, ProbeFault, ProbeNumber, Snapshot, State};

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn settings(engine: Engine) -> Settings {
    Settings {
        engine,
        interval: ms(200),
        fast_interval: ms(25),
        failures: 3,
        max_lag: ms(10_000),
        lag_half_weight: ms(1000),
        slow_start: ms(10_000),
        zone: None,
    }
}

pub(crate) fn config(address: &str) -> NodeConfig {
    NodeConfig { address: address.into(), weight: 1.0, zone: None, no_load_balance: false }
}

pub(crate) fn at(timeline: u32, lsn: u64) -> Position {
    Position::Postgres { system: 1, timeline, lsn: Lsn(lsn) }
}

pub(crate) fn gtids(text: &str) -> Position {
    Position::Mysql(Arc::new(text.parse().expect("a GTID set")))
}

/// A PostgreSQL server's answer; `started` tells its incarnations apart.
pub(crate) fn pg(claim: Claim, started: i64, timeline: u32, lsn: u64) -> Facts {
    let position = Some(at(timeline, lsn));
    let timeline = Some(timeline).filter(|&timeline| timeline != 0);
    let primary = claim == Claim::Primary;
    Facts {
        incarnation: Incarnation { system: "1".into(), started },
        claim,
        timeline,
        shown: position.clone(),
        written: position.clone().filter(|_| primary),
        flushed: position.clone().filter(|_| primary),
        replayed: position.filter(|_| !primary),
        writers: None,
        horizon: None,
        connections: None,
        server_id: None,
        group: None,
        version: 150_000,
    }
}

/// A MySQL server's answer; its number is its server_id.
pub(crate) fn my(claim: Claim, number: u64, executed: &str) -> Facts {
    let position = Some(gtids(executed));
    let primary = claim == Claim::Primary;
    Facts {
        incarnation: Incarnation { system: format!("uuid-{number}").into(), started: 1 },
        claim,
        timeline: None,
        shown: position.clone(),
        written: position.clone().filter(|_| primary),
        flushed: position.clone().filter(|_| primary),
        replayed: position.filter(|_| !primary),
        writers: None,
        horizon: None,
        connections: None,
        server_id: Some(number),
        group: None,
        version: 80_036,
    }
}

pub(crate) struct World {
    pub(crate) board: Board,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    number: u64,
}

impl World {
    /// Nodes `a:1`, `b:1`, `c:1` …
    pub(crate) fn new(engine: Engine, nodes: usize) -> Self {
        Self::with(engine, nodes, |_| {})
    }

    pub(crate) fn with(engine: Engine, nodes: usize, change: impl FnOnce(&mut Settings)) -> Self {
        let start = Instant::now();
        let mut settings = settings(engine);
        change(&mut settings);
        let configs = ["a:1", "b:1", "c:1", "d:1"][..nodes].iter().map(|address| config(address)).collect();
        let board = Board::new(configs, settings, start, SystemTime::UNIX_EPOCH);
        Self { board, start, now: start, number: 0 }
    }

    pub(crate) fn pass(&mut self, by: u64) {
        self.now += ms(by);
    }

    /// The number of the last probe sent.
    pub(crate) fn current(&self) -> ProbeNumber {
        ProbeNumber(self.number)
    }

    fn probe(&mut self, node: usize, outcome: Result<Facts, ProbeFault>) {
        self.number += 1;
        self.now += ms(1);
        let sent = self.now;
        self.now += ms(1);
        let number = ProbeNumber(self.number);
        self.board.observe(NodeId(node), Probe { number, sent, answered: self.now, outcome, detail: None });
    }

    /// Node number `node` answers; that takes a millisecond.
    pub(crate) fn answers(&mut self, node: usize, facts: Facts) {
        self.probe(node, Ok(facts));
    }

    pub(crate) fn misses(&mut self, node: usize) {
        self.fails(node, ProbeFault::Unreachable);
    }

    pub(crate) fn fails(&mut self, node: usize, fault: ProbeFault) {
        self.probe(node, Err(fault));
    }

    /// As many misses as make it down.
    pub(crate) fn dies(&mut self, node: usize) {
        for _ in 0..3 {
            self.misses(node);
        }
    }

    pub(crate) fn snapshot(&mut self) -> Snapshot {
        self.board.snapshot(self.now)
    }

    pub(crate) fn node(&mut self, node: usize) -> Node {
        self.snapshot().nodes[node].clone()
    }

    pub(crate) fn primary(&mut self) -> Option<usize> {
        self.snapshot().primary.map(|id| id.0)
    }

    /// Why a node is fenced; empty if it is not.
    pub(crate) fn fence(&mut self, node: usize) -> String {
        match self.node(node).state {
            State::Fenced(why) => why.to_string(),
            _ => String::new(),
        }
    }
}
