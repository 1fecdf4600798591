//! Constants on the device, in the layouts that kernels read.

use crate::context::Context;
use crate::heap::{Heap, Weight};
use half::f16;
use mortise_types::{DType, Error, Result, Tensor, ValueId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// How a constant is laid out on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// One word an element, as every other value.
    Words,
    /// The tensor's own bytes.
    Bytes,
    /// `FP16` pairs along k, one row of [`half_words`] a column of the matrix,
    /// filled up with zeros. `transposed` when the tensor has its columns in
    /// rows already.
    HalfColumns { transposed: bool },
}

/// What keeps a tensor from being copied to the device twice.
#[derive(Default)]
pub(crate) struct WeightCache {
    /// By address of the host's copy, which the entry keeps alive.
    known: Mutex<HashMap<(usize, usize, Format), (Weak<Weight>, Tensor)>>,
    /// Tensors that kernels made of a node's constants, by an output of the
    /// node.
    derived: Mutex<HashMap<(ValueId, u32), Tensor>>,
}

impl WeightCache {
    /// # Errors
    /// As `make`.
    pub(crate) fn derived(
        &self,
        key: (ValueId, u32),
        make: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut derived = self.derived.lock();
        if let Some(tensor) = derived.get(&key) {
            return Ok(tensor.clone());
        }
        let tensor = make()?;
        derived.insert(key, tensor.clone());
        Ok(tensor)
    }

    /// # Errors
    /// `Overloaded` when the device is full; `Unsupported` for a type it
    /// cannot hold.
    pub(crate) fn get(
        &self,
        context: &Context,
        heap: &Arc<Heap>,
        tensor: &Tensor,
        format: Format,
    ) -> Result<Arc<Weight>> {
        let bytes = tensor.bytes().ok_or_else(|| Error::unsupported("strings on the GPU"))?;
        let key = (bytes.as_ptr() as usize, bytes.len(), format);
        let mut known = self.known.lock();
        if let Some(weight) = known.get(&key).and_then(|(weight, _)| weight.upgrade()) {
            return Ok(weight);
        }
        known.retain(|_, (weight, _)| weight.strong_count() > 0);
        let weight = match format {
            Format::Bytes => heap.upload(context, bytes)?,
            Format::Words if tensor.dtype() == DType::F32 => heap.upload(context, bytes)?,
            Format::Words => heap.upload(context, bytemuck::cast_slice(&words(tensor)?))?,
            Format::HalfColumns { transposed } => {
                heap.upload(context, bytemuck::cast_slice(&half_columns(tensor, transposed)?))?
            }
        };
        known.insert(key, (Arc::downgrade(&weight), tensor.clone()));
        Ok(weight)
    }
}

/// The elements as the device's words.
///
/// # Errors
/// `Unsupported` for a type that the device does not hold, `InvalidInput` for
/// an `INT64` beyond 32 bits.
pub(crate) fn words(tensor: &Tensor) -> Result<Vec<u32>> {
    let mut words = vec![0; tensor.len()];
    write_words(tensor, &mut words)?;
    Ok(words)
}

/// As [`words`], into memory that is there already.
///
/// # Errors
/// As [`words`].
pub(crate) fn write_words(tensor: &Tensor, target: &mut [u32]) -> Result<()> {
    fn each<T: Copy>(source: &[T], target: &mut [u32], word: impl Fn(T) -> u32) {
        source.iter().zip(target).for_each(|(value, slot)| *slot = word(*value));
    }
    match tensor.dtype() {
        DType::F32 => each(tensor.as_slice::<f32>()?, target, f32::to_bits),
        DType::F16 => each(tensor.as_slice::<f16>()?, target, |v| v.to_f32().to_bits()),
        DType::I32 => each(tensor.as_slice::<i32>()?, target, |v| v as u32),
        DType::I8 => each(tensor.as_slice::<i8>()?, target, |v| i32::from(v) as u32),
        DType::U8 => each(tensor.as_slice::<u8>()?, target, u32::from),
        DType::Bool => each(tensor.bool_bytes()?, target, u32::from),
        DType::I64 => {
            let values = tensor.as_slice::<i64>()?;
            if values.iter().any(|value| i32::try_from(*value).is_err()) {
                return Err(Error::invalid("an INT64 beyond 32 bits"));
            }
            each(values, target, |v| v as i32 as u32);
        }
        other => return Err(Error::unsupported(format!("{other} on the GPU"))),
    }
    Ok(())
}

/// A host tensor from the device's words.
///
/// # Errors
/// `Unsupported` for a type that the device does not hold.
pub(crate) fn from_words(dtype: DType, shape: &[usize], words: &[u32]) -> Result<Tensor> {
    fn list<T>(words: &[u32], value: impl Fn(u32) -> T) -> Vec<T> {
        words.iter().map(|word| value(*word)).collect()
    }
    match dtype {
        DType::F32 => Tensor::from_vec(shape, list(words, f32::from_bits)),
        DType::F16 => Tensor::from_vec(shape, list(words, |w| f16::from_f32(f32::from_bits(w)))),
        DType::I32 => Tensor::from_vec(shape, list(words, |w| w as i32)),
        DType::I64 => Tensor::from_vec(shape, list(words, |w| i64::from(w as i32))),
        DType::I8 => Tensor::from_vec(shape, list(words, |w| w as i8)),
        DType::U8 => Tensor::from_vec(shape, list(words, |w| w as u8)),
        DType::Bool => Tensor::from_bools(shape, list(words, |w| u8::from(w != 0))),
        other => Err(Error::unsupported(format!("{other} on the GPU"))),
    }
}

