//! Attention and what stands around it in encoders: `Attention` of ONNX and of
//! `com.microsoft`, `MultiHeadAttention`, `EmbedLayerNormalization`, and GELUs
//! with a bias.

mod embed;
mod heads;
mod kernel;
mod standard;

use super::elementwise::number::Add;
use super::elementwise::{Activation, activate, arithmetic};
use super::matmul::affine;
use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use kernel::{Heads, Mask, Scaled};
use mortise_types::{Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] =
    &[Entry { op: "Attention", since: 23, build: standard::Attention::build }];

pub(crate) const MS_ENTRIES: &[Entry] = &[
    Entry { op: "Attention", since: 1, build: Packed::build },
    Entry { op: "MultiHeadAttention", since: 1, build: MultiHead::build },
    Entry { op: "EmbedLayerNormalization", since: 1, build: embed::build },
    Entry { op: "FastGelu", since: 1, build: |_| Ok(Box::new(BiasGelu(Activation::GeluTanh))) },
    Entry { op: "BiasGelu", since: 1, build: |_| Ok(Box::new(BiasGelu(Activation::Gelu))) },
];

/// Operators that only the planner writes.
pub(crate) const FUSED_ENTRIES: &[Entry] =
    &[Entry { op: "HeadsAttention", since: 1, build: heads::HeadsAttention::build }];

/// `activation(x + bias)`; the bias may be absent.
struct BiasGelu(Activation);

impl Operator for BiasGelu {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let mut sum = inputs.take(0)?;
        if inputs.optional(1)?.is_some() {
            sum = arithmetic::<Add>(ctx, sum, inputs.take(1)?)?;
        }
        let mut sum = super::elementwise::writable(ctx, sum)?;
        activate(self.0, &mut sum)?;
        Ok(smallvec![sum.into()])
    }
}

/// Attributes that the two operators of `com.microsoft` share.
struct Options {
    heads: usize,
    scale: Option<f32>,
    causal: bool,
    /// Added to scores where the mask is 0.
    filter: f32,
}

impl Options {
    fn parse(attributes: &Attributes<'_>) -> Result<Self> {
        let heads = attributes.int_or("num_heads", 0)?;
        let heads = usize::try_from(heads).ok().filter(|heads| *heads > 0);
        Ok(Self {
            heads: heads.ok_or_else(|| Error::invalid("num_heads must be positive"))?,
            scale: attributes.float("scale")?.filter(|scale| *scale != 0.0),
            causal: attributes.int_or("unidirectional", 0)? != 0,
            filter: attributes.float_or("mask_filter_value", -10000.0)?,
        })
    }

    fn mask(&self, inputs: &Inputs<'_>, mask: usize, bias: usize) -> Result<Mask> {
        Mask::of_keys(inputs.optional(mask)?, inputs.optional(bias)?, self.filter)
    }
}

/// Queries, keys and values come from one product with packed weights.
struct Packed(Options);

impl Packed {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        if attributes.int_or("do_rotary", 0)? != 0 || node.attribute("qkv_hidden_sizes").is_some() {
            return Err(Error::unsupported(format!(
                "{} with do_rotary or qkv_hidden_sizes",
                node.describe()
            )));
        }
        if node.inputs.get(4).copied().flatten().is_some() || node.outputs.len() > 1 {
            return Err(Error::unsupported(format!("{} with a past", node.describe())));
        }
        Ok(Box::new(Self(Options::parse(&attributes)?)))
    }
}

impl Operator for Packed {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let options = &self.0;
        let (input, weights) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let packed = affine(ctx, input, weights, inputs.optional(2)?)?;
        let &[batch, length, width] = packed.shape() else {
            return Err(Error::invalid("Attention takes an input of rank 3"));
        };
        let hidden = width / 3;
        if width % 3 != 0 || hidden % options.heads != 0 {
            let heads = options.heads;
            return Err(Error::invalid(format!("{width} columns are not 3 × {heads} heads")));
        }
        let size = hidden / options.heads;
        let data = packed.as_slice::<f32>()?;
        let part = |index: usize| Heads {
            data,
            start: index * hidden,
            strides: [length * width, size, width],
            batch,
            heads: options.heads,
            length,
            size,
        };
        let scaled = Scaled {
            scale: options.scale.unwrap_or(1.0 / (size as f32).sqrt()),
            causal: options.causal.then_some(0),
            softcap: 0.0,
            mask: options.mask(&inputs, 3, 5)?,
        };
        let output = scaled.run(ctx, &part(0), &part(1), &part(2))?;
        Ok(smallvec![output.reshaped(&[batch, length, hidden])?.into()])
    }
}

/// Queries, keys and values as three inputs.
struct MultiHead(Options);

impl MultiHead {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let given = |index: usize| node.inputs.get(index).copied().flatten().is_some();
        if !given(1) || !given(2) || (6..node.inputs.len()).any(given) || node.outputs.len() > 1 {
            return Err(Error::unsupported(format!(
                "{} with packed inputs or a past",
                node.describe()
            )));
        }
        Ok(Box::new(Self(Options::parse(&Attributes(node))?)))
    }
}

impl Operator for MultiHead {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let options = &self.0;
        let mut parts = [0, 1, 2].map(|index| inputs.tensor(index).cloned());
        if let Some(bias) = inputs.optional(3)? {
            add_bias(ctx, &mut parts, bias)?;
        }
        let [q, k, v] = parts;
        let (q, k, v) = (q?, k?, v?);
        let heads = |tensor| Heads::of_rows(tensor, options.heads);
        let (query, key, value) = (heads(&q)?, heads(&k)?, heads(&v)?);
        let scaled = Scaled {
            scale: options.scale.unwrap_or(1.0 / (query.size as f32).sqrt()),
            causal: options.causal.then(|| key.length.saturating_sub(query.length)),
            softcap: 0.0,
            mask: options.mask(&inputs, 4, 5)?,
        };
        let output = scaled.run(ctx, &query, &key, &value)?;
        let shape = [query.batch, query.length, query.heads * value.size];
        Ok(smallvec![output.reshaped(&shape)?.into()])
    }
}

/// One bias holds those of queries, keys and values, end to end.
fn add_bias(ctx: &OpContext<'_>, parts: &mut [Result<Tensor>; 3], bias: &Tensor) -> Result<()> {
    let mut rest = bias.as_slice::<f32>()?;
    for part in parts {
        let Ok(tensor) = part else { continue };
        let width = tensor.shape().last().copied().unwrap_or(0);
        let Some((own, others)) = rest.split_at_checked(width) else {
            return Err(Error::invalid("the bias is shorter than queries, keys and values"));
        };
        rest = others;
        let own = Tensor::from_vec(&[width], own.to_vec())?;
        *part = Ok(arithmetic::<Add>(ctx, tensor.clone(), own)?);
    }
    Ok(())
}
