//! How long events take, counted below fixed bounds.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bounds, in milliseconds: what the kernel hands over in one and what an
/// outage of the other side takes.
const BOUNDS_MS: [u64; 14] =
    [1, 3, 10, 30, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 100_000, 300_000];

const NS_PER_MS: u64 = 1_000_000;

/// How often something took how long, counted by any number of threads.
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many took as long as one bound at most, and longer than the one
    /// before; the last are those beyond all bounds.
    counts: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Each bound in seconds, and how many took as long at most.
    pub below: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// How long they took together, in seconds.
    pub sum_seconds: f64,
}

/// Some that are counted at once, by one thread.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    counts: [u64; BOUNDS_MS.len() + 1],
    sum_ns: u64,
}

impl Batch {
    pub(crate) fn add(&mut self, took_ns: u64) {
        let index = BOUNDS_MS.partition_point(|bound| bound * NS_PER_MS < took_ns);
        if let Some(count) = self.counts.get_mut(index) {
            *count += 1;
        }
        self.sum_ns = self.sum_ns.saturating_add(took_ns);
    }
}

impl Histogram {
    pub(crate) fn add(&self, batch: &Batch) {
        for (all, more) in self.counts.iter().zip(&batch.counts) {
            if *more > 0 {
                all.fetch_add(*more, Ordering::Relaxed);
            }
        }
        self.sum_ns.fetch_add(batch.sum_ns, Ordering::Relaxed);
    }

    /// As it is now.
    #[must_use]
    pub fn read(&self) -> Distribution {
        let mut count = 0;
        let mut up_to = |index: usize| {
            count += self.counts.get(index).map_or(0, |n| n.load(Ordering::Relaxed));
            count
        };
        let bounds = BOUNDS_MS.iter().enumerate();
        let below = bounds.map(|(i, ms)| (*ms as f64 / 1e3, up_to(i))).collect();
        let count = up_to(BOUNDS_MS.len());
        let sum_seconds = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        Distribution { below, count, sum_seconds }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_took_as_long_as_a_bound_is_within_it() {
        let mut batch = Batch::default();
        for took_ns in [0, 1_000_000, 1_000_001, 300_000_000_000, 300_000_000_001] {
            batch.add(took_ns);
        }
        let histogram = Histogram::default();
        histogram.add(&batch);
        let read = histogram.read();
        assert_eq!(read.below[..2], [(0.001, 2), (0.003, 3)]);
        assert_eq!(read.below.last(), Some(&(300.0, 4)));
        assert_eq!(read.count, 5);
        assert!((read.sum_seconds - 600.002_000_002).abs() < 1e-6, "{read:?}");
    }
}
