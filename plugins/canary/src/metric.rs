//! An anytime-valid test of the means of a reported metric.

use crate::config::Good;
use mortise_plugin_sdk::Moments;
use serde::{Deserialize, Serialize};

/// Values that each side must have before its variance is believed.
const MIN_COUNT: u64 = 30;

/// Standard deviation of the differences that are expected, in standard
/// deviations of the metric.
const EFFECT: f64 = 0.2;

/// Sums of one side since the rollout began.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sums {
    count: u64,
    sum: f64,
    sum_of_squares: f64,
}

/// Both sides of one metric.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) stable: Sums,
    pub(crate) candidate: Sums,
}

impl Sums {
    pub(crate) fn add(&mut self, moments: &Moments) {
        self.count += moments.count;
        self.sum += moments.sum;
        self.sum_of_squares += moments.sum_of_squares;
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    fn variance(&self) -> f64 {
        let mean = self.mean();
        (self.sum_of_squares / self.count.max(1) as f64 - mean * mean).max(0.0)
    }
}

impl Comparison {
    /// Odds that the candidate is worse: the mixture sequential probability
    /// ratio test of Johari, Pekelis and Walsh ("Always valid inference"), on
    /// the difference of the means.
    pub(crate) fn odds(&self, good: Good) -> f64 {
        let (stable, candidate) = (&self.stable, &self.candidate);
        if stable.count < MIN_COUNT || candidate.count < MIN_COUNT {
            return 1.0;
        }
        let difference = candidate.mean() - stable.mean();
        let is_worse = match good {
            Good::Higher => difference < 0.0,
            Good::Lower => difference > 0.0,
        };
        let pooled = (stable.variance() + candidate.variance()) / 2.0;
        if !is_worse || !(pooled > 0.0) {
            return 1.0;
        }
        let variance =
            stable.variance() / stable.count as f64 + candidate.variance() / candidate.count as f64;
        let prior = EFFECT * EFFECT * pooled;
        let exponent = prior * difference * difference / (2.0 * variance * (variance + prior));
        ((variance / (variance + prior)).sqrt() * exponent.min(600.0).exp()).min(1e300)
    }
}
