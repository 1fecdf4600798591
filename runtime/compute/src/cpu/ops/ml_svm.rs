//! `SVMClassifier` and `SVMRegressor`.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{floats, rows_and_columns};
use crate::cpu::ops::ml_linear::{Linear, dot, multiply_transposed};
use crate::cpu::ops::ml_scores::{Choice, Labels, Transform, first_largest, logistic};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "SVMClassifier", since: 1, build: Classifier::build },
    Entry { op: "SVMRegressor", since: 1, build: Regressor::build },
];

/// Rows whose kernel values are held at a time.
const ROWS_AT_ONCE: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    Linear,
    Poly { gamma: f32, offset: f32, degree: f32 },
    Rbf { gamma: f32 },
    Sigmoid { gamma: f32, offset: f32 },
}

impl Kernel {
    fn of(attributes: &Attributes<'_>) -> Result<Self> {
        let parameters = attributes.floats("kernel_params")?.unwrap_or(&[]);
        let parameter = |index: usize| parameters.get(index).copied().unwrap_or(0.0);
        let (gamma, offset, degree) = (parameter(0), parameter(1), parameter(2));
        match attributes.text("kernel_type")?.unwrap_or("LINEAR") {
            "LINEAR" => Ok(Self::Linear),
            "POLY" => Ok(Self::Poly { gamma, offset, degree }),
            "RBF" => Ok(Self::Rbf { gamma }),
            "SIGMOID" => Ok(Self::Sigmoid { gamma, offset }),
            other => Err(Error::unsupported(format!("kernel_type \"{other}\""))),
        }
    }
}

/// The support vectors, `[vectors, features]`, and how inputs meet them.
struct Support {
    kernel: Kernel,
    vectors: Vec<f32>,
    vector_count: usize,
    feature_count: usize,
}

impl Support {
    fn new(kernel: Kernel, vectors: &[f32], vector_count: usize) -> Result<Self> {
        if vectors.is_empty() || !vectors.len().is_multiple_of(vector_count) {
            return Err(Error::invalid(format!(
                "{} values cannot be cut into {vector_count} support vectors",
                vectors.len()
            )));
        }
        Ok(Self {
            kernel,
            vectors: vectors.to_vec(),
            vector_count,
            feature_count: vectors.len() / vector_count,
        })
    }

    /// Kernel values `[rows, vectors]` of rows of features.
    fn kernels(&self, rows: &[f32], output: &mut [f32]) -> Result<()> {
        let width = self.feature_count;
        if let Kernel::Rbf { gamma } = self.kernel {
            for (line, row) in
                output.chunks_exact_mut(self.vector_count).zip(rows.chunks_exact(width))
            {
                for (cell, vector) in line.iter_mut().zip(self.vectors.chunks_exact(width)) {
                    *cell = (-gamma * squared_distance(row, vector)).exp();
                }
            }
            return Ok(());
        }
        multiply_transposed(rows, &self.vectors, width, None, output)?;
        match self.kernel {
            Kernel::Poly { gamma, offset, degree } => {
                output.iter_mut().for_each(|cell| *cell = (gamma * *cell + offset).powf(degree));
            }
            Kernel::Sigmoid { gamma, offset } => {
                output.iter_mut().for_each(|cell| *cell = (gamma * *cell + offset).tanh());
            }
            Kernel::Linear | Kernel::Rbf { .. } => {}
        }
        Ok(())
    }

    /// Calls `finish` with each row's number and kernel values.
    fn for_each_row(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        mut finish: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (rows, columns) = rows_and_columns(input)?;
        if columns != self.feature_count {
            return Err(Error::invalid(format!(
                "the model has {} features, the input has {columns}",
                self.feature_count
            )));
        }
        let values = floats(input)?;
        let mut kernels = vec![0.0; ROWS_AT_ONCE.min(rows) * self.vector_count];
        for first in (0..rows).step_by(ROWS_AT_ONCE) {
            ctx.control.check()?;
            let count = ROWS_AT_ONCE.min(rows - first);
            let block = &values[first * columns..(first + count) * columns];
            let kernels = &mut kernels[..count * self.vector_count];
            self.kernels(block, kernels)?;
            for (row, line) in kernels.chunks_exact(self.vector_count).enumerate() {
                finish(first + row, line);
            }
        }
        Ok(())
    }
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0f32; LANES];
    let (left, right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let square = |(x, y): (&f32, &f32)| (x - y) * (x - y);
    let tail: f32 = left.remainder().iter().zip(right.remainder()).map(square).sum();
    for (x, y) in left.zip(right) {
        for lane in 0..LANES {
            sums[lane] += (x[lane] - y[lane]) * (x[lane] - y[lane]);
        }
    }
    sums.iter().sum::<f32>() + tail
}

