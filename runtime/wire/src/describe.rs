//! The JSON bodies around inference: metadata, configuration, the repository
//! index, readiness and errors.

use crate::limits::WireLimits;
use crate::reader::{Kind, Reader};
use bytes::Bytes;
use mortise_types::{DType, Error, Result, Signature, TensorSpec};
use serde::Serialize;
use std::collections::BTreeMap;

/// What `GET /v2` says.
#[derive(Clone, Copy, Debug)]
pub struct ServerMetadata<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub extensions: &'a [&'a str],
}

impl ServerMetadata<'_> {
    pub fn body(&self) -> Bytes {
        #[derive(Serialize)]
        struct Body<'a> {
            name: &'a str,
            version: &'a str,
            extensions: &'a [&'a str],
        }
        to_bytes(&Body { name: self.name, version: self.version, extensions: self.extensions })
    }
}

/// What `GET /v2/models/{m}` says.
#[derive(Clone, Copy, Debug)]
pub struct ModelMetadata<'a> {
    pub name: &'a str,
    /// The versions that can be asked for.
    pub versions: &'a [u64],
    /// The plugin that runs the model.
    pub platform: &'a str,
    pub signature: &'a Signature,
}

impl ModelMetadata<'_> {
    pub fn body(&self) -> Bytes {
        #[derive(Serialize)]
        struct Body<'a> {
            name: &'a str,
            versions: Vec<String>,
            platform: &'a str,
            inputs: Vec<Spec<'a>>,
            outputs: Vec<Spec<'a>>,
        }
        #[derive(Serialize)]
        struct Spec<'a> {
            name: &'a str,
            datatype: &'a str,
            shape: &'a [i64],
        }
        fn specs(specs: &[TensorSpec]) -> Vec<Spec<'_>> {
            specs
                .iter()
                .map(|spec| Spec {
                    name: &spec.name,
                    datatype: spec.dtype.wire_name().unwrap_or("INVALID"),
                    shape: spec.shape_on_wire(),
                })
                .collect()
        }
        to_bytes(&Body {
            name: self.name,
            versions: self.versions.iter().map(u64::to_string).collect(),
            platform: self.platform,
            inputs: specs(&self.signature.inputs),
            outputs: specs(&self.signature.outputs),
        })
    }
}

/// What `GET /v2/models/{m}/config` says: the model configuration extension,
/// as far as it applies.
#[derive(Clone, Copy, Debug)]
pub struct ModelConfig<'a> {
    pub name: &'a str,
    pub version: u64,
    /// The plugin that runs the model.
    pub platform: &'a str,
    pub signature: &'a Signature,
    /// Further facts, such as digests.
    pub parameters: &'a [(&'a str, String)],
}

impl ModelConfig<'_> {
    pub fn body(&self) -> Bytes {
        #[derive(Serialize)]
        struct Body<'a> {
            name: &'a str,
            platform: &'a str,
            backend: &'a str,
            version_policy: Policy,
            // Shapes are given in full, batch dimension included.
            max_batch_size: u32,
            input: Vec<Spec<'a>>,
            output: Vec<Spec<'a>>,
            parameters: BTreeMap<&'a str, Text<'a>>,
        }
        #[derive(Serialize)]
        struct Policy {
            specific: Versions,
        }
        #[derive(Serialize)]
        struct Versions {
            versions: [u64; 1],
        }
        #[derive(Serialize)]
        struct Spec<'a> {
            name: &'a str,
            data_type: &'static str,
            dims: &'a [i64],
        }
        #[derive(Serialize)]
        struct Text<'a> {
            string_value: &'a str,
        }
        fn specs(specs: &[TensorSpec]) -> Vec<Spec<'_>> {
            specs
                .iter()
                .map(|spec| Spec {
                    name: &spec.name,
                    data_type: config_type(spec.dtype),
                    dims: spec.shape_on_wire(),
                })
                .collect()
        }
        to_bytes(&Body {
            name: self.name,
            platform: self.platform,
            backend: self.platform,
            version_policy: Policy { specific: Versions { versions: [self.version] } },
            max_batch_size: 0,
            input: specs(&self.signature.inputs),
            output: specs(&self.signature.outputs),
            parameters: self
                .parameters
                .iter()
                .map(|pair| {
                    let (name, string_value) = (pair.0, pair.1.as_str());
                    (name, Text { string_value })
                })
                .collect(),
        })
    }
}

/// The names that the configuration extension has for datatypes.
fn config_type(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "TYPE_BOOL",
        DType::U8 => "TYPE_UINT8",
        DType::U16 => "TYPE_UINT16",
        DType::U32 => "TYPE_UINT32",
        DType::U64 => "TYPE_UINT64",
        DType::I8 => "TYPE_INT8",
        DType::I16 => "TYPE_INT16",
        DType::I32 => "TYPE_INT32",
        DType::I64 => "TYPE_INT64",
        DType::F16 => "TYPE_FP16",
        DType::BF16 => "TYPE_BF16",
        DType::F32 => "TYPE_FP32",
        DType::F64 => "TYPE_FP64",
        DType::String => "TYPE_STRING",
        _ => "TYPE_INVALID",
    }
}

/// One line of the repository index.
#[derive(Clone, Debug, Serialize)]
pub struct IndexEntry {
    pub name: String,
    /// Empty when no version is loaded.
    pub version: String,
    /// `READY` or `UNAVAILABLE`.
    pub state: &'static str,
    /// Why it is not ready, or empty.
    pub reason: String,
}

impl IndexEntry {
    pub fn new(name: &str, version: Option<u64>, not_ready: Option<String>) -> Self {
        Self {
            name: name.to_owned(),
            version: version.map(|version| version.to_string()).unwrap_or_default(),
            state: if not_ready.is_none() { "READY" } else { "UNAVAILABLE" },
            reason: not_ready.unwrap_or_default(),
        }
    }

    pub fn is_ready(&self) -> bool {
        self.state == "READY"
    }
}

pub fn index_body(entries: &[IndexEntry]) -> Bytes {
    to_bytes(&entries)
}

/// Whether the body of an index request asks for ready models only. An empty
/// body asks for all.
///
/// # Errors
/// When the body is not a JSON object, or `ready` is not a boolean.
pub fn wants_ready_only(body: &[u8], limits: &WireLimits) -> Result<bool> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(false);
    }
    let mut ready_only = false;
    let mut reader = Reader::new(body, limits.max_depth);
    reader.object(|reader, key| match key {
        "ready" if reader.kind()? != Kind::Bool => Err(Error::invalid(format!(
            "\"ready\" must be a boolean, got {}",
            reader.kind()?.name()
        ))),
        "ready" => {
            ready_only = reader.bool()?;
            Ok(())
        }
        _ => reader.skip_value(),
    })?;
    reader.finish()?;
    Ok(ready_only)
}

/// `{"name":…,"ready":…}`, with an `error` that says why not.
pub fn model_ready_body(name: &str, not_ready: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        ready: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    }
    to_bytes(&Body { name, ready: not_ready.is_none(), error: not_ready })
}

/// `{"error":…}`
pub fn error_body(message: &str) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
    }
    to_bytes(&Body { error: message })
}

fn to_bytes(value: &impl Serialize) -> Bytes {
    // Serialising plain strings and numbers into memory has no way to fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}
