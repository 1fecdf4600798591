use crate::DType;
use crate::bindings::model::mortise::plugin::types as raw;

/// The size of a dimension that may differ between requests.
pub const VARIABLE: i64 = -1;

/// Alone in the shape of an output: its rank is not known before a run.
pub const ANY_RANK: i64 = -2;

/// One named input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    /// Outermost first; [`VARIABLE`] where any size is accepted; only
    /// [`ANY_RANK`] for an output of any rank.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<i64>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }
}

/// The tensors that go in and come out, in order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl From<&TensorSpec> for raw::TensorSpec {
    fn from(spec: &TensorSpec) -> Self {
        Self { name: spec.name.clone(), dtype: spec.dtype.into(), shape: spec.shape.clone() }
    }
}

impl From<raw::TensorSpec> for TensorSpec {
    fn from(spec: raw::TensorSpec) -> Self {
        Self { name: spec.name, dtype: spec.dtype.into(), shape: spec.shape }
    }
}

impl From<Signature> for raw::Signature {
    fn from(signature: Signature) -> Self {
        let raw = |specs: Vec<TensorSpec>| specs.iter().map(Into::into).collect();
        Self { inputs: raw(signature.inputs), outputs: raw(signature.outputs) }
    }
}

impl From<raw::Signature> for Signature {
    fn from(signature: raw::Signature) -> Self {
        let typed = |specs: Vec<raw::TensorSpec>| specs.into_iter().map(Into::into).collect();
        Self { inputs: typed(signature.inputs), outputs: typed(signature.outputs) }
    }
}
