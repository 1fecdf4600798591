//! Fusions: patterns of nodes that one node computes faster. The last node of
//! a pattern is replaced; those before it go with the dead code when nobody
//! else reads them, so a fusion can never change an answer.

mod chains;
mod conv_norm;
mod quantised;

use crate::Evaluate;
use crate::forward::forward;
use crate::infer::infer_body;
use crate::plan::Draft;
use crate::prune::{prune, use_counts};
use mortise_types::{Attribute, DType, NodeDef, ValueId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Domain of the operators that fusion makes; files may not name it.
pub const FUSED_DOMAIN: &str = "mortise.fused";

/// Replaces known patterns by operators that `device` has.
pub(crate) fn fuse(draft: &mut Draft, device: &dyn Evaluate) {
    infer_body(&draft.body, &draft.constants, &mut draft.facts);
    forward(draft);
    prune(draft);
    conv_norm::fold(draft);
    const PATTERNS: [Pattern; 6] = [
        gelu,
        layer_norm,
        product_bias,
        product_activation,
        quantised::bias,
        quantised::activation,
    ];
    for pattern in PATTERNS {
        replace(draft, device, pattern);
    }
}

/// Replaces every place where `pattern` is found.
fn replace(draft: &mut Draft, device: &dyn Evaluate, pattern: Pattern) {
    let (makers, uses) = makers_and_uses(draft);
    for index in 0..draft.body.nodes.len() {
        let finder = Finder { draft, makers: &makers, uses: &uses };
        let Some(fused) = finder.find(index, pattern) else { continue };
        if device.supports(&fused).is_ok() {
            let origin = finder.operators_between(index, &fused);
            draft.replace_node(index, fused, origin);
        }
    }
}

impl Draft {
    /// Puts a node that stands for the operators `origin` in the place of one.
    fn replace_node(&mut self, index: usize, fused: NodeDef, origin: Vec<String>) {
        if let Some(output) = fused.outputs.iter().flatten().next() {
            self.origins.insert(*output, origin);
        }
        self.body.nodes[index] = fused;
    }
}

/// Given the last node of a pattern, the node that replaces it.
type Pattern = fn(&Finder<'_>, &NodeDef) -> Option<NodeDef>;

/// Finds the nodes before a node.
struct Finder<'a> {
    draft: &'a Draft,
    /// By value: the node that writes it, and how often it is read.
    makers: &'a [Option<usize>],
    uses: &'a [usize],
}

impl<'a> Finder<'a> {
    fn find(&self, index: usize, pattern: Pattern) -> Option<NodeDef> {
        let last = self.draft.body.nodes.get(index)?;
        let fused = pattern(self, last)?;
        Some(NodeDef { outputs: last.outputs.clone(), name: last.name.clone(), ..fused })
    }

    /// The operators from the inputs of `fused` to node `last`, which it stands
    /// for; of those that fusion made before, what they stand for.
    fn operators_between(&self, last: usize, fused: &NodeDef) -> Vec<String> {
        let mut found = BTreeSet::from([last]);
        let mut open = vec![last];
        while let Some(at) = open.pop() {
            for value in self.draft.body.nodes[at].inputs.iter().flatten() {
                let maker = self.makers.get(value.index()).copied().flatten();
                let is_inside = !fused.inputs.contains(&Some(*value));
                open.extend(maker.filter(|maker| is_inside && found.insert(*maker)));
            }
        }
        let nodes = found.into_iter().map(|at| &self.draft.body.nodes[at]);
        nodes.flat_map(|node| self.stands_for(node)).collect()
    }

    fn stands_for(&self, node: &NodeDef) -> Vec<String> {
        let output = node.outputs.iter().flatten().next();
        let known = output.and_then(|value| self.draft.origins.get(value)).cloned();
        known.unwrap_or_else(|| vec![node.op.to_string()])
    }

    /// The node that writes `value`.
    fn writer(&self, value: ValueId) -> Option<&'a NodeDef> {
        let index = *self.makers.get(value.index())?;
        self.draft.body.nodes.get(index?)
    }

    /// The node of type `op` that writes `value`.
    fn maker(&self, value: ValueId, op: &str) -> Option<&'a NodeDef> {
        let node = self.writer(value)?;
        (&*node.op == op && is_standard(node) && node.outputs.first() == Some(&Some(value)))
            .then_some(node)
    }

    /// The same if nobody else reads the value.
    fn only_maker(&self, value: ValueId, op: &str) -> Option<&'a NodeDef> {
        self.maker(value, op).filter(|_| self.once(value))
    }

    fn once(&self, value: ValueId) -> bool {
        self.uses.get(value.index()) == Some(&1)
    }

    /// The two inputs of a node, the constant scalar second.
    fn with_scalar(&self, node: &NodeDef, scalar: f32) -> Option<ValueId> {
        let (a, b) = (input(node, 0)?, input(node, 1)?);
        match (self.scalar(a), self.scalar(b)) {
            (_, Some(value)) if close(value, scalar) => Some(a),
            (Some(value), _) if close(value, scalar) && is_commutative(node) => Some(b),
            _ => None,
        }
    }

    /// A constant of one element.
    fn scalar(&self, value: ValueId) -> Option<f32> {
        let tensor = self.draft.constants.get(value.index())?.as_ref()?.tensor().ok()?;
        match (tensor.dtype(), tensor.len()) {
            (DType::F32, 1) => tensor.as_slice::<f32>().ok()?.first().copied(),
            _ => None,
        }
    }

    fn constant_shape(&self, value: ValueId) -> Option<&'a [usize]> {
        let tensor = self.draft.constants.get(value.index())?.as_ref()?.tensor().ok()?;
        (tensor.dtype() == DType::F32).then_some(tensor.shape())
    }

    /// The shape of a constant of any type and of this rank.
    fn shape_of_constant(&self, value: ValueId, rank: usize) -> Option<&'a [usize]> {
        let tensor = self.draft.constants.get(value.index())?.as_ref()?.tensor().ok()?;
        (tensor.rank() == rank).then_some(tensor.shape())
    }

    /// Whether two values are known to have one shape, where dimension 0 of
    /// both may be the batch.
    fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        let shape = |value: ValueId| self.draft.facts.get(value.index())?.shape.as_deref();
        let (Some([_, a @ ..]), Some([_, b @ ..])) = (shape(a), shape(b)) else { return false };
        a == b && a.iter().all(|size| *size > 0)
    }

    /// The size of the last dimension.
    fn last_size(&self, value: ValueId) -> Option<usize> {
        usize::try_from(*self.draft.facts.get(value.index())?.shape.as_ref()?.last()?).ok()
    }

    fn rank(&self, value: ValueId) -> Option<usize> {
        self.draft.facts.get(value.index())?.rank()
    }

    fn is_f32(&self, value: ValueId) -> bool {
        self.draft.facts.get(value.index()).is_some_and(|fact| fact.dtype == Some(DType::F32))
    }

    /// Whether a reduction is along the last axis alone and keeps it.
    fn reduces_last(&self, node: &NodeDef) -> bool {
        let rank = input(node, 0).and_then(|value| self.rank(value));
        let axes = match (node.inputs.get(1).copied().flatten(), node.attribute("axes")) {
            (Some(axes), _) => self.constant_axes(axes),
            (None, Some(Attribute::Ints(axes))) => Some(axes.clone()),
            _ => None,
        };
        let last = match (axes.as_deref(), rank) {
            (Some([-1]), _) => true,
            (Some([axis]), Some(rank)) => *axis == rank as i64 - 1,
            _ => false,
        };
        last && !matches!(node.attribute("keepdims"), Some(Attribute::Int(0)))
    }

    fn constant_axes(&self, value: ValueId) -> Option<Vec<i64>> {
        let tensor = self.draft.constants.get(value.index())?.as_ref()?.tensor().ok()?;
        tensor.as_slice::<i64>().ok().map(<[i64]>::to_vec)
    }
}

