//! The tests of a rollout, and what they have seen.

use crate::config::Config;
use crate::metric::{Comparison, Sums};
use crate::sprt::{Sprt, Table};
use mortise_plugin_sdk::{Evidence, Observation, Window};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Shares of the stable version's latencies above which a request counts as
/// slow: one watches the middle, the other the tail.
const SLOW_SHARES: [f64; 2] = [0.5, 0.05];

/// Stable latencies that must be known before there is a threshold.
const MIN_LATENCIES: u64 = 50;

const ERRORS: &str = "errors";
const LATENCY: &str = "latency";

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tests {
    errors: Sprt,
    /// One for each of [`SLOW_SHARES`].
    slow: [Sprt; SLOW_SHARES.len()],
    metrics: BTreeMap<String, Comparison>,
    stable: Totals,
    candidate: Totals,
}

/// Sums over the rollout.
#[derive(Default, Serialize, Deserialize)]
struct Totals {
    requests: u64,
    errors: u64,
    latency: Vec<u64>,
}

impl Tests {
    pub(crate) fn observe(&mut self, config: &Config, observed: &Observation) {
        let (stable, candidate) = (&observed.stable, &observed.candidate);
        self.errors.observe(Table {
            stable: (stable.errors, stable.requests),
            candidate: (candidate.errors, candidate.requests),
        });
        self.observe_latency(config, stable, candidate);
        for name in config.metrics.keys() {
            let comparison = self.metrics.entry(name.clone()).or_default();
            add_metric(&mut comparison.stable, stable, name);
            add_metric(&mut comparison.candidate, candidate, name);
        }
        self.stable.add(stable);
        self.candidate.add(candidate);
    }

    /// Thresholds come from windows before this one: were they taken from the
    /// data they are used on, the test would not be valid.
    fn observe_latency(&mut self, config: &Config, stable: &Window, candidate: &Window) {
        // Four buckets are a factor of two.
        let tolerated = (4.0 * config.latency_tolerance.log2()).ceil() as usize;
        for (test, share) in self.slow.iter_mut().zip(SLOW_SHARES) {
            let Some(threshold) = self.stable.bucket_above(share) else { continue };
            test.observe(Table {
                stable: slow_and_all(&stable.latency, threshold),
                candidate: slow_and_all(&candidate.latency, threshold + tolerated),
            });
        }
    }

    /// The false alarms that `alpha` allows are shared out evenly.
    pub(crate) fn evidence(&self, config: &Config) -> Vec<Evidence> {
        let tests = 2 + config.metrics.len();
        let limit = tests as f64 / config.alpha;
        let of = |test: &str, odds: f64| Evidence { test: test.to_owned(), odds, limit };
        // A mean of such odds is such odds again.
        let slow = self.slow.iter().map(Sprt::odds).sum::<f64>() / self.slow.len() as f64;
        let mut evidence = vec![of(ERRORS, self.errors.odds()), of(LATENCY, slow)];
        evidence.extend(config.metrics.iter().map(|(name, good)| {
            let odds = self.metrics.get(name).map_or(1.0, |comparison| comparison.odds(*good));
            of(name, odds)
        }));
        evidence
    }

    /// What a test saw, for people.
    pub(crate) fn describe(&self, test: &str) -> String {
        match (test, self.metrics.get(test)) {
            (ERRORS, _) => format!(
                "the candidate failed {} of {} requests, the stable version {} of {}",
                self.candidate.errors,
                self.candidate.requests,
                self.stable.errors,
                self.stable.requests
            ),
            (LATENCY, _) => format!(
                "the candidate takes {} at the median, the stable version {}",
                self.candidate.median(),
                self.stable.median()
            ),
            (name, Some(metric)) => format!(
                "{name} is {:.4} with the candidate and {:.4} with the stable version",
                metric.candidate.mean(),
                metric.stable.mean()
            ),
            (name, None) => name.to_owned(),
        }
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "errors {:.2} % beside {:.2} %, median {} beside {}",
            self.candidate.error_percent(),
            self.stable.error_percent(),
            self.candidate.median(),
            self.stable.median()
        )
    }
}

fn add_metric(sums: &mut Sums, window: &Window, name: &str) {
    if let Some(moments) = window.metrics.iter().find(|moments| moments.name == name) {
        sums.add(moments);
    }
}

/// Requests in buckets above `threshold`, and all.
fn slow_and_all(latency: &[u64], threshold: usize) -> (u64, u64) {
    let slow = latency.iter().skip(threshold + 1).sum();
    (slow, latency.iter().sum())
}

impl Totals {
    fn add(&mut self, window: &Window) {
        self.requests += window.requests;
        self.errors += window.errors;
        self.latency.resize(self.latency.len().max(window.latency.len()), 0);
        self.latency.iter_mut().zip(&window.latency).for_each(|(sum, count)| *sum += count);
    }

    /// The last bucket below which at least `1 - share` of the requests lie.
    fn bucket_above(&self, share: f64) -> Option<usize> {
        let total: u64 = self.latency.iter().sum();
        if total < MIN_LATENCIES {
            return None;
        }
        let wanted = (total as f64 * (1.0 - share)).ceil() as u64;
        let mut so_far = 0;
        self.latency.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        })
    }

    fn median(&self) -> String {
        let total: u64 = self.latency.iter().sum();
        let mut so_far = 0;
        let bucket = self.latency.iter().position(|count| {
            so_far += count;
            total > 0 && so_far * 2 >= total
        });
        match bucket.map(mortise_plugin_sdk::latency_bound_us) {
            None => "an unknown time".to_owned(),
            Some(us) if us < 1e3 => format!("{us:.0} µs"),
            Some(us) => format!("{:.1} ms", us / 1e3),
        }
    }

    fn error_percent(&self) -> f64 {
        100.0 * self.errors as f64 / self.requests.max(1) as f64
    }
}
