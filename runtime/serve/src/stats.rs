use mortise_types::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency histogram, in microseconds; what is slower
/// falls into one more bucket.
pub const LATENCY_BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 5_000_000, 30_000_000,
];

/// Every kind of failure, in the order in which they are counted.
const KINDS: [ErrorKind; 13] = [
    ErrorKind::InvalidInput,
    ErrorKind::NotFound,
    ErrorKind::Unsupported,
    ErrorKind::TooLarge,
    ErrorKind::Forbidden,
    ErrorKind::Conflict,
    ErrorKind::Overloaded,
    ErrorKind::RateLimited,
    ErrorKind::NotReady,
    ErrorKind::Deadline,
    ErrorKind::LimitExceeded,
    ErrorKind::PluginFailed,
    ErrorKind::Internal,
];

/// Counters of one endpoint since the server started.
#[derive(Default)]
pub(crate) struct Stats {
    requests: AtomicU64,
    cancelled: AtomicU64,
    failures: [AtomicU64; KINDS.len()],
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_us: AtomicU64,
}

/// What [`crate::Endpoint::stats`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Requests that ended, well or not, and those whose client left.
    pub requests: u64,
    /// Requests whose client left before the answer.
    pub cancelled: u64,
    /// Failed requests by kind; only kinds that occurred.
    pub failures: Vec<(ErrorKind, u64)>,
    /// Requests running and waiting now.
    pub in_flight: u64,
    /// Answered requests by latency: one count for each of
    /// [`LATENCY_BOUNDS_US`], then one for what was slower.
    pub latency: Vec<u64>,
    /// Sum of the latencies of answered requests, microseconds.
    pub latency_sum_us: u64,
}

impl Stats {
    /// Counts a request until the returned guard is told how it ended; a guard
    /// dropped before that counts as cancelled.
    pub(crate) fn begin(&self) -> Recording<'_> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Recording { stats: self, is_done: false }
    }

    pub(crate) fn snapshot(&self, in_flight: u64) -> StatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failures = KINDS.iter().copied().zip(self.failures.iter().map(load));
        StatsSnapshot {
            requests: load(&self.requests),
            cancelled: load(&self.cancelled),
            failures: failures.filter(|&(_, count)| count > 0).collect(),
            in_flight,
            latency: self.latency.iter().map(load).collect(),
            latency_sum_us: load(&self.latency_sum_us),
        }
    }
}

/// One request while it is counted.
pub(crate) struct Recording<'a> {
    stats: &'a Stats,
    is_done: bool,
}

impl Recording<'_> {
    pub(crate) fn succeeded(mut self, took: Duration) {
        self.is_done = true;
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        if let Some(counter) = self.stats.latency.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.stats.latency_sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn failed(mut self, kind: ErrorKind) {
        self.is_done = true;
        let position = KINDS.iter().position(|&known| known == kind);
        // A kind added later counts as internal until it has its own counter.
        let index = position.unwrap_or(KINDS.len() - 1);
        self.stats.failures[index].fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_counted_once() {
        let stats = Stats::default();
        stats.begin().succeeded(Duration::from_micros(70));
        stats.begin().succeeded(Duration::from_secs(60));
        stats.begin().failed(ErrorKind::Overloaded);
        drop(stats.begin());
        let seen = stats.snapshot(0);
        assert_eq!((seen.requests, seen.cancelled), (4, 1));
        assert_eq!(seen.failures, [(ErrorKind::Overloaded, 1)]);
        assert_eq!((seen.latency[1], seen.latency[LATENCY_BOUNDS_US.len()]), (1, 1));
    }
}
