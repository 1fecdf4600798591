//! Inputs that are made up, where a deployment brings none.

use mortise_serve::Revision;
use mortise_types::{DType, Result, Signature, Tensor, TensorSpec, VARIABLE, bf16, f16};

type Named = Vec<(String, Tensor)>;

/// `rows` rows of zeros; `None` when the signature leaves no such input.
pub(crate) fn zeros(revision: &Revision, rows: usize) -> Option<Named> {
    let zero = |spec: &TensorSpec| {
        let dims = dims(spec, rows, 1);
        Some((spec.name.clone(), Tensor::zeros(spec.dtype, &dims).ok()?))
    };
    revision.signature().inputs.iter().map(zero).collect()
}

/// One row of numbers that differ by `seed`: floats between -1 and 1, whole
/// numbers 0 or 1, which are tokens of every vocabulary. Dimensions other than
/// the first take `size` where they are open.
pub(crate) fn row(revision: &Revision, seed: u64, size: usize) -> Option<Named> {
    rows(revision.signature(), seed, 1, size)
}

/// The same in `rows` rows of a signature; `None` when it takes strings or
/// more than memory holds.
pub fn rows(signature: &Signature, seed: u64, rows: usize, size: usize) -> Option<Named> {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut make = |spec: &TensorSpec| {
        let tensor = numbers.tensor(spec.dtype, &dims(spec, rows, size)).ok()?;
        Some((spec.name.clone(), tensor))
    };
    signature.inputs.iter().map(&mut make).collect()
}

fn dims(spec: &TensorSpec, rows: usize, size: usize) -> Vec<usize> {
    let dim = |(index, &dim): (usize, &i64)| match dim {
        VARIABLE if index == 0 => rows,
        VARIABLE => size,
        fixed => usize::try_from(fixed).unwrap_or(1),
    };
    spec.shape.iter().enumerate().map(dim).collect()
}

/// Xorshift: the same numbers in every deployment of the same model.
struct Numbers(u64);

impl Numbers {
    fn tensor(&mut self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let count = dims.iter().product();
        match dtype {
            DType::F32 => Tensor::from_vec(dims, self.many(count, |n| n.float() as f32)),
            DType::F64 => Tensor::from_vec(dims, self.many(count, Self::float)),
            DType::F16 => Tensor::from_vec(dims, self.many(count, |n| f16::from_f64(n.float()))),
            DType::BF16 => Tensor::from_vec(dims, self.many(count, |n| bf16::from_f64(n.float()))),
            DType::I64 => Tensor::from_vec(dims, self.many(count, |n| n.bit() as i64)),
            DType::I32 => Tensor::from_vec(dims, self.many(count, |n| n.bit() as i32)),
            DType::I8 => Tensor::from_vec(dims, self.many(count, |n| n.bit() as i8)),
            DType::U8 => Tensor::from_vec(dims, self.many(count, |n| n.bit() as u8)),
            DType::Bool => Tensor::from_bools(dims, self.many(count, |n| n.bit() as u8)),
            other => Tensor::zeros(other, dims),
        }
    }

    fn many<T>(&mut self, count: usize, one: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..count).map(|_| one(self)).collect()
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn float(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn bit(&mut self) -> u64 {
        self.next() >> 63
    }
}
