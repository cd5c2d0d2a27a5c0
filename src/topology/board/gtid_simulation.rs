//! MySQL and MariaDB clusters in miniature, driven through generated histories: whatever crashes,
//! freezes, cuts, promotions, restores and other people's writes do, the board keeps its promises.

use std::{collections::BTreeMap, time::Instant};

use proptest::{prelude::*, strategy::ValueTree};

use super::{fixture::*, simulated::*, *};
use crate::{
    route::Floor,
    sql::Access,
    topology::{Position, ProbeFault, ProbeNumber, Resolved, Role, Snapshot, State, Writers},
};

/// No server's identity.
const NOBODY: u64 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mysql,
    MariaDb,
}

/// A transaction and how it was numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tx {
    record: u64,
    domain: u32,
    /// Whose number it is: MySQL's server_uuid, MariaDB's server_id.
    server: u64,
    sequence: u64,
}

/// A server as it really is.
#[derive(Clone, Debug)]
struct Server {
    alive: bool,
    /// Stopped by SIGSTOP.
    frozen: bool,
    /// The proxy does not reach it.
    cut: bool,
    started: i64,
    /// Its server_uuid and server_id.
    identity: u64,
    claim: Claim,
    /// All that it has received, in order.
    log: Vec<Tx>,
    /// How much of it is executed.
    applied: usize,
    /// Where it would open after a crash.
    durable: usize,
    /// From where on its own binary log tells who wrote what: it was set up from a copy there.
    logs_from: usize,
}

/// What a session believes.
#[derive(Clone, Debug, Default)]
struct Session {
    floor: Option<Floor>,
    written: Vec<Tx>,
    /// What it had written and a failover threw away, until that is counted.
    lost: Vec<Tx>,
    /// A write that was sent.
    sent: Option<Sent>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    node: usize,
    started: i64,
    /// Done by the server, and not heard of yet.
    done: Option<Tx>,
}

/// A probe on its way.
#[derive(Debug)]
struct Pending {
    number: ProbeNumber,
    sent: Instant,
    /// `None`: it looks at the server when it is heard.
    outcome: Option<Result<Answer, ProbeFault>>,
}

/// What a server says, and what it was when it said so.
#[derive(Debug)]
struct Answer {
    facts: Facts,
    seen: Seen,
}

/// A server as the board knows it: by its last answer, and it may be another by now.
#[derive(Clone, Debug, Default)]
struct Seen {
    identity: u64,
    executed: Vec<Tx>,
}

#[derive(Debug)]
struct Sim {
    kind: Kind,
    board: Board,
    servers: Vec<Server>,
    sessions: Vec<Session>,
    pending: Vec<Option<Pending>>,
    seen: [Seen; NODES],
    now: Instant,
    number: u64,
    starts: i64,
    identities: u64,
    records: u64,
    /// The highest number that each identity gave, by domain.
    given: BTreeMap<(u64, u32), u64>,
    /// The server elected last, and its identity then.
    elected: Option<(usize, u64)>,
    /// Its history, as long as it had the role.
    official: Vec<Tx>,
    reign: Reign,
    counts: Counts,
}

/// What is known of the time since the last election.
#[derive(Clone, Debug, Default)]
struct Reign {
    /// What its primary acknowledged, and the last probe sent by then.
    acknowledged: Vec<(Tx, ProbeNumber)>,
    /// The last probe that it answered as a primary.
    heard: ProbeNumber,
    /// Nodes that answered as a replica.
    followed: [bool; NODES],
}

