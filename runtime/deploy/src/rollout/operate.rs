//! What operators and clients do to a rollout.

use super::active::Active;
use super::engine::{PROMOTE, ROLLBACK, SET_WEIGHT, audit, hook_event, take_reports};
use super::info::{MetricReport, Phase, RolloutStatus, StoredRollout, StrategyChange, percent};
use crate::deployer::Deployer;
use crate::request::PluginRef;
use mortise_host::World;
use mortise_serve::Variant;
use mortise_types::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;

/// Values of metrics in one report.
const MAX_REPORTS: usize = 10_000;

/// A step that an operator takes.
#[derive(Clone, Copy)]
struct Step<'a> {
    action: &'static str,
    /// The candidate's share after it.
    weight: u32,
    reason: &'a str,
}

impl Deployer {
    /// The rollout of an endpoint that is under way, or else its last one.
    ///
    /// # Errors
    /// `NotFound` when the endpoint never had one.
    pub fn rollout(&self, name: &str) -> Result<RolloutStatus> {
        if let Some(active) = self.active(name) {
            return Ok(self.rollout_status(&active.lock()));
        }
        let last = self.ctx.store.last_rollout(name)?;
        last.as_ref().map(RolloutStatus::from).ok_or_else(|| self.no_rollout(name))
    }

