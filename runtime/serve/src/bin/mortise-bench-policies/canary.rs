//! Rollouts with scripted statistics, decided by the component that ships.

use crate::Bench;
use mortise_host::{Action, Observation, StrategyPlugin, Window};
use mortise_serve::VARIANT_LATENCY_BUCKETS;
use mortise_types::Result;
use std::fmt::Write as _;

impl Bench {
    /// Rollouts of a healthy twin and of two worse versions, at three base error
    /// rates.
    pub(super) fn canary(&self, rollouts: u64) -> Result<String> {
        let config = r#"{"interval": "60s", "check": "5s"}"#;
        let compiled = self.compiled("canary")?;
        let request = Self::request("canary", config);
        let strategy = StrategyPlugin::load(&self.host, &compiled, request)?;
        let mut json = String::from("{\"simulations\":[");
        let mut false_rollbacks = 0;
        let rates = [0.005, 0.007, 0.009];
        for rate in rates {
            let twins = simulate(&strategy, rollouts, Version::twin(rate), rate)?;
            let worse = simulate(&strategy, rollouts, Version::failing(0.03), rate)?;
            let slower = simulate(&strategy, rollouts, Version::slower(rate, 3.0), rate)?;
            false_rollbacks += twins.rolled_back;
            eprintln!(
                "errors {:.1} %: twins rolled back {} of {rollouts}; 3 % errors caught {} of \
                 {rollouts} after {} checks, {:.2} % of requests touched; 3x latency caught {} \
                 after {} checks",
                rate * 100.0,
                twins.rolled_back,
                worse.rolled_back,
                worse.median_checks,
                worse.touched * 100.0,
                slower.rolled_back,
                slower.median_checks
            );
            let _ = write!(
                json,
                "{{\"base_error_rate\":{rate},\"aa_rolled_back\":{},\"aa_promoted\":{},\
                 \"errors_caught\":{},\"errors_checks\":{},\"errors_touched\":{:.5},\
                 \"latency_caught\":{},\"latency_checks\":{},\"latency_touched\":{:.5}}},",
                twins.rolled_back,
                twins.promoted,
                worse.rolled_back,
                worse.median_checks,
                worse.touched,
                slower.rolled_back,
                slower.median_checks,
                slower.touched
            );
        }
        let total = rollouts * rates.len() as u64;
        let share = false_rollbacks as f64 / total as f64;
        let json = json.trim_end_matches(',');
        Ok(format!(
            "{json}],\"aa_rollouts\":{total},\"aa_false_rollbacks\":{false_rollbacks},\
             \"aa_false_share\":{share:.4}}}"
        ))
    }
}

/// How a version behaves.
#[derive(Clone, Copy)]
struct Version {
    error_rate: f64,
    /// Of the median latency.
    slowdown: f64,
}

impl Version {
    fn twin(error_rate: f64) -> Self {
        Self { error_rate, slowdown: 1.0 }
    }

    fn failing(error_rate: f64) -> Self {
        Self { error_rate, slowdown: 1.0 }
    }

    fn slower(error_rate: f64, slowdown: f64) -> Self {
        Self { error_rate, slowdown }
    }

    /// `requests` requests: errors one by one, latencies log-normal.
    fn window(self, requests: u64, random: &mut Random) -> Window {
        let mut window = Window { requests, ..Window::default() };
        window.latency = vec![0; VARIANT_LATENCY_BUCKETS];
        for _ in 0..requests {
            if random.unit() < self.error_rate {
                window.errors += 1;
                continue;
            }
            let us = 2_000.0 * self.slowdown * (0.5 * random.normal()).exp();
            let bucket = (4.0 * (us / 10.0).log2()).ceil().max(0.0) as usize;
            window.latency[bucket.min(VARIANT_LATENCY_BUCKETS - 1)] += 1;
        }
        window
    }
}

/// How some rollouts ended.
struct Outcomes {
    rolled_back: u64,
    promoted: u64,
    /// Until the end.
    median_checks: u64,
    /// Share of all requests that the candidate answered, until the end.
    touched: f64,
}

/// Requests in one check, of both versions together.
const REQUESTS_PER_CHECK: f64 = 1_000.0;

/// A rollout that has not ended by then counts as neither.
const MAX_CHECKS: u64 = 2_000;

fn simulate(
    strategy: &StrategyPlugin,
    rollouts: u64,
    candidate: Version,
    base: f64,
) -> Result<Outcomes> {
    let mut outcomes = Outcomes { rolled_back: 0, promoted: 0, median_checks: 0, touched: 0.0 };
    let mut checks = Vec::new();
    let (mut touched, mut all) = (0, 0);
    for seed in 0..rollouts {
        let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ base.to_bits());
        let plan = strategy.begin(None)?;
        let (mut weight, mut state) = (plan.weight, plan.state);
        for check in 1..=MAX_CHECKS {
            let share = f64::from(weight) / 10_000.0;
            let on_candidate = (REQUESTS_PER_CHECK * share).round() as u64;
            let on_stable = REQUESTS_PER_CHECK as u64 - on_candidate;
            (touched, all) = (touched + on_candidate, all + on_candidate + on_stable);
            let observed = Observation {
                elapsed_ms: check * plan.check_every_ms,
                weight,
                stable: Version::twin(base).window(on_stable, &mut random),
                candidate: candidate.window(on_candidate, &mut random),
                findings: Vec::new(),
            };
            let verdict = strategy.evaluate(&observed, &state)?;
            state = verdict.state;
            match verdict.action {
                Action::Hold => continue,
                Action::SetWeight(next) => {
                    weight = next;
                    continue;
                }
                Action::Promote => outcomes.promoted += 1,
                Action::Rollback => outcomes.rolled_back += 1,
            }
            checks.push(check);
            break;
        }
    }
    checks.sort_unstable();
    outcomes.median_checks = checks.get(checks.len() / 2).copied().unwrap_or(MAX_CHECKS);
    outcomes.touched = touched as f64 / all.max(1) as f64;
    Ok(outcomes)
}

/// splitmix64, and draws from it.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}
