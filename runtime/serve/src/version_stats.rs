use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Batches of up to this many rows are counted by their exact size, larger
/// ones by the power of two at or below it.
const EXACT_SIZES: usize = 64;

/// Powers of two above [`EXACT_SIZES`] that have a counter; the last one takes
/// everything larger.
const LARGE_SIZES: usize = 16;

/// Counters of one revision, in the terms of the protocol's statistics.
pub(crate) struct VersionStats {
    last_inference_ms: AtomicU64,
    inference_count: AtomicU64,
    execution_count: AtomicU64,
    success: Counter,
    fail: Counter,
    queue: Counter,
    compute_input: Counter,
    compute_infer: Counter,
    transform: Counter,
    compute_output: Counter,
    cache_hit: Counter,
    cache_miss: Counter,
    /// By [`size_index`].
    batches: Box<[BatchCounter]>,
}

/// How often something was done, and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurationCount {
    pub count: u64,
    /// Nanoseconds.
    pub total_ns: u64,
}

/// Statistics of one version since its revision went live. Durations of
/// requests are counted once a request, also where several shared a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionStatsSnapshot {
    pub version: u64,
    pub revision: u64,
    /// When the latest request was answered.
    pub last_inference: Option<SystemTime>,
    /// Rows answered: a request of a batch of 8 counts 8.
    pub inference_count: u64,
    /// Runs of the model; smaller than the number of requests where these were
    /// merged.
    pub execution_count: u64,
    /// Answered requests, from their arrival to their outputs.
    pub success: DurationCount,
    /// Failed requests.
    pub fail: DurationCount,
    /// Waiting for a thread or for others to merge with.
    pub queue: DurationCount,
    /// Checking inputs against the signature, and putting them together.
    pub compute_input: DurationCount,
    /// Running transforms and model.
    pub compute_infer: DurationCount,
    /// The part of `compute_infer` that transforms took.
    pub transform: DurationCount,
    /// Taking outputs apart, and naming them.
    pub compute_output: DurationCount,
    /// Requests answered from the response cache, with the look-up.
    pub cache_hit: DurationCount,
    /// Requests not found there, with look-up and insertion.
    pub cache_miss: DurationCount,
    /// Runs by the number of their rows, ascending.
    pub batches: Vec<BatchStats>,
    /// Requests waiting now.
    pub queued_requests: u64,
    /// Bytes of inputs waiting now.
    pub queued_bytes: u64,
}

/// Runs of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStats {
    /// Rows; above 64 the power of two at or below.
    pub batch_size: u64,
    pub compute_input: DurationCount,
    pub compute_infer: DurationCount,
    pub compute_output: DurationCount,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for a thread or for others to merge with.
    pub queue: Duration,
    /// Checking inputs, and putting those of several requests together.
    pub compute_input: Duration,
    /// Running transforms and model.
    pub compute_infer: Duration,
    /// The part of `compute_infer` that transforms took.
    pub transform: Duration,
    /// Taking the outputs of several requests apart, and naming them.
    pub compute_output: Duration,
}

/// One run of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Execution {
    pub(crate) rows: u64,
    /// Its `queue` does not count here.
    pub(crate) timings: Timings,
}

#[derive(Default)]
struct Counter {
    count: AtomicU64,
    total_ns: AtomicU64,
}

#[derive(Default)]
struct BatchCounter {
    compute_input: Counter,
    compute_infer: Counter,
    compute_output: Counter,
}

impl Default for VersionStats {
    fn default() -> Self {
        Self {
            last_inference_ms: AtomicU64::new(0),
            inference_count: AtomicU64::new(0),
            execution_count: AtomicU64::new(0),
            success: Counter::default(),
            fail: Counter::default(),
            queue: Counter::default(),
            compute_input: Counter::default(),
            compute_infer: Counter::default(),
            transform: Counter::default(),
            compute_output: Counter::default(),
            cache_hit: Counter::default(),
            cache_miss: Counter::default(),
            batches: (0..=EXACT_SIZES + LARGE_SIZES).map(|_| BatchCounter::default()).collect(),
        }
    }
}

impl VersionStats {
    pub(crate) fn executed(&self, execution: &Execution) {
        self.execution_count.fetch_add(1, Ordering::Relaxed);
        let Some(batch) = self.batches.get(size_index(execution.rows)) else { return };
        batch.compute_input.add(execution.timings.compute_input);
        batch.compute_infer.add(execution.timings.compute_infer);
        batch.compute_output.add(execution.timings.compute_output);
    }

