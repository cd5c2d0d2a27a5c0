use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
const B: &str = "4e11fa47-71ca-11e1-9e33-c80aa9429562";

fn set(text: &str) -> GtidSet {
    text.replace('A', A).replace('B', B).parse().expect("a GTID set")
}

#[test]
fn sets_print_as_the_server_does_whatever_the_order_they_came_in() {
    for (text, printed) in [
        ("", ""),
        ("A:1-5", "A:1-5"),
        ("A:7:1-5", "A:1-5:7"),
        ("A:1-3:4-5:5-9", "A:1-9"),
        ("B:1,\nA:1-2", "A:1-2,B:1"),
        ("A:1-5:Xy:7:1-2,B:3", "A:1-5:xy:1-2:7,B:3"),
        ("A:xy:1, A:2", "A:2:xy:1"),
        ("0-1-100,1-2-5", "0-1-100,1-2-5"),
        ("1-2-5, 0-3-7,0-1-100,0-1-9", "0-1-100,0-3-7,1-2-5"),
    ] {
        assert_eq!(set(text).to_string(), printed.replace('A', A).replace('B', B));
    }
}

#[test]
fn what_is_no_set_is_an_error() {
    for text in [
        "A",
        "A:",
        "A:0",
        "A:5-3",
        "A:1-",
        "A:x",
        "A:x:",
        "A:1:tag",
        "A:9223372036854775807",
        "A:+1",
        "1-2",
        "1-2-3-4",
        "4294967296-1-1",
        "1--1",
        "x",
        "3e11fa47:1",
        "A:averyveryverylongtagthatistoolongforit:1",
    ] {
        let text = text.replace('A', A);
        assert!(text.parse::<GtidSet>().is_err(), "{text}");
    }
    assert_eq!("1".repeat(MAX_TEXT + 1).parse::<GtidSet>(), Err(GtidFault::TooLong));
}

#[test]
fn containment_and_distance_by_example() {
    for (have, want, covers, missing) in [
        ("A:1-5", "A:1-5", true, 0),
        ("A:1-5", "A:3", true, 0),
        ("A:1-5", "A:6", false, 1),
        ("A:1-5:7-9", "A:4-8", false, 1),
        ("A:1-5", "", true, 0),
        ("", "A:1-5", false, 5),
        ("A:1-5,B:1", "A:1-3,B:1-4", false, 3),
        ("A:1-5", "A:xy:1-5", false, 5),
        ("0-1-10", "0-2-9", true, 0),
        ("0-1-10", "0-2-19,1-1-2", false, 11),
        ("0-1-10,0-2-14", "0-1-12,0-3-13", true, 0),
        ("0-1-10", "0-1-12,0-3-13", false, 3),
    ] {
        assert_eq!(set(have).covers(&set(want)), covers, "{have} covers {want}");
        assert_eq!(set(have).missing(&set(want)), missing, "{have} lacks of {want}");
    }
    assert_eq!(set("0-1-10,1-1-5").intersection(&set("0-2-7,2-1-1")), set("0-2-7"));
    assert!(set("A:1-5").strictly_covers(&set("A:1-4")) && !set("A:1-5").strictly_covers(&set("A:1-5")));
}

#[test]
fn sets_of_many_sources_are_searched_as_well() {
    let text = |sources: std::ops::Range<u32>| {
        sources.map(|n| format!("{n:08x}-0000-0000-0000-000000000000:1-3")).collect::<Vec<_>>().join(",")
    };
    let (many, some): (GtidSet, GtidSet) = (set(&text(0..40)), set(&text(30..35)));

    assert!(many.covers(&some) && !some.covers(&many));
    assert_eq!(some.missing(&many), 35 * 3);
    assert_eq!(set(&text(20..60)).intersection(&many), set(&text(20..40)));
    assert_eq!(set(&text(20..60)).union(&many), set(&text(0..60)));
}

/// A set the slow way: every transaction by itself.
type Naive = BTreeSet<(u8, u64)>;

fn naive_and_text() -> impl Strategy<Value = (Naive, String)> {
    prop::collection::vec((0..3u8, 1..40u64, 0..6u64), 0..12).prop_map(|intervals| {
        let naive = intervals
            .iter()
            .flat_map(|&(source, start, more)| (start..=start + more).map(move |n| (source, n)));
        let text = intervals
            .iter()
            .map(|&(source, start, more)| match source {
                0 => format!("{A}:{start}-{}", start + more),
                1 => format!("{B}:{start}-{}", start + more),
                _ => format!("{B}:tag:{start}-{}", start + more),
            })
            .collect::<Vec<_>>();
        (naive.collect(), text.join(","))
    })
}

fn from_naive(naive: &Naive) -> GtidSet {
    let mut set = GtidSet::default();
    for &(source, number) in naive {
        let text = match source {
            0 => format!("{A}:{number}"),
            1 => format!("{B}:{number}"),
            _ => format!("{B}:tag:{number}"),
        };
        set.extend(&text.parse().expect("one GTID"));
    }
    set
}

proptest! {
    #[test]
    fn sets_behave_as_plain_sets_of_numbers((a, a_text) in naive_and_text(), (b, b_text) in naive_and_text()) {
        let (x, y): (GtidSet, GtidSet) = (a_text.parse().unwrap(), b_text.parse().unwrap());

        prop_assert_eq!(&x, &from_naive(&a));
        prop_assert_eq!(x.covers(&y), a.is_superset(&b));
        prop_assert_eq!(x.missing(&y), b.difference(&a).count() as u64);
        prop_assert_eq!(x.union(&y), from_naive(&a.union(&b).copied().collect()));
        prop_assert_eq!(x.intersection(&y), from_naive(&a.intersection(&b).copied().collect()));
        prop_assert_eq!(x.to_string().parse::<GtidSet>().unwrap(), x);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[0-9a-fA-F:, \\-]{0,80}|\\PC{0,60}") {
        if let Ok(set) = text.parse::<GtidSet>() {
            prop_assert_eq!(set.to_string().parse::<GtidSet>().unwrap(), set);
        }
    }
}

/// Found by fuzzing: it was covered by nobody, though nobody lacked any of it.
#[test]
fn a_domain_in_which_nothing_was_written_asks_for_nothing() {
    let (have, want): (GtidSet, GtidSet) =
        ("0-1-100".parse().expect("a set"), "0-1-100,9-3-0".parse().expect("a set"));

    assert_eq!((have.missing(&want), have.covers(&want)), (0, true));
}
