//! Token mixers with a state of fixed size in place of a cache that grows:
//! linear attention with its gated and delta-rule variants, and the short
//! causal convolution in front of it.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "CausalConvWithState", since: 27, build: CausalConv::build },
    Entry { op: "LinearAttention", since: 27, build: LinearAttention::build },
];

/// Inputs in single precision; states and sums are kept in it, whatever the
/// inputs are.
fn single(ctx: &OpContext<'_>, inputs: &Inputs<'_>, index: usize) -> Result<Option<Tensor>> {
    inputs.optional(index)?.map(|tensor| cast_tensor(ctx, tensor, DType::F32)).transpose()
}

struct LinearAttention {
    query_heads: usize,
    key_heads: usize,
    scale: Option<f32>,
}

impl LinearAttention {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let heads = |name: &str| -> Result<usize> {
            Ok(attributes.int(name)?.and_then(|count| usize::try_from(count).ok()).unwrap_or(0))
        };
        let (query_heads, key_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
        if key_heads == 0 || query_heads == 0 || !query_heads.is_multiple_of(key_heads) {
            return Err(Error::invalid(format!(
                "{}: {query_heads} query heads are no multiple of {key_heads}",
                node.describe()
            )));
        }
        let (gated, delta) = match attributes.text("update_rule")?.unwrap_or("gated_delta") {
            "linear" => (false, false),
            "gated" => (true, false),
            "delta" => (false, true),
            "gated_delta" => (true, true),
            other => {
                let node = node.describe();
                return Err(Error::unsupported(format!("{node}: update_rule \"{other}\"")));
            }
        };
        let given = |index: usize| node.inputs.get(index).copied().flatten().is_some();
        if given(4) != gated || given(5) != delta {
            let node = node.describe();
            return Err(Error::invalid(format!("{node}: decay or beta do not fit update_rule")));
        }
        let scale = attributes.float("scale")?.filter(|scale| *scale != 0.0);
        Ok(Box::new(Self { query_heads, key_heads, scale }))
    }
}

/// The operands, each `[batch, length, heads · size]`.
struct Operands<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    /// One for each key head, or for each number of a key.
    decay: Option<&'a [f32]>,
    /// One for each key head, or for all.
    beta: Option<&'a [f32]>,
    batch: usize,
    length: usize,
    key_size: usize,
    value_size: usize,
}

impl LinearAttention {
    fn operands<'a>(&self, parts: [Option<&'a Tensor>; 5]) -> Result<Operands<'a>> {
        let [Some(query), Some(key), Some(value), decay, beta] = parts else {
            return Err(Error::invalid("LinearAttention takes queries, keys and values"));
        };
        let shape = |tensor: &Tensor| match *tensor.shape() {
            [batch, length, width] => Ok([batch, length, width]),
            _ => Err(Error::invalid(format!("{tensor:?} is not [batch, length, heads · size]"))),
        };
        let ([batch, length, width], values) = (shape(query)?, shape(value)?);
        let (key_size, value_size) = (width / self.query_heads, values[2] / self.key_heads);
        let of = |width: usize| [batch, length, width];
        let keys = self.key_heads * key_size;
        let fits = width == self.query_heads * key_size
            && key.shape() == of(keys)
            && value.shape() == of(self.key_heads * value_size)
            && decay.is_none_or(|x| x.shape() == of(self.key_heads) || x.shape() == of(keys))
            && beta.is_none_or(|x| x.shape() == of(self.key_heads) || x.shape() == of(1));
        if !fits {
            return Err(Error::invalid(format!("{parts:?} do not fit each other and the heads")));
        }
        let slice = |tensor: Option<&'a Tensor>| tensor.map(Tensor::as_slice::<f32>).transpose();
        Ok(Operands {
            query: query.as_slice()?,
            key: key.as_slice()?,
            value: value.as_slice()?,
            decay: slice(decay)?,
            beta: slice(beta)?,
            batch,
            length,
            key_size,
            value_size,
        })
    }

    /// One step of one key head: the state becomes that after token `at`.
    fn update(&self, on: &Operands<'_>, at: usize, head: usize, state: &mut [f32]) {
        let lane = at * self.key_heads + head;
        let key = &on.key[lane * on.key_size..(lane + 1) * on.key_size];
        let mut value = on.value[lane * on.value_size..(lane + 1) * on.value_size].to_vec();
        let tokens = on.batch * on.length;
        if let Some(decay) = on.decay {
            let per_head = decay.len() / tokens == self.key_heads;
            for (number, row) in state.chunks_exact_mut(on.value_size).enumerate() {
                let index = if per_head { lane } else { lane * on.key_size + number };
                let factor = decay[index].exp();
                row.iter_mut().for_each(|cell| *cell *= factor);
            }
        }
        if let Some(beta) = on.beta {
            let beta = if beta.len() == tokens { beta[at] } else { beta[lane] };
            let known = read(key, state, on.value_size);
            value.iter_mut().zip(known).for_each(|(value, known)| *value = beta * (*value - known));
        }
        for (key, row) in key.iter().zip(state.chunks_exact_mut(on.value_size)) {
            row.iter_mut().zip(&value).for_each(|(cell, value)| *cell += key * value);
        }
    }
}

/// `vector · state`
fn read(vector: &[f32], state: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    for (factor, row) in vector.iter().zip(state.chunks_exact(width)) {
        sums.iter_mut().zip(row).for_each(|(sum, cell)| *sum += factor * cell);
    }
    sums
}

