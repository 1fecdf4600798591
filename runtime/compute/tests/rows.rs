//! Which graphs are proven to keep rows apart, and that those do.

mod graphs;

use graphs::{Builder, ramp};
use mortise_types::{Attribute, DType, RunControl, Tensor, ValueId};
use std::sync::Arc;

const COLUMNS: usize = 6;

/// A graph over `x` of shape `[-1, 6]`.
fn over_rows(build: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> Builder {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, COLUMNS as i64]);
    let y = build(&mut graph, x);
    graph.output("y", y);
    graph
}

fn best(graph: &mut Builder, x: ValueId) -> ValueId {
    graph.node_with("ArgMax", &[x], &[("axis", Attribute::Int(1))])
}

fn look_up(graph: &mut Builder, table: &[usize], indices: ValueId) -> ValueId {
    let classes = graph.constant(table, ramp(table.iter().product()));
    let mut node = graph.make("ArrayFeatureExtractor", &[classes, indices], &[]);
    (node.domain, node.opset) = (Arc::from("ai.onnx.ml"), 1);
    let labels = node.outputs[0].unwrap();
    graph.0.body.nodes.push(node);
    labels
}

fn shaped(graph: &mut Builder, value: ValueId, shape: &[i64]) -> ValueId {
    let shape = graph.ints(shape.to_vec());
    graph.node("Reshape", &[value, shape])
}

/// Two rows together give what each gives alone.
fn rows_stay_apart(graph: &Builder) -> bool {
    let exe = graph.compile().unwrap();
    let run = |rows: usize, values: &[f32]| {
        let input = Tensor::from_vec(&[rows, COLUMNS], values.to_vec()).unwrap();
        exe.execute(vec![input], &RunControl::unbounded()).unwrap().wait().unwrap().remove(0)
    };
    let values = ramp(2 * COLUMNS);
    let (first, second) = values.split_at(COLUMNS);
    let together = run(2, &values);
    let alone = [run(1, first), run(1, second)];
    let bytes: Vec<u8> = alone.iter().filter_map(Tensor::bytes).flatten().copied().collect();
    together.shape()[0] == 2 && alone[0].shape()[0] == 1 && together.bytes() == Some(&bytes[..])
}

fn check(name: &str, is_apart: bool, graph: &Builder) {
    assert_eq!(graph.compile().unwrap().rows_independent(), is_apart, "{name}");
    if is_apart {
        assert!(rows_stay_apart(graph), "{name}");
    }
}

#[test]
fn labels_are_looked_up_row_by_row() {
    for table in [&[COLUMNS][..], &[1, COLUMNS]] {
        let looked_up = |shape: Option<&'static [i64]>| {
            over_rows(|graph, x| {
                let indices = best(graph, x);
                let labels = look_up(graph, table, indices);
                shape.map_or(labels, |shape| shaped(graph, labels, shape))
            })
        };
        check("a vector", true, &looked_up(Some(&[-1])));
        check("a column", true, &looked_up(Some(&[-1, 1])));
        check("one row of all labels", false, &looked_up(None));
        check("still one row", false, &looked_up(Some(&[1, -1])));
    }
}

#[test]
fn labels_of_several_indices_a_row_are_not_proven() {
    let graph = over_rows(|graph, x| {
        let k = graph.ints(vec![2]);
        let mut node = graph.make("TopK", &[x, k], &[]);
        let indices = graph.value("indices", mortise_types::ValueSource::Node);
        node.outputs.push(Some(indices));
        graph.0.body.nodes.push(node);
        let labels = look_up(graph, &[COLUMNS], indices);
        shaped(graph, labels, &[-1])
    });
    check("two labels a row", false, &graph);
}

#[test]
fn what_mixes_rows_is_not_proven() {
    let axis = |axis| [("axis", Attribute::Int(axis))];
    check("softmax down", false, &over_rows(|g, x| g.node_with("Softmax", &[x], &axis(0))));
    check("softmax across", true, &over_rows(|g, x| g.node_with("Softmax", &[x], &axis(1))));
    check("largest of a column", false, &over_rows(|g, x| g.node_with("ArgMax", &[x], &axis(0))));
    check("largest of a row", true, &over_rows(best));
    let pairs = over_rows(|g, x| shaped(g, x, &[-1, 2 * COLUMNS as i64]));
    assert!(!pairs.compile().unwrap().rows_independent());
    let halves = over_rows(|g, x| shaped(g, x, &[-1, COLUMNS as i64 / 2]));
    check("half rows", false, &halves);
    let folded = over_rows(|g, x| {
        let labels = best(g, x);
        let row = shaped(g, labels, &[1, -1]);
        let axes = g.ints(vec![1]);
        g.node("ReduceSum", &[row, axes])
    });
    check("the sum of all labels", false, &folded);
}
