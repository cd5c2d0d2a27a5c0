//! Floors that many sessions share, table by table: what `user` and `global` consistency go by.
//!
//! A write is entered before its answer can reach the client and while it runs its tables are
//! known to nobody but the primary; so there is no moment in which one client has the answer and
//! another's read does not know of the write (hard case 17).

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::{
    route::Floor,
    sql::Tables,
    topology::{History, Incarnation, Position, ProbeNumber, Resolved, Snapshot},
};

/// Tables whose floors are kept apart; beyond that the floors of all become one.
const MAX_TABLES: usize = 4096;

/// The floors of one database, of all sessions or of one user's.
#[derive(Debug, Default)]
pub struct SharedFloors(Mutex<Floors>);

#[derive(Debug, Default)]
struct Floors {
    tables: HashMap<Box<str>, Entry>,
    /// Of writes that may have touched anything.
    everything: Entry,
    /// Of all writes: what a read of unknown tables has to meet.
    newest: Entry,
    /// The primary's past that they were held against last.
    history: Option<Arc<History>>,
}

#[derive(Debug, Default)]
struct Entry {
    floor: Floor,
    /// Writes under way.
    running: u32,
}

/// Writes under way to tables; dropping it ends them without effect on the floors.
#[derive(Debug)]
pub struct Writing {
    floors: Arc<SharedFloors>,
    tables: Tables,
}

impl SharedFloors {
    /// A write to `tables` is about to be sent that may be committed when it is answered.
    pub fn begin(self: &Arc<Self>, tables: &Tables) -> Writing {
        self.0.lock().each(tables, |entry| entry.running += 1);
        Writing { floors: self.clone(), tables: tables.clone() }
    }

    /// What a read of `tables` must not be behind of. `lost` hears of each table's floor that lay in
    /// history that was thrown away, once, and of what is left of it.
    pub fn of(&self, tables: &Tables, snapshot: &Snapshot, lost: impl FnMut(&Position)) -> Floor {
        let mut floors = self.0.lock();
        floors.survive(snapshot, lost);
        let Tables::Some(names) = tables else { return floors.newest.bound() };
        let named = names.iter().filter_map(|name| floors.tables.get(name));
        named.map(Entry::bound).fold(floors.everything.bound(), |all, next| higher(all, next, snapshot))
    }
}

impl Writing {
    /// The writes were answered when `current` was the last probe sent; `floor` bounds them.
    pub fn end(self, floor: &Floor, current: ProbeNumber) {
        self.floors.0.lock().each(&self.tables, |entry| entry.floor.raise(floor, current));
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut floors = self.floors.0.lock();
        floors.each(&self.tables, |entry| entry.running = entry.running.saturating_sub(1));
        floors.bound();
    }
}

impl Floors {
    fn each(&mut self, tables: &Tables, mut act: impl FnMut(&mut Entry)) {
        act(&mut self.newest);
        let Tables::Some(names) = tables else { return act(&mut self.everything) };
        for name in names.iter() {
            match self.tables.get_mut(name) {
                Some(entry) => act(entry),
                None => act(self.tables.entry(name.clone()).or_default()),
            }
        }
    }

    /// Lowers what the last failover or crash threw away, if there was one since the last time.
    fn survive(&mut self, snapshot: &Snapshot, mut lost: impl FnMut(&Position)) {
        if self.history.as_ref().is_some_and(|known| Arc::ptr_eq(known, &snapshot.history)) {
            return;
        }
        self.history = Some(snapshot.history.clone());
        for entry in self.tables.values_mut().chain([&mut self.everything]) {
            if let Some(left) = entry.survive(snapshot) {
                lost(&left);
            }
        }
        // The sum of the others.
        self.newest.survive(snapshot);
    }

    /// Keeps the number of tables bounded.
    fn bound(&mut self) {
        if self.tables.len() > MAX_TABLES {
            self.tables.retain(|_, entry| entry.running > 0);
            self.everything.floor = self.newest.floor.clone();
        }
    }
}

impl Entry {
    /// `Some`: its floor was lost, this is what is left of it.
    fn survive(&mut self, snapshot: &Snapshot) -> Option<Position> {
        let Resolved::Lost { left } = snapshot.resolve(&self.floor) else { return None };
        self.floor = Floor::At(left.clone());
        Some(left)
    }

    fn bound(&self) -> Floor {
        if self.running > 0 { Floor::not_before_ever() } else { self.floor.clone() }
    }
}

impl Floor {
    /// Met by the primary only.
    fn not_before_ever() -> Self {
        let incarnation = Incarnation { system: Arc::from(""), started: 0 };
        Self::Unsampled { incarnation, after: ProbeNumber(u64::MAX) }
    }

    /// Raises it to a write that was answered just now, with `current` the last probe sent.
    pub fn raise(&mut self, write: &Floor, current: ProbeNumber) {
        match (&mut *self, write) {
            (_, Floor::None) => {}
            (Self::At(Position::Mysql(have)), Self::At(Position::Mysql(more))) => {
                *have = Arc::new(have.union(more));
            }
            // What is sampled from now on covers both.
            (Self::Unsampled { after, .. }, Self::At(_)) => *after = current,
            (floor, write) => *floor = write.clone(),
        }
    }
}

/// The floor that asks for both.
pub fn higher(one: Floor, other: Floor, snapshot: &Snapshot) -> Floor {
    let (a, b) = match (snapshot.resolve(&one), snapshot.resolve(&other)) {
        (Resolved::None, _) => return other,
        (_, Resolved::None) => return one,
        (Resolved::Pending, _) => return one,
        (_, Resolved::Pending) => return other,
        (a, b) => (position(a), position(b)),
    };
    let (Some(a), Some(b)) = (a, b) else { return one };
    if let (Position::Mysql(a), Position::Mysql(b)) = (&a, &b) {
        return Floor::At(Position::Mysql(Arc::new(a.union(b))));
    }
    match (snapshot.covers(&a, &b), snapshot.covers(&b, &a)) {
        (Some(true), _) => Floor::At(a),
        (_, Some(true)) => Floor::At(b),
        _ => Floor::At(beyond(a, b)),
    }
}

