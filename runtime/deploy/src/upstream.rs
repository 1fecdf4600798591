//! Versions that another server answers: one that speaks the same protocol over
//! HTTP or gRPC. What it is, and what its model takes and gives, is described once, when
//! it is deployed; the description takes the place of a plugin's component and
//! is stored, kept and rolled back as one. So a server that is away when this
//! one starts keeps nothing from being served.

use crate::toolchain::{CompiledPlugin, VerifiedPlugin};
use mortise_host::{LoadRequest, World};
use mortise_serve::{Stage, Upstream};
use mortise_types::{DType, Error, Result, Signature, TensorSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Stands where a plugin's name would.
pub(crate) const UPSTREAM: &str = "upstream";

/// Asks other servers. Without one, versions that another server
/// answers are refused.
pub trait Upstreams: Send + Sync {
    /// What the model of another server takes and gives.
    ///
    /// # Errors
    /// `NotReady` when the server cannot be reached, `NotFound` when it has no
    /// such model.
    fn describe(&self, target: &UpstreamTarget) -> Result<UpstreamModel>;

    /// Something that asks it. Nothing is sent before it is used.
    ///
    /// # Errors
    /// When the address cannot be used.
    fn connect(&self, target: &UpstreamTarget, model: UpstreamModel) -> Result<Arc<dyn Upstream>>;
}

/// Knows no other server.
pub struct NoUpstreams;

impl Upstreams for NoUpstreams {
    fn describe(&self, _: &UpstreamTarget) -> Result<UpstreamModel> {
        Err(Error::unsupported("this server asks no other servers"))
    }

    fn connect(&self, _: &UpstreamTarget, _: UpstreamModel) -> Result<Arc<dyn Upstream>> {
        Err(Error::unsupported("this server asks no other servers"))
    }
}

/// Which model of which server, and what it may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTarget {
    /// `http://host:port`, or of the schemes `https`, `grpc` and `grpcs`
    pub url: String,
    /// Its name there.
    pub model: String,
    /// The version to ask for; the one that is live there by default.
    pub version: Option<String>,
    /// Time for one answer, connecting included. Default 5,000.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Requests under way at once, over HTTP each on a connection of its own;
    /// further ones wait. Default 64.
    #[serde(default = "default_max_concurrent")]
    pub max_concurrent: usize,
    /// How often it is asked whether the model is ready. Default 1,000.
    #[serde(default = "default_check_every_ms")]
    pub check_every_ms: u64,
}

/// What the other server said about its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamModel {
    pub signature: Signature,
    /// Whether tensors go and come as binary data.
    pub is_binary: bool,
}

impl UpstreamTarget {
    /// The target that a deployment's configuration describes. `url` and, as
    /// a default, the name of the endpoint come from elsewhere.
    ///
    /// # Errors
    /// `InvalidInput` naming the key that is wrong.
    pub(crate) fn parse(url: &str, endpoint: &str, config: &Map<String, Value>) -> Result<Self> {
        let mut fields = config.clone();
        fields.insert("url".to_string(), url.trim_end_matches('/').into());
        fields.entry("model").or_insert_with(|| endpoint.into());
        let target: Self = serde_json::from_value(fields.into())
            .map_err(|error| Error::invalid(format!("the upstream's configuration: {error}")))?;
        let bounds = [
            ("timeout_ms", target.timeout_ms, 600_000),
            ("max_concurrent", target.max_concurrent as u64, 4_096),
            ("check_every_ms", target.check_every_ms, 600_000),
        ];
        for (key, value, max) in bounds {
            if !(1..=max).contains(&value) {
                return Err(Error::invalid(format!("{key} must lie between 1 and {max}")));
            }
        }
        Ok(target)
    }
}

fn default_timeout_ms() -> u64 {
    5_000
}

fn default_max_concurrent() -> usize {
    64
}

fn default_check_every_ms() -> u64 {
    1_000
}

