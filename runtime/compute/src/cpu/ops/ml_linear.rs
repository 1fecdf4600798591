//! `LinearClassifier` and `LinearRegressor`.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{floats, rows_and_columns};
use crate::cpu::ops::ml_scores::{Choice, Labels, Transform, first_largest, logistic, probit};
use mortise_types::{DType, Error, NodeDef, Result};
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "LinearClassifier", since: 1, build: Classifier::build },
    Entry { op: "LinearRegressor", since: 1, build: Regressor::build },
];

/// `x · coefficientsᵀ + intercepts`, with `coefficients` of shape
/// `[targets, features]`.
pub(crate) struct Linear {
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    target_count: usize,
    feature_count: usize,
}

impl Linear {
    /// # Errors
    /// When the coefficients cannot be cut into equal rows, one per target.
    pub(crate) fn new(
        coefficients: &[f32],
        intercepts: Vec<f32>,
        target_count: usize,
    ) -> Result<Self> {
        if target_count == 0
            || coefficients.is_empty()
            || !coefficients.len().is_multiple_of(target_count)
        {
            return Err(Error::invalid(format!(
                "{} coefficients cannot be cut into {target_count} equal rows",
                coefficients.len()
            )));
        }
        Ok(Self {
            coefficients: coefficients.to_vec(),
            intercepts,
            target_count,
            feature_count: coefficients.len() / target_count,
        })
    }

    /// Fills `output` with `[rows, targets]` scores.
    ///
    /// # Errors
    /// When the input does not have the features.
    pub(crate) fn scores(&self, values: &[f32], columns: usize, output: &mut [f32]) -> Result<()> {
        if columns != self.feature_count {
            return Err(Error::invalid(format!(
                "the model has {} features, the input has {columns}",
                self.feature_count
            )));
        }
        multiply_transposed(values, &self.coefficients, columns, Some(&self.intercepts), output)
    }
}

/// `output[i, j] = a[i] · b[j] + bias[j]` for rows of `width` values.
///
/// # Errors
/// When the lengths do not fit together.
pub(crate) fn multiply_transposed(
    a: &[f32],
    b: &[f32],
    width: usize,
    bias: Option<&[f32]>,
    output: &mut [f32],
) -> Result<()> {
    /// Above this many multiplications packing pays off.
    const PACKED_FROM: usize = 1 << 15;
    let (rows, targets) = (a.len() / width.max(1), b.len() / width.max(1));
    if rows * targets != output.len() || bias.is_some_and(|bias| bias.len() != targets) {
        return Err(Error::internal("sizes of a product do not fit"));
    }
    if output.len().saturating_mul(width) < PACKED_FROM {
        for (line, row) in output.chunks_exact_mut(targets.max(1)).zip(a.chunks_exact(width)) {
            for (target, cell) in line.iter_mut().enumerate() {
                let product = dot(row, &b[target * width..(target + 1) * width]);
                *cell = product + bias.map_or(0.0, |bias| bias[target]);
            }
        }
        return Ok(());
    }
    let left = NdTensorView::from_data([rows, width], a);
    let right = NdTensorView::from_data([targets, width], b);
    GEMM.with(|gemm| {
        gemm.gemm(
            output,
            GemmInputA::Unpacked(left),
            GemmInputB::Unpacked(right.transposed()),
            GemmOptions { bias: bias.map(BiasVector::Row), ..GemmOptions::default() },
        )
    })
    .map_err(|error| Error::internal(format!("matrix product failed: {error}")))
}

thread_local! {
    static GEMM: GemmExecutor = GemmExecutor::new();
}

