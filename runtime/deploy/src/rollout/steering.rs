//! Whether a strategy, a router and a sticky key go together.

use super::info::Plan;
use super::lineup::CANDIDATE_INDEX;
use crate::pipeline::Context;
use crate::status::PartInfo;
use mortise_serve::Variant;
use mortise_types::{Error, Result};

/// Strategies of ours that end in a promotion only by moving weights.
const MOVE_WEIGHTS: [&str; 2] = ["canary", "blue-green"];

/// The strategy of ours that moves none.
const MANUAL: &str = "manual";

/// The router of ours that divides users, whom only a key tells apart.
const DIVIDES_USERS: &str = "ab";

/// Users that a router is asked about.
const USERS: u64 = 64;

impl Context {
    /// Whether a router sends all traffic to the version that has all the weight.
    /// Some divide it by rules of their own.
    ///
    /// # Errors
    /// When the router refuses the variants.
    pub(crate) fn follows_weights(
        &self,
        endpoint: &str,
        variants: &[Variant],
        router: &PartInfo,
    ) -> Result<bool> {
        let weigh = |(at, variant): (usize, &Variant)| {
            let weight = if at == CANDIDATE_INDEX { Variant::WHOLE } else { 0 };
            Variant { weight, ..variant.clone() }
        };
        let variants: Vec<Variant> = variants.iter().enumerate().map(weigh).collect();
        let router = self.router(endpoint, &variants, router, None)?;
        for user in 1..=USERS {
            let hash = user.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            match router.route(hash, !hash, 0) {
                // One that fails is another matter.
                None => return Ok(true),
                Some(choice) if choice.variant != CANDIDATE_INDEX => return Ok(false),
                Some(_) => {}
            }
        }
        Ok(true)
    }
}

impl Plan {
    /// # Errors
    /// `InvalidInput` when the strategy could never get anywhere with the router.
    pub(crate) fn check(&self) -> Result<()> {
        let (strategy, router) = (&self.strategy.plugin, &self.router.plugin);
        if self.follows_weights || !MOVE_WEIGHTS.contains(&strategy.as_str()) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{strategy} moves traffic by weights, and the router {router} divides it by rules of \
             its own, whatever the weights are: use --router weighted with {strategy}, or --rollout \
             manual with {router} and promote the version yourself"
        )))
    }

    /// The router, where it divides the traffic by rules of its own.
    pub(crate) fn divided_by(&self) -> Option<String> {
        (!self.follows_weights).then(|| self.router.plugin.clone())
    }

    /// What is likely not meant.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = router_warnings(&self.router, self.key.as_deref());
        let strategy = &self.strategy.plugin;
        if !self.follows_weights && strategy != MANUAL && !MOVE_WEIGHTS.contains(&strategy.as_str())
        {
            let router = &self.router.plugin;
            warnings.push(format!(
                "the router {router} divides traffic by rules of its own: weights that {strategy} \
                 sets change nothing"
            ));
        }
        warnings
    }
}

/// What is likely not meant about a router and where it finds the key.
pub(crate) fn router_warnings(router: &PartInfo, key: Option<&str>) -> Vec<String> {
    let needs_key = router.plugin == DIVIDES_USERS && key.is_none();
    needs_key
        .then(|| {
            format!(
                "without --key the router {} cannot tell users apart: each request is assigned on \
                 its own",
                router.plugin
            )
        })
        .into_iter()
        .collect()
}
