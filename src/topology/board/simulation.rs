//! A PostgreSQL cluster in miniature, driven through generated histories: whatever crashes, promotions, lost and
//! late probes, strangers, restarts of the proxy and stale words of Patroni do, the board keeps its
//! promises.

use std::{collections::HashMap, time::Instant};

use proptest::{prelude::*, strategy::ValueTree};

use super::{fixture::*, simulated::*, *};
use crate::{
    route::Floor,
    sql::Access,
    topology::{Position, ProbeFault, ProbeNumber, Resolved, Role, Snapshot, State},
};

/// Never an offset at which an insert position is rounded down.
const RECORD: u64 = 16;

/// What a restarted proxy finds of the last election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateFile {
    Kept,
    /// Of the first election.
    Old,
    Missing,
    OfAnotherCluster,
}

/// A server as it really is.
#[derive(Clone, Debug)]
struct Server {
    alive: bool,
    /// It is dead, and a server of another system answers at its port.
    stranger: Option<Claim>,
    started: i64,
    claim: Claim,
    timeline: u32,
    /// What it has received, by unique record.
    wal: Vec<u64>,
    /// How much of it is visible.
    visible: usize,
    /// Where it would open after a crash.
    consistent: usize,
}

#[derive(Clone, Debug, Default)]
struct Session {
    floor: Option<Floor>,
    written: Vec<u64>,
}

/// A probe on its way back.
#[derive(Debug)]
struct Pending {
    number: ProbeNumber,
    sent: Instant,
    outcome: Result<Facts, ProbeFault>,
    /// What the server had of its WAL when it answered.
    seen: Vec<u64>,
}

#[derive(Debug)]
struct Sim {
    board: Board,
    /// What the state file said after the first election.
    first: Option<Remembered>,
    /// The state file is another cluster's: PostgreSQL's servers are strangers to it.
    misled: bool,
    /// The proxy has elected nobody yet and remembers nothing that it could tell a stranger by.
    blank: bool,
    /// Start times are told apart by this, whatever the clocks say.
    starts: i64,
    servers: Vec<Server>,
    sessions: Vec<Session>,
    pending: Vec<Option<Pending>>,
    /// What each server had by its last answer: all that the board knows it by.
    seen: [Vec<u64>; NODES],
    now: Instant,
    number: u64,
    /// When each probe's answer was heard.
    heard: HashMap<ProbeNumber, Instant>,
    next_record: u64,
    top_timeline: u32,
    /// The server elected last and its timeline then.
    elected: Option<(usize, u32)>,
    /// Its history, as long as it was primary there.
    official: Vec<u64>,
    counts: Counts,
}

/// So that a run can be seen to have tested something.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    writes: usize,
    replica_reads: usize,
    elections: usize,
    lost: usize,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Pass(u64),
    Probe(usize),
    Ask {
        node: usize,
        lost: bool,
    },
    Hear(usize),
    Write(usize),
    Read(usize),
    Stream {
        node: usize,
        records: usize,
    },
    Replay {
        node: usize,
        records: usize,
    },
    Crash(usize),
    Restart(usize),
    Promote(usize),
    Rejoin(usize),
    /// Goes down and comes back, seen each time.
    Flap(usize),
    /// All servers die; they come back in any order.
    Blackout,
    /// The server's clock is set: it seems to have been started at another time.
    SetClock(usize),
    /// Another system's server takes the port of a dead one.
    Stranger {
        node: usize,
        claim: Claim,
    },
    RestartProxy(StateFile),
    /// Patroni's word, which may be stale or wrong; the outer `None`: it is silent.
    Patroni(Option<Option<usize>>),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let node = || 0..NODES;
    let op = prop_oneof![
        12 => (1..120u64).prop_map(Op::Pass),
        30 => node().prop_map(Op::Probe),
        8 => (node(), prop::bool::weighted(0.1)).prop_map(|(node, lost)| Op::Ask { node, lost }),
        8 => node().prop_map(Op::Hear),
        12 => (0..SESSIONS).prop_map(Op::Write),
        16 => (0..SESSIONS).prop_map(Op::Read),
        16 => (node(), 1..6usize).prop_map(|(node, records)| Op::Stream { node, records }),
        16 => (node(), 1..6usize).prop_map(|(node, records)| Op::Replay { node, records }),
        3 => node().prop_map(Op::Crash),
        3 => node().prop_map(Op::Restart),
        2 => node().prop_map(Op::Promote),
        3 => node().prop_map(Op::Rejoin),
        2 => node().prop_map(Op::Flap),
        1 => Just(Op::Blackout),
        1 => node().prop_map(Op::SetClock),
        2 => (node(), claim()).prop_map(|(node, claim)| Op::Stranger { node, claim }),
        1 => file().prop_map(Op::RestartProxy),
        2 => prop::option::of(prop::option::of(node())).prop_map(Op::Patroni),
    ];
    prop::collection::vec(op, 50..500)
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![Just(Claim::Primary), Just(Claim::Replica)]
}

