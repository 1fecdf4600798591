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
    fn one_outlier_moves_the_mean_less_than_twofold() {
        let times = ServiceTime::default();
        times.record(256, us(80));
        times.record(256, us(100_000));
        let after = times.predict(256).unwrap();
        assert!(after > us(80) && after < us(160), "{after:?}");
    }
}