struct Classifier {
    model: Model,
    labels: Labels,
    transform: Transform,
    /// Of every pair of classes: how a decision value becomes a probability.
    sigmoids: Vec<(f32, f32)>,
    all_positive: bool,
}

enum Model {
    /// One linear function per class.
    Linear(Linear),
    /// One decision per pair of classes.
    Pairs(Pairs),
}

impl Classifier {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let labels = Labels::of(&attributes, "classlabels_ints", "classlabels_strings")?;
        let coefficients = attributes.floats("coefficients")?.unwrap_or(&[]);
        let rho = attributes.floats("rho")?.unwrap_or(&[]);
        let model = match attributes.ints("vectors_per_class")? {
            Some(counts) if counts.iter().any(|&count| count > 0) => {
                Model::Pairs(Pairs::new(&attributes, counts, labels.len())?)
            }
            _ => {
                let offset = *rho.first().ok_or_else(|| Error::invalid("rho must not be empty"))?;
                let offsets = vec![offset; labels.len()];
                Model::Linear(Linear::new(coefficients, offsets, labels.len())?)
            }
        };
        let slopes = attributes.floats("prob_a")?.unwrap_or(&[]);
        let offsets = attributes.floats("prob_b")?.unwrap_or(&[]);
        let pairs = labels.len() * (labels.len() - 1) / 2;
        if slopes.len() != offsets.len() || (!slopes.is_empty() && slopes.len() < pairs) {
            return Err(Error::invalid(format!("prob_a and prob_b must have {pairs} values each")));
        }
        Ok(Box::new(Self {
            model,
            transform: Transform::of(&attributes)?,
            sigmoids: slopes.iter().copied().zip(offsets.iter().copied()).collect(),
            all_positive: coefficients.iter().all(|&value| value >= 0.0),
            labels,
        }))
    }

    fn run_linear(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        linear: &Linear,
    ) -> Result<(Vec<Choice>, Tensor)> {
        let (rows, columns) = rows_and_columns(input)?;
        let mut output = ctx.allocate(DType::F32, &[rows, self.labels.len()])?;
        let cells = output.as_mut_slice::<f32>()?;
        linear.scores(&floats(input)?, columns, cells)?;
        let chosen = cells
            .chunks_exact_mut(self.labels.len())
            .map(|row| {
                let choice = self.choose_linear(row);
                self.transform.apply(row);
                choice
            })
            .collect();
        Ok((chosen, output))
    }

    /// Two classes without probabilities lean to the second one, as in
    /// onnxruntime.
    fn choose_linear(&self, row: &[f32]) -> Choice {
        let best = first_largest(row);
        let highest = row[best];
        let second = if self.all_positive { highest >= 0.5 } else { highest > 0.0 };
        if row.len() == 2 && self.sigmoids.is_empty() && second {
            return Choice::Class(1);
        }
        Choice::Class(best)
    }

    fn run_pairs(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        pairs: &Pairs,
    ) -> Result<(Vec<Choice>, Tensor)> {
        let (rows, _) = rows_and_columns(input)?;
        let classes = self.labels.len();
        let width = match (self.sigmoids.is_empty(), classes) {
            (false, _) => classes,
            (true, 2) => 2,
            (true, _) => pairs.count(),
        };
        let mut output = ctx.allocate(DType::F32, &[rows, width])?;
        let cells = output.as_mut_slice::<f32>()?;
        let mut chosen = vec![Choice::Class(0); rows];
        let mut decisions = vec![0.0; pairs.count()];
        let mut votes = vec![0u32; classes];
        pairs.support.for_each_row(ctx, input, |index, kernels| {
            pairs.decide(kernels, &mut decisions, &mut votes);
            let winner = votes.iter().enumerate().rev().max_by_key(|vote| vote.1);
            chosen[index] = Choice::Class(winner.map_or(0, |(class, _)| class));
            self.write(&decisions, &mut cells[index * width..(index + 1) * width]);
        })?;
        Ok((chosen, output))
    }

    fn write(&self, decisions: &[f32], row: &mut [f32]) {
        match decisions {
            _ if !self.sigmoids.is_empty() => {
                couple(decisions, &self.sigmoids, row);
                self.transform.apply(row);
            }
            &[score] if row.len() == 2 => row.copy_from_slice(&match self.transform {
                Transform::None => [-score, score],
                Transform::Logistic => [logistic(-score), logistic(score)],
                _ => [1.0 - score, score],
            }),
            _ => {
                row.copy_from_slice(decisions);
                self.transform.apply(row);
            }
        }
    }
}

