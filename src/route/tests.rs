use std::sync::Arc;

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::topology::{
    Claim, Engine, Load, Sample,
    board::fixture::{World, at, ms, pg},
};

/// Node 0 is the primary at 100; the replicas are at 100 as well. Made a second ago.
fn cluster(replicas: usize) -> Snapshot {
    let taken = Instant::now();
    let node = |id: usize| Node {
        id: NodeId(id),
        address: ["a:1", "b:1", "c:1", "d:1"][id].into(),
        role: if id == 0 { Role::Primary } else { Role::Replica },
        state: State::Up,
        incarnation: Some(incarnation(id)),
        timeline: Some(1),
        position: Some(at(1, 100)),
        shown: (id > 0).then(|| at(1, 100)),
        measured: Some((taken, ProbeNumber(5))),
        horizon: None,
        lag: (id > 0).then_some(ms(0)),
        lag_distance: (id > 0).then_some(0),
        fresh_as_of: (id > 0).then_some(taken),
        weight: 1.0,
        benched: false,
        no_load_balance: false,
        may_write: true,
        trouble: None,
        load: Arc::new(Load::default()),
        since: taken,
    };
    let sample =
        Sample { number: ProbeNumber(5), sent: taken, incarnation: incarnation(0), written: at(1, 100) };
    Snapshot {
        nodes: (0..=replicas).map(node).collect(),
        primary: Some(NodeId(0)),
        samples: Arc::new([sample]),
        ..Snapshot::empty(taken)
    }
}

fn incarnation(id: usize) -> Incarnation {
    Incarnation { system: "1".into(), started: id as i64 }
}

fn change(snapshot: &mut Snapshot, id: usize, change: impl FnOnce(&mut Node)) {
    let mut nodes = snapshot.nodes.to_vec();
    change(&mut nodes[id]);
    snapshot.nodes = nodes.into();
}

fn policy() -> Policy {
    Policy {
        consistency: Consistency::Session,
        max_lag: ms(10_000),
        primary_reads: PrimaryReads::Fallback,
        fresh_for: ms(600),
    }
}

fn read(floor: &Floor) -> Question<'_> {
    Question {
        access: Access::Read,
        target: None,
        consistency: Consistency::Session,
        floor,
        max_lag: None,
        exclude: &[],
    }
}

type Answer = Result<(usize, Why), Nowhere>;

fn ask(question: &Question<'_>, snapshot: &Snapshot, policy: &Policy) -> Answer {
    ask_at(question, snapshot, policy, snapshot.taken + ms(10))
}

fn ask_at(question: &Question<'_>, snapshot: &Snapshot, policy: &Policy, now: Instant) -> Answer {
    choose(question, snapshot, policy, now, &mut || 0.0).map(|choice| (choice.node.0, choice.why))
}

#[test]
fn writes_go_to_the_primary_or_nowhere() {
    let write = Question { access: Access::Write, ..read(&Floor::None) };
    let mut snapshot = cluster(2);
    assert_eq!(ask(&write, &snapshot, &policy()), Ok((0, Why::Write)));
    let hinted = Question { target: Some(&Target::Replica), ..write.clone() };
    assert_eq!(ask(&hinted, &snapshot, &policy()), Ok((0, Why::Write)), "a hint does not outrank safety");
    let failed = Question { exclude: &[NodeId(0)], ..write.clone() };
    assert_eq!(ask(&failed, &snapshot, &policy()), Err(Nowhere::NoPrimary));

    for state in [State::Draining, State::Banned, State::Down, State::Fenced("lost".into())] {
        change(&mut snapshot, 0, |node| node.state = state);
        assert_eq!(ask(&write, &snapshot, &policy()), Err(Nowhere::NoPrimary));
    }
}

