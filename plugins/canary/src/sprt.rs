//! An anytime-valid test of whether something happens more often on one side.

use serde::{Deserialize, Serialize};

/// Odds ratios that the test bets on, all alike.
const ALTERNATIVES: [f64; 10] = [1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0, 30.0];

/// Terms farther from the mean than this many standard deviations do not
/// matter to a sum of doubles.
const REACH: f64 = 12.0;

/// A mixture sequential probability ratio test. Under the hypothesis that the
/// candidate's odds are at most the stable version's, the product of what the
/// windows give is a supermartingale that starts at 1, so that it ever exceeds
/// `1 / alpha` with a probability of at most `alpha` (Ville's inequality),
/// however often one looks.
///
/// In each window the margins are given: `n0` and `n1` requests, of which `m`
/// failed. How many of the `m` are the candidate's then follows Fisher's
/// noncentral hypergeometric distribution, which knows the odds ratio and not
/// the error rate. No rate has to be assumed, and a bad day of both versions
/// is evidence against neither.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sprt {
    /// Logarithm of the likelihood ratio for each alternative.
    log_ratios: Vec<f64>,
}

/// What one window saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) stable: (u64, u64),
    pub(crate) candidate: (u64, u64),
}

impl Default for Sprt {
    fn default() -> Self {
        Self { log_ratios: vec![0.0; ALTERNATIVES.len()] }
    }
}

impl Sprt {
    /// Takes a window in: `(events, out of)` for each side.
    pub(crate) fn observe(&mut self, table: Table) {
        let Some(window) = Window::new(table) else { return };
        let base = window.log_sum(1.0);
        for (log_ratio, theta) in self.log_ratios.iter_mut().zip(ALTERNATIVES) {
            *log_ratio += window.candidate_events * theta.ln() - (window.log_sum(theta) - base);
        }
    }

    /// Odds against the hypothesis.
    pub(crate) fn odds(&self) -> f64 {
        let largest = self.log_ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.log_ratios.iter().map(|ratio| (ratio - largest).exp()).sum();
        (largest + (sum / self.log_ratios.len().max(1) as f64).ln()).exp().min(1e300)
    }
}

/// A table with margins that say something.
struct Window {
    n0: f64,
    n1: f64,
    events: f64,
    candidate_events: f64,
}

impl Window {
    fn new(table: Table) -> Option<Self> {
        let (events0, n0) = (table.stable.0 as f64, table.stable.1 as f64);
        let (events1, n1) = (table.candidate.0 as f64, table.candidate.1 as f64);
        let events = events0 + events1;
        let is_informative = n0 > 0.0 && n1 > 0.0 && events > 0.0 && events < n0 + n1;
        let is_possible = events0 <= n0 && events1 <= n1;
        (is_informative && is_possible).then_some(Self {
            n0,
            n1,
            events,
            candidate_events: events1,
        })
    }

    /// `ln Σ C(n1, x) C(n0, m - x) θ^x`, summed around the mean.
    fn log_sum(&self, theta: f64) -> f64 {
        let (low, high) = ((self.events - self.n0).max(0.0), self.events.min(self.n1));
        let mean = self.mean(theta, low, high);
        let deviation = self.deviation(mean);
        let from = (mean - REACH * deviation - 20.0).floor().max(low);
        let until = (mean + REACH * deviation + 20.0).ceil().min(high);
        let step = theta.ln();
        let mut log_term = self.log_weight(from) + from * step;
        let mut x = from;
        let (mut largest, mut sum) = (log_term, 1.0);
        while x < until {
            // C(n1, x + 1) C(n0, m - x - 1) from the term before.
            let ratio =
                (self.n1 - x) * (self.events - x) / ((x + 1.0) * (self.n0 - self.events + x + 1.0));
            log_term += ratio.ln() + step;
            if log_term > largest {
                sum *= (largest - log_term).exp();
                largest = log_term;
            }
            sum += (log_term - largest).exp();
            x += 1.0;
        }
        largest + sum.ln()
    }

