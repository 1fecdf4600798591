//! Switches all traffic at once, and keeps the old version at hand.
//!
//! First the candidate gets no traffic but is reached by its version
//! (`/v2/models/NAME/versions/V`): the preview. Then it gets everything, while
//! the old version stays loaded for `keep`; when the candidate fails much more
//! often, or is much slower, than the old version was before the switch, the
//! old one takes over again.
//!
//! **Configuration**, all optional:
//! - `preview`: time before the switch, `"30s"`;
//! - `keep`: time after the switch until the old version goes, `"10m"`;
//! - `min_samples`: requests after the switch that are needed to judge, 100;
//! - `max_error_rise`: tolerated rise of the error rate, as a share of all
//!   requests, 0.01;
//! - `max_slowdown`: tolerated factor on the median latency, 2.

use mortise_plugin_sdk::{
    Action, Context, Error, Evidence, Observation, Plan, Result, Severity, Strategy, Verdict,
    Window, export_strategy, latency_bound_us,
};
use serde::{Deserialize, Serialize};

const WHOLE: u32 = 10_000;
const CHECK_EVERY_MS: u64 = 1_000;
const FORMAT: u32 = 1;

/// Two-sided 99.9 % of the normal distribution.
const SCORE: f64 = 3.29;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    preview: Time,
    keep: Time,
    min_samples: u64,
    max_error_rise: f64,
    max_slowdown: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preview: Time::Seconds(30.0),
            keep: Time::Seconds(600.0),
            min_samples: 100,
            max_error_rise: 0.01,
            max_slowdown: 2.0,
        }
    }
}

/// `"60s"`, `"10m"`, `"500ms"`, or a number of seconds.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
}

impl Time {
    fn ms(&self) -> Result<u64> {
        let seconds = match self {
            Self::Seconds(seconds) => Some(*seconds),
            Self::Text(text) => [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)]
                .iter()
                .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
                .and_then(|(number, factor)| Some(number.parse::<f64>().ok()? * factor)),
        };
        let is_time = |seconds: &f64| *seconds >= 0.0 && *seconds < 1e9;
        seconds
            .filter(is_time)
            .map(|seconds| (seconds * 1e3) as u64)
            .ok_or_else(|| Error::invalid("preview and keep are times such as 30s, 10m or 1h"))
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    /// When all traffic went to the candidate.
    switched_ms: Option<u64>,
    /// The old version before the switch, and the candidate after it.
    before: Totals,
    after: Totals,
}

#[derive(Default, Serialize, Deserialize)]
struct Totals {
    requests: u64,
    errors: u64,
    latency: Vec<u64>,
}

struct BlueGreen;

impl Strategy for BlueGreen {
    fn begin(ctx: &Context, state: Option<&[u8]>) -> Result<Plan> {
        let config: Config = ctx.config()?;
        config.preview.ms()?;
        config.keep.ms()?;
        let state = match state {
            None => State {
                format: FORMAT,
                switched_ms: None,
                before: Totals::default(),
                after: Totals::default(),
            },
            Some(state) => State::read(state)?,
        };
        let weight = if state.switched_ms.is_some() { WHOLE } else { 0 };
        let state = serde_json::to_vec(&state)?;
        Ok(Plan { weight, check_every_ms: CHECK_EVERY_MS, state })
    }

    fn evaluate(ctx: &Context, observed: &Observation, state: &[u8]) -> Result<Verdict> {
        let config: Config = ctx.config()?;
        let mut state = State::read(state)?;
        let (action, reason) = state.decide(&config, observed)?;
        let evidence = state.evidence(&config);
        Ok(Verdict { action, reason, evidence, state: serde_json::to_vec(&state)? })
    }
}

export_strategy!(BlueGreen);

