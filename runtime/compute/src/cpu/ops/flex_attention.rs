//! Attention whose scores and weights pass through graphs that the model
//! brings along.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use mortise_types::{Attribute, DType, Error, GraphBody, NodeDef, Result, Tensor};
use smallvec::smallvec;
use std::sync::Arc;

pub(crate) const ENTRIES: &[Entry] =
    &[Entry { op: "FlexAttention", since: 1, build: FlexAttention::build }];

struct FlexAttention {
    scale: Option<f32>,
    /// Applied to all scores before, and to all weights after the softmax.
    score_mod: Option<Arc<GraphBody>>,
    weight_mod: Option<Arc<GraphBody>>,
    /// The type that those graphs and the softmax see.
    precision: Option<DType>,
}

impl FlexAttention {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let graph = |name: &str| match node.attribute(name) {
            Some(Attribute::Graph(_)) => attributes.graph(name).map(Some),
            _ => Ok(None),
        };
        let number = attributes.int("softmax_precision")?;
        let precision = number.map(|number| {
            let dtype = i32::try_from(number).ok().and_then(DType::from_onnx);
            dtype.filter(|dtype| dtype.is_float()).ok_or_else(|| {
                Error::invalid(format!("{}: softmax_precision = {number}", node.describe()))
            })
        });
        Ok(Box::new(Self {
            scale: attributes.float("scale")?,
            score_mod: graph("score_mod")?,
            weight_mod: graph("prob_mod")?,
            precision: precision.transpose()?,
        }))
    }
}

/// `[batch, heads, length, size]` in double precision.
struct Heads {
    values: Tensor,
    shape: [usize; 4],
}

impl Heads {
    fn of(ctx: &OpContext<'_>, tensor: &Tensor) -> Result<Self> {
        let shape = tensor.shape().try_into().map_err(|_| {
            Error::invalid(format!("FlexAttention takes tensors of rank 4, got {tensor:?}"))
        })?;
        Ok(Self { values: cast_tensor(ctx, tensor, DType::F64)?, shape })
    }

    /// The rows of one head.
    fn head(&self, batch: usize, head: usize) -> Result<&[f64]> {
        let [_, heads, length, size] = self.shape;
        let start = (batch * heads + head) * length * size;
        Ok(&self.values.as_slice::<f64>()?[start..start + length * size])
    }
}

/// Passes a tensor through a graph of one input and output.
fn modified(ctx: &OpContext<'_>, body: Option<&Arc<GraphBody>>, tensor: Tensor) -> Result<Tensor> {
    let Some(body) = body else { return Ok(tensor) };
    let runner = ctx.subgraphs.ok_or_else(|| Error::internal("nobody runs subgraphs here"))?;
    let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
    let mut outputs = runner.run_body(body, vec![tensor.into()])?;
    let output = outputs.pop().ok_or_else(|| Error::invalid("the graph gives no output"))?;
    let output = output.into_tensor()?;
    if output.shape() != shape {
        return Err(Error::invalid(format!("the graph turns {shape:?} into {output:?}")));
    }
    cast_tensor(ctx, &output, dtype)
}

impl Operator for FlexAttention {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let dtype = inputs.tensor(0)?.dtype();
        let heads = |index: usize| Heads::of(ctx, inputs.tensor(index)?);
        let (query, key, value) = (heads(0)?, heads(1)?, heads(2)?);
        let group = grouped(query.shape, key.shape, value.shape)?;
        let precision = self.precision.unwrap_or(match dtype {
            DType::F64 => DType::F64,
            _ => DType::F32,
        });
        let scores = self.scores(ctx, &query, &key, group)?;
        let scores = modified(ctx, self.score_mod.as_ref(), cast_tensor(ctx, &scores, precision)?)?;
        let weights = softmax(ctx, &scores)?;
        let weights =
            modified(ctx, self.weight_mod.as_ref(), cast_tensor(ctx, &weights, precision)?)?;
        let output = weighed(ctx, &cast_tensor(ctx, &weights, DType::F64)?, &value, group)?;
        Ok(smallvec![cast_tensor(ctx, &output, dtype)?.into()])
    }
}

impl FlexAttention {
    /// `[batch, heads, queries, keys]`
    fn scores(
        &self,
        ctx: &OpContext<'_>,
        query: &Heads,
        key: &Heads,
        group: usize,
    ) -> Result<Tensor> {
        let ([batch, heads, length, size], keys) = (query.shape, key.shape[2]);
        let scale = self.scale.map_or(1.0 / (size as f64).sqrt(), f64::from);
        let mut output = ctx.allocate(DType::F64, &[batch, heads, length, keys])?;
        let mut cells = output.as_mut_slice::<f64>()?.iter_mut();
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let (queries, rows) = (query.head(b, h)?, key.head(b, h / group)?);
            for at in 0..length {
                ctx.control.check()?;
                let own = &queries[at * size..(at + 1) * size];
                for other in 0..keys {
                    let row = &rows[other * size..(other + 1) * size];
                    let sum: f64 = own.iter().zip(row).map(|(a, b)| a * b).sum();
                    if let Some(cell) = cells.next() {
                        *cell = scale * sum;
                    }
                }
            }
        }
        Ok(output)
    }
}

/// How many query heads share a head of keys.
fn grouped(query: [usize; 4], key: [usize; 4], value: [usize; 4]) -> Result<usize> {
    let fits = query[0] == key[0]
        && query[3] == key[3]
        && key[..3] == value[..3]
        && key[1] > 0
        && query[1].is_multiple_of(key[1]);
    if fits {
        return Ok(query[1] / key[1]);
    }
    Err(Error::invalid(format!("{query:?}, {key:?} and {value:?} do not fit each other")))
}

/// Along the last axis, in double precision.
fn softmax(ctx: &OpContext<'_>, scores: &Tensor) -> Result<Tensor> {
    let wide = cast_tensor(ctx, scores, DType::F64)?;
    let mut wide = crate::cpu::ops::elementwise::writable(ctx, wide)?;
    let width = scores.shape().last().copied().unwrap_or(0).max(1);
    for row in wide.as_mut_slice::<f64>()?.chunks_exact_mut(width) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - largest).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
    Ok(wide)
}

/// `weights · values`
fn weighed(ctx: &OpContext<'_>, weights: &Tensor, value: &Heads, group: usize) -> Result<Tensor> {
    let (weights, shape) = (weights.as_slice::<f64>()?, weights.shape());
    let ([batch, heads, length], [_, _, keys, size]) =
        ([shape[0], shape[1], shape[2]], value.shape);
    let mut output = ctx.allocate(DType::F64, &[batch, heads, length, size])?;
    let target = output.as_mut_slice::<f64>()?;
    target.fill(0.0);
    for row in 0..batch * heads * length {
        ctx.control.check()?;
        let (lane, own) = (row / length, &weights[row * keys..(row + 1) * keys]);
        let values = value.head(lane / heads, lane % heads / group)?;
        let out = &mut target[row * size..(row + 1) * size];
        for (key, weight) in own.iter().enumerate() {
            let value = &values[key * size..(key + 1) * size];
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
        }
    }
    Ok(output)
}