/// The stored form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    target: UpstreamTarget,
    binary: bool,
    inputs: Vec<SpecInfo>,
    outputs: Vec<SpecInfo>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecInfo {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

impl SpecInfo {
    fn of(spec: &TensorSpec) -> Self {
        Self {
            name: spec.name.clone(),
            datatype: spec.dtype.wire_name().unwrap_or_default().to_string(),
            shape: spec.shape.clone(),
        }
    }

    fn resolve(self) -> Result<TensorSpec> {
        let dtype = DType::from_wire_name(&self.datatype).ok_or_else(|| {
            Error::invalid(format!("\"{}\" is not a datatype of the protocol", self.datatype))
        })?;
        Ok(TensorSpec::new(self.name, dtype, &self.shape))
    }
}

/// Asks the server what its model is, and writes that down.
///
/// # Errors
/// As [`Upstreams::describe`].
pub(crate) fn describe(target: UpstreamTarget, upstreams: &dyn Upstreams) -> Result<Vec<u8>> {
    let named = format!("the upstream {}", target.url);
    let model = upstreams.describe(&target).map_err(|error| error.context(named))?;
    let infos = |specs: &[TensorSpec]| specs.iter().map(SpecInfo::of).collect();
    let description = Description {
        target,
        binary: model.is_binary,
        inputs: infos(&model.signature.inputs),
        outputs: infos(&model.signature.outputs),
    };
    serde_json::to_vec_pretty(&description)
        .map_err(|error| Error::internal(format!("the description cannot be written: {error}")))
}

/// A description that was read.
struct Described {
    digest: String,
    target: UpstreamTarget,
    model: UpstreamModel,
    upstreams: Arc<dyn Upstreams>,
}

/// Reads a description.
///
/// # Errors
/// `InvalidInput` when it is damaged.
pub(crate) fn verify(
    digest: &str,
    text: &[u8],
    upstreams: &Arc<dyn Upstreams>,
) -> Result<Box<dyn VerifiedPlugin>> {
    let (target, model) = read(text)?;
    let (digest, upstreams) = (digest.to_string(), upstreams.clone());
    Ok(Box::new(Described { digest, target, model, upstreams }))
}

fn read(text: &[u8]) -> Result<(UpstreamTarget, UpstreamModel)> {
    let Description { target, binary, inputs, outputs } = serde_json::from_slice(text)
        .map_err(|error| Error::invalid(format!("the description of the upstream: {error}")))?;
    let resolve = |specs: Vec<SpecInfo>| -> Result<Vec<TensorSpec>> {
        specs.into_iter().map(SpecInfo::resolve).collect()
    };
    let signature = Signature { inputs: resolve(inputs)?, outputs: resolve(outputs)? };
    Ok((target, UpstreamModel { signature, is_binary: binary }))
}

impl VerifiedPlugin for Described {
    fn world(&self) -> World {
        World::Model
    }

    fn is_compiled(&self) -> bool {
        true
    }

    fn compile(self: Box<Self>) -> Result<Box<dyn CompiledPlugin>> {
        Ok(self)
    }
}

impl CompiledPlugin for Described {
    fn load(&self, _: LoadRequest) -> Result<Stage> {
        let upstream = self.upstreams.connect(&self.target, self.model.clone())?;
        Ok(Stage::upstream(&self.digest, upstream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Fixed(UpstreamModel);

    impl Upstreams for Fixed {
        fn describe(&self, _: &UpstreamTarget) -> Result<UpstreamModel> {
            Ok(self.0.clone())
        }

        fn connect(&self, _: &UpstreamTarget, _: UpstreamModel) -> Result<Arc<dyn Upstream>> {
            Err(Error::not_ready("nothing is there"))
        }
    }

    fn config(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn descriptions_are_read_as_they_were_written() {
        let signature = Signature {
            inputs: vec![TensorSpec::new("x", DType::F32, &[-1, 4])],
            outputs: vec![TensorSpec::new("y", DType::String, &[-1])],
        };
        let model = UpstreamModel { signature, is_binary: true };
        let set = config(json!({"version": "3", "timeout_ms": 250}));
        let target = UpstreamTarget::parse("http://there:8000/", "mine", &set).unwrap();
        assert_eq!((target.url.as_str(), target.model.as_str()), ("http://there:8000", "mine"));
        let text = describe(target.clone(), &Fixed(model.clone())).unwrap();
        assert_eq!(read(&text).unwrap(), (target, model));
        assert!(read(b"{}").is_err());
    }

    #[test]
    fn wrong_configurations_are_refused_by_key() {
        let cases = [
            (json!({"timeout": 5}), "unknown field `timeout`"),
            (json!({"max_concurrent": 0}), "max_concurrent must lie between"),
        ];
        for (set, want) in cases {
            let error = UpstreamTarget::parse("http://a", "m", &config(set)).unwrap_err();
            assert!(error.message().contains(want), "{error}");
        }
    }
}