    /// Counts an answered request of `rows` rows.
    pub(crate) fn succeeded(&self, rows: u64, took: Duration, timings: &Timings) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last_inference_ms.store(now_ms, Ordering::Relaxed);
        self.inference_count.fetch_add(rows, Ordering::Relaxed);
        self.success.add(took);
        self.queue.add(timings.queue);
        self.compute_input.add(timings.compute_input);
        self.compute_infer.add(timings.compute_infer);
        self.transform.add(timings.transform);
        self.compute_output.add(timings.compute_output);
    }

    /// Counts an answer from the cache.
    pub(crate) fn cache_hit(&self, took: Duration) {
        self.cache_hit.add(took);
    }

    /// Counts a look-up in vain; `took` includes keeping the answer.
    pub(crate) fn cache_miss(&self, took: Duration) {
        self.cache_miss.add(took);
    }

    pub(crate) fn failed(&self, took: Duration) {
        self.fail.add(took);
    }

    /// The numbers of revision and version, and what waits, are the caller's
    /// to fill in.
    pub(crate) fn snapshot(&self) -> VersionStatsSnapshot {
        let last_ms = self.last_inference_ms.load(Ordering::Relaxed);
        VersionStatsSnapshot {
            last_inference: (last_ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(last_ms)),
            inference_count: self.inference_count.load(Ordering::Relaxed),
            execution_count: self.execution_count.load(Ordering::Relaxed),
            success: self.success.read(),
            fail: self.fail.read(),
            queue: self.queue.read(),
            compute_input: self.compute_input.read(),
            compute_infer: self.compute_infer.read(),
            transform: self.transform.read(),
            compute_output: self.compute_output.read(),
            cache_hit: self.cache_hit.read(),
            cache_miss: self.cache_miss.read(),
            batches: self.batches(),
            ..VersionStatsSnapshot::default()
        }
    }

    fn batches(&self) -> Vec<BatchStats> {
        let all = self.batches.iter().enumerate().map(|(index, batch)| BatchStats {
            batch_size: size_of_index(index),
            compute_input: batch.compute_input.read(),
            compute_infer: batch.compute_infer.read(),
            compute_output: batch.compute_output.read(),
        });
        all.filter(|batch| batch.compute_infer.count > 0).collect()
    }
}

impl Counter {
    fn add(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.total_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn read(&self) -> DurationCount {
        DurationCount {
            count: self.count.load(Ordering::Relaxed),
            total_ns: self.total_ns.load(Ordering::Relaxed),
        }
    }
}

fn size_index(rows: u64) -> usize {
    match usize::try_from(rows) {
        Ok(rows) if rows <= EXACT_SIZES => rows,
        _ => {
            let doublings = (rows.ilog2() - EXACT_SIZES.ilog2()) as usize;
            // 65 to 127 are counted as 64.
            (EXACT_SIZES + doublings).min(EXACT_SIZES + LARGE_SIZES)
        }
    }
}

fn size_of_index(index: usize) -> u64 {
    match index.checked_sub(EXACT_SIZES) {
        None | Some(0) => index as u64,
        Some(doublings) => (EXACT_SIZES as u64) << doublings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn sizes_have_their_counters() {
        let cases = [(0, 0), (1, 1), (64, 64), (65, 64), (127, 64), (128, 128), (1000, 512)];
        for (rows, want) in cases {
            assert_eq!(size_of_index(size_index(rows)), want, "{rows} rows");
        }
        assert_eq!(size_index(u64::MAX), EXACT_SIZES + LARGE_SIZES);
    }

    #[test]
    fn requests_and_runs_are_counted_apart() {
        let stats = VersionStats::default();
        let timings = Timings { queue: us(1), compute_infer: us(20), ..Timings::default() };
        stats.executed(&Execution { rows: 3, timings });
        stats.succeeded(1, us(30), &timings);
        stats.succeeded(2, us(40), &timings);
        stats.failed(us(5));
        let seen = stats.snapshot();
        assert_eq!((seen.inference_count, seen.execution_count), (3, 1));
        assert_eq!(seen.success, DurationCount { count: 2, total_ns: 70_000 });
        assert_eq!(seen.compute_infer, DurationCount { count: 2, total_ns: 40_000 });
        assert_eq!(seen.fail, DurationCount { count: 1, total_ns: 5_000 });
        let [batch] = seen.batches.as_slice() else { panic!("{:?}", seen.batches) };
        assert_eq!(batch.batch_size, 3);
        assert_eq!(batch.compute_infer, DurationCount { count: 1, total_ns: 20_000 });
        assert!(seen.last_inference.is_some());
    }
}
