use crate::request::PluginRef;
use crate::rollout::{RoutingTotals, VariantTotals};
use crate::status::PartInfo;
use mortise_serve::Variant;
use mortise_types::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What a deployment says that goes beside the stable version.
pub struct BesideRequest {
    /// Of the traffic.
    pub percent: f64,
    /// `None` keeps the router that there is, and is `weighted` without one.
    pub router: Option<RouterChoice>,
    /// Where the sticky key of a request is; `None` keeps what there is.
    pub key: Option<String>,
}

/// A router with its configuration.
pub struct RouterChoice {
    pub plugin: PluginRef,
    pub config: Map<String, Value>,
}

/// What is to be different about the traffic of an endpoint; the rest stays.
#[derive(Default)]
pub struct TrafficChange {
    pub router: Option<RouterChoice>,
    pub key: Option<String>,
    /// Percent of the traffic, by version. The stable version gets what the
    /// others leave.
    pub shares: BTreeMap<u64, f64>,
}

/// The versions of an endpoint and their traffic, as the admin API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct TrafficStatus {
    pub endpoint: String,
    pub router: PartInfo,
    /// Whether shares mean anything to it; some divide the traffic on their own.
    pub router_follows_weights: bool,
    pub key: Option<String>,
    /// The stable version first.
    pub versions: Vec<VersionShare>,
    /// Since the versions came into memory.
    #[serde(flatten)]
    pub apart: RoutingTotals,
    pub router_failure: Option<String>,
    /// Why a version cannot answer now, one line each.
    pub obstacles: Vec<String>,
    /// What is likely not meant.
    pub warnings: Vec<String>,
    /// Why the versions beside the stable one do not serve, when they do not.
    pub error: Option<String>,
}

/// A version with its share, and what it did since it joined.
#[derive(Clone, Debug, Serialize)]
pub struct VersionShare {
    pub version: u64,
    pub revision: u64,
    /// What replies call it: `stable`, `version-3`.
    pub variant: String,
    pub weight_percent: f64,
    /// Users in an even sample of all users, since the last change.
    pub sampled_users: u64,
    pub totals: VariantTotals,
}

/// A version that answers requests, in a listing.
#[derive(Clone, Debug, Serialize)]
pub struct LiveVersion {
    pub version: u64,
    pub revision: u64,
    pub variant: String,
    pub weight_percent: f64,
    pub memory_bytes: u64,
}

/// How traffic is divided.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TrafficPlan {
    pub(crate) router: PartInfo,
    /// Where the sticky key is.
    pub(crate) key: Option<String>,
}

impl TrafficPlan {
    /// Of the files that it needs.
    pub(crate) fn digests(&self) -> Vec<String> {
        let digest = Some(self.router.plugin_digest.clone());
        digest.into_iter().filter(|digest| !digest.is_empty()).collect()
    }
}

/// The traffic of an endpoint as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredTraffic {
    pub(crate) endpoint: String,
    pub(crate) plan: TrafficPlan,
    /// The router's own.
    pub(crate) router_state: Option<Vec<u8>>,
    /// By version, the stable one too.
    pub(crate) totals: BTreeMap<u64, VariantTotals>,
    pub(crate) sides: Vec<Side>,
}

/// A version beside the stable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) revision: u64,
    pub(crate) version: u64,
    /// In parts of 10,000.
    pub(crate) weight: u32,
}

/// # Errors
/// `InvalidInput` for what is no percentage.
pub(super) fn weight(percent: f64) -> Result<u32> {
    match (0.0..=100.0).contains(&percent) {
        true => Ok((percent * f64::from(Variant::WHOLE) / 100.0).round() as u32),
        false => Err(Error::invalid(format!("a share is 0 to 100 percent, not {percent}"))),
    }
}