/// So that a run can be seen to have tested something.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    writes: usize,
    doubts: usize,
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
        late: bool,
    },
    Hear(usize),
    Write(usize),
    /// Sends a write that is answered later, if ever.
    Send(usize),
    Execute(usize),
    Answer(usize),
    Read(usize),
    /// Somebody else writes to a server that lets them.
    Other(usize),
    Stream {
        node: usize,
        count: usize,
    },
    Apply {
        node: usize,
        count: usize,
    },
    Crash(usize),
    Restart(usize),
    Freeze(usize),
    Thaw(usize),
    Cut(usize),
    Mend(usize),
    Promote(usize),
    /// A primary becomes a replica, of whomever it can follow.
    Demote(usize),
    /// A dead server comes back as a replica of the primary that it can follow.
    Rejoin(usize),
    /// A dead server is set up anew from a copy of another.
    Rebuild {
        node: usize,
        from: usize,
        claim: Claim,
    },
    Flap(usize),
    Blackout,
    RestartProxy {
        remembers: bool,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let node = || 0..NODES;
    let session = || 0..SESSIONS;
    let claim = prop_oneof![4 => Just(Claim::Replica), 1 => Just(Claim::Primary)];
    let ordinary = prop_oneof![
        12 => (1..120u64).prop_map(Op::Pass),
        30 => node().prop_map(Op::Probe),
        8 => (node(), prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(node, lost, late)| Op::Ask { node, lost, late }),
        8 => node().prop_map(Op::Hear),
        12 => session().prop_map(Op::Write),
        6 => session().prop_map(Op::Send),
        6 => session().prop_map(Op::Execute),
        6 => session().prop_map(Op::Answer),
        16 => session().prop_map(Op::Read),
        1 => node().prop_map(Op::Other),
        16 => (node(), 1..6usize).prop_map(|(node, count)| Op::Stream { node, count }),
        16 => (node(), 1..6usize).prop_map(|(node, count)| Op::Apply { node, count }),
    ];
    let trouble = prop_oneof![
        3 => node().prop_map(Op::Crash),
        3 => node().prop_map(Op::Restart),
        3 => node().prop_map(Op::Freeze),
        3 => node().prop_map(Op::Thaw),
        2 => node().prop_map(Op::Cut),
        3 => node().prop_map(Op::Mend),
        3 => node().prop_map(Op::Promote),
        2 => node().prop_map(Op::Demote),
        3 => node().prop_map(Op::Rejoin),
        2 => (node(), node(), claim).prop_map(|(node, from, claim)| Op::Rebuild { node, from, claim }),
        2 => node().prop_map(Op::Flap),
        1 => Just(Op::Blackout),
        1 => any::<bool>().prop_map(|remembers| Op::RestartProxy { remembers }),
    ];
    prop::collection::vec(prop_oneof![6 => ordinary, 1 => trouble], 50..500)
}

impl Tx {
    /// MySQL's sets have every number, MariaDB's positions the last one of a domain.
    fn print(self, kind: Kind) -> String {
        match kind {
            Kind::Mysql => format!("{}:{}", uuid(self.server), self.sequence),
            Kind::MariaDb => format!("{}-{}-{}", self.domain, self.server, self.sequence),
        }
    }

    /// Whether a floor asks for it. MariaDB's positions cover another's number, too.
    fn is_in(self, floor: &Position, kind: Kind) -> bool {
        match kind {
            Kind::Mysql => floor.covers(&gtids(&self.print(kind))) == Some(true),
            Kind::MariaDb => {
                let writers: Writers = floor.to_string().parse().expect("a floor");
                writers.have(&self.print(kind).parse().expect("a transaction"))
            }
        }
    }
}

impl Seen {
    fn has(&self, tx: &Tx) -> bool {
        self.executed.contains(tx)
    }
}

impl Server {
    fn answers(&self) -> bool {
        self.alive && !self.frozen && !self.cut
    }

    fn executed(&self) -> &[Tx] {
        &self.log[..self.applied]
    }

    fn has(&self, tx: &Tx) -> bool {
        self.log.contains(tx)
    }

    fn serves_writes(&self) -> bool {
        self.alive && !self.frozen && self.claim == Claim::Primary
    }

    /// The last transaction of every domain.
    fn position(log: &[Tx]) -> BTreeMap<u32, Tx> {
        log.iter().map(|tx| (tx.domain, *tx)).collect()
    }

    fn printed(&self, kind: Kind) -> String {
        let printed: Vec<String> = match kind {
            Kind::Mysql => {
                let mut numbers: BTreeMap<u64, Vec<String>> = BTreeMap::new();
                for tx in self.executed() {
                    numbers.entry(tx.server).or_default().push(tx.sequence.to_string());
                }
                numbers
                    .iter()
                    .map(|(server, numbers)| format!("{}:{}", uuid(*server), numbers.join(":")))
                    .collect()
            }
            Kind::MariaDb => Self::position(self.executed()).values().map(|tx| tx.print(kind)).collect(),
        };
        printed.join(",")
    }

