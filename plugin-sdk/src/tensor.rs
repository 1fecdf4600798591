use crate::bindings::model::mortise::plugin::tensor as raw;
use crate::{DType, Element, Error, Result};
use std::mem::ManuallyDrop;

/// A dense, row-major tensor that lives in the host. Passing it on costs
/// nothing; reading or writing its elements copies them.
#[derive(Debug)]
pub struct Tensor(Handle);

#[derive(Debug)]
enum Handle {
    Owned(raw::Tensor),
    /// Lent by the host for one call; [`crate::abi`] gives it back.
    Lent(ManuallyDrop<raw::Tensor>),
}

impl Tensor {
    /// # Errors
    /// When `values.len()` is not the product of `shape`, or a limit on
    /// memory or handles is hit.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Result<Self> {
        let shape = raw_shape(shape);
        let tensor = match T::DTYPE {
            DType::F32 => raw::Tensor::from_f32(&shape, bytemuck::cast_slice(values)),
            DType::F64 => raw::Tensor::from_f64(&shape, bytemuck::cast_slice(values)),
            DType::I32 => raw::Tensor::from_s32(&shape, bytemuck::cast_slice(values)),
            DType::I64 => raw::Tensor::from_s64(&shape, bytemuck::cast_slice(values)),
            dtype => raw::Tensor::from_bytes(dtype.into(), &shape, bytemuck::cast_slice(values)),
        };
        Ok(Self::owned(tensor?))
    }

    /// A zero-dimensional tensor.
    ///
    /// # Errors
    /// When a limit on memory or handles is hit.
    pub fn scalar<T: Element>(value: T) -> Result<Self> {
        Self::from_slice(&[], &[value])
    }

    /// A tensor of any dtype but strings from little-endian bytes.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Self> {
        Ok(Self::owned(raw::Tensor::from_bytes(dtype.into(), &raw_shape(shape), bytes)?))
    }

    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_bools(shape: &[usize], values: &[bool]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().map(|&value| u8::from(value)).collect();
        Self::from_bytes(DType::Bool, shape, &bytes)
    }

    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_strings<S: AsRef<[u8]>>(
        shape: &[usize],
        values: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let strings: Strings = values.into_iter().collect();
        Ok(Self::owned(raw::Tensor::from_strings(&raw_shape(shape), &strings.0)?))
    }

    pub fn dtype(&self) -> DType {
        self.raw().dtype().into()
    }

    /// Outermost dimension first; empty for a scalar.
    pub fn shape(&self) -> Vec<usize> {
        self.raw().shape().into_iter().map(|dim| dim as usize).collect()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.raw().length() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the elements out.
    ///
    /// # Errors
    /// When `T` is not the element type of the tensor.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let raw = self.raw();
        Ok(match T::DTYPE {
            DType::F32 => cast_vec(raw.read_f32()?),
            DType::F64 => cast_vec(raw.read_f64()?),
            DType::I32 => cast_vec(raw.read_s32()?),
            DType::I64 => cast_vec(raw.read_s64()?),
            want => {
                let got = self.dtype();
                if got != want {
                    return Err(Error::invalid(format!("expected a {want} tensor, got {got}")));
                }
                bytemuck::pod_collect_to_vec(&raw.read_bytes()?)
            }
        })
    }

    /// The elements as little-endian bytes; not for strings.
    ///
    /// # Errors
    /// When the tensor holds strings.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(self.raw().read_bytes()?)
    }

    /// # Errors
    /// When the tensor does not hold strings.
    pub fn to_strings(&self) -> Result<Strings> {
        Ok(Strings(self.raw().read_strings()?))
    }

    pub(crate) fn owned(tensor: raw::Tensor) -> Self {
        Self(Handle::Owned(tensor))
    }

    pub(crate) fn lent(tensor: raw::Tensor) -> Self {
        Self(Handle::Lent(ManuallyDrop::new(tensor)))
    }

    pub(crate) fn raw(&self) -> &raw::Tensor {
        match &self.0 {
            Handle::Owned(tensor) => tensor,
            Handle::Lent(tensor) => tensor,
        }
    }

    /// Gives the handle to the host. A lent one cannot be given: its elements
    /// are copied into a tensor of the plugin's own.
    pub(crate) fn into_handle(self) -> Result<u32> {
        let owned = match self.0 {
            Handle::Owned(tensor) => tensor,
            Handle::Lent(tensor) => copy(&tensor)?,
        };
        Ok(owned.take_handle())
    }
}

fn copy(tensor: &raw::Tensor) -> Result<raw::Tensor> {
    let shape = tensor.shape();
    let dtype = tensor.dtype();
    Ok(if DType::from(dtype) == DType::String {
        raw::Tensor::from_strings(&shape, &tensor.read_strings()?)?
    } else {
        raw::Tensor::from_bytes(dtype, &shape, &tensor.read_bytes()?)?
    })
}

fn raw_shape(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|&dim| dim as u64).collect()
}

/// `A` and `B` are the same type, known only through their dtype.
fn cast_vec<A: Element, B: Element>(values: Vec<A>) -> Vec<B> {
    bytemuck::allocation::try_cast_vec(values)
        .unwrap_or_else(|(_, values)| bytemuck::pod_collect_to_vec(&values))
}

/// Variable-length byte strings in one buffer.
#[derive(Clone, Debug)]
pub struct Strings(raw::ByteStrings);

impl Strings {
    pub fn len(&self) -> usize {
        self.0.offsets.len().saturating_sub(1)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `None` when `index` is out of range.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let start = *self.0.offsets.get(index)? as usize;
        let end = *self.0.offsets.get(index + 1)? as usize;
        self.0.data.get(start..end)
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(items: I) -> Self {
        let mut strings = raw::ByteStrings { data: Vec::new(), offsets: vec![0] };
        for item in items {
            strings.data.extend_from_slice(item.as_ref());
            strings.offsets.push(strings.data.len() as u64);
        }
        Self(strings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_keep_their_bounds() {
        let strings: Strings = ["a", "", "bcd"].into_iter().collect();
        assert_eq!(strings.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bcd"]);
        assert_eq!(strings.get(3), None);
    }
}