#[test]
fn a_replica_that_may_not_serve_is_passed_over() {
    type Change = fn(&mut Node);
    let table: [(&str, Change, Why); 13] = [
        ("down", |node| node.state = State::Down, Why::Fallback),
        ("new", |node| node.state = State::New, Why::Fallback),
        ("fenced", |node| node.state = State::Fenced("diverged".into()), Why::Fallback),
        ("draining", |node| node.state = State::Draining, Why::Fallback),
        ("banned", |node| node.state = State::Banned, Why::Fallback),
        ("of unknown role", |node| node.role = Role::Unknown, Why::Fallback),
        ("tagged", |node| node.no_load_balance = true, Why::Fallback),
        ("without weight", |node| node.weight = 0.0, Why::Fallback),
        ("of unknown lag", |node| node.lag = None, Why::Fallback),
        ("of unknown position", |node| node.position = None, Why::Fallback),
        ("never measured", |node| node.measured = None, Why::Fallback),
        ("too late", |node| (node.lag, node.weight) = (Some(ms(10_000)), 0.0), Why::MaxLag),
        ("suspect", |node| node.state = State::Suspect, Why::Replica),
    ];
    for (what, make, why) in table {
        let mut snapshot = cluster(1);
        change(&mut snapshot, 1, make);
        let node = usize::from(why == Why::Replica);
        assert_eq!(ask(&read(&Floor::None), &snapshot, &policy()), Ok((node, why)), "{what}");
    }
}

#[test]
fn a_benched_replica_serves_only_in_place_of_nobody() {
    let bench = |node: &mut Node| (node.weight, node.benched) = (0.0, true);
    let read = read(&Floor::None);
    let mut snapshot = cluster(2);
    change(&mut snapshot, 1, bench);
    assert_eq!(ask(&read, &snapshot, &policy()), Ok((2, Why::Replica)));
    change(&mut snapshot, 2, bench);
    assert_eq!(ask(&read, &snapshot, &policy()), Ok((0, Why::Fallback)));
    let never = Policy { primary_reads: PrimaryReads::Never, ..policy() };
    assert_eq!(ask(&read, &snapshot, &never), Ok((1, Why::Replica)));

    change(&mut snapshot, 0, |node| node.state = State::Suspect);
    assert_eq!(ask(&read, &snapshot, &policy()), Ok((1, Why::Replica)));
    let behind = Floor::At(at(1, 101));
    assert_eq!(
        ask(&Question { floor: &behind, ..read.clone() }, &snapshot, &policy()),
        Ok((0, Why::Fallback))
    );
    snapshot.primary = None;
    assert_eq!(ask(&read, &snapshot, &policy()), Ok((1, Why::Replica)));
    change(&mut snapshot, 1, |node| node.lag = None);
    change(&mut snapshot, 2, |node| node.state = State::Down);
    assert_eq!(ask(&read, &snapshot, &policy()), Err(Nowhere::NoPrimary));
}

#[test]
fn figures_older_than_three_intervals_count_as_unknown() {
    let snapshot = cluster(1);
    let late = snapshot.taken + ms(601);
    assert_eq!(ask_at(&read(&Floor::None), &snapshot, &policy(), late), Ok((0, Why::Fallback)));
}

#[test]
fn a_read_never_runs_behind_its_floor() {
    let unsampled = |after| Floor::Unsampled { incarnation: incarnation(0), after: ProbeNumber(after) };
    for (floor, expected) in [
        (Floor::None, Ok((1, Why::Replica))),
        (Floor::At(at(1, 100)), Ok((1, Why::Replica))),
        (Floor::At(at(1, 101)), Ok((0, Why::Floor))),
        (unsampled(4), Ok((1, Why::Replica))),
        (unsampled(5), Ok((0, Why::Floor))), // no later sample yet
        (Floor::At(at(2, 50)), Err(Nowhere::NoPrimary)), // of a promotion that nobody here has seen
        (Floor::At(crate::topology::board::fixture::gtids("0-1-1")), Ok((0, Why::Floor))),
    ] {
        assert_eq!(ask(&read(&floor), &cluster(1), &policy()), expected, "{floor:?}");
    }
}