    /// Who wrote what is in its binary log, and what its position names.
    fn writers(&self) -> Writers {
        let state: BTreeMap<(u32, u64), Tx> = self.log[self.logs_from.min(self.applied)..self.applied]
            .iter()
            .map(|tx| ((tx.domain, tx.server), *tx))
            .collect();
        let printed: Vec<String> = state.values().map(|tx| tx.print(Kind::MariaDb)).collect();
        let writers: Writers = printed.join(",").parse().expect("a binary log's state");
        writers.with(&self.printed(Kind::MariaDb).parse().expect("a position"))
    }

    /// Whether the source sends it anything: nothing that it has may be unknown there.
    fn can_follow(&self, source: &Server, kind: Kind) -> bool {
        match kind {
            // Transactions of its own do no harm, more of the source's than the source has do.
            Kind::Mysql => {
                let of_source = |tx: &&Tx| tx.server == source.identity;
                self.log.iter().filter(of_source).all(|tx| source.has(tx))
            }
            Kind::MariaDb => Self::position(&self.log).values().all(|tx| source.has(tx)),
        }
    }
}

impl Sim {
    fn new(kind: Kind) -> Self {
        let now = Instant::now();
        let log: Vec<Tx> = (1..=3).map(|sequence| Tx { record: 0, domain: 0, server: 1, sequence }).collect();
        let server = |identity, claim| Server {
            alive: true,
            frozen: false,
            cut: false,
            started: 1,
            identity,
            claim,
            log: log.clone(),
            applied: log.len(),
            durable: log.len(),
            logs_from: 0,
        };
        let mut sim = Self {
            kind,
            board: new_board(Engine::Mysql, now),
            servers: vec![server(1, Claim::Primary), server(2, Claim::Replica), server(3, Claim::Replica)],
            sessions: vec![Session::default(); SESSIONS],
            pending: (0..NODES).map(|_| None).collect(),
            seen: std::array::from_fn(|_| Seen::default()),
            now,
            number: 0,
            starts: 1,
            identities: 3,
            records: 0,
            given: BTreeMap::from([((1, 0), 3)]),
            elected: None,
            official: Vec::new(),
            reign: Reign::default(),
            counts: Counts::default(),
        };
        for node in 0..NODES {
            sim.run(Op::Probe(node));
        }
        sim
    }

    fn facts(&self, node: usize) -> Facts {
        let server = &self.servers[node];
        let mut facts = my(server.claim, server.identity, &server.printed(self.kind));
        let system = match self.kind {
            Kind::Mysql => uuid(server.identity),
            Kind::MariaDb => server.identity.to_string(),
        };
        facts.incarnation = Incarnation { system: system.into(), started: server.started };
        facts.writers = (self.kind == Kind::MariaDb).then(|| Arc::new(server.writers()));
        facts
    }

    fn run(&mut self, op: Op) {
        self.now += ms(1);
        match op {
            Op::Pass(by) => self.now += ms(by),
            Op::Probe(node) => {
                self.hear(node);
                self.ask(node, false, false);
                self.hear(node);
            }
            Op::Ask { node, lost, late } => self.ask(node, lost, late),
            Op::Hear(node) => self.hear(node),
            Op::Write(session) => {
                self.send(session);
                self.execute(session);
                self.answer(session);
            }
            Op::Send(session) => self.send(session),
            Op::Execute(session) => self.execute(session),
            Op::Answer(session) => self.answer(session),
            Op::Read(session) => self.read(session),
            Op::Other(node) => self.write_past_the_proxy(node),
            Op::Stream { node, count } => self.stream(node, count),
            Op::Apply { node, count } => self.apply(node, count),
            Op::Crash(node) => self.crash(node),
            Op::Restart(node) => self.restart(node),
            Op::Freeze(node) => self.servers[node].frozen = self.servers[node].alive,
            Op::Thaw(node) => self.servers[node].frozen = false,
            Op::Cut(node) => self.servers[node].cut = true,
            Op::Mend(node) => self.servers[node].cut = false,
            Op::Promote(node) => self.promote(node),
            Op::Demote(node) => self.demote(node),
            Op::Rejoin(node) => self.rejoin(node),
            Op::Rebuild { node, from, claim } => self.rebuild(node, from, claim),
            Op::Flap(node) => {
                for _ in 0..3 {
                    self.crash(node);
                    self.run(Op::Probe(node));
                    self.restart(node);
                    self.run(Op::Probe(node));
                }
            }
            Op::Blackout => (0..NODES).for_each(|node| self.crash(node)),
            Op::RestartProxy { remembers } => self.restart_proxy(remembers),
        }
        self.check();
    }

