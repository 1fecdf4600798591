//! Encoders: one value of a small set for another.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{StringsOut, by_dtype, floats, string_list};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;
use std::collections::HashMap;
use std::hash::Hash;

const UNUSED: &str = "_Unused";

/// A map from one element type to another, with a default.
struct Encoder {
    keys: Keys,
    values: Values,
}

/// Positions in the values, by key. The first of equal keys counts.
enum Keys {
    Strings(HashMap<Vec<u8>, usize>),
    Ints(HashMap<i64, usize>),
    /// By bits, with one pattern for zero; NaN is found only if `nan` says.
    Floats {
        map: HashMap<u64, usize>,
        nan: Option<usize>,
    },
}

enum Values {
    Strings {
        list: Vec<Vec<u8>>,
        default: Vec<u8>,
    },
    /// A rank-1 tensor, and one element for everything else.
    Numbers {
        list: Tensor,
        default: Tensor,
    },
}

fn first_positions<K: Hash + Eq>(keys: impl Iterator<Item = K>) -> HashMap<K, usize> {
    let mut map = HashMap::new();
    for (position, key) in keys.enumerate() {
        map.entry(key).or_insert(position);
    }
    map
}

/// Equal floats get equal bits.
fn float_bits(value: f64) -> u64 {
    if value == 0.0 { 0 } else { value.to_bits() }
}

impl Keys {
    fn len(&self) -> usize {
        match self {
            Self::Strings(map) => map.len(),
            Self::Ints(map) => map.len(),
            Self::Floats { map, nan } => map.len() + usize::from(nan.is_some()),
        }
    }

    fn from_floats(list: &[f64], finds_nan: bool) -> Self {
        let nan = list.iter().position(|key| key.is_nan()).filter(|_| finds_nan);
        let mut map = first_positions(list.iter().map(|&key| float_bits(key)));
        map.retain(|bits, _| !f64::from_bits(*bits).is_nan());
        Self::Floats { map, nan }
    }

    fn from_tensor(tensor: &Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::String => {
                Ok(Self::Strings(first_positions(string_list(tensor.strings()?).into_iter())))
            }
            DType::F32 | DType::F64 => {
                Ok(Self::from_floats(&crate::cpu::ops::layout::doubles(tensor)?, true))
            }
            dtype => {
                by_dtype!(dtype, [I64: i64, I32: i32, I16: i16, I8: i8, U8: u8, U16: u16, U32: u32], T => {
                    let keys = tensor.as_slice::<T>()?.iter().map(|&key| i64::from(key));
                    Ok(Self::Ints(first_positions(keys)))
                })
            }
        }
    }

    /// The position of every element of `input` among the keys.
    fn positions(&self, input: &Tensor) -> Result<Vec<Option<usize>>> {
        match self {
            Self::Strings(map) => {
                Ok(input.strings()?.iter().map(|item| map.get(item).copied()).collect())
            }
            Self::Ints(map) => {
                by_dtype!(input.dtype(), [I64: i64, I32: i32, I16: i16, I8: i8, U8: u8, U16: u16, U32: u32], T => {
                    let items = input.as_slice::<T>()?.iter();
                    Ok(items.map(|&item| map.get(&i64::from(item)).copied()).collect())
                })
            }
            Self::Floats { map, nan } => {
                let find = |item: f64| {
                    if item.is_nan() { *nan } else { map.get(&float_bits(item)).copied() }
                };
                by_dtype!(input.dtype(), [F32: f32, F64: f64], T => {
                    Ok(input.as_slice::<T>()?.iter().map(|&item| find(f64::from(item))).collect())
                })
            }
        }
    }
}

impl Encoder {
    fn boxed(keys: Keys, values: Values) -> Result<Box<dyn Operator>> {
        let count = match &values {
            Values::Strings { list, .. } => list.len(),
            Values::Numbers { list, .. } => list.len(),
        };
        if keys.len() > count {
            return Err(Error::invalid(format!("{} keys for {count} values", keys.len())));
        }
        Ok(Box::new(Self { keys, values }))
    }
}

impl Operator for Encoder {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let positions = self.keys.positions(input)?;
        let output = match &self.values {
            Values::Strings { list, default } => {
                let mut output = StringsOut::new(positions.len())?;
                for position in positions {
                    output.push(position.and_then(|at| list.get(at)).unwrap_or(default))?;
                }
                output.finish(input.shape())?
            }
            Values::Numbers { list, default } => {
                numbers(ctx, input.shape(), &positions, list, default)?
            }
        };
        Ok(smallvec![output.into()])
    }
}

