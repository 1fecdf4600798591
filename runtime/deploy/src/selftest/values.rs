//! JSON values to tensors, and tensors to numbers that can be compared.

use mortise_types::{DType, Error, Result, Strings, Tensor, TensorSpec, bf16, f16};
use serde_json::Value;
use std::collections::BTreeMap;

/// Tensors with their names.
pub(crate) type Named = Vec<(String, Tensor)>;

/// Values with their names, as written in a test file.
pub(super) type Written = BTreeMap<String, Value>;

/// What is written for some inputs or outputs, as tensors of the declared types.
///
/// # Errors
/// When a name is not declared, or a value does not fit.
pub(super) fn tensors(written: &Written, specs: &[TensorSpec]) -> Result<Named> {
    let read = |(name, value): (&String, &Value)| {
        let spec = find(specs, name)?;
        let tensor = tensor(value, spec)
            .map_err(|error| error.context(format_args!("\"{name}\" ({spec})")))?;
        Ok((name.clone(), tensor))
    };
    written.iter().map(read).collect()
}

pub(super) fn find<'a>(specs: &'a [TensorSpec], name: &str) -> Result<&'a TensorSpec> {
    specs.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        Error::invalid(format!("the endpoint has no \"{name}\"; it has {names:?}"))
    })
}

fn tensor(value: &Value, spec: &TensorSpec) -> Result<Tensor> {
    let mut shape = Vec::new();
    let mut leaves = Vec::new();
    flatten(value, 0, &mut shape, &mut leaves)?;
    let tensor = from_leaves(spec.dtype, &shape, &leaves)?;
    spec.check_shape(tensor.shape())?;
    Ok(tensor)
}

/// Collects the leaves of nested arrays, row by row, and their common shape.
fn flatten<'a>(
    value: &'a Value,
    depth: usize,
    shape: &mut Vec<usize>,
    leaves: &mut Vec<&'a Value>,
) -> Result<()> {
    let Value::Array(items) = value else {
        return match shape.len() == depth {
            true => {
                leaves.push(value);
                Ok(())
            }
            false => Err(Error::invalid("some rows are nested deeper than others")),
        };
    };
    match shape.get(depth) {
        // Deeper levels are first seen on the way down to the first leaf.
        None if leaves.is_empty() => shape.push(items.len()),
        Some(&length) if length == items.len() => {}
        _ => return Err(Error::invalid("rows differ in length")),
    }
    items.iter().try_for_each(|item| flatten(item, depth + 1, shape, leaves))
}

macro_rules! from_numbers {
    ($leaves:expr, $shape:expr, $number:ident as $ty:ty) => {{
        let values: Result<Vec<$ty>> = $leaves
            .iter()
            .map(|leaf| {
                let number = $number(leaf)?;
                <$ty>::try_from(number).map_err(|_| {
                    Error::invalid(format!("{number} does not fit {}", stringify!($ty)))
                })
            })
            .collect();
        Tensor::from_vec($shape, values?)
    }};
}

/// A tensor of `dtype` from JSON scalars.
///
/// # Errors
/// When one is of another type, or out of range.
pub(super) fn from_leaves(dtype: DType, shape: &[usize], leaves: &[&Value]) -> Result<Tensor> {
    let floats = || leaves.iter().map(|leaf| float(leaf)).collect::<Result<Vec<f64>>>();
    let map = |values: Vec<f64>, to: fn(f64) -> f32| values.into_iter().map(to).collect();
    match dtype {
        DType::F64 => Tensor::from_vec(shape, floats()?),
        DType::F32 => Tensor::from_vec::<f32>(shape, map(floats()?, |value| value as f32)),
        DType::F16 => {
            Tensor::from_vec(shape, floats()?.into_iter().map(f16::from_f64).collect::<Vec<_>>())
        }
        DType::BF16 => {
            Tensor::from_vec(shape, floats()?.into_iter().map(bf16::from_f64).collect::<Vec<_>>())
        }
        DType::I8 => from_numbers!(leaves, shape, integer as i8),
        DType::I16 => from_numbers!(leaves, shape, integer as i16),
        DType::I32 => from_numbers!(leaves, shape, integer as i32),
        DType::I64 => from_numbers!(leaves, shape, integer as i64),
        DType::U8 => from_numbers!(leaves, shape, integer as u8),
        DType::U16 => from_numbers!(leaves, shape, integer as u16),
        DType::U32 => from_numbers!(leaves, shape, integer as u32),
        DType::U64 => from_numbers!(leaves, shape, integer as u64),
        DType::Bool => {
            let values = leaves.iter().map(|leaf| boolean(leaf)).collect::<Result<_>>()?;
            Tensor::from_bools(shape, values)
        }
        DType::String => {
            let texts = leaves.iter().map(|leaf| text(leaf)).collect::<Result<Vec<&str>>>()?;
            Tensor::from_strings(shape, texts.into_iter().collect::<Strings>())
        }
        other => Err(Error::unsupported(format!("tests cannot write values of type {other}"))),
    }
}

fn float(leaf: &Value) -> Result<f64> {
    match leaf {
        Value::Number(number) => number.as_f64(),
        // What JSON and TOML readers make of a missing number.
        Value::Null => Some(f64::NAN),
        Value::String(text) => match text.trim() {
            "nan" | "NaN" => Some(f64::NAN),
            "inf" => Some(f64::INFINITY),
            "-inf" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
    .ok_or_else(|| not_a("number", leaf))
}

fn integer(leaf: &Value) -> Result<i128> {
    let whole = |value: f64| (value.fract() == 0.0).then_some(value as i128);
    match leaf {
        Value::Number(number) => number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from))
            .or_else(|| number.as_f64().and_then(whole)),
        _ => None,
    }
    .ok_or_else(|| not_a("whole number", leaf))
}

