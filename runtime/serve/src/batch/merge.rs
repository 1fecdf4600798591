//! Rows of several requests into one tensor, and back.

use super::queue::Bucket;
use mortise_types::{DType, Error, Result, Storage, Strings, StringsBuilder, Tensor};

/// The rows of a request and what it can be merged with; `None` for one that
/// must run alone: its inputs disagree about the number of rows, have none, or
/// have elements smaller than a byte.
pub(crate) fn bucket(inputs: &[Tensor]) -> Option<(usize, Bucket)> {
    let rows = *inputs.first()?.shape().first()?;
    let mut bucket = Bucket::new();
    for tensor in inputs {
        let (&lead, rest) = tensor.shape().split_first()?;
        if lead != rows || rows == 0 || !has_whole_bytes(tensor.dtype()) {
            return None;
        }
        bucket.push(rest.len());
        bucket.extend_from_slice(rest);
    }
    Some((rows, bucket))
}

fn has_whole_bytes(dtype: DType) -> bool {
    dtype == DType::String || dtype.bits().is_multiple_of(8)
}

/// Each input of every member, one after another. Members are of one bucket.
///
/// # Errors
/// `Internal` when they are not.
pub(crate) fn join(members: &[&[Tensor]]) -> Result<Vec<Tensor>> {
    let count = members.first().map_or(0, |inputs| inputs.len());
    let column = |index: usize| members.iter().filter_map(move |inputs| inputs.get(index));
    (0..count).map(|index| concat(&column(index).collect::<Vec<_>>())).collect()
}

fn concat(tensors: &[&Tensor]) -> Result<Tensor> {
    let first = tensors.first().ok_or_else(|| Error::internal("nothing to merge"))?;
    let mut shape: Vec<usize> = first.shape().to_vec();
    let rows = tensors.iter().filter_map(|tensor| tensor.shape().first()).sum();
    let lead = shape.first_mut().ok_or_else(|| Error::internal("a scalar has no rows"))?;
    *lead = rows;
    if first.dtype() == DType::String {
        return concat_strings(tensors, &shape);
    }
    let mut storage = Storage::zeroed(tensors.iter().map(|tensor| tensor.byte_len()).sum());
    let mut target = storage.as_mut_bytes().unwrap_or_default();
    for tensor in tensors {
        let source = tensor.bytes().unwrap_or_default();
        let (part, rest) = target.split_at_mut(source.len());
        part.copy_from_slice(source);
        target = rest;
    }
    Tensor::from_storage(first.dtype(), &shape, storage)
}

fn concat_strings(tensors: &[&Tensor], shape: &[usize]) -> Result<Tensor> {
    let mut builder = StringsBuilder::default();
    for tensor in tensors {
        tensor.strings()?.iter().for_each(|text| builder.push(text));
    }
    Tensor::from_strings(shape, builder.finish())
}

/// The outputs of each member, whose rows are `rows`. Numbers are views of the
/// merged tensor, not copies.
///
/// # Errors
/// `Internal` when an output has another number of rows than went in.
pub(crate) fn split(outputs: &[Tensor], rows: &[usize]) -> Result<Vec<Vec<Tensor>>> {
    let total: usize = rows.iter().sum();
    for output in outputs {
        if output.shape().first() != Some(&total) || !has_whole_bytes(output.dtype()) {
            return Err(Error::internal(format!(
                "{total} rows gave an output of shape {:?}",
                output.shape()
            )));
        }
    }
    let mut begin = 0;
    let member = |&count: &usize| {
        let range = begin..begin + count;
        begin = range.end;
        outputs.iter().map(|output| rows_of(output, range.clone())).collect()
    };
    rows.iter().map(member).collect()
}

/// Some rows of a tensor.
fn rows_of(tensor: &Tensor, rows: std::ops::Range<usize>) -> Result<Tensor> {
    let mut shape: Vec<usize> = tensor.shape().to_vec();
    let row_len: usize = shape.iter().skip(1).product();
    let elements = rows.start * row_len..rows.end * row_len;
    if let Some(lead) = shape.first_mut() {
        *lead = rows.len();
    }
    let Some(storage) = tensor.storage() else {
        let all = tensor.strings()?;
        let part: Strings = elements.map(|index| all.get(index)).collect();
        return Tensor::from_strings(&shape, part);
    };
    let size = tensor.dtype().bits() / 8;
    let part = storage.slice(elements.start * size..elements.end * size);
    Tensor::from_storage(tensor.dtype(), &shape, part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_vec(shape, values.to_vec()).unwrap()
    }

    fn texts(items: &[&str]) -> Tensor {
        Tensor::from_strings(&[items.len()], items.iter().collect()).unwrap()
    }

    #[test]
    fn what_is_joined_comes_apart_again() {
        let first = [floats(&[1, 2], &[1.0, 2.0]), texts(&["a"])];
        let second = [floats(&[2, 2], &[3.0, 4.0, 5.0, 6.0]), texts(&["bc", ""])];
        assert_eq!(bucket(&first).map(|(_, bucket)| bucket), bucket(&second).map(|(_, b)| b));
        let joined = join(&[&first, &second]).unwrap();
        assert_eq!(joined[0].shape(), [3, 2]);
        assert_eq!(joined[0].as_slice::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let parts = split(&joined, &[1, 2]).unwrap();
        for (part, whole) in parts.iter().zip([&first, &second]) {
            assert_eq!(part[0].as_slice::<f32>().unwrap(), whole[0].as_slice::<f32>().unwrap());
            assert!(part[1].strings().unwrap() == whole[1].strings().unwrap());
            assert_eq!(part[1].shape(), whole[1].shape());
        }
    }

    #[test]
    fn what_cannot_be_merged_is_told() {
        let wide = floats(&[1, 3], &[0.0; 3]);
        let narrow = floats(&[1, 2], &[0.0; 2]);
        assert_ne!(bucket(std::slice::from_ref(&wide)), bucket(&[narrow]));
        assert_eq!(bucket(&[wide, floats(&[2, 3], &[0.0; 6])]), None, "rows disagree");
        assert_eq!(bucket(&[floats(&[0, 3], &[])]), None, "no rows");
        assert_eq!(bucket(&[Tensor::scalar(1.0f32)]), None);
        assert_eq!(bucket(&[Tensor::zeros(DType::I4, &[1, 3]).unwrap()]), None);
        assert!(split(&[floats(&[2], &[0.0; 2])], &[1, 2]).is_err(), "a row is missing");
    }
}
