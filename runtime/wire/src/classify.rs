//! The classification extension: an output as its highest values.

use mortise_types::{DType, Element, Error, Result, StringsBuilder, Tensor, bf16, f16};
use std::cmp::Ordering;
use std::fmt::Write as _;

/// The `count` highest values of each row, highest first, as `value:index`
/// strings of shape `[rows, count]`. Dimension 0 counts the rows and the other
/// dimensions are read as one; a tensor of one dimension is a single row and
/// gives `[count]`. Of equal values the lower index comes first; NaN comes
/// last. Fractions have six digits. `count` is cut to the length of a row.
///
/// # Errors
/// When the tensor holds no numbers.
pub fn top(tensor: &Tensor, count: usize) -> Result<Tensor> {
    match tensor.dtype() {
        DType::U8 => rows::<u8>(tensor, count, whole),
        DType::U16 => rows::<u16>(tensor, count, whole),
        DType::U32 => rows::<u32>(tensor, count, whole),
        DType::U64 => rows::<u64>(tensor, count, whole),
        DType::I8 => rows::<i8>(tensor, count, whole),
        DType::I16 => rows::<i16>(tensor, count, whole),
        DType::I32 => rows::<i32>(tensor, count, whole),
        DType::I64 => rows::<i64>(tensor, count, whole),
        DType::F16 => rows::<f16>(tensor, count, |out, value| fraction(out, value.to_f64())),
        DType::BF16 => rows::<bf16>(tensor, count, |out, value| fraction(out, value.to_f64())),
        DType::F32 => rows::<f32>(tensor, count, |out, value| fraction(out, value.into())),
        DType::F64 => rows::<f64>(tensor, count, fraction),
        other => Err(Error::invalid(format!("classification takes numbers, this is {other}"))),
    }
}

fn whole<T: std::fmt::Display>(out: &mut String, value: T) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{value}");
}

fn fraction(out: &mut String, value: f64) {
    let _ = write!(out, "{value:.6}");
}

fn rows<T: Element>(
    tensor: &Tensor,
    count: usize,
    print: impl Fn(&mut String, T),
) -> Result<Tensor> {
    let values = tensor.as_slice::<T>()?;
    let row_count = if tensor.rank() > 1 { tensor.shape()[0] } else { 1 };
    let row_length = values.len().checked_div(row_count).unwrap_or(0);
    let count = count.min(row_length);
    let mut strings = StringsBuilder::default();
    let mut text = String::new();
    if row_length > 0 {
        for row in values.chunks_exact(row_length) {
            for index in highest(row, count) {
                text.clear();
                print(&mut text, row[index]);
                let _ = write!(text, ":{index}");
                strings.push(text.as_bytes());
            }
        }
    }
    let shape: &[usize] = if tensor.rank() > 1 { &[row_count, count] } else { &[count] };
    Tensor::from_strings(shape, strings.finish())
}

/// Indices of the `count` highest values, highest first.
fn highest<T: Element>(row: &[T], count: usize) -> Vec<usize> {
    let order = |&a: &usize, &b: &usize| descending(&row[a], &row[b]).then(a.cmp(&b));
    let mut indices: Vec<usize> = (0..row.len()).collect();
    if count > 0 && count < indices.len() {
        indices.select_nth_unstable_by(count - 1, order);
    }
    indices.truncate(count);
    indices.sort_unstable_by(order);
    indices
}

fn descending<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    // Only a NaN differs from itself; it comes after every number.
    let is_nan = |value: &T| value.partial_cmp(value).is_none();
    b.partial_cmp(a).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Element>(shape: &[usize], values: &[T], count: usize, want: &[&str]) {
        let tensor = Tensor::from_vec(shape, values.to_vec()).unwrap();
        let top = top(&tensor, count).unwrap();
        let strings = top.strings().unwrap();
        let got: Vec<&str> =
            strings.iter().map(|item| std::str::from_utf8(item).unwrap()).collect();
        assert_eq!(got, want);
        assert_eq!(top.len(), want.len());
    }

    #[test]
    fn highest_first_ties_by_index_nan_last() {
        check(&[4], &[1i64, 5, 10, 4], 2, &["10:2", "5:1"]);
        check(&[1, 3], &[0.1f32, 0.899993, 0.1], 3, &["0.899993:1", "0.100000:0", "0.100000:2"]);
        check(&[2, 2], &[1u8, 2, 4, 3], 1, &["2:1", "4:0"]);
        check(&[3], &[f32::NAN, 1.0, f32::INFINITY], 9, &["inf:2", "1.000000:1", "NaN:0"]);
        check::<f64>(&[0, 3], &[], 2, &[]);
        check::<f64>(&[2, 0], &[], 2, &[]);
        check(&[], &[3.0f64], 1, &["3.000000:0"]);
    }
}
