//! What a compiled graph consists of, for people.

use mortise_graph::Plan;
use mortise_types::{DType, NodeDef, Value, ValueId};
use std::collections::HashSet;

/// One operator of a compiled graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorInfo {
    /// The node's own name; may be empty.
    pub node: String,
    pub domain: String,
    /// Such as `Conv`.
    pub operator: String,
    /// Where it runs: `cpu`, or `gpu`.
    pub placement: &'static str,
    /// The operators of the model that it stands for, in their order; empty
    /// where it is one of them.
    pub fused: Vec<String>,
    /// Bytes of weights that no operator before it reads, packed copies
    /// included.
    pub weight_bytes: usize,
    /// Of each output, as far as they are known before a run.
    pub outputs: Vec<ValueInfo>,
}

/// What is known of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    pub dtype: Option<DType>,
    /// `-1` for a size that inputs decide; `None` when not even the rank is
    /// known.
    pub shape: Option<Vec<i64>>,
}

impl OperatorInfo {
    /// The operators of `plan`, all of them placed on the CPU.
    pub fn of_plan(plan: &Plan) -> Vec<Self> {
        let mut counted = HashSet::new();
        plan.body.nodes.iter().map(|node| Self::of_node(plan, node, &mut counted)).collect()
    }

    fn of_node(plan: &Plan, node: &NodeDef, counted: &mut HashSet<ValueId>) -> Self {
        let weight = |value: &ValueId| {
            let constant = plan.constants.get(value.index())?.as_ref()?;
            counted.insert(*value).then(|| byte_len(constant))
        };
        let output = node.outputs.iter().flatten().next();
        Self {
            node: node.name.clone(),
            domain: node.domain.to_string(),
            operator: node.op.to_string(),
            placement: "cpu",
            fused: output.and_then(|value| plan.origins.get(value)).cloned().unwrap_or_default(),
            weight_bytes: node.inputs.iter().flatten().filter_map(weight).sum(),
            outputs: node.outputs.iter().flatten().map(|value| value_info(plan, *value)).collect(),
        }
    }
}

fn value_info(plan: &Plan, value: ValueId) -> ValueInfo {
    let fact = plan.facts.get(value.index()).cloned().unwrap_or_default();
    ValueInfo { dtype: fact.dtype, shape: fact.shape }
}

/// Bytes that a constant keeps in memory.
pub(crate) fn byte_len(value: &Value) -> usize {
    match value {
        Value::Tensor(tensor) => tensor.byte_len(),
        Value::Sequence(items) => items.iter().map(byte_len).sum(),
        Value::Optional(inner) => inner.as_deref().map_or(0, byte_len),
        Value::Map(map) => map.1.byte_len(),
    }
}
