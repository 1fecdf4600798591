//! Chains of nodes that a device may run as one operator without storing what
//! lies between: for devices that ask for them by [`Plan::chained`].

use super::{FUSED_DOMAIN, Finder, Pattern, input, is_standard, operator, replace};
use crate::plan::{Draft, Evaluate, Plan};
use crate::prune;
use mortise_types::{Attribute, NodeDef, ValueId};
use std::sync::Arc;

impl Plan {
    /// The same plan with longer chains replaced by operators of `device`:
    /// attention, integer products with the floats made of them, and
    /// convolutions with what is added to and done with their sums.
    #[must_use]
    pub fn chained(self, device: &dyn Evaluate) -> Self {
        const PATTERNS: [Pattern; 6] =
            [attention, integer_product, integer_bias, integer_activation, conv_sum, conv_relu];
        let Self { body, constants, facts, origins, signature, rows_independent } = self;
        let mut draft = Draft { body, constants, facts, origins };
        for pattern in PATTERNS {
            replace(&mut draft, device, pattern);
        }
        prune::prune(&mut draft);
        let Draft { body, constants, facts, origins } = draft;
        Self { body, constants, facts, origins, signature, rows_independent }
    }
}

/// `softmax(scale · Q · Kᵀ + mask) · V` between the transposes that split rows
/// into heads and put them together again.
fn attention(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    const HEADS_FIRST: [i64; 4] = [0, 2, 1, 3];
    if &*last.op != "Transpose" || !is_standard(last) || permutation(last)? != HEADS_FIRST {
        return None;
    }
    let weighed = finder.only_maker(input(last, 0)?, "MatMul")?;
    let softmax = finder.only_maker(input(weighed, 0)?, "Softmax")?;
    let rank_four = finder.rank(input(softmax, 0)?)? == 4;
    if softmax.opset < 13 || !matches!(softmax_axis(softmax), -1 | 3) || !rank_four {
        return None;
    }
    let (scores, mask) = masked(finder, input(softmax, 0)?);
    let (product, scale) = scaled(finder, scores)?;
    let heads = |value: ValueId, order: [i64; 4]| {
        let node = finder.maker(value, "Transpose")?;
        let source = input(node, 0)?;
        (permutation(node)? == order && finder.is_f32(source)).then_some(source)
    };
    let query = heads(input(product, 0)?, HEADS_FIRST)?;
    let key = heads(input(product, 1)?, [0, 2, 3, 1])?;
    let value = heads(input(weighed, 1)?, HEADS_FIRST)?;
    let mut fused = operator(FUSED_DOMAIN, "HeadsAttention", 1, &[query, key, value]);
    fused.inputs.extend(mask.map(Some));
    fused.attributes.push((Arc::from("scale"), Attribute::Float(scale)));
    Some(fused)
}

fn permutation(node: &NodeDef) -> Option<&[i64]> {
    match node.attribute("perm")? {
        Attribute::Ints(order) => Some(order),
        _ => None,
    }
}

fn softmax_axis(node: &NodeDef) -> i64 {
    match node.attribute("axis") {
        Some(Attribute::Int(axis)) => *axis,
        _ => -1,
    }
}

/// Scores without the mask that is added to them.
fn masked(finder: &Finder<'_>, value: ValueId) -> (ValueId, Option<ValueId>) {
    let split = || {
        let sum = finder.only_maker(value, "Add")?;
        [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
            let (scores, mask) = (input(sum, a)?, input(sum, b)?);
            scaled(finder, scores)?;
            (finder.is_f32(mask) && finder.rank(mask)? == 4).then_some((scores, Some(mask)))
        })
    };
    split().unwrap_or((value, None))
}

/// The product that `value` is a constant multiple of.
fn scaled<'a>(finder: &Finder<'a>, value: ValueId) -> Option<(&'a NodeDef, f32)> {
    if let Some(product) = finder.only_maker(value, "MatMul") {
        return Some((product, 1.0));
    }
    if let Some(quotient) = finder.only_maker(value, "Div") {
        let scale = finder.scalar(input(quotient, 1)?).filter(|scale| *scale != 0.0)?;
        return Some((finder.only_maker(input(quotient, 0)?, "MatMul")?, 1.0 / scale));
    }
    let multiple = finder.only_maker(value, "Mul")?;
    [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
        let scale = finder.scalar(input(multiple, b)?)?;
        Some((finder.only_maker(input(multiple, a)?, "MatMul")?, scale))
    })
}

