//! What can be known of dtypes and shapes before a run. Declarations in files
//! are often wrong, so only inputs and operators are believed.

use mortise_types::{DType, GraphBody, NodeDef, Value};

/// What inference knows about a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fact {
    /// `None` when unknown or when the value is not a tensor.
    pub dtype: Option<DType>,
    /// Sizes, `-1` for an unknown one; `None` when not even the rank is known.
    pub shape: Option<Vec<i64>>,
}

impl Fact {
    pub(crate) fn of(value: &Value) -> Self {
        match value {
            Value::Tensor(tensor) => Self {
                dtype: Some(tensor.dtype()),
                shape: Some(tensor.shape().iter().map(|&dim| dim as i64).collect()),
            },
            _ => Self::default(),
        }
    }
}

/// The shape when every dimension is known.
pub(crate) fn static_shape(fact: &Fact) -> Option<Vec<usize>> {
    fact.shape.as_ref()?.iter().map(|&dim| usize::try_from(dim).ok()).collect()
}

pub(crate) fn infer_body(body: &GraphBody, constants: &[Option<Value>], facts: &mut [Fact]) {
    for node in &body.nodes {
        infer_node(node, constants, facts);
    }
}

pub(crate) fn infer_node(_node: &NodeDef, _constants: &[Option<Value>], _facts: &mut [Fact]) {}
