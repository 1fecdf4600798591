use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Number of size classes: one for each power of two of input bytes.
const CLASSES: usize = 40;

/// How long a revision takes, by the size of its inputs: one exponentially
/// weighted mean for each power of two of input bytes.
pub(crate) struct ServiceTime {
    /// Nanoseconds; 0 where nothing was measured.
    mean_ns: [AtomicU64; CLASSES],
}

impl Default for ServiceTime {
    fn default() -> Self {
        Self { mean_ns: [const { AtomicU64::new(0) }; CLASSES] }
    }
}

impl ServiceTime {
    /// Adds a measurement with weight 1/8. A sample counts at most eight times
    /// the mean: a preempted run says little about the model.
    pub(crate) fn record(&self, input_bytes: usize, took: Duration) {
        let Some(mean) = self.mean_ns.get(class(input_bytes)) else { return };
        let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let old = mean.load(Ordering::Relaxed);
        let new = match old {
            0 => sample,
            _ => old - old / 8 + sample.min(old.saturating_mul(8)) / 8,
        };
        // A lost race loses one sample of many.
        mean.store(new.max(1), Ordering::Relaxed);
    }

    /// How many bytes of inputs one run should have at most, between `least` and
    /// `most`: more are not worth it when a byte costs no less in a larger run.
    /// What was not measured is tried one doubling at a time.
    pub(crate) fn worthwhile_bytes(&self, least: usize, most: usize) -> usize {
        let (low, high) = (class(least), class(most));
        let cost = |index: usize| match self.mean_ns.get(index)?.load(Ordering::Relaxed) {
            0 => None,
            ns => Some(ns as f64 / (1u64 << index) as f64),
        };
        let Some(largest) = (low..=high).rev().find(|&index| cost(index).is_some()) else {
            return most.min(largest_of(low + 1));
        };
        let best = (low..=high).filter_map(cost).fold(f64::INFINITY, f64::min);
        let is_good = |index: &usize| cost(*index).is_some_and(|cost| cost <= best * WORTH);
        let chosen = (low..=high).find(is_good).unwrap_or(low);
        // The largest known is the best: perhaps a larger one is better still.
        let tried = if chosen == largest { chosen + 1 } else { chosen };
        largest_of(tried).clamp(least, most)
    }

    /// What inputs of this size are expected to take. A size never seen is
    /// extrapolated in proportion from the next smaller one, or taken from the
    /// next larger one; `None` before the first measurement.
    pub(crate) fn predict(&self, input_bytes: usize) -> Option<Duration> {
        let class = class(input_bytes);
        let mean = |index: usize| match self.mean_ns[index].load(Ordering::Relaxed) {
            0 => None,
            ns => Some(ns),
        };
        let smaller = (0..=class).rev().find_map(|index| {
            mean(index).map(|ns| ns.saturating_mul(1u64 << (class - index).min(63)))
        });
        let larger = || (class + 1..CLASSES).find_map(mean);
        smaller.or_else(larger).map(Duration::from_nanos)
    }
}

/// A run is worth making larger when that makes a byte cheaper by this factor.
const WORTH: f64 = 1.15;

/// The most bytes of a class.
fn largest_of(class: usize) -> usize {
    1usize.checked_shl(class as u32).map_or(usize::MAX, |bound| bound - 1)
}

fn class(input_bytes: usize) -> usize {
    (usize::BITS - input_bytes.leading_zeros()).min(CLASSES as u32 - 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn predicts_by_size() {
        let times = ServiceTime::default();
        assert_eq!(times.predict(256), None);
        times.record(256, us(20));
        let cases = [(256, us(20)), (511, us(20)), (512, us(40)), (4096, us(320)), (3, us(20))];
        for (bytes, want) in cases {
            assert_eq!(times.predict(bytes), Some(want), "{bytes} bytes");
        }
    }

    #[test]
    fn runs_grow_as_long_as_that_pays() {
        let times = ServiceTime::default();
        let cap = || times.worthwhile_bytes(4096, 4096 * 64) / 4096;
        assert_eq!(cap(), 3, "one doubling at a time");
        times.record(4096, us(1000));
        assert_eq!(cap(), 3);
        times.record(4096 * 3, us(1100));
        assert_eq!(cap(), 7);
        times.record(4096 * 7, us(1200));
        times.record(4096 * 15, us(1800));
        assert_eq!(cap(), 31, "the largest is the best so far");
        times.record(4096 * 31, us(4400));
        assert_eq!(cap(), 15, "twice the time for twice the rows");
    }

    #[test]
    fn where_rows_cost_the_same_together_they_run_alone() {
        let times = ServiceTime::default();
        times.record(4096, us(1000));
        times.record(4096 * 3, us(2100));
        assert_eq!(times.worthwhile_bytes(4096, 4096 * 64) / 4096, 1);
    }

    #[test]
    fn one_outlier_moves_the_mean_less_than_twofold() {
        let times = ServiceTime::default();
        times.record(256, us(80));
        times.record(256, us(100_000));
        let after = times.predict(256).unwrap();
        assert!(after > us(80) && after < us(160), "{after:?}");
    }
}
