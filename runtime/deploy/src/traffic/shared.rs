use super::draft::{Draft, Member};
use super::info::{StoredTraffic, TrafficStatus, VersionShare};
use crate::rollout::{
    MetricReport, RouterAlert, RoutingTotals, lineup, percent, router_warnings, take_reports,
};
use mortise_host::RouterPlugin;
use mortise_serve::{Lineup, Routing, RoutingSnapshot, Variant};
use mortise_types::Result;
use std::sync::Arc;
use std::time::Instant;

/// Traffic that several versions share now.
pub(crate) struct Traffic {
    pub(crate) draft: Draft,
    router: Arc<RouterPlugin>,
    /// Whether the router heeds shares; some divide the traffic on their own.
    follows_weights: bool,
    /// Counts or the router's state are newer than what is stored.
    pub(crate) is_unsaved: bool,
    pub(crate) next_save: Instant,
    pub(crate) alert: RouterAlert,
}

impl Traffic {
    pub(crate) fn new(draft: Draft, router: Arc<RouterPlugin>, follows_weights: bool) -> Self {
        let (next_save, alert) = (Instant::now(), RouterAlert::default());
        Self { draft, router, follows_weights, is_unsaved: true, next_save, alert }
    }

    /// # Errors
    /// When the place of the sticky key cannot be read.
    pub(crate) fn lineup(&self) -> Result<Lineup> {
        let (key, counts) = (self.draft.plan.key.as_deref(), self.draft.counts.clone());
        lineup(self.draft.variants(), self.router.clone(), key, counts)
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
        let mut apart = RoutingTotals::default();
        apart.add(&RoutingSnapshot::default(), &self.draft.counts.snapshot());
        let plan = &self.draft.plan;
        TrafficStatus {
            endpoint: self.draft.endpoint.clone(),
            router: plan.router.clone(),
            router_follows_weights: self.follows_weights,
            key: plan.key.clone(),
            versions: self.draft.members().enumerate().map(share).collect(),
            apart,
            router_failure: self.router_failure(),
            obstacles: Vec::new(),
            warnings: router_warnings(&plan.router, plan.key.as_deref()),
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
            router_follows_weights: true,
            apart: RoutingTotals::default(),
            router_failure: None,
            obstacles: Vec::new(),
            warnings: Vec::new(),
            error: Some(error),
        }
    }
}
