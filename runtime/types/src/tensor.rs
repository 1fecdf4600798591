use crate::{Bytes, DType, Element, Error, Result, Storage};
use smallvec::SmallVec;
use std::fmt;
use std::sync::Arc;

/// Dimensions of a tensor, outermost first; empty for a scalar.
pub type Shape = SmallVec<[usize; 6]>;

/// A dense, row-major, contiguous tensor in host memory. Cloning shares the
/// bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    data: Data,
}

#[derive(Clone)]
enum Data {
    Bytes(Storage),
    Strings(Arc<Strings>),
}

/// Variable-length byte strings: one buffer, and `len + 1` offsets into it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Strings {
    bytes: Vec<u8>,
    offsets: Vec<u64>,
}

impl Strings {
    /// # Errors
    /// When the offsets do not start at 0, descend, or end elsewhere than at
    /// the end of `bytes`.
    pub fn new(bytes: Vec<u8>, offsets: Vec<u64>) -> Result<Self> {
        let ordered = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        let ends = offsets.first() == Some(&0) && offsets.last() == Some(&(bytes.len() as u64));
        if !(ordered && ends) {
            return Err(Error::invalid("string offsets must ascend from 0 to the byte count"));
        }
        Ok(Self { bytes, offsets })
    }

    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// # Panics
    /// When `index` is out of range.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.offsets[index] as usize..self.offsets[index + 1] as usize]
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// All bytes, concatenated.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `len + 1` ascending offsets into [`Strings::bytes`].
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(iter: I) -> Self {
        let mut builder = StringsBuilder::default();
        iter.into_iter().for_each(|item| builder.push(item.as_ref()));
        builder.finish()
    }
}

/// Collects strings one by one.
pub struct StringsBuilder(Strings);

impl Default for StringsBuilder {
    fn default() -> Self {
        Self(Strings { bytes: Vec::new(), offsets: vec![0] })
    }
}

impl StringsBuilder {
    pub fn push(&mut self, item: &[u8]) {
        self.0.bytes.extend_from_slice(item);
        self.0.offsets.push(self.0.bytes.len() as u64);
    }

    pub fn finish(self) -> Strings {
        self.0
    }
}

/// The number of elements of a shape.
///
/// # Errors
/// When the product overflows.
fn element_count(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |count, &dim| count.checked_mul(dim))
        .ok_or_else(|| Error::invalid(format!("shape {shape:?} has too many elements")))
}

impl Tensor {
    /// A numeric tensor over existing bytes (little-endian, row-major).
    ///
    /// # Errors
    /// When the byte count does not fit dtype and shape, or dtype is a string.
    /// Bytes that are not aligned for the element type are copied once.
    pub fn from_storage(dtype: DType, shape: &[usize], storage: Storage) -> Result<Self> {
        let count = element_count(shape)?;
        let want = dtype.byte_len(count).ok_or_else(|| {
            Error::invalid(format!("{dtype} of shape {shape:?} has no byte size"))
        })?;
        if storage.len() != want {
            return Err(Error::invalid(format!(
                "{dtype} of shape {shape:?} takes {want} bytes, got {}",
                storage.len()
            )));
        }
        let align = (dtype.bits() / 8).max(1);
        let aligned = (storage.as_bytes().as_ptr() as usize).is_multiple_of(align);
        let storage = if aligned { storage } else { copy_aligned(storage.as_bytes()) };
        Ok(Self { dtype, shape: shape.into(), data: Data::Bytes(storage) })
    }

