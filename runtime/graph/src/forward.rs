//! Nodes that only hand on what they get: `Identity`, and casts to the dtype
//! that is there already.

use crate::plan::Draft;
use crate::rename::rename;
use mortise_types::{Attribute, DType, NodeDef, ValueId};
use std::collections::{HashMap, HashSet};

/// Lets whoever reads such a node read what it was given. The nodes themselves
/// go with the dead code. An output of the graph stays a value that a node
/// makes, and that no other output is.
pub(crate) fn forward(draft: &mut Draft) {
    let mut sources: HashMap<ValueId, ValueId> = HashMap::new();
    let mut outputs: HashSet<ValueId> = draft.body.outputs.iter().copied().collect();
    let mut made = HashSet::new();
    for node in &draft.body.nodes {
        if let Some((input, output)) = handed_on(draft, node) {
            let source = sources.get(&input).copied().unwrap_or(input);
            let is_output = outputs.contains(&output);
            if !is_output || (made.contains(&source) && outputs.insert(source)) {
                sources.insert(output, source);
            }
        }
        made.extend(node.outputs.iter().flatten().copied());
    }
    if !sources.is_empty() {
        // What a node writes keeps its number: nobody reads it any more.
        let to = |value: ValueId| sources.get(&value).copied().unwrap_or(value);
        let written: Vec<_> = draft.body.nodes.iter().map(|node| node.outputs.clone()).collect();
        draft.body = rename(&draft.body, &to);
        draft.body.nodes.iter_mut().zip(written).for_each(|(node, outputs)| node.outputs = outputs);
    }
}

/// The input and the output of a node that hands a value on.
fn handed_on(draft: &Draft, node: &NodeDef) -> Option<(ValueId, ValueId)> {
    let ([Some(input)], [Some(output)]) = (&node.inputs[..], &node.outputs[..]) else {
        return None;
    };
    let target = match node.attribute("to") {
        Some(Attribute::Int(to)) => i32::try_from(*to).ok().and_then(DType::from_onnx),
        _ => None,
    };
    let hands_on = match &*node.op {
        _ if !matches!(&*node.domain, "" | "ai.onnx") => false,
        "Identity" => true,
        "Cast" => {
            let from = draft.facts.get(input.index()).and_then(|fact| fact.dtype);
            target.is_some() && from == target
        }
        _ => false,
    };
    hands_on.then_some((*input, *output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Fact;
    use mortise_types::{GraphBody, Tensor};
    use std::sync::Arc;

    const F32: i64 = 1;
    const F16: i64 = 10;

    fn node(op: &str, inputs: &[u32], outputs: &[u32], to: Option<i64>) -> NodeDef {
        NodeDef {
            domain: "".into(),
            op: op.into(),
            opset: 13,
            name: String::new(),
            inputs: inputs.iter().map(|value| Some(ValueId(*value))).collect(),
            attributes: to.into_iter().map(|to| ("to".into(), Attribute::Int(to))).collect(),
            outputs: outputs.iter().map(|value| Some(ValueId(*value))).collect(),
        }
    }

    /// Value 0 is the input, 1 a constant; all are `FP32`.
    fn forwarded(nodes: Vec<NodeDef>, outputs: &[u32]) -> GraphBody {
        let outputs = outputs.iter().map(|value| ValueId(*value)).collect();
        let fact = Fact::of(&Tensor::scalar(1f32).into());
        let mut draft = Draft {
            body: GraphBody { inputs: vec![ValueId(0)], nodes, outputs },
            constants: vec![None, Some(Tensor::scalar(1f32).into())],
            facts: vec![fact; 10],
            origins: Default::default(),
        };
        forward(&mut draft);
        draft.body
    }

    #[test]
    fn readers_read_what_was_before_a_chain_of_copies() {
        let inner = GraphBody { outputs: vec![ValueId(3)], ..GraphBody::default() };
        let branch = ("then_branch".into(), Attribute::Graph(Arc::new(inner)));
        let mut conditional = node("If", &[3], &[5], None);
        conditional.attributes.push(branch);
        let nodes = vec![
            node("Identity", &[0], &[2], None),
            node("Cast", &[2], &[3], Some(F32)),
            node("Relu", &[3], &[4], None),
            conditional,
        ];
        let body = forwarded(nodes, &[4, 5]);
        assert_eq!(body.nodes[2].inputs[0], Some(ValueId(0)));
        assert_eq!(body.nodes[2].outputs[0], Some(ValueId(4)));
        let Some(Attribute::Graph(inner)) = body.nodes[3].attribute("then_branch") else {
            panic!("the branch is gone")
        };
        assert_eq!(inner.outputs, [ValueId(0)]);
    }

    #[test]
    fn a_cast_to_another_dtype_and_other_domains_stay() {
        let foreign = NodeDef { domain: "ai.onnx.ml".into(), ..node("Identity", &[0], &[3], None) };
        let nodes =
            vec![node("Cast", &[0], &[2], Some(F16)), foreign, node("Add", &[2, 3], &[4], None)];
        let body = forwarded(nodes, &[4]);
        assert_eq!(body.nodes[2].inputs.as_slice(), [Some(ValueId(2)), Some(ValueId(3))]);
    }

    #[test]
    fn outputs_stay_apart_and_are_made_by_nodes() {
        let nodes = vec![
            node("Identity", &[0], &[2], None),
            node("Identity", &[1], &[3], None),
            node("Relu", &[2], &[4], None),
            node("Identity", &[4], &[5], None),
            node("Identity", &[4], &[6], None),
        ];
        let body = forwarded(nodes, &[2, 3, 5, 6]);
        assert_eq!(body.outputs, [ValueId(2), ValueId(3), ValueId(4), ValueId(6)]);
        assert_eq!(body.nodes[2].inputs[0], Some(ValueId(2)));
    }
}