fn boolean(leaf: &Value) -> Result<u8> {
    match leaf {
        Value::Bool(value) => Ok(u8::from(*value)),
        _ => match integer(leaf)? {
            0 => Ok(0),
            1 => Ok(1),
            _ => Err(not_a("boolean", leaf)),
        },
    }
}

fn text(leaf: &Value) -> Result<&str> {
    leaf.as_str().ok_or_else(|| not_a("string", leaf))
}

fn not_a(what: &str, leaf: &Value) -> Error {
    Error::invalid(format!("{leaf} is not a {what}"))
}

/// The elements as numbers; `None` for strings and for types that do not cross
/// the wire.
pub(super) fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    fn widen<T: mortise_types::Element>(
        tensor: &Tensor,
        to: impl Fn(T) -> f64,
    ) -> Option<Vec<f64>> {
        Some(tensor.as_slice::<T>().ok()?.iter().map(|&value| to(value)).collect())
    }
    match tensor.dtype() {
        DType::F64 => widen::<f64>(tensor, |value| value),
        DType::F32 => widen::<f32>(tensor, f64::from),
        DType::F16 => widen::<f16>(tensor, f64::from),
        DType::BF16 => widen::<bf16>(tensor, f64::from),
        DType::I8 => widen::<i8>(tensor, f64::from),
        DType::I16 => widen::<i16>(tensor, f64::from),
        DType::I32 => widen::<i32>(tensor, f64::from),
        DType::I64 => widen::<i64>(tensor, |value| value as f64),
        DType::U8 => widen::<u8>(tensor, f64::from),
        DType::U16 => widen::<u16>(tensor, f64::from),
        DType::U32 => widen::<u32>(tensor, f64::from),
        DType::U64 => widen::<u64>(tensor, |value| value as f64),
        DType::Bool => {
            Some(tensor.bool_bytes().ok()?.iter().map(|&byte| f64::from(byte)).collect())
        }
        _ => None,
    }
}

/// A tensor like this one with every element moved by `step`.
pub(super) fn moved(tensor: &Tensor, step: impl Fn(f64) -> f64) -> Result<Tensor> {
    let values = numbers(tensor).unwrap_or_default().into_iter().map(step);
    match tensor.dtype() {
        DType::F64 => Tensor::from_vec(tensor.shape(), values.collect::<Vec<_>>()),
        DType::F32 => {
            Tensor::from_vec(tensor.shape(), values.map(|value| value as f32).collect::<Vec<_>>())
        }
        DType::F16 => {
            Tensor::from_vec(tensor.shape(), values.map(f16::from_f64).collect::<Vec<_>>())
        }
        DType::BF16 => {
            Tensor::from_vec(tensor.shape(), values.map(bf16::from_f64).collect::<Vec<_>>())
        }
        other => Err(Error::invalid(format!("cannot perturb values of type {other}"))),
    }
}

/// Where two tensors differ most: `(index, difference)` in units that
/// `distance` gives; `None` when they agree everywhere. Strings differ by
/// infinity.
pub(super) fn furthest(
    left: &Tensor,
    right: &Tensor,
    distance: impl Fn(f64, f64) -> f64,
) -> Option<(usize, f64)> {
    let distances: Vec<f64> = match (numbers(left), numbers(right)) {
        (Some(left), Some(right)) => {
            left.into_iter().zip(right).map(|(left, right)| distance(left, right)).collect()
        }
        _ => texts_differ(left, right),
    };
    let worst = distances.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    worst.filter(|(_, distance)| *distance > 0.0)
}

fn texts_differ(left: &Tensor, right: &Tensor) -> Vec<f64> {
    let (Ok(left), Ok(right)) = (left.strings(), right.strings()) else {
        return vec![f64::INFINITY];
    };
    let differ = |(left, right): (&[u8], &[u8])| if left == right { 0.0 } else { f64::INFINITY };
    left.iter().zip(right.iter()).map(differ).collect()
}

/// Difference of two numbers; NaN equals NaN, and differs from all else by
/// infinity.
pub(super) fn difference(left: f64, right: f64) -> f64 {
    match (left.is_nan(), right.is_nan()) {
        (true, true) => 0.0,
        (false, false) if left == right => 0.0,
        (false, false) => (left - right).abs(),
        _ => f64::INFINITY,
    }
}

/// One element for a message.
pub(super) fn show(tensor: &Tensor, index: usize) -> String {
    if let Ok(strings) = tensor.strings() {
        let text = strings.iter().nth(index).unwrap_or_default();
        return format!("\"{}\"", String::from_utf8_lossy(text));
    }
    let value = numbers(tensor).and_then(|values| values.get(index).copied());
    value.map_or_else(|| "nothing".to_string(), |value| value.to_string())
}

/// `[2, 0]`, the position of a row-major index.
pub(super) fn position(shape: &[usize], index: usize) -> String {
    let mut rest = index;
    let mut position: Vec<usize> = Vec::with_capacity(shape.len());
    for &dim in shape.iter().rev() {
        position.push(rest % dim.max(1));
        rest /= dim.max(1);
    }
    position.reverse();
    format!("{position:?}")
}