impl Operator for Classifier {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (chosen, scores) = match &self.model {
            Model::Linear(linear) => self.run_linear(ctx, input, linear)?,
            Model::Pairs(pairs) => self.run_pairs(ctx, input, pairs)?,
        };
        Ok(smallvec![self.labels.tensor(ctx, &chosen)?.into(), scores.into()])
    }
}

/// One-against-one classifiers in libsvm's layout: row `j - 1` of a support
/// vector of class `i < j` holds its coefficient in the decision of `i`
/// against `j`, and row `i` that of a vector of class `j`.
struct Pairs {
    support: Support,
    coefficients: Vec<f32>,
    offsets: Vec<f32>,
    /// Where each class's vectors start; one more for the end.
    starts: Vec<usize>,
}

impl Pairs {
    fn new(attributes: &Attributes<'_>, counts: &[i64], classes: usize) -> Result<Self> {
        if counts.len() != classes || classes < 2 {
            return Err(Error::invalid(format!(
                "vectors_per_class lists {} classes, the labels {classes}",
                counts.len()
            )));
        }
        let vectors = attributes.floats("support_vectors")?.unwrap_or(&[]);
        let mut starts = vec![0usize];
        for &count in counts {
            let last = starts[starts.len() - 1];
            let end = usize::try_from(count).ok().and_then(|count| last.checked_add(count));
            starts.push(end.ok_or_else(|| Error::invalid("vectors_per_class must be >= 0"))?);
        }
        let total = starts[classes];
        let coefficients = attributes.floats("coefficients")?.unwrap_or(&[]);
        let offsets = attributes.floats("rho")?.unwrap_or(&[]);
        let want = total.saturating_mul(classes - 1);
        let pairs = classes * (classes - 1) / 2;
        if coefficients.len() < want || offsets.len() < pairs {
            return Err(Error::invalid(format!(
                "{classes} classes and {total} support vectors need {want} coefficients and \
                 {pairs} values of rho, got {} and {}",
                coefficients.len(),
                offsets.len()
            )));
        }
        Ok(Self {
            support: Support::new(Kernel::of(attributes)?, vectors, total)?,
            coefficients: coefficients.to_vec(),
            offsets: offsets[..pairs].to_vec(),
            starts,
        })
    }

    /// Pairs of classes.
    fn count(&self) -> usize {
        self.offsets.len()
    }

    fn decide(&self, kernels: &[f32], decisions: &mut [f32], votes: &mut [u32]) {
        votes.fill(0);
        let classes = votes.len();
        let pairs = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
        for ((i, j), (decision, &offset)) in pairs.zip(decisions.iter_mut().zip(&self.offsets)) {
            let sum = self.part(j - 1, i, kernels) + self.part(i, j, kernels) + f64::from(offset);
            *decision = sum as f32;
            votes[if sum > 0.0 { i } else { j }] += 1;
        }
    }

    /// What the vectors of `class` add, by their coefficients in row `row`.
    fn part(&self, row: usize, class: usize, kernels: &[f32]) -> f64 {
        let span = self.starts[class]..self.starts[class + 1];
        let first = row * self.support.vector_count;
        let coefficients = &self.coefficients[first + span.start..first + span.end];
        coefficients.iter().zip(&kernels[span]).map(|(&c, &k)| f64::from(c * k)).sum()
    }
}

