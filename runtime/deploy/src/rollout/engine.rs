//! The clock of rollouts, and their steps.

use super::active::{Active, Seen};
use super::hook_line::HookLine;
use super::info::{
    EvidenceInfo, HookEvent, MetricReport, Phase, StoredRollout, no_share, percent,
    too_many_metrics, window,
};
use crate::background::lower_priority;
use crate::deployer::Deployer;
use crate::store::{AuditRecord, RolloutEnd, now_ms};
use mortise_host::{Action, Observation, RoutingEvent, Verdict};
use mortise_serve::{Lineup, MetricMoments, Variant};
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often the clock looks for rollouts that are due.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Who the audit log names for what a strategy decides.
const STRATEGY: &str = "rollout strategy";

/// And for what a router or a hook does.
const ROUTER: &str = "rollout router";
const HOOK: &str = "rollout hook";

/// What hooks call steps.
pub(super) const BEGIN: &str = "begin";
pub(super) const SET_WEIGHT: &str = "set_weight";
pub(super) const PROMOTE: &str = "promote";
pub(super) const ROLLBACK: &str = "rollback";

/// Why a candidate gets its first share.
pub(super) const THE_BEGINNING: &str = "the rollout begins";

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
            self.watch_hook(&mut active);
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
        if let Some(weight) = active.row.progress.first_weight {
            return self.begin_traffic(active, weight);
        }
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
        if let Some((action, next)) = step_of(&row, verdict.action)
            && !self.agreed(active, &row, (action, next), &verdict.reason)
        {
            return Ok(());
        }
        self.act(active, row, &verdict)?;
        active.seen = seen;
        active.counted_at = now;
        Ok(())
    }

    /// Gives the candidate its first share, once the hook agrees to it.
    fn begin_traffic(&self, active: &mut Active, weight: u32) -> Result<()> {
        let mut row = active.row.clone();
        if !self.agreed(active, &row, (BEGIN, weight), THE_BEGINNING) {
            return Ok(());
        }
        row.weight = weight;
        self.move_weight(active, row, THE_BEGINNING, STRATEGY)
    }

    /// Whether the hook, if it is to be asked, agrees to a step. The question and
    /// the answer are ticks apart; until then nothing changes, and the strategy
    /// decides anew each time. One that is only told is told.
    fn agreed(
        &self,
        active: &mut Active,
        row: &StoredRollout,
        (action, next): (&'static str, u32),
        reason: &str,
    ) -> bool {
        let Some(hook) = &mut active.hook else { return true };
        let event = hook_event(row, "before_step", action, (row.weight, next), reason);
        if action == ROLLBACK {
            // Nobody is asked before harm is stopped.
            hook.tell(event);
            return true;
        }
        match hook.agrees(event, Instant::now()) {
            Ok(true) => true,
            Ok(false) => {
                active.row.progress.reason = format!("the hook is asked about {action}: {reason}");
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
    pub(super) fn move_weight(
        &self,
        active: &mut Active,
        mut row: StoredRollout,
        reason: &str,
        who: &str,
    ) -> Result<()> {
        let is_first = row.progress.first_weight.take().is_some();
        row.progress.error = None;
        let split = active.split(row.weight);
        let router = split.router(&self.ctx, &row.plan, row.router_state.as_deref())?;
        let lineup = split.lineup(router.clone(), &row.plan, active.counts.clone())?;
        let from = percent(active.row.weight);
        let detail = format!("{from} % to {} %: {reason}", percent(row.weight));
        let audit = audit(&row, who, "rollout_step", detail);
        self.ctx.store.save_rollout(&row, Some(&audit))?;
        self.ctx.registry.publish_lineup(&row.endpoint, lineup);
        let before = std::mem::replace(&mut active.row, row);
        active.router = router;
        if is_first {
            // The strategy's time begins with the traffic.
            active.leave_out();
        }
        let action = if is_first { BEGIN } else { SET_WEIGHT };
        tell(active, "after_step", action, before.weight, reason);
        Ok(())
    }

    pub(crate) fn publish_split(&self, active: &Active) -> Result<()> {
        let split = active.split(active.row.weight);
        let (router, counts) = (active.router.clone(), active.counts.clone());
        let lineup = split.lineup(router, &active.row.plan, counts)?;
        self.ctx.registry.publish_lineup(&active.row.endpoint, lineup);
        Ok(())
    }

    /// One version takes all traffic, and the rollout is over.
    pub(super) fn end(
        &self,
        active: &mut Active,
        row: StoredRollout,
        phase: Phase,
        reason: &str,
        who: &str,
    ) -> Result<()> {
        let (name, before) = (row.endpoint.clone(), row.weight);
        let ending = Ending::of(phase);
        let serving = self.ctx.registry.endpoint(&name).and_then(|endpoint| endpoint.lineup());
        let weight = if ending.winner == RolloutEnd::Promote { Variant::WHOLE } else { 0 };
        let mut row = StoredRollout { phase, weight, ..row };
        row.progress.reason = explained(&row, reason);
        row.progress.error = None;
        row.progress.first_weight = None;
        row.progress.sampled = active.sampled(serving.as_deref());
        row.progress.hook_failure = active.hook.as_ref().and_then(HookLine::failure);
        let reason = &row.progress.reason.clone();
        let audit = audit(&row, who, ending.audit, format!("at {} %: {reason}", percent(before)));
        self.ctx.store.end_rollout(&row, ending.winner, &audit)?;
        let winner = match ending.winner {
            RolloutEnd::Promote => &active.candidate,
            RolloutEnd::Discard => &active.stable,
        };
        let lineup = Lineup::single(winner.revision.clone());
        let drains = self.ctx.registry.publish_lineup(&name, lineup);
        self.let_go(&name, drains);
        active.row = row;
        tell(active, "after_step", ending.step, before, reason);
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

    /// Tells operators that the router fails and the stable version answers in its
    /// place.
    fn watch_router(&self, active: &mut Active) {
        let failure = active.router.stats().last_failure;
        let Some(failure) = active.alert.news(failure, Instant::now()) else { return };
        let endpoint = &active.row.endpoint;
        tracing::error!(endpoint, failure, "a router fails; the stable version answers");
        self.record_rollout_failure(active, ROUTER, "rollout_router", &failure);
        tell(active, "alert", "router_failed", active.row.weight, &failure);
    }

    /// Stores, once, that the hook could not be told of a step.
    fn watch_hook(&self, active: &mut Active) {
        let Some(hook) = &active.hook else { return };
        let failure = hook.failure();
        let is_news = failure.is_some() && active.row.progress.hook_failure.is_none();
        active.row.progress.hook_failure = failure;
        if let Some(failure) = active.row.progress.hook_failure.clone().filter(|_| is_news) {
            self.record_rollout_failure(active, HOOK, "rollout_hook", &failure);
        }
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
        let variant = variants.iter().find(is_its).ok_or_else(|| no_share(report.version))?;
        report.check()?;
        let value = report.value;
        let moments = MetricMoments { count: 1, sum: value, sum_of_squares: value * value };
        if !variant.stats.report(&report.metric, moments) {
            return Err(too_many_metrics(&report.metric));
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
pub(super) fn tell(
    active: &Active,
    event: &'static str,
    action: &'static str,
    before: u32,
    reason: &str,
) {
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
    row.progress = active.progress(seen);
    row.progress.reason.clone_from(&verdict.reason);
    row.progress.error = None;
    let evidence = verdict.evidence.iter().map(|it| EvidenceInfo {
        test: it.test.clone(),
        odds: it.odds,
        limit: it.limit,
    });
    row.progress.evidence = evidence.collect();
    row
}

/// What a decision changes about the candidate's share, and what hooks call it.
fn step_of(row: &StoredRollout, action: Action) -> Option<(&'static str, u32)> {
    match action {
        Action::SetWeight(weight) if weight != row.weight => Some((SET_WEIGHT, weight)),
        Action::Promote => Some((PROMOTE, Variant::WHOLE)),
        Action::Rollback => Some((ROLLBACK, 0)),
        Action::Hold | Action::SetWeight(_) => None,
    }
}

/// What an end is called, and who serves then.
struct Ending {
    winner: RolloutEnd,
    step: &'static str,
    audit: &'static str,
}

impl Ending {
    fn of(phase: Phase) -> Self {
        let (winner, step, audit) = match phase {
            Phase::Promoted => (RolloutEnd::Promote, PROMOTE, "rollout_promote"),
            Phase::Aborted => (RolloutEnd::Discard, ROLLBACK, "rollout_abort"),
            _ => (RolloutEnd::Discard, ROLLBACK, "rollout_rollback"),
        };
        Self { winner, step, audit }
    }
}

/// The reason; where the candidate is taken back and fails more often than the
/// stable version, with what its newest failure said.
fn explained(row: &StoredRollout, reason: &str) -> String {
    let (stable, candidate) = (&row.progress.stable, &row.progress.candidate);
    let fails_more = u128::from(candidate.errors) * u128::from(stable.requests)
        > 2 * u128::from(stable.errors) * u128::from(candidate.requests)
        || (candidate.requests == 0 && candidate.named_errors > 0);
    match &candidate.last_error {
        Some(error) if row.phase == Phase::RolledBack && fails_more => {
            format!("{reason}; its newest failure: {error}")
        }
        _ => reason.to_string(),
    }
}

pub(super) fn hook_event(
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

pub(super) fn audit(
    row: &StoredRollout,
    who: &str,
    action: &'static str,
    detail: String,
) -> AuditRecord {
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