/// `MatMulInteger`, `Cast` to floats and `Mul` by the product of the scales.
fn integer_product(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    if &*last.op != "Mul" || !is_standard(last) {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
        let cast = finder.only_maker(input(last, a)?, "Cast")?;
        let product = finder.only_maker(input(cast, 0)?, "MatMulInteger")?;
        let scales = finder.maker(input(last, b)?, "Mul")?;
        let columns = *finder.shape_of_constant(input(product, 1)?, 2)?.last()?;
        let scale_of = |value: ValueId| {
            let shape = finder.constant_shape(value)?;
            (matches!(shape, [] | [1]) || shape == [columns]).then_some(())
        };
        let (left, right) = [(0, 1), (1, 0)].into_iter().find_map(|(c, d)| {
            let (left, right) = (input(scales, c)?, input(scales, d)?);
            scale_of(right)?;
            (finder.rank(left)? == 0 && finder.is_f32(left)).then_some((left, right))
        })?;
        let mut fused = operator(FUSED_DOMAIN, "MatMulIntegerToFloat", 1, &[]);
        let zero = |index: usize| product.inputs.get(index).copied().flatten();
        let scales = [Some(left), Some(right)];
        fused.inputs = product.inputs.iter().take(2).copied().chain(scales).collect();
        fused.inputs.extend([zero(2), zero(3)]);
        Some(fused)
    })
}

fn integer_bias(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    if &*last.op != "Add" || !is_standard(last) {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
        let product = finder.only_maker(input(last, a)?, "MatMulIntegerToFloat")?;
        let bias = input(last, b)?;
        let columns = finder.shape_of_constant(input(product, 1)?, 2)?.last()?;
        let fits = finder.constant_shape(bias)? == [*columns] && product.inputs.len() == 6;
        fits.then(|| {
            let mut fused = product.clone();
            fused.inputs.push(Some(bias));
            fused
        })
    })
}

fn integer_activation(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    with_activation(finder, last, "MatMulIntegerToFloat", &["Relu", "Gelu", "Tanh"])
}

/// A convolution and then a sum with something of the same shape.
fn conv_sum(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    if &*last.op != "Add" || !is_standard(last) {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
        let (sum, other) = (input(last, a)?, input(last, b)?);
        let conv = finder.only_maker(sum, "Conv")?;
        let alike = finder.same_shape(sum, other) && finder.is_f32(sum) && finder.is_f32(other);
        alike.then(|| {
            let bias = conv.inputs.get(2).copied().flatten();
            let mut fused = chained_conv(conv);
            fused.inputs.truncate(2);
            fused.inputs.extend([bias, Some(other)]);
            fused
        })
    })
}

/// A convolution, with a sum or without, and then `Relu`.
fn conv_relu(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    with_activation(finder, last, "FusedConv", &["Relu"]).or_else(|| {
        let conv = with_activation(finder, last, "Conv", &["Relu"])?;
        Some(chained_conv(&conv))
    })
}

fn chained_conv(conv: &NodeDef) -> NodeDef {
    NodeDef { domain: FUSED_DOMAIN.into(), op: "FusedConv".into(), opset: 1, ..conv.clone() }
}

/// `last`, an activation without parameters of a `product` in floats that
/// nobody else reads, as an attribute of it.
pub(super) fn with_activation(
    finder: &Finder<'_>,
    last: &NodeDef,
    product: &str,
    activations: &[&str],
) -> Option<NodeDef> {
    if !activations.contains(&&*last.op) || !last.attributes.is_empty() || !is_standard(last) {
        return None;
    }
    let value = input(last, 0).filter(|value| finder.is_f32(*value))?;
    let maker = finder.only_maker(value, product)?;
    if maker.attribute("activation").is_some() {
        return None;
    }
    let mut fused = maker.clone();
    let name = Attribute::String(last.op.as_bytes().to_vec());
    fused.attributes.push((Arc::from("activation"), name));
    Some(fused)
}