fn is_standard(node: &NodeDef) -> bool {
    matches!(&*node.domain, "" | "ai.onnx" | FUSED_DOMAIN)
}

fn is_commutative(node: &NodeDef) -> bool {
    matches!(&*node.op, "Add" | "Mul")
}

fn input(node: &NodeDef, index: usize) -> Option<ValueId> {
    node.inputs.get(index).copied().flatten()
}

/// Constants in files are rounded in various ways.
fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-6 * b.abs().max(1.0)
}

fn operator(domain: &str, op: &str, opset: u32, inputs: &[ValueId]) -> NodeDef {
    NodeDef {
        domain: domain.into(),
        op: op.into(),
        opset,
        name: String::new(),
        inputs: inputs.iter().copied().map(Some).collect(),
        attributes: Vec::new(),
        outputs: Vec::new(),
    }
}

/// `0.5 · x · (1 + erf(x / √2))`, with the factors in either order.
fn gelu(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    if &*last.op != "Mul" || !is_standard(last) {
        return None;
    }
    let halved = finder.with_scalar(last, 0.5).and_then(|product| {
        let product = finder.maker(product, "Mul")?;
        gelu_product(finder, input(product, 0)?, input(product, 1)?, false)
    });
    let x = halved.or_else(|| gelu_product(finder, input(last, 0)?, input(last, 1)?, true))?;
    finder.is_f32(x).then(|| operator("", "Gelu", 20, &[x]))
}