fn file() -> impl Strategy<Value = StateFile> {
    use StateFile::{Kept, Missing, OfAnotherCluster, Old};
    prop_oneof![4 => Just(Kept), 2 => Just(Old), 2 => Just(Missing), 1 => Just(OfAnotherCluster)]
}

/// What a stranger has written: more than anybody here.
const STRANGERS_RECORDS: u64 = 1_000_000;

/// What a server of another system says of itself.
fn strangers_facts(claim: Claim, timeline: u32) -> Facts {
    let mut facts = pg(claim, 7, timeline, STRANGERS_RECORDS);
    facts.incarnation.system = "2".into();
    for position in [&mut facts.written, &mut facts.flushed, &mut facts.replayed, &mut facts.shown] {
        if let Some(Position::Postgres { system, .. }) = position {
            *system = 2;
        }
    }
    facts
}

impl Server {
    fn shows(&self, record: u64) -> bool {
        self.wal[..self.visible].contains(&record)
    }

    fn serves_writes(&self) -> bool {
        self.alive && self.claim == Claim::Primary
    }
}

impl Sim {
    fn new() -> Self {
        let now = Instant::now();
        let server = |claim| Server {
            alive: true,
            stranger: None,
            started: 1,
            claim,
            timeline: 1,
            wal: vec![0; 10],
            visible: 10,
            consistent: 10,
        };
        let mut sim = Self {
            board: new_board(Engine::Postgres, now),
            first: None,
            misled: false,
            blank: false,
            starts: 1,
            servers: vec![server(Claim::Primary), server(Claim::Replica), server(Claim::Replica)],
            sessions: vec![Session::default(); SESSIONS],
            pending: (0..NODES).map(|_| None).collect(),
            seen: std::array::from_fn(|_| Vec::new()),
            now,
            number: 0,
            heard: HashMap::new(),
            next_record: 1,
            top_timeline: 1,
            elected: None,
            official: Vec::new(),
            counts: Counts::default(),
        };
        for node in 0..NODES {
            sim.ask(node, false);
            sim.hear(node);
        }
        sim.check();
        sim.first = sim.board.remembered();
        sim
    }

    fn facts(&self, node: usize) -> Facts {
        let server = &self.servers[node];
        if let Some(claim) = server.stranger {
            // The same timeline as ours, as often as not: most systems are on their first.
            let timeline = if self.starts % 2 == 0 { self.top_timeline } else { 99 };
            return strangers_facts(claim, timeline);
        }
        let told = server.claim == Claim::Primary || self.source(node).is_some();
        let timeline = if told { server.timeline } else { 0 };
        pg(server.claim, server.started * 10 + node as i64, timeline, server.visible as u64 * RECORD)
    }

    fn is_up(&self, node: usize) -> bool {
        self.servers[node].alive || self.servers[node].stranger.is_some()
    }

    fn run(&mut self, op: Op) {
        self.now += ms(1);
        match op {
            Op::Pass(by) => self.now += ms(by),
            Op::Probe(node) => {
                self.hear(node);
                self.ask(node, false);
                self.hear(node);
            }
            Op::Ask { node, lost } => self.ask(node, lost),
            Op::Hear(node) => self.hear(node),
            Op::Write(session) => self.write(session),
            Op::Read(session) => self.read(session),
            Op::Stream { node, records } => self.stream(node, records),
            Op::Replay { node, records } => self.replay(node, records),
            Op::Crash(node) => self.crash(node),
            Op::Restart(node) => self.restart(node),
            Op::Promote(node) => self.promote(node),
            Op::Rejoin(node) => self.rejoin(node),
            Op::Flap(node) => {
                for _ in 0..3 {
                    self.crash(node);
                    self.run(Op::Probe(node));
                    self.restart(node);
                    self.run(Op::Probe(node));
                }
            }
            Op::Blackout => (0..NODES).for_each(|node| self.crash(node)),
            Op::SetClock(node) => {
                self.starts += 1;
                // Back, as often as not.
                self.servers[node].started = if self.starts % 2 == 0 { -self.starts } else { self.starts };
            }
            Op::Stranger { node, claim } => {
                if !self.servers[node].alive && !self.blank {
                    self.servers[node].stranger = Some(claim);
                }
            }
            Op::RestartProxy(file) => self.restart_proxy(file),
            Op::Patroni(word) => self.patroni(word),
        }
        self.check();
    }

