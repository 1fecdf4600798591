use super::hook_line::HookLine;
use super::info::{RolloutStatus, SampledKeys, StoredRollout};
use super::lineup::{CANDIDATE_INDEX, STABLE_INDEX};
use mortise_host::{RouterPlugin, StrategyPlugin};
use mortise_serve::{Lineup, Variant, VariantStatsSnapshot};
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
    /// Counts that were evaluated already.
    pub(crate) seen: Seen,
    /// When elapsed time was last added up.
    pub(crate) counted_at: Instant,
    pub(crate) next_tick: Instant,
    /// To the service that is told about steps.
    pub(crate) hook: Option<HookLine>,
    /// The router's failure that operators were told about.
    pub(crate) alerted: Option<String>,
}

/// Both variants' counts at one time.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) stable: VariantStatsSnapshot,
    pub(crate) candidate: VariantStatsSnapshot,
}

impl Active {
    pub(crate) fn snapshot(&self) -> Seen {
        Seen { stable: self.stable.stats.snapshot(), candidate: self.candidate.stats.snapshot() }
    }

    /// The stored status with what happened since.
    pub(crate) fn status(&self, lineup: Option<&Lineup>) -> RolloutStatus {
        let now = self.snapshot();
        let mut status = RolloutStatus::from(&self.row);
        status.stable.add(&self.seen.stable, &now.stable);
        status.candidate.add(&self.seen.candidate, &now.candidate);
        if let Some(routing) = lineup.and_then(Lineup::routing) {
            status.sampled_keys = SampledKeys {
                stable: routing.sampled_keys(STABLE_INDEX),
                candidate: routing.sampled_keys(CANDIDATE_INDEX),
            };
            status.keyless_requests = routing.keyless();
            status.undecided_requests = routing.undecided();
            status.router_failure = routing.stats().last_failure;
        }
        status
    }
}