/// `x` when the operands are `x` (or `0.5 · x`) and `1 + erf(x / √2)`.
fn gelu_product(finder: &Finder<'_>, a: ValueId, b: ValueId, halved: bool) -> Option<ValueId> {
    [(a, b), (b, a)].into_iter().find_map(|(outer, inner)| {
        let x = if halved { finder.with_scalar(finder.maker(outer, "Mul")?, 0.5)? } else { outer };
        let erf = finder.with_scalar(finder.maker(inner, "Add")?, 1.0)?;
        let scaled = input(finder.maker(erf, "Erf")?, 0)?;
        let divided = finder
            .maker(scaled, "Div")
            .and_then(|node| finder.with_scalar(node, std::f32::consts::SQRT_2));
        let multiplied = finder
            .maker(scaled, "Mul")
            .and_then(|node| finder.with_scalar(node, std::f32::consts::FRAC_1_SQRT_2));
        (divided.or(multiplied)? == x).then_some(x)
    })
}

/// `(x - mean) / √(var + ε) · γ + β`, as exporters spelled it before there was
/// an operator.
fn layer_norm(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    if &*last.op != "Add" || !is_standard(last) {
        return None;
    }
    let either = [(0, 1), (1, 0)];
    let (scaled, beta) = either.into_iter().find_map(|(a, b)| {
        let beta = input(last, b)?;
        finder.constant_shape(beta).filter(|shape| shape.len() == 1)?;
        Some((finder.maker(input(last, a)?, "Mul")?, beta))
    })?;
    let (normal, gamma) = either.into_iter().find_map(|(a, b)| {
        let gamma = input(scaled, b)?;
        finder.constant_shape(gamma).filter(|shape| shape.len() == 1)?;
        Some((finder.maker(input(scaled, a)?, "Div")?, gamma))
    })?;
    let centred = finder.maker(input(normal, 0)?, "Sub")?;
    let deviation = finder.maker(input(normal, 1)?, "Sqrt")?;
    let (x, mean) = (input(centred, 0)?, finder.maker(input(centred, 1)?, "ReduceMean")?);
    let (variance, epsilon) = variance_and_epsilon(finder, deviation)?;
    let squares = squared(finder, input(variance, 0)?)?;
    let same = squares == input(normal, 0)?
        || finder.maker(squares, "Sub").is_some_and(|other| other.inputs == centred.inputs);
    let size = *finder.draft.facts.get(x.index())?.shape.as_ref()?.last()?;
    let sizes = [gamma, beta].map(|value| finder.constant_shape(value));
    let fits = sizes.iter().all(|shape| shape.is_some_and(|shape| shape[0] as i64 == size));
    let reduces = finder.reduces_last(mean) && finder.reduces_last(variance);
    if !(same && fits && reduces && input(mean, 0)? == x && finder.is_f32(x)) {
        return None;
    }
    let mut fused = operator("", "LayerNormalization", 17, &[x, gamma, beta]);
    fused.attributes.push((Arc::from("epsilon"), Attribute::Float(epsilon)));
    Some(fused)
}

