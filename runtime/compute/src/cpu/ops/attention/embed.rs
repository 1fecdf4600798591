//! `EmbedLayerNormalization`: the sum of word, position and segment embeddings,
//! normalised.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::index;
use mortise_types::{DType, Error, NodeDef, Result, Tensor, Value};
use smallvec::smallvec;

struct Embed {
    epsilon: f32,
}

pub(crate) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let attributes = Attributes(node);
    if attributes.int_or("mask_index_type", 1)? > 1 || node.outputs.len() > 3 {
        return Err(Error::unsupported(format!("{} with this mask type", node.describe())));
    }
    Ok(Box::new(Embed { epsilon: attributes.float_or("epsilon", 1e-12)? }))
}

/// A table of embeddings and the row that each position takes from it.
struct Lookup<'a> {
    table: &'a [f32],
    rows: usize,
    ids: Option<&'a [i32]>,
}

impl<'a> Lookup<'a> {
    fn new(table: &'a Tensor, ids: Option<&'a Tensor>, width: usize) -> Result<Self> {
        match *table.shape() {
            [rows, columns] if columns == width => {
                let ids = ids.map(|ids| ids.as_slice::<i32>()).transpose()?;
                Ok(Self { table: table.as_slice::<f32>()?, rows, ids })
            }
            ref shape => Err(Error::invalid(format!("embeddings {shape:?} are not {width} wide"))),
        }
    }

    fn row(&self, at: usize, default: usize, width: usize) -> Result<&'a [f32]> {
        let id = match self.ids {
            Some(ids) => *ids.get(at).ok_or_else(|| Error::invalid("too few ids"))?,
            None => i32::try_from(default).unwrap_or(i32::MAX),
        };
        let row = index(i64::from(id), self.rows)?;
        Ok(&self.table[row * width..][..width])
    }
}

impl Operator for Embed {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let words = inputs.tensor(0)?;
        let &[batch, length] = words.shape() else {
            return Err(Error::invalid("input_ids must have rank 2"));
        };
        let width = inputs.tensor(2)?.shape().last().copied().unwrap_or(0);
        let word = Lookup::new(inputs.tensor(2)?, Some(words), width)?;
        let position = Lookup::new(inputs.tensor(3)?, inputs.optional(8)?, width)?;
        let segments = inputs.optional(1)?;
        let segment = inputs.optional(4)?.map(|table| Lookup::new(table, segments, width));
        let segment = segment.transpose()?;
        let (gamma, beta) = (inputs.tensor(5)?.as_slice()?, inputs.tensor(6)?.as_slice()?);
        if gamma.len() != width || beta.len() != width || width == 0 {
            return Err(Error::invalid(format!("gamma and beta must have {width} elements")));
        }
        let mut output = ctx.allocate(DType::F32, &[batch, length, width])?;
        let rows = output.as_mut_slice::<f32>()?.chunks_mut(width);
        for (at, row) in rows.enumerate() {
            let place = position.row(at, at % length, width)?;
            row.iter_mut()
                .zip(word.row(at, 0, width)?.iter().zip(place))
                .for_each(|(out, (word, place))| *out = word + place);
            if let Some(segment) = &segment {
                let part = segment.row(at, 0, width)?;
                row.iter_mut().zip(part).for_each(|(out, part)| *out += part);
            }
            self.normalise(row, gamma, beta);
        }
        Ok(smallvec![output.into(), mask_lengths(inputs.optional(7)?, batch, length)?])
    }
}

impl Embed {
    fn normalise(&self, row: &mut [f32], gamma: &[f32], beta: &[f32]) {
        let count = row.len() as f64;
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let square = |x: &f32| (f64::from(*x) - mean).powi(2);
        let variance = row.iter().map(square).sum::<f64>() / count;
        let scale = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
        for (x, (gamma, beta)) in row.iter_mut().zip(gamma.iter().zip(beta)) {
            *x = ((f64::from(*x) - mean) * scale) as f32 * gamma + beta;
        }
    }
}

/// How many positions of each sequence count: the ones in its mask up to the
/// first zero, or none known without a mask.
fn mask_lengths(mask: Option<&Tensor>, batch: usize, length: usize) -> Result<Value> {
    let Some(mask) = mask else {
        return Ok(Tensor::from_vec(&[batch], vec![0i32; batch])?.into());
    };
    let flags = mask.as_slice::<i32>()?;
    let of = |row: usize| flags.iter().skip(row * length).take(length);
    let count = |row| of(row).position(|flag| *flag == 0).unwrap_or(length) as i32;
    Ok(Tensor::from_vec(&[batch], (0..batch).map(count).collect())?.into())
}
