use crate::request::PluginRef;
use crate::status::PartInfo;
use mortise_host::{Moments, Window};
use mortise_serve::{
    MetricMoments, RoutingSnapshot, ShadowSnapshot, VARIANT_MAX_METRICS, VariantStatsSnapshot,
};
use mortise_types::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    Running,
    /// Traffic stays as it is and nothing is evaluated.
    Paused,
    /// The candidate took over.
    Promoted,
    /// The strategy, or a failure, gave the traffic back.
    RolledBack,
    /// An operator gave the traffic back.
    Aborted,
}

pub(crate) use RolloutPhase as Phase;

impl RolloutPhase {
    pub const ALL: [Self; 5] =
        [Self::Running, Self::Paused, Self::Promoted, Self::RolledBack, Self::Aborted];

    /// `rolled_back`, as in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::Aborted => "aborted",
        }
    }

    /// Whether both versions still take part.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What a rollout was begun with; a swap of the strategy changes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) strategy: PartInfo,
    pub(crate) router: PartInfo,
    /// Where the sticky key is.
    pub(crate) key: Option<String>,
    pub(crate) hook: Option<RolloutHook>,
    pub(crate) check_every_ms: u64,
    /// Whether the router heeds weights; some divide the traffic on their own.
    #[serde(default = "heeds")]
    pub(crate) follows_weights: bool,
}

fn heeds() -> bool {
    true
}

/// A service that is told about steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutHook {
    pub url: String,
    /// A step is taken only when the service agrees to it.
    #[serde(default)]
    pub confirm: bool,
}

/// The metric that tells a strategy of requests which named the candidate's
/// version; clients cannot report it.
pub(crate) const PREVIEW_ERRORS: &str = "preview_errors";

/// Tells services about steps; implemented where HTTP is spoken.
pub trait Hooks: Send + Sync {
    /// # Errors
    /// `InvalidInput` when nothing can be called at this address.
    fn check(&self, url: &str) -> Result<()>;

    /// Blocks until the service has answered or its time is over.
    ///
    /// # Errors
    /// When it cannot be reached, or does not agree.
    fn call(&self, url: &str, event: &HookEvent) -> Result<()>;
}

/// For tests and servers without hooks.
pub struct NoHooks;

impl Hooks for NoHooks {
    fn check(&self, url: &str) -> Result<()> {
        Err(Error::unsupported(format!("there is nothing to call {url} with")))
    }

    fn call(&self, url: &str, _event: &HookEvent) -> Result<()> {
        self.check(url)
    }
}

/// What a hook is told: as JSON in the body of a POST.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HookEvent {
    /// `before_step`, `after_step`, or `alert` when a policy fails.
    pub event: &'static str,
    pub endpoint: String,
    /// `begin`, `set_weight`, `promote` or `rollback`; of an alert `router_failed`
    /// or `strategy_failed`.
    pub action: &'static str,
    pub candidate_version: u64,
    /// Of the candidate, before and after the step.
    pub weight_percent: f64,
    pub next_weight_percent: f64,
    pub reason: String,
}

/// A rollout as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredRollout {
    pub(crate) id: i64,
    pub(crate) endpoint: String,
    pub(crate) who: String,
    /// Numbers of revisions.
    pub(crate) stable: u64,
    pub(crate) candidate: u64,
    pub(crate) stable_version: u64,
    pub(crate) candidate_version: u64,
    pub(crate) phase: Phase,
    /// In parts of 10,000.
    pub(crate) weight: u32,
    /// Evaluations so far.
    pub(crate) tick: u64,
    pub(crate) elapsed_ms: u64,
    pub(crate) started_ms: u64,
    pub(crate) updated_ms: u64,
    /// The strategy's and the router's own.
    pub(crate) state: Vec<u8>,
    pub(crate) router_state: Option<Vec<u8>>,
    pub(crate) plan: Plan,
    pub(crate) progress: Progress,
}

