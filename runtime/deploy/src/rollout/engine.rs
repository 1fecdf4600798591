//! The clock of rollouts, their steps, and what operators do to them.

use super::active::{Active, Seen};
use super::info::{
    EvidenceInfo, HookEvent, MetricReport, Phase, RolloutStatus, StoredRollout, percent, window,
};
use super::lineup::Split;
use crate::background::lower_priority;
use crate::deployer::Deployer;
use crate::request::PluginRef;
use crate::store::{AuditRecord, RolloutEnd, now_ms};
use mortise_host::{Action, Observation, RoutingEvent, Verdict};
use mortise_serve::{Lineup, MetricMoments, Variant};
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often the clock looks for rollouts that are due.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Values of metrics in one report.
const MAX_REPORTS: usize = 10_000;

/// Who the audit log names for what a strategy decides.
const STRATEGY: &str = "rollout strategy";

/// And for what a router does.
const ROUTER: &str = "rollout router";

/// Evaluates rollouts when they are due, until the deployer is gone.
///
/// # Errors
/// When the operating system refuses the thread.
pub(crate) fn start_ticker(deployer: &Arc<Deployer>) -> Result<()> {
    let weak: Weak<Deployer> = Arc::downgrade(deployer);
    let tick = move || {
        lower_priority();
        while let Some(deployer) = weak.upgrade() {
            deployer.tick_due();
            deployer.save_traffic_due();
            drop(deployer);
            std::thread::sleep(LOOK_EVERY);
        }
    };
    std::thread::Builder::new()
        .name("mortise-rollout".to_string())
        // Policies need 1 MiB of stack.
        .stack_size(4 << 20)
        .spawn(tick)
        .map(drop)
        .map_err(|error| Error::internal(format!("cannot start a thread: {error}")))
}

impl Deployer {
    /// The rollout of an endpoint that is under way, or else its last one.
    ///
    /// # Errors
    /// `NotFound` when the endpoint never had one.
    pub fn rollout(&self, name: &str) -> Result<RolloutStatus> {
        if let Some(active) = self.active(name) {
            let lineup = self.ctx.registry.endpoint(name).and_then(|endpoint| endpoint.lineup());
            return Ok(active.lock().status(lineup.as_deref()));
        }
        let last = self.ctx.store.last_rollout(name)?;
        last.as_ref().map(RolloutStatus::from).ok_or_else(|| no_rollout(name))
    }

    /// Stops evaluating; traffic stays as it is.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way.
    pub fn pause_rollout(&self, name: &str, who: &str) -> Result<RolloutStatus> {
        self.set_phase(name, who, Phase::Paused, "pause")
    }

    /// Goes on evaluating. What happened during the pause is no evidence.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way.
    pub fn resume_rollout(&self, name: &str, who: &str) -> Result<RolloutStatus> {
        self.set_phase(name, who, Phase::Running, "resume")
    }

    /// Makes the candidate the live version now.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way.
    pub fn promote_rollout(&self, name: &str, who: &str) -> Result<RolloutStatus> {
        self.end_by_operator(name, who, Phase::Promoted, "promoted by an operator")
    }

    /// Gives all traffic back to the stable version now.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way.
    pub fn abort_rollout(&self, name: &str, who: &str) -> Result<RolloutStatus> {
        self.end_by_operator(name, who, Phase::Aborted, "aborted by an operator")
    }

    /// Sets the candidate's share, in parts of 10,000.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way, `InvalidInput` for more than all
    /// traffic.
    pub fn set_rollout_weight(&self, name: &str, weight: u32, who: &str) -> Result<RolloutStatus> {
        if weight > Variant::WHOLE {
            return Err(Error::invalid("a share is at most 100 percent"));
        }
        let shared = self.active_or_error(name)?;
        let mut active = shared.lock();
        let row = StoredRollout { weight, ..active.row.clone() };
        let reason = format!("version {} gets {} %", row.candidate_version, percent(weight));
        self.move_weight(&mut active, row, &reason, who)?;
        Ok(RolloutStatus::from(&active.row))
    }

