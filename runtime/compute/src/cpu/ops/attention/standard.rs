//! `Attention` of ONNX's default domain, with its cache of keys and values.

use super::kernel::{Heads, Mask, Scaled, heads_first};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::number::Add;
use crate::cpu::ops::elementwise::{arithmetic, cast_tensor, writable};
use crate::cpu::ops::layout::{View, copy_view, integers};
use crate::cpu::ops::shape_ops::concatenate;
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;

/// What the output of scores shows.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Products,
    Capped,
    Masked,
    Weights,
}

pub(super) struct Attention {
    query_heads: Option<usize>,
    key_heads: Option<usize>,
    scale: Option<f32>,
    causal: bool,
    softcap: f32,
    stage: Stage,
}

impl Attention {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let count = |name: &str| -> Result<Option<usize>> {
            Ok(attributes.int(name)?.and_then(|count| usize::try_from(count).ok()))
        };
        let given = |index: usize| node.inputs.get(index).copied().flatten().is_some();
        if given(4) != given(5) || (given(4) && given(6)) {
            return Err(Error::invalid(format!(
                "{}: past_key and past_value come together, and without nonpad_kv_seqlen",
                node.describe()
            )));
        }
        let stage = match attributes.int_or("qk_matmul_output_mode", 0)? {
            0 => Stage::Products,
            1 => Stage::Capped,
            2 => Stage::Masked,
            3 => Stage::Weights,
            other => {
                let node = node.describe();
                return Err(Error::unsupported(format!("{node}: qk_matmul_output_mode = {other}")));
            }
        };
        Ok(Box::new(Self {
            query_heads: count("q_num_heads")?,
            key_heads: count("kv_num_heads")?,
            scale: attributes.float("scale")?,
            causal: attributes.int_or("is_causal", 0)? != 0,
            softcap: attributes.float_or("softcap", 0.0)?,
            stage,
        }))
    }
}

/// `[batch, length, heads · size]` as `[batch, heads, length, size]`; other
/// ranks stay as they are.
fn split_heads(ctx: &OpContext<'_>, tensor: &Tensor, heads: Option<usize>) -> Result<Tensor> {
    let (&[batch, length, width], Some(heads)) = (tensor.shape(), heads) else {
        return Ok(tensor.clone());
    };
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(Error::invalid(format!("{tensor:?} does not split into {heads} heads")));
    }
    let shape = [batch, heads, length, width / heads];
    let mut view = View::of(&[batch, length, heads, width / heads]);
    view.shape.swap(1, 2);
    view.strides.swap(1, 2);
    copy_view(ctx, tensor, &view, &shape)
}

/// Keys or values after those of the past.
fn present(
    ctx: &OpContext<'_>,
    past: Option<&Tensor>,
    new: &Tensor,
    heads: Option<usize>,
) -> Result<Tensor> {
    let new = split_heads(ctx, new, heads)?;
    match past {
        Some(past) => concatenate(ctx, &[past, &new], 2),
        None => Ok(new),
    }
}

/// What is added to scores over `keys` keys: the mask, whose last dimension
/// may be short, and one for the keys that are padding.
fn added(
    ctx: &OpContext<'_>,
    mask: Option<&Tensor>,
    lengths: Option<&Tensor>,
    keys: usize,
) -> Result<Option<Tensor>> {
    let mask = match Mask::of_scores(ctx, mask)? {
        Mask::Added(mask) => Some(widened(mask, keys)?),
        _ => None,
    };
    let Some(lengths) = lengths else { return Ok(mask) };
    let lengths = integers(lengths)?;
    let hidden = |(key, length): (usize, i64)| {
        if (key as i64) < length { 0.0 } else { f32::NEG_INFINITY }
    };
    let flags = lengths.iter().flat_map(|&length| (0..keys).map(move |key| hidden((key, length))));
    let padding = Tensor::from_vec(&[lengths.len(), 1, 1, keys], flags.collect())?;
    match mask {
        Some(mask) => arithmetic::<Add>(ctx, mask, padding).map(Some),
        None => Ok(Some(padding)),
    }
}

/// A mask whose last dimension is short hides the keys beyond it.
fn widened(mask: Tensor, keys: usize) -> Result<Tensor> {
    let width = mask.shape().last().copied().unwrap_or(1);
    if width == 1 || width >= keys {
        return Ok(mask);
    }
    let mut shape: Shape = mask.shape().into();
    let last = shape.len() - 1;
    shape[last] = keys;
    let mut values = Vec::with_capacity(mask.len() / width * keys);
    for row in mask.as_slice::<f32>()?.chunks_exact(width) {
        values.extend_from_slice(row);
        values.resize(values.len() + keys - width, f32::NEG_INFINITY);
    }
    Tensor::from_vec(&shape, values)
}

