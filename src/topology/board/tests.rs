//! Scenarios: what probes and reports say, and what the snapshot makes of it.

use std::borrow::Cow;

use super::{fixture::*, *};
use crate::{
    route::Floor,
    topology::{Claim::*, Engine::*, Position, ProbeFault, ProbeNumber, Resolved, Role, State},
};

/// `a` is primary on timeline 1 at 100, the others are replicas at the given positions.
fn three(replicas: [u64; 2]) -> World {
    let mut world = World::new(Postgres, 3);
    world.answers(0, pg(Primary, 1, 1, 100));
    world.answers(1, pg(Replica, 2, 1, replicas[0]));
    world.answers(2, pg(Replica, 3, 1, replicas[1]));
    world
}

#[test]
fn nobody_is_primary_before_every_node_was_asked() {
    let mut world = World::new(Postgres, 3);
    world.answers(0, pg(Primary, 1, 1, 100));
    world.answers(1, pg(Replica, 2, 1, 100));

    assert_eq!(world.primary(), None, "c may be the newer primary");

    world.misses(2);
    assert_eq!(world.primary(), Some(0));
    assert!(world.snapshot().without_primary_since.is_none());
}

#[test]
fn a_replica_is_weighed_by_its_lag() {
    let mut world = three([100, 100]);
    world.pass(199);
    world.answers(0, pg(Primary, 1, 1, 200));
    world.pass(996);
    world.answers(1, pg(Replica, 2, 1, 200));
    world.answers(2, pg(Replica, 3, 1, 150));

    let (up_to_date, behind) = (world.node(1), world.node(2));
    assert_eq!((up_to_date.lag, up_to_date.weight), (Some(ms(0)), 1.0));
    assert_eq!((behind.lag, behind.lag_distance), (Some(ms(1000)), Some(50)));
    assert!((behind.weight - 0.5).abs() < 1e-9, "{}", behind.weight);

    world.pass(9000);
    world.answers(2, pg(Replica, 3, 1, 150));
    assert_eq!(world.node(2).weight, 0.0, "beyond max_lag");
}

#[test]
fn a_lag_that_cannot_be_told_is_no_lag_of_zero() {
    let mut world = three([90, 100]);
    assert_eq!(world.node(1).lag, None, "behind all history so far");
    assert_eq!(world.node(1).weight, 0.0);

    world.pass(700);
    let replica = world.node(2);
    assert_eq!((replica.lag, replica.weight), (None, 0.0), "measured more than three intervals ago");

    world.pass(10_000);
    world.answers(1, pg(Replica, 2, 1, 90));
    assert!(world.node(1).lag >= Some(ms(10_000)), "late beyond max_lag is told as a lower bound");
}

#[test]
fn a_dead_primary_is_followed_by_the_replica_that_is_promoted() {
    let mut world = three([100, 90]);
    world.dies(0);
    assert_eq!(world.primary(), None);
    assert_eq!(world.node(0).state, State::Down);

    world.pass(50);
    world.answers(1, pg(Primary, 2, 2, 130));
    world.answers(2, pg(Replica, 3, 1, 95));

    assert_eq!(world.primary(), Some(1));
    assert_eq!(world.board.counters().failovers, 1);
    assert_eq!(world.node(2).role, Role::Replica);
    assert_eq!(world.snapshot().covers(&at(1, 95), &at(2, 130)), Some(false), "known to be behind");
}

#[test]
fn the_old_primary_is_fenced_until_it_is_a_replica() {
    let mut world = three([100, 100]);
    world.dies(0);
    world.answers(1, pg(Primary, 2, 2, 130));

    world.answers(0, pg(Primary, 9, 1, 110));
    assert_eq!(world.primary(), Some(1));
    assert!(world.fence(0).contains("timeline 1, the newest is 2"), "{}", world.fence(0));

    // Also while the new one is down, and when it went on past the fork as a replica.
    world.dies(1);
    assert_eq!(world.primary(), None);
    assert!(!world.fence(0).is_empty());
    world.answers(1, pg(Primary, 2, 2, 140));
    world.answers(0, pg(Replica, 10, 1, 999));
    assert!(world.fence(0).contains("past the fork"), "{}", world.fence(0));
    world.board.report(NodeId(2), Traffic::Broken, world.now);
    assert!(world.fence(0).contains("past the fork"), "a report on another node changes nothing");

    world.answers(0, pg(Replica, 11, 2, 140));
    assert_eq!((world.node(0).state, world.fence(0)), (State::Up, String::new()));
}

#[test]
fn a_replica_whose_stream_ended_past_the_fork_serves_nothing_until_it_follows_the_primary() {
    // c replays on after it was last asked while the stream told its timeline.
    let mut world = three([90, 90]);
    world.dies(0);
    world.answers(1, pg(Primary, 2, 2, 130));
    world.answers(2, pg(Replica, 3, 0, 999));
    assert!(world.fence(2).contains("past the fork"), "{}", world.fence(2));

    world.answers(2, pg(Replica, 3, 2, 999));
    assert_eq!((world.node(2).state, world.fence(2)), (State::Up, String::new()));
}

#[test]
fn what_has_stopped_or_yielded_takes_no_more_writes_and_what_is_silent_may() {
    let mut world = three([100, 100]);
    world.dies(0);
    assert_eq!((world.primary(), world.node(0).may_write), (None, false));

    let mut world = three([100, 100]);
    (0..3).for_each(|_| world.fails(0, ProbeFault::TimedOut));
    assert_eq!((world.primary(), world.node(0).may_write), (None, true));

    let mut world = three([100, 100]);
    world.answers(1, pg(Primary, 2, 2, 130));
    assert_eq!((world.primary(), world.node(0).may_write), (None, true), "it is being asked");
    world.answers(0, pg(Replica, 1, 1, 100));
    assert!(!world.node(0).may_write);
}

#[test]
fn a_primary_that_restarts_keeps_its_role() {
    let mut world = three([100, 100]);
    world.misses(0);
    assert_eq!(world.primary(), Some(0), "suspect only");
    world.misses(0);
    world.misses(0);
    assert_eq!(world.primary(), None);

    world.answers(0, pg(Primary, 9, 1, 120));

    assert_eq!(world.primary(), Some(0));
    assert_eq!((world.board.counters().failovers, world.board.counters().recoveries), (0, 1));
    assert!(world.board.take_events().contains(&Event::Restarted { address: "a:1".into() }));
}

