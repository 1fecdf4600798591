//! Which operator a node means: a table per domain, looked up at compile time.

use crate::cpu::op::{Entry, Operator};
use crate::cpu::ops::{
    attention, control, conv, determinant, elementwise, flex_attention, index_ops,
    linear_attention, loss, matmul, ml_linear, ml_prep, ml_svm, ml_trees, norm, optimizers, pool,
    quant, random, recurrent, reduce, rotary, sequence, shape_ops, signal, softmax, spatial, text,
};
use mortise_types::{Error, NodeDef, Result};

/// Makes the operator a node names.
///
/// # Errors
/// `Unsupported` naming operator, node, domain and opset when there is none,
/// or whatever its constructor says about the attributes.
pub(crate) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let entry = find(&node.domain, &node.op, node.opset)
        .ok_or_else(|| Error::unsupported(format!("{} is not supported", node.describe())))?;
    (entry.build)(node).map_err(|error| {
        if error.message().contains(&*node.op) { error } else { error.context(node.describe()) }
    })
}

/// The newest row for `op` that is not newer than `opset`.
fn find(domain: &str, op: &str, opset: u32) -> Option<&'static Entry> {
    families(domain)
        .iter()
        .flat_map(|entries| entries.iter())
        .filter(|entry| entry.op == op && entry.since <= opset)
        .max_by_key(|entry| entry.since)
}

fn families(domain: &str) -> &'static [&'static [Entry]] {
    match domain {
        "" | "ai.onnx" => MAIN,
        "ai.onnx.ml" => ML,
        "ai.onnx.preview" => &[flex_attention::ENTRIES],
        "ai.onnx.preview.training" => &[optimizers::ENTRIES],
        "com.microsoft" => MICROSOFT,
        mortise_graph::FUSED_DOMAIN => FUSED,
        _ => &[],
    }
}

const MAIN: &[&[Entry]] = &[
    attention::ENTRIES,
    control::ENTRIES,
    conv::ENTRIES,
    determinant::ENTRIES,
    elementwise::ENTRIES,
    index_ops::ENTRIES,
    linear_attention::ENTRIES,
    loss::ENTRIES,
    matmul::ENTRIES,
    norm::ENTRIES,
    pool::ENTRIES,
    quant::ENTRIES,
    random::ENTRIES,
    recurrent::ENTRIES,
    reduce::ENTRIES,
    rotary::ENTRIES,
    sequence::ENTRIES,
    shape_ops::ENTRIES,
    signal::ENTRIES,
    softmax::ENTRIES,
    spatial::ENTRIES,
    text::ENTRIES,
];

const ML: &[&[Entry]] = &[ml_linear::ENTRIES, ml_prep::ENTRIES, ml_svm::ENTRIES, ml_trees::ENTRIES];

const MICROSOFT: &[&[Entry]] = &[
    attention::MS_ENTRIES,
    conv::FUSED_ENTRIES,
    elementwise::MS_ENTRIES,
    index_ops::MS_ENTRIES,
    matmul::MS_ENTRIES,
    norm::MS_ENTRIES,
    quant::MS_ENTRIES,
    quant::FUSED_ENTRIES,
    text::MS_ENTRIES,
];

/// Operators that only the planner writes.
const FUSED: &[&[Entry]] = &[
    attention::FUSED_ENTRIES,
    conv::FUSED_ENTRIES,
    matmul::FUSED_ENTRIES,
    quant::FUSED_ENTRIES,
    quant::WEIGHT_ENTRIES,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_has_its_own_operator_and_opset() {
        for family in [MAIN, ML, MICROSOFT, FUSED] {
            let mut seen = HashSet::new();
            for entry in family.iter().copied().flatten() {
                assert!(seen.insert((entry.op, entry.since)), "{} {}", entry.op, entry.since);
            }
        }
    }

    #[test]
    fn the_newest_row_that_is_not_too_new_is_found() {
        let since = |domain: &str, op: &str, opset| find(domain, op, opset).map(|row| row.since);
        assert_eq!(since("", "Softmax", 12), Some(1));
        assert_eq!(since("ai.onnx", "Softmax", 21), Some(13));
        assert_eq!(since("", "HardSwish", 13), None);
        assert_eq!(since("ai.onnx.ml", "Softmax", 1), None);
    }
}