    /// Puts another strategy, or another version of the same, in charge of a
    /// rollout under way. It takes over the state.
    ///
    /// # Errors
    /// When the component is no strategy, or cannot read the state.
    pub fn swap_strategy(
        &self,
        name: &str,
        strategy: PluginRef,
        config: Option<serde_json::Map<String, serde_json::Value>>,
        who: &str,
    ) -> Result<RolloutStatus> {
        let shared = self.active_or_error(name)?;
        let mut active = shared.lock();
        let config = config.unwrap_or_else(|| active.row.plan.strategy.config.clone());
        let (part, _pin) = self.ctx.receive_policy(strategy, config)?;
        let plugin = self.ctx.strategy(name, &part)?;
        let plan = plugin.begin(Some(&active.row.state))?;
        let mut row = StoredRollout { state: plan.state, ..active.row.clone() };
        row.plan.check_every_ms = plan.check_every_ms;
        row.progress.error = None;
        let detail = format!("{} takes over from {}", part.plugin, row.plan.strategy.plugin);
        let mut audit = audit(&row, who, "rollout_swap", detail);
        audit.digests = vec![part.plugin_digest.clone()];
        row.plan.strategy = part;
        self.ctx.store.save_rollout(&row, Some(&audit))?;
        active.row = row;
        active.strategy = Some(plugin);
        Ok(RolloutStatus::from(&active.row))
    }

    /// Takes in what clients report about answers: the strategy's evidence,
    /// and what the router learns from.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way or for a version that has no
    /// part in it.
    pub fn report_metrics(&self, name: &str, reports: &[MetricReport]) -> Result<usize> {
        if reports.len() > MAX_REPORTS {
            return Err(Error::too_large(format!(
                "at most {MAX_REPORTS} values are reported at once"
            )));
        }
        if let Some(traffic) = self.traffic_of(name) {
            traffic.lock().report(reports)?;
            return Ok(reports.len());
        }
        let shared = self.active_or_error(name)?;
        let mut active = shared.lock();
        let events = take_reports(&[&active.stable, &active.candidate], reports)?;
        active.row.router_state = Some(active.router.learn(&events)?).filter(|it| !it.is_empty());
        Ok(reports.len())
    }

    fn tick_due(&self) {
        let actives: Vec<Arc<Mutex<Active>>> = self.rollouts.lock().values().cloned().collect();
        for shared in actives {
            let mut active = shared.lock();
            let now = Instant::now();
            if now < active.next_tick {
                continue;
            }
            active.next_tick = now + Duration::from_millis(active.row.plan.check_every_ms);
            self.watch_router(&mut active);
            if active.row.phase != Phase::Running {
                continue;
            }
            if let Err(error) = self.tick(&mut active, now) {
                self.tick_failed(&mut active, &error);
            }
        }
    }

    /// One evaluation. When it fails, nothing has changed, and the next one
    /// sees what this one should have.
    fn tick(&self, active: &mut Active, now: Instant) -> Result<()> {
        let seen = active.snapshot();
        let elapsed = now.saturating_duration_since(active.counted_at);
        let elapsed_ms =
            active.row.elapsed_ms + u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let observed = Observation {
            elapsed_ms,
            weight: active.row.weight,
            stable: window(&active.seen.stable, &seen.stable),
            candidate: window(&active.seen.candidate, &seen.candidate),
            findings: Vec::new(),
        };
        if active.strategy.is_none() {
            active.strategy =
                Some(self.ctx.strategy(&active.row.endpoint, &active.row.plan.strategy)?);
        }
        let Some(strategy) = &active.strategy else { return Ok(()) };
        let verdict = strategy.evaluate(&observed, &active.row.state)?;
        let row = evaluated(active, &seen, elapsed_ms, &verdict);
        if !self.agreed(active, &row, &verdict) {
            return Ok(());
        }
        self.act(active, row, &verdict)?;
        active.seen = seen;
        active.counted_at = now;
        Ok(())
    }