#[test]
fn a_primary_that_was_demoted_and_promoted_again_is_on_a_new_timeline() {
    let mut world = three([100, 100]);
    world.answers(0, pg(Primary, 9, 2, 130));

    assert_eq!(world.primary(), Some(0));
    assert_eq!((world.board.counters().failovers, world.board.counters().recoveries), (0, 0));
    let remembered = world.board.remembered().expect("an election was held");
    assert_eq!(remembered.incumbent.timeline, Some(2));
    let floor = Floor::At(at(1, 120));
    assert_eq!(world.snapshot().resolve(&floor), Resolved::At(Cow::Owned(at(2, 130))));
}

#[test]
fn a_promotion_beside_a_living_primary_stops_writes_until_one_yields() {
    let mut world = three([60, 100]);
    world.answers(1, pg(Primary, 2, 2, 70));
    assert_eq!((world.primary(), world.fence(1)), (None, String::new()), "is a still there?");

    world.answers(0, pg(Primary, 1, 1, 150));
    assert_eq!(world.primary(), None);
    assert!(world.fence(0).contains("b:1") && world.fence(1).contains("a:1"));
    assert!(world.board.nobody().is_some_and(|why| why.to_string().contains("stop one of them")));

    world.dies(1);
    assert_eq!((world.primary(), world.fence(0)), (Some(0), String::new()));
}

#[test]
fn a_promoted_replica_that_had_everything_takes_over_from_a_living_primary() {
    let mut world = three([100, 100]);
    world.answers(1, pg(Primary, 2, 2, 130));
    assert_eq!(world.primary(), None);

    world.answers(0, pg(Primary, 1, 1, 100));

    assert_eq!(world.primary(), Some(1));
    assert!(world.fence(0).contains("timeline 1"));
}

#[test]
fn an_answer_asked_for_before_the_primary_had_the_role_once_more_does_not_decide() {
    let mut world = three([100, 100]);
    world.answers(1, pg(Primary, 2, 2, 130));
    assert_eq!(world.primary(), None);
    world.pass(1);
    let (number, sent) = (ProbeNumber(world.current().0 + 1), world.now);
    world.dies(1);
    assert_eq!(world.primary(), Some(0), "and takes writes");

    world.answers(1, pg(Primary, 2, 2, 130));
    let answered = world.now + ms(1);
    world.board.observe(
        NodeId(0),
        Probe { number, sent, answered, outcome: Ok(pg(Primary, 1, 1, 100)), detail: None },
    );
    world.pass(1);
    assert_eq!(world.primary(), None, "what it acknowledged meanwhile is not in that answer");

    world.answers(0, pg(Primary, 1, 1, 150));
    assert_eq!(world.primary(), None);
    assert!(world.board.nobody().is_some_and(|why| why.to_string().contains("stop one of them")));
}

#[test]
fn a_promoted_replica_takes_over_once_the_primary_is_down() {
    let mut world = three([60, 100]);
    world.misses(0);
    world.answers(1, pg(Primary, 2, 2, 70));
    assert_eq!((world.primary(), world.node(1).state), (None, State::Up));

    world.misses(0);
    world.misses(0);

    assert_eq!(world.primary(), Some(1));
}

#[test]
fn a_sole_claimer_below_a_known_timeline_is_refused() {
    let mut world = World::new(Postgres, 2);
    world.answers(0, pg(Primary, 1, 1, 100));
    world.answers(1, pg(Replica, 2, 2, 100));

    assert_eq!(world.primary(), None);
    assert!(!world.fence(0).is_empty());
}

#[test]
fn the_last_election_is_remembered_over_a_restart_of_the_proxy() {
    let mut before = three([100, 100]);
    before.dies(0);
    before.answers(1, pg(Primary, 2, 2, 130));
    let remembered = before.board.remembered().expect("an election was held");

    let mut world = World::new(Postgres, 3);
    world.board.recall(remembered);
    world.answers(0, pg(Primary, 9, 1, 110));
    world.misses(1);
    world.misses(2);
    assert_eq!(world.primary(), None, "the old primary alone");

    world.answers(1, pg(Primary, 2, 2, 140));
    assert_eq!(world.primary(), Some(1));
}

#[test]
fn twins_on_one_timeline_get_nothing_unless_one_has_the_role() {
    let mut world = World::new(Postgres, 2);
    world.answers(0, pg(Primary, 1, 2, 100));
    world.answers(1, pg(Primary, 2, 2, 100));
    assert_eq!(world.primary(), None);
    assert!(!world.fence(0).is_empty() && !world.fence(1).is_empty());

    let mut world = World::new(Postgres, 2);
    world.answers(0, pg(Primary, 1, 2, 100));
    world.misses(1);
    world.answers(1, pg(Primary, 2, 2, 500));
    assert_eq!(world.primary(), Some(0), "the incumbent keeps it");
    world.dies(0);
    assert_eq!(world.primary(), None, "its twin never followed it");
    assert!(world.fence(1).contains("belongs to a:1"), "{}", world.fence(1));
}

#[test]
fn nodes_of_another_system_and_second_names_of_a_server_are_refused() {
    let mut world = three([100, 100]);
    let mut stranger = pg(Primary, 9, 7, 900);
    stranger.incarnation.system = "2".into();
    world.answers(2, stranger);
    assert_eq!(world.primary(), Some(0));
    assert!(world.fence(2).contains("system identifier is 2"), "{}", world.fence(2));

    world.answers(2, pg(Replica, 2, 1, 100));
    assert_eq!(world.fence(2), "it is the same server as b:1");
}

/// What another system's server answers at a node's address.
fn stranger(claim: Claim, timeline: u32) -> Facts {
    let mut facts = pg(claim, 77, timeline, 5_000);
    facts.incarnation.system = "2".into();
    for position in [&mut facts.written, &mut facts.flushed, &mut facts.replayed] {
        if let Some(Position::Postgres { system, .. }) = position {
            *system = 2;
        }
    }
    facts
}

