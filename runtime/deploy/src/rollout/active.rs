use super::alert::RouterAlert;
use super::hook_line::HookLine;
use super::info::{Progress, RolloutStatus, SampledKeys, StoredRollout, percent};
use super::lineup::{CANDIDATE_INDEX, STABLE_INDEX, Split};
use mortise_host::{RouterPlugin, StrategyPlugin};
use mortise_serve::{Lineup, RoutingCounts, RoutingSnapshot, Variant, VariantStatsSnapshot};
use std::sync::Arc;
use std::time::Instant;

/// A rollout that is under way, with what it needs in memory.
pub(crate) struct Active {
    pub(crate) row: StoredRollout,
    /// `None` when it could not be loaded: traffic stays where it is.
    pub(crate) strategy: Option<StrategyPlugin>,
    pub(crate) router: Arc<RouterPlugin>,
    pub(crate) stable: Variant,
    pub(crate) candidate: Variant,
    /// What the router is asked, whatever the weights.
    pub(crate) counts: Arc<RoutingCounts>,
    /// Counts that were evaluated already.
    pub(crate) seen: Seen,
    /// When elapsed time was last added up.
    pub(crate) counted_at: Instant,
    pub(crate) next_tick: Instant,
    /// To the service that is told about steps.
    pub(crate) hook: Option<HookLine>,
    pub(crate) alert: RouterAlert,
}

/// All counts at one time.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) stable: VariantStatsSnapshot,
    pub(crate) candidate: VariantStatsSnapshot,
    pub(crate) apart: RoutingSnapshot,
}

impl Active {
    pub(crate) fn snapshot(&self) -> Seen {
        Seen {
            stable: self.stable.stats.snapshot(),
            candidate: self.candidate.stats.snapshot(),
            apart: self.counts.snapshot(),
        }
    }

    /// The two versions with this share of the candidate.
    pub(crate) fn split(&self, weight: u32) -> Split<'_> {
        Split {
            endpoint: &self.row.endpoint,
            stable: &self.stable,
            candidate: &self.candidate,
            weight,
        }
    }

    /// The stored progress with what happened until `now`.
    pub(crate) fn progress(&self, now: &Seen) -> Progress {
        let mut progress = self.row.progress.clone();
        progress.stable.add(&self.seen.stable, &now.stable);
        progress.candidate.add(&self.seen.candidate, &now.candidate);
        progress.apart.add(&self.seen.apart, &now.apart);
        progress
    }

    /// Counts what happened since the last evaluation as no evidence: the strategy
    /// is not shown it.
    pub(crate) fn leave_out(&mut self) {
        let seen = self.snapshot();
        self.row.progress = self.progress(&seen);
        self.seen = seen;
        self.counted_at = Instant::now();
    }

    /// Users of both versions, as the lineup that serves has sampled them.
    pub(crate) fn sampled(&self, lineup: Option<&Lineup>) -> SampledKeys {
        let routing = lineup.and_then(Lineup::routing);
        let users = |index| routing.map_or(0, |routing| routing.sampled_keys(index));
        SampledKeys {
            stable: users(STABLE_INDEX),
            candidate: users(CANDIDATE_INDEX),
            weight_percent: percent(self.row.weight),
        }
    }

    /// The stored status with what happened since.
    pub(crate) fn status(&self, lineup: Option<&Lineup>) -> RolloutStatus {
        let row = StoredRollout { progress: self.progress(&self.snapshot()), ..self.row.clone() };
        let failure = self.hook.as_ref().and_then(HookLine::failure);
        RolloutStatus {
            sampled_keys: self.sampled(lineup),
            router_failure: self.router.stats().last_failure,
            hook_failure: failure.or(row.progress.hook_failure.clone()),
            warnings: row.plan.warnings(),
            ..RolloutStatus::from(&row)
        }
    }
}
