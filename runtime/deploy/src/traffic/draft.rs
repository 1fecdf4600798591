//! Who is to share the traffic, before a router has agreed to it.

use super::change::not_beside;
use super::info::{StoredTraffic, TrafficPlan};
use super::shared::Traffic;
use super::{Side, info};
use crate::memory::Reservation;
use crate::pipeline::Context;
use crate::rollout::{VariantTotals, percent};
use crate::status::PartInfo;
use mortise_serve::{Revision, RoutingCounts, Variant, VariantStatsSnapshot};
use mortise_types::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The versions, their shares, and how a router divides the traffic.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) endpoint: String,
    pub(crate) plan: TrafficPlan,
    pub(crate) router_state: Option<Vec<u8>>,
    /// What the router is asked, whatever the shares.
    pub(crate) counts: Arc<RoutingCounts>,
    pub(crate) stable: Member,
    /// Versions beside it.
    pub(crate) sides: Vec<Member>,
}

/// A version with what it did.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) variant: Variant,
    /// Until `seen`.
    pub(crate) totals: VariantTotals,
    pub(crate) seen: VariantStatsSnapshot,
}

/// A draft of versions that were not in memory, with the memory they take.
pub(crate) struct Rebuilt {
    pub(crate) draft: Draft,
    pub(crate) reservations: Vec<(u64, Reservation)>,
}

impl Member {
    pub(crate) fn new(variant: Variant, totals: VariantTotals) -> Self {
        Self { variant, totals, seen: VariantStatsSnapshot::default() }
    }

    pub(crate) fn version(&self) -> u64 {
        self.variant.revision.version()
    }

    /// Takes in what happened since the last time. Whether anything did.
    pub(crate) fn catch_up(&mut self) -> bool {
        let now = self.variant.stats.snapshot();
        let has_changed = now != self.seen;
        self.totals.add(&self.seen, &now);
        self.seen = now;
        has_changed
    }
}

impl Draft {
    /// The stable version first.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.stable).chain(&self.sides)
    }

    pub(crate) fn variants(&self) -> Vec<Variant> {
        self.members().map(|member| member.variant.clone()).collect()
    }

    /// The same versions with another stable one; what is known of it stays.
    pub(crate) fn with_stable(mut self, revision: &Arc<Revision>) -> Self {
        let is_it = |member: &&Member| Arc::ptr_eq(&member.variant.revision, revision);
        let known = self.members().find(is_it).cloned();
        let new = || Member::new(Variant::new("", revision.clone(), 0), VariantTotals::default());
        let mut stable = known.unwrap_or_else(new);
        stable.variant.name = Variant::STABLE.into();
        self.stable = stable;
        self
    }

    /// # Errors
    /// `InvalidInput` when the share is none, `NotFound` when the version is not
    /// beside the stable one.
    pub(crate) fn set_share(&mut self, version: u64, percent: f64) -> Result<()> {
        let name = &self.endpoint;
        if self.stable.version() == version {
            return Err(Error::invalid(format!(
                "version {version} is the stable one of \"{name}\", which has what the others \
                 leave: give the others their shares"
            )));
        }
        let side = self.sides.iter_mut().find(|side| side.version() == version);
        let side = side.ok_or_else(|| not_beside(name, version))?;
        side.variant.weight = info::weight(percent)?;
        Ok(())
    }

    /// Takes another router or key; one that is not given stays.
    pub(crate) fn steer(&mut self, router: Option<PartInfo>, key: Option<String>) {
        if let Some(router) = router {
            // Another plugin cannot read the state.
            if router.plugin != self.plan.router.plugin {
                self.router_state = None;
            }
            self.plan.router = router;
        }
        self.plan.key = key.or(self.plan.key.take());
    }

    /// Gives the stable version what the others leave.
    ///
    /// # Errors
    /// `InvalidInput` when they leave less than nothing.
    pub(crate) fn balance(&mut self) -> Result<()> {
        let taken: u32 = self.sides.iter().map(|side| side.variant.weight).sum();
        let left = Variant::WHOLE.checked_sub(taken).ok_or_else(|| {
            let name = &self.endpoint;
            Error::invalid(format!(
                "the versions beside the stable one of \"{name}\" would get {} % together: lower \
                 one first, with `mortise traffic set {name} --share VERSION=PERCENT`",
                percent(taken)
            ))
        })?;
        self.stable.variant.weight = left;
        Ok(())
    }

    pub(crate) fn stored(&self) -> StoredTraffic {
        let side = |side: &Member| Side {
            revision: side.variant.revision.number(),
            version: side.version(),
            weight: side.variant.weight,
        };
        let totals = self.members().map(|member| (member.version(), member.totals.clone()));
        StoredTraffic {
            endpoint: self.endpoint.clone(),
            plan: self.plan.clone(),
            router_state: self.router_state.clone(),
            totals: totals.collect::<BTreeMap<_, _>>(),
            sides: self.sides.iter().map(side).collect(),
        }
    }

    /// Has the router agree. `None` when the stable version is alone.
    ///
    /// # Errors
    /// When shares do not fit, or the router refuses these versions.
    pub(crate) fn ready(mut self, ctx: &Context) -> Result<Option<Traffic>> {
        self.balance()?;
        if self.sides.is_empty() {
            return Ok(None);
        }
        let name = &self.endpoint;
        let state = self.router_state.as_deref();
        let router = ctx.router(name, &self.variants(), &self.plan.router, state);
        let router = router.map_err(|error| {
            error.context(format_args!(
                "the router {} refuses these versions (`mortise traffic set {name} --router …` \
                 gives it another configuration)",
                self.plan.router.plugin
            ))
        })?;
        let follows_weights = ctx.follows_weights(name, &self.variants(), &self.plan.router)?;
        Ok(Some(Traffic::new(self, router, follows_weights)))
    }
}