#[test]
fn a_strange_system_at_the_dead_primarys_address_does_not_stop_the_failover() {
    for (claim, timeline) in [(Primary, 1), (Primary, 99), (Replica, 1)] {
        let mut world = three([100, 100]);
        world.dies(0);
        world.answers(0, stranger(claim, timeline));
        assert_eq!(world.primary(), None, "{claim:?}");
        assert!(world.fence(0).contains("its system identifier is 2"), "{}", world.fence(0));

        world.answers(1, pg(Primary, 2, 2, 130));

        assert_eq!(world.primary(), Some(1), "{claim:?} on timeline {timeline}");
    }
}

#[test]
fn what_a_strange_system_answered_says_nothing_of_who_returns() {
    let mut world = three([100, 100]);
    world.dies(0);
    world.answers(1, pg(Primary, 2, 2, 130));
    world.dies(0);
    world.answers(0, stranger(Replica, 1));
    assert_eq!(world.primary(), Some(1));

    // A copy of the new primary, made by a person: it has not followed, whatever was there before it.
    world.dies(1);
    world.answers(0, pg(Primary, 9, 2, 120));

    assert_eq!(world.primary(), None, "it may lack what b acknowledged");
    assert!(world.fence(0).contains("belongs to b:1"), "{}", world.fence(0));
}

#[test]
fn a_stale_word_of_patroni_does_not_bring_an_older_timeline_back() {
    let mut world = three([100, 100]);
    world.board.set_leader(Some(Some("b:1".into())), world.now);
    world.answers(1, pg(Primary, 2, 2, 130));
    assert_eq!(world.primary(), Some(1));

    // A member that is cut off still names the leader of the past, which is back.
    world.board.set_leader(Some(Some("a:1".into())), world.now);
    world.answers(0, pg(Primary, 1, 1, 140));
    world.dies(1);

    assert_eq!(world.primary(), None);
    assert!(world.fence(0).contains("timeline 1, the newest is 2"), "{}", world.fence(0));
}

#[test]
fn patronis_word_decides() {
    let mut world = three([100, 100]);
    world.board.set_leader(Some(Some("b:1".into())), world.now);
    assert_eq!(world.primary(), None, "b is not promoted yet");

    world.answers(1, pg(Primary, 2, 2, 130));
    assert_eq!(world.primary(), Some(1));
    assert!(world.fence(0).contains("patroni's leader is b:1"));

    world.board.set_leader(Some(None), world.now);
    assert_eq!(world.primary(), None);
    world.board.set_leader(None, world.now);
    assert_eq!(world.primary(), Some(1), "without patroni the servers' words count");
}

#[test]
fn a_broken_connection_makes_the_position_unknown_until_a_later_probe() {
    let mut world = three([100, 100]);
    world.board.report(NodeId(1), Traffic::Broken, world.now);
    let node = world.node(1);
    assert_eq!((node.position, node.lag, node.weight, node.state), (None, None, 0.0, State::Suspect));
    assert!(world.board.probe_due(NodeId(1), world.now, false) <= world.now + ms(5), "asked at once");

    // Sent before the break, answered after it: another incarnation may be there by now.
    let (sent, answered) = (world.now - ms(1), world.now + ms(1));
    let outcome = Ok(pg(Replica, 2, 1, 100));
    world.board.observe(NodeId(1), Probe { number: ProbeNumber(50), sent, answered, outcome, detail: None });
    assert_eq!(world.node(1).position, None);

    world.pass(2);
    let (sent, answered) = (world.now, world.now + ms(1));
    let outcome = Ok(pg(Replica, 2, 1, 100));
    world.board.observe(NodeId(1), Probe { number: ProbeNumber(51), sent, answered, outcome, detail: None });
    world.pass(2);
    assert_eq!((world.node(1).position, world.node(1).state), (Some(at(1, 100)), State::Up));
}

#[test]
fn a_connection_of_another_incarnation_makes_the_position_unknown() {
    let mut world = three([100, 100]);
    let incarnation = |started| Incarnation { system: "1".into(), started };

    world.board.report(NodeId(1), Traffic::Opened(incarnation(2)), world.now);
    assert!(world.node(1).position.is_some());

    world.board.report(NodeId(1), Traffic::Opened(incarnation(3)), world.now);
    assert!(world.node(1).position.is_none());
}

#[test]
fn an_answer_that_was_overtaken_is_ignored() {
    let mut world = three([100, 100]);
    let late = Probe {
        number: ProbeNumber(1),
        sent: world.start,
        answered: world.now,
        outcome: Ok(pg(Primary, 2, 9, 999)),
        detail: None,
    };
    world.board.observe(NodeId(1), late);

    assert_eq!((world.primary(), world.node(1).role), (Some(0), Role::Replica));
}

#[test]
fn a_replica_that_lost_its_receiver_keeps_its_timeline_but_not_over_a_restart() {
    let mut world = three([100, 100]);
    world.answers(1, pg(Replica, 2, 0, 100));
    assert_eq!(world.node(1).position, Some(at(1, 100)));

    world.answers(1, pg(Replica, 3, 0, 100));
    assert_eq!((world.node(1).position, world.node(1).lag), (Some(at(0, 100)), None));
}

#[test]
fn a_node_that_returns_ramps_up_and_one_that_was_there_at_the_start_does_not() {
    let mut world = three([100, 100]);
    assert_eq!(world.node(1).weight, 1.0);

    world.dies(1);
    world.pass(200);
    world.answers(0, pg(Primary, 1, 1, 100));
    world.answers(1, pg(Replica, 9, 1, 100));
    assert!(world.node(1).weight <= 0.06);

    world.pass(5000);
    world.answers(0, pg(Primary, 1, 1, 100));
    world.answers(1, pg(Replica, 9, 1, 100));
    let half = world.node(1).weight;
    assert!((0.45..0.55).contains(&half), "{half}");
}

#[test]
fn a_server_that_was_restarted_ramps_up_however_short_it_was_away() {
    let mut world = three([100, 100]);

    world.answers(1, pg(Replica, 9, 1, 100));

    assert!(world.node(1).weight <= 0.06, "{}", world.node(1).weight);
}

