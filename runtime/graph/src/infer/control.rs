//! Subgraphs: what is known of a value that goes around a loop is what holds
//! before the first iteration and after every later one.

use super::{Fact, infer_body_at, resolve_axis};
use crate::validate::subgraphs;
use mortise_types::{Attribute, DType, GraphBody, NodeDef, Value, ValueId};
use std::sync::Arc;

/// How often a body is looked at before its carried values count as unknown.
const ROUNDS: usize = 3;
/// Deeper bodies are looked at once: each level multiplies the rounds.
const MAX_DEPTH: usize = 2;

pub(super) struct Scope<'a> {
    pub(super) constants: &'a [Option<Value>],
    pub(super) facts: &'a mut [Fact],
    /// Subgraphs around this node.
    pub(super) depth: usize,
}

/// Infers the subgraphs of a node. Returns the facts of its outputs when it is
/// one of those operators whose outputs come from its subgraphs.
pub(super) fn infer(node: &NodeDef, mut scope: Scope<'_>) -> Option<Vec<Fact>> {
    let bodies: Vec<Arc<GraphBody>> = subgraphs(node).cloned().collect();
    let standard = matches!(&*node.domain, "" | "ai.onnx");
    match (&*node.op, bodies.as_slice()) {
        ("If", [a, b]) if standard => Some(scope.branches(a, b)),
        ("Loop", [body]) if standard => {
            scope.go_around(&Around::of_loop(node, body, &scope)?, body)
        }
        ("Scan", [body]) if standard && node.opset >= 9 => {
            scope.go_around(&Around::of_scan(node, body, &scope)?, body)
        }
        _ => {
            bodies.iter().for_each(|body| scope.body(body));
            None
        }
    }
}

/// How a loop feeds its body.
struct Around {
    /// Of the first inputs of the body that are not carried, then of those
    /// that come after the carried ones.
    before: Vec<Fact>,
    initial: Vec<Fact>,
    after: Vec<Fact>,
    /// Outputs of the body before the carried ones.
    skipped: usize,
    /// Where each further output of the body gets the dimension of iterations.
    stack_axes: Vec<i64>,
}

impl Around {
    fn of_loop(node: &NodeDef, body: &GraphBody, scope: &Scope<'_>) -> Option<Self> {
        let scalar = |dtype| Fact::new(Some(dtype), Some(vec![]));
        let initial: Vec<Fact> =
            node.inputs.iter().skip(2).map(|input| scope.fact(*input)).collect();
        let stacked = body.outputs.len().checked_sub(1 + initial.len())?;
        let before = vec![scalar(DType::I64), scalar(DType::Bool)];
        let stack_axes = vec![0; stacked];
        Some(Self { before, initial, after: Vec::new(), skipped: 1, stack_axes })
    }

    fn of_scan(node: &NodeDef, body: &GraphBody, scope: &Scope<'_>) -> Option<Self> {
        let Some(Attribute::Int(scanned)) = node.attribute("num_scan_inputs") else { return None };
        let state = node.inputs.len().checked_sub(usize::try_from(*scanned).ok()?)?;
        let stacked = body.outputs.len().checked_sub(state)?;
        let axis = |name: &str, index: usize| match node.attribute(name) {
            Some(Attribute::Ints(axes)) => axes.get(index).copied().unwrap_or(0),
            _ => 0,
        };
        let (states, sequences) = node.inputs.split_at(state);
        let slice = |(index, input): (usize, &Option<ValueId>)| {
            without_axis(scope.fact(*input), axis("scan_input_axes", index))
        };
        Some(Self {
            before: Vec::new(),
            initial: states.iter().map(|input| scope.fact(*input)).collect(),
            after: sequences.iter().enumerate().map(slice).collect(),
            skipped: 0,
            stack_axes: (0..stacked).map(|index| axis("scan_output_axes", index)).collect(),
        })
    }
}

impl Scope<'_> {
    fn fact(&self, value: Option<ValueId>) -> Fact {
        value.and_then(|value| self.facts.get(value.index())).cloned().unwrap_or_default()
    }

    fn body(&mut self, body: &GraphBody) {
        infer_body_at(body, self.constants, self.facts, self.depth + 1);
    }

    fn branches(&mut self, a: &GraphBody, b: &GraphBody) -> Vec<Fact> {
        self.body(a);
        self.body(b);
        let outputs = a.outputs.iter().zip(&b.outputs);
        outputs.map(|(&a, &b)| self.fact(Some(a)).joined(&self.fact(Some(b)))).collect()
    }

    fn go_around(&mut self, around: &Around, body: &GraphBody) -> Option<Vec<Fact>> {
        let count = around.before.len() + around.initial.len() + around.after.len();
        if body.inputs.len() != count {
            return None;
        }
        let carried = self.settle(around, body);
        let stacked = body.outputs.iter().skip(around.skipped + carried.len());
        let stacked = stacked
            .zip(&around.stack_axes)
            .map(|(&value, &axis)| with_axis(self.fact(Some(value)), axis));
        let stacked: Vec<Fact> = stacked.collect();
        Some(carried.into_iter().chain(stacked).collect())
    }

    /// What holds of the carried values whenever the body starts and ends.
    fn settle(&mut self, around: &Around, body: &GraphBody) -> Vec<Fact> {
        let mut carried = around.initial.clone();
        let rounds = if self.depth < MAX_DEPTH { ROUNDS } else { 0 };
        for _ in 0..rounds {
            let after = self.round(around, body, &carried);
            let joint: Vec<Fact> =
                carried.iter().zip(&after).map(|(before, after)| before.joined(after)).collect();
            if joint == carried {
                return carried;
            }
            carried = joint;
        }
        // The type of a carried value never changes.
        let unknown: Vec<Fact> =
            around.initial.iter().map(|initial| Fact::new(initial.dtype, None)).collect();
        self.round(around, body, &unknown);
        unknown
    }

    /// Infers the body once and returns the facts of its carried outputs.
    fn round(&mut self, around: &Around, body: &GraphBody, carried: &[Fact]) -> Vec<Fact> {
        forget(body, self.facts);
        let inputs = around.before.iter().chain(carried).chain(&around.after);
        for (value, fact) in body.inputs.iter().zip(inputs) {
            if let Some(target) = self.facts.get_mut(value.index()) {
                *target = fact.clone();
            }
        }
        self.body(body);
        let outputs = body.outputs.iter().skip(around.skipped).take(carried.len());
        outputs.map(|&value| self.fact(Some(value))).collect()
    }
}