    fn ask(&mut self, node: usize, lost: bool, late: bool) {
        if self.pending[node].is_some() {
            return;
        }
        self.number += 1;
        let outcome = if lost { Some(Err(ProbeFault::TimedOut)) } else { (!late).then(|| self.probe(node)) };
        self.pending[node] = Some(Pending { number: ProbeNumber(self.number), sent: self.now, outcome });
    }

    fn probe(&self, node: usize) -> Result<Answer, ProbeFault> {
        let server = &self.servers[node];
        match (server.cut, server.alive, server.frozen) {
            (true, _, _) | (_, true, true) => Err(ProbeFault::TimedOut),
            (_, false, _) => Err(ProbeFault::Unreachable),
            _ => {
                let seen = Seen { identity: server.identity, executed: server.executed().to_vec() };
                Ok(Answer { facts: self.facts(node), seen })
            }
        }
    }

    fn hear(&mut self, node: usize) {
        let Some(Pending { number, sent, outcome }) = self.pending[node].take() else { return };
        let outcome = outcome.unwrap_or_else(|| self.probe(node));
        self.now += ms(1);
        let outcome = outcome.map(|Answer { facts, seen }| {
            let before = std::mem::replace(&mut self.seen[node], seen);
            let now = &self.seen[node];
            if self.elected == Some((node, now.identity)) && !before.executed.iter().all(|tx| now.has(tx)) {
                // Set up anew with less, as itself: what it lacks is lost, as if another had been elected.
                self.elected = Some((node, NOBODY));
            }
            facts
        });
        if let Ok(facts) = &outcome {
            match facts.claim {
                Claim::Replica => self.reign.followed[node] = true,
                Claim::Primary if self.elected == Some((node, self.servers[node].identity)) => {
                    self.reign.heard = number;
                }
                Claim::Primary => {}
            }
        }
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
        if !self.servers[node].answers() {
            if !self.servers[node].alive {
                self.board.report(NodeId(node), Traffic::Refused, self.now);
            }
            return false;
        }
        let incarnation = self.facts(node).incarnation;
        let same = snapshot.nodes[node].incarnation.as_ref() == Some(&incarnation);
        if !same {
            self.board.report(NodeId(node), Traffic::Opened(incarnation), self.now);
        }
        same
    }

    fn send(&mut self, session: usize) {
        if self.sessions[session].sent.is_some() {
            return;
        }
        let Some((node, snapshot)) = self.choose(Access::Write, &Floor::None) else { return };
        if !self.reach(node, &snapshot) {
            return;
        }
        if self.servers[node].claim == Claim::Replica {
            self.board.report(NodeId(node), Traffic::ReadOnly, self.now);
            return;
        }
        self.sessions[session].sent = Some(Sent { node, started: self.servers[node].started, done: None });
    }

    fn execute(&mut self, session: usize) {
        let Some(sent @ Sent { done: None, .. }) = self.sessions[session].sent else { return };
        if self.servers[sent.node].serves_writes() && self.servers[sent.node].started == sent.started {
            let done = Some(self.append(sent.node, u32::from(session == 0)));
            self.sessions[session].sent = Some(Sent { done, ..sent });
        }
    }

    /// The answer arrives. It is handed on once its server has the role, and never if another gets it
    /// ([`crate::standing`]). What a server says that has become a replica is not modelled: it is from
    /// before that, and whoever made it one waits for replicas or not.
    fn answer(&mut self, session: usize) {
        let Some(Sent { node, done: Some(tx), .. }) = self.sessions[session].sent else { return };
        let snapshot = self.snapshot();
        let address = &snapshot.nodes[node].address;
        if !self.servers[node].answers() || !snapshot.allows(address, Role::Primary) {
            return;
        }
        self.counts.writes += 1;
        let current = ProbeNumber(self.number);
        self.reign.acknowledged.push((tx, current));
        let floor = if is_told(session) {
            Floor::At(gtids(&tx.print(self.kind)))
        } else {
            Floor::Unsampled { incarnation: self.facts(node).incarnation, after: current }
        };
        let session = &mut self.sessions[session];
        session.sent = None;
        session.written.push(tx);
        session.floor.get_or_insert_default().raise(&floor, current);
    }

