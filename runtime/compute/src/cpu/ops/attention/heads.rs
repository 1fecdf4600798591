//! `HeadsAttention`: what the planner makes of attention that a file spells
//! out, transposes included.

use super::kernel::{Heads, product};
use crate::cpu::arena::Arena;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::softmax::softmax_rows;
use mortise_types::{DType, Error, NodeDef, Result, RunControl, Tensor};
use rayon::prelude::*;
use rten_tensor::NdTensorView;
use smallvec::smallvec;
use std::sync::Arc;

/// Multiply-adds below which threads cost more than they bring.
const PARALLEL_WORTH: usize = 1 << 20;

/// Queries, keys and values `[batch, length, heads, size]` and an optional
/// mask `[batch, heads, queries, keys]`, broadcast, to
/// `[batch, queries, heads, size]`.
pub(super) struct HeadsAttention {
    scale: f32,
}

impl HeadsAttention {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self { scale: Attributes(node).float_or("scale", 1.0)? }))
    }
}

impl Operator for HeadsAttention {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let heads = |at: usize| Heads::of_positions(inputs.tensor(at)?);
        let work = Work {
            control: ctx.control,
            arena: ctx.arena,
            scale: self.scale,
            query: heads(0)?,
            key: heads(1)?,
            value: heads(2)?,
            mask: inputs.optional(3)?.map(AddedMask::new).transpose()?,
        };
        Ok(smallvec![work.run()?.into()])
    }
}

/// One run; heads may be computed on several threads.
struct Work<'a> {
    control: &'a RunControl,
    arena: &'a Arc<Arena>,
    scale: f32,
    query: Heads<'a>,
    key: Heads<'a>,
    value: Heads<'a>,
    mask: Option<AddedMask<'a>>,
}

impl Work<'_> {
    fn run(&self) -> Result<Tensor> {
        let [batch, heads] = self.sizes()?;
        let (length, size) = (self.query.length, self.value.size);
        let mut output = self.arena.allocate(DType::F32, &[batch, length, heads, size])?;
        if output.is_empty() {
            return Ok(output);
        }
        let mut weighed = self.arena.allocate(DType::F32, &[batch, heads, length, size])?;
        let weighed = weighed.as_mut_slice::<f32>()?;
        let block = length * size;
        let one = |(at, out): (usize, &mut [f32])| self.head(at / heads, at % heads, out);
        let cost = weighed.len() * self.key.length;
        if rayon::current_num_threads() > 1 && cost > PARALLEL_WORTH {
            weighed.par_chunks_mut(block).enumerate().try_for_each(one)?;
        } else {
            weighed.chunks_mut(block).enumerate().try_for_each(one)?;
        }
        let rows = output.as_mut_slice::<f32>()?.chunks_exact_mut(size).enumerate();
        for (row, values) in rows {
            let (head, position) = (row % heads, row / heads % length);
            let at = ((row / heads / length * heads + head) * length + position) * size;
            values.copy_from_slice(&weighed[at..at + size]);
        }
        Ok(output)
    }

    /// Batch and heads that all operands broadcast to.
    fn sizes(&self) -> Result<[usize; 2]> {
        let (query, key, value) = (&self.query, &self.key, &self.value);
        let mask = self.mask.as_ref().map_or([1; 4], |mask| mask.shape);
        let fits = query.size == key.size
            && key.length == value.length
            && (mask[2] == 1 || mask[2] == query.length)
            && (mask[3] == 1 || mask[3] == key.length);
        let joint = |sizes: [usize; 4]| {
            let size = sizes.into_iter().find(|size| *size != 1).unwrap_or(1);
            sizes.iter().all(|other| *other == 1 || *other == size).then_some(size)
        };
        let batch = joint([query.batch, key.batch, value.batch, mask[0]]);
        let heads = joint([query.heads, key.heads, value.heads, mask[1]]);
        match (batch, heads) {
            (Some(batch), Some(heads)) if fits => Ok([batch, heads]),
            _ => Err(Error::invalid("queries, keys, values and mask do not fit each other")),
        }
    }

    fn head(&self, batch: usize, head: usize, out: &mut [f32]) -> Result<()> {
        self.control.check()?;
        let (length, keys) = (self.query.length, self.key.length);
        if keys == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let mut scores = self.arena.allocate(DType::F32, &[length, keys])?;
        let scores = scores.as_mut_slice::<f32>()?;
        let transposed = self.key.broadcast_matrix(batch, head)?.transposed();
        product(scores, self.query.broadcast_matrix(batch, head)?, transposed, self.scale)?;
        if let Some(mask) = &self.mask {
            let rows = scores.chunks_mut(keys).enumerate();
            rows.for_each(|(query, row)| mask.add(batch, head, query, row));
        }
        softmax_rows(scores, keys);
        let weights = NdTensorView::from_data([length, keys], &*scores);
        product(out, weights, self.value.broadcast_matrix(batch, head)?, 1.0)
    }
}

struct AddedMask<'a> {
    values: &'a [f32],
    shape: [usize; 4],
}

impl<'a> AddedMask<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let shape = <[usize; 4]>::try_from(tensor.shape())
            .map_err(|_| Error::invalid(format!("the mask {tensor:?} is not of rank 4")))?;
        Ok(Self { values: tensor.as_slice::<f32>()?, shape })
    }

    /// Adds the mask of one query to its scores.
    fn add(&self, batch: usize, head: usize, query: usize, scores: &mut [f32]) {
        let [batches, heads, queries, keys] = self.shape;
        let at = |size: usize, index: usize| if size == 1 { 0 } else { index };
        let row = (at(batches, batch) * heads + at(heads, head)) * queries + at(queries, query);
        match self.values.get(row * keys..(row + 1) * keys) {
            Some([value]) => scores.iter_mut().for_each(|score| *score += value),
            Some(mask) => scores.iter_mut().zip(mask).for_each(|(score, mask)| *score += mask),
            None => {}
        }
    }
}
