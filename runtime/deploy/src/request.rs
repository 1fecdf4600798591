use crate::quantize::QuantizeMode;
use crate::rollout::RolloutHook;
use crate::serving::ServingInfo;
use crate::store::Upload;
use crate::traffic::BesideRequest;
use serde_json::{Map, Value};

/// Everything one deployment is made of. Uploads come from
/// [`crate::Deployer::upload`].
pub struct DeployRequest {
    /// Name of the endpoint: 1 to 128 of `A-Z a-z 0-9 _ - .`, starting with a
    /// letter or digit.
    pub name: String,
    /// The model plugin.
    pub plugin: PluginRef,
    /// `None` takes the next number. An explicit version must be new.
    pub version: Option<u64>,
    /// Files the model plugin may read, by name (`model.onnx`).
    pub assets: Vec<NamedUpload>,
    /// Handed to the model plugin's `load` as a JSON object.
    pub config: Map<String, Value>,
    /// Run in this order in front of the model.
    pub transforms: Vec<TransformRequest>,
    /// How requests wait, merge and are limited; see [`crate::serving`].
    pub serving: ServingInfo,
    /// Checked before the deployment goes live; see [`crate::selftest`].
    pub tests: Option<TestUpload>,
    /// Puts the model's weights into fewer bits.
    pub quantize: Option<QuantizeRequest>,
    /// Gives the version a share of the traffic instead of all of it.
    pub rollout: Option<RolloutRequest>,
    /// Keeps the version beside the stable one, with a share of the traffic.
    pub beside: Option<BesideRequest>,
    /// Who deploys, for the audit log.
    pub who: String,
}

/// How a new version gets its traffic.
pub struct RolloutRequest {
    /// `canary`, `blue-green`, `manual`, or a component.
    pub strategy: PluginRef,
    pub config: Map<String, Value>,
    /// `weighted`, or another that decides about each request.
    pub router: PluginRef,
    pub router_config: Map<String, Value>,
    /// Where the sticky key of a request is: `header:NAME`, `parameter:NAME` or
    /// `input:NAME`.
    pub key: Option<String>,
    pub hook: Option<RolloutHook>,
}

/// How a model's weights are put into fewer bits.
pub struct QuantizeRequest {
    pub mode: QuantizeMode,
    /// Rows of CSV, or examples in JSON: what `int8-static` finds ranges on, and
    /// what answers are compared on. Made-up inputs take their place otherwise.
    pub samples: Option<NamedUpload>,
    /// The largest difference that an output may have from what it was, in its
    /// own units; any without it.
    pub max_error: Option<f64>,
}

/// One transform in front of the model.
pub struct TransformRequest {
    pub plugin: PluginRef,
    pub assets: Vec<NamedUpload>,
    pub config: Map<String, Value>,
}

/// Which component to run.
pub enum PluginRef {
    /// One of [`crate::DeployConfig::builtins`], by name: `onnx`, `mlp`.
    Builtin(String),
    /// Deployed models in a row; see [`crate::ensemble`].
    Ensemble { file: Upload },
    /// A model of another server; the plugin's configuration says which, see
    /// [`crate::UpstreamTarget`].
    Upstream { url: String },
    /// A component of the deployer's own. `name` is used in messages.
    Uploaded { name: String, component: Upload },
}

/// A file and the name under which plugins or tests find it.
pub struct NamedUpload {
    pub name: String,
    pub upload: Upload,
}

/// A self-test file and the data files that it names.
pub struct TestUpload {
    /// The TOML file.
    pub file: Upload,
    /// Files that it refers to (`holdout.csv`, `examples.json`).
    pub data: Vec<NamedUpload>,
}