impl StoredRollout {
    /// The candidate's share.
    ///
    /// # Errors
    /// `InvalidInput` when the router heeds none.
    pub(crate) fn heeded_weight(&self) -> Result<u32> {
        match self.plan.divided_by() {
            None => Ok(self.weight),
            Some(router) => Err(Error::invalid(format!(
                "the router {router} divides the traffic by rules of its own: weights change nothing"
            ))),
        }
    }

    /// Takes in what clients report after the end.
    ///
    /// # Errors
    /// `NotFound` for a version that had no part in it, `InvalidInput` for a value
    /// that is no number, `Overloaded` for too many metrics.
    pub(crate) fn report(&mut self, reports: &[MetricReport]) -> Result<()> {
        for report in reports {
            report.check()?;
            let totals = match report.version {
                version if version == self.stable_version => &mut self.progress.stable,
                version if version == self.candidate_version => &mut self.progress.candidate,
                version => return Err(no_share(version)),
            };
            let metrics = &mut totals.metrics;
            if !metrics.contains_key(&report.metric) && metrics.len() >= VARIANT_MAX_METRICS {
                return Err(too_many_metrics(&report.metric));
            }
            let sums = metrics.entry(report.metric.clone()).or_default();
            sums.count += 1;
            sums.sum += report.value;
            sums.sum_of_squares += report.value * report.value;
        }
        Ok(())
    }
}

pub(super) fn no_share(version: u64) -> Error {
    Error::not_found(format!("version {version} has no share in the traffic"))
}

pub(super) fn too_many_metrics(metric: &str) -> Error {
    Error::overloaded(format!("no room for another metric beside \"{metric}\""))
}

/// What is known about a rollout besides the strategy's state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Why the last step was taken, or the next is not.
    pub(crate) reason: String,
    /// Why the last evaluation failed, when it did.
    pub(crate) error: Option<String>,
    pub(crate) evidence: Vec<EvidenceInfo>,
    pub(crate) stable: VariantTotals,
    pub(crate) candidate: VariantTotals,
    #[serde(default)]
    pub(crate) apart: RoutingTotals,
    /// Users at the end, when no lineup is left to ask.
    #[serde(default)]
    pub(crate) sampled: SampledKeys,
    /// The share to begin with, as long as the hook has not agreed to it.
    #[serde(default)]
    pub(crate) first_weight: Option<u32>,
    /// Why the hook could not be told of a step, the last time that happened.
    #[serde(default)]
    pub(crate) hook_failure: Option<String>,
}

/// How far one test is from ending the rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvidenceInfo {
    pub test: String,
    pub odds: f64,
    pub limit: f64,
}

/// What one variant did over the rollout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VariantTotals {
    pub requests: u64,
    pub errors: u64,
    /// Requests that the other variant answered in its place.
    pub fallbacks: u64,
    /// Requests that named this version, which are in no other count.
    #[serde(default)]
    pub named_requests: u64,
    #[serde(default)]
    pub named_errors: u64,
    /// What the newest failure said.
    #[serde(default)]
    pub last_error: Option<String>,
    /// Answered requests by latency; bucket `i` ends at `10 · 2^(i / 4)` µs.
    pub latency: Vec<u64>,
    pub metrics: BTreeMap<String, MetricInfo>,
    pub shadow_compared: u64,
    pub shadow_differing: u64,
    pub shadow_failed: u64,
    pub shadow_dropped: u64,
    pub shadow_max_difference: f64,
}

/// Requests that are in no variant's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingTotals {
    /// Without a sticky key, each assigned on its own.
    pub keyless_requests: u64,
    /// Answered by the stable version because the router failed.
    pub undecided_requests: u64,
    /// Kept out of the experiment by the router.
    pub outside_requests: u64,
}

impl RoutingTotals {
    /// Adds what was counted between two snapshots.
    pub(crate) fn add(&mut self, from: &RoutingSnapshot, until: &RoutingSnapshot) {
        self.keyless_requests += until.keyless.saturating_sub(from.keyless);
        self.undecided_requests += until.undecided.saturating_sub(from.undecided);
        self.outside_requests += until.outside.saturating_sub(from.outside);
    }
}