#[test]
fn people_drain_and_ban_nodes() {
    let mut world = three([100, 100]);
    assert!(!world.board.drain("x:1", world.now));

    assert!(world.board.drain("b:1", world.now) && world.board.ban("c:1", world.now));
    assert_eq!((world.node(1).state, world.node(1).weight), (State::Draining, 0.0));
    assert_eq!((world.node(2).state, world.node(2).weight), (State::Banned, 0.0));

    assert!(world.board.undrain("b:1", world.now) && world.board.unban("c:1", world.now));
    world.pass(200);
    world.answers(1, pg(Replica, 2, 1, 100));
    assert_eq!(world.node(1).state, State::Up);
    assert!(world.node(1).weight > 0.0);
}

#[test]
fn a_new_configuration_keeps_what_is_known_of_nodes_that_stay() {
    let mut world = three([100, 100]);
    let load = Arc::clone(&world.node(2).load);

    let zone = |config: NodeConfig| NodeConfig { zone: Some("far".into()), ..config };
    let settings = Settings { zone: Some("near".into()), ..settings(Postgres) };
    world.board.reconfigure(vec![config("d:1"), zone(config("c:1")), config("a:1")], settings, world.now);

    assert_eq!(world.primary(), Some(2));
    let kept = world.node(1);
    assert_eq!((kept.role, kept.state, kept.weight), (Role::Replica, State::Up, 0.1));
    assert!(Arc::ptr_eq(&load, &kept.load));
    assert_eq!(world.node(0).state, State::New);

    world.board.reconfigure(vec![config("c:1"), config("d:1")], fixture::settings(Postgres), world.now);
    assert_eq!(world.primary(), None);
    assert!(world.snapshot().without_primary_since.is_some());
}

#[test]
fn probes_are_due_sooner_while_something_is_the_matter() {
    let mut world = three([100, 100]);
    let asked = world.now - ms(1); // c was asked last
    let c = NodeId(2);
    assert_eq!(world.board.probe_due(c, world.now, false), asked + ms(200));
    assert_eq!(world.board.probe_due(c, world.now, true), asked + ms(25), "somebody waits");
    assert_eq!(world.board.probe_due(c, asked + ms(900), false), asked + ms(900), "overdue is now");

    world.dies(0);
    assert_eq!(world.board.probe_due(c, world.now, false), asked + ms(25), "no primary");
    assert_eq!(world.board.probe_due(NodeId(7), world.now, false), world.now);
}

fn unsampled(started: i64, after: ProbeNumber) -> Floor {
    Floor::Unsampled { incarnation: Incarnation { system: "1".into(), started }, after }
}

#[test]
fn a_floor_is_the_first_position_sampled_after_the_write() {
    let mut world = three([100, 100]);
    let floor = unsampled(1, world.current());
    assert_eq!(world.snapshot().resolve(&Floor::None), Resolved::None);
    assert_eq!(world.snapshot().resolve(&floor), Resolved::Pending);

    world.answers(0, pg(Primary, 1, 1, 120));
    world.answers(0, pg(Primary, 1, 1, 140));
    assert_eq!(world.snapshot().resolve(&floor), Resolved::At(Cow::Owned(at(1, 120))));

    // An idle primary's samples count as one and lose nothing.
    let idle = unsampled(1, world.current());
    world.answers(0, pg(Primary, 1, 1, 140));
    assert_eq!(world.snapshot().resolve(&idle), Resolved::At(Cow::Owned(at(1, 140))));
    assert_eq!(world.snapshot().samples.len(), 3);

    // Older than the ring: too high, never too low.
    for lsn in 1000..1000 + SAMPLES as u64 {
        world.answers(0, pg(Primary, 1, 1, lsn));
    }
    let oldest = world.snapshot().samples[0].written.clone();
    assert_eq!(world.snapshot().resolve(&floor), Resolved::At(Cow::Owned(oldest)));
    assert_eq!(world.snapshot().samples.len(), SAMPLES);
}

#[test]
fn a_floor_whose_server_died_becomes_the_new_primarys_first_position() {
    let mut world = three([100, 100]);
    let floor = unsampled(1, world.current());
    world.dies(0);
    assert_eq!(world.snapshot().resolve(&floor), Resolved::Pending);

    world.answers(1, pg(Primary, 2, 2, 130));
    assert_eq!(world.snapshot().resolve(&floor), Resolved::At(Cow::Owned(at(2, 130))));
}

#[test]
fn floors_over_a_failover() {
    let mut world = three([100, 80]);
    world.dies(0);
    world.answers(1, pg(Primary, 2, 2, 130));
    let snapshot = world.snapshot();

    for (floor, meant) in [
        (at(1, 100), Resolved::At(Cow::Owned(at(1, 100)))), // before the fork
        (at(1, 120), Resolved::At(Cow::Owned(at(2, 130)))), // may have survived
        (at(1, 131), Resolved::Lost { left: at(2, 130) }),
        (at(3, 10), Resolved::At(Cow::Owned(at(3, 10)))), // a promotion not seen yet
    ] {
        let floor = Floor::At(floor);
        assert_eq!(snapshot.resolve(&floor), meant, "{floor:?}");
    }
}

#[test]
fn a_crash_that_loses_acknowledged_writes_lowers_their_floors() {
    let mut world = three([100, 100]);
    world.answers(0, pg(Primary, 1, 1, 200));
    world.dies(0);
    world.answers(0, pg(Primary, 9, 1, 150));

    let snapshot = world.snapshot();
    let (lost, kept) = (Floor::At(at(1, 190)), Floor::At(at(1, 140)));
    assert_eq!(snapshot.resolve(&lost), Resolved::Lost { left: at(1, 150) });
    assert_eq!(snapshot.resolve(&kept), Resolved::At(Cow::Owned(at(1, 140))));
    let fell = |event: &Event| matches!(event, Event::PositionFell { .. });
    assert!(world.board.take_events().iter().any(fell));
}

#[test]
fn an_insert_position_behind_a_page_header_is_met_by_a_replica_at_the_pages_start() {
    let mut world = three([100, 100]);
    let floor = unsampled(1, world.current());
    world.answers(0, pg(Primary, 1, 1, 0x400_0028));
    world.pass(200);
    world.answers(0, pg(Primary, 1, 1, 0x400_0028));
    world.answers(1, pg(Replica, 2, 1, 0x400_0000));

    assert_eq!(world.snapshot().resolve(&floor), Resolved::At(Cow::Owned(at(1, 0x400_0000))));
    assert_eq!(world.node(1).lag, Some(ms(0)));
}

