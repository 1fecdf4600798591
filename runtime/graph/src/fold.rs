//! Constant folding: nodes whose inputs are all known run at plan time.

use crate::infer::{infer_node, static_shape};
use crate::plan::Draft;
use crate::validate::subgraphs;
use crate::{Evaluate, GraphLimits};
use mortise_types::{
    Attribute, Error, ErrorKind, GraphBody, NodeDef, Result, RunControl, Tensor, Value,
};
use std::sync::Arc;

/// Operators whose answer is not a function of their inputs.
const RANDOM: [&str; 7] = [
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
];

/// # Errors
/// `LimitExceeded` over `max_folded_bytes`, `Deadline`, or what a node at the
/// top level says of constant inputs that do not fit it.
pub(crate) fn fold(
    draft: &mut Draft,
    limits: &GraphLimits,
    device: &dyn Evaluate,
    control: &RunControl,
) -> Result<()> {
    let body = std::mem::take(&mut draft.body);
    let mut folder = Folder { draft, limits, device, control, folded_bytes: 0 };
    let body = folder.body(body, 0)?;
    draft.body = body;
    Ok(())
}

struct Folder<'a> {
    draft: &'a mut Draft,
    limits: &'a GraphLimits,
    device: &'a dyn Evaluate,
    control: &'a RunControl,
    folded_bytes: usize,
}

impl Folder<'_> {
    fn body(&mut self, body: GraphBody, depth: usize) -> Result<GraphBody> {
        let GraphBody { inputs, nodes, outputs } = body;
        let mut kept = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            self.control.check()?;
            for (_, attribute) in &mut node.attributes {
                if let Attribute::Graph(inner) = attribute {
                    *inner = Arc::new(self.body((**inner).clone(), depth + 1)?);
                }
            }
            if !self.node(&node, depth)? {
                infer_node(&node, &self.draft.constants, &mut self.draft.facts);
                kept.push(node);
            }
        }
        Ok(GraphBody { inputs, nodes: kept, outputs })
    }

    /// Whether the node was replaced by constants.
    fn node(&mut self, node: &NodeDef, depth: usize) -> Result<bool> {
        if let Some(shape) = self.known_shape(node) {
            return self.store(node, vec![Value::Tensor(shape)]);
        }
        let Some(inputs) = self.constant_inputs(node) else { return Ok(false) };
        let left = self.limits.max_folded_bytes.saturating_sub(self.folded_bytes);
        match self.device.evaluate(node, inputs, left, self.control) {
            Ok(outputs) => self.store(node, outputs),
            // A branch that is never taken may hold nonsense.
            Err(error) if depth > 0 && error.kind() != ErrorKind::Deadline => Ok(false),
            Err(error) if error.kind() == ErrorKind::LimitExceeded => Err(self.over(node)),
            Err(error) => Err(error),
        }
    }

    fn constant_inputs(&self, node: &NodeDef) -> Option<Vec<Option<Value>>> {
        if subgraphs(node).next().is_some() || RANDOM.contains(&&*node.op) {
            return None;
        }
        let constant = |input: &Option<_>| match input {
            None => Some(None),
            Some(value) => self.constant(*value).map(Some),
        };
        node.inputs.iter().map(constant).collect()
    }

    fn constant(&self, value: mortise_types::ValueId) -> Option<Value> {
        self.draft.constants.get(value.index())?.clone()
    }

    /// `Shape` of a value whose dimensions are all known.
    fn known_shape(&self, node: &NodeDef) -> Option<Tensor> {
        if &*node.op != "Shape" || !node.domain.is_empty() || !node.attributes.is_empty() {
            return None;
        }
        let fact = self.draft.facts.get(node.inputs.first().copied()??.index())?;
        let shape = static_shape(fact)?;
        Tensor::from_vec(&[shape.len()], shape.iter().map(|&dim| dim as i64).collect()).ok()
    }

    fn store(&mut self, node: &NodeDef, outputs: Vec<Value>) -> Result<bool> {
        for (target, value) in node.outputs.iter().zip(outputs) {
            let Some(target) = target else { continue };
            if let Value::Tensor(tensor) = &value {
                self.folded_bytes = self.folded_bytes.saturating_add(tensor.byte_len());
            }
            self.draft.set_constant(*target, value);
        }
        if self.folded_bytes > self.limits.max_folded_bytes {
            return Err(self.over(node));
        }
        Ok(true)
    }

    fn over(&self, node: &NodeDef) -> Error {
        let limit = self.limits.max_folded_bytes;
        Error::limit(format!("folding constants exceeds max_folded_bytes = {limit}"))
            .context(node.describe())
    }
}
