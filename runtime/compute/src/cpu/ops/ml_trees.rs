//! Tree ensembles: `TreeEnsembleClassifier`, `TreeEnsembleRegressor` and
//! `TreeEnsemble`.

mod forest;
mod nodes;
pub(crate) mod plain;

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{doubles, floats, rows_and_columns};
use crate::cpu::ops::ml_scores::{Choice, Labels, Transform, logistic, probit};
use forest::{Aggregate, Forest, Real, Totals};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::{SmallVec, smallvec};

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "TreeEnsembleClassifier", since: 1, build: Classifier::build },
    Entry { op: "TreeEnsembleRegressor", since: 1, build: Regressor::build },
    Entry { op: "TreeEnsemble", since: 5, build: Regressor::build_unified },
];

/// Trees in the precision of their thresholds. Double inputs are compared as
/// doubles, everything else as floats unless the thresholds are doubles.
enum Trees {
    Single(Forest<f32>),
    Double(Forest<f64>),
}

impl Trees {
    fn tree_count(&self) -> usize {
        match self {
            Self::Single(forest) => forest.tree_count(),
            Self::Double(forest) => forest.tree_count(),
        }
    }

    /// Runs `finish` for every row of `input` with that row's totals.
    fn for_each_row(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        finish: impl FnMut(usize, &[Score]),
    ) -> Result<()> {
        let shape = rows_and_columns(input)?;
        match self {
            Self::Single(forest) if input.dtype() == DType::F64 => {
                totals(ctx, forest, input.as_slice::<f64>()?, shape, finish)
            }
            Self::Single(forest) => totals(ctx, forest, &floats(input)?, shape, finish),
            Self::Double(forest) => totals(ctx, forest, &doubles(input)?, shape, finish),
        }
    }
}

/// The sum (or mean, minimum, maximum) for one target of one row; `None` when
/// no leaf on the way spoke of it.
type Score = Option<f64>;

/// Rows whose totals are held at a time.
const ROWS_AT_ONCE: usize = 1024;

fn totals<T: Real, X: Real>(
    ctx: &OpContext<'_>,
    forest: &Forest<T>,
    values: &[X],
    (rows, columns): (usize, usize),
    mut finish: impl FnMut(usize, &[Score]),
) -> Result<()> {
    forest.check_columns(columns)?;
    let mut scores: SmallVec<[Score; 16]> = smallvec![None; forest.target_count()];
    for first in (0..rows).step_by(ROWS_AT_ONCE) {
        ctx.control.check()?;
        let count = ROWS_AT_ONCE.min(rows - first);
        let block = &values[first * columns..(first + count) * columns];
        let totals: Totals<X> = forest.run(block, columns, count);
        for row in 0..count {
            totals.read(row, &mut scores);
            finish(first + row, &scores);
        }
    }
    Ok(())
}

struct Regressor {
    trees: Trees,
    aggregate: Aggregate,
    transform: Transform,
    base: Vec<f64>,
    target_count: usize,
    /// `TreeEnsemble` answers in the type of its input; the older operator in
    /// floats.
    keeps_dtype: bool,
}

