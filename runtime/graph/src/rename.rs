use mortise_types::{Attribute, GraphBody, NodeDef, ValueId};
use std::sync::Arc;

/// The body with other numbers for its values, subgraphs included.
pub(crate) fn rename(body: &GraphBody, to: &dyn Fn(ValueId) -> ValueId) -> GraphBody {
    let values = |values: &[ValueId]| values.iter().map(|value| to(*value)).collect();
    GraphBody {
        inputs: values(&body.inputs),
        nodes: body.nodes.iter().map(|node| rename_node(node, to)).collect(),
        outputs: values(&body.outputs),
    }
}

fn rename_node(node: &NodeDef, to: &dyn Fn(ValueId) -> ValueId) -> NodeDef {
    let values = |values: &[Option<ValueId>]| values.iter().map(|value| value.map(to)).collect();
    let attribute = |(name, value): &(Arc<str>, Attribute)| match value {
        Attribute::Graph(body) => (name.clone(), Attribute::Graph(Arc::new(rename(body, to)))),
        plain => (name.clone(), plain.clone()),
    };
    NodeDef {
        inputs: values(&node.inputs),
        outputs: values(&node.outputs),
        attributes: node.attributes.iter().map(attribute).collect(),
        ..node.clone()
    }
}