mod mysql {
    use super::*;

    const U1: &str = "11111111-1111-1111-1111-111111111111";
    const U2: &str = "22222222-2222-2222-2222-222222222222";

    fn facts(claim: Claim, number: u64, executed: &str) -> Facts {
        let mut facts = my(claim, number, &executed.replace("U1", U1).replace("U2", U2));
        facts.incarnation.system = [U1, U2, "u3"][number as usize - 1].into();
        facts
    }

    fn three() -> World {
        let mut world = World::new(Mysql, 3);
        world.answers(0, facts(Primary, 1, "U1:1-100"));
        world.answers(1, facts(Replica, 2, "U1:1-100"));
        world.answers(2, facts(Replica, 3, "U1:1-90"));
        world
    }

    /// The write's GTID comes with its answer, before any probe has seen it; in a group it has the group's
    /// name in place of the server's.
    #[test]
    fn what_the_primary_numbered_itself_is_lost_to_no_failover() {
        for (name, numbered_by, lost) in [(None, U1, false), (None, U2, true), (Some(U2), U2, false)] {
            let mut world = World::new(Mysql, 2);
            let member = |facts: Facts| Facts { group: name.map(Into::into), ..facts };
            world.answers(0, member(facts(Primary, 1, "U1:1-100,U2:1-7")));
            world.answers(1, member(facts(Replica, 2, "U1:1-100,U2:1-7")));

            let wrote = Floor::At(gtids(&format!("{numbered_by}:200")));
            let snapshot = world.snapshot();
            let resolved = snapshot.resolve(&wrote);
            assert_eq!(
                matches!(resolved, Resolved::Lost { .. }),
                lost,
                "{name:?} {numbered_by} {resolved:?}"
            );
        }
    }

    #[test]
    fn a_primary_that_comes_back_with_less_has_lost_what_others_numbered() {
        let mut world = World::new(Mysql, 2);
        world.answers(0, facts(Primary, 1, "U1:1-100,U2:1-7"));
        world.answers(1, facts(Replica, 2, "U1:1-100,U2:1-5"));
        world.dies(0);
        let restarted = Facts {
            incarnation: Incarnation { started: 9, system: U1.into() },
            ..facts(Primary, 1, "U1:1-90,U2:1-5")
        };
        world.answers(0, restarted);

        let at = |text: &str| gtids(&text.replace("U1", U1).replace("U2", U2));
        let snapshot = world.snapshot();
        let (lost, kept) = (Floor::At(at("U2:6-7")), Floor::At(at("U2:4,U1:95")));
        assert_eq!(snapshot.resolve(&lost), Resolved::Lost { left: gtids("") });
        assert_eq!(snapshot.resolve(&kept), Resolved::At(Cow::Owned(at("U2:4,U1:95"))));
        let fell = |event: &Event| matches!(event, Event::PositionFell { .. });
        assert!(world.board.take_events().iter().any(fell));
    }

    #[test]
    fn lag_is_told_in_time_and_transactions() {
        let mut world = three();
        world.pass(200);
        world.answers(0, facts(Primary, 1, "U1:1-110"));
        world.pass(100);
        world.answers(1, facts(Replica, 2, "U1:1-105"));

        assert_eq!((world.primary(), world.node(1).lag_distance), (Some(0), Some(5)));
        assert_eq!(world.node(1).lag, Some(ms(102)));
    }

    #[test]
    fn a_dead_primary_that_returns_writable_with_more_does_not_stop_writes() {
        let mut world = three();
        world.dies(0);
        world.answers(1, facts(Primary, 2, "U1:1-100,U2:1"));
        assert_eq!(world.primary(), Some(1));

        world.answers(0, facts(Primary, 1, "U1:1-103"));
        world.answers(1, facts(Primary, 2, "U1:1-100,U2:1-2"));
        world.answers(0, facts(Primary, 1, "U1:1-103"));
        assert_eq!(world.primary(), Some(1));
        assert!(world.fence(0).contains("b:1 is"), "{}", world.fence(0));

        world.dies(1);
        assert_eq!(world.primary(), None, "a lacks what b acknowledged");
        assert!(world.fence(0).contains("lacks writes"), "{}", world.fence(0));
    }

    /// What it has more was never acknowledged to anybody; its successor may just not have written yet.
    #[test]
    fn a_frozen_primary_that_thaws_does_not_take_the_role_back_from_an_idle_successor() {
        let mut world = three();
        world.dies(0);
        world.answers(1, facts(Primary, 2, "U1:1-100"));
        assert_eq!(world.primary(), Some(1));
        for started in [0, 1] {
            let mut old = facts(Primary, 1, "U1:1-103");
            old.incarnation.started += started;
            for _ in 0..2 {
                world.answers(0, old.clone());
                world.answers(1, facts(Primary, 2, "U1:1-100"));
            }
            assert_eq!(world.primary(), Some(1), "restarted: {started}");
            assert!(world.fence(0).contains("b:1 is"), "{}", world.fence(0));
        }

        // Made a replica and promoted by somebody, it may have it.
        world.answers(0, facts(Replica, 1, "U1:1-100"));
        world.answers(0, facts(Primary, 1, "U1:1-100"));
        world.answers(1, facts(Primary, 2, "U1:1-100"));
        assert_eq!(world.primary(), Some(0));
    }

    #[test]
    fn a_server_that_kept_aside_does_not_inherit_because_the_primary_has_become_a_replica() {
        let stranger = || {
            let mut other = facts(Primary, 3, "33333333-3333-3333-3333-333333333333:1-900");
            (other.incarnation.system, other.server_id) = ("u9".into(), Some(9));
            other
        };
        for aside in [stranger(), facts(Primary, 3, "U1:1-90")] {
            let mut world = World::new(Mysql, 3);
            world.answers(0, facts(Primary, 1, "U1:1-100"));
            world.answers(1, facts(Replica, 2, "U1:1-100"));
            world.misses(2);
            world.answers(2, aside);
            assert_eq!(world.primary(), Some(0));

            // A planned switchover begins.
            world.answers(0, facts(Replica, 1, "U1:1-110"));
            assert_eq!(world.primary(), None);
            assert!(world.fence(2).contains("lacks writes"), "{}", world.fence(2));

            world.answers(1, facts(Primary, 2, "U1:1-110"));
            assert_eq!(world.primary(), Some(1));
        }
    }

