//! What routing costs per statement: `cargo bench --bench route`.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use pointsman::{
    route::{Consistency, Floor, Policy, PrimaryReads, Question, choose},
    sql::Access,
    topology::{
        Claim, Engine, Facts, Incarnation, Lsn, NodeId, Position, Probe, ProbeNumber, Snapshot,
        board::{Board, NodeConfig, Settings},
    },
};

fn main() {
    divan::main();
}

fn settings(engine: Engine) -> Settings {
    Settings {
        engine,
        interval: Duration::from_millis(200),
        fast_interval: Duration::from_millis(25),
        failures: 3,
        max_lag: Duration::from_secs(10),
        lag_half_weight: Duration::from_secs(1),
        slow_start: Duration::from_secs(10),
        zone: None,
    }
}

/// A primary and two replicas that have replayed all, probed 600 times.
fn cluster(engine: Engine) -> Snapshot {
    let start = Instant::now();
    let node = |address: &str| NodeConfig {
        address: address.into(),
        weight: 1.0,
        zone: None,
        no_load_balance: false,
    };
    let mut board =
        Board::new(["a:1", "b:1", "c:1"].map(node).to_vec(), settings(engine), start, SystemTime::now());
    let mut now = start;
    for round in 0..600 {
        for id in 0..3 {
            let outcome = Ok(facts(engine, id, round));
            let number = ProbeNumber(round * 3 + id + 1);
            board.observe(
                NodeId(id as usize),
                Probe { number, sent: now, answered: now, outcome, detail: None },
            );
        }
        now += Duration::from_millis(25);
    }
    board.snapshot(now)
}

fn position(engine: Engine, round: u64) -> Position {
    match engine {
        Engine::Postgres => Position::Postgres { system: 1, timeline: 1, lsn: Lsn(1 + round) },
        Engine::Mysql => {
            let text = format!("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-{}", 1 + round);
            Position::Mysql(Arc::new(text.parse().expect("a GTID set")))
        }
    }
}

fn facts(engine: Engine, id: u64, round: u64) -> Facts {
    let position = Some(position(engine, round));
    let system: Arc<str> = match engine {
        Engine::Postgres => "1".into(),
        Engine::Mysql => format!("3e11fa47-71ca-11e1-9e33-c80aa942956{}", 2 + id).into(),
    };
    let (claim, written, replayed) = match id {
        0 => (Claim::Primary, position, None),
        _ => (Claim::Replica, None, position),
    };
    Facts {
        incarnation: Incarnation { system, started: id as i64 },
        claim,
        timeline: (engine == Engine::Postgres).then_some(1),
        shown: written.clone().or_else(|| replayed.clone()),
        flushed: written.clone(),
        written,
        replayed,
        writers: None,
        horizon: None,
        connections: None,
        server_id: None,
        group: None,
        version: 0,
    }
}

fn policy() -> Policy {
    Policy {
        consistency: Consistency::Session,
        max_lag: Duration::from_secs(10),
        primary_reads: PrimaryReads::Fallback,
        fresh_for: Duration::from_millis(600),
    }
}

fn bench(bencher: divan::Bencher<'_, '_>, snapshot: &Snapshot, access: Access, floor: &Floor) {
    let policy = policy();
    let mut seed = 0x2545_F491_u64;
    bencher.bench_local(|| {
        let mut dice = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as f64 / (1_u64 << 53) as f64
        };
        let question = Question {
            access,
            target: None,
            consistency: Consistency::Session,
            floor: black_box(floor),
            max_lag: None,
            exclude: &[],
        };
        choose(&question, black_box(snapshot), &policy, snapshot.taken, &mut dice)
    });
}

#[divan::bench]
fn write(bencher: divan::Bencher<'_, '_>) {
    bench(bencher, &cluster(Engine::Postgres), Access::Write, &Floor::None);
}

#[divan::bench]
fn read(bencher: divan::Bencher<'_, '_>) {
    bench(bencher, &cluster(Engine::Postgres), Access::Read, &Floor::None);
}

#[divan::bench]
fn read_with_floor(bencher: divan::Bencher<'_, '_>) {
    let floor = Floor::At(position(Engine::Postgres, 500));
    bench(bencher, &cluster(Engine::Postgres), Access::Read, &floor);
}

#[divan::bench]
fn read_with_unsampled_floor(bencher: divan::Bencher<'_, '_>) {
    let incarnation = Incarnation { system: "1".into(), started: 0 };
    let floor = Floor::Unsampled { incarnation, after: ProbeNumber(1_200) };
    bench(bencher, &cluster(Engine::Postgres), Access::Read, &floor);
}

#[divan::bench]
fn read_with_gtid_floor(bencher: divan::Bencher<'_, '_>) {
    let floor = Floor::At("3e11fa47-71ca-11e1-9e33-c80aa9429562:500".parse().expect("a GTID"));
    bench(bencher, &cluster(Engine::Mysql), Access::Read, &floor);
}

/// What the monitor pays for a snapshot after each probe.
#[divan::bench]
fn publish(bencher: divan::Bencher<'_, '_>) {
    let start = Instant::now();
    let node = NodeConfig { address: "a:1".into(), weight: 1.0, zone: None, no_load_balance: false };
    let mut board = Board::new(vec![node], settings(Engine::Postgres), start, SystemTime::now());
    let mut round = 0;
    bencher.bench_local(|| {
        round += 1;
        let now = start + Duration::from_millis(round);
        let outcome = Ok(facts(Engine::Postgres, 0, round));
        board.observe(
            NodeId(0),
            Probe { number: ProbeNumber(round), sent: now, answered: now, outcome, detail: None },
        );
        board.snapshot(now)
    });
}
