//! The pipeline in plain code: for configurations that a graph cannot express,
//! and the reference that the graph is tested against. Numbers of `FP32`
//! columns are rounded to `f32` after every operation, as in the graph.

use crate::config::{Affine, Bins, Categories, Closed, Limits, Pipeline, Step, Unknown};
use crate::graph::working_dtype;
use mortise_plugin_sdk::{DType, Error, Result};

/// The values of one column, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    Numbers(Vec<f64>),
    Texts(Vec<Vec<u8>>),
    /// One-hot.
    Block {
        values: Vec<f32>,
        width: usize,
    },
}

/// A feature matrix, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Features {
    pub(crate) values: Vec<f32>,
    pub(crate) width: usize,
}

/// Runs all steps on the columns of one batch.
///
/// # Errors
/// [`Error::Invalid`] when the columns differ in length, or a value is no
/// category and `unknown` is `error`.
pub(crate) fn run(pipeline: &Pipeline, columns: Vec<Values>) -> Result<Features> {
    let rows = check_rows(pipeline, &columns)?;
    let mut state = State { pipeline, columns };
    for step in &pipeline.steps {
        state.step(step)?;
    }
    Ok(state.features(rows))
}

fn check_rows(pipeline: &Pipeline, columns: &[Values]) -> Result<usize> {
    let mut first = None;
    for (column, values) in pipeline.columns.iter().zip(columns) {
        let rows = values.len() / column.width;
        let (name, want) = *first.get_or_insert((&column.name, rows));
        if rows != want {
            return Err(Error::invalid(format!(
                "column \"{}\" has {rows} rows, \"{name}\" has {want}",
                column.name
            )));
        }
    }
    Ok(first.map_or(0, |(_, rows)| rows))
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Block { values, .. } => values.len(),
        }
    }
}

struct State<'a> {
    pipeline: &'a Pipeline,
    columns: Vec<Values>,
}