    #[test]
    fn a_failover_that_this_proxy_did_not_see_is_taken_for_one_once_the_others_follow() {
        let (lost, kept) = ("U1:1-100", "U1:1-90,U2:1-5");
        for others in [
            // Set up anew from the new primary, or made its replica with what it had.
            [(facts(Replica, 1, kept), "u8"), (facts(Replica, 3, kept), "u3")],
            [(facts(Replica, 1, "U1:1-100,U2:1-4"), U1), (facts(Replica, 3, "U1:1-90,U2:1-3"), "u3")],
        ] {
            let mut before = World::new(Mysql, 3);
            before.answers(0, facts(Primary, 1, lost));
            before.misses(1);
            before.misses(2);
            let mut world = World::new(Mysql, 3);
            world.board.recall(before.board.remembered().expect("an election was held"));
            world.answers(1, facts(Primary, 2, kept));
            assert_eq!(world.primary(), None, "it lacks what a acknowledged");

            for (node, (mut facts, system)) in [0, 2].into_iter().zip(others) {
                facts.incarnation.system = system.into();
                world.answers(node, facts);
            }
            assert_eq!(world.primary(), Some(1), "{}", world.fence(1));
        }
    }

    #[test]
    fn a_primary_set_up_anew_under_its_old_address_is_known_by_what_it_writes_now() {
        let mut world = three();
        let renewed = |executed: &str| {
            let mut facts =
                facts(Primary, 1, &executed.replace("U4", "44444444-4444-4444-4444-444444444444"));
            facts.incarnation.system = "44444444-4444-4444-4444-444444444444".into();
            facts
        };
        world.answers(0, renewed("U1:1-100"));
        assert_eq!(world.primary(), Some(0));
        let lost = Floor::At(gtids(&format!("{U1}:101")));
        assert!(matches!(world.snapshot().resolve(&lost), Resolved::Lost { .. }));

        world.answers(2, facts(Primary, 3, "U1:1-100"));
        world.answers(0, renewed("U1:1-100,U4:1"));
        assert_eq!(world.primary(), None, "c lacks what was acknowledged since");
        assert!(world.fence(2).contains("a:1"), "{}", world.fence(2));
    }

    #[test]
    fn what_the_predecessor_had_by_its_last_answer_is_not_the_successors() {
        let mut world = three();
        let early = Probe {
            number: ProbeNumber(world.current().0 + 1),
            sent: world.now,
            answered: world.now + ms(9),
            outcome: Ok(facts(Primary, 2, "U1:1-100")),
            detail: None,
        };
        world.answers(0, facts(Primary, 1, "U1:1-105"));
        world.answers(0, facts(Primary, 1, "U1:1-105"));
        world.board.observe(NodeId(1), early);
        world.dies(0);
        assert_eq!(world.primary(), Some(1));

        let lost = Floor::At(gtids(&format!("{U1}:101-105")));
        assert!(matches!(world.snapshot().resolve(&lost), Resolved::Lost { .. }));
    }

    #[test]
    fn an_outsider_takes_over_only_if_it_strictly_contains_the_primary() {
        let mut world = World::new(Mysql, 2);
        world.answers(0, facts(Primary, 1, "U1:1-100"));
        world.misses(1);
        world.answers(1, facts(Primary, 2, "U1:1-100,U2:1-5"));
        assert_eq!(world.primary(), Some(0), "a may have written since");
        world.answers(0, facts(Primary, 1, "U1:1-101"));
        assert_eq!(world.primary(), Some(0), "and did");
        assert!(world.fence(1).contains("a:1 is"), "{}", world.fence(1));

        world.answers(1, facts(Primary, 2, "U1:1-101,U2:1-5"));
        world.answers(0, facts(Primary, 1, "U1:1-101"));
        assert_eq!(world.primary(), None, "a may have acknowledged more until now");
        world.answers(1, facts(Primary, 2, "U1:1-101,U2:1-6"));
        assert_eq!(world.primary(), None);
        world.answers(0, facts(Primary, 1, "U1:1-101"));
        assert_eq!(world.primary(), Some(1));
    }

    #[test]
    fn a_second_writable_server_stops_writes_unless_it_has_everything() {
        let mut world = three();
        world.answers(2, facts(Primary, 3, "U1:1-90"));
        assert_eq!(world.primary(), None, "asking a");
        world.answers(0, facts(Primary, 1, "U1:1-101"));
        assert_eq!(world.primary(), None);
        assert!(!world.fence(0).is_empty() && !world.fence(2).is_empty());

        world.answers(2, facts(Replica, 3, "U1:1-101"));
        assert_eq!(world.primary(), Some(0));
    }

    #[test]
    fn a_fenced_server_does_not_inherit_from_the_primary_it_lost_to() {
        let mut world = three();
        world.dies(0);
        world.answers(1, facts(Primary, 2, "U1:1-100"));
        assert_eq!(world.primary(), Some(1));
        // The old one is back, writable, with all that there is so far.
        for _ in 0..2 {
            world.answers(0, facts(Primary, 1, "U1:1-100"));
            world.answers(1, facts(Primary, 2, "U1:1-100"));
        }
        assert!(!world.fence(0).is_empty());

        // What the primary acknowledged behind its last probe, the old one has not.
        world.dies(1);
        world.answers(0, facts(Primary, 1, "U1:1-100"));
        assert_eq!(world.primary(), None);

        // Restarted, it is somebody's choice.
        world.dies(0);
        let mut restarted = facts(Primary, 1, "U1:1-100");
        restarted.incarnation.started += 1;
        world.answers(0, restarted);
        assert_eq!(world.primary(), Some(0));
    }

    #[test]
    fn two_names_of_another_server_are_no_more_the_primary_than_one() {
        let mut world = three();
        world.dies(0);
        world.dies(1);
        for node in [0, 1] {
            let mut other = facts(Primary, 3, "33333333-3333-3333-3333-333333333333:1-900");
            (other.incarnation.system, other.server_id) = ("u9".into(), Some(9));
            world.answers(node, other);
        }

        assert_eq!(world.primary(), None);
    }

