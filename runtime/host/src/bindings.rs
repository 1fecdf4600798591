//! The contract `wit/v1` in Rust, and the conversions between its words and
//! the host's. The imports of both worlds are the same, so one set of bindings
//! serves both.

// Generated: its visibility is the generator's.
#[allow(unreachable_pub, clippy::all)]
mod generated {
    wasmtime::component::bindgen!({
        path: "../../wit/v1",
        world: "model",
        imports: { default: trappable },
        with: {
            "mortise:plugin/tensor.tensor": mortise_types::Tensor,
            "mortise:plugin/graph.builder": crate::recorder::Recorder,
            "mortise:plugin/graph.graph": crate::state::GraphHandle,
        },
    });
}

/// Policies import a part of what models import, and the same linker serves
/// them; only their exports need bindings of their own.
#[allow(unreachable_pub, clippy::all)]
pub(crate) mod router_world {
    wasmtime::component::bindgen!({
        path: "../../wit/v1",
        world: "router",
        imports: { default: trappable },
        with: {
            "mortise:plugin/types": crate::bindings::generated::mortise::plugin::types,
            "mortise:plugin/log": crate::bindings::generated::mortise::plugin::log,
        },
    });
}

#[allow(unreachable_pub, clippy::all)]
pub(crate) mod strategy_world {
    wasmtime::component::bindgen!({
        path: "../../wit/v1",
        world: "strategy",
        imports: { default: trappable },
        with: {
            "mortise:plugin/types": crate::bindings::generated::mortise::plugin::types,
            "mortise:plugin/log": crate::bindings::generated::mortise::plugin::log,
        },
    });
}

pub(crate) use generated::Model as Contract;
pub(crate) use generated::exports::mortise::plugin::model_api::Plan;
pub(crate) use generated::mortise::plugin::{assets, graph, log, tensor, types};

use crate::World;
use mortise_types::{DType, Error, ErrorKind, Signature, TensorSpec};
use types::Dtype;

/// The version of the contract that this host serves.
pub(crate) const VERSION: &str = "0.1.0";

/// Name of the interface that `world` exports.
pub(crate) fn export_of(world: World) -> &'static str {
    match world {
        World::Model => "mortise:plugin/model-api@0.1.0",
        World::Transform => "mortise:plugin/transform-api@0.1.0",
        World::Router => "mortise:plugin/router-api@0.1.0",
        World::Strategy => "mortise:plugin/strategy-api@0.1.0",
    }
}

/// Name of the function that answers a batch, or decides about a request.
pub(crate) fn call_of(world: World) -> &'static str {
    match world {
        World::Model => "predict",
        World::Transform => "apply",
        World::Router => "route",
        World::Strategy => "evaluate",
    }
}

/// Rows stand at the index of both columns' discriminants.
const DTYPES: [(Dtype, DType); 24] = [
    (Dtype::Bool, DType::Bool),
    (Dtype::Uint8, DType::U8),
    (Dtype::Uint16, DType::U16),
    (Dtype::Uint32, DType::U32),
    (Dtype::Uint64, DType::U64),
    (Dtype::Int8, DType::I8),
    (Dtype::Int16, DType::I16),
    (Dtype::Int32, DType::I32),
    (Dtype::Int64, DType::I64),
    (Dtype::Fp16, DType::F16),
    (Dtype::Bf16, DType::BF16),
    (Dtype::Fp32, DType::F32),
    (Dtype::Fp64, DType::F64),
    (Dtype::Bytes, DType::String),
    (Dtype::Float8e4m3fn, DType::F8E4M3FN),
    (Dtype::Float8e4m3fnuz, DType::F8E4M3FNUZ),
    (Dtype::Float8e5m2, DType::F8E5M2),
    (Dtype::Float8e5m2fnuz, DType::F8E5M2FNUZ),
    (Dtype::Float8e8m0, DType::F8E8M0),
    (Dtype::Uint4, DType::U4),
    (Dtype::Int4, DType::I4),
    (Dtype::Uint2, DType::U2),
    (Dtype::Int2, DType::I2),
    (Dtype::Float4e2m1, DType::F4E2M1),
];

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        DTYPES[dtype as usize].1
    }
}

impl From<DType> for Dtype {
    fn from(dtype: DType) -> Self {
        DTYPES[dtype as usize].0
    }
}

impl From<types::TensorSpec> for TensorSpec {
    fn from(spec: types::TensorSpec) -> Self {
        Self { name: spec.name, dtype: spec.dtype.into(), shape: spec.shape }
    }
}

impl From<&TensorSpec> for types::TensorSpec {
    fn from(spec: &TensorSpec) -> Self {
        Self { name: spec.name.clone(), dtype: spec.dtype.into(), shape: spec.shape.clone() }
    }
}

impl From<types::Signature> for Signature {
    fn from(signature: types::Signature) -> Self {
        Self {
            inputs: signature.inputs.into_iter().map(TensorSpec::from).collect(),
            outputs: signature.outputs.into_iter().map(TensorSpec::from).collect(),
        }
    }
}

impl From<&Signature> for types::Signature {
    fn from(signature: &Signature) -> Self {
        Self {
            inputs: signature.inputs.iter().map(types::TensorSpec::from).collect(),
            outputs: signature.outputs.iter().map(types::TensorSpec::from).collect(),
        }
    }
}

impl From<types::Error> for Error {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::InvalidInput(message) => Error::invalid(message),
            types::Error::Unsupported(message) => Error::unsupported(message),
            types::Error::Failed(message) => Error::plugin(message),
        }
    }
}

impl From<Error> for types::Error {
    fn from(error: Error) -> Self {
        let message = error.message().to_owned();
        match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::NotFound | ErrorKind::TooLarge => {
                Self::InvalidInput(message)
            }
            ErrorKind::Unsupported => Self::Unsupported(message),
            _ => Self::Failed(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtype_rows_stand_at_their_own_index() {
        for (index, (theirs, ours)) in DTYPES.iter().enumerate() {
            assert_eq!((*theirs as usize, *ours as usize), (index, index));
        }
    }
}
