//! Policies to running code, and weights to lineups.

use super::info::Plan;
use crate::pipeline::Context;
use crate::status::PartInfo;
use crate::toolchain::CompiledPlugin;
use mortise_host::{PolicyRequest, RouteVariant, RouterPlugin, StrategyPlugin, World};
use mortise_serve::{KeySource, Lineup, Routing, Variant};
use mortise_types::{Error, Result};
use serde_json::Value;
use std::sync::Arc;

/// Of the versions in a rollout's lineup.
pub(crate) const STABLE_INDEX: usize = 0;
pub(crate) const CANDIDATE_INDEX: usize = 1;

/// The two versions of a rollout and the candidate's weight.
pub(crate) struct Split<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) stable: &'a Variant,
    pub(crate) candidate: &'a Variant,
    /// In parts of [`Variant::WHOLE`].
    pub(crate) weight: u32,
}

impl Context {
    pub(crate) fn strategy(&self, endpoint: &str, part: &PartInfo) -> Result<StrategyPlugin> {
        let code = self.policy_code(part, World::Strategy)?;
        code.strategy(self.policy_request(endpoint, part))
    }

    /// A router that knows this split.
    pub(crate) fn router(
        &self,
        split: &Split<'_>,
        plan: &Plan,
        state: Option<&[u8]>,
    ) -> Result<Arc<RouterPlugin>> {
        let code = self.policy_code(&plan.router, World::Router)?;
        let variant = |version, weight, stable| RouteVariant { version, weight, stable };
        let variants = vec![
            variant(split.stable.revision.version(), Variant::WHOLE - split.weight, true),
            variant(split.candidate.revision.version(), split.weight, false),
        ];
        let router = code.router(self.policy_request(split.endpoint, &plan.router), variants)?;
        if let Some(state) = state {
            router.install(state.to_vec())?;
        }
        Ok(router)
    }

    fn policy_code(&self, part: &PartInfo, world: World) -> Result<Box<dyn CompiledPlugin>> {
        let component = self.store.map(&part.plugin_digest)?;
        let verified = self.toolchain.verify(&part.plugin_digest, component)?;
        if verified.world() != world {
            let is = verified.world();
            return Err(Error::invalid(format!(
                "plugin \"{}\" is a {is}, and is used as a {world}: strategies are given with \
                 --rollout, routers with --router",
                part.plugin
            )));
        }
        verified.compile()
    }

    fn policy_request(&self, endpoint: &str, part: &PartInfo) -> PolicyRequest {
        PolicyRequest {
            plugin: part.plugin.clone(),
            endpoint: endpoint.to_string(),
            config_json: Value::Object(part.config.clone()).to_string(),
            limits: self.limits_of(&part.plugin).clone(),
        }
    }
}

impl Split<'_> {
    pub(crate) fn lineup(&self, router: Arc<RouterPlugin>, plan: &Plan) -> Result<Lineup> {
        let key = plan.key.as_deref().map(KeySource::parse).transpose()?;
        let with_weight = |variant: &Variant, weight| Variant { weight, ..variant.clone() };
        let variants = vec![
            with_weight(self.stable, Variant::WHOLE - self.weight),
            with_weight(self.candidate, self.weight),
        ];
        Lineup::new(variants, STABLE_INDEX, Some(Routing::new(Box::new(router), key)))
    }
}