fn numbers(
    ctx: &OpContext<'_>,
    shape: &[usize],
    positions: &[Option<usize>],
    list: &Tensor,
    default: &Tensor,
) -> Result<Tensor> {
    let mut output = ctx.allocate(list.dtype(), shape)?;
    by_dtype!(list.dtype(), [F32: f32, F64: f64, I64: i64, I32: i32, I16: i16, I8: i8, U8: u8], T => {
        let list = list.as_slice::<T>()?;
        let default = default.as_slice::<T>()?.first().copied();
        let default = default.ok_or_else(|| Error::invalid("the default is an empty tensor"))?;
        for (cell, position) in output.as_mut_slice::<T>()?.iter_mut().zip(positions) {
            *cell = position.and_then(|at| list.get(at).copied()).unwrap_or(default);
        }
        Ok(())
    })?;
    Ok(output)
}

fn list_tensor<T: mortise_types::Element>(values: Vec<T>) -> Result<Tensor> {
    Tensor::from_vec(&[values.len()], values)
}

/// Strings to integers or back, by the type of the input.
struct TwoWay {
    to_ints: Encoder,
    to_strings: Encoder,
}

impl TwoWay {
    fn boxed(
        attributes: &Attributes<'_>,
        strings: &[Vec<u8>],
        ints: Vec<i64>,
    ) -> Result<Box<dyn Operator>> {
        let default_string = attributes.text("default_string")?.unwrap_or(UNUSED);
        let default_int = attributes.int_or("default_int64", -1)?;
        Ok(Box::new(Self {
            to_strings: Encoder {
                keys: Keys::Ints(first_positions(ints.iter().copied())),
                values: Values::Strings {
                    list: strings.to_vec(),
                    default: default_string.as_bytes().to_vec(),
                },
            },
            to_ints: Encoder {
                keys: Keys::Strings(first_positions(strings.iter().cloned())),
                values: Values::Numbers {
                    list: list_tensor(ints)?,
                    default: Tensor::scalar(default_int),
                },
            },
        }))
    }
}

impl Operator for TwoWay {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        match inputs.tensor(0)?.dtype() {
            DType::String => self.to_ints.run(ctx, inputs),
            _ => self.to_strings.run(ctx, inputs),
        }
    }
}

pub(super) fn category_mapper(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let attributes = Attributes(node);
    let strings = attributes.texts("cats_strings")?.unwrap_or(&[]);
    let ints = attributes.ints("cats_int64s")?.unwrap_or(&[]);
    if strings.len() != ints.len() {
        return Err(Error::invalid("cats_strings and cats_int64s must have equal lengths"));
    }
    TwoWay::boxed(&attributes, strings, ints.to_vec())
}

pub(super) fn label_encoder_1(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let attributes = Attributes(node);
    let strings = attributes.texts("classes_strings")?.unwrap_or(&[]);
    TwoWay::boxed(&attributes, strings, (0..strings.len() as i64).collect())
}

pub(super) fn label_encoder_2(node: &NodeDef) -> Result<Box<dyn Operator>> {
    label_encoder(&Attributes(node), false)
}

pub(super) fn label_encoder_4(node: &NodeDef) -> Result<Box<dyn Operator>> {
    label_encoder(&Attributes(node), true)
}

fn label_encoder(attributes: &Attributes<'_>, newer: bool) -> Result<Box<dyn Operator>> {
    Encoder::boxed(encoder_keys(attributes, newer)?, encoder_values(attributes)?)
}

fn encoder_keys(attributes: &Attributes<'_>, finds_nan: bool) -> Result<Keys> {
    if let Some(tensor) = attributes.tensor("keys_tensor")? {
        return Keys::from_tensor(tensor);
    }
    if let Some(keys) = attributes.texts("keys_strings")?.filter(|keys| !keys.is_empty()) {
        return Ok(Keys::Strings(first_positions(keys.iter().cloned())));
    }
    if let Some(keys) = attributes.ints("keys_int64s")?.filter(|keys| !keys.is_empty()) {
        return Ok(Keys::Ints(first_positions(keys.iter().copied())));
    }
    match attributes.floats("keys_floats")?.filter(|keys| !keys.is_empty()) {
        Some(keys) => {
            let keys: Vec<f64> = keys.iter().map(|&key| f64::from(key)).collect();
            Ok(Keys::from_floats(&keys, finds_nan))
        }
        None => Err(Error::invalid("one of the keys_* attributes must have values")),
    }
}

