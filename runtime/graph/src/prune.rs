//! Dead code: nodes whose outputs nobody reads.

use crate::plan::Draft;
use crate::validate::subgraphs;
use mortise_types::{Attribute, GraphBody, NodeDef, ValueId};
use std::collections::HashSet;
use std::sync::Arc;

/// Removes nodes that no output depends on, and forgets constants that nobody
/// reads any more.
pub(crate) fn prune(draft: &mut Draft) {
    let mut live = HashSet::new();
    draft.body = prune_body(&draft.body, &mut live);
    for (index, constant) in draft.constants.iter_mut().enumerate() {
        if !live.contains(&ValueId(index as u32)) {
            *constant = None;
        }
    }
}

/// `live` receives every value that the kept nodes read.
fn prune_body(body: &GraphBody, live: &mut HashSet<ValueId>) -> GraphBody {
    live.extend(&body.outputs);
    let mut nodes: Vec<NodeDef> = Vec::with_capacity(body.nodes.len());
    for node in body.nodes.iter().rev() {
        if !node.outputs.iter().flatten().any(|value| live.contains(value)) {
            continue;
        }
        live.extend(node.inputs.iter().flatten());
        let mut node = node.clone();
        for (_, attribute) in &mut node.attributes {
            if let Attribute::Graph(inner) = attribute {
                *inner = Arc::new(prune_body(inner, live));
            }
        }
        for output in &mut node.outputs {
            *output = output.filter(|value| live.contains(value));
        }
        nodes.push(node);
    }
    nodes.reverse();
    GraphBody { inputs: body.inputs.clone(), nodes, outputs: body.outputs.clone() }
}

/// How often each value is read, subgraphs and outputs included.
pub(crate) fn use_counts(body: &GraphBody, counts: &mut [usize]) {
    let mut count = |value: &ValueId| {
        if let Some(count) = counts.get_mut(value.index()) {
            *count += 1;
        }
    };
    body.outputs.iter().for_each(&mut count);
    body.nodes.iter().flat_map(|node| node.inputs.iter().flatten()).for_each(&mut count);
    for inner in body.nodes.iter().flat_map(subgraphs) {
        use_counts(inner, counts);
    }
}
