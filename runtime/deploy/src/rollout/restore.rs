//! Rollouts after a restart.

use super::active::{Active, Seen};
use super::alert::RouterAlert;
use super::info::StoredRollout;
use super::lineup::Split;
use crate::deployer::Deployer;
use crate::pipeline::Warmed;
use crate::store::StoredEndpoint;
use mortise_serve::Variant;
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Deployer {
    /// Goes on with a rollout that was under way: same step, same evidence.
    /// One whose candidate cannot be brought back ends, since the stable
    /// version serves.
    pub(crate) fn restore_rollout(
        &self,
        endpoint: &StoredEndpoint,
        stable: Warmed<'_>,
    ) -> Result<()> {
        let Some(row) = self.ctx.store.active_rollout(&endpoint.name)? else {
            self.restore_traffic(stable);
            return Ok(());
        };
        match self.rebuild_rollout(&row, &stable) {
            Ok(active) => {
                let name = endpoint.name.clone();
                self.hold_memory(stable);
                self.publish_split(&active)?;
                self.rollouts.lock().insert(name, Arc::new(Mutex::new(active)));
                Ok(())
            }
            Err(error) => {
                let reason = format!("the rollout could not be restored: {error}");
                tracing::error!(endpoint = row.endpoint, "{reason}");
                self.serve_alone(&row.endpoint, &stable.built.revision);
                self.hold_memory(stable);
                self.store_rollback(row, &reason)
            }
        }
    }

    fn rebuild_rollout(&self, row: &StoredRollout, stable: &Warmed<'_>) -> Result<Active> {
        let name = &row.endpoint;
        let revision = self.ctx.store.revision(name, row.candidate)?;
        let revision = revision.ok_or_else(|| Error::internal("the candidate is not stored"))?;
        let candidate = self.build_stored(name, &revision)?;
        let weight = row.weight;
        let stable =
            Variant::new(Variant::STABLE, stable.built.revision.clone(), Variant::WHOLE - weight);
        let variant = Variant::new(Variant::CANDIDATE, candidate.built.revision.clone(), weight);
        let split = Split { endpoint: name, stable: &stable, candidate: &variant, weight };
        let router = split.router(&self.ctx, &row.plan, row.router_state.as_deref())?;
        let hook = self.hook_line(&row.plan)?;
        let strategy = self
            .ctx
            .strategy(name, &row.plan.strategy)
            .inspect_err(|error| tracing::error!(endpoint = name, %error, "no strategy"))
            .ok();
        let now = Instant::now();
        self.hold_memory(candidate);
        Ok(Active {
            row: row.clone(),
            strategy,
            router,
            stable,
            candidate: variant,
            counts: Arc::default(),
            seen: Seen::default(),
            counted_at: now,
            next_tick: now + Duration::from_millis(row.plan.check_every_ms),
            hook,
            alert: RouterAlert::default(),
        })
    }
}