    #[test]
    fn another_server_at_the_dead_primarys_address_is_not_the_primary() {
        let mut world = three();
        world.dies(0);
        let mut other = facts(Primary, 3, "33333333-3333-3333-3333-333333333333:1-900");
        (other.incarnation.system, other.server_id) = ("u9".into(), Some(9));
        world.answers(0, other);
        assert_eq!(world.primary(), None);
        assert!(world.fence(0).contains("lacks writes"), "{}", world.fence(0));

        world.answers(1, facts(Primary, 2, "U1:1-100,U2:1"));
        assert_eq!(world.primary(), Some(1));

        // Set up anew, with all that there is, it may have the role.
        world.dies(1);
        let mut copy = facts(Primary, 1, "U1:1-100,U2:1");
        copy.incarnation.system = "u8".into();
        world.answers(0, copy);
        assert_eq!(world.primary(), Some(0));
    }

    #[test]
    fn duplicate_identities_are_refused() {
        let mut world = three();
        let mut double = facts(Replica, 3, "U1:1-100");
        double.server_id = Some(1);
        world.answers(2, double);
        assert_eq!(world.fence(2), "it has server_id 1, as a:1 has");

        world.answers(2, facts(Replica, 2, "U1:1-100"));
        assert_eq!(world.fence(2), "it is the same server as b:1");
        assert_eq!((world.primary(), world.fence(1)), (Some(0), String::new()));
    }

    #[test]
    fn floors_keep_what_the_new_primary_had_and_lose_the_rest() {
        let mut world = three();
        world.dies(0);
        world.answers(1, facts(Primary, 2, "U1:1-100,U2:1-7"));
        let snapshot = world.snapshot();
        let position = |text: &str| gtids(&text.replace("U1", U1).replace("U2", U2));

        for (floor, meant) in [
            ("U1:100", None),
            ("U2:8", None), // newer than the last probe
            ("U1:99-105", Some("U1:99-100")),
            ("U1:99-105,U2:8", Some("U1:99-100,U2:8")),
        ] {
            let floor = Floor::At(position(floor));
            let meant = match (meant, &floor) {
                (Some(left), _) => Resolved::Lost { left: position(left) },
                (None, Floor::At(same)) => Resolved::At(Cow::Borrowed(same)),
                _ => unreachable!("every floor here is a position"),
            };
            assert_eq!(snapshot.resolve(&floor), meant, "{floor:?}");
        }
    }

    /// A MariaDB server: `state` is its `gtid_binlog_state`, and the highest number in each domain its
    /// position.
    fn mariadb(claim: Claim, number: u64, state: &str) -> Facts {
        let mut position = std::collections::BTreeMap::new();
        for gtid in state.split(',') {
            let mut parts = gtid.split('-').map(|part| part.parse::<u64>().expect("a number"));
            let (domain, _server, sequence) = (parts.next(), parts.next(), parts.next());
            let last = position.entry(domain).or_insert((sequence, gtid));
            *last = (sequence, gtid).max(*last);
        }
        let position: Vec<&str> = position.values().map(|(_, gtid)| *gtid).collect();
        let mut facts = my(claim, number, &position.join(","));
        facts.writers = Some(Arc::new(state.parse().expect("a state")));
        facts
    }

    #[test]
    fn a_mariadb_primary_that_counted_further_alone_does_not_get_the_role_back() {
        let mut world = World::new(Mysql, 3);
        world.answers(0, mariadb(Primary, 1, "0-1-100"));
        world.answers(1, mariadb(Replica, 2, "0-1-100"));
        world.answers(2, mariadb(Replica, 3, "0-1-100"));
        world.dies(0);
        world.answers(1, mariadb(Primary, 2, "0-1-100,0-2-105"));
        assert_eq!(world.primary(), Some(1));

        // Somebody else wrote to it.
        for _ in 0..2 {
            world.answers(0, mariadb(Primary, 1, "0-1-900"));
            world.answers(1, mariadb(Primary, 2, "0-1-100,0-2-106"));
        }
        assert_eq!(world.primary(), Some(1));
        assert!(world.fence(0).contains("b:1 is"), "{}", world.fence(0));

        world.dies(1);
        assert_eq!(world.primary(), None, "a lacks what b acknowledged");
        world.answers(0, mariadb(Primary, 1, "0-1-900,0-2-106"));
        assert_eq!(world.primary(), Some(0), "it has all of it");
    }

    #[test]
    fn a_mariadb_replica_with_transactions_of_its_own_serves_nothing() {
        let mut world = World::new(Mysql, 3);
        world.answers(0, mariadb(Replica, 1, "0-1-100"));
        world.answers(1, mariadb(Primary, 2, "0-1-100,0-2-105"));
        world.answers(2, mariadb(Replica, 3, "0-1-100,0-2-107"));
        assert_eq!((world.fence(0), world.fence(2)), (String::new(), String::new()));

        world.answers(0, mariadb(Replica, 1, "0-1-900"));
        assert_eq!(world.fence(0), "it has transactions that the primary lacks: it is at 0-1-900");
        world.dies(1);
        assert!(!world.fence(0).is_empty(), "also while there is no primary");

        world.answers(0, mariadb(Replica, 1, "0-1-100,0-2-107"));
        assert_eq!(world.fence(0), "");
    }

    /// A domain's numbers go on from where the new primary stood: the lost ones are higher than new ones.
    #[test]
    fn a_write_behind_a_lost_one_is_asked_for_though_its_number_is_lower() {
        let mut world = World::new(Mysql, 2);
        world.answers(0, mariadb(Primary, 1, "0-1-100"));
        world.answers(1, mariadb(Replica, 2, "0-1-100"));
        let mut floor = Floor::At(gtids("0-1-105"));
        world.dies(0);
        world.answers(1, mariadb(Primary, 2, "0-1-100"));
        floor.raise(&Floor::At(gtids("0-2-101")), world.current());

        let meant = gtids("0-1-100,0-2-101");
        assert_eq!(world.snapshot().resolve(&floor), Resolved::Lost { left: meant.clone() });
        let covers = |position: &str| world.board.history.timelines.covers(&gtids(position), &meant);
        assert_eq!((covers("0-1-100"), covers("0-2-101")), (Some(false), Some(true)));
    }

