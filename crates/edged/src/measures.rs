//! How long things take, counted for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds in seconds, as the kubelet has them.
const RELIST: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const POD_START: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

/// What is measured.
#[derive(Debug)]
pub struct Measures {
    /// From the start of a pod's work on this node until it runs.
    pub pod_start: Histogram,
    /// Comparing what the runtime has with what was known.
    pub relist: Histogram,
}

impl Default for Measures {
    fn default() -> Self {
        Self { pod_start: Histogram::new(POD_START), relist: Histogram::new(RELIST) }
    }
}

/// Durations by size.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is longer.
    counts: Vec<AtomicU64>,
    microseconds: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, microseconds: AtomicU64::new(0) }
    }

    /// Counts one.
    pub fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let index = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Relaxed);
        }
        self.microseconds.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Bounds with the number of durations up to each, the number of all, and their sum.
    pub fn read(&self) -> (Vec<(f64, u64)>, u64, Duration) {
        let mut all = 0;
        let mut cumulated = |count: &AtomicU64| {
            all += count.load(Relaxed);
            all
        };
        let rows = self.bounds.iter().copied().zip(self.counts.iter().map(&mut cumulated)).collect();
        if let Some(longer) = self.counts.last() {
            cumulated(longer);
        }
        (rows, all, Duration::from_micros(self.microseconds.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_up_to_each_bound() {
        let histogram = Histogram::new(&[0.5, 1.0]);
        for milliseconds in [100, 500, 501, 1000, 2000] {
            histogram.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(histogram.read(), (vec![(0.5, 2), (1.0, 4)], 5, Duration::from_millis(4101)));
    }
}