    fn append(&mut self, node: usize, domain: u32) -> Tx {
        self.records += 1;
        let server = &mut self.servers[node];
        let last = match self.kind {
            Kind::Mysql => {
                server.log.iter().filter(|tx| tx.server == server.identity).map(|tx| tx.sequence).max()
            }
            Kind::MariaDb => server.log.iter().filter(|tx| tx.domain == domain).map(|tx| tx.sequence).max(),
        };
        let sequence = last.unwrap_or(0) + 1;
        let tx = Tx { record: self.records, domain, server: server.identity, sequence };
        let given = self.given.entry((server.identity, domain)).or_default();
        assert!(
            self.kind == Kind::MariaDb || sequence > *given || domain > 0 || *given == 0,
            "a number was given twice"
        );
        *given = sequence.max(*given);
        server.log.push(tx);
        (server.applied, server.durable) = (server.log.len(), server.log.len());
        tx
    }

    fn write_past_the_proxy(&mut self, node: usize) {
        if self.servers[node].serves_writes() {
            self.append(node, 0);
        }
    }

    fn read(&mut self, session: usize) {
        let floor = self.sessions[session].floor.clone().unwrap_or_default();
        match self.snapshot().resolve(&floor) {
            Resolved::At(position) => self.sessions[session].floor = Some(Floor::At(position.into_owned())),
            Resolved::Lost { left } => {
                self.counts.lost += 1;
                self.sessions[session].written.retain(|tx| tx.is_in(&left, self.kind));
                self.sessions[session].lost.clear();
                self.sessions[session].floor = Some(Floor::At(left));
            }
            Resolved::None | Resolved::Pending => {}
        }
        if self.kind == Kind::Mysql && is_told(session) && self.snapshot().primary.is_some() {
            let lost = &self.sessions[session].lost;
            assert!(
                lost.iter().all(|tx| self.official.contains(tx)),
                "{lost:?} of session {session} were lost and not counted"
            );
        }
        let floor = self.sessions[session].floor.clone().unwrap_or_default();
        let Some((node, snapshot)) = self.choose(Access::Read, &floor) else { return };
        if !self.reach(node, &snapshot) {
            return;
        }
        self.counts.replica_reads += usize::from(snapshot.nodes[node].role == Role::Replica);
        for tx in &self.sessions[session].written {
            assert!(
                self.servers[node].executed().contains(tx),
                "session {session} does not see its write {tx:?} on {node}, with floor {floor:?} and {:?}",
                snapshot.nodes[node].position
            );
        }
    }

    /// The server that a replica follows: a live primary, the newest first.
    fn source(&self, node: usize) -> Option<usize> {
        let server = &self.servers[node];
        (0..NODES)
            .filter(|&other| other != node && self.servers[other].serves_writes())
            .filter(|&other| server.can_follow(&self.servers[other], self.kind))
            .max_by_key(|&other| self.servers[other].log.last().map(|tx| tx.record))
    }

    fn stream(&mut self, node: usize, count: usize) {
        let server = &self.servers[node];
        if !server.alive || server.frozen || server.claim == Claim::Primary {
            return;
        }
        let Some(source) = self.source(node) else { return };
        let news: Vec<Tx> = self.servers[source]
            .executed()
            .iter()
            .filter(|tx| !server.has(tx))
            .take(count)
            .copied()
            .collect();
        self.servers[node].log.extend(news);
    }

    fn apply(&mut self, node: usize, count: usize) {
        let server = &mut self.servers[node];
        if server.alive && !server.frozen && server.claim == Claim::Replica {
            server.applied = (server.applied + count).min(server.log.len());
            if count > 3 {
                server.durable = server.applied;
            }
        }
    }

    fn crash(&mut self, node: usize) {
        let server = &mut self.servers[node];
        if server.alive && server.claim == Claim::Replica {
            // What it had received is fetched again, and what was not made durable applied again (hard
            // case 4).
            server.applied = server.durable.min(server.applied);
            server.log.truncate(server.applied);
        }
        (server.alive, server.frozen) = (false, false);
    }

    fn restart(&mut self, node: usize) {
        if !self.servers[node].alive {
            self.starts += 1;
            (self.servers[node].alive, self.servers[node].started) = (true, self.starts);
        }
    }

    /// A live replica takes over; what it has received is applied first, or thrown away. It writes
    /// nothing of its own.
    fn promote(&mut self, node: usize) {
        let server = &mut self.servers[node];
        if !server.alive || server.frozen || server.claim == Claim::Primary {
            return;
        }
        if self.records.is_multiple_of(2) {
            server.applied = server.log.len();
        }
        server.log.truncate(server.applied);
        (server.claim, server.durable) = (Claim::Primary, server.applied);
    }