#[test]
fn a_staleness_bound_counts_from_the_newest_sample_replayed() {
    let snapshot = cluster(1);
    let bounded = |bound| Question { max_lag: Some(ms(bound)), ..read(&Floor::None) };
    let now = snapshot.taken + ms(300);

    assert_eq!(ask_at(&bounded(300), &snapshot, &policy(), now), Ok((1, Why::Replica)));
    assert_eq!(ask_at(&bounded(299), &snapshot, &policy(), now), Ok((0, Why::MaxLag)));

    let mut unknown = snapshot;
    change(&mut unknown, 1, |node| node.fresh_as_of = None);
    assert_eq!(ask(&bounded(60_000), &unknown, &policy()), Ok((0, Why::MaxLag)));
}

#[test]
fn hints_name_a_node_but_do_not_outrank_the_floor() {
    let named = |address: &str| Target::Node(address.into());
    let (high, none) = (Floor::At(at(1, 101)), Floor::None);
    for (target, floor, expected) in [
        (Target::Primary, &none, Ok((0, Why::Hint))),
        (Target::Replica, &none, Ok((1, Why::Hint))),
        (Target::Replica, &high, Ok((0, Why::Floor))),
        (named("b:1"), &none, Ok((1, Why::Hint))),
        (named("a:1"), &high, Ok((0, Why::Hint))),
        (named("b:1"), &high, Ok((0, Why::Floor))),
        (named("x:1"), &none, Err(Nowhere::UnknownNode)),
    ] {
        let question = Question { target: Some(&target), ..read(floor) };
        assert_eq!(ask(&question, &cluster(1), &policy()), expected, "{target:?} {floor:?}");
    }

    let mut snapshot = cluster(1);
    change(&mut snapshot, 1, |node| node.no_load_balance = true);
    let target = named("b:1");
    let question = Question { target: Some(&target), ..read(&none) };
    assert_eq!(ask(&question, &snapshot, &policy()), Ok((1, Why::Hint)), "tagged nodes serve who names them");
    change(&mut snapshot, 1, |node| node.state = State::Fenced("lost".into()));
    assert_eq!(ask(&question, &snapshot, &policy()), Err(Nowhere::UnknownNode));
}

#[test]
fn a_node_is_meant_by_its_host_alone_where_no_other_has_it() {
    let mut snapshot = cluster(3);
    for (id, address) in ["db1:5432", "[::1]:5432", "db2:5432", "db2:5433"].into_iter().enumerate() {
        change(&mut snapshot, id, |node| node.address = address.into());
    }

    for (by, meant) in [
        ("db1:5432", Some(0)),
        ("DB1", Some(0)),
        ("[::1]", Some(1)),
        ("db2:5433", Some(3)),
        ("db2", None),
        ("db1:1", None),
        ("db", None),
        ("", None),
    ] {
        assert_eq!(snapshot.meant(by).map(|node| node.id.0), meant, "{by:?}");
    }
}

#[test]
fn primary_reads_says_whether_the_primary_serves_reads() {
    let mut alone = cluster(1);
    change(&mut alone, 1, |node| node.state = State::Down);
    let never = Policy { primary_reads: PrimaryReads::Never, ..policy() };
    let always = Policy { primary_reads: PrimaryReads::Always, ..policy() };
    let high = Floor::At(at(1, 101));

    assert_eq!(ask(&read(&Floor::None), &alone, &never), Err(Nowhere::NoReplica));
    assert_eq!(ask(&read(&high), &cluster(1), &never), Err(Nowhere::NoReplica));
    let mut dice = [0.99, 0.0].into_iter().cycle();
    let mut throw = || dice.next().expect("endless");
    let choice = choose(&read(&Floor::None), &cluster(1), &always, alone.taken, &mut throw);
    assert_eq!(choice, Ok(Choice { node: NodeId(0), why: Why::PrimaryReads }));
    let primary = Question { target: Some(&Target::Primary), ..read(&Floor::None) };
    assert_eq!(ask(&primary, &cluster(1), &never), Ok((0, Why::Hint)));
}