    fn restart(&mut self, node: usize) {
        if !self.servers[node].alive {
            self.starts += 1;
            let server = &mut self.servers[node];
            (server.alive, server.stranger, server.started) = (true, None, self.starts);
        }
    }

    fn patroni(&mut self, word: Option<Option<usize>>) {
        let address = |node: usize| Arc::from(["a:1", "b:1", "c:1"][node]);
        self.board.set_leader(word.map(|leader| leader.map(address)), self.now);
    }

    /// Another proxy begins with what the state file says; its sessions are new.
    fn restart_proxy(&mut self, file: StateFile) {
        let remembered = match file {
            StateFile::Kept if self.misled => return,
            StateFile::Kept => self.board.remembered(),
            StateFile::Old => self.first.clone(),
            StateFile::Missing => None,
            StateFile::OfAnotherCluster => {
                let facts = strangers_facts(Claim::Primary, 99);
                let (address, timeline, written) = ("a:1".into(), facts.timeline, facts.written);
                let incumbent = Incumbent { address, timeline, written, server: None };
                Some(Remembered { system: Some("2".into()), incumbent })
            }
        };
        if file != StateFile::Kept {
            self.blank = true;
            self.servers.iter_mut().for_each(|server| server.stranger = None);
        }
        self.misled = file == StateFile::OfAnotherCluster;
        self.board = new_board(Engine::Postgres, self.now);
        if let Some(remembered) = &remembered {
            self.board.recall(remembered.to_string().parse().expect("what was written can be read"));
        }
        self.sessions = vec![Session::default(); SESSIONS];
        self.pending.iter_mut().for_each(|pending| *pending = None);
        if file != StateFile::Kept {
            let knows = remembered.and_then(|remembered| remembered.incumbent.timeline);
            self.elected = knows.filter(|_| !self.misled).map(|timeline| (0, timeline));
            self.official.clear();
        }
    }

    /// A probe looks at the server now and is heard of later.
    fn ask(&mut self, node: usize, lost: bool) {
        if self.pending[node].is_some() {
            return;
        }
        self.number += 1;
        let outcome = match (self.is_up(node), lost) {
            (false, _) => Err(ProbeFault::Unreachable),
            (true, true) => Err(ProbeFault::TimedOut),
            (true, false) => Ok(self.facts(node)),
        };
        let sent = self.now;
        let seen = self.servers[node].wal[..self.servers[node].visible].to_vec();
        self.pending[node] = Some(Pending { number: ProbeNumber(self.number), sent, outcome, seen });
    }

    fn hear(&mut self, node: usize) {
        let Some(Pending { number, sent, outcome, seen }) = self.pending[node].take() else { return };
        self.now += ms(1);
        if outcome.is_ok() {
            self.seen[node] = seen;
        }
        self.heard.insert(number, self.now);
        self.board.observe(NodeId(node), Probe { number, sent, answered: self.now, outcome, detail: None });
        self.check();
    }

    fn snapshot(&mut self) -> Snapshot {
        self.board.snapshot(self.now)
    }

    fn choose(&mut self, access: Access, floor: &Floor) -> Option<(usize, Snapshot)> {
        let snapshot = self.snapshot();
        let node = choose(&snapshot, access, floor, self.now, self.number)?;
        Some((node, snapshot))
    }

    /// Reaches a server as a session does: a dead one is reported, and a connection of another
    /// incarnation than the snapshot's is not used.
    fn reach(&mut self, node: usize, snapshot: &Snapshot) -> bool {
        assert!(!matches!(snapshot.nodes[node].state, State::Fenced(_)), "a fenced node was chosen");
        if !self.is_up(node) {
            self.board.report(NodeId(node), Traffic::Refused, self.now);
            return false;
        }
        let incarnation = self.facts(node).incarnation;
        let same = snapshot.nodes[node].incarnation.as_ref() == Some(&incarnation);
        if !same {
            self.board.report(NodeId(node), Traffic::Opened(incarnation), self.now);
        }
        assert!(!same || self.servers[node].stranger.is_none(), "a stranger that was known was chosen");
        same
    }