    fn demote(&mut self, node: usize) {
        if self.servers[node].serves_writes() {
            self.servers[node].claim = Claim::Replica;
        }
    }

    fn rejoin(&mut self, node: usize) {
        if !self.servers[node].alive && self.source(node).is_some() {
            self.restart(node);
            self.servers[node].claim = Claim::Replica;
        }
    }

    /// From a copy of another server; with a new identity if it would number anything twice.
    fn rebuild(&mut self, node: usize, from: usize, claim: Claim) {
        if self.servers[node].alive || from == node || !self.servers[from].alive {
            return;
        }
        let log = self.servers[from].executed().to_vec();
        let identity = self.servers[node].identity;
        let kept = |(&(server, domain), &last): (&(u64, u32), &u64)| {
            server != identity
                || log.iter().any(|tx| (tx.server, tx.domain, tx.sequence) == (identity, domain, last))
        };
        if !self.given.iter().all(kept) {
            self.identities += 1;
            self.servers[node].identity = self.identities;
        }
        self.restart(node);
        let server = &mut self.servers[node];
        let length = log.len();
        (server.claim, server.log) = (claim, log);
        (server.applied, server.durable, server.logs_from) = (length, length, length);
    }

    /// Another proxy begins with what the state file says; its sessions are new.
    fn restart_proxy(&mut self, remembers: bool) {
        let remembered = self.board.remembered().filter(|_| remembers);
        self.board = new_board(Engine::Mysql, self.now);
        self.sessions = vec![Session::default(); SESSIONS];
        self.pending.iter_mut().for_each(|pending| *pending = None);
        self.reign.followed = [false; NODES];
        match remembered {
            Some(remembered) => {
                self.board.recall(remembered.to_string().parse().expect("what was written can be read"));
            }
            None => {
                (self.elected, self.reign) = (None, Reign::default());
                self.official.clear();
            }
        }
    }

    fn check(&mut self) {
        let snapshot = self.snapshot();
        check_nodes(&snapshot);
        self.drop_answers(&snapshot);
        if let Some(primary) = snapshot.primary {
            self.follow_election(primary.0);
        }
        if let Some((node, identity)) = self.elected {
            let server = &self.servers[node];
            if server.claim == Claim::Primary && server.identity == identity {
                self.official.clone_from(&server.log);
            }
        }
    }

    /// Whoever waits for a server that lost the role is told that it is in doubt; the server may do
    /// it all the same.
    fn drop_answers(&mut self, snapshot: &Snapshot) {
        for session in 0..SESSIONS {
            let Some(sent) = self.sessions[session].sent else { continue };
            let address = &snapshot.nodes[sent.node].address;
            let server = &self.servers[sent.node];
            let gone = !server.alive || server.started != sent.started;
            if gone || snapshot.forbids(address, Role::Primary) {
                self.counts.doubts += 1;
                self.sessions[session].sent = None;
                if !gone && sent.done.is_none() && server.claim == Claim::Primary {
                    self.append(sent.node, 0);
                }
            }
        }
    }

    /// Somebody has the role: if another had it before, nothing that was acknowledged and seen there
    /// is given up without need.
    fn follow_election(&mut self, node: usize) {
        let new = &self.seen[node];
        let now = (node, new.identity);
        if self.elected == Some(now) {
            return;
        }
        self.counts.elections += 1;
        if let Some((before, identity)) = self.elected.filter(|(before, _)| *before != node) {
            let lives = {
                let before = self.board.nodes[before].candidate(NodeId(before));
                let still =
                    |facts: &Facts| facts.claim == Claim::Primary && facts.server_id == Some(identity);
                before.reachable && before.facts.is_some_and(still)
            };
            // One that lives may have been set up anew meanwhile.
            let still = |tx: &Tx| lives && self.servers[before].has(tx);
            let seen = self.reign.acknowledged.iter().filter(|(tx, at)| still(tx) || *at < self.reign.heard);
            let given_up = !lives && (self.reign.followed[node] || self.has_yielded(before, node));
            for (tx, _) in seen.filter(|(tx, _)| self.official.contains(tx)) {
                assert!(
                    new.has(tx) || given_up,
                    "{node} took over from {before} without {tx:?}, lives: {lives}"
                );
            }
        }
        for session in &mut self.sessions {
            let (kept, lost): (Vec<Tx>, Vec<Tx>) = session.written.iter().partition(|tx| new.has(tx));
            session.written = kept;
            session.lost.extend(lost);
        }
        self.official.clone_from(&new.executed);
        self.elected = Some(now);
        let is_replica =
            |node: usize| self.board.nodes[node].is_replica() && self.board.nodes[node].health.usable();
        self.reign = Reign { followed: std::array::from_fn(is_replica), ..Reign::default() };
    }

