//! Elections over generated clusters; scenarios are with the board.

use proptest::prelude::*;

use super::*;
use crate::topology::board::fixture::{at, gtids, ms, my, pg};

/// One generated node.
#[derive(Clone, Debug)]
struct Drawn {
    reachable: bool,
    facts: Option<Facts>,
    claimed: u64,
    answered: u64,
    followed: bool,
    replayed: Option<Position>,
}

fn drawn(facts: impl Strategy<Value = Facts>) -> impl Strategy<Value = Drawn> {
    (any::<bool>(), prop::option::weighted(0.9, facts), 0..20u64, 0..20u64, any::<bool>(), 80..130u64)
        .prop_map(|(reachable, facts, claimed, answered, followed, replayed)| Drawn {
            reachable: reachable && facts.is_some(),
            facts,
            claimed,
            answered,
            followed,
            replayed: Some(at(1, replayed)),
        })
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![Just(Claim::Primary), Just(Claim::Replica)]
}

fn postgres_facts() -> impl Strategy<Value = Facts> {
    (claim(), 0..40i64, 0..4u32, 80..130u64)
        .prop_map(|(claim, started, timeline, lsn)| pg(claim, started, timeline, lsn))
}

fn mysql_facts() -> impl Strategy<Value = Facts> {
    (claim(), 1..6u64, 1..4u64, 1..4u64).prop_map(|(claim, number, one, two)| {
        let set = format!(
            "11111111-1111-1111-1111-111111111111:1-{one},22222222-2222-2222-2222-222222222222:1-{two}"
        );
        my(claim, number, &set)
    })
}

fn addresses() -> Vec<Arc<str>> {
    ["a:1", "b:1", "c:1", "d:1"].map(Arc::from).to_vec()
}

fn candidates<'a>(addresses: &'a [Arc<str>], drawn: &'a [Drawn]) -> Vec<Candidate<'a>> {
    let start = Instant::now();
    drawn
        .iter()
        .zip(addresses)
        .enumerate()
        .map(|(id, (drawn, address))| Candidate {
            id: NodeId(id),
            address,
            reachable: drawn.reachable,
            probed: true,
            facts: drawn.facts.as_ref(),
            timeline: drawn.facts.as_ref().and_then(|facts| facts.timeline),
            claimed: Some(start + ms(drawn.claimed.min(drawn.answered))),
            answered: Some((start + ms(drawn.answered), start + ms(drawn.answered + 1))),
            followed: drawn.followed,
            deposed: false,
            replayed: drawn.replayed.as_ref(),
        })
        .collect()
}