    fn write(&mut self, session: usize) {
        let Some((node, snapshot)) = self.choose(Access::Write, &Floor::None) else { return };
        if !self.reach(node, &snapshot) {
            return;
        }
        if !self.servers[node].serves_writes() {
            self.board.report(NodeId(node), Traffic::ReadOnly, self.now);
            return;
        }
        let record = self.append(node);
        self.counts.writes += 1;
        let current = ProbeNumber(self.number);
        let floor = Floor::Unsampled { incarnation: self.facts(node).incarnation, after: current };
        let session = &mut self.sessions[session];
        session.written.push(record);
        session.floor.get_or_insert_default().raise(&floor, current);
    }

    fn append(&mut self, node: usize) -> u64 {
        let record = self.next_record;
        self.next_record += 1;
        let server = &mut self.servers[node];
        server.wal.push(record);
        (server.visible, server.consistent) = (server.wal.len(), server.wal.len());
        record
    }

    fn read(&mut self, session: usize) {
        let floor = self.sessions[session].floor.clone().unwrap_or_default();
        match self.snapshot().resolve(&floor) {
            Resolved::At(position) => self.sessions[session].floor = Some(Floor::At(position.into_owned())),
            Resolved::Lost { left } => {
                self.counts.lost += 1;
                self.sessions[session].floor = Some(Floor::At(left));
            }
            Resolved::None | Resolved::Pending => {}
        }
        let floor = self.sessions[session].floor.clone().unwrap_or_default();
        let Some((node, snapshot)) = self.choose(Access::Read, &floor) else { return };
        if !self.reach(node, &snapshot) {
            return;
        }
        self.counts.replica_reads += usize::from(snapshot.nodes[node].role == Role::Replica);
        // Every write of the session is there, or lost with the history it was in.
        for &record in &self.sessions[session].written {
            let survives = self.official.contains(&record);
            assert!(
                self.servers[node].shows(record) || !survives,
                "session {session} does not see its write {record} on {node}"
            );
        }
    }

    /// The server that a replica streams from: a live primary whose history its own leads into.
    fn source(&self, node: usize) -> Option<usize> {
        let server = &self.servers[node];
        (0..NODES).filter(|&other| other != node && self.servers[other].serves_writes()).find(|&other| {
            let source = &self.servers[other];
            source.timeline >= server.timeline && source.wal.starts_with(&server.wal)
        })
    }

    fn stream(&mut self, node: usize, records: usize) {
        if !self.servers[node].alive || self.servers[node].claim == Claim::Primary {
            return;
        }
        let Some(source) = self.source(node) else { return };
        let have = self.servers[node].wal.len();
        let upto = (have + records).min(self.servers[source].wal.len());
        let more = self.servers[source].wal[have..upto].to_vec();
        let timeline = self.servers[source].timeline;
        let server = &mut self.servers[node];
        server.wal.extend(more);
        server.timeline = timeline;
    }

    fn replay(&mut self, node: usize, records: usize) {
        let server = &mut self.servers[node];
        if server.alive && server.claim == Claim::Replica {
            server.visible = (server.visible + records).min(server.wal.len());
            if records > 3 {
                server.consistent = server.visible;
            }
        }
    }

    fn crash(&mut self, node: usize) {
        let server = &mut self.servers[node];
        if server.alive && server.claim == Claim::Replica {
            // It opens again at an earlier point (hard case 4).
            server.visible = server.consistent.min(server.visible);
        }
        server.alive = false;
    }

    /// Promotes a live replica; the end-of-recovery record makes its history its own.
    fn promote(&mut self, node: usize) {
        if !self.servers[node].alive || self.servers[node].claim == Claim::Primary {
            return;
        }
        self.top_timeline += 1;
        let server = &mut self.servers[node];
        (server.claim, server.timeline) = (Claim::Primary, self.top_timeline);
        // What was received is applied first.
        server.visible = server.wal.len();
        self.append(node);
    }

    /// Rewinds a dead server to be a replica of the newest live primary.
    fn rejoin(&mut self, node: usize) {
        let newest = (0..NODES)
            .filter(|&other| other != node && self.servers[other].serves_writes())
            .max_by_key(|&other| self.servers[other].timeline);
        let Some(source) = newest.filter(|_| !self.servers[node].alive) else { return };
        let source = self.servers[source].clone();
        self.starts += 1;
        let started = self.starts;
        let visible = source.wal.len();
        self.servers[node] =
            Server { alive: true, started, claim: Claim::Replica, visible, consistent: visible, ..source };
        self.servers[node].stranger = None;
    }

