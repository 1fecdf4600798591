use crate::{DType, Error, Result, Tensor};
use std::fmt;

/// The size of a dimension that may differ between requests.
pub const VARIABLE: i64 = -1;

/// One input or output of a model or transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    /// Outermost first; [`VARIABLE`] where any size is accepted.
    pub shape: Vec<i64>,
}

/// The named tensors that go in and come out, in order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl TensorSpec {
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[i64]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// # Errors
    /// When dtype, rank or a fixed dimension of `tensor` differs; the message
    /// names the tensor and both sides.
    pub fn check(&self, tensor: &Tensor) -> Result<()> {
        if tensor.dtype() != self.dtype {
            return Err(Error::invalid(format!(
                "\"{}\" expects {}, got {}",
                self.name,
                self.dtype,
                tensor.dtype()
            )));
        }
        self.check_shape(tensor.shape())
    }

    /// # Errors
    /// When the rank or a fixed dimension differs.
    pub fn check_shape(&self, shape: &[usize]) -> Result<()> {
        let fits = shape.len() == self.shape.len()
            && shape.iter().zip(&self.shape).all(|(&got, &want)| want < 0 || got as i64 == want);
        if fits {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "\"{}\" expects shape {:?}, got {shape:?}",
            self.name, self.shape
        )))
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.dtype, self.shape)
    }
}
