//! Elements by condition.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{axis, by_number, copy_blocks, element_count, strides};
use mortise_types::{DType, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;
use std::cmp::Ordering;

/// Coordinates of the elements that are not zero, one column each.
pub(super) struct NonZero;

impl Operator for NonZero {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let found = truthy(input)?;
        // A scalar counts as one row.
        let shape: Shape = if input.rank() == 0 { smallvec![1] } else { input.shape().into() };
        let steps = strides(&shape);
        let mut output = ctx.allocate(DType::I64, &[shape.len(), found.len()])?;
        if !found.is_empty() {
            let rows = output.as_mut_slice::<i64>()?.chunks_exact_mut(found.len());
            for ((row, &step), &size) in rows.zip(&steps).zip(&shape) {
                for (cell, &at) in row.iter_mut().zip(&found) {
                    *cell = (at / step % size) as i64;
                }
            }
        }
        Ok(smallvec![output.into()])
    }
}

/// Positions of the elements that are not zero.
fn truthy(input: &Tensor) -> Result<Vec<usize>> {
    if input.dtype() == DType::Bool {
        let bytes = input.bool_bytes()?.iter().enumerate();
        return Ok(bytes.filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect());
    }
    by_number!(input.dtype(), T => {
        let values = input.as_slice::<T>()?.iter().enumerate();
        Ok(values.filter(|(_, value)| **value != T::default()).map(|(at, _)| at).collect())
    })
}

/// Slices for which a condition holds.
pub(super) struct Compress(Option<i64>);

impl Compress {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).int("axis")?)))
    }
}

impl Operator for Compress {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let condition = inputs.tensor(1)?.bool_bytes()?;
        let (mut shape, along): (Shape, usize) = match self.0 {
            Some(along) => (input.shape().into(), axis(along, input.rank())?),
            None => (smallvec![input.len()], 0),
        };
        let size = shape[along];
        let chosen = condition.iter().take(size).enumerate().filter(|(_, on)| **on != 0);
        let chosen: Vec<usize> = chosen.map(|(at, _)| at).collect();
        let block = element_count(&shape[along + 1..])?;
        shape[along] = chosen.len();
        let output = copy_blocks(ctx, input, &shape, block, |run| {
            Ok((run / chosen.len() * size + chosen[run % chosen.len()]) * block)
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Distinct elements or slices, where they first stand, which of them each
/// input is, and how often each occurs.
pub(super) struct Unique {
    axis: Option<i64>,
    sorted: bool,
}

impl Unique {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let sorted = attributes.int_or("sorted", 1)? != 0;
        Ok(Box::new(Self { axis: attributes.int("axis")?, sorted }))
    }

    /// Positions of slices in order, equal ones next to each other and
    /// earlier first.
    fn ordered(&self, input: &Tensor, slices: &Slices) -> Result<Vec<usize>> {
        let mut order: Vec<usize> = (0..slices.size).collect();
        if input.dtype() == DType::String {
            let items = input.strings()?;
            let compare = |&a: &usize, &b: &usize| {
                slices
                    .elements(a)
                    .map(|at| items.get(at))
                    .cmp(slices.elements(b).map(|at| items.get(at)))
            };
            order.sort_by(compare);
            return Ok(order);
        }
        if input.dtype() == DType::Bool {
            let items = input.bool_bytes()?;
            order.sort_by(|&a, &b| {
                slices.elements(a).map(|at| items[at]).cmp(slices.elements(b).map(|at| items[at]))
            });
            return Ok(order);
        }
        by_number!(input.dtype(), T => {
            let items = input.as_slice::<T>()?;
            order.sort_by(|&a, &b| {
                slices
                    .elements(a)
                    .zip(slices.elements(b))
                    .map(|(x, y)| items[x].partial_cmp(&items[y]).unwrap_or(Ordering::Equal))
                    .find(|order| order.is_ne())
                    .unwrap_or(Ordering::Equal)
            });
            Ok(order)
        })
    }

    fn same(&self, input: &Tensor, slices: &Slices, a: usize, b: usize) -> Result<bool> {
        if input.dtype() == DType::String {
            let items = input.strings()?;
            return Ok(slices
                .elements(a)
                .zip(slices.elements(b))
                .all(|(x, y)| items.get(x) == items.get(y)));
        }
        if input.dtype() == DType::Bool {
            let items = input.bool_bytes()?;
            return Ok(slices
                .elements(a)
                .zip(slices.elements(b))
                .all(|(x, y)| items[x] == items[y]));
        }
        by_number!(input.dtype(), T => {
            let items = input.as_slice::<T>()?;
            Ok(slices.elements(a).zip(slices.elements(b)).all(|(x, y)| items[x] == items[y]))
        })
    }
}

/// A tensor as slices along an axis.
struct Slices {
    outer: usize,
    size: usize,
    inner: usize,
}

impl Slices {
    fn elements(&self, slice: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.outer).flat_map(move |outer| {
            let start = (outer * self.size + slice) * self.inner;
            start..start + self.inner
        })
    }
}

impl Operator for Unique {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (mut shape, along): (Shape, usize) = match self.axis {
            Some(along) => (input.shape().into(), axis(along, input.rank())?),
            None => (smallvec![input.len()], 0),
        };
        let slices = Slices {
            outer: element_count(&shape[..along])?,
            size: shape[along],
            inner: element_count(&shape[along + 1..])?,
        };
        let order = self.ordered(input, &slices)?;
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for slice in order {
            match groups.last_mut() {
                Some(group) if self.same(input, &slices, group[0], slice)? => group.push(slice),
                _ => groups.push(vec![slice]),
            }
        }
        if !self.sorted {
            groups.sort_by_key(|group| group[0]);
        }
        let mut inverse = vec![0i64; slices.size];
        for (number, group) in groups.iter().enumerate() {
            group.iter().for_each(|&slice| inverse[slice] = number as i64);
        }
        let first: Vec<i64> = groups.iter().map(|group| group[0] as i64).collect();
        let counts: Vec<i64> = groups.iter().map(|group| group.len() as i64).collect();
        shape[along] = groups.len();
        let output = copy_blocks(ctx, input, &shape, slices.inner, |run| {
            let slice = first[run % first.len()] as usize;
            Ok((run / first.len() * slices.size + slice) * slices.inner)
        })?;
        let list = |values: Vec<i64>| Tensor::from_vec(&[values.len()], values);
        let mut outputs: Outputs = smallvec![output.into()];
        for values in [first, inverse, counts] {
            outputs.push(list(values)?.into());
        }
        outputs.truncate(ctx.output_count.max(1));
        Ok(outputs)
    }
}
