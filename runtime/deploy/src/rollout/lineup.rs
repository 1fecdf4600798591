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

/// Of the versions in a lineup.
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

    /// A router that knows these variants and their weights; the first one is
    /// stable.
    pub(crate) fn router(
        &self,
        endpoint: &str,
        variants: &[Variant],
        part: &PartInfo,
        state: Option<&[u8]>,
    ) -> Result<Arc<RouterPlugin>> {
        let code = self.policy_code(part, World::Router)?;
        let variants = variants.iter().enumerate().map(|(index, variant)| RouteVariant {
            version: variant.revision.version(),
            weight: variant.weight,
            stable: index == STABLE_INDEX,
        });
        let router = code.router(self.policy_request(endpoint, part), variants.collect())?;
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
    pub(crate) fn router(
        &self,
        ctx: &Context,
        plan: &Plan,
        state: Option<&[u8]>,
    ) -> Result<Arc<RouterPlugin>> {
        ctx.router(self.endpoint, &self.variants(), &plan.router, state)
    }

    pub(crate) fn lineup(&self, router: Arc<RouterPlugin>, plan: &Plan) -> Result<Lineup> {
        lineup(self.variants(), router, plan.key.as_deref())
    }

    fn variants(&self) -> Vec<Variant> {
        let with_weight = |variant: &Variant, weight| Variant { weight, ..variant.clone() };
        vec![
            with_weight(self.stable, Variant::WHOLE - self.weight),
            with_weight(self.candidate, self.weight),
        ]
    }
}

/// The first variant is the stable one.
///
/// # Errors
/// When `key` cannot be read.
pub(crate) fn lineup(
    variants: Vec<Variant>,
    router: Arc<RouterPlugin>,
    key: Option<&str>,
) -> Result<Lineup> {
    let key = key.map(KeySource::parse).transpose()?;
    Lineup::new(variants, STABLE_INDEX, Some(Routing::new(Box::new(router), key)))
}