    /// Every rollout that is under way.
    pub fn rollouts_under_way(&self) -> Vec<RolloutStatus> {
        let actives: Vec<Arc<Mutex<Active>>> = self.rollouts.lock().values().cloned().collect();
        actives.iter().map(|active| self.rollout_status(&active.lock())).collect()
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

    /// Makes the candidate the live version now. A hook that confirms steps is
    /// asked, unless it is `force`d.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way, `Conflict` when the hook does not
    /// agree.
    pub fn promote_rollout(&self, name: &str, force: bool, who: &str) -> Result<RolloutStatus> {
        let reason = "promoted by an operator";
        let step = Step { action: PROMOTE, weight: Variant::WHOLE, reason };
        self.ask_hook(name, step, force)?;
        self.end_by_operator(name, who, Phase::Promoted, reason)
    }

    /// Gives all traffic back to the stable version now.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way.
    pub fn abort_rollout(&self, name: &str, who: &str) -> Result<RolloutStatus> {
        let reason = "aborted by an operator";
        // Nobody is asked before harm is stopped.
        self.ask_hook(name, Step { action: ROLLBACK, weight: 0, reason }, true)?;
        self.end_by_operator(name, who, Phase::Aborted, reason)
    }

    /// Sets the candidate's share, in parts of 10,000. A hook that confirms steps
    /// is asked, unless it is `force`d or the share falls.
    ///
    /// # Errors
    /// `NotFound` without a rollout under way, `InvalidInput` for more than all
    /// traffic, `Conflict` when the hook does not agree.
    pub fn set_rollout_weight(
        &self,
        name: &str,
        weight: u32,
        force: bool,
        who: &str,
    ) -> Result<RolloutStatus> {
        if weight > Variant::WHOLE {
            return Err(Error::invalid("a share is at most 100 percent"));
        }
        let shared = self.active_or_error(name)?;
        let before = shared.lock().row.heeded_weight()?;
        let reason = &format!("an operator sets {} %", percent(weight));
        let step = Step { action: SET_WEIGHT, weight, reason };
        self.ask_hook(name, step, force || weight < before)?;
        let mut active = self.lock_active(&shared, name)?;
        let row = StoredRollout { weight, ..active.row.clone() };
        self.move_weight(&mut active, row, reason, who)?;
        Ok(self.rollout_status(&active))
    }

    /// Puts another strategy, or another version of the same, in charge of a
    /// rollout under way. It takes over the state, where it can read it.
    ///
    /// # Errors
    /// When the component is no strategy or does not go with the router, or when
    /// it refuses its settings or the state of its own kind.
    pub fn swap_strategy(
        &self,
        name: &str,
        change: StrategyChange,
        who: &str,
    ) -> Result<RolloutStatus> {
        let shared = self.active_or_error(name)?;
        let mut active = self.lock_active(&shared, name)?;
        let before = active.row.plan.strategy.clone();
        let is_same = plugin_name(&change.strategy) == before.plugin;
        let mut config = match is_same && !change.defaults {
            true => before.config,
            false => serde_json::Map::new(),
        };
        config.extend(change.config);
        let (part, _pin) = self.ctx.receive_policy(World::Strategy, change.strategy, config)?;
        let mut row = active.row.clone();
        row.plan.strategy = part;
        row.plan.check()?;
        let part = &row.plan.strategy;
        let plugin = self.ctx.strategy(name, part)?;
        let mut note = String::new();
        let plan = match plugin.begin(Some(&active.row.state)) {
            Err(error) if !is_same && error.kind() == ErrorKind::InvalidInput => {
                note = format!("; what {} knew means nothing to it", before.plugin);
                plugin.begin(Some(&[]))?
            }
            outcome => outcome?,
        };
        let detail = format!("{} takes over from {}{note}", part.plugin, before.plugin);
        let mut audit = audit(&row, who, "rollout_swap", detail.clone());
        audit.digests = vec![part.plugin_digest.clone()];
        row.state = plan.state;
        row.plan.check_every_ms = plan.check_every_ms;
        row.progress.error = None;
        row.progress.reason = detail;
        row.progress.evidence = Vec::new();
        self.ctx.store.save_rollout(&row, Some(&audit))?;
        active.row = row;
        active.strategy = Some(plugin);
        active.next_tick = Instant::now();
        Ok(self.rollout_status(&active))
    }

    /// Takes in what clients report about answers: the strategy's evidence, and
    /// what the router learns from. What comes after the end of a rollout is kept
    /// with it.
    ///
    /// # Errors
    /// `NotFound` when the endpoint never had a rollout, or for a version that had
    /// no part in it.
    pub fn report_metrics(&self, name: &str, reports: &[MetricReport]) -> Result<usize> {
        if reports.len() > MAX_REPORTS {
            return Err(Error::too_large(format!(
                "at most {MAX_REPORTS} values are reported at once"
            )));
        }
        if let Some(traffic) = self.traffic_of(name) {
            traffic.lock().report(reports)?;
        } else if let Some(shared) = self.active(name) {
            let mut active = shared.lock();
            let events = take_reports(&[&active.stable, &active.candidate], reports)?;
            let state = active.router.learn(&events)?;
            active.row.router_state = Some(state).filter(|state| !state.is_empty());
        } else {
            self.report_late(name, reports)?;
        }
        Ok(reports.len())
    }

    fn report_late(&self, name: &str, reports: &[MetricReport]) -> Result<()> {
        let _turn = self.late_reports.lock();
        let last = self.ctx.store.last_rollout(name)?;
        let mut row = last.ok_or_else(|| self.no_rollout(name))?;
        row.report(reports)?;
        self.ctx.store.save_rollout(&row, None)
    }

    /// Tells the hook of a step that an operator takes. One that confirms steps
    /// must agree, unless it is overruled. Nothing is locked meanwhile.
    fn ask_hook(&self, name: &str, step: Step<'_>, is_overruled: bool) -> Result<()> {
        let shared = self.active_or_error(name)?;
        let active = shared.lock();
        let Some(hook) = active.row.plan.hook.clone() else { return Ok(()) };
        let weights = (active.row.weight, step.weight);
        let event = hook_event(&active.row, "before_step", step.action, weights, step.reason);
        if is_overruled || !hook.confirm {
            if let Some(line) = &active.hook {
                line.tell(event);
            }
            return Ok(());
        }
        drop(active);
        self.hooks.call(&hook.url, &event).map_err(|error| {
            Error::conflict(format!(
                "the hook {} does not agree to {}: {error}; --force does it all the same",
                hook.url, step.action
            ))
        })
    }

    fn set_phase(
        &self,
        name: &str,
        who: &str,
        phase: Phase,
        action: &str,
    ) -> Result<RolloutStatus> {
        let shared = self.active_or_error(name)?;
        let mut active = self.lock_active(&shared, name)?;
        if active.row.phase == phase {
            return Ok(self.rollout_status(&active));
        }
        if phase == Phase::Running {
            active.leave_out();
        }
        let row = StoredRollout { phase, ..active.row.clone() };
        let audit = audit(&row, who, "rollout_phase", action.to_string());
        self.ctx.store.save_rollout(&row, Some(&audit))?;
        active.row = row;
        Ok(self.rollout_status(&active))
    }

    fn end_by_operator(
        &self,
        name: &str,
        who: &str,
        phase: Phase,
        reason: &str,
    ) -> Result<RolloutStatus> {
        let shared = self.active_or_error(name)?;
        let mut active = self.lock_active(&shared, name)?;
        let progress = active.progress(&active.snapshot());
        let row = StoredRollout { progress, ..active.row.clone() };
        self.end(&mut active, row, phase, reason, who)?;
        Ok(RolloutStatus::from(&active.row))
    }

    fn rollout_status(&self, active: &Active) -> RolloutStatus {
        let name = &active.row.endpoint;
        let lineup = self.ctx.registry.endpoint(name).and_then(|endpoint| endpoint.lineup());
        RolloutStatus { obstacles: self.obstacles(name), ..active.status(lineup.as_deref()) }
    }

    fn active(&self, name: &str) -> Option<Arc<Mutex<Active>>> {
        self.rollouts.lock().get(name).cloned()
    }

    fn active_or_error(&self, name: &str) -> Result<Arc<Mutex<Active>>> {
        self.active(name).ok_or_else(|| self.no_rollout(name))
    }

    /// It may have ended while somebody waited for it.
    fn lock_active<'a>(
        &self,
        shared: &'a Mutex<Active>,
        name: &str,
    ) -> Result<parking_lot::MutexGuard<'a, Active>> {
        let active = shared.lock();
        match active.row.phase.is_active() {
            true => Ok(active),
            false => Err(self.no_rollout(name)),
        }
    }

    fn no_rollout(&self, name: &str) -> Error {
        match self.ctx.store.endpoint(name) {
            Err(error) => error,
            Ok(_) => Error::not_found(format!(
                "\"{name}\" has no rollout under way; `mortise deploy {name} MODEL --rollout canary` \
                 begins one"
            )),
        }
    }
}

/// What a plugin is called in plans.
fn plugin_name(plugin: &PluginRef) -> &str {
    match plugin {
        PluginRef::Builtin(name) | PluginRef::Uploaded { name, .. } => name,
        PluginRef::Upstream { .. } | PluginRef::Ensemble { .. } => "",
    }
}
