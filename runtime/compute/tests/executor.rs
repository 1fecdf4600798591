//! Whole graphs through planning, compilation and execution on the CPU.

mod graphs;

use graphs::{Builder, floats, ramp};
use mortise_graph::GraphLimits;
use mortise_types::{
    Attribute, DType, ErrorKind, GraphBody, RunControl, Tensor, TensorSpec, ValueId, ValueSource,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn mlp(hidden: usize) -> Builder {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, 64]);
    let w1 = graph.constant(&[64, hidden], ramp(64 * hidden));
    let b1 = graph.constant(&[hidden], ramp(hidden));
    let w2 = graph.constant(&[hidden, 10], ramp(hidden * 10));
    let b2 = graph.constant(&[10], ramp(10));
    let product = graph.node("MatMul", &[x, w1]);
    let sum = graph.node("Add", &[product, b1]);
    let hidden = graph.node("Relu", &[sum]);
    let product = graph.node("MatMul", &[hidden, w2]);
    let sum = graph.node("Add", &[product, b2]);
    let scores = graph.node_with("Softmax", &[sum], &[("axis", Attribute::Int(-1))]);
    graph.output("scores", scores);
    graph
}

#[test]
fn an_mlp_gives_probabilities_and_a_fast_answer() {
    let exe = mlp(100).compile().unwrap();
    assert_eq!(exe.signature().outputs[0], TensorSpec::new("scores", DType::F32, &[-1, 10]));
    assert!(exe.rows_independent());
    let row = ramp(64);
    let control = RunControl::unbounded();
    let run = |rows: usize| {
        let input = Tensor::from_vec(&[rows, 64], row.repeat(rows)).unwrap();
        exe.execute(vec![input], &control).unwrap().wait().unwrap().remove(0)
    };
    let one = run(1);
    let scores = one.as_slice::<f32>().unwrap();
    assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{scores:?}");
    for (i, score) in run(7).as_slice::<f32>().unwrap().iter().enumerate() {
        assert!((score - scores[i % 10]).abs() < 1e-6, "rows do not depend on the batch");
    }
    let start = Instant::now();
    for _ in 0..10_000 {
        std::hint::black_box(run(1));
    }
    let each = start.elapsed() / 10_000;
    println!("mlp 64-100-10, one row: {each:?}");
    assert!(each < Duration::from_millis(1), "{each:?} for one row");
}

#[test]
fn missing_operators_are_all_named() {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[1]);
    let a = graph.node("NoSuchThing", &[x]);
    let b = graph.node("NorThis", &[a]);
    graph.output("y", b);
    let error = graph.compile().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for part in ["NoSuchThing \"NoSuchThing_1\" (ai.onnx, opset 21)", "NorThis"] {
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn malformed_graphs_are_refused() {
    let unknown = |graph: &mut Builder| {
        let node = graph.make("Relu", &[ValueId(99)], &[]);
        graph.0.body.nodes.push(node);
    };
    let cycle = |graph: &mut Builder| {
        let later = ValueId(graph.0.values.len() as u32 + 1);
        let first = graph.node("Relu", &[later]);
        graph.node("Relu", &[first]);
    };
    let twice = |graph: &mut Builder| {
        let x = graph.0.body.inputs[0];
        let node = graph.make("Relu", &[x], &[]);
        graph.0.body.nodes.push(node.clone());
        graph.0.body.nodes.push(node);
    };
    type Break = fn(&mut Builder);
    let cases: [(Break, &str); 3] = [
        (unknown, "unknown value 99"),
        (cycle, "before any node writes it"),
        (twice, "written twice"),
    ];
    for (damage, want) in cases {
        let mut graph = Builder::default();
        let x = graph.input("x", DType::F32, &[1]);
        damage(&mut graph);
        graph.output("y", x);
        let error = graph.compile().err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains(want), "{error}");
    }
}

#[test]
fn bombs_end_in_limits() {
    let mut shape = Builder::default();
    let x = shape.input("x", DType::I64, &[-1]);
    let y = shape.node("ConstantOfShape", &[x]);
    shape.output("y", y);
    let huge = Tensor::from_vec(&[3], vec![1i64 << 20; 3]).unwrap();
    let error = shape.run(vec![huge]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");

    let mut folding = Builder::default();
    let x = folding.input("x", DType::F32, &[1]);
    let dims = folding.ints(vec![1 << 14, 1 << 14]);
    let big = folding.node("ConstantOfShape", &[dims]);
    let sum = folding.node("Add", &[big, x]);
    folding.output("y", sum);
    let error = folding.compile().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    assert!(error.message().contains("max_folded_bytes"), "{error}");
}

/// `Loop` whose condition is always true.
fn endless_loop() -> Builder {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[1]);
    let count = graph.value("iteration", ValueSource::Input);
    let go = graph.value("go", ValueSource::Input);
    let carried = graph.value("carried", ValueSource::Input);
    let step = graph.make("Add", &[carried, x], &[]);
    let same = graph.make("Identity", &[go], &[]);
    let body = GraphBody {
        inputs: vec![count, go, carried],
        outputs: vec![same.outputs[0].unwrap(), step.outputs[0].unwrap()],
        nodes: vec![step, same],
    };
    let mut node = graph.make("Loop", &[x], &[("body", Attribute::Graph(Arc::new(body)))]);
    node.inputs = vec![None, None, Some(x)];
    let y = node.outputs[0].unwrap();
    graph.0.body.nodes.push(node);
    graph.output("y", y);
    graph
}

#[test]
fn endless_loops_end_at_the_iteration_limit_or_the_deadline() {
    let limits = GraphLimits { max_loop_iterations: 1000, ..GraphLimits::default() };
    let exe = endless_loop().compile_with(&limits).unwrap();
    let run = |control: &RunControl| {
        exe.execute(vec![floats(&[1], &[1.0])], control).and_then(|ticket| ticket.wait())
    };
    let error = run(&RunControl::unbounded()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    let passed = RunControl::new(Some(Instant::now()), 1 << 40);
    assert_eq!(run(&passed).unwrap_err().kind(), ErrorKind::Deadline);
}

#[test]
fn an_input_that_is_also_read_later_is_not_overwritten() {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1]);
    let y = graph.node("Add", &[x, x]);
    let z = graph.node("Relu", &[y]);
    let sum = graph.node("Sub", &[z, y]);
    graph.output("sum", sum);
    graph.output("y", y);
    graph.output("again", y);
    let outputs = graph.run(vec![floats(&[2], &[-1.0, 2.0])]).unwrap();
    let values: Vec<&[f32]> = outputs.iter().map(|t| t.as_slice::<f32>().unwrap()).collect();
    assert_eq!(values, [[2.0, 0.0], [-2.0, 4.0], [-2.0, 4.0]]);
}

#[test]
fn inputs_are_checked_against_the_signature() {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, 2]);
    let y = graph.node("Relu", &[x]);
    graph.output("y", y);
    let cases = [
        (vec![], "takes 1 inputs, got 0"),
        (vec![floats(&[2], &[0.0; 2])], "expects shape [-1, 2], got [2]"),
        (vec![Tensor::zeros(DType::I64, &[1, 2]).unwrap()], "expects FP32, got INT64"),
    ];
    for (inputs, want) in cases {
        let error = graph.run(inputs).unwrap_err();
        assert!(error.message().contains(want), "{error}");
    }
}