#[test]
fn reads_go_on_without_a_primary() {
    let mut snapshot = cluster(1);
    snapshot.primary = None;
    change(&mut snapshot, 0, |node| node.state = State::Down);
    let floor = Floor::At(at(1, 101));

    assert_eq!(ask(&read(&Floor::None), &snapshot, &policy()), Ok((1, Why::Replica)));
    assert_eq!(ask(&read(&floor), &snapshot, &policy()), Err(Nowhere::NoPrimary));
}

#[test]
fn only_eventual_reads_use_a_replica_of_unknown_figure_and_only_when_nobody_else_is_left() {
    let mut snapshot = cluster(1);
    change(&mut snapshot, 1, |node| node.lag = None);
    let eventual = Question { consistency: Consistency::Eventual, ..read(&Floor::None) };
    assert_eq!(ask(&eventual, &snapshot, &policy()), Ok((0, Why::Fallback)));

    snapshot.primary = None;
    assert_eq!(ask(&eventual, &snapshot, &policy()), Ok((1, Why::Replica)));
    assert_eq!(ask(&read(&Floor::None), &snapshot, &policy()), Err(Nowhere::NoPrimary));
    let bounded = Question { max_lag: Some(ms(1000)), ..eventual.clone() };
    assert_eq!(ask(&bounded, &snapshot, &policy()), Err(Nowhere::NoPrimary));

    change(&mut snapshot, 1, |node| (node.lag, node.weight) = (Some(ms(20_000)), 0.0));
    assert_eq!(ask(&eventual, &snapshot, &policy()), Err(Nowhere::NoPrimary), "known to be late");
    change(&mut snapshot, 1, |node| (node.lag, node.position) = (None, Some(at(3, 500))));
    assert_eq!(ask(&eventual, &snapshot, &policy()), Err(Nowhere::NoPrimary), "of another history, perhaps");
}

#[test]
fn a_node_that_failed_the_statement_is_not_asked_again() {
    let exclude = [NodeId(1)];
    let question = Question { exclude: &exclude, ..read(&Floor::None) };
    assert_eq!(ask(&question, &cluster(2), &policy()), Ok((2, Why::Replica)));
    assert_eq!(ask(&question, &cluster(1), &policy()), Ok((0, Why::Fallback)));

    let everybody = [NodeId(0), NodeId(1)];
    let question = Question { exclude: &everybody, ..read(&Floor::None) };
    assert_eq!(ask(&question, &cluster(1), &policy()), Err(Nowhere::NoPrimary));
}

/// Shares of `draws` reads, each node's statements in flight set by `load` before each draw.
fn shares(snapshot: &Snapshot, draws: usize, seed: u64) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut counts = vec![0usize; snapshot.nodes.len()];
    for _ in 0..draws {
        let choice = choose(&read(&Floor::None), snapshot, &policy(), snapshot.taken, &mut || rng.random());
        counts[choice.expect("a replica may serve").node.0] += 1;
    }
    counts.iter().map(|&count| count as f64 / draws as f64).collect()
}

#[test]
fn twice_the_weight_is_twice_the_share() {
    let mut snapshot = cluster(2);
    change(&mut snapshot, 2, |node| node.weight = 0.5);

    let shares = shares(&snapshot, 20_000, 7);

    assert!((shares[1] - 2.0 / 3.0).abs() < 0.02 && shares[0] == 0.0, "{shares:?}");
}

/// Two replicas, one of them behind by `lag`, as probes tell it.
fn lagging_by(lag: u64) -> Snapshot {
    let mut world = World::new(Engine::Postgres, 3);
    for lsn in [100, 200] {
        world.answers(0, pg(Claim::Primary, 1, 1, lsn));
        world.answers(1, pg(Claim::Replica, 2, 1, lsn));
        world.answers(2, pg(Claim::Replica, 3, 1, 100));
    }
    // From the sending of the probe that saw 200 to that of the one that sees 100 again.
    world.pass(lag - 8);
    world.answers(1, pg(Claim::Replica, 2, 1, 200));
    world.answers(2, pg(Claim::Replica, 3, 1, 100));
    world.snapshot()
}

