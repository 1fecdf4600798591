//! Moves traffic to a candidate in steps, and takes it back by itself when the
//! candidate is worse.
//!
//! It is worse when it fails more often than the stable version, is slower, or
//! does worse by a metric that clients report. All of these are decided by
//! sequential tests that may be looked at as often as one likes: a candidate
//! that is as good as the stable version is rolled back with a probability of
//! at most `alpha` over the whole rollout, whatever the error rate is.
//!
//! Where an operator moved the traffic, or another strategy was in charge before,
//! it goes on from the share that it finds: a new step begins there, and the next
//! one is the first of `steps` above it.
//!
//! **Configuration**, all optional:
//! - `steps`: shares in percent, `[1, 5, 25, 50, 100]`; 100 is the promotion;
//! - `interval`: time at each step at least, `"60s"`;
//! - `min_samples`: requests that the candidate must have answered at a step
//!   before it goes on, 100; without traffic the rollout waits;
//! - `check`: time between evaluations, a tenth of the interval, at most 5 s;
//! - `alpha`: 0.05;
//! - `latency_tolerance`: how many times slower than the stable version is no
//!   fault, 1.5;
//! - `metrics`: which direction of a reported metric is good,
//!   `{"revenue": "higher", "complaints": "lower"}`.

mod config;
mod evidence;
mod metric;
mod sprt;

use config::Config;
use evidence::Tests;
use mortise_plugin_sdk::{
    Action, Context, Error, Evidence, Observation, Plan, Result, Severity, Strategy, Verdict,
    export_strategy,
};
use serde::{Deserialize, Serialize};

struct Canary;

/// What is remembered between evaluations, as JSON: the next version of this
/// plugin must read it.
#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    /// The share of this step, in parts of [`config::WHOLE`]; none before the first
    /// look at a rollout that another strategy began.
    weight: Option<u32>,
    step_began_ms: u64,
    /// What the candidate answered at this step.
    step_samples: u64,
    tests: Tests,
}

const FORMAT: u32 = 1;

impl Strategy for Canary {
    fn begin(ctx: &Context, state: Option<&[u8]>) -> Result<Plan> {
        let config = Config::read(ctx)?;
        let weight = config.steps[0];
        let state = match state {
            None => State::at(Some(weight)),
            Some([]) => State::at(None),
            Some(state) => State::read(state)?,
        };
        Ok(Plan { weight, check_every_ms: config.check_ms, state: state.write()? })
    }

    fn evaluate(ctx: &Context, observed: &Observation, state: &[u8]) -> Result<Verdict> {
        let config = Config::read(ctx)?;
        let mut state = State::read(state)?;
        state.notice(observed);
        state.tests.observe(&config, observed);
        let evidence = state.tests.evidence(&config);
        let (action, reason) = state.decide(&config, observed, &evidence);
        Ok(Verdict { action, reason, evidence, state: state.write()? })
    }
}

export_strategy!(Canary);

impl State {
    fn at(weight: Option<u32>) -> Self {
        let tests = Tests::default();
        Self { format: FORMAT, weight, step_began_ms: 0, step_samples: 0, tests }
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let state: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid(format!("this is no state of a canary: {error}")))?;
        match state.format {
            FORMAT => Ok(state),
            other => Err(Error::unsupported(format!(
                "the state has format {other}, and this canary reads {FORMAT}"
            ))),
        }
    }

    fn write(&self) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// A share that is not this step's was set by somebody else, who began another
    /// step with it.
    fn notice(&mut self, observed: &Observation) {
        if self.weight != Some(observed.weight) {
            self.begin_step(observed.weight, observed.elapsed_ms);
        }
        self.step_samples += observed.candidate.requests;
    }

    fn begin_step(&mut self, weight: u32, now_ms: u64) {
        self.weight = Some(weight);
        self.step_began_ms = now_ms;
        self.step_samples = 0;
    }

    fn decide(
        &mut self,
        config: &Config,
        observed: &Observation,
        evidence: &[Evidence],
    ) -> (Action, String) {
        let critical = observed.findings.iter().find(|it| it.severity == Severity::Critical);
        if let Some(finding) = critical {
            let reason = format!("monitor {}: {}", finding.monitor, finding.message);
            return (Action::Rollback, reason);
        }
        if let Some(proof) = evidence.iter().find(|it| it.odds >= it.limit) {
            let (odds, limit) = (proof.odds, proof.limit);
            let seen = self.tests.describe(&proof.test);
            let reason = format!("{seen}; odds {odds:.3e} against it, the limit is {limit:.0}");
            return (Action::Rollback, reason);
        }
        match self.waits_for(config, observed, evidence) {
            Some(reason) => (Action::Hold, reason),
            None => self.advance(config, observed),
        }
    }

    /// Why the step is not over.
    fn waits_for(
        &self,
        config: &Config,
        observed: &Observation,
        evidence: &[Evidence],
    ) -> Option<String> {
        let at_step_ms = observed.elapsed_ms.saturating_sub(self.step_began_ms);
        if at_step_ms < config.interval_ms {
            let left_s = (config.interval_ms - at_step_ms) as f64 / 1e3;
            return Some(format!("{left_s:.1} s of this step are left"));
        }
        // Without a share there is nothing to wait for.
        if self.step_samples < config.min_samples && observed.weight > 0 {
            let (have, need) = (self.step_samples, config.min_samples);
            return Some(format!("the candidate answered {have} of min_samples = {need}"));
        }
        // Halfway to proof on a scale of orders of magnitude.
        let doubt = evidence.iter().find(|it| it.odds * it.odds >= it.limit)?;
        Some(format!("inconclusive: odds {:.1} by {} need more samples", doubt.odds, doubt.test))
    }

    fn advance(&mut self, config: &Config, observed: &Observation) -> (Action, String) {
        let (samples, left) = (self.step_samples, f64::from(observed.weight) / 100.0);
        let reason =
            format!("no fault in {samples} requests at {left} %; {}", self.tests.summary());
        let next = config.steps.iter().copied().find(|step| *step > observed.weight);
        match next.filter(|weight| *weight < config::WHOLE) {
            Some(weight) => {
                self.begin_step(weight, observed.elapsed_ms);
                (Action::SetWeight(weight), reason)
            }
            None => (Action::Promote, reason),
        }
    }
}

#[cfg(test)]
mod tests;