impl Regressor {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self::of(node)?))
    }

    fn build_unified(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self::of_unified(node)?))
    }

    fn of(node: &NodeDef) -> Result<Self> {
        let attributes = Attributes(node);
        let target_count = nodes::count(attributes.int_or("n_targets", 1)?, "n_targets")?;
        let aggregate = match attributes.text("aggregate_function")?.unwrap_or("SUM") {
            "SUM" => Aggregate::Sum,
            "AVERAGE" => Aggregate::Average,
            "MIN" => Aggregate::Min,
            "MAX" => Aggregate::Max,
            other => return Err(Error::unsupported(format!("aggregate_function \"{other}\""))),
        };
        let raw = nodes::from_lists(&attributes, "target", target_count)?;
        Ok(Self {
            trees: raw.into_trees(target_count, aggregate)?,
            aggregate,
            transform: Transform::of(&attributes)?,
            base: nodes::numbers(&attributes, "base_values")?,
            target_count,
            keeps_dtype: false,
        })
    }

    fn of_unified(node: &NodeDef) -> Result<Self> {
        let attributes = Attributes(node);
        let target_count = nodes::count(attributes.int_or("n_targets", 1)?, "n_targets")?;
        let aggregate = match attributes.int_or("aggregate_function", 1)? {
            0 => Aggregate::Average,
            1 => Aggregate::Sum,
            2 => Aggregate::Min,
            3 => Aggregate::Max,
            other => return Err(Error::unsupported(format!("aggregate_function {other}"))),
        };
        let transform = match attributes.int_or("post_transform", 0)? {
            0 => Transform::None,
            1 => Transform::Logistic,
            2 => Transform::Softmax,
            3 => Transform::SoftmaxZero,
            4 => Transform::Probit,
            other => return Err(Error::unsupported(format!("post_transform {other}"))),
        };
        let raw = nodes::from_tensors(&attributes, target_count)?;
        Ok(Self {
            trees: raw.into_trees(target_count, aggregate)?,
            aggregate,
            transform,
            base: Vec::new(),
            target_count,
            keeps_dtype: true,
        })
    }

    /// One row of the answer, before the transform. Targets that no leaf spoke
    /// of go into a transform as zero, without their base value, as in
    /// onnxruntime.
    fn finish(&self, scores: &[Score], row: &mut [f64]) {
        let trees = self.trees.tree_count() as f64;
        for (target, (cell, score)) in row.iter_mut().zip(scores).enumerate() {
            let base = match self.base.len() {
                len if len == scores.len() => self.base[target],
                _ => 0.0,
            };
            if score.is_none() && scores.len() > 1 && self.transform != Transform::None {
                *cell = 0.0;
                continue;
            }
            let total = score.unwrap_or(0.0);
            *cell = base + if self.aggregate == Aggregate::Average { total / trees } else { total };
        }
    }

    fn transformed(&self, row: &mut [f64]) {
        let mut scores: SmallVec<[f32; 16]> = row.iter().map(|&score| score as f32).collect();
        match (self.transform, scores.as_mut_slice()) {
            (Transform::None, _) => return,
            // One target takes no other transform, as in onnxruntime.
            (Transform::Probit, [score]) => *score = probit(*score),
            (_, [_]) => return,
            (transform, scores) => transform.apply(scores),
        }
        row.iter_mut().zip(scores).for_each(|(cell, score)| *cell = f64::from(score));
    }
}

impl Operator for Regressor {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (rows, _) = rows_and_columns(input)?;
        let double = self.keeps_dtype && input.dtype() == DType::F64;
        let dtype = if double { DType::F64 } else { DType::F32 };
        let mut output = ctx.allocate(dtype, &[rows, self.target_count])?;
        let mut row: SmallVec<[f64; 16]> = smallvec![0.0; self.target_count];
        let width = self.target_count;
        if double {
            let cells = output.as_mut_slice::<f64>()?;
            self.trees.for_each_row(ctx, input, |index, scores| {
                self.finish(scores, &mut row);
                self.transformed(&mut row);
                cells[index * width..(index + 1) * width].copy_from_slice(&row);
            })?;
        } else {
            let cells = output.as_mut_slice::<f32>()?;
            self.trees.for_each_row(ctx, input, |index, scores| {
                self.finish(scores, &mut row);
                self.transformed(&mut row);
                let line = &mut cells[index * width..(index + 1) * width];
                line.iter_mut().zip(&row).for_each(|(cell, &score)| *cell = score as f32);
            })?;
        }
        Ok(smallvec![output.into()])
    }
}

struct Classifier {
    trees: Trees,
    transform: Transform,
    base: Vec<f64>,
    labels: Labels,
    /// Two classes, and every leaf speaks of the same one of them.
    one_sided: bool,
    all_positive: bool,
}

