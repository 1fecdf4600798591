//! Losses of classifiers: how far class scores are from given targets. Models
//! that were exported with their training graph still contain them.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::{element_count, integers};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "NegativeLogLikelihoodLoss", since: 12, build: Loss::build },
    Entry { op: "SoftmaxCrossEntropyLoss", since: 12, build: Loss::build_softmax },
];

/// What becomes of the losses of all places.
#[derive(Clone, Copy)]
enum Reduction {
    None,
    Sum,
    /// Divided by the weights that counted.
    Mean,
}

struct Loss {
    reduction: Reduction,
    /// A target that counts as nothing.
    ignored: Option<i64>,
    /// Scores become logarithms of probabilities first.
    softmax: bool,
}

impl Loss {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self::parse(node, false)?))
    }

    fn build_softmax(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self::parse(node, true)?))
    }

    fn parse(node: &NodeDef, softmax: bool) -> Result<Self> {
        let attributes = Attributes(node);
        let reduction = match attributes.text("reduction")?.unwrap_or("mean") {
            "none" => Reduction::None,
            "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            other => {
                let node = node.describe();
                return Err(Error::unsupported(format!("{node}: reduction \"{other}\"")));
            }
        };
        Ok(Self { reduction, ignored: attributes.int("ignore_index")?, softmax })
    }
}

/// `[batch, classes, places]`, all dimensions after the classes as one.
struct Scores {
    values: Vec<f64>,
    classes: usize,
    places: usize,
}

impl Scores {
    fn of(ctx: &OpContext<'_>, input: &Tensor) -> Result<Self> {
        let [_, classes, ref rest @ ..] = *input.shape() else {
            return Err(Error::invalid(format!("scores must be [N, C, …], got {input:?}")));
        };
        let values = cast_tensor(ctx, input, DType::F64)?.as_slice::<f64>()?.to_vec();
        Ok(Self { values, classes, places: element_count(rest)? })
    }

    /// Where the score of a class lies for target `at`.
    fn index(&self, at: usize, class: usize) -> usize {
        let (batch, place) = (at / self.places, at % self.places);
        (batch * self.classes + class) * self.places + place
    }

    /// Scores to logarithms of probabilities, over the classes.
    fn log_softmax(&mut self) {
        let block = self.classes * self.places;
        if block == 0 {
            return;
        }
        for at in 0..self.values.len() / self.classes {
            let cells: Vec<usize> = (0..self.classes).map(|class| self.index(at, class)).collect();
            let largest =
                cells.iter().map(|&cell| self.values[cell]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = cells.iter().map(|&cell| (self.values[cell] - largest).exp()).sum();
            cells.iter().for_each(|&cell| self.values[cell] -= largest + sum.ln());
        }
    }
}

impl Loss {
    /// The loss and the weight of one target.
    fn one(
        &self,
        scores: &Scores,
        weights: Option<&[f64]>,
        at: usize,
        target: i64,
    ) -> Result<(f64, f64)> {
        if Some(target) == self.ignored {
            return Ok((0.0, 0.0));
        }
        let class = usize::try_from(target).ok().filter(|&class| class < scores.classes);
        let class = class.ok_or_else(|| {
            Error::invalid(format!("target {target} is none of {} classes", scores.classes))
        })?;
        let weight = weights.map_or(1.0, |weights| weights[class]);
        Ok((-weight * scores.values[scores.index(at, class)], weight))
    }
}

impl Operator for Loss {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, targets) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let mut scores = Scores::of(ctx, input)?;
        if [&input.shape()[..1], &input.shape()[2..]].concat() != targets.shape() {
            return Err(Error::invalid(format!("targets {targets:?} do not fit {input:?}")));
        }
        let weights =
            inputs.optional(2)?.map(|weights| cast_tensor(ctx, weights, DType::F64)).transpose()?;
        let weights = weights.as_ref().map(Tensor::as_slice::<f64>).transpose()?;
        if weights.is_some_and(|weights| weights.len() != scores.classes) {
            return Err(Error::invalid(format!("weights must have {} elements", scores.classes)));
        }
        if self.softmax {
            scores.log_softmax();
        }
        let mut losses = Vec::with_capacity(targets.len());
        let mut total_weight = 0.0;
        for (at, &target) in integers(targets)?.iter().enumerate() {
            let (loss, weight) = self.one(&scores, weights, at, target)?;
            losses.push(loss);
            total_weight += weight;
        }
        let sum = losses.iter().sum::<f64>();
        let loss = match self.reduction {
            Reduction::None => Tensor::from_vec(targets.shape(), losses)?,
            Reduction::Sum => Tensor::scalar(sum),
            Reduction::Mean => Tensor::scalar(sum / total_weight),
        };
        let mut outputs: Outputs = smallvec![cast_tensor(ctx, &loss, input.dtype())?.into()];
        if self.softmax && ctx.output_count > 1 {
            let probabilities = Tensor::from_vec(input.shape(), scores.values)?;
            outputs.push(cast_tensor(ctx, &probabilities, input.dtype())?.into());
        }
        Ok(outputs)
    }
}