    /// Whether the hook, if it is to be asked, agrees to what was decided. The
    /// question and the answer are ticks apart; until then nothing changes, and
    /// the strategy decides anew each time.
    fn agreed(&self, active: &mut Active, row: &StoredRollout, verdict: &Verdict) -> bool {
        let (action, next) = match verdict.action {
            Action::SetWeight(weight) if weight != row.weight => ("set_weight", weight),
            Action::Promote => ("promote", Variant::WHOLE),
            // Nobody is asked before harm is stopped.
            Action::Hold | Action::SetWeight(_) | Action::Rollback => return true,
        };
        let Some(hook) = &mut active.hook else { return true };
        let event = hook_event(row, "before_step", action, (row.weight, next), &verdict.reason);
        match hook.agrees(action, event) {
            Ok(true) => true,
            Ok(false) => {
                let waits = format!("the hook is asked about {action}: {}", verdict.reason);
                active.row.progress.reason = waits;
                false
            }
            Err(error) => {
                let url = row.plan.hook.as_ref().map_or("", |hook| &hook.url);
                let message = format!("the hook {url} does not agree to {action}: {error}");
                self.note_failure(active, &message);
                false
            }
        }
    }

    fn act(&self, active: &mut Active, row: StoredRollout, verdict: &Verdict) -> Result<()> {
        let reason = &verdict.reason;
        match verdict.action {
            Action::Hold => {
                self.ctx.store.save_rollout(&row, None)?;
                active.row = row;
                Ok(())
            }
            Action::SetWeight(weight) if weight == row.weight => {
                self.ctx.store.save_rollout(&row, None)?;
                active.row = row;
                Ok(())
            }
            Action::SetWeight(weight) => {
                let next = StoredRollout { weight, ..row };
                self.move_weight(active, next, reason, STRATEGY)
            }
            Action::Promote => self.end(active, row, Phase::Promoted, reason, STRATEGY),
            Action::Rollback => self.end(active, row, Phase::RolledBack, reason, STRATEGY),
        }
    }

    /// Gives the candidate the weight of `row`: the transaction first, then the
    /// traffic.
    fn move_weight(
        &self,
        active: &mut Active,
        row: StoredRollout,
        reason: &str,
        who: &str,
    ) -> Result<()> {
        let split = Split {
            endpoint: &row.endpoint,
            stable: &active.stable,
            candidate: &active.candidate,
            weight: row.weight,
        };
        let router = split.router(&self.ctx, &row.plan, row.router_state.as_deref())?;
        let lineup = split.lineup(router.clone(), &row.plan)?;
        let from = percent(active.row.weight);
        let detail = format!("{from} % to {} %: {reason}", percent(row.weight));
        let audit = audit(&row, who, "rollout_step", detail);
        self.ctx.store.save_rollout(&row, Some(&audit))?;
        self.ctx.registry.publish_lineup(&row.endpoint, lineup);
        let before = std::mem::replace(&mut active.row, row);
        active.router = router;
        tell(active, "after_step", "set_weight", before.weight, reason);
        Ok(())
    }

    pub(crate) fn publish_split(&self, active: &Active) -> Result<()> {
        let split = Split {
            endpoint: &active.row.endpoint,
            stable: &active.stable,
            candidate: &active.candidate,
            weight: active.row.weight,
        };
        let lineup = split.lineup(active.router.clone(), &active.row.plan)?;
        self.ctx.registry.publish_lineup(&active.row.endpoint, lineup);
        Ok(())
    }

    /// One version takes all traffic, and the rollout is over.
    fn end(
        &self,
        active: &mut Active,
        row: StoredRollout,
        phase: Phase,
        reason: &str,
        who: &str,
    ) -> Result<()> {
        let before = row.weight;
        let is_promotion = phase == Phase::Promoted;
        let weight = if is_promotion { Variant::WHOLE } else { 0 };
        let mut row = StoredRollout { phase, weight, ..row };
        row.progress.reason = explained(&row, reason);
        let reason = &row.progress.reason.clone();
        let action = if is_promotion { "rollout_promote" } else { "rollout_rollback" };
        let audit = audit(&row, who, action, format!("at {} %: {reason}", percent(before)));
        let end = if is_promotion { RolloutEnd::Promote } else { RolloutEnd::Discard };
        self.ctx.store.end_rollout(&row, end, &audit)?;
        let name = row.endpoint.clone();
        let winner = if is_promotion { &active.candidate } else { &active.stable };
        let lineup = Lineup::single(winner.revision.clone());
        let drains = self.ctx.registry.publish_lineup(&name, lineup);
        self.let_go(&name, drains);
        let action = if is_promotion { "promote" } else { "rollback" };
        active.row = row;
        tell(active, "after_step", action, before, reason);
        self.rollouts.lock().remove(&name);
        Ok(())
    }

