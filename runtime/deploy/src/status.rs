//! What the admin API shows. These types are serialised as they are.

use crate::quantize::{QuantizeInfo, QuantizeReport};
use crate::selftest::Report;
use crate::serving::ServingInfo;
use crate::stage::{Stage, StageTiming};
use crate::traffic::LiveVersion;
use mortise_types::{Signature, TensorSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The answer to a deployment that went live.
#[derive(Clone, Debug, Serialize)]
pub struct Deployed {
    pub name: String,
    pub version: u64,
    pub revision: u64,
    /// What the new revision replaced, if anything.
    pub replaced_revision: Option<u64>,
    pub plugin: String,
    pub plugin_digest: String,
    pub stages: Vec<StageTiming>,
    /// `None` when the deployment carried no tests.
    pub tests: Option<Report>,
    /// What quantising did; `None` when it was not asked for.
    pub quantize: Option<QuantizeReport>,
    /// Whether requests may be merged, and if not, why.
    pub merging: Merging,
    /// Bytes reserved for the new revision: weights, arena, instances.
    pub memory_bytes: u64,
    /// The share that a rollout began with; `None` when the version is live.
    pub rollout_weight_percent: Option<f64>,
    /// The share of a version that went beside the stable one.
    pub beside_weight_percent: Option<f64>,
    /// The router, where it divides the traffic by rules of its own, whatever the
    /// shares are.
    pub divided_by: Option<String>,
    /// What is likely not meant about the way in which traffic is divided.
    pub warnings: Vec<String>,
}

/// Whether requests to a revision may be merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum Merging {
    /// Rows together were seen to give what rows alone give.
    On,
    Off(String),
}

/// The answer to a rollback, load, unload or undeploy.
#[derive(Clone, Debug, Serialize)]
pub struct Reversion {
    pub name: String,
    /// The revision and version that are live now; `None` after undeploy or
    /// unload.
    pub revision: Option<u64>,
    pub version: Option<u64>,
    /// What was live before.
    pub replaced_revision: Option<u64>,
}

/// What an endpoint is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum EndpointState {
    /// Answers requests.
    Ready,
    /// Taken out of service by `unload`; `load` brings it back.
    Unloaded,
    /// Cannot answer, and why: a failed restore, a quarantined plugin.
    NotReady(String),
}

/// One endpoint in a listing.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    pub name: String,
    #[serde(flatten)]
    pub state: EndpointState,
    pub revision: RevisionInfo,
    /// Where `rollback` would go; `None` when there is nothing before.
    pub rollback_revision: Option<u64>,
    /// A rollout that is under way: its strategy, candidate and share.
    pub rollout: Option<String>,
    /// A deployment that is under way.
    pub in_progress: Option<InProgress>,
    /// The newest deployment, when it failed: what live serves is older.
    pub last_failure: Option<String>,
    /// Bytes reserved for all versions that answer; 0 when unloaded.
    pub memory_bytes: u64,
    /// Those that answer, the stable one first.
    pub versions: Vec<LiveVersion>,
    /// Of the live revision; `None` when it is not loaded.
    pub signature: Option<SignatureInfo>,
}

/// A deployment under way.
#[derive(Clone, Debug, Serialize)]
pub struct InProgress {
    pub stage: Stage,
    pub who: String,
    pub elapsed_ms: u64,
}

/// A revision: what an endpoint serves as one.
#[derive(Clone, Debug, Serialize)]
pub struct RevisionInfo {
    pub number: u64,
    /// The revision that was live before this one first went live.
    pub previous: Option<u64>,
    pub live: bool,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    pub who: String,
    pub version: VersionInfo,
}

/// A version: plugin, assets and configuration, immutable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionInfo {
    pub number: u64,
    pub created_ms: u64,
    pub who: String,
    pub model: PartInfo,
    pub transforms: Vec<PartInfo>,
    /// `sha256:…` of the self-test file.
    pub tests_digest: Option<String>,
    pub test_data: Vec<AssetInfo>,
    /// How requests wait, merge and are limited.
    #[serde(default)]
    pub serving: ServingInfo,
    /// How its weights were put into fewer bits, if they were.
    #[serde(default)]
    pub quantize: Option<QuantizeInfo>,
}

/// A plugin with what it was given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartInfo {
    pub plugin: String,
    /// `sha256:…` of the component.
    pub plugin_digest: String,
    pub assets: Vec<AssetInfo>,
    pub config: Map<String, Value>,
}

/// One stored file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetInfo {
    pub name: String,
    /// `sha256:…`
    pub digest: String,
    pub size_bytes: u64,
}

/// The named tensors that go in and come out.
#[derive(Clone, Debug, Serialize)]
pub struct SignatureInfo {
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
}

/// One input or output, with the protocol's name for its type.
#[derive(Clone, Debug, Serialize)]
pub struct TensorInfo {
    pub name: String,
    pub datatype: String,
    /// -1 where any size is accepted.
    pub shape: Vec<i64>,
}

impl From<&Signature> for SignatureInfo {
    fn from(signature: &Signature) -> Self {
        let infos = |specs: &[TensorSpec]| specs.iter().map(TensorInfo::from).collect();
        Self { inputs: infos(&signature.inputs), outputs: infos(&signature.outputs) }
    }
}

impl From<&TensorSpec> for TensorInfo {
    fn from(spec: &TensorSpec) -> Self {
        Self {
            name: spec.name.clone(),
            datatype: spec.dtype.to_string(),
            shape: spec.shape_on_wire().to_vec(),
        }
    }
}

/// The store as a whole.
#[derive(Clone, Debug, Serialize)]
pub struct StoreStatus {
    pub store_dir: String,
    pub endpoint_count: u64,
    pub version_count: u64,
    pub blob_count: u64,
    pub blob_bytes: u64,
    /// Reserved by revisions that are live, being built or draining.
    pub memory_reserved_bytes: u64,
    pub max_model_memory_bytes: u64,
}

/// What `gc` removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    pub versions_removed: u64,
    pub blobs_removed: u64,
    pub bytes_freed: u64,
    pub audit_entries_removed: u64,
}

/// One line of the audit log.
#[derive(Clone, Debug, Serialize)]
pub struct AuditEntry {
    pub id: u64,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    pub who: String,
    /// `deploy`, `undeploy`, `rollback`, `load`, `unload`, `gc`, `rollout` and
    /// what happens to one (`rollout_step`, `rollout_promote`, …),
    /// `deploy_beside`, and `traffic_set`, `traffic_retire`, `traffic_promote`
    /// and `traffic_router`.
    pub action: String,
    pub endpoint: Option<String>,
    pub version: Option<u64>,
    pub revision: Option<u64>,
    /// `sha256:…` of every part that was involved.
    pub digests: Vec<String>,
    pub ok: bool,
    /// What happened, or why it failed.
    pub detail: String,
}

/// Which lines of the audit log to read.
#[derive(Clone, Debug)]
pub struct AuditQuery {
    pub endpoint: Option<String>,
    /// Only entries with a smaller id, for paging.
    pub before_id: Option<u64>,
    /// At most this many, newest first; at most 1,000.
    pub limit: u32,
}

impl Default for AuditQuery {
    fn default() -> Self {
        Self { endpoint: None, before_id: None, limit: 100 }
    }
}
