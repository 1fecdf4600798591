use crate::bindings::strategy_world::Strategy as Bindings;
use crate::bindings::strategy_world::exports::mortise::plugin::strategy_api as raw;
use crate::policy::{Entered, PolicyCode, PolicyRequest};
use crate::{Compiled, Host, World};
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;

/// The whole of an endpoint's traffic, as weights count it.
const WHOLE: u32 = 10_000;

/// Bytes of state that are kept for a strategy.
const MAX_STATE_BYTES: usize = 1 << 20;

/// Characters of a reason that are kept.
const MAX_REASON_CHARS: usize = 1_000;

/// Tests that a verdict may report.
const MAX_EVIDENCE: usize = 64;

/// A loaded strategy. Calls are rare and wait for each other.
pub struct StrategyPlugin {
    code: PolicyCode,
    /// `None` after a trap.
    instance: Mutex<Option<Entered<Bindings>>>,
}

/// How a rollout begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrategyPlan {
    /// In parts of 10,000.
    pub weight: u32,
    pub check_every_ms: u64,
    pub state: Vec<u8>,
}

/// What happened since the last evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Since the rollout began, without pauses.
    pub elapsed_ms: u64,
    /// The candidate's share now, in parts of 10,000.
    pub weight: u32,
    pub stable: Window,
    pub candidate: Window,
    pub findings: Vec<Finding>,
}

/// What one variant did since the last evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    pub requests: u64,
    pub errors: u64,
    /// As the contract counts latencies.
    pub latency: Vec<u64>,
    pub metrics: Vec<Moments>,
}

/// The values of a reported metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    pub name: String,
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
}

/// What a monitor says about the candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub monitor: String,
    pub severity: Severity,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

/// What a strategy decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub action: Action,
    pub reason: String,
    pub evidence: Vec<Evidence>,
    pub state: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Hold,
    /// In parts of 10,000.
    SetWeight(u32),
    Promote,
    Rollback,
}

/// How far one test is from ending the rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    pub test: String,
    pub odds: f64,
    pub limit: f64,
}

impl StrategyPlugin {
    /// Makes an instance. Blocking, and needs 1 MiB of stack.
    ///
    /// # Errors
    /// When the component is of another world or does not start.
    pub fn load(host: &Arc<Host>, compiled: &Compiled, request: PolicyRequest) -> Result<Self> {
        let code = PolicyCode::new(host, compiled, World::Strategy, request)?;
        let instance = enter(&code)?;
        Ok(Self { code, instance: Mutex::new(Some(instance)) })
    }

    /// How a rollout begins, or goes on from `state`. Blocking.
    ///
    /// # Errors
    /// When the configuration or the state does not fit, or the plugin fails.
    pub fn begin(&self, state: Option<&[u8]>) -> Result<StrategyPlan> {
        let plan = self.call("begin", |bindings, store| {
            let api = bindings.mortise_plugin_strategy_api();
            api.call_begin(store, &self.code.config_json, state)
        })?;
        let raw::Plan { weight, check_every_ms, state } = plan;
        self.check_weight(weight)?;
        self.check_state(&state)?;
        if check_every_ms == 0 {
            return Err(self.wrong("check-every-ms = 0; it is at least 1"));
        }
        Ok(StrategyPlan { weight, check_every_ms, state })
    }

    /// Decides. Blocking for up to `call_timeout`.
    ///
    /// # Errors
    /// What the plugin returned, or why it failed; a new instance is made for
    /// the next call.
    pub fn evaluate(&self, observed: &Observation, state: &[u8]) -> Result<Verdict> {
        let observed = raw::Observation::from(observed);
        let verdict = self.call("evaluate", |bindings, store| {
            let api = bindings.mortise_plugin_strategy_api();
            api.call_evaluate(store, &self.code.config_json, &observed, state)
        })?;
        let action = Action::from(verdict.action);
        if let Action::SetWeight(weight) = action {
            self.check_weight(weight)?;
        }
        self.check_state(&verdict.state)?;
        let evidence = verdict.evidence.into_iter().take(MAX_EVIDENCE);
        Ok(Verdict {
            action,
            reason: verdict.reason.chars().take(MAX_REASON_CHARS).collect(),
            evidence: evidence.map(Evidence::from).collect(),
            state: verdict.state,
        })
    }

    fn call<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(
            &Bindings,
            &mut wasmtime::Store<crate::state::State>,
        ) -> wasmtime::Result<Result<T, crate::bindings::types::Error>>,
    ) -> Result<T> {
        let mut slot = self.instance.lock();
        let mut instance = match slot.take() {
            Some(instance) => instance,
            None => enter(&self.code)?,
        };
        match instance.call(name, call) {
            Ok(value) => {
                *slot = Some(instance);
                Ok(value)
            }
            Err(failure) => {
                if !failure.retire {
                    *slot = Some(instance);
                }
                Err(failure.error)
            }
        }
    }

    fn check_weight(&self, weight: u32) -> Result<()> {
        match weight <= WHOLE {
            true => Ok(()),
            false => Err(self.wrong(&format!("a weight of {weight}; {WHOLE} is all traffic"))),
        }
    }

    fn check_state(&self, state: &[u8]) -> Result<()> {
        match state.len() <= MAX_STATE_BYTES {
            true => Ok(()),
            false => Err(self.wrong(&format!(
                "{} bytes of state; at most {MAX_STATE_BYTES} are kept",
                state.len()
            ))),
        }
    }

    fn wrong(&self, what: &str) -> Error {
        let plugin = &self.code.shared.plugin;
        Error::plugin(format!("plugin \"{plugin}\" returned {what}"))
    }
}

fn enter(code: &PolicyCode) -> Result<Entered<Bindings>> {
    code.enter(|store, instance| Bindings::new(store, instance)).map_err(|failure| failure.error)
}

impl From<&Observation> for raw::Observation {
    fn from(observed: &Observation) -> Self {
        Self {
            elapsed_ms: observed.elapsed_ms,
            weight: observed.weight,
            stable: (&observed.stable).into(),
            candidate: (&observed.candidate).into(),
            findings: observed.findings.iter().map(raw::Finding::from).collect(),
        }
    }
}

impl From<&Window> for raw::Window {
    fn from(window: &Window) -> Self {
        let moments = |moments: &Moments| raw::Moments {
            name: moments.name.clone(),
            count: moments.count,
            sum: moments.sum,
            sum_of_squares: moments.sum_of_squares,
        };
        Self {
            requests: window.requests,
            errors: window.errors,
            latency: window.latency.clone(),
            metrics: window.metrics.iter().map(moments).collect(),
        }
    }
}

impl From<&Finding> for raw::Finding {
    fn from(finding: &Finding) -> Self {
        let severity = match finding.severity {
            Severity::Info => raw::Severity::Info,
            Severity::Warning => raw::Severity::Warning,
            Severity::Critical => raw::Severity::Critical,
        };
        Self { monitor: finding.monitor.clone(), severity, message: finding.message.clone() }
    }
}

impl From<raw::Action> for Action {
    fn from(action: raw::Action) -> Self {
        match action {
            raw::Action::Hold => Self::Hold,
            raw::Action::SetWeight(weight) => Self::SetWeight(weight),
            raw::Action::Promote => Self::Promote,
            raw::Action::Rollback => Self::Rollback,
        }
    }
}

impl From<raw::Evidence> for Evidence {
    fn from(evidence: raw::Evidence) -> Self {
        Self { test: evidence.test, odds: evidence.odds, limit: evidence.limit }
    }
}