fn encoder_values(attributes: &Attributes<'_>) -> Result<Values> {
    let default_tensor = attributes.tensor("default_tensor")?;
    if let Some(tensor) = attributes.tensor("values_tensor")? {
        return tensor_values(tensor, default_tensor);
    }
    if let Some(values) = attributes.texts("values_strings")?.filter(|list| !list.is_empty()) {
        let default = attributes.text("default_string")?.unwrap_or(UNUSED);
        let default = default.as_bytes().to_vec();
        return Ok(Values::Strings { list: values.to_vec(), default });
    }
    if let Some(values) = attributes.ints("values_int64s")?.filter(|list| !list.is_empty()) {
        let default = Tensor::scalar(attributes.int_or("default_int64", -1)?);
        return Ok(Values::Numbers { list: list_tensor(values.to_vec())?, default });
    }
    match attributes.floats("values_floats")?.filter(|list| !list.is_empty()) {
        Some(values) => {
            let default = Tensor::scalar(attributes.float_or("default_float", -0.0)?);
            Ok(Values::Numbers { list: list_tensor(values.to_vec())?, default })
        }
        None => Err(Error::invalid("one of the values_* attributes must have values")),
    }
}

fn tensor_values(values: &Tensor, default: Option<&Tensor>) -> Result<Values> {
    if values.dtype() == DType::String {
        let default = match default {
            Some(tensor) => string_list(tensor.strings()?).into_iter().next(),
            None => Some(UNUSED.as_bytes().to_vec()),
        };
        let default = default.ok_or_else(|| Error::invalid("the default is an empty tensor"))?;
        return Ok(Values::Strings { list: string_list(values.strings()?), default });
    }
    let default = match (default, values.dtype()) {
        (Some(tensor), _) => tensor.clone(),
        (None, DType::F32) => Tensor::scalar(-0.0f32),
        (None, DType::F64) => Tensor::scalar(-0.0f64),
        (None, DType::I64) => Tensor::scalar(-1i64),
        (None, DType::I32) => Tensor::scalar(-1i32),
        (None, DType::I16) => Tensor::scalar(-1i16),
        (None, dtype) => return Err(Error::unsupported(format!("values_tensor of {dtype}"))),
    };
    Ok(Values::Numbers { list: values.clone(), default })
}

/// A one in the place of the value among the categories.
pub(super) struct OneHotEncoder {
    keys: Keys,
    count: usize,
    /// Unknown values give zeros; without this they are an error.
    zeros: bool,
}

impl OneHotEncoder {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let zeros = attributes.int_or("zeros", 1)? != 0;
        if let Some(keys) = attributes.texts("cats_strings")?.filter(|keys| !keys.is_empty()) {
            let map = first_positions(keys.iter().cloned());
            return Ok(Box::new(Self { keys: Keys::Strings(map), count: keys.len(), zeros }));
        }
        let keys = attributes.ints("cats_int64s")?.unwrap_or(&[]);
        if keys.is_empty() {
            return Err(Error::invalid("one of cats_strings and cats_int64s must have values"));
        }
        let map = first_positions(keys.iter().copied());
        Ok(Box::new(Self { keys: Keys::Ints(map), count: keys.len(), zeros }))
    }

    fn positions(&self, input: &Tensor) -> Result<Vec<Option<usize>>> {
        match (&self.keys, input.dtype()) {
            // Fractions are cut off, as a C cast does.
            (Keys::Ints(map), DType::F32 | DType::F64 | DType::F16) => {
                let values = floats(input)?;
                Ok(values.iter().map(|&value| map.get(&(value as i64)).copied()).collect())
            }
            _ => self.keys.positions(input),
        }
    }
}

impl Operator for OneHotEncoder {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let positions = self.positions(input)?;
        if !self.zeros
            && let Some(unknown) = positions.iter().position(Option::is_none)
        {
            return Err(Error::invalid(format!(
                "element {unknown} is none of the encoder's categories"
            )));
        }
        let mut shape: Shape = input.shape().into();
        shape.push(self.count);
        let mut output = ctx.allocate(DType::F32, &shape)?;
        let cells = output.as_mut_slice::<f32>()?;
        cells.fill(0.0);
        for (row, position) in cells.chunks_exact_mut(self.count).zip(positions) {
            if let Some(at) = position {
                row[at] = 1.0;
            }
        }
        Ok(smallvec![output.into()])
    }
}
