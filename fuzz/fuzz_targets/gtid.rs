//! GTID sets and positions: reading never panics, what is printed is read as the same, and the set
//! operations agree with each other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::topology::{GtidSet, Lsn};

fuzz_target!(|text: &str| {
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
    }
    let (left, right) = text.split_once('\n').unwrap_or((text, ""));
    let (Ok(left), Ok(right)) = (left.parse::<GtidSet>(), right.parse::<GtidSet>()) else { return };
    assert_eq!(left.to_string().parse::<GtidSet>().as_ref(), Ok(&left));
    let (union, common) = (left.union(&right), left.intersection(&right));
    assert!(left.covers(&left) && union.covers(&left) && union.covers(&right));
    assert!(left.covers(&common) && right.covers(&common));
    assert_eq!(left.covers(&right), left.missing(&right) == 0, "{left} {right}");
    assert!(!left.strictly_covers(&right) || left.covers(&right));
});