/// Sums of a reported metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricInfo {
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
}

/// One value of a metric that a client reports about a version's answers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricReport {
    pub version: u64,
    pub metric: String,
    pub value: f64,
}

impl MetricReport {
    /// # Errors
    /// `InvalidInput` for what no client can report.
    pub(super) fn check(&self) -> Result<()> {
        if self.metric == PREVIEW_ERRORS {
            return Err(Error::invalid(format!(
                "the metric {PREVIEW_ERRORS} is counted here: report under another name"
            )));
        }
        match self.value.is_finite() {
            true => Ok(()),
            false => Err(Error::invalid(format!("{} must be a finite number", self.metric))),
        }
    }
}

/// Another strategy for a rollout under way.
pub struct StrategyChange {
    pub strategy: PluginRef,
    /// Settings that are to be different.
    pub config: Map<String, Value>,
    /// Whether the others fall back to their defaults. They do in any case when the
    /// strategy is another one.
    pub defaults: bool,
}

/// A rollout as the admin API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct RolloutStatus {
    pub endpoint: String,
    pub phase: RolloutPhase,
    pub stable_version: u64,
    pub candidate_version: u64,
    pub stable_revision: u64,
    pub candidate_revision: u64,
    /// The candidate's share.
    pub weight_percent: f64,
    pub strategy: PartInfo,
    pub router: PartInfo,
    /// Whether weights mean anything to it; some divide the traffic on their own.
    pub router_follows_weights: bool,
    pub key: Option<String>,
    pub hook: Option<RolloutHook>,
    /// Evaluations so far.
    pub tick: u64,
    /// Since the beginning, without pauses.
    pub elapsed_ms: u64,
    pub check_every_ms: u64,
    pub started_ms: u64,
    pub updated_ms: u64,
    pub who: String,
    pub reason: String,
    pub error: Option<String>,
    pub evidence: Vec<EvidenceInfo>,
    pub stable: VariantTotals,
    pub candidate: VariantTotals,
    /// Since the last change of weights.
    pub sampled_keys: SampledKeys,
    #[serde(flatten)]
    pub apart: RoutingTotals,
    pub router_failure: Option<String>,
    /// Why the hook could not be told of a step, the last time that happened.
    pub hook_failure: Option<String>,
    /// Why a version cannot answer now, one line each.
    pub obstacles: Vec<String>,
    /// What is likely not meant.
    pub warnings: Vec<String>,
}

/// How many users of an even sample of all users that take part each version has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampledKeys {
    pub stable: u64,
    pub candidate: u64,
    /// The candidate's share while they were sampled.
    pub weight_percent: f64,
}