impl Operator for LinearAttention {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let dtype = inputs.tensor(0)?.dtype();
        let part = |index: usize| single(ctx, &inputs, index);
        let parts = [part(0)?, part(1)?, part(2)?, part(4)?, part(5)?];
        let on = self.operands(parts.each_ref().map(Option::as_ref))?;
        let state_dtype = inputs.optional(3)?.map_or(dtype, Tensor::dtype);
        let shape = [on.batch, self.key_heads, on.key_size, on.value_size];
        let mut states = ctx.allocate(DType::F32, &shape)?;
        let cells = states.as_mut_slice::<f32>()?;
        match part(3)? {
            Some(past) if past.shape() == shape => cells.copy_from_slice(past.as_slice()?),
            Some(past) => {
                return Err(Error::invalid(format!("a past {past:?} is not of shape {shape:?}")));
            }
            None => cells.fill(0.0),
        }
        let width = self.query_heads * on.value_size;
        let mut output = ctx.allocate(DType::F32, &[on.batch, on.length, width])?;
        let target = output.as_mut_slice::<f32>()?;
        let (size, group) = (on.key_size * on.value_size, self.query_heads / self.key_heads);
        let scale = self.scale.unwrap_or(1.0 / (on.key_size as f32).sqrt());
        if size > 0 {
            for (lane, state) in cells.chunks_exact_mut(size).enumerate() {
                let (batch, head) = (lane / self.key_heads, lane % self.key_heads);
                for at in batch * on.length..(batch + 1) * on.length {
                    ctx.control.check()?;
                    self.update(&on, at, head, state);
                    for query in head * group..(head + 1) * group {
                        let lane = at * self.query_heads + query;
                        let vector = &on.query[lane * on.key_size..(lane + 1) * on.key_size];
                        let out = &mut target[lane * on.value_size..(lane + 1) * on.value_size];
                        let sums = read(vector, state, on.value_size);
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = scale * sum);
                    }
                }
            }
        }
        let output = cast_tensor(ctx, &output, dtype)?;
        Ok(smallvec![output.into(), cast_tensor(ctx, &states, state_dtype)?.into()])
    }
}

/// Each channel is convolved with its own short kernel over the past and the
/// present; the last inputs are the next past.
struct CausalConv {
    silu: bool,
}

impl CausalConv {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        match Attributes(node).text("activation")?.unwrap_or("none") {
            "none" => Ok(Box::new(Self { silu: false })),
            "silu" | "swish" => Ok(Box::new(Self { silu: true })),
            other => {
                let node = node.describe();
                Err(Error::unsupported(format!("{node}: activation \"{other}\"")))
            }
        }
    }
}

impl Operator for CausalConv {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let dtype = inputs.tensor(0)?.dtype();
        let part = |index: usize| single(ctx, &inputs, index);
        let (input, weights, bias, past) = (part(0)?, part(1)?, part(2)?, part(3)?);
        let (Some(input), Some(weights)) = (input, weights) else {
            return Err(Error::invalid("CausalConvWithState takes an input and weights"));
        };
        let (&[batch, channels, length], &[_, _, taps]) = (input.shape(), weights.shape()) else {
            return Err(Error::invalid(format!("{input:?} and {weights:?} must have rank 3")));
        };
        let kept = taps.saturating_sub(1);
        let state = [batch, channels, kept];
        let fits = weights.shape() == [channels, 1, taps]
            && taps > 0
            && bias.as_ref().is_none_or(|bias| bias.shape() == [channels])
            && past.as_ref().is_none_or(|past| past.shape() == state);
        if !fits {
            return Err(Error::invalid(format!(
                "weights {weights:?}, a bias {bias:?} and a past {past:?} do not fit {input:?}"
            )));
        }
        let slice = |tensor: &Tensor| tensor.as_slice::<f32>().map(<[f32]>::to_vec);
        let (values, kernels) = (slice(&input)?, slice(&weights)?);
        let (bias, past) =
            (bias.as_ref().map(slice).transpose()?, past.as_ref().map(slice).transpose()?);
        let mut output = ctx.allocate(DType::F32, input.shape())?;
        let mut present = ctx.allocate(DType::F32, &state)?;
        let (target, next) = (output.as_mut_slice::<f32>()?, present.as_mut_slice::<f32>()?);
        let mut line = Vec::with_capacity(kept + length);
        for lane in 0..batch * channels {
            ctx.control.check()?;
            let (own, channel) = (lane * kept..(lane + 1) * kept, lane % channels);
            line.clear();
            match &past {
                Some(past) => line.extend_from_slice(&past[own.clone()]),
                None => line.resize(kept, 0.0),
            }
            line.extend_from_slice(&values[lane * length..(lane + 1) * length]);
            let kernel = &kernels[channel * taps..(channel + 1) * taps];
            let bias = bias.as_ref().map_or(0.0, |bias| bias[channel]);
            for (out, seen) in target[lane * length..].iter_mut().zip(line.windows(taps)) {
                *out = bias + seen.iter().zip(kernel).map(|(x, weight)| x * weight).sum::<f32>();
            }
            next[own].copy_from_slice(&line[line.len() - kept..]);
        }
        // Rounded to the input's type first, as the function body does.
        let mut output = cast_tensor(ctx, &output, dtype)?;
        if self.silu {
            let wide = cast_tensor(ctx, &output, DType::F32)?;
            let silu = |&x: &f32| x / (1.0 + (-x).exp());
            let values = wide.as_slice::<f32>()?.iter().map(silu).collect();
            output = cast_tensor(ctx, &Tensor::from_vec(wide.shape(), values)?, dtype)?;
        }
        Ok(smallvec![output.into(), cast_tensor(ctx, &present, dtype)?.into()])
    }
}
