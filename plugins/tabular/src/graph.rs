//! The pipeline as a graph. Numbers of one width lie side by side in a matrix,
//! so that a step is a few operators however many columns it touches; columns
//! that a step leaves alone get parameters that change nothing.

use crate::config::{Affine, Bins, Categories, Closed, Column, Limits, Pipeline, Step};
use mortise_plugin_sdk::{DType, Graph, GraphBuilder, Result, Tensor, Value};

/// # Errors
/// When the host refuses the graph.
pub(crate) fn build(pipeline: &Pipeline) -> Result<Graph> {
    let graph = GraphBuilder::new();
    let mut state = State::new(&graph, pipeline)?;
    for step in &pipeline.steps {
        state.step(step)?;
    }
    let features = state.output(&pipeline.output_columns)?;
    graph.output(&pipeline.output_name, features)?;
    graph.finish()
}

/// Where a column is at some point of the pipeline.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Columns of a matrix, from `index`.
    Matrix { matrix: usize, index: usize, width: usize },
    /// `[rows, 1]` strings.
    Text(Value),
    /// `[rows, categories]` of `FP32`.
    Block(Value),
}

/// Numbers of one width: `[rows, width]`.
struct Matrix {
    value: Value,
    dtype: DType,
    width: usize,
}

struct State<'a> {
    graph: &'a GraphBuilder,
    matrices: Vec<Matrix>,
    places: Vec<Place>,
}

impl<'a> State<'a> {
    fn new(graph: &'a GraphBuilder, pipeline: &Pipeline) -> Result<Self> {
        let mut inputs = Vec::new();
        for column in &pipeline.columns {
            inputs.push((graph.input(&column.spec())?, column));
        }
        let mut state = Self { graph, matrices: Vec::new(), places: Vec::new() };
        state.places = inputs.iter().map(|&(value, _)| Place::Text(value)).collect();
        for dtype in [DType::F32, DType::F64] {
            state.gather_inputs(&inputs, dtype)?;
        }
        Ok(state)
    }

    /// Puts the inputs that are computed as `dtype` into one matrix.
    fn gather_inputs(&mut self, inputs: &[(Value, &Column)], dtype: DType) -> Result<()> {
        let matrix = self.matrices.len();
        let (mut parts, mut index) = (Vec::new(), 0);
        for (place, &(value, column)) in self.places.iter_mut().zip(inputs) {
            if working_dtype(column.dtype) != Some(dtype) {
                continue;
            }
            *place = Place::Matrix { matrix, index, width: column.width };
            index += column.width;
            parts.push(if column.dtype == dtype {
                value
            } else {
                self.graph.cast(value, dtype)?
            });
        }
        if !parts.is_empty() {
            let value = self.concat(&parts)?;
            self.matrices.push(Matrix { value, dtype, width: index });
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::ImputeNumbers(columns) => self.numbers(columns, Self::impute),
            Step::Scale(columns) => self.numbers(columns, Self::scale),
            Step::Clip(columns) => self.numbers(columns, Self::clip),
            Step::Log { columns, plus_one } => {
                let columns: Vec<(usize, bool)> =
                    columns.iter().map(|&column| (column, *plus_one)).collect();
                self.numbers(&columns, Self::log)
            }
            Step::ImputeTexts(columns) => {
                columns.iter().try_for_each(|(column, text)| self.impute_text(*column, text))
            }
            Step::OneHot(columns, _) => {
                columns.iter().try_for_each(|(column, cats)| self.one_hot(*column, cats))
            }
            Step::Bin(columns) => {
                columns.iter().try_for_each(|(column, bins)| self.bin(*column, bins))
            }
        }
    }

    /// Runs `apply` on every matrix that holds one of the columns, with the
    /// parameters by place in the matrix.
    fn numbers<P: Clone>(
        &mut self,
        columns: &[(usize, P)],
        apply: fn(&GraphBuilder, &Matrix, &[Option<P>]) -> Result<Value>,
    ) -> Result<()> {
        for number in 0..self.matrices.len() {
            let mut parameters = vec![None; self.matrices[number].width];
            for (column, parameter) in columns {
                if let Place::Matrix { matrix, index, width } = self.places[*column]
                    && matrix == number
                {
                    parameters[index..index + width].fill(Some(parameter.clone()));
                }
            }
            if parameters.iter().any(Option::is_some) {
                let value = apply(self.graph, &self.matrices[number], &parameters)?;
                self.matrices[number].value = value;
            }
        }
        Ok(())
    }