#[test]
fn lag_moves_reads_to_the_replica_that_is_not_behind() {
    for (lag, share) in [(1_000, 2.0 / 3.0), (2_000, 0.8), (10_000, 1.0), (60_000, 1.0)] {
        let shares = shares(&lagging_by(lag), 20_000, lag);
        assert!((shares[1] - share).abs() < 0.02, "{lag} ms behind: {shares:?}");
    }
}

#[test]
fn under_even_load_the_shares_stay_the_weights() {
    // 32 clients whose reads take equally long everywhere.
    let mut snapshot = cluster(2);
    change(&mut snapshot, 2, |node| node.weight = 0.5);
    let mut rng = StdRng::seed_from_u64(11);
    let mut running: std::collections::VecDeque<usize> = std::collections::VecDeque::new();
    let mut counts = [0usize; 3];
    for _ in 0..20_000 {
        if running.len() == 32 {
            let done = running.swap_remove_back(rng.random_range(0..32)).expect("32 are running");
            snapshot.nodes[done].load.end();
        }
        let choice = choose(&read(&Floor::None), &snapshot, &policy(), snapshot.taken, &mut || rng.random());
        let node = choice.expect("a replica may serve").node.0;
        snapshot.nodes[node].load.begin();
        running.push_back(node);
        counts[node] += 1;
    }
    let share = counts[1] as f64 / 20_000.0;
    assert!((share - 2.0 / 3.0).abs() < 0.03, "{share}");
}

#[test]
fn a_stalled_node_loses_its_share() {
    let snapshot = cluster(2);
    for _ in 0..100 {
        snapshot.nodes[1].load.begin();
    }
    // Left to it: both draws fell on it.
    let shares = shares(&snapshot, 20_000, 13);
    assert!((shares[1] - 0.25).abs() < 0.02, "{shares:?}");
}

proptest! {
    #[test]
    fn whatever_the_cluster_looks_like_a_choice_keeps_the_rules(
        figures in prop::collection::vec(
            (0..7usize, 0..3usize, 90..110u64, prop::option::of(0..12_000u64), 0..3u8, any::<bool>()), 1..4),
        floor in prop::option::of(90..110u64),
        mode in 0..3usize,
        chance in 0.0..1.0f64,
    ) {
        let mut snapshot = cluster(figures.len());
        for (at_node, (state, role, lsn, lag, weight, tagged)) in figures.into_iter().enumerate() {
            change(&mut snapshot, at_node + 1, |node| {
                node.state = [State::Up, State::Suspect, State::New, State::Down, State::Fenced("".into()),
                    State::Draining, State::Banned][state].clone();
                node.role = [Role::Replica, Role::Replica, Role::Unknown][role];
                node.position = Some(at(1, lsn));
                node.lag = lag.map(ms);
                node.weight = f64::from(weight);
                node.no_load_balance = tagged;
            });
        }
        let primary_reads = [PrimaryReads::Fallback, PrimaryReads::Never, PrimaryReads::Always][mode];
        let policy = Policy { primary_reads, ..policy() };
        let floor = floor.map_or(Floor::None, |lsn| Floor::At(at(1, lsn)));

        match choose(&read(&floor), &snapshot, &policy, snapshot.taken, &mut || chance) {
            Ok(choice) if choice.node == NodeId(0) => prop_assert_ne!(primary_reads, PrimaryReads::Never),
            Ok(choice) => {
                let node = snapshot.node(choice.node);
                prop_assert!(usable(node) && node.role == Role::Replica && !node.no_load_balance);
                prop_assert!(node.weight > 0.0 && node.lag.is_some_and(|lag| lag < policy.max_lag));
                if let (Floor::At(floor), Some(position)) = (&floor, &node.position) {
                    prop_assert_eq!(position.covers(floor), Some(true));
                }
            }
            Err(nowhere) => prop_assert_eq!((nowhere, primary_reads), (Nowhere::NoReplica, PrimaryReads::Never)),
        }
    }
}
