use crate::bindings::model::mortise::plugin::types as raw_types;
use crate::bindings::strategy::exports::mortise::plugin::strategy_api as raw;
use crate::{Context, Result, log};
use std::marker::PhantomData;

/// A strategy: how traffic moves from the stable version to a candidate. Both
/// functions are pure: what must be remembered goes into the state.
pub trait Strategy: 'static {
    /// Checks the configuration and says how the rollout begins. With a
    /// `state`, takes over a rollout that is under way. The state may be that of
    /// another strategy: refuse what cannot be read as invalid, and `begin` is
    /// called again with an empty one.
    ///
    /// # Errors
    /// The message reaches whoever deploys.
    fn begin(ctx: &Context, state: Option<&[u8]>) -> Result<Plan>;

    /// Decides on what was observed since the last evaluation.
    ///
    /// # Errors
    /// Traffic stays where it is, and the operator is told the message.
    fn evaluate(ctx: &Context, observed: &Observation, state: &[u8]) -> Result<Verdict>;
}

/// How a rollout begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The candidate's share at the beginning, in parts of 10,000.
    pub weight: u32,
    /// Milliseconds between evaluations.
    pub check_every_ms: u64,
    pub state: Vec<u8>,
}

/// What happened since the last evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Milliseconds since the rollout began, without pauses.
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
    /// Answered requests by latency: element `i` counts those of at most
    /// [`latency_bound_us`]`(i)` that no earlier one counts, the last one all
    /// that were slower.
    pub latency: Vec<u64>,
    /// What clients reported, and [`PREVIEW_ERRORS`].
    pub metrics: Vec<Moments>,
}

/// The metric that tells of requests which named the candidate's version: one
/// value each, 1 for a failure and 0 for an answer, none for one that was wrong
/// itself.
pub const PREVIEW_ERRORS: &str = "preview_errors";

/// Upper bound of an element of [`Window::latency`], in microseconds.
pub fn latency_bound_us(index: usize) -> f64 {
    10.0 * (index as f64 / 4.0).exp2()
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

/// What a strategy decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub action: Action,
    /// For the audit log: what was seen.
    pub reason: String,
    pub evidence: Vec<Evidence>,
    pub state: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Hold,
    /// In parts of 10,000.
    SetWeight(u32),
    /// The candidate takes over for good.
    Promote,
    /// The stable version takes all traffic back.
    Rollback,
}

/// How far one test is from ending the rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    pub test: String,
    /// Odds against the candidate that the data give.
    pub odds: f64,
    /// The odds at which it is rolled back.
    pub limit: f64,
}

/// The strategy world's exports for `S`.
#[doc(hidden)]
pub struct StrategyExport<S>(PhantomData<S>);

impl<S: Strategy> raw::Guest for StrategyExport<S> {
    fn begin(config: String, state: Option<Vec<u8>>) -> Result<raw::Plan, raw_types::Error> {
        log::install_panic_hook();
        let plan = S::begin(&Context::new(config), state.as_deref())?;
        Ok(raw::Plan {
            weight: plan.weight,
            check_every_ms: plan.check_every_ms,
            state: plan.state,
        })
    }

    fn evaluate(
        config: String,
        observed: raw::Observation,
        state: Vec<u8>,
    ) -> Result<raw::Verdict, raw_types::Error> {
        log::install_panic_hook();
        let verdict = S::evaluate(&Context::new(config), &observed.into(), &state)?;
        Ok(verdict.into())
    }
}

impl From<raw::Observation> for Observation {
    fn from(raw: raw::Observation) -> Self {
        Self {
            elapsed_ms: raw.elapsed_ms,
            weight: raw.weight,
            stable: raw.stable.into(),
            candidate: raw.candidate.into(),
            findings: raw.findings.into_iter().map(Finding::from).collect(),
        }
    }
}

impl From<raw::Window> for Window {
    fn from(raw: raw::Window) -> Self {
        let moments = |moments: raw::Moments| Moments {
            name: moments.name,
            count: moments.count,
            sum: moments.sum,
            sum_of_squares: moments.sum_of_squares,
        };
        Self {
            requests: raw.requests,
            errors: raw.errors,
            latency: raw.latency,
            metrics: raw.metrics.into_iter().map(moments).collect(),
        }
    }
}

impl From<raw::Finding> for Finding {
    fn from(raw: raw::Finding) -> Self {
        let severity = match raw.severity {
            raw::Severity::Info => Severity::Info,
            raw::Severity::Warning => Severity::Warning,
            raw::Severity::Critical => Severity::Critical,
        };
        Self { monitor: raw.monitor, severity, message: raw.message }
    }
}

impl From<Verdict> for raw::Verdict {
    fn from(verdict: Verdict) -> Self {
        let action = match verdict.action {
            Action::Hold => raw::Action::Hold,
            Action::SetWeight(weight) => raw::Action::SetWeight(weight),
            Action::Promote => raw::Action::Promote,
            Action::Rollback => raw::Action::Rollback,
        };
        let evidence = |evidence: Evidence| raw::Evidence {
            test: evidence.test,
            odds: evidence.odds,
            limit: evidence.limit,
        };
        Self {
            action,
            reason: verdict.reason,
            evidence: verdict.evidence.into_iter().map(evidence).collect(),
            state: verdict.state,
        }
    }
}

/// Exports a type that implements [`Strategy`] as the component's strategy.
/// Call it once, at the top level of the plugin's crate.
#[macro_export]
macro_rules! export_strategy {
    ($strategy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type MortiseExport = $crate::__private::StrategyExport<$strategy>;
            $crate::__private::strategy::export_strategy_world!(
                MortiseExport with_types_in $crate::__private::strategy
            );
        };
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Context, Option<&[u8]>) -> $crate::Result<$crate::Plan> =
            <$strategy as $crate::Strategy>::begin;
    };
}
