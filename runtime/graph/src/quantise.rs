//! Weights in fewer bits: a graph in floats rewritten to operators that read
//! 8-bit, 4-bit or half-precision weights. What each operator computes is in
//! its own crate; here it is decided which nodes get one, and the numbers are
//! made.
//!
//! Activations of `int8` get a scale and a zero point for every row, so that a
//! row's answer does not depend on the rows beside it.

mod candidates;
mod numbers;

use crate::plan::Draft;
use crate::{Evaluate, FUSED_DOMAIN};
use candidates::{Candidate, Product, Table};
use mortise_types::{Attribute, DType, NodeDef, Tensor, Value, ValueId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 8 bits, a scale for each column; activations are quantised as they
    /// come, each row by its own range.
    Int8,
    /// The same, with ranges of activations that were seen on samples.
    Int8Static,
    /// 4 bits in blocks of 32, a scale for each; activations stay floats.
    Int4,
    /// Half precision; arithmetic stays single.
    F16,
}

impl Precision {
    /// Every precision, by the name that [`Precision::name`] gives.
    pub const ALL: [Self; 4] = [Self::Int8, Self::Int8Static, Self::Int4, Self::F16];

    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int8Static => "int8-static",
            Self::Int4 => "int4",
            Self::F16 => "f16",
        }
    }
}

/// The least and the largest number seen in activations, by the index of
/// their value in the graph.
pub type Ranges = BTreeMap<u32, [f32; 2]>;

/// How a graph is to be quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantisation {
    pub precision: Precision,
    /// For [`Precision::Int8Static`]; empty for the others.
    pub ranges: Ranges,
}

/// What became of a graph's weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantReport {
    /// Matrix products whose weights were replaced.
    pub products: usize,
    /// Embedding tables whose weights were replaced.
    pub tables: usize,
    /// Bytes of all constants before and after.
    pub float_bytes: u64,
    pub bytes: u64,
    /// Nodes with large weights that stay as they were.
    pub left: Vec<Left>,
}

/// Nodes of one operator that stay in floats for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub operator: String,
    pub reason: &'static str,
    pub count: usize,
    /// Of their weights.
    pub bytes: u64,
}

/// Elements of a weight below which replacing it saves nothing.
pub(crate) const MIN_ELEMENTS: usize = 256;

/// Numbers that share a scale in [`Precision::Int4`].
pub(crate) const BLOCK: usize = 32;

/// Replaces what `device` has operators for. Types and shapes must be known.
pub(crate) fn quantise(
    draft: &mut Draft,
    how: &Quantisation,
    device: &dyn Evaluate,
) -> QuantReport {
    let float_bytes = constant_bytes(draft);
    let mut pass = Pass { how, device, report: QuantReport::default(), made: HashMap::new() };
    for index in 0..draft.body.nodes.len() {
        match candidates::of(draft, &draft.body.nodes[index]) {
            None => {}
            Some(Ok(candidate)) => pass.replace(draft, index, &candidate),
            Some(Err(reason)) => pass.leave(draft, index, reason),
        }
    }
    crate::prune::prune(draft);
    QuantReport { float_bytes, bytes: constant_bytes(draft), ..pass.report }
}

/// The activations whose ranges [`Precision::Int8Static`] needs.
pub(crate) fn activations(draft: &Draft) -> Vec<ValueId> {
    let products = draft.body.nodes.iter().filter_map(|node| match candidates::of(draft, node)? {
        Ok(Candidate::Product(product)) => Some(product.x),
        _ => None,
    });
    let mut values: Vec<ValueId> = products.collect();
    values.sort_unstable();
    values.dedup();
    values
}

fn constant_bytes(draft: &Draft) -> u64 {
    let bytes = |value: &Value| value.tensor().map_or(0, |tensor| tensor.byte_len() as u64);
    draft.constants.iter().flatten().map(bytes).sum()
}

struct Pass<'a> {
    how: &'a Quantisation,
    device: &'a dyn Evaluate,
    report: QuantReport,
    /// What was made of a weight before: several nodes may read it.
    made: HashMap<(ValueId, bool, u32), [ValueId; 2]>,
}

