use mortise_types::{Error, ErrorKind};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of a variant's latencies: bucket `i` ends at `10 · 2^(i / 4)` µs, as
/// the contract of strategies says, and the last one takes what is slower.
pub const VARIANT_LATENCY_BUCKETS: usize = 90;

/// Metrics with different names that one variant keeps.
pub const VARIANT_MAX_METRICS: usize = 64;

/// Of the newest failure's message.
const MAX_ERROR_CHARS: usize = 256;

/// What a variant did since it joined: the evidence of a rollout.
pub struct VariantStats {
    requests: AtomicU64,
    errors: AtomicU64,
    latency: [AtomicU64; VARIANT_LATENCY_BUCKETS],
    /// Requests that another variant answered in its place.
    fallbacks: AtomicU64,
    /// Requests that named this version, and failures of those.
    named: AtomicU64,
    named_errors: AtomicU64,
    /// What the newest failure said.
    last_error: Mutex<Option<String>>,
    metrics: Mutex<BTreeMap<String, MetricMoments>>,
    shadow: ShadowStats,
}

/// Copies of requests that this variant got.
#[derive(Default)]
struct ShadowStats {
    compared: AtomicU64,
    differing: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    /// The largest difference of two numbers, as the bits of an `f64`: those of
    /// positive numbers are ordered like the numbers.
    max_difference: AtomicU64,
}

/// Count, sum and sum of squares of a reported metric.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MetricMoments {
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
}

/// [`VariantStats`] at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VariantStatsSnapshot {
    /// Requests that the router sent here, however they ended.
    pub requests: u64,
    /// Those that the variant failed to answer.
    pub errors: u64,
    /// Answered ones by latency.
    pub latency: Vec<u64>,
    pub fallbacks: u64,
    /// Requests that named this version: they are in none of the counts above.
    pub named: u64,
    pub named_errors: u64,
    /// What the newest failure said, cut to a line.
    pub last_error: Option<String>,
    pub metrics: BTreeMap<String, MetricMoments>,
    pub shadow: ShadowSnapshot,
}

/// How copies of requests compared with the replies that clients got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShadowSnapshot {
    pub compared: u64,
    pub differing: u64,
    pub failed: u64,
    /// Copies that were not run because too many waited.
    pub dropped: u64,
    pub max_difference: f64,
}

impl Default for VariantStats {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            fallbacks: AtomicU64::new(0),
            named: AtomicU64::new(0),
            named_errors: AtomicU64::new(0),
            last_error: Mutex::default(),
            metrics: Mutex::default(),
            shadow: ShadowStats::default(),
        }
    }
}