    /// Somebody mends the cluster: node 0 is promoted with the official history, the others follow.
    fn mend(&mut self) {
        if self.misled {
            self.restart_proxy(StateFile::Missing);
        }
        self.patroni(None);
        self.top_timeline += 1;
        let wal = if self.official.is_empty() { vec![0; 10] } else { self.official.clone() };
        for node in 0..NODES {
            self.pending[node] = None;
            self.starts += 1;
            self.servers[node] = Server {
                alive: true,
                stranger: None,
                started: self.starts,
                claim: if node == 0 { Claim::Primary } else { Claim::Replica },
                timeline: self.top_timeline,
                visible: wal.len(),
                consistent: wal.len(),
                wal: wal.clone(),
            };
        }
        self.append(0);
        for _ in 0..700 {
            self.now += ms(200);
            for node in 0..NODES {
                self.ask(node, false);
                self.hear(node);
                self.stream(node, 1);
                self.replay(node, 1);
            }
        }
    }

    fn check_mended(&mut self) {
        self.check();
        let snapshot = self.snapshot();
        assert_eq!(snapshot.primary, Some(NodeId(0)), "{:?}", self.board.nobody());
        check_replicas_serve(&snapshot);
        for session in 0..SESSIONS {
            let before = self.counts.replica_reads;
            self.read(session);
            assert_eq!(self.counts.replica_reads, before + 1, "{:?}", self.sessions[session]);
        }
    }

    fn check(&mut self) {
        self.follow_official();
        let snapshot = self.snapshot();
        check_nodes(&snapshot);
        snapshot.nodes.iter().for_each(|node| self.check_lag(node));
        let Some(primary) = snapshot.primary() else { return };
        self.blank = false;
        assert!(!self.misled, "elected by another cluster's file");
        let timeline = primary.timeline.expect("nobody is elected without a timeline");
        if self.elected.is_none_or(|elected| elected != (primary.id.0, timeline)) {
            self.counts.elections += 1;
            let before = self.elected.map_or(0, |(_, timeline)| timeline);
            assert!(timeline >= before, "elected on timeline {timeline} after {before}");
        }
        if self.elected != Some((primary.id.0, timeline)) {
            // What it lacks is lost, also where somebody who has it is elected later.
            self.official.clone_from(&self.seen[primary.id.0]);
            let wal = &self.official;
            self.sessions
                .iter_mut()
                .for_each(|session| session.written.retain(|record| wal.contains(record)));
        }
        self.elected = Some((primary.id.0, timeline));
        self.follow_official();
    }

    fn follow_official(&mut self) {
        let Some((node, timeline)) = self.elected else { return };
        let server = &self.servers[node];
        if server.claim == Claim::Primary && server.timeline == timeline {
            self.official.clone_from(&server.wal);
        }
    }

    /// A lag of zero is said only of a replica that was seen to have replayed all that the primary
    /// was seen to have written before.
    fn check_lag(&self, node: &crate::topology::Node) {
        let (Some(lag), Some((measured, _)), Some(position)) = (node.lag, node.measured, &node.position)
        else {
            return;
        };
        let Some(newest) = self.board.samples.back().map(|sample| &sample.written) else { return };
        let timelines = &self.board.history.timelines;
        let missed = self.board.samples.iter().find(|sample| {
            self.heard[&sample.number] < measured
                && timelines.covers(newest, &sample.written) == Some(true)
                && timelines.covers(position, &sample.written) == Some(false)
        });
        assert!(
            missed.is_none() || !lag.is_zero() || self.board.without_since.is_some(),
            "{position} {missed:?}"
        );
    }
}

fn run(ops: impl IntoIterator<Item = Op>) -> Counts {
    let mut sim = Sim::new();
    ops.into_iter().for_each(|op| sim.run(op));
    sim.counts
}

#[test]
fn the_simulation_elects_writes_and_reads_from_replicas() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut total = Counts::default();
    for _ in 0..40 {
        let history = ops().new_tree(&mut runner).expect("a history").current();
        let counts = run(history);
        total.writes += counts.writes;
        total.replica_reads += counts.replica_reads;
        total.elections += counts.elections;
        total.lost += counts.lost;
    }
    assert!(total.writes > 100 && total.replica_reads > 50, "{total:?}");
    assert!(total.elections > 60, "{total:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_mended_cluster_serves_from_all_its_nodes_again_whatever_came_before(history in ops()) {
        let mut sim = Sim::new();
        history.into_iter().for_each(|op| sim.run(op));
        sim.mend();
        sim.check_mended();
    }

    #[test]
    fn no_history_makes_the_board_break_its_promises(history in ops()) {
        run(history);
    }
}