impl Pass<'_> {
    fn replace(&mut self, draft: &mut Draft, index: usize, candidate: &Candidate) {
        let node = match candidate {
            Candidate::Product(product) => self.product(draft, product),
            Candidate::Table(table) => Ok(self.table(draft, table)),
        };
        let node = node.and_then(|node| match self.device.supports(&node) {
            Ok(()) => Ok(node),
            Err(_) => Err("the device has no operator for it"),
        });
        match node {
            Err(reason) => self.leave(draft, index, reason),
            Ok(node) => {
                let old = &draft.body.nodes[index];
                let node = NodeDef { outputs: old.outputs.clone(), name: old.name.clone(), ..node };
                draft.body.nodes[index] = node;
                match candidate {
                    Candidate::Product(_) => self.report.products += 1,
                    Candidate::Table(_) => self.report.tables += 1,
                }
            }
        }
    }

    fn product(&mut self, draft: &mut Draft, product: &Product) -> Result<NodeDef, &'static str> {
        let bias = product.bias.clone().map(|bias| add(draft, bias));
        let mut node = match self.how.precision {
            Precision::Int8 | Precision::Int8Static => {
                let weights = self.weights(draft, product, numbers::columns)?;
                let inputs = [Some(product.x), Some(weights[0]), Some(weights[1])];
                fused("MatMulInt8", &inputs)
            }
            Precision::F16 => {
                let weights = self.weights(draft, product, numbers::halves)?;
                fused("MatMulHalf", &[Some(product.x), Some(weights[0])])
            }
            Precision::Int4 => {
                let weights = self.weights(draft, product, numbers::blocks)?;
                n_bits(product, weights)
            }
        };
        if self.how.precision == Precision::Int8Static {
            let range = self.how.ranges.get(&product.x.0);
            let range = range.ok_or("the samples did not reach it")?;
            node.attributes.push((Arc::from("range"), Attribute::Floats(range.to_vec())));
        }
        node.inputs.extend(bias.map(Some));
        Ok(node)
    }

    /// The constants that stand for a product's weight, made once.
    fn weights(
        &mut self,
        draft: &mut Draft,
        product: &Product,
        make: fn(&Product, &[f32]) -> Result<[Option<Tensor>; 2], &'static str>,
    ) -> Result<[ValueId; 2], &'static str> {
        let key = (product.weight, product.transposed, product.alpha.to_bits());
        if let Some(made) = self.made.get(&key) {
            return Ok(*made);
        }
        let values = floats(draft, product.weight).ok_or("its weight is no float tensor")?;
        let [weights, scales] = make(product, values)?;
        let weights = add(draft, weights.ok_or("its weight is empty")?);
        let scales = scales.map_or(weights, |scales| add(draft, scales));
        self.made.insert(key, [weights, scales]);
        Ok([weights, scales])
    }

    fn table(&mut self, draft: &mut Draft, table: &Table) -> NodeDef {
        let key = (table.weight, true, 0);
        let known = self.made.get(&key).copied();
        let halved = self.how.precision == Precision::F16;
        let made = known.unwrap_or_else(|| {
            let values = floats(draft, table.weight).unwrap_or_default();
            let [weights, scales] = match halved {
                true => numbers::half_table(table, values),
                false => numbers::rows(table, values),
            };
            let weights = weights.map_or(table.weight, |weights| add(draft, weights));
            [weights, scales.map_or(weights, |scales| add(draft, scales))]
        });
        self.made.insert(key, made);
        let mut node = fused("GatherRows", &[Some(made[0]), Some(table.indices)]);
        node.inputs.extend((!halved).then_some(Some(made[1])));
        node
    }

    fn leave(&mut self, draft: &Draft, index: usize, reason: &'static str) {
        let node = &draft.body.nodes[index];
        let bytes = candidates::large_weights(draft, node).map(|tensor| tensor.byte_len() as u64);
        let bytes = bytes.sum();
        let same = |left: &&mut Left| *left.operator == *node.op && left.reason == reason;
        match self.report.left.iter_mut().find(same) {
            Some(left) => {
                left.count += 1;
                left.bytes += bytes;
            }
            None => {
                let operator = node.op.to_string();
                self.report.left.push(Left { operator, reason, count: 1, bytes });
            }
        }
    }
}

fn floats(draft: &Draft, value: ValueId) -> Option<&[f32]> {
    draft.constants.get(value.index())?.as_ref()?.tensor().ok()?.as_slice().ok()
}

fn add(draft: &mut Draft, tensor: Tensor) -> ValueId {
    draft.add_constant(Value::Tensor(tensor))
}

fn fused(op: &str, inputs: &[Option<ValueId>]) -> NodeDef {
    NodeDef {
        domain: FUSED_DOMAIN.into(),
        op: op.into(),
        opset: 1,
        name: String::new(),
        inputs: inputs.to_vec(),
        attributes: Vec::new(),
        outputs: Vec::new(),
    }
}

fn n_bits(product: &Product, [weights, scales]: [ValueId; 2]) -> NodeDef {
    let [depth, columns] = product.size;
    let sizes = [("K", depth), ("N", columns), ("bits", 4), ("block_size", BLOCK)];
    let inputs = [Some(product.x), Some(weights), Some(scales), None, None];
    let attribute = |(name, size): (&str, usize)| (Arc::from(name), Attribute::Int(size as i64));
    NodeDef {
        domain: "com.microsoft".into(),
        attributes: sizes.into_iter().map(attribute).collect(),
        ..fused("MatMulNBits", &inputs)
    }
}

/// Whether a node reads a float weight that is worth replacing.
pub(crate) fn is_large(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::F32 && tensor.len() >= MIN_ELEMENTS
}