/// What contains two positions that do not compare because a promotion between them has not been
/// seen yet: as far on the newer timeline as the farther of them.
fn beyond(a: Position, b: Position) -> Position {
    match (&a, &b) {
        (
            Position::Postgres { system, timeline: one, lsn },
            Position::Postgres { timeline: other, lsn: other_lsn, .. },
        ) => Position::Postgres { system: *system, timeline: *one.max(other), lsn: *lsn.max(other_lsn) },
        _ => b,
    }
}

fn position(resolved: Resolved<'_>) -> Option<Position> {
    match resolved {
        Resolved::At(position) => Some(position.into_owned()),
        Resolved::Lost { left } => Some(left),
        Resolved::None | Resolved::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::topology::{
        Claim, Engine, Lsn,
        board::fixture::{World, pg},
    };

    fn tables(names: &[&str]) -> Tables {
        Tables::Some(names.iter().map(|&name| name.into()).collect())
    }

    fn at(lsn: u64) -> Floor {
        Floor::At(Position::Postgres { system: 1, timeline: 1, lsn: Lsn(lsn) })
    }

    fn write(floors: &Arc<SharedFloors>, to: &Tables, floor: &Floor) {
        floors.begin(to).end(floor, ProbeNumber(1));
    }

    #[test]
    fn a_read_has_to_meet_the_writes_to_its_tables_only() {
        let floors = Arc::new(SharedFloors::default());
        let snapshot = Snapshot::empty(Instant::now());
        write(&floors, &tables(&["a", "b"]), &at(10));
        write(&floors, &tables(&["b"]), &at(20));

        for (read, floor) in [
            (tables(&["a"]), at(10)),
            (tables(&["b"]), at(20)),
            (tables(&["a", "b"]), at(20)),
            (tables(&["c"]), Floor::None),
            (tables(&[]), Floor::None),
            (Tables::All, at(20)),
        ] {
            assert_eq!(floors.of(&read, &snapshot, |_| {}), floor, "{read:?}");
        }

        write(&floors, &Tables::All, &at(30));
        assert_eq!(floors.of(&tables(&["c"]), &snapshot, |_| {}), at(30));
    }

    #[test]
    fn a_floor_that_a_failover_throws_away_is_told_of_once() {
        let floors = Arc::new(SharedFloors::default());
        let mut world = World::new(Engine::Postgres, 2);
        world.answers(0, pg(Claim::Primary, 1, 1, 100));
        world.answers(1, pg(Claim::Replica, 2, 1, 100));
        write(&floors, &tables(&["c"]), &at(90));
        write(&floors, &tables(&["a", "b"]), &at(190));
        world.dies(0);
        world.answers(1, pg(Claim::Primary, 2, 2, 130));

        let (snapshot, mut told) = (world.snapshot(), Vec::new());
        for read in [tables(&["c"]), tables(&["a"]), tables(&["a"]), tables(&["b"]), Tables::All] {
            floors.of(&read, &snapshot, |left| told.push(left.clone()));
        }

        let left = Position::Postgres { system: 1, timeline: 2, lsn: Lsn(130) };
        assert_eq!(told, [left.clone(), left.clone()], "those of a and b");
        assert_eq!(floors.of(&tables(&["a"]), &snapshot, |_| {}), Floor::At(left.clone()));
        assert_eq!(floors.of(&Tables::All, &snapshot, |_| {}), Floor::At(left));
    }

    #[test]
    fn of_two_floors_that_do_not_compare_neither_is_given_up() {
        let snapshot = Snapshot::empty(Instant::now());
        let on = |timeline, lsn| Floor::At(Position::Postgres { system: 1, timeline, lsn: Lsn(lsn) });
        for (one, other, both) in [
            (on(7, 100), on(8, 90), on(8, 100)),
            (on(8, 90), on(7, 100), on(8, 100)),
            (on(7, 100), on(7, 90), on(7, 100)),
            (on(7, 100), Floor::None, on(7, 100)),
            (on(7, 100), on(0, 120), on(7, 120)),
        ] {
            assert_eq!(higher(one, other, &snapshot), both);
        }
    }

    #[test]
    fn while_a_write_runs_only_the_primary_can_answer_for_its_tables() {
        let floors = Arc::new(SharedFloors::default());
        let snapshot = Snapshot::empty(Instant::now());
        let pending =
            |read: &Tables| snapshot.resolve(&floors.of(read, &snapshot, |_| {})) == Resolved::Pending;

        let writing = floors.begin(&tables(&["a"]));
        assert!(pending(&tables(&["a"])) && pending(&Tables::All) && !pending(&tables(&["b"])));
        drop(writing);
        assert!(!pending(&tables(&["a"])) && !pending(&Tables::All));
    }

    #[test]
    fn more_tables_than_are_kept_apart_become_one() {
        let floors = Arc::new(SharedFloors::default());
        for table in 0..=MAX_TABLES {
            write(&floors, &tables(&[&format!("t{table}")]), &at(table as u64));
        }
        assert!(floors.0.lock().tables.len() <= MAX_TABLES);
        let snapshot = Snapshot::empty(Instant::now());
        assert_eq!(floors.of(&tables(&["other"]), &snapshot, |_| {}), at(MAX_TABLES as u64));
    }
}
