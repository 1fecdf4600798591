//! Policies to running code, and weights to lineups.

use super::info::Plan;
use crate::pipeline::Context;
use crate::status::PartInfo;
use crate::toolchain::CompiledPlugin;
use mortise_host::{PolicyRequest, RouteVariant, RouterPlugin, StrategyPlugin, World};
use mortise_serve::{KeySource, Lineup, Routing, RoutingCounts, Variant};
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

    pub(crate) fn lineup(
        &self,
        router: Arc<RouterPlugin>,
        plan: &Plan,
        counts: Arc<RoutingCounts>,
    ) -> Result<Lineup> {
        lineup(self.variants(), router, plan.key.as_deref(), counts)
    }

    pub(crate) fn variants(&self) -> Vec<Variant> {
        let with_weight = |variant: &Variant, weight| Variant { weight, ..variant.clone() };
        vec![
            with_weight(self.stable, Variant::WHOLE - self.weight),
            with_weight(self.candidate, self.weight),
        ]
    }
}

/// The first variant is the stable one. `counts` go on over lineups.
///
/// # Errors
/// When `key` cannot be read, or names an input that a version does not have.
pub(crate) fn lineup(
    variants: Vec<Variant>,
    router: Arc<RouterPlugin>,
    key: Option<&str>,
    counts: Arc<RoutingCounts>,
) -> Result<Lineup> {
    let key = key.map(KeySource::parse).transpose()?;
    if let Some(KeySource::Input(input)) = &key {
        variants.iter().try_for_each(|variant| check_key_input(variant, input))?;
    }
    let routing = Routing::new(Box::new(router), key, counts);
    Lineup::new(variants, STABLE_INDEX, Some(routing))
}

fn check_key_input(variant: &Variant, input: &str) -> Result<()> {
    let inputs = &variant.revision.signature().inputs;
    if inputs.iter().any(|spec| spec.name == input) {
        return Ok(());
    }
    let names: Vec<&str> = inputs.iter().map(|spec| spec.name.as_str()).collect();
    Err(Error::invalid(format!(
        "the sticky key is to be in the input \"{input}\", which version {} does not have; it has {}",
        variant.revision.version(),
        names.join(", ")
    )))
}
