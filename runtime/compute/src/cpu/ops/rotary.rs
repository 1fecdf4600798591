//! Rotary position embeddings (<https://arxiv.org/abs/2104.09864>).

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::{dim, index, integers};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] =
    &[Entry { op: "RotaryEmbedding", since: 23, build: Rotary::build }];

/// Turns pairs of numbers of each head by an angle that grows with the
/// position.
struct Rotary {
    /// Needed where the input is `[batch, length, heads · size]`.
    heads: usize,
    /// Numbers of a head that are turned; 0 for all.
    turned: usize,
    /// Pairs are neighbours, not halves.
    interleaved: bool,
}

impl Rotary {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            heads: dim(attributes.int_or("num_heads", 0)?)?,
            turned: dim(attributes.int_or("rotary_embedding_dim", 0)?)?,
            interleaved: attributes.int_or("interleaved", 0)? != 0,
        }))
    }

    /// Turns one head in place.
    fn turn(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let half = cos.len();
        for (pair, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let (a, b) =
                if self.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, half + pair) };
            let (x, y) = (head[a], head[b]);
            head[a] = cos * x - sin * y;
            head[b] = sin * x + cos * y;
        }
    }
}

/// The sizes of the input, and in which order its rows lie.
struct Geometry {
    batch: usize,
    length: usize,
    heads: usize,
    size: usize,
    heads_first: bool,
}

impl Geometry {
    fn of(input: &Tensor, heads: usize) -> Result<Self> {
        match *input.shape() {
            [batch, heads, length, size] => {
                Ok(Self { batch, length, heads, size, heads_first: true })
            }
            [batch, length, width] if heads > 0 && width % heads == 0 => {
                Ok(Self { batch, length, heads, size: width / heads, heads_first: false })
            }
            _ => Err(Error::invalid(format!(
                "RotaryEmbedding takes rank 4, or rank 3 and num_heads; got {input:?}"
            ))),
        }
    }

    /// Batch and position of row `row`.
    fn place(&self, row: usize) -> (usize, usize) {
        let block = self.heads * self.length;
        let position =
            if self.heads_first { row % self.length } else { row / self.heads % self.length };
        (row / block, position)
    }
}

impl Operator for Rotary {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let geometry = Geometry::of(input, self.heads)?;
        let turned = if self.turned == 0 { geometry.size } else { self.turned };
        let half = turned / 2;
        let caches = [1, 2].map(|index| cast_tensor(ctx, inputs.tensor(index)?, DType::F32));
        let [cos, sin] = caches;
        let (cos, sin) = (cos?, sin?);
        let positions = inputs.optional(3)?.map(integers).transpose()?;
        let given = positions.as_ref().map(|list| list.len());
        let rows = cos.len().checked_div(half).unwrap_or(0);
        let fits = turned <= geometry.size
            && cos.shape() == sin.shape()
            && cos.shape().last() == Some(&half)
            && given.is_none_or(|count| count == geometry.batch * geometry.length)
            && (given.is_some() || rows == geometry.batch * geometry.length);
        if !fits {
            return Err(Error::invalid(format!("caches {cos:?} and {sin:?} do not fit {input:?}")));
        }
        let mut output = cast_tensor(ctx, input, DType::F32)?;
        output = crate::cpu::ops::elementwise::writable(ctx, output)?;
        let (cos, sin) = (cos.as_slice::<f32>()?, sin.as_slice::<f32>()?);
        if geometry.size > 0 {
            let heads = output.as_mut_slice::<f32>()?.chunks_exact_mut(geometry.size);
            for (row, head) in heads.enumerate() {
                let (batch, position) = geometry.place(row);
                let at = batch * geometry.length + position;
                let at = match &positions {
                    Some(positions) => index(positions[at], rows)?,
                    None => at,
                };
                let own = at * half..(at + 1) * half;
                self.turn(&mut head[..turned], &cos[own.clone()], &sin[own]);
            }
        }
        Ok(smallvec![cast_tensor(ctx, &output, input.dtype())?.into()])
    }
}