/// What holds for both databases.
fn sound(nodes: &[Candidate<'_>], verdict: &Verdict) -> Result<(), TestCaseError> {
    let fenced = |id: NodeId| verdict.fences.iter().any(|(fenced, _)| *fenced == id);
    if let Ok(primary) = verdict.primary {
        let node = &nodes[primary.0];
        prop_assert!(node.claims_primary(), "elected without a claim");
        prop_assert!(!fenced(primary), "elected and fenced");
        for other in nodes.iter().filter(|other| other.id != primary && other.claims_primary()) {
            prop_assert!(fenced(other.id), "a second claimer goes free");
        }
    }
    for (at, (id, _)) in verdict.fences.iter().enumerate() {
        prop_assert!(!verdict.fences[..at].iter().any(|(other, _)| other == id), "fenced twice");
    }
    Ok(())
}

proptest! {
    #[test]
    fn postgres_never_goes_back_to_an_older_timeline(
        drawn in prop::collection::vec(drawn(postgres_facts()), 1..5),
        incumbent in prop::option::of((0..4usize, 1..4u32, 80..130u64)),
    ) {
        let addresses = addresses();
        let nodes = candidates(&addresses, &drawn);
        let incumbent = incumbent.map(|(node, timeline, lsn)| Incumbent {
            server: None,
            address: Arc::clone(&addresses[node]),
            timeline: Some(timeline),
            written: Some(at(timeline, lsn)),
        });
        let timelines = Timelines::default();
        let ballot = Ballot {
            engine: Engine::Postgres,
            system: Some("1"),
            incumbent: incumbent.as_ref(),
            leader: None,
            timelines: &timelines,
            without_since: Some(Instant::now() - ms(1000)),
        };

        let verdict = elect(&nodes, ballot);

        sound(&nodes, &verdict)?;
        if let Ok(primary) = verdict.primary {
            let own = nodes[primary.0].timeline;
            let same_server = |node: &Candidate<'_>| matches!(
                verdict.fences.iter().find(|(id, _)| *id == node.id), Some((_, Fence::SameServer { .. })));
            for node in nodes.iter().filter(|node| node.reachable && !same_server(node)) {
                prop_assert!(node.timeline <= own, "{:?} is ahead of the elected {own:?}", node.timeline);
            }
            prop_assert!(incumbent.is_none_or(|incumbent| incumbent.timeline <= own));
        }
    }

    #[test]
    fn mysql_keeps_the_incumbent_unless_somebody_has_all_it_acknowledged(
        drawn in prop::collection::vec(drawn(mysql_facts()), 1..5),
        incumbent in prop::option::of((0..4usize, 1..4u64)),
    ) {
        let addresses = addresses();
        let nodes = candidates(&addresses, &drawn);
        let incumbent = incumbent.map(|(node, one)| Incumbent {
            server: None,
            address: Arc::clone(&addresses[node]),
            timeline: None,
            written: Some(gtids(&format!("11111111-1111-1111-1111-111111111111:1-{one}"))),
        });
        let timelines = Timelines::default();
        let ballot = Ballot {
            engine: Engine::Mysql,
            system: None,
            incumbent: incumbent.as_ref(),
            leader: None,
            timelines: &timelines,
            without_since: Some(Instant::now() - ms(1000)),
        };

        let verdict = elect(&nodes, ballot);

        sound(&nodes, &verdict)?;
        let sitting = nodes.iter().find(|node| node.is_incumbent(incumbent.as_ref()));
        if let (Ok(primary), Some(sitting), Some(last)) = (verdict.primary, sitting, &incumbent)
            && primary != sitting.id
        {
            let elected = &nodes[primary.0];
            let has_all = elected.executed().zip(last.written.as_ref())
                .is_some_and(|(own, written)| own.covers(written) == Some(true));
            let yielded = sitting.reachable && !sitting.claims_primary();
            if sitting.claims_primary() {
                prop_assert!(has_all, "took over from a living primary without all of its writes");
            } else {
                prop_assert!(has_all || yielded || elected.followed);
            }
        }
    }
}

/// A node that was asked, and answered.
fn answering(facts: Facts) -> Drawn {
    Drawn { reachable: true, facts: Some(facts), claimed: 1, answered: 2, followed: false, replayed: None }
}

fn ballot<'a>(engine: Engine, incumbent: &'a Incumbent, timelines: &'a Timelines) -> Ballot<'a> {
    Ballot {
        engine,
        system: (engine == Engine::Postgres).then_some("1"),
        incumbent: Some(incumbent),
        leader: None,
        timelines,
        without_since: Some(Instant::now()),
    }
}

#[test]
fn nobody_is_elected_before_the_remembered_primary_was_asked() {
    let (addresses, timelines) = (addresses(), Timelines::default());
    let set = "11111111-1111-1111-1111-111111111111:1-3";
    let drawn = [answering(my(Claim::Primary, 1, set)), answering(my(Claim::Primary, 2, set))];
    let last = Incumbent {
        address: Arc::clone(&addresses[0]),
        timeline: None,
        written: Some(gtids(set)),
        server: None,
    };
    let mut nodes = candidates(&addresses, &drawn);
    let asked = nodes[0].clone();
    nodes[0] = Candidate { probed: false, reachable: false, facts: None, ..asked.clone() };

    let verdict = elect(&nodes, ballot(Engine::Mysql, &last, &timelines));
    assert_eq!(verdict.primary, Err(Nobody::NotAllProbed));

    nodes[0] = asked;
    let verdict = elect(&nodes, ballot(Engine::Mysql, &last, &timelines));
    assert_eq!(verdict.primary, Ok(NodeId(0)));
}

#[test]
fn a_twin_on_the_same_timeline_gets_the_role_of_a_yielding_primary_only_with_all_it_wrote() {
    let (addresses, timelines) = (addresses(), Timelines::default());
    let last = Incumbent {
        address: Arc::clone(&addresses[0]),
        timeline: Some(1),
        written: Some(at(1, 100)),
        server: None,
    };
    for (twin, elected) in [(99, None), (100, Some(NodeId(1)))] {
        let drawn = [answering(pg(Claim::Replica, 1, 1, 100)), answering(pg(Claim::Primary, 2, 1, twin))];

        let verdict = elect(&candidates(&addresses, &drawn), ballot(Engine::Postgres, &last, &timelines));

        assert_eq!(verdict.primary.ok(), elected, "a twin at {twin}");
    }
}
