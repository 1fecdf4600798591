//! Switches all traffic at once, and keeps the old version at hand.
//!
//! First the candidate gets no traffic but is reached by its version
//! (`/v2/models/NAME/versions/V`): the preview. When requests to it fail, other
//! than for what is wrong with them, it never gets more. Then it gets everything, while the old version stays loaded for
//! `keep`; when the candidate fails much more often, or is much slower, than the
//! old version was before the switch, the old one takes over again.
//!
//! **Configuration**, all optional:
//! - `preview`: time before the switch, `"30s"`;
//! - `min_preview`: requests to the preview that are needed for the switch, 0;
//! - `max_preview_errors`: how many of them may fail, 0;
//! - `keep`: time after the switch until the old version goes, `"10m"`;
//! - `min_samples`: requests after the switch that are needed to judge, 100;
//! - `max_error_rise`: tolerated rise of the error rate, as a share of all
//!   requests, 0.01;
//! - `max_slowdown`: tolerated factor on the median latency, 2.

use mortise_plugin_sdk::{
    Action, Context, Error, Evidence, Observation, PREVIEW_ERRORS, Plan, Result, Severity,
    Strategy, Verdict, Window, export_strategy, latency_bound_us,
};
use serde::{Deserialize, Serialize};

const WHOLE: u32 = 10_000;
const CHECK_EVERY_MS: u64 = 1_000;
const FORMAT: u32 = 1;

/// Two-sided 99.9 % of the normal distribution.
const SCORE: f64 = 3.29;

/// Odds above this are shown as this; the natural logarithm.
const MAX_LOG_ODDS: f64 = 30.0;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    preview: Time,
    min_preview: u64,
    max_preview_errors: u64,
    keep: Time,
    min_samples: u64,
    max_error_rise: f64,
    max_slowdown: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preview: Time::Seconds(30.0),
            min_preview: 0,
            max_preview_errors: 0,
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
    /// When the preview began; none before the first look at a rollout that another
    /// strategy began.
    began_ms: Option<u64>,
    #[serde(default)]
    preview: Preview,
    /// When all traffic went to the candidate.
    switched_ms: Option<u64>,
    /// The old version before the switch, and the candidate after it.
    before: Totals,
    after: Totals,
}

/// Requests that named the candidate's version before the switch.
#[derive(Default, Serialize, Deserialize)]
struct Preview {
    requests: u64,
    errors: u64,
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
            None => State::at(Some(0)),
            Some([]) => State::at(None),
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
    fn at(began_ms: Option<u64>) -> Self {
        Self {
            format: FORMAT,
            began_ms,
            preview: Preview::default(),
            switched_ms: None,
            before: Totals::default(),
            after: Totals::default(),
        }
    }

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
            return self.decide_before_switch(config, observed);
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

    fn decide_before_switch(
        &mut self,
        config: &Config,
        observed: &Observation,
    ) -> Result<(Action, String)> {
        let now_ms = observed.elapsed_ms;
        if observed.weight >= WHOLE {
            self.switched_ms = Some(now_ms);
            return Ok((Action::Hold, "the candidate has all traffic already".to_owned()));
        }
        self.before.add(&observed.stable);
        self.preview.add(&observed.candidate);
        let Preview { requests, errors } = self.preview;
        if errors > config.max_preview_errors {
            return Ok((
                Action::Rollback,
                format!("{errors} of {requests} requests to the preview failed"),
            ));
        }
        let began_ms = *self.began_ms.get_or_insert(now_ms);
        let left_ms = (began_ms + config.preview.ms()?).saturating_sub(now_ms);
        let so_far = format!("{requests} requests to the preview, {errors} failed");
        if left_ms > 0 {
            let left_s = left_ms.div_ceil(1_000);
            return Ok((Action::Hold, format!("preview for another {left_s} s: {so_far}")));
        }
        if requests < config.min_preview {
            let need = config.min_preview;
            return Ok((Action::Hold, format!("{so_far}; min_preview = {need} are needed")));
        }
        self.switched_ms = Some(now_ms);
        Ok((Action::SetWeight(WHOLE), format!("the preview is over: {so_far}")))
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
        let odds = |score: f64| (score.max(0.0).powi(2) / 2.0).min(MAX_LOG_ODDS).exp();
        vec![Evidence {
            test: "errors".to_owned(),
            odds: odds(self.error_rise(config)),
            limit: odds(SCORE),
        }]
    }
}

impl Preview {
    fn add(&mut self, candidate: &Window) {
        if let Some(seen) = candidate.metrics.iter().find(|it| it.name == PREVIEW_ERRORS) {
            self.requests += seen.count;
            self.errors += seen.sum as u64;
        }
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

    /// With requests to the preview, this share of which fails.
    fn previewed(config: &str, error_rate: f64) -> Run {
        Script::new(good()).preview(20.0, error_rate).run::<BlueGreen>(config)
    }

    #[test]
    fn a_preview_that_fails_never_gets_traffic() {
        let run = previewed(CONFIG, 0.5);
        assert_eq!((run.end(), run.weights.as_slice()), (Some(Action::Rollback), &[0][..]));
        assert!(run.reason().ends_with("requests to the preview failed"), "{}", run.reason());
        assert_eq!(previewed(CONFIG, 0.0).end(), Some(Action::Promote));
        let tolerant = r#"{"preview": "2s", "keep": "5s", "max_preview_errors": 100000}"#;
        assert_eq!(previewed(tolerant, 0.5).end(), Some(Action::Promote));
    }

    #[test]
    fn a_preview_that_nobody_looked_at_may_hold_up_the_switch() {
        let config = r#"{"preview": "2s", "keep": "5s", "min_preview": 10}"#;
        let run = Script::new(good()).run::<BlueGreen>(config);
        assert_eq!((run.end(), run.weights.as_slice()), (None, &[0][..]));
        assert!(run.reason().contains("min_preview = 10"), "{}", run.reason());
    }

    #[test]
    fn it_takes_a_rollout_over_from_another_strategy() {
        let ctx = Context::new(CONFIG);
        let look = |elapsed_ms, weight, state: &[u8]| {
            let observed = Observation { elapsed_ms, weight, ..Observation::default() };
            BlueGreen::evaluate(&ctx, &observed, state).unwrap()
        };
        let begun = BlueGreen::begin(&ctx, Some(b"")).unwrap();
        let first = look(60_000, 500, &begun.state);
        assert_eq!(first.action, Action::Hold, "the preview begins with the takeover");
        assert_eq!(look(62_000, 500, &first.state).action, Action::SetWeight(WHOLE));
        // Somebody gave it everything already.
        assert_eq!(look(60_000, WHOLE, &begun.state).action, Action::Hold);
        assert!(BlueGreen::begin(&ctx, Some(b"{\"format\": 1, \"step\": 2}")).is_err());
    }

    #[test]
    fn without_traffic_nothing_is_promoted() {
        let run = rollout(good(), 0.0);
        assert_eq!((run.end(), run.weights), (None, vec![0, WHOLE]));
    }
}