impl VariantStats {
    pub(crate) fn succeeded(&self, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(bucket) = self.latency.get(bucket_of(took)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a failure that the variant is to blame for. What clients get
    /// wrong counts too: a version that refuses what the other takes is not
    /// its equal, and both get the same share of bad requests.
    pub(crate) fn failed(&self, error: &Error) {
        if !is_of_the_server(error.kind()) {
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.errors.fetch_add(1, Ordering::Relaxed);
            self.note(error);
        }
    }

    /// Counts a request that named this version, with its error if it failed. What
    /// people get wrong while they try it out by hand is not counted.
    pub(crate) fn named(&self, error: Option<&Error>) {
        let is_no_fault = |kind| is_of_the_server(kind) || kind == ErrorKind::InvalidInput;
        if error.is_some_and(|error| is_no_fault(error.kind())) {
            return;
        }
        self.named.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = error {
            self.named_errors.fetch_add(1, Ordering::Relaxed);
            self.note(error);
        }
    }

    fn note(&self, error: &Error) {
        let message = error.message().chars().take(MAX_ERROR_CHARS).collect();
        *self.last_error.lock() = Some(message);
    }

    pub(crate) fn fell_back(&self) {
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes in `count` values of a metric that clients report. `false` when
    /// the variant has as many metrics as it keeps.
    pub fn report(&self, metric: &str, values: MetricMoments) -> bool {
        let mut metrics = self.metrics.lock();
        if !metrics.contains_key(metric) && metrics.len() >= VARIANT_MAX_METRICS {
            return false;
        }
        let known = metrics.entry(metric.to_string()).or_default();
        known.count += values.count;
        known.sum += values.sum;
        known.sum_of_squares += values.sum_of_squares;
        true
    }

    pub(crate) fn shadow_compared(&self, difference: Option<f64>) {
        self.shadow.compared.fetch_add(1, Ordering::Relaxed);
        if let Some(difference) = difference {
            self.shadow.differing.fetch_add(1, Ordering::Relaxed);
            self.shadow.max_difference.fetch_max(difference.abs().to_bits(), Ordering::Relaxed);
        }
    }

    pub(crate) fn shadow_failed(&self) {
        self.shadow.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn shadow_dropped(&self) {
        self.shadow.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> VariantStatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Errors first: a request that ends meanwhile must not look like an
        // error without a request.
        let (errors, named_errors) = (load(&self.errors), load(&self.named_errors));
        let shadow = &self.shadow;
        VariantStatsSnapshot {
            errors,
            latency: self.latency.iter().map(load).collect(),
            requests: load(&self.requests),
            fallbacks: load(&self.fallbacks),
            named: load(&self.named),
            named_errors,
            last_error: self.last_error.lock().clone(),
            metrics: self.metrics.lock().clone(),
            shadow: ShadowSnapshot {
                compared: load(&shadow.compared),
                differing: load(&shadow.differing),
                failed: load(&shadow.failed),
                dropped: load(&shadow.dropped),
                max_difference: f64::from_bits(load(&shadow.max_difference)),
            },
        }
    }
}

/// Refusals that would have met any variant.
fn is_of_the_server(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Overloaded
            | ErrorKind::RateLimited
            | ErrorKind::TooLarge
            | ErrorKind::Forbidden
            | ErrorKind::NotFound
    )
}

/// The smallest `i` with `took <= 10 · 2^(i / 4)` µs.
fn bucket_of(took: Duration) -> usize {
    let us = took.as_secs_f64() * 1e6;
    let index = (4.0 * (us / 10.0).log2()).ceil();
    if index <= 0.0 { 0 } else { (index as usize).min(VARIANT_LATENCY_BUCKETS - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_the_buckets_of_the_contract() {
        let us = |us: u64| bucket_of(Duration::from_micros(us));
        assert_eq!((us(0), us(10), us(11), us(20), us(21)), (0, 0, 1, 4, 5));
        assert_eq!(bucket_of(Duration::from_secs(1_000)), VARIANT_LATENCY_BUCKETS - 1);
    }

    #[test]
    fn only_what_a_variant_is_to_blame_for_counts() {
        let stats = VariantStats::default();
        stats.succeeded(Duration::from_micros(100));
        stats.failed(&Error::plugin("it broke"));
        stats.failed(&Error::overloaded("too much"));
        let seen = stats.snapshot();
        assert_eq!(seen.last_error.as_deref(), Some("it broke"));
        assert_eq!((seen.requests, seen.errors, seen.latency.iter().sum::<u64>()), (2, 1, 1));
    }

    #[test]
    fn requests_that_name_their_version_are_counted_apart() {
        let stats = VariantStats::default();
        stats.named(None);
        stats.named(Some(&Error::plugin("it broke")));
        stats.named(Some(&Error::overloaded("too much")));
        stats.named(Some(&Error::invalid("no such input")));
        let seen = stats.snapshot();
        assert_eq!((seen.requests, seen.errors, seen.named, seen.named_errors), (0, 0, 2, 1));
    }

    #[test]
    fn metrics_add_up_and_are_bounded() {
        let stats = VariantStats::default();
        let one = MetricMoments { count: 1, sum: 2.0, sum_of_squares: 4.0 };
        assert!(stats.report("revenue", one) && stats.report("revenue", one));
        assert_eq!(stats.snapshot().metrics["revenue"].sum, 4.0);
        assert!((1..VARIANT_MAX_METRICS).all(|index| stats.report(&index.to_string(), one)));
        assert!(!stats.report("one more", one));
    }
}