    /// Whether a former primary was made a replica of the new one by somebody, as far as it is known.
    fn has_yielded(&self, before: usize, node: usize) -> bool {
        let is_replica = self.board.nodes[before].is_replica();
        let (before, node) = (&self.seen[before].executed, &self.seen[node]);
        let follows = |tx: &Tx| tx.server == node.identity;
        is_replica && (before.iter().all(|tx| node.has(tx)) || before.iter().any(follows))
    }

    /// Somebody mends the cluster: node 0 has the official history and the role, the others follow.
    fn mend(&mut self) {
        let official =
            if self.official.is_empty() { self.servers[0].log.clone() } else { self.official.clone() };
        for node in 0..NODES {
            self.pending[node] = None;
            self.identities += 1;
            self.starts += 1;
            self.servers[node] = Server {
                alive: true,
                frozen: false,
                cut: false,
                started: self.starts,
                identity: self.identities,
                claim: if node == 0 { Claim::Primary } else { Claim::Replica },
                applied: official.len(),
                durable: official.len(),
                logs_from: 0,
                log: official.clone(),
            };
        }
        for _ in 0..140 {
            self.now += ms(1000);
            for node in 0..NODES {
                self.ask(node, false, false);
                self.hear(node);
                self.stream(node, 1);
                self.apply(node, 1);
            }
        }
    }

    fn check_mended(&mut self) {
        self.check();
        let snapshot = self.snapshot();
        assert_eq!(snapshot.primary, Some(NodeId(0)), "{:?} {:?}", self.board.nobody(), snapshot.nodes);
        for session in 0..SESSIONS {
            self.run(Op::Write(session));
        }
        for node in [0, 1, 2, 1, 2, 0, 1, 2] {
            self.run(Op::Stream { node, count: 9 });
            self.run(Op::Apply { node, count: 9 });
            self.run(Op::Probe(node));
        }
        let snapshot = self.snapshot();
        check_replicas_serve(&snapshot);
        for session in 0..SESSIONS {
            let before = self.counts.replica_reads;
            self.read(session);
            assert_eq!(self.counts.replica_reads, before + 1, "{:?}", self.sessions[session]);
        }
    }
}

fn uuid(identity: u64) -> String {
    format!("{identity:08x}-0000-0000-0000-000000000000")
}

/// Whether a session's client is told a transaction's number with the answer.
fn is_told(session: usize) -> bool {
    session < 2
}

fn run(kind: Kind, ops: impl IntoIterator<Item = Op>) -> Counts {
    let mut sim = Sim::new(kind);
    ops.into_iter().for_each(|op| sim.run(op));
    sim.counts
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Mysql), Just(Kind::MariaDb)]
}

#[test]
fn the_simulation_elects_writes_and_reads_from_replicas() {
    for kind in [Kind::Mysql, Kind::MariaDb] {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut total = Counts::default();
        for _ in 0..40 {
            let history = ops().new_tree(&mut runner).expect("a history").current();
            let counts = run(kind, history);
            total.writes += counts.writes;
            total.doubts += counts.doubts;
            total.replica_reads += counts.replica_reads;
            total.elections += counts.elections;
            total.lost += counts.lost;
        }
        println!("{kind:?} {total:?}");
        assert!(total.writes > 100 && total.replica_reads > 50 && total.doubts > 10, "{total:?}");
        assert!(total.elections > 60, "{total:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_mended_cluster_serves_from_all_its_nodes_again_whatever_came_before(kind in kind(), history in ops()) {
        let mut sim = Sim::new(kind);
        history.into_iter().for_each(|op| sim.run(op));
        sim.mend();
        sim.check_mended();
    }

    #[test]
    fn no_history_makes_the_board_break_its_promises_to_mysql(history in ops()) {
        run(Kind::Mysql, history);
    }

    #[test]
    fn no_history_makes_the_board_break_its_promises_to_mariadb(history in ops()) {
        run(Kind::MariaDb, history);
    }
}
