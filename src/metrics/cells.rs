//! Numbers that every worker adds to without meeting another: a cell per core, summed when read.
//!
//! Two threads that observe one `prometheus::Histogram` pay up to 190 ns each for it; here an
//! observation is two additions to a cache line that nobody else writes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use prometheus::proto;

use crate::runtime;

/// More cells than this are shared between cores: adding stays right, only dearer.
const MAX_CELLS: usize = 64;

/// Keeps neighbours off each other's cache lines (128: the prefetcher takes them in pairs).
#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

/// One `T` per worker, and one for the control plane.
pub struct Cells<T> {
    /// A power of two.
    cells: Box<[Padded<T>]>,
}

impl<T: Default> Default for Cells<T> {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = (cores + 1).next_power_of_two().min(MAX_CELLS);
        Self { cells: (0..count).map(|_| Padded::default()).collect() }
    }
}

impl<T> Cells<T> {
    /// The calling thread's own.
    pub fn mine(&self) -> &T {
        // Outside the workers the index wraps to 0.
        let at = runtime::worker().wrapping_add(1) & (self.cells.len() - 1);
        &self.cells[at].0
    }

    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.cells.iter().map(|cell| &cell.0)
    }
}

/// Upper bounds of the latency histograms, in nanoseconds: 50 µs to 10 s.
const BOUNDS: [u64; 16] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

const NANOS_PER_SECOND: f64 = 1e9;

#[derive(Default)]
struct Observed {
    /// By bucket, not cumulative; the last one has no bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// In nanoseconds: enough for 584 years.
    sum: AtomicU64,
}

/// A histogram of durations.
#[derive(Default)]
pub struct Histogram(Cells<Observed>);

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| nanos > *bound);
        let mine = self.0.mine();
        mine.counts[bucket].fetch_add(1, Ordering::Relaxed);
        mine.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many were observed, and their sum in seconds.
    pub fn totals(&self) -> (u64, f64) {
        let (counts, sum) = self.sums();
        (counts.iter().sum(), sum)
    }

    /// The duration in seconds below which a share (0 to 1) of what was observed since `before`
    /// lies, to the bucket's upper bound; `None` if nothing was.
    pub fn quantile(&self, before: &[u64], share: f64) -> Option<f64> {
        let (now, _) = self.sums();
        let grown: Vec<u64> = now
            .iter()
            .enumerate()
            .map(|(at, count)| count - before.get(at).copied().unwrap_or(0).min(*count))
            .collect();
        let total: u64 = grown.iter().sum();
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let at = grown.iter().position(|count| {
            seen += count;
            seen >= wanted && seen > 0
        })?;
        Some(BOUNDS[at.min(BOUNDS.len() - 1)] as f64 / NANOS_PER_SECOND)
    }

    /// Counts by bucket, for [`Self::quantile`] later on.
    pub fn counts(&self) -> Vec<u64> {
        self.sums().0.to_vec()
    }

    fn sums(&self) -> ([u64; BOUNDS.len() + 1], f64) {
        let mut counts = [0; BOUNDS.len() + 1];
        let mut sum = 0;
        for cell in self.0.all() {
            for (total, count) in counts.iter_mut().zip(&cell.counts) {
                *total += count.load(Ordering::Relaxed);
            }
            sum += cell.sum.load(Ordering::Relaxed);
        }
        (counts, sum as f64 / NANOS_PER_SECOND)
    }

    pub(super) fn metric(&self) -> proto::Histogram {
        let (counts, sum) = self.sums();
        let mut below = 0;
        let buckets = BOUNDS.iter().zip(counts).map(|(bound, count)| {
            below += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound as f64 / NANOS_PER_SECOND);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum);
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_land_in_the_first_bucket_that_holds_them() {
        let histogram = Histogram::default();
        for micros in [0, 50, 51, 100, 20_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }

        let metric = histogram.metric();

        let below: Vec<u64> = metric.get_bucket().iter().map(proto::Bucket::cumulative_count).collect();
        assert_eq!(below[..3], [2, 4, 4]);
        assert_eq!((below[15], metric.get_sample_count()), (4, 5));
        assert!((metric.get_sample_sum() - 20.000_201).abs() < 1e-9);
    }

    #[test]
    fn threads_add_up() {
        let histogram = Histogram::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(Duration::from_millis(1))));
            }
        });

        assert_eq!(histogram.totals().0, 4000);
    }

    #[test]
    fn a_quantile_counts_only_what_came_since() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_secs(9));
        let before = histogram.counts();
        assert_eq!(histogram.quantile(&before, 0.5), None);

        for _ in 0..99 {
            histogram.observe(Duration::from_micros(80));
        }
        histogram.observe(Duration::from_millis(40));

        assert_eq!(histogram.quantile(&before, 0.5), Some(0.000_1));
        assert_eq!(histogram.quantile(&before, 0.99), Some(0.000_1));
        assert_eq!(histogram.quantile(&before, 1.0), Some(0.05));
    }
}