    /// Ends a rollout of which only the row is left.
    pub(crate) fn store_rollback(&self, row: StoredRollout, reason: &str) -> Result<()> {
        let mut row = StoredRollout { phase: Phase::RolledBack, weight: 0, ..row };
        row.progress.reason = reason.to_string();
        let audit = audit(&row, STRATEGY, "rollout_rollback", reason.to_string());
        self.ctx.store.end_rollout(&row, RolloutEnd::Discard, &audit)
    }

    fn tick_failed(&self, active: &mut Active, error: &Error) {
        let message = error.message().to_string();
        if self.note_failure(active, &message) {
            tell(active, "alert", "strategy_failed", active.row.weight, &message);
        }
    }

    /// Stores why a rollout does not go on. Whether that is news.
    fn note_failure(&self, active: &mut Active, message: &str) -> bool {
        if active.row.progress.error.as_deref() == Some(message) {
            return false;
        }
        let endpoint = &active.row.endpoint;
        tracing::error!(endpoint, message, "a rollout could not be evaluated; traffic stays");
        active.row.progress.error = Some(message.to_string());
        self.record_rollout_failure(active, STRATEGY, "rollout_step", message);
        true
    }

    /// Tells operators, once, that the router fails and the stable version
    /// answers in its place.
    fn watch_router(&self, active: &mut Active) {
        let failure = active.router.stats().last_failure;
        let Some(failure) = failure.filter(|it| active.alerted.as_ref() != Some(it)) else {
            return;
        };
        let endpoint = &active.row.endpoint;
        tracing::error!(endpoint, failure, "a router fails; the stable version answers");
        self.record_rollout_failure(active, ROUTER, "rollout_router", &failure);
        tell(active, "alert", "router_failed", active.row.weight, &failure);
        active.alerted = Some(failure);
    }

    fn record_rollout_failure(
        &self,
        active: &Active,
        who: &str,
        action: &'static str,
        message: &str,
    ) {
        let mut audit = audit(&active.row, who, action, message.to_string());
        audit.ok = false;
        if let Err(error) = self.ctx.store.save_rollout(&active.row, Some(&audit)) {
            let endpoint = &active.row.endpoint;
            tracing::error!(endpoint, %error, "the state of a rollout could not be stored");
        }
    }

    fn set_phase(
        &self,
        name: &str,
        who: &str,
        phase: Phase,
        action: &str,
    ) -> Result<RolloutStatus> {
        let shared = self.active_or_error(name)?;
        let mut active = shared.lock();
        let row = StoredRollout { phase, ..active.row.clone() };
        let audit = audit(&row, who, "rollout_phase", action.to_string());
        self.ctx.store.save_rollout(&row, Some(&audit))?;
        if phase == Phase::Running && active.row.phase == Phase::Paused {
            active.seen = active.snapshot();
            active.counted_at = Instant::now();
        }
        active.row = row;
        Ok(RolloutStatus::from(&active.row))
    }

    fn end_by_operator(
        &self,
        name: &str,
        who: &str,
        phase: Phase,
        reason: &str,
    ) -> Result<RolloutStatus> {
        let shared = self.active_or_error(name)?;
        let mut active = shared.lock();
        if !active.row.phase.is_active() {
            return Err(no_rollout(name));
        }
        let seen = active.snapshot();
        let mut row = active.row.clone();
        row.progress.stable.add(&active.seen.stable, &seen.stable);
        row.progress.candidate.add(&active.seen.candidate, &seen.candidate);
        self.end(&mut active, row, phase, reason, who)?;
        Ok(RolloutStatus::from(&active.row))
    }

    fn active(&self, name: &str) -> Option<Arc<Mutex<Active>>> {
        self.rollouts.lock().get(name).cloned()
    }

