//! Which worker serves whom: as few as the load allows.
//!
//! A worker that is busy finds more to do each time it looks for work, sleeps less, and keeps its
//! caches: 16 clients on one worker cost 15 % less CPU per transaction than on two. So sessions
//! gather on few workers while those have time to spare, and spread over more before they are short
//! of it.

/// Share of a core from which on a worker gives sessions up to one with less to do.
const SPREAD_ABOVE: f64 = 0.6;
/// By how much less: nobody is better off for less.
const APART: f64 = 0.2;
/// What two workers may use together to be gathered on one. Well below [`SPREAD_ABOVE`], so that
/// sessions do not go to and fro.
const GATHER_BELOW: f64 = 0.4;
/// New sessions go where less than this is used.
const PLACE_BELOW: f64 = 0.5;
/// A worker that uses less has nobody to give up.
const IN_USE: f64 = 0.001;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.5;

/// Sessions that are moved by the first of a row of equal orders, and by one at most.
const FEW: u32 = 2;
const MANY: u32 = 64;

/// Turns without an order before another worker than the last one gives sessions up: a few that each
/// keep half a core busy would otherwise go round for ever. Twice as many each time.
const FIRST_PAUSE: u32 = 8;
const LONGEST_PAUSE: u32 = 512;
/// Turns that need no order, after which that is forgotten.
const CALM: u32 = 100;

/// Sessions of one worker that are to go on on another, as they end statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub from: usize,
    pub to: usize,
    pub sessions: u32,
}

/// How busy each worker has been, and what was done about it last.
#[derive(Debug)]
pub struct Balance {
    /// Shares of a core.
    loads: Vec<f64>,
    last: Option<Order>,
    /// Length of the last pause, and turns that are left of it.
    pause: u32,
    wait: u32,
    /// Turns since an order was needed.
    calm: u32,
}

impl Balance {
    pub fn new(workers: usize) -> Self {
        Self { loads: vec![0.0; workers], last: None, pause: 0, wait: 0, calm: 0 }
    }

    /// Takes note of how busy each worker was lately, as shares of a core. Who goes on being too busy
    /// is relieved of twice as many the next time: how many of its sessions are at work is not known.
    pub fn step(&mut self, busy: &[f64]) -> Option<Order> {
        for (load, now) in self.loads.iter_mut().zip(busy) {
            *load += NEWEST * (now - *load);
        }
        if self.wait > 0 {
            self.wait -= 1;
            return None;
        }
        let Some((from, to)) = self.spread().or_else(|| self.gather()) else {
            self.calm += 1;
            if self.calm >= CALM {
                (self.last, self.pause) = (None, 0);
            }
            return None;
        };
        let sessions = match self.last {
            Some(last) if (last.from, last.to) == (from, to) && self.calm == 0 => {
                (last.sessions * 2).min(MANY)
            }
            Some(last) if last.from != from => {
                self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                (self.wait, self.last) = (self.pause, None);
                return None;
            }
            _ => FEW,
        };
        self.calm = 0;
        self.last = Some(Order { from, to, sessions });
        self.last
    }

    /// The worker for a new session.
    pub fn place(&self) -> usize {
        let spare = self.loads.iter().position(|load| *load < PLACE_BELOW);
        spare.or_else(|| self.extreme(f64::total_cmp)).unwrap_or(0)
    }

    fn spread(&self) -> Option<(usize, usize)> {
        let from = self.extreme(|one, other| other.total_cmp(one))?;
        let to = self.extreme(f64::total_cmp)?;
        let busy = self.loads[from] > SPREAD_ABOVE && self.loads[from] - self.loads[to] > APART;
        busy.then_some((from, to))
    }

    fn gather(&self) -> Option<(usize, usize)> {
        let count = self.loads.len();
        (0..count).find_map(|to| {
            let fits = |from: &usize| {
                self.loads[*from] > IN_USE && self.loads[*from] + self.loads[to] < GATHER_BELOW
            };
            (to + 1..count).rev().find(fits).map(|from| (from, to))
        })
    }

    fn extreme(&self, order: impl Fn(&f64, &f64) -> std::cmp::Ordering) -> Option<usize> {
        (0..self.loads.len()).min_by(|one, other| order(&self.loads[*one], &self.loads[*other]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After so long with the same figures.
    fn settled(busy: &[f64]) -> (Balance, Option<Order>) {
        let mut balance = Balance::new(busy.len());
        let mut order = None;
        for _ in 0..20 {
            order = balance.step(busy);
        }
        (balance, order)
    }

    /// From and to.
    type Moves = Option<(usize, usize)>;

    fn moves(busy: &[f64]) -> Moves {
        settled(busy).1.map(|order| (order.from, order.to))
    }

    #[test]
    fn sessions_gather_while_few_workers_suffice_and_spread_before_they_do_not() {
        let cases: [(&[f64], Moves); 9] = [
            (&[0.0, 0.0], None),
            (&[0.3, 0.0], None),
            (&[0.15, 0.15], Some((1, 0))),
            (&[0.0, 0.3], Some((1, 0))),
            (&[0.3, 0.3], None),
            (&[0.9, 0.1], Some((0, 1))),
            (&[0.7, 0.6], None),
            (&[0.9, 0.8, 0.0, 0.05], Some((0, 2))),
            (&[0.55, 0.3, 0.05, 0.02], Some((3, 1))),
        ];
        for (busy, expected) in cases {
            assert_eq!(moves(busy), expected, "{busy:?}");
        }
    }

    #[test]
    fn new_sessions_go_to_the_first_worker_with_time_to_spare() {
        let cases: [(&[f64], usize); 4] =
            [(&[0.0, 0.0], 0), (&[0.45, 0.0], 0), (&[0.55, 0.1], 1), (&[0.9, 0.7, 0.8], 1)];
        for (busy, expected) in cases {
            assert_eq!(settled(busy).0.place(), expected, "{busy:?}");
        }
    }

    #[test]
    fn an_order_that_does_not_help_grows_up_to_a_bound() {
        let mut balance = Balance::new(2);
        let orders: Vec<_> =
            (0..9).filter_map(|_| balance.step(&[1.0, 0.0])).map(|order| order.sessions).collect();
        assert_eq!(orders, [2, 4, 8, 16, 32, 64, 64, 64]);
    }

    /// Sessions that each use a share of a core, moved as ordered: the loads settle, and stay.
    #[test]
    fn whatever_the_load_nobody_goes_to_and_fro_for_ever() {
        for sessions in [1, 2, 7, 16, 64, 300] {
            for each in [0.001, 0.01, 0.05, 0.3, 0.5, 0.7] {
                let mut on = [sessions, 0, 0, 0];
                let mut balance = Balance::new(on.len());
                let mut moved_lately = 0;
                for turn in 0..200 {
                    let busy = on.map(|count: u32| (f64::from(count) * each).min(1.0));
                    let Some(order) = balance.step(&busy) else { continue };
                    let count = order.sessions.min(on[order.from]);
                    on[order.from] -= count;
                    on[order.to] += count;
                    moved_lately += if turn >= 100 { count } else { 0 };
                }
                assert!(moved_lately <= MANY, "{sessions} sessions of {each}: {on:?}, {moved_lately}");
            }
        }
    }
}