    fn impute(graph: &GraphBuilder, matrix: &Matrix, values: &[Option<f64>]) -> Result<Value> {
        let fill: Vec<f64> = values.iter().map(|value| value.unwrap_or(f64::NAN)).collect();
        let missing = graph.is_nan(matrix.value)?;
        graph.where_(missing, row(graph, matrix.dtype, &fill)?, matrix.value)
    }

    fn scale(graph: &GraphBuilder, matrix: &Matrix, columns: &[Option<Affine>]) -> Result<Value> {
        let part = |neutral: f64, part: fn(&Affine) -> f64| -> Vec<f64> {
            columns.iter().map(|column| column.as_ref().map_or(neutral, part)).collect()
        };
        let shift = row(graph, matrix.dtype, &part(0.0, |affine| affine.shift))?;
        let divisor = row(graph, matrix.dtype, &part(1.0, |affine| affine.divisor))?;
        graph.div(graph.sub(matrix.value, shift)?, divisor)
    }

    fn clip(graph: &GraphBuilder, matrix: &Matrix, columns: &[Option<Limits>]) -> Result<Value> {
        if let Some((Some(first), rest)) = columns.split_first()
            && rest.iter().all(|limits| limits.as_ref() == Some(first))
        {
            let bound = |limit: f64| match limit.is_finite() {
                true => number(graph, matrix.dtype, limit).map(Some),
                false => Ok(None),
            };
            return graph.clip(matrix.value, bound(first.min)?, bound(first.max)?);
        }
        let part = |neutral: f64, part: fn(&Limits) -> f64| -> Vec<f64> {
            columns.iter().map(|column| column.as_ref().map_or(neutral, part)).collect()
        };
        let min = row(graph, matrix.dtype, &part(f64::NEG_INFINITY, |limits| limits.min))?;
        let max = row(graph, matrix.dtype, &part(f64::INFINITY, |limits| limits.max))?;
        let raised = graph.node("Max").inputs([matrix.value, min]).output()?;
        graph.node("Min").inputs([raised, max]).output()
    }

    fn log(graph: &GraphBuilder, matrix: &Matrix, columns: &[Option<bool>]) -> Result<Value> {
        let is_meant: Vec<bool> = columns.iter().map(Option::is_some).collect();
        let plus_one = columns.iter().flatten().any(|&plus_one| plus_one);
        let mut value = matrix.value;
        if plus_one {
            value = graph.add(value, row(graph, matrix.dtype, &vec![1.0; columns.len()])?)?;
        }
        let logarithm = graph.log(value)?;
        if is_meant.iter().all(|&is_meant| is_meant) {
            return Ok(logarithm);
        }
        let mask = graph.constant(&Tensor::from_bools(&[is_meant.len()], &is_meant)?)?;
        graph.where_(mask, logarithm, matrix.value)
    }

    fn impute_text(&mut self, column: usize, text: &str) -> Result<()> {
        let graph = self.graph;
        if let Place::Text(value) = self.places[column] {
            let empty = graph.equal(value, strings(graph, &[""])?)?;
            let filled = graph.where_(empty, strings(graph, &[text])?, value)?;
            self.places[column] = Place::Text(filled);
        }
        Ok(())
    }

    fn one_hot(&mut self, column: usize, categories: &Categories) -> Result<()> {
        let graph = self.graph;
        let (value, dtype) = self.single(column)?;
        let choices = match categories {
            Categories::Numbers(numbers) => row(graph, dtype, numbers)?,
            Categories::Texts(texts) => strings(graph, texts)?,
        };
        let hot = graph.cast(graph.equal(value, choices)?, DType::F32)?;
        self.places[column] = Place::Block(hot);
        Ok(())
    }