/// What an earlier round said may not hold in this one.
fn forget(body: &GraphBody, facts: &mut [Fact]) {
    for node in &body.nodes {
        for value in node.outputs.iter().flatten() {
            if let Some(fact) = facts.get_mut(value.index()) {
                *fact = Fact::default();
            }
        }
        subgraphs(node).for_each(|inner| forget(inner, facts));
    }
}

fn without_axis(fact: Fact, axis: i64) -> Fact {
    let shape = fact.shape.and_then(|mut shape| {
        shape.remove(resolve_axis(axis, shape.len())?);
        Some(shape)
    });
    Fact::new(fact.dtype, shape)
}

fn with_axis(fact: Fact, axis: i64) -> Fact {
    let shape = fact.shape.and_then(|mut shape| {
        shape.insert(resolve_axis(axis, shape.len() + 1)?, -1);
        Some(shape)
    });
    Fact::new(fact.dtype, shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::infer_node;

    fn node(op: &str, opset: u32, inputs: &[u32], outputs: &[u32]) -> NodeDef {
        let values = |ids: &[u32]| ids.iter().map(|&id| Some(ValueId(id))).collect();
        NodeDef {
            domain: "".into(),
            op: op.into(),
            opset,
            name: String::new(),
            inputs: values(inputs),
            attributes: Vec::new(),
            outputs: values(outputs),
        }
    }

    fn body(inputs: &[u32], nodes: Vec<NodeDef>, outputs: &[u32]) -> Attribute {
        let values = |ids: &[u32]| ids.iter().copied().map(ValueId).collect();
        Attribute::Graph(Arc::new(GraphBody {
            inputs: values(inputs),
            nodes,
            outputs: values(outputs),
        }))
    }

    fn f32s(shape: &[i64]) -> Fact {
        Fact::new(Some(DType::F32), Some(shape.to_vec()))
    }

    fn inferred(node: &NodeDef, known: &[(usize, Fact)]) -> Vec<Fact> {
        let mut facts = vec![Fact::default(); 16];
        known.iter().for_each(|(index, fact)| facts[*index] = fact.clone());
        infer_node(node, &vec![None; 16], &mut facts);
        node.outputs.iter().flatten().map(|value| facts[value.index()].clone()).collect()
    }

    #[test]
    fn what_a_loop_carries_is_known_when_every_iteration_keeps_it() {
        // 0: trip count, 1: condition, 2: initial, 3 and 4: results, 5 to 7:
        // inputs of the body, 8: its result.
        let unknown_rank = || Fact::new(Some(DType::F32), None);
        let cases = [
            ("Add", vec![f32s(&[2, 3]), f32s(&[-1, 2, 3])]),
            ("Concat", vec![f32s(&[-1, 3]), f32s(&[-1, -1, 3])]),
            ("Unsqueeze", vec![unknown_rank(), unknown_rank()]),
        ];
        for (op, want) in cases {
            let mut inner = node(op, 11, &[7, 7], &[8]);
            inner.inputs.truncate(if op == "Unsqueeze" { 1 } else { 2 });
            inner.attributes.push(("axes".into(), Attribute::Ints(vec![0])));
            inner.attributes.push(("axis".into(), Attribute::Int(0)));
            let mut outer = node("Loop", 13, &[0, 1, 2], &[3, 4]);
            outer.attributes.push(("body".into(), body(&[5, 6, 7], vec![inner], &[6, 8, 8])));
            assert_eq!(inferred(&outer, &[(2, f32s(&[2, 3]))]), want, "{op}");
        }
    }

    #[test]
    fn a_scan_takes_slices_and_stacks_results() {
        // 0: state, 1: sequence, 2 and 3: results, 4 and 5: inputs of the
        // body, 6: its result.
        let mut scan = node("Scan", 11, &[0, 1], &[2, 3]);
        let inner = node("Add", 13, &[4, 5], &[6]);
        scan.attributes.push(("body".into(), body(&[4, 5], vec![inner], &[6, 6])));
        scan.attributes.push(("num_scan_inputs".into(), Attribute::Int(1)));
        scan.attributes.push(("scan_output_axes".into(), Attribute::Ints(vec![1])));
        let got = inferred(&scan, &[(0, f32s(&[4])), (1, f32s(&[-1, 4]))]);
        assert_eq!(got, [f32s(&[4]), f32s(&[4, -1])]);
    }

    #[test]
    fn branches_that_differ_leave_what_they_share() {
        // 0: condition, 1 and 2: of the graph around, 3: result.
        let mut either = node("If", 13, &[0], &[3]);
        either.attributes.push(("then_branch".into(), body(&[], vec![], &[1])));
        either.attributes.push(("else_branch".into(), body(&[], vec![], &[2])));
        let got = inferred(&either, &[(1, f32s(&[2, 3])), (2, f32s(&[2, 5]))]);
        assert_eq!(got, [f32s(&[2, -1])]);
    }
}
