use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; what is slower falls into one
/// more.
const BOUNDS_US: [u64; 14] = [2, 5, 10, 15, 20, 30, 40, 60, 100, 200, 500, 1_000, 10_000, 100_000];

/// Times by size: fixed memory, and two atomic additions for each.
#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let index = BOUNDS_US.partition_point(|bound| bound * 1_000 < ns);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Appends the histogram in Prometheus' text format, in seconds.
    pub(crate) fn render(&self, page: &mut String, name: &str, help: &str) {
        // Writing into a string does not fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} histogram");
        let counts: Vec<u64> = self.buckets.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let mut so_far = 0;
        for (count, bound_us) in counts.iter().zip(BOUNDS_US) {
            so_far += count;
            let _ = writeln!(page, "{name}_bucket{{le=\"{}\"}} {so_far}", bound_us as f64 / 1e6);
        }
        let total: u64 = counts.iter().sum();
        let seconds = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(page, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(page, "{name}_sum {seconds}\n{name}_count {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_buckets() {
        let histogram = Histogram::default();
        for us in [2, 3, 40, 41, 1_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let mut page = String::new();
        histogram.render(&mut page, "t", "times");
        for line in [
            "t_bucket{le=\"0.000002\"} 1",
            "t_bucket{le=\"0.000005\"} 2",
            "t_bucket{le=\"0.00004\"} 3",
            "t_bucket{le=\"0.00006\"} 4",
            "t_bucket{le=\"0.1\"} 4",
            "t_bucket{le=\"+Inf\"} 5",
            "t_count 5",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
        }
    }
}
