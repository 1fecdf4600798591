//! Steps of optimisers, for models that train a little where they are served:
//! `ai.onnx.preview.training`.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::doubles;
use mortise_types::{DType, Error, NodeDef, Result, Tensor};

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "Adagrad", since: 1, build: |node| Step::build(node, Adagrad::parse(node)?) },
    Entry { op: "Adam", since: 1, build: |node| Step::build(node, Adam::parse(node)?) },
    Entry { op: "Momentum", since: 1, build: |node| Step::build(node, Momentum::parse(node)?) },
];

/// The rule by which one number is optimised.
trait Rule: Send + Sync + 'static {
    /// Numbers that are kept beside each parameter.
    const STATES: usize;

    /// One step: changes the parameter and its states, given the gradient.
    fn step(&self, rate: f64, time: i64, x: &mut f64, gradient: f64, states: &mut [f64]);
}

/// A step over any number of tensors: rate, time, then all tensors, all
/// gradients, and each state of all.
struct Step<R>(R);

impl<R: Rule> Step<R> {
    fn build(_: &NodeDef, rule: R) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(rule)))
    }
}

impl<R: Rule> Operator for Step<R> {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let scalar = |index: usize| -> Result<f64> {
            match *doubles(inputs.tensor(index)?)? {
                [value] => Ok(value),
                _ => Err(Error::invalid(format!("input {index} must be one number"))),
            }
        };
        let (rate, time) = (scalar(0)?, scalar(1)? as i64);
        let parts = R::STATES + 2;
        let count = inputs.len().saturating_sub(2) / parts;
        if count == 0 || inputs.len() != 2 + count * parts {
            let got = inputs.len();
            return Err(Error::invalid(format!("{got} inputs are not 2 and {parts} a tensor")));
        }
        let mut outputs: Vec<Vec<Tensor>> = vec![Vec::new(); R::STATES + 1];
        for at in 0..count {
            let own = (0..parts).map(|part| inputs.tensor(2 + part * count + at));
            let own = own.collect::<Result<Vec<_>>>()?;
            for (list, tensor) in outputs.iter_mut().zip(self.tensors(ctx, rate, time, &own)?) {
                list.push(tensor);
            }
        }
        Ok(outputs.into_iter().flatten().map(Into::into).collect())
    }
}

impl<R: Rule> Step<R> {
    /// The new parameters and states of one tensor.
    fn tensors(
        &self,
        ctx: &OpContext<'_>,
        rate: f64,
        time: i64,
        own: &[&Tensor],
    ) -> Result<Vec<Tensor>> {
        if own.iter().any(|tensor| tensor.shape() != own[0].shape()) {
            return Err(Error::invalid(format!("{own:?} must have one shape")));
        }
        let wide = |tensor: &&Tensor| -> Result<Vec<f64>> {
            Ok(cast_tensor(ctx, tensor, DType::F64)?.as_slice::<f64>()?.to_vec())
        };
        let mut values = own.iter().map(wide).collect::<Result<Vec<_>>>()?;
        let gradient = values.remove(1);
        for (at, gradient) in gradient.into_iter().enumerate() {
            let mut cells: Vec<f64> = values.iter().map(|list| list[at]).collect();
            if let [x, states @ ..] = cells.as_mut_slice() {
                self.0.step(rate, time, x, gradient, states);
            }
            values.iter_mut().zip(cells).for_each(|(list, cell)| list[at] = cell);
        }
        let narrow = |values| {
            let tensor = Tensor::from_vec(own[0].shape(), values)?;
            cast_tensor(ctx, &tensor, own[0].dtype())
        };
        values.into_iter().map(narrow).collect()
    }
}

fn number(node: &NodeDef, name: &str, default: f32) -> Result<f64> {
    Attributes(node).float_or(name, default).map(f64::from)
}

struct Adagrad {
    decay: f64,
    epsilon: f64,
    regularization: f64,
}

impl Adagrad {
    fn parse(node: &NodeDef) -> Result<Self> {
        Ok(Self {
            decay: number(node, "decay_factor", 0.0)?,
            epsilon: number(node, "epsilon", 1e-6)?,
            regularization: number(node, "norm_coefficient", 0.0)?,
        })
    }
}

impl Rule for Adagrad {
    const STATES: usize = 1;

    fn step(&self, rate: f64, time: i64, x: &mut f64, gradient: f64, states: &mut [f64]) {
        let rate = rate / (1.0 + time as f64 * self.decay);
        let gradient = self.regularization * *x + gradient;
        states[0] += gradient * gradient;
        *x -= rate * gradient / (states[0].sqrt() + self.epsilon);
    }
}

struct Adam {
    alpha: f64,
    beta: f64,
    epsilon: f64,
    regularization: f64,
    regularization_after: f64,
}

impl Adam {
    fn parse(node: &NodeDef) -> Result<Self> {
        Ok(Self {
            alpha: number(node, "alpha", 0.9)?,
            beta: number(node, "beta", 0.999)?,
            epsilon: number(node, "epsilon", 1e-6)?,
            regularization: number(node, "norm_coefficient", 0.0)?,
            regularization_after: number(node, "norm_coefficient_post", 0.0)?,
        })
    }
}

impl Rule for Adam {
    const STATES: usize = 2;

    fn step(&self, rate: f64, time: i64, x: &mut f64, gradient: f64, states: &mut [f64]) {
        let gradient = self.regularization * *x + gradient;
        states[0] = self.alpha * states[0] + (1.0 - self.alpha) * gradient;
        states[1] = self.beta * states[1] + (1.0 - self.beta) * gradient * gradient;
        let corrected = |factor: f64| 1.0 - factor.powf(time as f64);
        let rate = match time {
            1.. => rate * corrected(self.beta).sqrt() / corrected(self.alpha),
            _ => rate,
        };
        *x -= rate * states[0] / (states[1].sqrt() + self.epsilon);
        *x *= 1.0 - self.regularization_after;
    }
}

struct Momentum {
    alpha: f64,
    beta: f64,
    regularization: f64,
    nesterov: bool,
}

impl Momentum {
    fn parse(node: &NodeDef) -> Result<Self> {
        let nesterov = match Attributes(node).text("mode")? {
            Some("nesterov") => true,
            Some("standard") => false,
            other => {
                let node = node.describe();
                return Err(Error::unsupported(format!("{node}: mode {other:?}")));
            }
        };
        Ok(Self {
            alpha: number(node, "alpha", 0.0)?,
            beta: number(node, "beta", 0.0)?,
            regularization: number(node, "norm_coefficient", 0.0)?,
            nesterov,
        })
    }
}

impl Rule for Momentum {
    const STATES: usize = 1;

    fn step(&self, rate: f64, time: i64, x: &mut f64, gradient: f64, states: &mut [f64]) {
        let gradient = self.regularization * *x + gradient;
        let beta = if time > 0 { self.beta } else { 1.0 };
        states[0] = self.alpha * states[0] + beta * gradient;
        let direction = if self.nesterov { gradient + self.alpha * states[0] } else { states[0] };
        *x -= rate * direction;
    }
}
