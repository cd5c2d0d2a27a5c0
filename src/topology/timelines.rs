//! How PostgreSQL's timelines hang together: what a position on an older one is still worth.

use super::position::{Lsn, Position};

/// Forks remembered; older ones are forgotten, and positions before them no longer compare.
pub const MAX_FORKS: usize = 64;

/// The forks of one system's timelines as far as they are known, oldest first.
///
/// A fork's exact place stands in a file of the server that a monitor may not read. What probes
/// show are two bounds: the last position replayed before the promotion, and the first one
/// written after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timelines {
    forks: Vec<Fork>,
}

/// Where a timeline left its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    pub parent: u32,
    pub child: u32,
    /// Everything of the parent up to here is in the child.
    pub at_least: Lsn,
    /// Nothing of the parent from here on is in the child.
    pub at_most: Lsn,
}

impl Timelines {
    /// Notes a fork; known bounds of the same fork only get tighter.
    pub fn learn(&mut self, fork: Fork) {
        if fork.child <= fork.parent || fork.parent == 0 {
            return;
        }
        if let Some(known) = self.forks.iter_mut().find(|known| known.child == fork.child) {
            if known.parent == fork.parent {
                known.at_least = known.at_least.max(fork.at_least);
                known.at_most = known.at_most.min(fork.at_most);
            }
            return;
        }
        if self.forks.len() == MAX_FORKS {
            self.forks.remove(0);
        }
        self.forks.push(fork);
    }

    /// The bounds within which `ancestor` was left on the way to `descendant`; `None` where it is
    /// not known to be one.
    pub fn fork(&self, ancestor: u32, descendant: u32) -> Option<Fork> {
        let mut child = descendant;
        let mut path: Option<Fork> = None;
        // A child is above its parent, so each step ends nearer to the ancestor.
        while child > ancestor {
            let fork = self.forks.iter().find(|fork| fork.child == child)?;
            let (at_least, at_most) = match path {
                Some(path) => (fork.at_least.min(path.at_least), fork.at_most.min(path.at_most)),
                None => (fork.at_least, fork.at_most),
            };
            path = Some(Fork { parent: fork.parent, child: descendant, at_least, at_most });
            child = fork.parent;
        }
        path.filter(|_| child == ancestor)
    }

    /// Whether a server at `position` has all that `floor` asks for; `None` where that is not
    /// known: other systems, unrelated timelines, a side beyond the fork.
    pub fn covers(&self, position: &Position, floor: &Position) -> Option<bool> {
        let (
            Position::Postgres { system, timeline, lsn },
            Position::Postgres { system: floor_system, timeline: floor_timeline, lsn: floor_lsn },
        ) = (position, floor)
        else {
            return position.covers(floor);
        };
        if system != floor_system || *timeline == 0 || *floor_timeline == 0 {
            return None;
        }
        let shared = match timeline.cmp(floor_timeline) {
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Greater => *floor_lsn <= self.fork(*floor_timeline, *timeline)?.at_least,
            std::cmp::Ordering::Less => *lsn <= self.fork(*timeline, *floor_timeline)?.at_least,
        };
        shared.then_some(lsn >= floor_lsn)
    }

    /// Whether `position` is certainly on history that `current`'s timeline does not have.
    pub fn lost(&self, position: &Position, current: &Position) -> bool {
        let (
            Position::Postgres { system, timeline, lsn },
            Position::Postgres { system: current_system, timeline: current_timeline, .. },
        ) = (position, current)
        else {
            return false;
        };
        system == current_system
            && *timeline != 0
            && timeline < current_timeline
            && self.fork(*timeline, *current_timeline).is_some_and(|fork| *lsn > fork.at_most)
    }

    pub fn forks(&self) -> &[Fork] {
        &self.forks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timeline: u32, lsn: u64) -> Position {
        Position::Postgres { system: 1, timeline, lsn: Lsn(lsn) }
    }

    fn two_forks() -> Timelines {
        let mut timelines = Timelines::default();
        timelines.learn(Fork { parent: 1, child: 2, at_least: Lsn(100), at_most: Lsn(110) });
        timelines.learn(Fork { parent: 2, child: 3, at_least: Lsn(200), at_most: Lsn(220) });
        timelines
    }

    #[test]
    fn a_position_on_an_older_timeline_counts_up_to_the_fork() {
        for (position, floor, covers) in [
            (at(1, 90), at(1, 80), Some(true)),
            (at(2, 150), at(1, 100), Some(true)),
            (at(2, 150), at(1, 101), None), // not known to have survived
            (at(1, 100), at(2, 120), Some(false)),
            (at(1, 130), at(2, 120), None), // larger, but on lost history
            (at(3, 300), at(1, 100), Some(true)),
            (at(3, 300), at(2, 200), Some(true)),
            (at(3, 300), at(2, 201), None),
            (at(4, 300), at(3, 250), None), // how 4 came about is not known
            (at(0, 300), at(1, 1), None),
            (at(3, 90), at(1, 95), Some(false)), // still replaying what came before the fork
        ] {
            assert_eq!(two_forks().covers(&position, &floor), covers, "{position} against {floor}");
        }
    }

    #[test]
    fn only_what_is_past_the_upper_bound_is_called_lost() {
        for (position, lost) in [
            (at(1, 110), false),
            (at(1, 111), true),
            (at(2, 221), true),
            (at(3, 999), false),
            (at(0, 999), false),
        ] {
            assert_eq!(two_forks().lost(&position, &at(3, 300)), lost, "{position}");
        }
    }

    #[test]
    fn bounds_only_get_tighter_and_nonsense_is_not_learned() {
        let mut timelines = two_forks();
        timelines.learn(Fork { parent: 1, child: 2, at_least: Lsn(105), at_most: Lsn(500) });
        timelines.learn(Fork { parent: 5, child: 5, at_least: Lsn(1), at_most: Lsn(2) });
        timelines.learn(Fork { parent: 7, child: 5, at_least: Lsn(1), at_most: Lsn(2) });

        assert_eq!(
            timelines.forks(),
            [
                Fork { parent: 1, child: 2, at_least: Lsn(105), at_most: Lsn(110) },
                Fork { parent: 2, child: 3, at_least: Lsn(200), at_most: Lsn(220) },
            ]
        );
    }
}
