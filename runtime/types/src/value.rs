use crate::{Error, Result, Tensor};
use std::sync::Arc;

/// What flows along an edge of a graph: ONNX's tensor, sequence, optional and
/// map types.
#[derive(Clone, Debug)]
pub enum Value {
    Tensor(Tensor),
    Sequence(Arc<Vec<Value>>),
    Optional(Option<Box<Value>>),
    /// Keys and values are tensors of the same length and rank 1.
    Map(Arc<(MapKeys, Tensor)>),
}

/// The keys of a [`Value::Map`], in order.
#[derive(Clone, Debug, PartialEq)]
pub enum MapKeys {
    Ints(Vec<i64>),
    Strings(Vec<Vec<u8>>),
}

impl Value {
    /// # Errors
    /// When this is not a tensor.
    pub fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            other => Err(Error::invalid(format!("expected a tensor, got {}", other.kind_name()))),
        }
    }

    /// # Errors
    /// When this is not a tensor.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            other => Err(Error::invalid(format!("expected a tensor, got {}", other.kind_name()))),
        }
    }

    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "a tensor",
            Self::Sequence(_) => "a sequence",
            Self::Optional(_) => "an optional",
            Self::Map(_) => "a map",
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}