/// `INT8` or `UINT8` `[k, n]` packed along k, four to a word, one row a column,
/// with `shift` taken off each value; and the sums of the columns as packed.
///
/// # Errors
/// When the tensor is no such matrix.
pub(crate) fn packed_columns(tensor: &Tensor, shift: i32) -> Result<(Tensor, Tensor)> {
    let (&[k, n], Some(bytes)) = (tensor.shape(), tensor.bytes()) else {
        return Err(Error::internal("a packed weight is a matrix"));
    };
    let signed = tensor.dtype() == DType::I8;
    let pitch = column_words(k, 4);
    let (mut words, mut sums) = (vec![0i32; pitch * n], vec![0i32; n]);
    for (at, byte) in bytes.iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let value = if signed { i32::from(*byte as i8) } else { i32::from(*byte) } - shift;
        sums[column] += value;
        words[column * pitch + row / 4] |= (value & 0xff) << (8 * (row % 4));
    }
    Ok((Tensor::from_vec(&[n, pitch], words)?, Tensor::from_vec(&[n], sums)?))
}

/// `INT8` or `UINT8` filters `[outputs, channels, ...]` packed along channels,
/// four to a word, one row an output, with `shift` taken off each value; and the
/// sums of the rows as packed.
///
/// # Errors
/// When the tensor is no such filter.
pub(crate) fn packed_filters(tensor: &Tensor, shift: i32) -> Result<(Tensor, Tensor)> {
    let (&[outputs, channels, ref kernel @ ..], Some(bytes)) = (tensor.shape(), tensor.bytes())
    else {
        return Err(Error::internal("a packed filter has outputs and channels"));
    };
    let signed = tensor.dtype() == DType::I8;
    let taps: usize = kernel.iter().product();
    let pitch = column_words(channels, 4) * taps;
    let (mut words, mut sums) = (vec![0i32; outputs * pitch], vec![0i32; outputs]);
    for (at, byte) in bytes.iter().enumerate() {
        let (output, channel, tap) = (at / (channels * taps), at / taps % channels, at % taps);
        let value = if signed { i32::from(*byte as i8) } else { i32::from(*byte) } - shift;
        sums[output] += value;
        words[output * pitch + channel / 4 * taps + tap] |= (value & 0xff) << (8 * (channel % 4));
    }
    Ok((Tensor::from_vec(&[outputs, pitch], words)?, Tensor::from_vec(&[outputs], sums)?))
}

/// Words that one column of `count` values takes at `per_word` a word.
pub(crate) fn column_words(count: usize, per_word: usize) -> usize {
    count.div_ceil(per_word)
}

/// Words that one row of `count` values of `FP16` takes: whole loads of four.
pub(crate) fn half_words(count: usize) -> usize {
    column_words(count, 2).next_multiple_of(4)
}

const COLUMNS_AT_ONCE: usize = 32;

fn half_columns(tensor: &Tensor, transposed: bool) -> Result<Vec<u32>> {
    let values = tensor.as_slice::<f16>()?;
    let [rows, columns] = *tensor.shape() else {
        return Err(Error::internal("a packed weight is a matrix"));
    };
    let (k, n) = if transposed { (columns, rows) } else { (rows, columns) };
    // What one step along k and one along n is.
    let (deep, across) = if transposed { (1, k) } else { (n, 1) };
    let pitch = half_words(k);
    let mut words = vec![0u32; pitch * n];
    // A few columns at a time, so that reads and writes stay in the cache.
    for (block, rows) in words.chunks_mut(pitch * COLUMNS_AT_ONCE).enumerate() {
        for at in 0..k {
            for (column, row) in rows.chunks_exact_mut(pitch).enumerate() {
                let column = block * COLUMNS_AT_ONCE + column;
                let bits = u32::from(values[at * deep + column * across].to_bits());
                row[at / 2] |= bits << (16 * (at % 2));
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_packed_along_k() {
        let values: Vec<f16> = (0..6).map(|i| f16::from_f32(i as f32)).collect();
        let tensor = Tensor::from_vec(&[3, 2], values.clone()).unwrap();
        let packed = half_columns(&tensor, false).unwrap();
        let bits = |i: usize| u32::from(values[i].to_bits());
        let columns =
            [bits(0) | bits(2) << 16, bits(4), 0, 0, bits(1) | bits(3) << 16, bits(5), 0, 0];
        assert_eq!(packed, columns);
        let turned = Tensor::from_vec(&[2, 3], [0, 2, 4, 1, 3, 5].map(|i| values[i]).to_vec());
        assert_eq!(half_columns(&turned.unwrap(), true).unwrap(), packed);
    }

    #[test]
    fn words_round_trip_and_refuse_wide_integers() {
        let tensors = [
            Tensor::from_vec(&[2], vec![1.5f32, f32::NEG_INFINITY]).unwrap(),
            Tensor::from_vec(&[2], vec![-7i64, i64::from(i32::MAX)]).unwrap(),
            Tensor::from_vec(&[2], vec![-128i8, 127]).unwrap(),
            Tensor::from_bools(&[2], vec![1, 0]).unwrap(),
        ];
        for tensor in tensors {
            let words = words(&tensor).unwrap();
            let back = from_words(tensor.dtype(), tensor.shape(), &words).unwrap();
            assert_eq!(back.bytes(), tensor.bytes());
        }
        assert!(words(&Tensor::from_vec(&[1], vec![1i64 << 40]).unwrap()).is_err());
    }
}