    fn log_weight(&self, x: f64) -> f64 {
        log_choose(self.n1, x) + log_choose(self.n0, self.events - x)
    }

    /// Where the odds ratio of the table is `theta`.
    fn mean(&self, theta: f64, low: f64, high: f64) -> f64 {
        let (mut low, mut high) = (low, high);
        for _ in 0..80 {
            let x = (low + high) / 2.0;
            let left = x * (self.n0 - self.events + x);
            let right = theta * (self.n1 - x) * (self.events - x);
            if left < right { low = x } else { high = x }
        }
        (low + high) / 2.0
    }

    /// Of the normal distribution with the same peak.
    fn deviation(&self, x: f64) -> f64 {
        let cells = [x, self.n1 - x, self.events - x, self.n0 - self.events + x];
        let precision: f64 = cells.iter().map(|cell| 1.0 / cell.max(0.5)).sum();
        precision.recip().sqrt()
    }
}

fn log_choose(n: f64, k: f64) -> f64 {
    log_gamma(n + 1.0) - log_gamma(k + 1.0) - log_gamma(n - k + 1.0)
}

/// Stirling's series, after moving the argument to where it is exact.
fn log_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 12.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series =
        (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.918_938_533_204_672_7 + series + shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_of_the_gamma_function_is_that_of_factorials() {
        let mut factorial: f64 = 0.0;
        for n in 1..60 {
            factorial += f64::from(n).ln();
            let got = log_gamma(f64::from(n) + 1.0);
            assert!((got - factorial).abs() < 1e-10 * factorial.max(1.0), "{n}: {got} {factorial}");
        }
    }

    /// Under each hypothesis the probabilities add up to one.
    #[test]
    fn the_expected_likelihood_ratio_is_one_under_the_hypothesis() {
        let (n0, n1, events) = (40u64, 7u64, 9u64);
        for theta in ALTERNATIVES {
            let table = |x: u64| Table { stable: (events - x, n0), candidate: (x, n1) };
            let expected: f64 = (0..=n1)
                .filter_map(|x| Window::new(table(x)))
                .map(|window| {
                    let x = window.candidate_events;
                    let probability = (window.log_weight(x) - window.log_sum(1.0)).exp();
                    let ratio = x * theta.ln() - window.log_sum(theta) + window.log_sum(1.0);
                    probability * ratio.exp()
                })
                .sum();
            assert!((expected - 1.0).abs() < 1e-9, "{theta}: {expected}");
        }
    }

    #[test]
    fn errors_on_one_side_are_evidence_and_errors_on_both_are_not() {
        let mut worse = Sprt::default();
        let mut alike = Sprt::default();
        for _ in 0..20 {
            worse.observe(Table { stable: (5, 1_000), candidate: (3, 100) });
            alike.observe(Table { stable: (50, 1_000), candidate: (5, 100) });
        }
        assert!(worse.odds() > 1_000.0, "{}", worse.odds());
        assert!(alike.odds() < 1.0, "{}", alike.odds());
    }

    #[test]
    fn tables_that_say_nothing_change_nothing() {
        let mut sprt = Sprt::default();
        for table in [
            Table { stable: (0, 10), candidate: (0, 10) },
            Table { stable: (10, 10), candidate: (10, 10) },
            Table { stable: (1, 10), candidate: (0, 0) },
            Table { stable: (11, 10), candidate: (0, 5) },
        ] {
            sprt.observe(table);
        }
        assert_eq!(sprt.odds(), 1.0);
    }

    #[test]
    fn millions_of_requests_are_no_trouble() {
        let mut sprt = Sprt::default();
        sprt.observe(Table { stable: (50_000, 9_000_000), candidate: (900, 100_000) });
        assert!(sprt.odds().is_finite() && sprt.odds() > 1.0, "{}", sprt.odds());
    }
}
