//! Whether two tensors are the same, by the rule of ONNX's own test runner:
//! numbers within a tolerance, everything else exactly.

use mortise_types::{DType, Element, Tensor, bf16, f16};

#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) relative: f64,
    pub(crate) absolute: f64,
}

/// What differs; `None` when nothing does.
pub(crate) fn difference(got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Option<String> {
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        return Some(format!("got {got:?}, expected {want:?}"));
    }
    if let (Ok(got), Ok(want)) = (got.strings(), want.strings()) {
        return (got != want).then(|| "the strings differ".to_owned());
    }
    let (got, want) = (numbers(got), numbers(want));
    let near = |(got, want): &(&f64, &f64)| {
        let bound = tolerance.absolute + tolerance.relative * want.abs();
        got == want || (got.is_nan() && want.is_nan()) || (*got - *want).abs() <= bound
    };
    let far = |at: usize| format!("element {at} is {}, expected {}", got[at], want[at]);
    got.iter().zip(&want).position(|pair| !near(&pair)).map(far)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::U8 => wide(tensor, |x: u8| x.into()),
        DType::U16 => wide(tensor, |x: u16| x.into()),
        DType::U32 => wide(tensor, |x: u32| x.into()),
        DType::U64 => wide(tensor, |x: u64| x as f64),
        DType::I8 => wide(tensor, |x: i8| x.into()),
        DType::I16 => wide(tensor, |x: i16| x.into()),
        DType::I32 => wide(tensor, |x: i32| x.into()),
        DType::I64 => wide(tensor, |x: i64| x as f64),
        DType::F16 => wide(tensor, f16::to_f64),
        DType::BF16 => wide(tensor, bf16::to_f64),
        DType::F32 => wide(tensor, |x: f32| x.into()),
        DType::F64 => wide(tensor, |x: f64| x),
        narrow => codes(narrow, tensor.bytes().unwrap_or_default()),
    }
}

fn wide<T: Element>(tensor: &Tensor, convert: impl Fn(T) -> f64) -> Vec<f64> {
    tensor.as_slice::<T>().unwrap_or_default().iter().map(|&value| convert(value)).collect()
}

/// Booleans and narrow types are compared by their codes, all of whose NaNs
/// are one. A code that is not in the tolerance's reach is another number.
fn codes(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let is_nan = |code: u8| match dtype {
        DType::F8E4M3FN => code & 0x7f == 0x7f,
        DType::F8E5M2 => code & 0x7f > 0x7c,
        DType::F8E4M3FNUZ | DType::F8E5M2FNUZ => code == 0x80,
        DType::F8E8M0 => code == 0xff,
        _ => false,
    };
    bytes.iter().map(|&code| if is_nan(code) { f64::NAN } else { f64::from(code) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_types_and_shapes_count() {
        let tensor = |values: &[f32]| Tensor::from_vec(&[values.len()], values.to_vec()).unwrap();
        let loose = Tolerance { relative: 0.1, absolute: 0.0 };
        let same = |a: &Tensor, b: &Tensor| difference(a, b, loose).is_none();
        assert!(same(&tensor(&[1.0, f32::NAN]), &tensor(&[1.05, f32::NAN])));
        assert!(same(&tensor(&[f32::INFINITY]), &tensor(&[f32::INFINITY])));
        assert!(!same(&tensor(&[f32::INFINITY]), &tensor(&[1.0])));
        assert!(!same(&tensor(&[1.0]), &tensor(&[1.2])));
        assert!(!same(&tensor(&[1.0]), &tensor(&[f32::NAN])));
        assert!(!same(&tensor(&[1.0]), &tensor(&[1.0, 1.0])));
        assert!(!same(&tensor(&[1.0]), &Tensor::from_vec(&[1], vec![1.0f64]).unwrap()));
    }
}
