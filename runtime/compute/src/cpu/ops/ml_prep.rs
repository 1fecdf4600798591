//! The feature preparation of `ai.onnx.ml`: scalers, encoders, imputers.

mod encoders;
mod maps;

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{copy_blocks, element_count, floats, index, integers};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "ArrayFeatureExtractor", since: 1, build: |_| Ok(Box::new(FeatureExtractor)) },
    Entry { op: "Binarizer", since: 1, build: Binarizer::build },
    Entry { op: "CastMap", since: 1, build: maps::CastMap::build },
    Entry { op: "CategoryMapper", since: 1, build: encoders::category_mapper },
    Entry { op: "DictVectorizer", since: 1, build: maps::DictVectorizer::build },
    Entry { op: "FeatureVectorizer", since: 1, build: FeatureVectorizer::build },
    Entry { op: "Imputer", since: 1, build: Imputer::build },
    Entry { op: "LabelEncoder", since: 1, build: encoders::label_encoder_1 },
    Entry { op: "LabelEncoder", since: 2, build: encoders::label_encoder_2 },
    Entry { op: "LabelEncoder", since: 4, build: encoders::label_encoder_4 },
    Entry { op: "Normalizer", since: 1, build: Normalizer::build },
    Entry { op: "OneHotEncoder", since: 1, build: encoders::OneHotEncoder::build },
    Entry { op: "Scaler", since: 1, build: Scaler::build },
    Entry { op: "ZipMap", since: 1, build: maps::ZipMap::build },
];

/// `(x - offset) * scale`, one pair or one per column.
struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

impl Scaler {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let offset = attributes.floats("offset")?.unwrap_or(&[]).to_vec();
        let scale = attributes.floats("scale")?.unwrap_or(&[]).to_vec();
        if offset.is_empty() || offset.len() != scale.len() {
            return Err(Error::invalid(format!(
                "offset and scale must have equal lengths, got {} and {}",
                offset.len(),
                scale.len()
            )));
        }
        Ok(Box::new(Self { offset, scale }))
    }
}

/// The number of columns by which per-column attributes go round.
fn column_count(input: &Tensor) -> Result<usize> {
    match *input.shape() {
        [] => Err(Error::invalid("expected at least one dimension, got a scalar")),
        [columns] | [_, columns, ..] => Ok(columns),
    }
}

impl Operator for Scaler {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let columns = column_count(input)?;
        let count = self.scale.len();
        if count != 1 && count != columns {
            return Err(Error::invalid(format!(
                "{count} scales do not fit {columns} columns: give one, or one per column"
            )));
        }
        let mut output = ctx.allocate(DType::F32, input.shape())?;
        let cells = output.as_mut_slice::<f32>()?;
        let values = floats(input)?;
        for (line, row) in cells.chunks_mut(count).zip(values.chunks(count)) {
            for (((cell, value), offset), scale) in
                line.iter_mut().zip(row).zip(&self.offset).zip(&self.scale)
            {
                *cell = (value - offset) * scale;
            }
        }
        Ok(smallvec![output.into()])
    }
}

/// Rows divided by their largest value, sum of magnitudes or length. A row
/// for which that is zero stays.
struct Normalizer(Norm);

#[derive(Clone, Copy)]
enum Norm {
    Max,
    L1,
    L2,
}

impl Normalizer {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let norm = match Attributes(node).text("norm")?.unwrap_or("MAX") {
            "MAX" => Norm::Max,
            "L1" => Norm::L1,
            "L2" => Norm::L2,
            other => return Err(Error::unsupported(format!("norm \"{other}\""))),
        };
        Ok(Box::new(Self(norm)))
    }

    fn divisor(&self, values: impl Iterator<Item = f32>) -> f32 {
        match self.0 {
            Norm::Max => values.fold(f32::MIN, |max, value| if max < value { value } else { max }),
            Norm::L1 => values.map(f32::abs).sum(),
            Norm::L2 => values.map(|value| value * value).sum::<f32>().sqrt(),
        }
    }
}

impl Operator for Normalizer {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let columns = column_count(input)?;
        // Columns are dimension 1; what comes after it are separate rows.
        let step: usize = input.shape().iter().skip(2).product();
        let values = floats(input)?;
        let mut output = ctx.allocate(DType::F32, input.shape())?;
        let cells = output.as_mut_slice::<f32>()?;
        let span = columns * step;
        if span == 0 {
            return Ok(smallvec![output.into()]);
        }
        for (line, row) in cells.chunks_exact_mut(span).zip(values.chunks_exact(span)) {
            for first in 0..step {
                let divisor = self.divisor(row[first..].iter().step_by(step).copied());
                let pairs = line[first..].iter_mut().zip(&row[first..]).step_by(step);
                for (cell, value) in pairs {
                    *cell = if divisor == 0.0 { *value } else { value / divisor };
                }
            }
        }
        Ok(smallvec![output.into()])
    }
}

/// 1 above the threshold, else 0.
struct Binarizer(f32);

impl Binarizer {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).float_or("threshold", 0.0)?)))
    }
}

