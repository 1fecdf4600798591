//! Operators that work element by element, and those that only move elements.

use super::check::{Graph, Random};
use mortise_types::{Attribute, DType, Tensor};

/// Shaders compute `exp` and its relatives to a few units in the last place.
const F32: f32 = 2e-5;

const SPECIAL: [f32; 12] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.05,
    30.0,
    -30.0,
    100.0,
    -100.0,
];

#[test]
fn functions_of_one_number_agree() {
    let mut random = Random::new();
    let ops = [
        "Abs",
        "Ceil",
        "Cos",
        "Erf",
        "Exp",
        "Floor",
        "HardSwish",
        "Mish",
        "Neg",
        "Relu",
        "Round",
        "Sigmoid",
        "Sin",
        "Softplus",
        "Softsign",
        "Tanh",
        "Gelu",
        "LeakyRelu",
        "Elu",
        "HardSigmoid",
        "ThresholdedRelu",
        "IsNaN",
    ];
    for op in ops {
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &[-1, 33]);
        let y = graph.node(op, &[x], &[]);
        graph.output(y);
        graph.agrees_on_device(op, &[random.floats(&[7, 33])], F32);
        let finite = matches!(op, "Sin" | "Cos" | "Round");
        let special = SPECIAL.iter().filter(|v| !finite || v.abs() < 50.0).cycle().take(66);
        let special = Tensor::from_vec(&[2, 33], special.copied().collect::<Vec<f32>>()).unwrap();
        graph.agrees_on_device(&format!("special {op}"), &[special], F32);
    }
    for op in ["Log", "Sqrt", "Reciprocal"] {
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &[-1, 33]);
        let size = graph.node("Abs", &[x], &[]);
        let y = graph.node(op, &[size], &[]);
        graph.output(y);
        graph.agrees_on_device(op, &[random.floats(&[7, 33])], F32);
    }
}

#[test]
fn functions_of_two_broadcast() {
    let mut random = Random::new();
    let shapes: [(&[usize], &[usize]); 6] = [
        (&[7, 33], &[7, 33]),
        (&[7, 33], &[33]),
        (&[7, 33], &[7, 1]),
        (&[2, 1, 5, 3], &[4, 1, 3]),
        (&[1], &[129]),
        (&[2, 3, 4, 5], &[]),
    ];
    for op in ["Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Equal", "Pow", "PRelu"] {
        for (a, b) in shapes {
            if op == "PRelu" && b.len() > a.len() {
                continue;
            }
            let mut graph = Graph::default();
            let dims = |shape: &[usize]| shape.iter().map(|dim| *dim as i64).collect::<Vec<_>>();
            let x = graph.input(DType::F32, &dims(a));
            let y = graph.input(DType::F32, &dims(b));
            let x = if op == "Pow" { graph.node("Abs", &[x], &[]) } else { x };
            let z = graph.node(op, &[x, y], &[]);
            graph.output(z);
            let inputs = [random.floats(a), random.floats(b)];
            graph.agrees_on_device(&format!("{op} {a:?} {b:?}"), &inputs, 1e-4);
        }
    }
}

#[test]
fn a_long_chain_agrees_and_masks_work() {
    let mut random = Random::new();
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 8, 8]);
    let mask = graph.input(DType::I64, &[-1, 8]);
    let axes = graph.ints(&[1]);
    let mask = graph.node("Unsqueeze", &[mask, axes], &[]);
    let to = Attribute::Int(i64::from(DType::F32.onnx()));
    let mask = graph.node("Cast", &[mask], &[("to", to)]);
    let one = graph.constant(Tensor::scalar(1.0f32));
    let large = graph.constant(Tensor::scalar(-10_000.0f32));
    let inverse = graph.node("Sub", &[one, mask], &[]);
    let penalty = graph.node("Mul", &[inverse, large], &[]);
    let mut y = graph.node("Add", &[x, penalty], &[]);
    for op in ["Tanh", "Sigmoid", "Neg", "Exp"].iter().cycle().take(20) {
        y = graph.node(op, &[y], &[]);
        y = graph.node("Add", &[y, x], &[]);
    }
    let low = graph.constant(Tensor::scalar(-0.5f32));
    let high = graph.constant(Tensor::scalar(0.5f32));
    let y = graph.node("Clip", &[y, low, high], &[]);
    let positive = graph.node("Greater", &[x, low], &[]);
    let y = graph.node("Where", &[positive, y, x], &[]);
    graph.output(y);
    for rows in [1, 3] {
        let inputs = [random.floats(&[rows, 8, 8]), random.indices(&[rows, 8], 2)];
        graph.agrees_on_device("chain", &inputs, 1e-4);
    }
}

#[test]
fn moves_are_exact() {
    let mut random = Random::new();
    let x_shape = [3usize, 5, 7, 2];
    let dims = x_shape.map(|dim| dim as i64);
    for perm in [[3, 2, 1, 0], [0, 2, 1, 3], [1, 0, 3, 2], [0, 3, 1, 2]] {
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &dims);
        let y = graph.node("Transpose", &[x], &[("perm", Attribute::Ints(perm.to_vec()))]);
        let shape = graph.ints(&[-1, 6]);
        let flat = graph.node("Reshape", &[y, shape], &[]);
        let twice = graph.node("Add", &[y, y], &[]);
        graph.output(y);
        graph.output(flat);
        graph.output(twice);
        graph.agrees_on_device(&format!("{perm:?}"), &[random.floats(&x_shape)], 0.0);
    }
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &dims);
    let (starts, ends) = (graph.ints(&[1, -1]), graph.ints(&[100, -100]));
    let (axes, steps) = (graph.ints(&[1, 2]), graph.ints(&[2, -3]));
    let cut = graph.node("Slice", &[x, starts, ends, axes, steps], &[]);
    let joined = graph.node("Concat", &[cut, cut, cut], &[("axis", Attribute::Int(-2))]);
    let sizes = graph.ints(&[1, 4, 2]);
    let parts = graph.nodes("", "Split", &[x, sizes], &[("axis", Attribute::Int(2))], 3);
    let target = graph.ints(&[4, 3, 5, 1, 2]);
    let wide = graph.node("Expand", &[parts[0], target], &[]);
    graph.output(cut);
    graph.output(joined);
    graph.output(wide);
    parts[1..].iter().for_each(|part| graph.output(*part));
    graph.agrees_on_device("moves", &[random.floats(&x_shape)], 0.0);
}