    #[test]
    fn a_lost_floor_is_counted_though_the_new_primary_has_counted_further() {
        let mut world = World::new(Mysql, 2);
        world.answers(0, mariadb(Primary, 1, "0-1-100"));
        world.answers(1, mariadb(Replica, 2, "0-1-100"));
        world.dies(0);
        world.answers(1, mariadb(Primary, 2, "0-1-100,0-2-110"));

        let (lost, kept) = (Floor::At(gtids("0-1-105")), Floor::At(gtids("0-1-99")));
        assert_eq!(world.snapshot().resolve(&lost), Resolved::Lost { left: gtids("0-1-100") });
        assert_eq!(world.snapshot().resolve(&kept), Resolved::At(Cow::Owned(gtids("0-1-99"))));
    }

    #[test]
    fn a_mariadb_replica_of_somebody_else_vouches_for_nothing() {
        let mut world = World::new(Mysql, 3);
        world.answers(0, mariadb(Primary, 1, "0-1-104"));
        world.answers(1, mariadb(Replica, 2, "0-1-103"));
        world.answers(2, mariadb(Replica, 3, "0-1-104"));
        assert_eq!(world.node(2).position, Some(gtids("0-1-104")));

        // It follows b, which somebody promoted and the proxy did not.
        world.answers(2, mariadb(Replica, 3, "0-1-103,0-2-104"));
        let node = world.node(2);
        assert_eq!(
            world.snapshot().covers(&node.position.expect("it was asked"), &gtids("0-1-104")),
            Some(false)
        );
        assert_eq!((node.lag, node.weight), (None, 0.0));

        // What it has in a domain of its own is its own affair.
        world.answers(2, mariadb(Replica, 3, "0-1-104,7-9-50"));
        assert_eq!((world.node(2).position, world.node(2).lag), (Some(gtids("0-1-104")), Some(ms(0))));
    }

    #[test]
    fn mariadb_positions_work_by_domain() {
        let mut world = World::new(Mysql, 2);
        world.answers(0, my(Primary, 1, "0-1-100"));
        world.answers(1, my(Replica, 2, "0-1-100"));
        world.dies(0);
        world.answers(1, my(Primary, 2, "0-2-103"));

        let lost = Floor::At(gtids("0-1-110"));
        assert_eq!(world.snapshot().resolve(&lost), Resolved::Lost { left: gtids("0-2-103") });
        let own = Floor::At(gtids("0-2-110"));
        assert_eq!(world.snapshot().resolve(&own), Resolved::At(Cow::Owned(gtids("0-2-110"))));
    }
}

#[test]
fn a_server_that_refuses_the_monitor_is_asked_less_and_less_often() {
    let mut world = World::new(Postgres, 1);
    world.answers(0, pg(Primary, 1, 1, 100));
    let pause = |world: &mut World| {
        let asked = world.now - ms(1);
        world.board.probe_due(NodeId(0), world.now, true).saturating_duration_since(asked).as_millis()
    };

    let pauses = [ProbeFault::Full; 6].map(|fault| {
        world.fails(0, fault);
        let due = world.board.probe_due(NodeId(0), world.now, true);
        let pause = pause(&mut world);
        world.now = due;
        pause
    });
    assert_eq!(pauses, [50, 100, 200, 200, 200, 200]);

    // Trouble brings no probe forward while the last one failed.
    world.board.report(NodeId(0), Traffic::Broken, world.now);
    world.fails(0, ProbeFault::Full);
    world.board.report(NodeId(0), Traffic::Broken, world.now);
    assert_eq!(pause(&mut world), 200);

    world.fails(0, ProbeFault::Unreachable);
    assert_eq!(pause(&mut world), 25, "one that is gone may be back any moment");
}

#[test]
fn a_primary_that_is_full_keeps_its_role_and_loses_its_position() {
    let mut world = World::new(Postgres, 1);
    world.answers(0, pg(Primary, 1, 1, 100));

    for _ in 0..10 {
        world.fails(0, ProbeFault::Full);
    }

    let node = world.node(0);
    assert_eq!((world.primary(), node.state, node.position), (Some(0), State::Up, None));
    assert_eq!(node.trouble.as_deref(), Some("has no connection left for the monitor"));
}

#[test]
fn a_replica_that_goes_down_twice_is_benched_and_says_why() {
    let mut world = three([100, 100]);
    for _ in 0..2 {
        world.dies(1);
        world.answers(1, pg(Replica, 2, 1, 100));
    }

    let node = world.node(1);
    assert_eq!((&node.state, node.weight, node.benched), (&State::Up, 0.0, true));
    assert_eq!(node.trouble.as_deref(), Some(super::publish::BENCHED));

    world.pass(1_000);
    world.answers(0, pg(Primary, 1, 1, 100));
    world.answers(1, pg(Replica, 2, 1, 100));
    let node = world.node(1);
    assert!(node.weight > 0.0 && !node.benched && node.trouble.is_none());
}

#[test]
fn an_order_outlives_that_its_node_is_not_listed() {
    let mut world = three([100, 100]);
    let all: Vec<NodeConfig> = world.board.nodes.iter().map(|node| node.config.clone()).collect();
    let settings = world.board.settings.clone();
    assert!(world.board.drain("b:1", world.now));

    world.board.reconfigure(vec![all[0].clone(), all[2].clone()], settings.clone(), world.now);
    world.board.reconfigure(all, settings, world.now);

    world.answers(1, pg(Replica, 2, 1, 100));
    assert_eq!(world.node(1).state, State::Draining);
    assert!(world.board.undrain("b:1", world.now));
    assert_eq!(world.node(1).state, State::Up);
}

#[test]
fn an_order_is_taken_back_by_its_own_opposite_only() {
    let mut world = three([100, 100]);
    type Give = fn(&mut Board, &str, Instant) -> bool;
    let (drain, undrain): (Give, Give) = (Board::drain, Board::undrain);
    let (ban, unban): (Give, Give) = (Board::ban, Board::unban);
    let steps = [
        (ban, State::Banned),
        (undrain, State::Banned),
        (drain, State::Banned),
        (unban, State::Draining),
        (undrain, State::Up),
    ];
    for (at, (order, state)) in steps.into_iter().enumerate() {
        assert!(order(&mut world.board, "b:1", world.now));
        assert_eq!(world.node(1).state, state, "step {at}");
    }
}