impl Operator for Binarizer {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let values = floats(input)?;
        if let Some(position) = values.iter().position(|value| value.is_nan()) {
            return Err(Error::invalid(format!("Binarizer got NaN at element {position}")));
        }
        let mut output = ctx.allocate(DType::F32, input.shape())?;
        for (cell, &value) in output.as_mut_slice::<f32>()?.iter_mut().zip(values.iter()) {
            *cell = if value > self.0 { 1.0 } else { 0.0 };
        }
        Ok(smallvec![output.into()])
    }
}

/// Puts a value in the place of missing ones.
enum Imputer {
    Floats { values: Vec<f32>, replaced: f32 },
    Ints { values: Vec<i64>, replaced: i64 },
}

impl Imputer {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        if let Some(values) = attributes.floats("imputed_value_floats")?.filter(|v| !v.is_empty()) {
            let replaced = attributes.float_or("replaced_value_float", 0.0)?;
            return Ok(Box::new(Self::Floats { values: values.to_vec(), replaced }));
        }
        match attributes.ints("imputed_value_int64s")?.filter(|values| !values.is_empty()) {
            Some(values) => {
                let replaced = attributes.int_or("replaced_value_int64", 0)?;
                Ok(Box::new(Self::Ints { values: values.to_vec(), replaced }))
            }
            None => Err(Error::invalid(
                "one of imputed_value_floats and imputed_value_int64s must have values",
            )),
        }
    }
}

fn impute<T: mortise_types::Element>(
    ctx: &OpContext<'_>,
    input: &Tensor,
    values: &[T],
    is_missing: impl Fn(T) -> bool,
) -> Result<Tensor> {
    let columns = column_count(input)?;
    let count = if values.len() == columns { columns } else { 1 };
    let mut output = ctx.allocate(T::DTYPE, input.shape())?;
    let cells = output.as_mut_slice::<T>()?;
    if cells.is_empty() {
        return Ok(output);
    }
    for (line, row) in cells.chunks_mut(count).zip(input.as_slice::<T>()?.chunks(count)) {
        for ((cell, &value), &imputed) in line.iter_mut().zip(row).zip(values) {
            *cell = if is_missing(value) { imputed } else { value };
        }
    }
    Ok(output)
}

impl Operator for Imputer {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let output = match self {
            Self::Floats { values, replaced } if input.dtype() == DType::F64 => {
                let values: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
                let replaced = f64::from(*replaced);
                impute(ctx, input, &values, |x: f64| {
                    x == replaced || (x.is_nan() && replaced.is_nan())
                })?
            }
            Self::Floats { values, replaced } => impute(ctx, input, values, |x: f32| {
                x == *replaced || (x.is_nan() && replaced.is_nan())
            })?,
            Self::Ints { values, replaced } => impute(ctx, input, values, |x| x == *replaced)?,
        };
        Ok(smallvec![output.into()])
    }
}

/// Picks columns of the last dimension.
struct FeatureExtractor;

impl Operator for FeatureExtractor {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let columns = integers(inputs.tensor(1)?)?;
        let Some((&width, outer)) = input.shape().split_last() else {
            return Err(Error::invalid("expected at least one dimension, got a scalar"));
        };
        if columns.is_empty() {
            return Err(Error::invalid("the list of columns is empty"));
        }
        for &column in columns.iter().filter(|&&column| column < 0) {
            index(column, 0)?;
        }
        let mut shape: Shape = if outer.is_empty() { smallvec![1] } else { outer.into() };
        shape.push(columns.len());
        let output = copy_blocks(ctx, input, &shape, 1, |cell| {
            let column = index(columns[cell % columns.len()], width)?;
            Ok(cell / columns.len() * width + column)
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Puts matrices side by side, each cut or padded with zeros to its width.
struct FeatureVectorizer(Vec<usize>);

impl FeatureVectorizer {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let widths = Attributes(node).ints("inputdimensions")?.unwrap_or(&[]);
        let widths = crate::cpu::ops::layout::dims(widths)?;
        if widths.len() != node.inputs.len() {
            return Err(Error::invalid(format!(
                "inputdimensions lists {} widths for {} inputs",
                widths.len(),
                node.inputs.len()
            )));
        }
        Ok(Box::new(Self(widths.to_vec())))
    }
}

impl Operator for FeatureVectorizer {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let row_count = |input: &Tensor| match *input.shape() {
            [] | [_] => 1,
            [rows, ..] => rows,
        };
        let rows = row_count(inputs.tensor(0)?);
        let total = self.0.iter().try_fold(0usize, |sum, &width| sum.checked_add(width));
        let total = total.ok_or_else(|| Error::invalid("inputdimensions overflow"))?;
        let mut output = ctx.allocate(DType::F32, &[rows, total])?;
        let cells = output.as_mut_slice::<f32>()?;
        cells.fill(0.0);
        let mut start = 0;
        for (position, &width) in self.0.iter().enumerate() {
            let input = inputs.tensor(position)?;
            if row_count(input) != rows {
                return Err(Error::invalid(format!(
                    "input {position} has {} rows, input 0 has {rows}",
                    row_count(input)
                )));
            }
            let values = floats(input)?;
            let columns = element_count(input.shape())? / rows.max(1);
            let used = width.min(columns);
            if used > 0 {
                let lines = cells.chunks_exact_mut(total).zip(values.chunks_exact(columns));
                for (line, row) in lines {
                    line[start..start + used].copy_from_slice(&row[..used]);
                }
            }
            start += width;
        }
        Ok(smallvec![output.into()])
    }
}