    /// Counts the edges at or below a number, and looks the label up.
    fn bin(&mut self, column: usize, bins: &Bins) -> Result<()> {
        let graph = self.graph;
        let (value, dtype) = self.single(column)?;
        let edges = row(graph, dtype, &bins.edges)?;
        let passed = match bins.closed {
            Closed::Left => graph.greater_or_equal(value, edges)?,
            Closed::Right => graph.greater(value, edges)?,
        };
        let count = graph.reduce_sum(graph.cast(passed, DType::I64)?, &[1], true)?;
        let missing = graph.is_nan(value)?;
        let index = graph.where_(missing, graph.scalar(-1i64)?, count)?;
        let keys: Vec<i64> = (0..).take(bins.labels.len()).collect();
        let label = graph
            .ml_node("LabelEncoder")
            .input(index)
            .attribute("keys_int64s", keys)
            .attribute("values_strings", bins.labels.as_slice())
            .attribute("default_string", "")
            .output()?;
        self.places[column] = Place::Text(label);
        Ok(())
    }

    /// A column on its own, `[rows, width]`.
    fn single(&self, column: usize) -> Result<(Value, DType)> {
        match self.places[column] {
            Place::Matrix { matrix, index, width } => {
                let matrix = &self.matrices[matrix];
                let indices: Vec<usize> = (index..index + width).collect();
                Ok((self.pick(matrix, &indices)?, matrix.dtype))
            }
            Place::Text(value) => Ok((value, DType::String)),
            Place::Block(value) => Ok((value, DType::F32)),
        }
    }

    /// Some columns of a matrix, in this order.
    fn pick(&self, matrix: &Matrix, indices: &[usize]) -> Result<Value> {
        if indices.iter().copied().eq(0..matrix.width) {
            return Ok(matrix.value);
        }
        let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        self.graph.gather(matrix.value, self.graph.vector(&indices)?, 1)
    }

    /// The feature matrix: runs of columns of one matrix are taken together.
    fn output(&self, columns: &[usize]) -> Result<Value> {
        let mut parts = Vec::new();
        let mut rest = columns;
        while let Some((&first, tail)) = rest.split_first() {
            let Place::Matrix { matrix, index, width } = self.places[first] else {
                parts.push(self.single(first)?.0);
                rest = tail;
                continue;
            };
            let mut indices: Vec<usize> = (index..index + width).collect();
            rest = tail;
            while let Some((&next, tail)) = rest.split_first()
                && let Place::Matrix { matrix: other, index, width } = self.places[next]
                && other == matrix
            {
                indices.extend(index..index + width);
                rest = tail;
            }
            parts.push(self.features(&self.matrices[matrix], &indices)?);
        }
        match parts.as_slice() {
            [only] => self.graph.identity(*only),
            _ => self.concat(&parts),
        }
    }

    fn features(&self, matrix: &Matrix, indices: &[usize]) -> Result<Value> {
        let picked = self.pick(matrix, indices)?;
        if matrix.dtype == DType::F32 { Ok(picked) } else { self.graph.cast(picked, DType::F32) }
    }

    fn concat(&self, parts: &[Value]) -> Result<Value> {
        match parts {
            [only] => Ok(*only),
            _ => self.graph.concat(parts, 1),
        }
    }
}

/// What numbers are computed as: integers as `FP64`, which holds them up to
/// 2⁵³. `None` for strings.
pub(crate) fn working_dtype(dtype: DType) -> Option<DType> {
    match dtype {
        DType::F32 => Some(DType::F32),
        DType::F64 | DType::I64 => Some(DType::F64),
        _ => None,
    }
}

/// One parameter per column, broadcast over the rows.
fn row(graph: &GraphBuilder, dtype: DType, values: &[f64]) -> Result<Value> {
    if dtype == DType::F64 {
        return graph.vector(values);
    }
    let narrow: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    graph.vector(&narrow)
}

/// One parameter for all of a matrix.
fn number(graph: &GraphBuilder, dtype: DType, value: f64) -> Result<Value> {
    if dtype == DType::F64 { graph.scalar(value) } else { graph.scalar(value as f32) }
}

fn strings<S: AsRef<[u8]>>(graph: &GraphBuilder, texts: &[S]) -> Result<Value> {
    graph.constant(&Tensor::from_strings(&[texts.len()], texts)?)
}