fn variance_and_epsilon<'a>(finder: &Finder<'a>, root: &NodeDef) -> Option<(&'a NodeDef, f32)> {
    let sum = finder.maker(input(root, 0)?, "Add")?;
    [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
        let epsilon = finder.scalar(input(sum, b)?)?;
        Some((finder.maker(input(sum, a)?, "ReduceMean")?, epsilon))
    })
}

/// What is squared to give `value`.
fn squared(finder: &Finder<'_>, value: ValueId) -> Option<ValueId> {
    if let Some(power) = finder.maker(value, "Pow") {
        return finder.with_scalar(power, 2.0);
    }
    let product = finder.maker(value, "Mul")?;
    let (a, b) = (input(product, 0)?, input(product, 1)?);
    (a == b).then_some(a)
}

/// `MatMul` and then `Add` of a constant row.
fn product_bias(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    if &*last.op != "Add" || !is_standard(last) {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
        let (value, bias) = (input(last, a)?, input(last, b)?);
        let product = finder.maker(value, "MatMul").filter(|_| finder.once(value))?;
        let (left, right) = (input(product, 0)?, input(product, 1)?);
        let columns = *finder.constant_shape(right).filter(|shape| shape.len() == 2)?.last()?;
        let row = matches!(finder.constant_shape(bias)?, [size] | [1, size] if *size == columns);
        let fits = row && finder.is_f32(left) && finder.rank(left)? >= 2;
        fits.then(|| operator(FUSED_DOMAIN, "MatMulBias", 1, &[left, right, bias]))
    })
}

/// A product and then an activation without parameters.
fn product_activation(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    const ACTIVATIONS: [&str; 5] = ["Relu", "Sigmoid", "Tanh", "Gelu", "Erf"];
    let plain = ACTIVATIONS.contains(&&*last.op) && last.attributes.is_empty();
    if !plain || !is_standard(last) {
        return None;
    }
    let value = input(last, 0)?;
    if !finder.once(value) || !finder.is_f32(value) {
        return None;
    }
    let mut fused = match finder.maker(value, "MatMulBias") {
        Some(product) => product.clone(),
        None => {
            let gemm = finder.maker(value, "Gemm")?.clone();
            NodeDef { domain: "com.microsoft".into(), op: "FusedGemm".into(), opset: 1, ..gemm }
        }
    };
    let activation = Attribute::String(last.op.as_bytes().to_vec());
    fused.attributes.push((Arc::from("activation"), activation));
    Some(fused)
}

/// Where each value is made, and how often it is read, by value index.
fn makers_and_uses(draft: &Draft) -> (Vec<Option<usize>>, Vec<usize>) {
    let mut makers = vec![None; draft.facts.len()];
    for (index, node) in draft.body.nodes.iter().enumerate() {
        for output in node.outputs.iter().flatten() {
            makers[output.index()] = Some(index);
        }
    }
    let mut uses = vec![0; draft.facts.len()];
    use_counts(&draft.body, &mut uses);
    (makers, uses)
}
