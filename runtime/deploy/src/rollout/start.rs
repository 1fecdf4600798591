//! How a rollout begins: with a deployment that does not go live.

use super::active::{Active, Seen};
use super::alert::RouterAlert;
use super::engine::{BEGIN, THE_BEGINNING, hook_event, tell};
use super::hook_line::HookLine;
use super::info::{Phase, Plan, Progress, StoredRollout, percent};
use super::lineup::Split;
use crate::deployer::Deployer;
use crate::pipeline::{Context, Warmed, files};
use crate::status::Deployed;
use crate::store::{AuditRecord, NewRevision, now_ms};
use mortise_host::{RouterPlugin, StrategyPlan, StrategyPlugin};
use mortise_serve::Variant;
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Policies that agreed to a rollout, before anything is committed.
pub(crate) struct Prepared {
    plan: Plan,
    begun: StrategyPlan,
    /// The share until the hook agrees to the strategy's.
    weight: u32,
    strategy: StrategyPlugin,
    router: Arc<RouterPlugin>,
    stable: Variant,
    candidate: Variant,
}

impl Prepared {
    /// Loads and asks the policies.
    ///
    /// # Errors
    /// When there is nothing live to compare with, or a policy refuses its
    /// configuration.
    pub(crate) fn new(ctx: &Context, warmed: &Warmed<'_>, mut plan: Plan) -> Result<Self> {
        let name = warmed.endpoint();
        let live = ctx.registry.endpoint(name).and_then(|endpoint| endpoint.live());
        let live = live.ok_or_else(|| {
            Error::invalid(format!(
                "\"{name}\" serves nothing that a rollout could start from: deploy it once without \
                 --rollout"
            ))
        })?;
        let strategy = ctx.strategy(name, &plan.strategy)?;
        let begun = strategy.begin(None)?;
        plan.check_every_ms = begun.check_every_ms;
        let is_asked = plan.hook.as_ref().is_some_and(|hook| hook.confirm);
        let weight = if is_asked { 0 } else { begun.weight };
        let stable = Variant::new(Variant::STABLE, live, Variant::WHOLE - weight);
        let candidate = Variant::new(Variant::CANDIDATE, warmed.built.revision.clone(), weight);
        let split = Split { endpoint: name, stable: &stable, candidate: &candidate, weight };
        let router = split.router(ctx, &plan, None)?;
        // Refuses a key that cannot be read.
        split.lineup(router.clone(), &plan, Arc::default())?;
        plan.follows_weights = ctx.follows_weights(name, &split.variants(), &plan.router)?;
        plan.check()?;
        Ok(Self { plan, begun, weight, strategy, router, stable, candidate })
    }
}

impl Deployer {
    /// The line to the hook of a rollout, if it has one.
    pub(crate) fn hook_line(&self, plan: &Plan) -> Result<Option<HookLine>> {
        plan.hook.as_ref().map(|hook| HookLine::new(self.hooks.clone(), hook)).transpose()
    }

    /// Stores the new version beside the live one, and gives it its first
    /// share of the traffic.
    pub(crate) fn commit_rollout(
        &self,
        warmed: Warmed<'_>,
        prepared: Prepared,
    ) -> Result<Deployed> {
        let subject = &warmed.subject;
        let mut blobs = files(&subject.version);
        blobs.push(prepared.plan.strategy.plugin_digest.clone());
        blobs.push(prepared.plan.router.plugin_digest.clone());
        let hook = self.hook_line(&prepared.plan)?;
        let mut row = new_row(&warmed, &prepared);
        let audit = AuditRecord {
            who: row.who.clone(),
            action: "rollout",
            endpoint: Some(row.endpoint.clone()),
            version: Some(row.candidate_version),
            revision: Some(row.candidate),
            digests: blobs.clone(),
            ok: true,
            detail: format!(
                "{} begins: version {} gets {} % beside version {}",
                prepared.plan.strategy.plugin,
                row.candidate_version,
                percent(row.weight),
                row.stable_version
            ),
        };
        let new = NewRevision {
            endpoint: &subject.endpoint,
            numbers: subject.numbers,
            version: &subject.version,
            blobs: &blobs,
        };
        if let Some(hook) = hook.as_ref().filter(|_| row.progress.first_weight.is_none()) {
            hook.tell(hook_event(&row, "before_step", BEGIN, (0, row.weight), THE_BEGINNING));
        }
        row.id = self.ctx.store.commit_candidate(&new, &row, &audit)?;
        let rollout_weight_percent = Some(percent(row.weight));
        let (warnings, divided_by) = (row.plan.warnings(), row.plan.divided_by());
        let deployed =
            Deployed { rollout_weight_percent, divided_by, warnings, ..warmed.deployed() };
        let now = Instant::now();
        self.hold_memory(warmed);
        let active = Active {
            next_tick: now + Duration::from_millis(row.plan.check_every_ms),
            row,
            strategy: Some(prepared.strategy),
            router: prepared.router,
            stable: prepared.stable,
            candidate: prepared.candidate,
            counts: Arc::default(),
            seen: Seen::default(),
            counted_at: now,
            hook,
            alert: RouterAlert::default(),
        };
        self.publish_split(&active)?;
        if active.row.progress.first_weight.is_none() {
            tell(&active, "after_step", BEGIN, 0, THE_BEGINNING);
        }
        self.rollouts.lock().insert(deployed.name.clone(), Arc::new(Mutex::new(active)));
        Ok(deployed)
    }
}

fn new_row(warmed: &Warmed<'_>, prepared: &Prepared) -> StoredRollout {
    let subject = &warmed.subject;
    let started_ms = now_ms();
    StoredRollout {
        id: 0,
        endpoint: subject.endpoint.clone(),
        who: subject.version.who.clone(),
        stable: prepared.stable.revision.number(),
        candidate: subject.numbers.revision,
        stable_version: prepared.stable.revision.version(),
        candidate_version: subject.numbers.version,
        phase: Phase::Running,
        weight: prepared.weight,
        tick: 0,
        elapsed_ms: 0,
        started_ms,
        updated_ms: started_ms,
        state: prepared.begun.state.clone(),
        router_state: None,
        plan: prepared.plan.clone(),
        progress: Progress {
            first_weight: (prepared.weight != prepared.begun.weight)
                .then_some(prepared.begun.weight),
            ..Progress::default()
        },
    }
}
