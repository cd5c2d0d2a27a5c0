//! What is judged in the same way for both databases.

use std::time::Duration;

use super::Severity;
use crate::{config::Pool, monitor};

/// Clocks further apart than this make times in logs useless and expire what should live, in seconds.
const SKEW: f64 = 2.0;

/// A node further away than this answers reads later than most others would.
const FAR: Duration = Duration::from_millis(20);

/// A finding about a server that does not know yet which one.
pub(super) struct Remark {
    pub severity: Severity,
    pub what: String,
    pub mend: &'static str,
}

/// What a server's clock (less ours, in seconds), its distance and the connections it has for
/// ordinary users give rise to.
pub(super) fn remarks(
    skew: f64,
    round_trip: Duration,
    pool: &Pool,
    connections: Option<u32>,
) -> impl Iterator<Item = Remark> {
    let connections = connections.and_then(|available| self::connections(pool, available));
    [clock(skew), distance(round_trip), connections].into_iter().flatten()
}

fn clock(skew: f64) -> Option<Remark> {
    (skew.abs() > SKEW).then(|| Remark {
        severity: Severity::Warning,
        what: format!("its clock is {skew:.1} s off this machine's"),
        mend: "run chrony or another NTP client on both",
    })
}

fn distance(round_trip: Duration) -> Option<Remark> {
    (round_trip > FAR).then(|| Remark {
        severity: Severity::Note,
        what: format!("a round trip takes {:.0} ms", round_trip.as_secs_f64() * 1e3),
        mend: "give it a zone, and routing.zone here, so that nearer replicas are preferred",
    })
}

fn connections(pool: &Pool, available: u32) -> Option<Remark> {
    let share = monitor::share_of_connections(available);
    let what = match pool.node_connections {
        Some(wanted) if wanted > available as usize => {
            format!("pool.node_connections is {wanted}, but it gives ordinary users {available}")
        }
        None if pool.size > share => format!(
            "pool.size is {}, but of the {available} connections that it gives ordinary users all pools together \
             take {share} at most",
            pool.size
        ),
        _ => return None,
    };
    Some(Remark { severity: Severity::Warning, what, mend: "lower the one or raise max_connections" })
}