impl Operator for Attention {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let dtype = inputs.tensor(0)?.dtype();
        let past = inputs.optional(4)?.map_or(0, |past| past.shape().get(2).copied().unwrap_or(0));
        let cached = ctx.output_count > 1 || past > 0;
        let keep = |index: usize| -> Result<Tensor> {
            let new = inputs.tensor(index)?;
            match cached {
                true => present(ctx, inputs.optional(index + 3)?, new, self.key_heads),
                false => Ok(new.clone()),
            }
        };
        let (keys, values) = (keep(1)?, keep(2)?);
        let single = |tensor: &Tensor| cast_tensor(ctx, tensor, DType::F32);
        let (q, k, v) = (single(inputs.tensor(0)?)?, single(&keys)?, single(&values)?);
        let (query, key, value) = (
            Heads::of(&q, self.query_heads)?,
            Heads::of(&k, self.key_heads)?,
            Heads::of(&v, self.key_heads)?,
        );
        let mask = added(ctx, inputs.optional(3)?, inputs.optional(6)?, key.length)?;
        let scaled = Scaled {
            scale: self.scale.unwrap_or(1.0 / (query.size as f32).sqrt()),
            causal: self.causal.then_some(past),
            softcap: self.softcap,
            mask: mask.clone().map_or(Mask::None, Mask::Added),
        };
        let output = scaled.run(ctx, &query, &key, &value)?;
        let (batch, heads, length, size) = (query.batch, query.heads, query.length, value.size);
        let output = match q.rank() {
            3 => output.reshaped(&[batch, length, heads * size])?,
            _ => heads_first(ctx, &output, [batch, length, heads, size])?,
        };
        let mut outputs: Outputs = smallvec![cast_tensor(ctx, &output, dtype)?.into()];
        if cached {
            outputs.extend([keys.into(), values.into()]);
        }
        if ctx.output_count > 3 {
            let scores = self.scores(ctx, &query, &key, &scaled, mask)?;
            outputs.push(cast_tensor(ctx, &scores, dtype)?.into());
        }
        Ok(outputs)
    }
}

impl Attention {
    /// `[batch, heads, queries, keys]` at the stage that the model wants to
    /// see; the fast path keeps no scores.
    fn scores(
        &self,
        ctx: &OpContext<'_>,
        query: &Heads<'_>,
        key: &Heads<'_>,
        scaled: &Scaled,
        mask: Option<Tensor>,
    ) -> Result<Tensor> {
        let mut scores = products(ctx, query, key, scaled.scale)?;
        if self.stage != Stage::Products && self.softcap > 0.0 {
            let cap = |x: &mut f32| *x = self.softcap * (*x / self.softcap).tanh();
            scores.as_mut_slice::<f32>()?.iter_mut().for_each(cap);
        }
        if matches!(self.stage, Stage::Products | Stage::Capped) {
            return Ok(scores);
        }
        if let Some(mask) = mask {
            scores = arithmetic::<Add>(ctx, scores, mask)?;
        }
        let mut scores = writable(ctx, scores)?;
        let (queries, keys) = (query.length.max(1), key.length.max(1));
        for (at, row) in scores.as_mut_slice::<f32>()?.chunks_exact_mut(keys).enumerate() {
            if let Some(offset) = scaled.causal {
                let seen = (at % queries + offset + 1).min(keys);
                row[seen..].fill(f32::NEG_INFINITY);
            }
            if self.stage == Stage::Weights {
                softmax(row);
            }
        }
        Ok(scores)
    }
}

fn products(ctx: &OpContext<'_>, query: &Heads<'_>, key: &Heads<'_>, scale: f32) -> Result<Tensor> {
    let (heads, group) = (query.heads, query.heads / key.heads);
    let mut scores = ctx.allocate(DType::F32, &[query.batch, heads, query.length, key.length])?;
    let row = |of: &Heads<'_>, batch: usize, head: usize, at: usize| {
        let start = of.start + batch * of.strides[0] + head * of.strides[1] + at * of.strides[2];
        start..start + of.size
    };
    let cells = scores.as_mut_slice::<f32>()?;
    for (lane, line) in cells.chunks_exact_mut(key.length.max(1)).enumerate() {
        ctx.control.check()?;
        let (at, head) = (lane % query.length, lane / query.length % heads);
        let batch = lane / query.length / heads;
        let own = &query.data[row(query, batch, head, at)];
        for (other, cell) in line.iter_mut().enumerate() {
            let other = &key.data[row(key, batch, head / group, other)];
            *cell = scale * own.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
        }
    }
    Ok(scores)
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}
