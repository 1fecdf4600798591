use crate::{DType, Error, Result, Tensor};
use std::fmt;

/// The size of a dimension that may differ between requests.
pub const VARIABLE: i64 = -1;

/// Alone in the shape of an output: not even the rank is known before a run.
pub const ANY_RANK: i64 = -2;

/// One input or output of a model or transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    /// Outermost first; [`VARIABLE`] where any size is accepted; only
    /// [`ANY_RANK`] where any shape is.
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

    /// A tensor whose rank is not known.
    pub fn of_any_rank(name: impl Into<String>, dtype: DType) -> Self {
        Self::new(name, dtype, &[ANY_RANK])
    }

    pub fn has_any_rank(&self) -> bool {
        self.shape == [ANY_RANK]
    }

    /// The shape as clients are told it: the protocol has no word for an
    /// unknown rank, so that one variable dimension stands in.
    pub fn shape_on_wire(&self) -> &[i64] {
        if self.has_any_rank() { &[VARIABLE] } else { &self.shape }
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
        let same_rank = shape.len() == self.shape.len();
        let fits = self.has_any_rank()
            || same_rank
                && shape
                    .iter()
                    .zip(&self.shape)
                    .all(|(&got, &want)| want < 0 || got as i64 == want);
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
        match self.has_any_rank() {
            true => write!(f, "{} {} of any rank", self.name, self.dtype),
            false => write!(f, "{} {}{:?}", self.name, self.dtype, self.shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_held_against_sizes_and_rank() {
        let of = |shape: &[i64]| TensorSpec::new("y", DType::F32, shape);
        let cases: [(TensorSpec, &[usize], bool); 6] = [
            (of(&[-1, 3]), &[7, 3], true),
            (of(&[-1, 3]), &[7, 4], false),
            (of(&[-1]), &[7, 3], false),
            (of(&[]), &[], true),
            (TensorSpec::of_any_rank("y", DType::F32), &[7, 3], true),
            (TensorSpec::of_any_rank("y", DType::F32), &[], true),
        ];
        for (spec, shape, fits) in cases {
            assert_eq!(spec.check_shape(shape).is_ok(), fits, "{spec} {shape:?}");
        }
        assert_eq!(TensorSpec::of_any_rank("y", DType::F32).shape_on_wire(), [VARIABLE]);
    }
}
