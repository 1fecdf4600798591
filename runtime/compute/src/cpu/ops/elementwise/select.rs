//! Operators that choose between values: `Where` and `Clip`.

use super::number::{Number, by_numeric};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::broadcast::{Broadcast, broadcast_shape};
use crate::cpu::ops::layout::{
    StringsOut, by_width, cells, cells_mut, element_count, string_tensor,
};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

struct Where;

pub(crate) fn build_where(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Where))
}

impl Operator for Where {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (condition, a, b) = (inputs.tensor(0)?, inputs.tensor(1)?, inputs.tensor(2)?);
        if a.dtype() != b.dtype() {
            let (a, b) = (a.dtype(), b.dtype());
            return Err(Error::invalid(format!("the branches are {a} and {b}; cast one of them")));
        }
        let flags = condition.bool_bytes()?;
        let shape = broadcast_shape(&[condition.shape(), a.shape(), b.shape()])?;
        let shapes = [condition.shape(), a.shape(), b.shape()];
        let output = if a.dtype() == DType::String {
            StringsOut::new(element_count(&shape)?)?;
            let walk = Broadcast::new(&shape, shapes);
            let (a, b) = (a.strings()?, b.strings()?);
            let mut chosen = Vec::new();
            choose(&walk, flags, |flag, at_a, at_b| {
                chosen.push(if flag { a.get(at_a) } else { b.get(at_b) });
            });
            string_tensor(&shape, chosen.into_iter())?
        } else {
            numbers(ctx, &shape, shapes, flags, (a, b))?
        };
        Ok(smallvec![output.into()])
    }
}

fn numbers(
    ctx: &OpContext<'_>,
    shape: &[usize],
    shapes: [&[usize]; 3],
    flags: &[u8],
    (a, b): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let mut output = ctx.allocate(a.dtype(), shape)?;
    let walk = &Broadcast::new(shape, shapes);
    by_width!(a.dtype(), T => {
        let (a, b) = (cells::<T>(a)?, cells::<T>(b)?);
        let mut target = cells_mut::<T>(&mut output)?.iter_mut();
        choose(walk, flags, |flag, at_a, at_b| {
            if let Some(target) = target.next() {
                *target = if flag { a[at_a] } else { b[at_b] };
            }
        });
        Ok(())
    })?;
    Ok(output)
}

fn choose(walk: &Broadcast<3>, flags: &[u8], mut visit: impl FnMut(bool, usize, usize)) {
    let [by_flag, by_a, by_b] = walk.steps;
    walk.for_each_run(|[flag, a, b]| {
        for index in 0..walk.run {
            visit(flags[flag + index * by_flag] != 0, a + index * by_a, b + index * by_b);
        }
    });
}

/// Bounds as inputs, each optional; before opset 11, as attributes.
struct Clip {
    low: Option<f32>,
    high: Option<f32>,
}

pub(crate) fn build_clip_attributes(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let attributes = Attributes(node);
    Ok(Box::new(Clip { low: attributes.float("min")?, high: attributes.float("max")? }))
}

pub(crate) fn build_clip(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Clip { low: None, high: None }))
}

impl Operator for Clip {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let tensor = inputs.take(0)?;
        let output = by_numeric!(tensor.dtype(), "Clip", T => {
            let low = bound::<T>(&inputs, 1, self.low)?;
            let high = bound::<T>(&inputs, 2, self.high)?;
            clip::<T>(ctx, tensor, low, high)
        })?;
        Ok(smallvec![output.into()])
    }
}

fn bound<T: Number>(inputs: &Inputs<'_>, index: usize, fixed: Option<f32>) -> Result<Option<T>> {
    let Some(tensor) = inputs.optional(index)? else {
        return Ok(fixed.map(|value| T::from_f64(f64::from(value))));
    };
    match tensor.as_slice::<T>()? {
        [value] => Ok(Some(*value)),
        values => Err(Error::invalid(format!("a bound has {} elements, not 1", values.len()))),
    }
}

fn clip<T: Number>(
    ctx: &OpContext<'_>,
    tensor: Tensor,
    low: Option<T>,
    high: Option<T>,
) -> Result<Tensor> {
    let mut output = writable(ctx, tensor)?;
    for value in output.as_mut_slice::<T>()? {
        // NaN compares with nothing and stays; a high below the low wins.
        if let Some(low) = low
            && *value < low
        {
            *value = low;
        }
        if let Some(high) = high
            && *value > high
        {
            *value = high;
        }
    }
    Ok(output)
}

/// The tensor itself when nobody else holds it, else a copy in the arena.
pub(crate) fn writable(ctx: &OpContext<'_>, mut tensor: Tensor) -> Result<Tensor> {
    if tensor.mut_bytes().is_some() {
        return Ok(tensor);
    }
    let mut copy = ctx.allocate(tensor.dtype(), tensor.shape())?;
    match (copy.mut_bytes(), tensor.bytes()) {
        (Some(target), Some(source)) => target.copy_from_slice(source),
        _ => return Err(Error::unsupported("strings cannot be computed with")),
    }
    Ok(copy)
}
