//! What the classifiers and regressors of `ai.onnx.ml` share: the transforms
//! of scores, and labels that are integers or strings.

use crate::cpu::op::{Attributes, OpContext};
use crate::cpu::ops::layout::string_tensor;
use mortise_types::{DType, Error, Result, Tensor};

/// The `post_transform` attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    None,
    Logistic,
    Softmax,
    SoftmaxZero,
    Probit,
}

impl Transform {
    /// # Errors
    /// When the attribute is no known transform.
    pub(crate) fn of(attributes: &Attributes<'_>) -> Result<Self> {
        match attributes.text("post_transform")?.unwrap_or("NONE") {
            "NONE" => Ok(Self::None),
            "LOGISTIC" => Ok(Self::Logistic),
            "SOFTMAX" => Ok(Self::Softmax),
            "SOFTMAX_ZERO" => Ok(Self::SoftmaxZero),
            "PROBIT" => Ok(Self::Probit),
            other => Err(Error::unsupported(format!("post_transform \"{other}\""))),
        }
    }

    /// Transforms the scores of one row that has two or more.
    pub(crate) fn apply(self, row: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Logistic => row.iter_mut().for_each(|score| *score = logistic(*score)),
            Self::Probit => row.iter_mut().for_each(|score| *score = probit(*score)),
            Self::Softmax => softmax(row),
            Self::SoftmaxZero => softmax_zero(row),
        }
    }
}

/// The logistic function, stable for large magnitudes.
pub(crate) fn logistic(value: f32) -> f32 {
    let upper = 1.0 / (1.0 + (-value.abs()).exp());
    if value < 0.0 { 1.0 - upper } else { upper }
}

/// The normal distribution's quantile by Winitzki's approximation of the
/// inverse error function, which is what the operators are defined by.
pub(crate) fn probit(value: f32) -> f32 {
    const A: f32 = 0.147;
    let x = 2.0 * value - 1.0;
    let sign = if x < 0.0 { -1.0 } else { 1.0 };
    let log = ((1.0 - x) * (1.0 + x)).ln();
    #[expect(clippy::approx_constant, reason = "the operators are defined with this value")]
    const PI: f32 = 3.14159;
    let half = 2.0 / (PI * A) + 0.5 * log;
    std::f32::consts::SQRT_2 * sign * ((half * half - log / A).sqrt() - half).sqrt()
}

fn maximum(row: &[f32]) -> f32 {
    row.iter().fold(f32::MIN, |max, &score| if score > max { score } else { max })
}

fn softmax(row: &mut [f32]) {
    let max = maximum(row);
    let mut sum = 0.0;
    for score in row.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    row.iter_mut().for_each(|score| *score /= sum);
}

/// Softmax in which a score of zero stays (almost) zero.
fn softmax_zero(row: &mut [f32]) {
    let max = maximum(row);
    let shrink = (-max).exp();
    let mut sum = 0.0;
    for score in row.iter_mut() {
        if score.abs() > 1e-7 {
            *score = (*score - max).exp();
            sum += *score;
        } else {
            *score *= shrink;
        }
    }
    row.iter_mut().for_each(|score| *score /= sum);
}

/// Class labels of a classifier.
pub(crate) enum Labels {
    Ints(Vec<i64>),
    Strings(Vec<Vec<u8>>),
}

impl Labels {
    /// # Errors
    /// When neither list is there, or has the wrong type.
    pub(crate) fn of(attributes: &Attributes<'_>, ints: &str, strings: &str) -> Result<Self> {
        if let Some(list) = attributes.texts(strings)?.filter(|list| !list.is_empty()) {
            return Ok(Self::Strings(list.to_vec()));
        }
        match attributes.ints(ints)? {
            Some(list) if !list.is_empty() => Ok(Self::Ints(list.to_vec())),
            _ => Err(Error::invalid(format!("one of {ints} and {strings} must list the classes"))),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ints(list) => list.len(),
            Self::Strings(list) => list.len(),
        }
    }

    /// The label tensor of one chosen class per row.
    ///
    /// # Errors
    /// When memory runs out.
    pub(crate) fn tensor(&self, ctx: &OpContext<'_>, chosen: &[Choice]) -> Result<Tensor> {
        match self {
            Self::Strings(list) => {
                let items = chosen.iter().map(|choice| match choice {
                    Choice::Class(index) => list.get(*index).map_or(&b""[..], Vec::as_slice),
                    Choice::Sign(false) => list.first().map_or(&b"0"[..], Vec::as_slice),
                    Choice::Sign(true) => list.get(1).map_or(&b"1"[..], Vec::as_slice),
                });
                string_tensor(&[chosen.len()], items)
            }
            Self::Ints(list) => {
                let mut output = ctx.allocate(DType::I64, &[chosen.len()])?;
                for (cell, choice) in output.as_mut_slice::<i64>()?.iter_mut().zip(chosen) {
                    *cell = match choice {
                        Choice::Class(index) => list.get(*index).copied().unwrap_or_default(),
                        Choice::Sign(positive) => i64::from(*positive),
                    };
                }
                Ok(output)
            }
        }
    }
}

/// What a classifier decided for one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The class at this index of the labels.
    Class(usize),
    /// Above or below zero where the labels do not say what that means:
    /// integer labels are then 1 and 0, as onnxruntime has it.
    Sign(bool),
}

/// Index of the first largest score; NaN never wins except at the front.
pub(crate) fn first_largest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate().skip(1) {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from onnxruntime 1.32.
    #[test]
    fn transforms_give_known_values() {
        let cases: [(Transform, [f32; 3], [f32; 3]); 4] = [
            (Transform::Softmax, [1.0, 2.0, 3.0], [0.090_030_57, 0.244_728_48, 0.665_240_94]),
            (Transform::SoftmaxZero, [0.0, 1.0, 1.0], [0.0, 0.5, 0.5]),
            (Transform::Logistic, [0.0, -1.0, 1.0], [0.5, 0.268_941_43, 0.731_058_6]),
            (Transform::Probit, [0.2, 0.5, 0.7], [-0.841_756_1, 0.0, 0.524_445_9]),
        ];
        for (transform, mut row, want) in cases {
            transform.apply(&mut row);
            for (got, want) in row.iter().zip(want) {
                assert!((got - want).abs() < 1e-5, "{transform:?}: {row:?}");
            }
        }
    }
}
