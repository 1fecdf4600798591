//! Binary tensor data: little-endian, row-major, no padding; a string is its
//! length as a u32 and then its bytes; a boolean is one byte.

use bytes::Bytes;
use mortise_types::{DType, Error, Result, Strings, StringsBuilder, Tensor};

/// A tensor from its binary data, borrowed where its alignment allows it.
///
/// # Errors
/// When the data does not hold exactly the elements of `dtype` and `shape`.
/// Messages do not name the tensor: the caller does.
pub fn decode(dtype: DType, shape: &[usize], bytes: Bytes) -> Result<Tensor> {
    match dtype {
        DType::String => Tensor::from_strings(shape, decode_strings(&bytes)?),
        DType::Bool => {
            if let Some(index) = bytes.iter().position(|&byte| byte > 1) {
                return Err(Error::invalid(format!(
                    "BOOL takes bytes that are 0 or 1, got {} at element {index}",
                    bytes[index]
                )));
            }
            Tensor::from_bytes(dtype, shape, bytes)
        }
        _ => Tensor::from_bytes(dtype, shape, bytes),
    }
}

fn decode_strings(mut bytes: &[u8]) -> Result<Strings> {
    let mut strings = StringsBuilder::default();
    let mut index = 0usize;
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk().ok_or_else(|| {
            Error::invalid(format!("BYTES data ends inside the length of element {index}"))
        })?;
        let length = u32::from_le_bytes(*length) as usize;
        let (item, rest) = rest.split_at_checked(length).ok_or_else(|| {
            Error::invalid(format!(
                "element {index} of BYTES data has a length of {length} bytes, but only {} follow",
                rest.len()
            ))
        })?;
        strings.push(item);
        bytes = rest;
        index += 1;
    }
    Ok(strings.finish())
}

/// The binary data of a tensor: numbers are shared, strings are written out.
///
/// # Errors
/// When a string is longer than its u32 length can say.
pub fn encode(tensor: &Tensor) -> Result<Bytes> {
    if let Some(storage) = tensor.storage() {
        return Ok(storage.to_shared());
    }
    let strings = tensor.strings()?;
    let mut out = Vec::with_capacity(strings.bytes().len() + strings.len() * 4);
    for item in strings.iter() {
        let length = u32::try_from(item.len())
            .map_err(|_| Error::internal("a string is longer than 4 GiB"))?;
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(item);
    }
    Ok(out.into())
}