/// Dot product in eight running sums, which the compiler keeps in registers.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0f32; LANES];
    let (left, right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = left.remainder().iter().zip(right.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in left.zip(right) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}

struct Classifier {
    linear: Linear,
    labels: Labels,
    transform: Transform,
}

impl Classifier {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let labels = Labels::of(&attributes, "classlabels_ints", "classlabels_strings")?;
        let coefficients = attributes.floats("coefficients")?.unwrap_or(&[]);
        let intercepts = match attributes.floats("intercepts")? {
            Some(list) if !list.is_empty() => list.to_vec(),
            _ => vec![0.0; labels.len()],
        };
        let targets = intercepts.len();
        if labels.len() != targets.max(2) {
            return Err(Error::invalid(format!(
                "{} class labels do not fit {targets} intercepts",
                labels.len()
            )));
        }
        let transform = Transform::of(&attributes)?;
        if targets == 1 && transform == Transform::Probit {
            return Err(Error::unsupported("post_transform PROBIT with one intercept"));
        }
        Ok(Box::new(Self {
            linear: Linear::new(coefficients, intercepts, targets)?,
            labels,
            transform,
        }))
    }

    /// One intercept and two classes: the score is the second class's.
    fn finish_single(&self, scores: &[f32], output: &mut [f32]) -> Vec<Choice> {
        for (&score, pair) in scores.iter().zip(output.chunks_exact_mut(2)) {
            let score = match self.transform {
                Transform::Logistic => logistic(score),
                _ => score,
            };
            pair.copy_from_slice(&[1.0 - score, score]);
        }
        scores.iter().map(|&score| Choice::Class(usize::from(score > 0.0))).collect()
    }

    fn finish_many(&self, output: &mut [f32]) -> Vec<Choice> {
        output
            .chunks_exact_mut(self.labels.len())
            .map(|row| {
                let choice = Choice::Class(first_largest(row));
                self.transform.apply(row);
                choice
            })
            .collect()
    }
}

impl Operator for Classifier {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (rows, columns) = rows_and_columns(input)?;
        let mut output = ctx.allocate(DType::F32, &[rows, self.labels.len()])?;
        let cells = output.as_mut_slice::<f32>()?;
        let values = floats(input)?;
        let chosen = if self.linear.target_count == 1 {
            let mut scores = vec![0.0; rows];
            self.linear.scores(&values, columns, &mut scores)?;
            self.finish_single(&scores, cells)
        } else {
            self.linear.scores(&values, columns, cells)?;
            self.finish_many(cells)
        };
        Ok(smallvec![self.labels.tensor(ctx, &chosen)?.into(), output.into()])
    }
}

struct Regressor {
    linear: Linear,
    transform: Transform,
}

impl Regressor {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let targets = usize::try_from(attributes.int_or("targets", 1)?)
            .map_err(|_| Error::invalid("targets must be positive"))?;
        let coefficients = attributes.floats("coefficients")?.unwrap_or(&[]);
        let intercepts = match attributes.floats("intercepts")? {
            Some(list) if list.len() == targets => list.to_vec(),
            Some(list) if !list.is_empty() => {
                let count = list.len();
                return Err(Error::invalid(format!("{count} intercepts for {targets} targets")));
            }
            _ if targets > coefficients.len() => {
                return Err(Error::invalid(format!("too few coefficients for {targets} targets")));
            }
            _ => vec![0.0; targets],
        };
        Ok(Box::new(Self {
            linear: Linear::new(coefficients, intercepts, targets)?,
            transform: Transform::of(&attributes)?,
        }))
    }
}

impl Operator for Regressor {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (rows, columns) = rows_and_columns(input)?;
        let mut output = ctx.allocate(DType::F32, &[rows, self.linear.target_count])?;
        let cells = output.as_mut_slice::<f32>()?;
        self.linear.scores(&floats(input)?, columns, cells)?;
        match (self.linear.target_count, self.transform) {
            (1, Transform::Probit) => cells.iter_mut().for_each(|cell| *cell = probit(*cell)),
            // One target takes no other transform, as in onnxruntime.
            (1, _) => {}
            (targets, transform) => {
                cells.chunks_exact_mut(targets).for_each(|row| transform.apply(row));
            }
        }
        Ok(smallvec![output.into()])
    }
}