/// Class probabilities from pairwise decisions: the second method of Wu, Lin
/// and Weng, "Probability estimates for multi-class classification by pairwise
/// coupling" (2004), with the tolerances of libsvm in single precision.
fn couple(decisions: &[f32], sigmoids: &[(f32, f32)], probabilities: &mut [f32]) {
    const ROUNDS: usize = 100;
    const CLAMP: f32 = 1e-7;
    let classes = probabilities.len();
    let mut pairwise = vec![0.0f32; classes * classes];
    let pairs = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
    for ((i, j), (&decision, &(slope, offset))) in pairs.zip(decisions.iter().zip(sigmoids)) {
        let probability = 1.0 - logistic(decision * slope + offset);
        #[expect(clippy::manual_clamp, reason = "a NaN becomes the lower bound")]
        let probability = probability.max(CLAMP).min(1.0 - CLAMP);
        pairwise[i * classes + j] = probability;
        pairwise[j * classes + i] = 1.0 - probability;
    }
    let system = coupling_matrix(&pairwise, classes);
    let tolerance = 0.005 / classes as f32;
    probabilities.fill(1.0 / classes as f32);
    for _ in 0..ROUNDS {
        let mut products: Vec<f32> =
            system.chunks_exact(classes).map(|row| plain_dot(row, probabilities)).collect();
        let mut energy = plain_dot(probabilities, &products);
        let worst = products.iter().fold(0.0f32, |worst, p| worst.max((p - energy).abs()));
        if worst < tolerance {
            break;
        }
        for class in 0..classes {
            let row = &system[class * classes..(class + 1) * classes];
            let step = (energy - products[class]) / row[class];
            probabilities[class] += step;
            let shrink = 1.0 + step;
            energy =
                (energy + step * (step * row[class] + 2.0 * products[class])) / shrink / shrink;
            for other in 0..classes {
                products[other] = (products[other] + step * row[other]) / shrink;
                probabilities[other] /= shrink;
            }
        }
    }
}

fn plain_dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn coupling_matrix(pairwise: &[f32], classes: usize) -> Vec<f32> {
    let at = |i: usize, j: usize| pairwise[i * classes + j];
    let mut system = vec![0.0f32; classes * classes];
    for i in 0..classes {
        for j in (0..classes).filter(|&j| j != i) {
            system[i * classes + i] += at(j, i) * at(j, i);
            system[i * classes + j] = -at(j, i) * at(i, j);
        }
    }
    system
}

struct Regressor {
    model: RegressorModel,
    /// Answer 1 for inliers and -1 for outliers.
    one_class: bool,
}

enum RegressorModel {
    Linear(Linear),
    Kernel { support: Support, coefficients: Vec<f32>, offset: f32 },
}

impl Regressor {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let coefficients = attributes.floats("coefficients")?.unwrap_or(&[]);
        let rho = attributes.floats("rho")?.unwrap_or(&[]);
        let offset = *rho.first().ok_or_else(|| Error::invalid("rho must not be empty"))?;
        let count = usize::try_from(attributes.int_or("n_supports", 0)?).unwrap_or(0);
        let model = if count == 0 {
            RegressorModel::Linear(Linear::new(coefficients, vec![offset], 1)?)
        } else {
            let vectors = attributes.floats("support_vectors")?.unwrap_or(&[]);
            if coefficients.len() != count {
                return Err(Error::invalid(format!(
                    "{} coefficients for {count} support vectors",
                    coefficients.len()
                )));
            }
            RegressorModel::Kernel {
                support: Support::new(Kernel::of(&attributes)?, vectors, count)?,
                coefficients: coefficients.to_vec(),
                offset,
            }
        };
        Ok(Box::new(Self { model, one_class: attributes.int_or("one_class", 0)? != 0 }))
    }
}

impl Operator for Regressor {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (rows, columns) = rows_and_columns(input)?;
        let mut output = ctx.allocate(DType::F32, &[rows, 1])?;
        let cells = output.as_mut_slice::<f32>()?;
        match &self.model {
            RegressorModel::Linear(linear) => linear.scores(&floats(input)?, columns, cells)?,
            RegressorModel::Kernel { support, coefficients, offset } => {
                support.for_each_row(ctx, input, |row, kernels| {
                    cells[row] = dot(kernels, coefficients) + offset;
                })?;
            }
        }
        if self.one_class {
            cells.iter_mut().for_each(|cell| *cell = if *cell > 0.0 { 1.0 } else { -1.0 });
        }
        Ok(smallvec![output.into()])
    }
}