impl State<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::ImputeNumbers(columns) => {
                self.numbers(columns, |fill, x| if x.is_nan() { *fill } else { x })
            }
            Step::Clip(columns) => self.numbers(columns, |limits, x| clip(*limits, x)),
            Step::Scale(columns) => {
                self.numbers(columns, |Affine { shift, .. }, x| x - shift);
                self.numbers(columns, |Affine { divisor, .. }, x| x / divisor);
            }
            Step::Log { columns, plus_one } => {
                let columns: Vec<(usize, ())> =
                    columns.iter().map(|&column| (column, ())).collect();
                if *plus_one {
                    self.numbers(&columns, |(), x| x + 1.0);
                }
                self.numbers(&columns, |(), x| x.ln());
            }
            Step::ImputeTexts(columns) => self.impute_texts(columns),
            Step::OneHot(columns, unknown) => {
                for (column, categories) in columns {
                    self.one_hot(*column, categories, *unknown)?;
                }
            }
            Step::Bin(columns) => columns.iter().for_each(|(column, bins)| self.bin(*column, bins)),
        }
        Ok(())
    }

    fn numbers<P: Round>(&mut self, columns: &[(usize, P)], apply: impl Fn(&P, f64) -> f64) {
        for (column, parameter) in columns {
            let round = self.rounding(*column);
            let parameter = parameter.round(round);
            if let Values::Numbers(values) = &mut self.columns[*column] {
                values.iter_mut().for_each(|value| *value = round(apply(&parameter, *value)));
            }
        }
    }

    fn rounding(&self, column: usize) -> fn(f64) -> f64 {
        match working_dtype(self.pipeline.columns[column].dtype) {
            Some(DType::F32) => |value| f64::from(value as f32),
            _ => |value| value,
        }
    }

    fn impute_texts(&mut self, columns: &[(usize, String)]) {
        for (column, text) in columns {
            if let Values::Texts(values) = &mut self.columns[*column] {
                let empty = values.iter_mut().filter(|value| value.is_empty());
                empty.for_each(|value| *value = text.as_bytes().to_vec());
            }
        }
    }

    fn one_hot(&mut self, column: usize, categories: &Categories, unknown: Unknown) -> Result<()> {
        let round = self.rounding(column);
        let (indices, width): (Vec<Option<usize>>, usize) =
            match (&self.columns[column], categories) {
                (Values::Numbers(values), Categories::Numbers(known)) => {
                    let find = |value: &f64| known.iter().position(|known| round(*known) == *value);
                    (values.iter().map(find).collect(), known.len())
                }
                (Values::Texts(values), Categories::Texts(known)) => {
                    let find =
                        |value: &Vec<u8>| known.iter().position(|known| known.as_bytes() == value);
                    (values.iter().map(find).collect(), known.len())
                }
                _ => return Err(Error::failed("the configuration was not checked")),
            };
        if unknown == Unknown::Error
            && let Some(row) = indices.iter().position(Option::is_none)
        {
            return Err(self.unknown_category(column, row, categories));
        }
        let mut values = vec![0.0; indices.len() * width];
        for (row, index) in values.chunks_mut(width).zip(indices) {
            if let Some(index) = index {
                row[index] = 1.0;
            }
        }
        self.columns[column] = Values::Block { values, width };
        Ok(())
    }

    fn unknown_category(&self, column: usize, row: usize, categories: &Categories) -> Error {
        let name = &self.pipeline.columns[column].name;
        let value = match &self.columns[column] {
            Values::Numbers(values) => values[row].to_string(),
            Values::Texts(values) => format!("{:?}", String::from_utf8_lossy(&values[row])),
            Values::Block { .. } => String::new(),
        };
        let known = match categories {
            Categories::Numbers(known) => format!("{known:?}"),
            Categories::Texts(known) => format!("{known:?}"),
        };
        Error::invalid(format!(
            "column \"{name}\", row {row}: {value} is not one of its categories {known}"
        ))
    }

    fn bin(&mut self, column: usize, bins: &Bins) {
        let round = self.rounding(column);
        if let Values::Numbers(values) = &self.columns[column] {
            let label = |&value: &f64| label_of(bins, round, value);
            self.columns[column] = Values::Texts(values.iter().map(label).collect());
        }
    }

    fn features(&self, rows: usize) -> Features {
        let parts: Vec<(Vec<f32>, usize)> =
            self.pipeline.output_columns.iter().map(|&column| self.part(column)).collect();
        let width = parts.iter().map(|(_, width)| width).sum();
        let mut values = Vec::with_capacity(rows * width);
        for row in 0..rows {
            for (part, width) in &parts {
                values.extend_from_slice(&part[row * width..(row + 1) * width]);
            }
        }
        Features { values, width }
    }

    fn part(&self, column: usize) -> (Vec<f32>, usize) {
        match &self.columns[column] {
            Values::Numbers(values) => {
                let width = self.pipeline.columns[column].width;
                (values.iter().map(|&value| value as f32).collect(), width)
            }
            Values::Block { values, width } => (values.clone(), *width),
            // The checks of the configuration leave no text at the end.
            Values::Texts(_) => (Vec::new(), 0),
        }
    }
}

fn label_of(bins: &Bins, round: fn(f64) -> f64, value: f64) -> Vec<u8> {
    if value.is_nan() {
        return Vec::new();
    }
    let is_passed = |edge: &&f64| match bins.closed {
        Closed::Left => value >= round(**edge),
        Closed::Right => value > round(**edge),
    };
    let index = bins.edges.iter().filter(is_passed).count();
    bins.labels.get(index).map(|label| label.as_bytes().to_vec()).unwrap_or_default()
}

/// NaN stays NaN.
fn clip(limits: Limits, x: f64) -> f64 {
    if x < limits.min {
        limits.min
    } else if x > limits.max {
        limits.max
    } else {
        x
    }
}

/// Parameters are rounded to the width of their column before they are used.
trait Round {
    fn round(&self, round: fn(f64) -> f64) -> Self;
}

impl Round for f64 {
    fn round(&self, round: fn(f64) -> f64) -> Self {
        round(*self)
    }
}

impl Round for () {
    fn round(&self, _: fn(f64) -> f64) -> Self {}
}

impl Round for Affine {
    fn round(&self, round: fn(f64) -> f64) -> Self {
        Self { shift: round(self.shift), divisor: round(self.divisor) }
    }
}

impl Round for Limits {
    fn round(&self, round: fn(f64) -> f64) -> Self {
        Self { min: round(self.min), max: round(self.max) }
    }
}