impl From<&StoredRollout> for RolloutStatus {
    fn from(stored: &StoredRollout) -> Self {
        let (plan, progress) = (stored.plan.clone(), stored.progress.clone());
        Self {
            endpoint: stored.endpoint.clone(),
            phase: stored.phase,
            stable_version: stored.stable_version,
            candidate_version: stored.candidate_version,
            stable_revision: stored.stable,
            candidate_revision: stored.candidate,
            weight_percent: percent(stored.weight),
            strategy: plan.strategy,
            router: plan.router,
            router_follows_weights: plan.follows_weights,
            key: plan.key,
            hook: plan.hook,
            tick: stored.tick,
            elapsed_ms: stored.elapsed_ms,
            check_every_ms: plan.check_every_ms,
            started_ms: stored.started_ms,
            updated_ms: stored.updated_ms,
            who: stored.who.clone(),
            reason: progress.reason,
            error: progress.error,
            evidence: progress.evidence,
            stable: progress.stable,
            candidate: progress.candidate,
            sampled_keys: progress.sampled,
            apart: progress.apart,
            router_failure: None,
            hook_failure: progress.hook_failure,
            obstacles: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// Of a weight in parts of 10,000.
pub(crate) fn percent(weight: u32) -> f64 {
    f64::from(weight) / 100.0
}

impl VariantTotals {
    /// Adds what happened between two snapshots.
    pub(crate) fn add(&mut self, from: &VariantStatsSnapshot, until: &VariantStatsSnapshot) {
        self.requests += until.requests.saturating_sub(from.requests);
        self.errors += until.errors.saturating_sub(from.errors);
        self.fallbacks += until.fallbacks.saturating_sub(from.fallbacks);
        self.named_requests += until.named.saturating_sub(from.named);
        self.named_errors += until.named_errors.saturating_sub(from.named_errors);
        if until.last_error.is_some() {
            self.last_error.clone_from(&until.last_error);
        }
        self.latency.resize(self.latency.len().max(until.latency.len()), 0);
        for (sum, count) in self.latency.iter_mut().zip(latency_between(from, until)) {
            *sum += count;
        }
        for (name, moments) in metrics_between(from, until) {
            let known = self.metrics.entry(name).or_default();
            known.count += moments.count;
            known.sum += moments.sum;
            known.sum_of_squares += moments.sum_of_squares;
        }
        self.add_shadow(&from.shadow, &until.shadow);
    }

    fn add_shadow(&mut self, from: &ShadowSnapshot, until: &ShadowSnapshot) {
        self.shadow_compared += until.compared.saturating_sub(from.compared);
        self.shadow_differing += until.differing.saturating_sub(from.differing);
        self.shadow_failed += until.failed.saturating_sub(from.failed);
        self.shadow_dropped += until.dropped.saturating_sub(from.dropped);
        // JSON has no infinity, which stands for another shape.
        let largest = until.max_difference.min(f64::MAX);
        self.shadow_max_difference = self.shadow_max_difference.max(largest);
    }
}

/// What a strategy is told about the time between two snapshots.
pub(crate) fn window(from: &VariantStatsSnapshot, until: &VariantStatsSnapshot) -> Window {
    let moments = |(name, moments): (String, MetricMoments)| Moments {
        name,
        count: moments.count,
        sum: moments.sum,
        sum_of_squares: moments.sum_of_squares,
    };
    let metrics = metrics_between(from, until).map(moments);
    Window {
        requests: until.requests.saturating_sub(from.requests),
        errors: until.errors.saturating_sub(from.errors),
        latency: latency_between(from, until).collect(),
        metrics: metrics.chain(preview_between(from, until)).collect(),
    }
}

/// Requests that named the version, as a metric.
fn preview_between(from: &VariantStatsSnapshot, until: &VariantStatsSnapshot) -> Option<Moments> {
    let count = until.named.saturating_sub(from.named);
    let errors = until.named_errors.saturating_sub(from.named_errors) as f64;
    let name = PREVIEW_ERRORS.to_string();
    (count > 0).then_some(Moments { name, count, sum: errors, sum_of_squares: errors })
}

fn latency_between<'a>(
    from: &'a VariantStatsSnapshot,
    until: &'a VariantStatsSnapshot,
) -> impl Iterator<Item = u64> + 'a {
    let before = from.latency.iter().copied().chain(std::iter::repeat(0));
    until.latency.iter().zip(before).map(|(now, before)| now.saturating_sub(before))
}

fn metrics_between<'a>(
    from: &'a VariantStatsSnapshot,
    until: &'a VariantStatsSnapshot,
) -> impl Iterator<Item = (String, MetricMoments)> + 'a {
    until.metrics.iter().map(|(name, now)| {
        let before = from.metrics.get(name).copied().unwrap_or_default();
        let moments = MetricMoments {
            count: now.count.saturating_sub(before.count),
            sum: now.sum - before.sum,
            sum_of_squares: now.sum_of_squares - before.sum_of_squares,
        };
        (name.clone(), moments)
    })
}
