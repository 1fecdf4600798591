use super::draft::{Draft, Member};
use super::info::{StoredTraffic, TrafficStatus, VersionShare};
use crate::rollout::{MetricReport, lineup, percent, take_reports};
use mortise_host::RouterPlugin;
use mortise_serve::{Lineup, Routing, Variant};
use mortise_types::Result;
use std::sync::Arc;
use std::time::Instant;

/// Traffic that several versions share now.
pub(crate) struct Traffic {
    pub(crate) draft: Draft,
    router: Arc<RouterPlugin>,
    /// Counts or the router's state are newer than what is stored.
    pub(crate) is_unsaved: bool,
    pub(crate) next_save: Instant,
    /// The router's failure that operators were told about.
    pub(crate) alerted: Option<String>,
}

impl Traffic {
    pub(crate) fn new(draft: Draft, router: Arc<RouterPlugin>) -> Self {
        Self { draft, router, is_unsaved: true, next_save: Instant::now(), alerted: None }
    }

    /// # Errors
    /// When the place of the sticky key cannot be read.
    pub(crate) fn lineup(&self) -> Result<Lineup> {
        lineup(self.draft.variants(), self.router.clone(), self.draft.plan.key.as_deref())
    }

    /// Takes in what clients report: counts, and what the router learns from.
    ///
    /// # Errors
    /// As [`take_reports`], or what the router says.
    pub(crate) fn report(&mut self, reports: &[MetricReport]) -> Result<()> {
        let variants: Vec<&Variant> = self.draft.members().map(|it| &it.variant).collect();
        let events = take_reports(&variants, reports)?;
        let state = self.router.learn(&events)?;
        self.draft.router_state = Some(state).filter(|state| !state.is_empty());
        self.is_unsaved = true;
        Ok(())
    }

    /// Takes in what happened since the last time.
    pub(crate) fn catch_up(&mut self) {
        let Draft { stable, sides, .. } = &mut self.draft;
        let changed = std::iter::once(stable).chain(sides).map(Member::catch_up);
        // All of them, not until the first that changed.
        let changed = changed.fold(false, |any, one| any | one);
        self.is_unsaved |= changed;
    }

    pub(crate) fn router_failure(&self) -> Option<String> {
        self.router.stats().last_failure
    }

    pub(crate) fn status(&mut self, routing: Option<&Routing>) -> TrafficStatus {
        self.catch_up();
        let sampled = |at| routing.map_or(0, |routing| routing.sampled_keys(at));
        let share = |(at, member): (usize, &Member)| VersionShare {
            version: member.version(),
            revision: member.variant.revision.number(),
            variant: member.variant.name.to_string(),
            weight_percent: percent(member.variant.weight),
            sampled_users: sampled(at),
            totals: member.totals.clone(),
        };
        TrafficStatus {
            endpoint: self.draft.endpoint.clone(),
            router: self.draft.plan.router.clone(),
            key: self.draft.plan.key.clone(),
            versions: self.draft.members().enumerate().map(share).collect(),
            keyless_requests: routing.map_or(0, Routing::keyless),
            undecided_requests: routing.map_or(0, Routing::undecided),
            router_failure: self.router_failure(),
            error: None,
        }
    }
}

impl TrafficStatus {
    /// Of versions that are stored but not in memory.
    pub(super) fn not_loaded(stored: StoredTraffic) -> Self {
        let name = &stored.endpoint;
        let error = format!(
            "the versions beside the stable one are not in memory: `mortise unload {name}` and \
             `mortise load {name}` bring them back, or say why not"
        );
        let share = |side: &super::Side| VersionShare {
            version: side.version,
            revision: side.revision,
            variant: Variant::name_of(side.version),
            weight_percent: percent(side.weight),
            sampled_users: 0,
            totals: stored.totals.get(&side.version).cloned().unwrap_or_default(),
        };
        Self {
            endpoint: name.clone(),
            versions: stored.sides.iter().map(share).collect(),
            router: stored.plan.router,
            key: stored.plan.key,
            keyless_requests: 0,
            undecided_requests: 0,
            router_failure: None,
            error: Some(error),
        }
    }
}