    /// A numeric tensor over shared bytes; see [`Tensor::from_storage`].
    ///
    /// # Errors
    /// As [`Tensor::from_storage`].
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Bytes) -> Result<Self> {
        Self::from_storage(dtype, shape, Storage::Shared(bytes))
    }

    /// Takes a vector of elements without copying.
    ///
    /// # Errors
    /// When `values.len()` is not the product of `shape`.
    pub fn from_vec<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Self> {
        check_count(shape, values.len())?;
        let data = Data::Bytes(Storage::from_vec(values));
        Ok(Self { dtype: T::DTYPE, shape: shape.into(), data })
    }

    /// A `BOOL` tensor from bytes that are 0 or 1.
    ///
    /// # Errors
    /// When the count is wrong or a byte is neither 0 nor 1.
    pub fn from_bools(shape: &[usize], values: Vec<u8>) -> Result<Self> {
        check_count(shape, values.len())?;
        if values.iter().any(|&byte| byte > 1) {
            return Err(Error::invalid("BOOL elements must be 0 or 1"));
        }
        let data = Data::Bytes(Storage::from_vec(values));
        Ok(Self { dtype: DType::Bool, shape: shape.into(), data })
    }

    /// # Errors
    /// When the number of strings is not the product of `shape`.
    pub fn from_strings(shape: &[usize], strings: Strings) -> Result<Self> {
        check_count(shape, strings.len())?;
        let data = Data::Strings(Arc::new(strings));
        Ok(Self { dtype: DType::String, shape: shape.into(), data })
    }

    /// A zero-dimensional tensor.
    pub fn scalar<T: Element>(value: T) -> Self {
        let data = Data::Bytes(Storage::from_vec(vec![value]));
        Self { dtype: T::DTYPE, shape: Shape::new(), data }
    }

    /// Zeros (empty strings for [`DType::String`]), owned and writable.
    ///
    /// # Errors
    /// When the element count overflows.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self> {
        let count = element_count(shape)?;
        if dtype == DType::String {
            return Self::from_strings(shape, std::iter::repeat_n(b"", count).collect());
        }
        let len = dtype
            .byte_len(count)
            .ok_or_else(|| Error::invalid(format!("shape {shape:?} is too large")))?;
        Self::from_storage(dtype, shape, Storage::zeroed(len))
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory the elements take.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            Data::Bytes(storage) => storage.len(),
            Data::Strings(strings) => strings.bytes.len() + strings.offsets.len() * 8,
        }
    }

    /// The elements as a slice of the Rust type that stands for the dtype.
    ///
    /// # Errors
    /// When `T` is not this tensor's element type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        match &self.data {
            Data::Bytes(storage) if self.dtype == T::DTYPE => {
                Ok(bytemuck::cast_slice(storage.as_bytes()))
            }
            _ => Err(self.wrong_type(T::DTYPE)),
        }
    }

    /// The elements for writing.
    ///
    /// # Errors
    /// When `T` is not the element type, or the memory is shared.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        if self.dtype != T::DTYPE {
            return Err(self.wrong_type(T::DTYPE));
        }
        self.mut_bytes()
            .map(bytemuck::cast_slice_mut)
            .ok_or_else(|| Error::internal("tensor memory is shared and cannot be written"))
    }

    /// Raw bytes of a numeric or boolean tensor, `None` for strings.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Bytes(storage) => Some(storage.as_bytes()),
            Data::Strings(_) => None,
        }
    }

    /// Raw bytes for writing, when owned and unshared.
    pub fn mut_bytes(&mut self) -> Option<&mut [u8]> {
        match &mut self.data {
            Data::Bytes(storage) => storage.as_mut_bytes(),
            Data::Strings(_) => None,
        }
    }

    /// The memory of a numeric or boolean tensor, `None` for strings.
    pub fn storage(&self) -> Option<&Storage> {
        match &self.data {
            Data::Bytes(storage) => Some(storage),
            Data::Strings(_) => None,
        }
    }

    /// A `BOOL` tensor's elements as bytes that are 0 or 1.
    ///
    /// # Errors
    /// When the dtype is not `BOOL`.
    pub fn bool_bytes(&self) -> Result<&[u8]> {
        match &self.data {
            Data::Bytes(storage) if self.dtype == DType::Bool => Ok(storage.as_bytes()),
            _ => Err(self.wrong_type(DType::Bool)),
        }
    }

    /// # Errors
    /// When the dtype is not `BYTES`.
    pub fn strings(&self) -> Result<&Arc<Strings>> {
        match &self.data {
            Data::Strings(strings) => Ok(strings),
            Data::Bytes(_) => Err(self.wrong_type(DType::String)),
        }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the element counts differ.
    pub fn reshaped(mut self, shape: &[usize]) -> Result<Self> {
        if element_count(shape)? != self.len() {
            return Err(Error::invalid(format!(
                "cannot reshape {:?} to {shape:?}",
                self.shape.as_slice()
            )));
        }
        self.shape = shape.into();
        Ok(self)
    }

    fn wrong_type(&self, want: DType) -> Error {
        Error::invalid(format!("expected a {want} tensor, got {}", self.dtype))
    }
}

fn check_count(shape: &[usize], got: usize) -> Result<()> {
    let want = element_count(shape)?;
    if got == want {
        return Ok(());
    }
    Err(Error::invalid(format!("shape {shape:?} takes {want} elements, got {got}")))
}

fn copy_aligned(bytes: &[u8]) -> Storage {
    let mut storage = Storage::zeroed(bytes.len());
    if let Some(target) = storage.as_mut_bytes() {
        target.copy_from_slice(bytes);
    }
    storage
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaligned_bytes_are_copied_and_read_back() {
        let mut body = vec![9u8];
        body.extend(1.5f32.to_le_bytes());
        let bytes = Bytes::from(body).slice(1..);
        let tensor = Tensor::from_bytes(DType::F32, &[1], bytes).unwrap();
        assert_eq!(tensor.as_slice::<f32>().unwrap(), &[1.5]);
    }

    #[test]
    fn lying_lengths_are_refused() {
        let short = Bytes::from_static(&[0; 7]);
        let error = Tensor::from_bytes(DType::F32, &[2], short).unwrap_err();
        assert_eq!(error.message(), "FP32 of shape [2] takes 8 bytes, got 7");
        assert!(Tensor::from_vec(&[usize::MAX, 2], vec![1u8]).is_err());
    }

    #[test]
    fn writing_needs_unshared_memory() {
        let mut tensor = Tensor::zeros(DType::I32, &[2]).unwrap();
        tensor.as_mut_slice::<i32>().unwrap()[1] = 7;
        let other = tensor.clone();
        assert!(tensor.as_mut_slice::<i32>().is_err());
        assert_eq!(other.as_slice::<i32>().unwrap(), &[0, 7]);
    }

    #[test]
    fn strings_check_their_offsets() {
        assert!(Strings::new(b"ab".to_vec(), vec![0, 2]).is_ok());
        assert!(Strings::new(b"ab".to_vec(), vec![0, 3]).is_err());
        assert!(Strings::new(b"ab".to_vec(), vec![0, 2, 1, 2]).is_err());
        assert!(Strings::new(b"".to_vec(), vec![]).is_err());
    }
}