impl State {
    fn read(bytes: &[u8]) -> Result<Self> {
        let state: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid(format!("this is no state of blue-green: {error}")))?;
        match state.format {
            FORMAT => Ok(state),
            other => Err(Error::unsupported(format!("a state of format {other}"))),
        }
    }

    fn decide(&mut self, config: &Config, observed: &Observation) -> Result<(Action, String)> {
        let critical = observed.findings.iter().find(|it| it.severity == Severity::Critical);
        if let Some(finding) = critical {
            return Ok((Action::Rollback, format!("{}: {}", finding.monitor, finding.message)));
        }
        let Some(switched_ms) = self.switched_ms else {
            self.before.add(&observed.stable);
            let left = config.preview.ms()?.saturating_sub(observed.elapsed_ms);
            if left > 0 {
                return Ok((Action::Hold, format!("preview for another {} s", left / 1_000)));
            }
            self.switched_ms = Some(observed.elapsed_ms);
            return Ok((Action::SetWeight(WHOLE), "the preview is over".to_owned()));
        };
        self.after.add(&observed.candidate);
        if let Some(fault) = self.fault(config) {
            return Ok((Action::Rollback, fault));
        }
        let kept = observed.elapsed_ms.saturating_sub(switched_ms);
        let left = config.keep.ms()?.saturating_sub(kept);
        Ok(match (left, self.after.requests < config.min_samples) {
            (0, false) => {
                (Action::Promote, format!("no fault in {} requests", self.after.requests))
            }
            (0, true) => {
                let (have, need) = (self.after.requests, config.min_samples);
                (Action::Hold, format!("{have} of min_samples = {need} requests"))
            }
            _ => (Action::Hold, format!("the old version is kept for another {} s", left / 1_000)),
        })
    }

    fn fault(&self, config: &Config) -> Option<String> {
        if self.after.requests < config.min_samples {
            return None;
        }
        if self.error_rise(config) >= SCORE {
            return Some(format!(
                "{:.2} % of requests fail, before the switch {:.2} %",
                100.0 * self.after.error_rate(),
                100.0 * self.before.error_rate()
            ));
        }
        let (before, after) = (self.before.median_us()?, self.after.median_us()?);
        (after > before * config.max_slowdown).then(|| {
            format!("the median latency is {after:.0} µs, before the switch {before:.0} µs")
        })
    }

    /// By how many standard deviations the rise exceeds what is tolerated.
    fn error_rise(&self, config: &Config) -> f64 {
        let (p0, p1) = (self.before.error_rate(), self.after.error_rate());
        let variance = |p: f64, n: u64| (p * (1.0 - p)).max(1e-4) / n.max(1) as f64;
        let deviation =
            (variance(p0, self.before.requests) + variance(p1, self.after.requests)).sqrt();
        (p1 - p0 - config.max_error_rise) / deviation
    }

    fn evidence(&self, config: &Config) -> Vec<Evidence> {
        let odds = |score: f64| (score.max(0.0) * score.max(0.0) / 2.0).min(600.0).exp();
        vec![Evidence {
            test: "errors".to_owned(),
            odds: odds(self.error_rise(config)),
            limit: odds(SCORE),
        }]
    }
}

impl Totals {
    fn add(&mut self, window: &Window) {
        self.requests += window.requests;
        self.errors += window.errors;
        self.latency.resize(self.latency.len().max(window.latency.len()), 0);
        self.latency.iter_mut().zip(&window.latency).for_each(|(sum, count)| *sum += count);
    }

    fn error_rate(&self) -> f64 {
        self.errors as f64 / self.requests.max(1) as f64
    }

    fn median_us(&self) -> Option<f64> {
        let total: u64 = self.latency.iter().sum();
        let mut so_far = 0;
        let bucket = self.latency.iter().position(|count| {
            so_far += count;
            total > 0 && so_far * 2 >= total
        });
        bucket.map(latency_bound_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use mortise_plugin_sdk::testing::{Behaviour, Run, Script};

    const CONFIG: &str = r#"{"preview": "2s", "keep": "5s"}"#;

    fn good() -> Behaviour {
        Behaviour { error_rate: 0.004, ..Behaviour::default() }
    }

    fn rollout(candidate: Behaviour, requests_per_second: f64) -> Run {
        let script = Script::new(good()).requests_per_second(requests_per_second);
        script.candidate(move |_| candidate.clone()).run::<BlueGreen>(CONFIG)
    }

    #[test]
    fn a_good_version_takes_over_after_the_preview_and_stays() {
        let run = rollout(Behaviour { latency_us: 350.0, ..good() }, 500.0);
        assert_eq!(run.weights, [0, WHOLE]);
        assert_eq!((run.end(), run.elapsed_ms), (Some(Action::Promote), 7_000), "{}", run.reason());
    }

    #[test]
    fn a_bad_one_is_taken_back_at_the_first_look() {
        let failing = Behaviour { error_rate: 0.08, ..good() };
        let slow = Behaviour { latency_us: 1_200.0, ..good() };
        for bad in [failing, slow] {
            let run = rollout(bad, 500.0);
            assert_eq!(run.weights, [0, WHOLE]);
            assert_eq!((run.end(), run.elapsed_ms), (Some(Action::Rollback), 3_000));
        }
    }

    #[test]
    fn without_traffic_nothing_is_promoted() {
        let run = rollout(good(), 0.0);
        assert_eq!((run.end(), run.weights), (None, vec![0, WHOLE]));
    }
}