    fn active_or_error(&self, name: &str) -> Result<Arc<Mutex<Active>>> {
        self.active(name).ok_or_else(|| no_rollout(name))
    }
}

/// Counts what clients report with the versions that it is about, and makes of
/// it what a router learns from.
///
/// # Errors
/// `NotFound` for a version that is none of `variants`, `InvalidInput` for a
/// value that is no number, `Overloaded` for too many metrics.
pub(crate) fn take_reports(
    variants: &[&Variant],
    reports: &[MetricReport],
) -> Result<Vec<RoutingEvent>> {
    for report in reports {
        let is_its = |variant: &&&Variant| variant.revision.version() == report.version;
        let variant = variants.iter().find(is_its).ok_or_else(|| {
            Error::not_found(format!("version {} has no share in the traffic", report.version))
        })?;
        if !report.value.is_finite() {
            return Err(Error::invalid(format!("{} must be a finite number", report.metric)));
        }
        let value = report.value;
        let moments = MetricMoments { count: 1, sum: value, sum_of_squares: value * value };
        if !variant.stats.report(&report.metric, moments) {
            return Err(Error::overloaded(format!(
                "no room for another metric beside \"{}\"",
                report.metric
            )));
        }
    }
    let event = |report: &MetricReport| RoutingEvent {
        version: report.version,
        metric: report.metric.clone(),
        value: report.value,
    };
    Ok(reports.iter().map(event).collect())
}

/// Tells the hook, if there is one, what happened.
fn tell(active: &Active, event: &'static str, action: &'static str, before: u32, reason: &str) {
    let Some(hook) = &active.hook else { return };
    hook.tell(hook_event(&active.row, event, action, (before, active.row.weight), reason));
}

/// The row after an evaluation, before its action.
fn evaluated(active: &Active, seen: &Seen, elapsed_ms: u64, verdict: &Verdict) -> StoredRollout {
    let mut row = active.row.clone();
    row.tick += 1;
    row.elapsed_ms = elapsed_ms;
    row.updated_ms = now_ms();
    row.state.clone_from(&verdict.state);
    row.progress.reason.clone_from(&verdict.reason);
    row.progress.error = None;
    let evidence = verdict.evidence.iter().map(|it| EvidenceInfo {
        test: it.test.clone(),
        odds: it.odds,
        limit: it.limit,
    });
    row.progress.evidence = evidence.collect();
    row.progress.stable.add(&active.seen.stable, &seen.stable);
    row.progress.candidate.add(&active.seen.candidate, &seen.candidate);
    row
}

/// The reason; where the candidate is taken back and fails more often than the
/// stable version, with what its newest failure said.
fn explained(row: &StoredRollout, reason: &str) -> String {
    let (stable, candidate) = (&row.progress.stable, &row.progress.candidate);
    let fails_more = u128::from(candidate.errors) * u128::from(stable.requests)
        > 2 * u128::from(stable.errors) * u128::from(candidate.requests);
    match &candidate.last_error {
        Some(error) if row.phase == Phase::RolledBack && fails_more => {
            format!("{reason}; its newest failure: {error}")
        }
        _ => reason.to_string(),
    }
}

fn hook_event(
    row: &StoredRollout,
    event: &'static str,
    action: &'static str,
    (weight, next): (u32, u32),
    reason: &str,
) -> HookEvent {
    HookEvent {
        event,
        endpoint: row.endpoint.clone(),
        action,
        candidate_version: row.candidate_version,
        weight_percent: percent(weight),
        next_weight_percent: percent(next),
        reason: reason.to_string(),
    }
}

fn audit(row: &StoredRollout, who: &str, action: &'static str, detail: String) -> AuditRecord {
    AuditRecord {
        who: who.to_string(),
        action,
        endpoint: Some(row.endpoint.clone()),
        version: Some(row.candidate_version),
        revision: Some(row.candidate),
        digests: Vec::new(),
        ok: true,
        detail,
    }
}

fn no_rollout(name: &str) -> Error {
    Error::not_found(format!(
        "\"{name}\" has no rollout under way; `mortise deploy {name} MODEL --rollout canary` begins \
         one"
    ))
}