impl Classifier {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self::of(node)?))
    }

    fn of(node: &NodeDef) -> Result<Self> {
        let attributes = Attributes(node);
        let labels = Labels::of(&attributes, "classlabels_int64s", "classlabels_strings")?;
        let raw = nodes::from_lists(&attributes, "class", labels.len())?;
        let one_sided = labels.len() == 2 && raw.weighted_target_count() == 1;
        let all_positive = raw.weights_are_positive();
        Ok(Self {
            trees: raw.into_trees(labels.len(), Aggregate::Sum)?,
            transform: Transform::of(&attributes)?,
            base: nodes::numbers(&attributes, "base_values")?,
            labels,
            one_sided,
            all_positive,
        })
    }

    /// Decides one row and writes its scores. What happens with two classes
    /// follows onnxruntime in every corner, since models depend on it.
    fn finish(&self, scores: &[Score], row: &mut [f32]) -> Choice {
        match scores {
            [score] => self.finish_single(*score, row),
            [first, second] => self.finish_pair(*first, *second, row),
            _ => self.finish_many(scores, row),
        }
    }

    fn finish_many(&self, scores: &[Score], row: &mut [f32]) -> Choice {
        let mut best: Option<(usize, f64)> = None;
        for (class, (cell, score)) in row.iter_mut().zip(scores).enumerate() {
            let score = match (score, self.base.get(class)) {
                (Some(score), Some(base)) => Some(score + base),
                (None, Some(base)) => Some(*base),
                (score, None) => *score,
            };
            if let Some(score) = score
                && best.is_none_or(|(_, highest)| score > highest)
            {
                best = Some((class, score));
            }
            *cell = score.unwrap_or(0.0) as f32;
        }
        self.transform.apply(row);
        Choice::Class(best.map_or(0, |(class, _)| class))
    }

    fn finish_single(&self, score: Score, row: &mut [f32]) -> Choice {
        let base = if self.base.len() == 1 { self.base[0] } else { 0.0 };
        let score = score.unwrap_or(0.0) + base;
        let (choice, _) = self.decide(score);
        row[0] =
            if self.transform == Transform::Probit { probit(score as f32) } else { score as f32 };
        choice
    }

    fn finish_pair(&self, first: Score, second: Score, row: &mut [f32]) -> Choice {
        let (mut low, mut high) = (first, second);
        match self.base.as_slice() {
            [_, base] if second.is_some() => {
                let total = base + first.unwrap_or(0.0);
                high = Some(total);
                low = first.map(|_| -total);
            }
            [base, _] | [base] => low = first.map(|score| score + base),
            _ => {}
        }
        let (choice, spread) = self.decide(high.or(low).unwrap_or(0.0));
        if second.is_none() && self.base.len() < 2 {
            let score = low.unwrap_or(0.0) as f32;
            self.write_single(score, spread, row);
            return choice;
        }
        row[0] = low.unwrap_or(0.0) as f32;
        row[1] = high.unwrap_or(0.0) as f32;
        self.transform.apply(row);
        choice
    }

    /// The class for the score of the positive side, and how a lone score
    /// becomes two.
    fn decide(&self, score: f64) -> (Choice, Spread) {
        if !self.one_sided {
            let spread = if self.base.is_empty() { Spread::Opposite } else { Spread::None };
            return (Choice::Sign(score > 0.0), spread);
        }
        if self.all_positive {
            return (Choice::Class(usize::from(score > 0.5)), Spread::Complement);
        }
        (Choice::Class(usize::from(score > 0.0)), Spread::Opposite)
    }

    fn write_single(&self, score: f32, spread: Spread, row: &mut [f32]) {
        let pair = match (self.transform, spread) {
            (Transform::Probit, _) => [probit(score), 0.0],
            (_, Spread::None) => [score, 0.0],
            (_, Spread::Complement) => self.complement(score),
            (Transform::Logistic, Spread::Opposite) => [logistic(-score), logistic(score)],
            (_, Spread::Opposite) => [-score, score],
        };
        row.copy_from_slice(&pair);
    }

    fn complement(&self, score: f32) -> [f32; 2] {
        match self.transform {
            Transform::Logistic => [logistic(-score), logistic(score)],
            _ => [1.0 - score, score],
        }
    }
}

/// How the score of one class gives those of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    /// It does not: the second stays zero.
    None,
    /// `1 - s` and `s`.
    Complement,
    /// `-s` and `s`.
    Opposite,
}

impl Operator for Classifier {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (rows, _) = rows_and_columns(input)?;
        let width = self.labels.len();
        let mut output = ctx.allocate(DType::F32, &[rows, width])?;
        let cells = output.as_mut_slice::<f32>()?;
        let mut chosen = vec![Choice::Class(0); rows];
        self.trees.for_each_row(ctx, input, |index, scores| {
            chosen[index] = self.finish(scores, &mut cells[index * width..(index + 1) * width]);
        })?;
        Ok(smallvec![self.labels.tensor(ctx, &chosen)?.into(), output.into()])
    }
}
