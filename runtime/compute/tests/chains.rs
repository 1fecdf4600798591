//! Chains of nodes that the planner makes one operator of, against the same
//! graph where every value in between is an output, so that none can be.

mod graphs;

use graphs::{Builder, floats, ramp};
use mortise_compute::measure::{KernelSizes, kernels, work_of};
use mortise_compute::{CpuDevice, CpuOptions, compile_graph};
use mortise_graph::GraphLimits;
use mortise_types::{Assets, Attribute, DType, ErrorKind, RunControl, Tensor, ValueId};

/// Runs a graph as it is and with all of `between` as outputs; the first
/// output must be the same, and the first run must take fewer nodes.
fn check(make: impl Fn(&mut Builder) -> (ValueId, Vec<ValueId>), inputs: &[Tensor], limit: f32) {
    let mut fused = Builder::default();
    let (output, _) = make(&mut fused);
    fused.output("y", output);
    let mut plain = Builder::default();
    let (output, between) = make(&mut plain);
    plain.output("y", output);
    for (index, value) in between.into_iter().enumerate() {
        plain.output(&format!("between_{index}"), value);
    }
    let nodes = [&fused, &plain].map(|graph| graph.compile().unwrap().footprint().node_count);
    assert!(nodes[0] < nodes[1], "{nodes:?} nodes");
    let [got, want] = [&fused, &plain].map(|graph| graph.run(inputs.to_vec()).unwrap().remove(0));
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (got.as_slice::<f32>().unwrap(), want.as_slice::<f32>().unwrap());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let close =
            (got - want).abs() <= limit * want.abs().max(1.0) || got.is_nan() && want.is_nan();
        assert!(close, "element {index}: {got} instead of {want}");
    }
}

fn perm(order: [i64; 4]) -> [(&'static str, Attribute); 1] {
    [("perm", Attribute::Ints(order.to_vec()))]
}

#[test]
fn attention_is_one_operator() {
    for (masked, multiplied) in [(true, false), (false, true)] {
        let make = |graph: &mut Builder| {
            let rows = graph.input("rows", DType::F32, &[-1, -1, 3, 5]);
            let mask = graph.input("mask", DType::F32, &[-1, 1, 1, -1]);
            let query = graph.node_with("Transpose", &[rows], &perm([0, 2, 1, 3]));
            let key = graph.node_with("Transpose", &[rows], &perm([0, 2, 3, 1]));
            let value = graph.node_with("Transpose", &[rows], &perm([0, 2, 1, 3]));
            let product = graph.node("MatMul", &[query, key]);
            let factor = graph.constant(&[], vec![3.0]);
            let scaled = graph.node(if multiplied { "Mul" } else { "Div" }, &[product, factor]);
            let scores = if masked { graph.node("Add", &[scaled, mask]) } else { scaled };
            let weights = graph.node_with("Softmax", &[scores], &[("axis", Attribute::Int(-1))]);
            let heads = graph.node("MatMul", &[weights, value]);
            let output = graph.node_with("Transpose", &[heads], &perm([0, 2, 1, 3]));
            let unread = if masked { Vec::new() } else { vec![mask] };
            (output, [product, scaled, weights, heads].into_iter().chain(unread).collect())
        };
        for (batch, length) in [(1, 1), (2, 7), (1, 129)] {
            let count = batch * length;
            let mut mask = ramp(count);
            mask[count - 1] = f32::NEG_INFINITY;
            mask[0] = 0.0;
            let inputs = [
                floats(&[batch, length, 3, 5], &ramp(count * 15)),
                floats(&[batch, 1, 1, length], &mask),
            ];
            check(make, &inputs, 1e-5);
        }
    }
}

#[test]
fn a_convolution_takes_its_normalisation_sum_and_activation() {
    for groups in [1, 4] {
        let make = |graph: &mut Builder| {
            let x = graph.input("x", DType::F32, &[-1, 4, 9, 7]);
            let inner = 4 / groups;
            let weights = graph.constant(&[4, inner, 3, 3], ramp(4 * inner * 9));
            let pads = ("pads", Attribute::Ints(vec![1; 4]));
            let group = ("group", Attribute::Int(groups as i64));
            let conv = graph.node_with("Conv", &[x, weights], &[pads, group]);
            let lists: Vec<ValueId> = (0..4)
                .map(|at| graph.constant(&[4], (1..5).map(|c| (c + at) as f32 / 3.0).collect()))
                .collect();
            let inputs = [conv, lists[0], lists[1], lists[2], lists[3]];
            let norm = graph.node("BatchNormalization", &inputs);
            let sum = graph.node("Add", &[norm, x]);
            (graph.node("Relu", &[sum]), vec![conv, norm, sum])
        };
        for batch in [1, 3] {
            let values: Vec<f32> = ramp(batch * 4 * 63).iter().map(|x| x * 10.0).collect();
            check(make, &[floats(&[batch, 4, 9, 7], &values)], 1e-5);
        }
    }
}

#[test]
fn an_integer_product_ends_as_floats() {
    for (zero, columns) in [(0i8, 40), (3, 40), (0, 1)] {
        let make = |graph: &mut Builder| {
            let x = graph.input("x", DType::F32, &[-1, -1, 33]);
            let weights: Vec<i8> =
                (0..33 * columns).map(|at| (at * 37 % 251) as u8 as i8).collect();
            let weights = graph.tensor(Tensor::from_vec(&[33, columns], weights).unwrap());
            let zero = graph.tensor(Tensor::scalar(zero));
            let (bytes, scale, offset) = graph.quantized(x);
            let sums = graph.node("MatMulInteger", &[bytes, weights, offset, zero]);
            let to = ("to", Attribute::Int(1));
            let cast = graph.node_with("Cast", &[sums], &[to]);
            let steps = graph.constant(&[columns], ramp(columns));
            let scales = graph.node("Mul", &[scale, steps]);
            let product = graph.node("Mul", &[cast, scales]);
            let bias = graph.constant(&[columns], ramp(columns));
            let sum = graph.node("Add", &[product, bias]);
            (graph.node("Gelu", &[sum]), vec![sums, cast, product, sum])
        };
        for rows in [1, 2, 65] {
            check(make, &[floats(&[1, rows, 33], &ramp(rows * 33))], 1e-6);
        }
    }
}

#[test]
fn operators_say_what_they_stand_for() {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, 4]);
    let weights = graph.constant(&[4, 3], ramp(12));
    let bias = graph.constant(&[3], ramp(3));
    let product = graph.node("MatMul", &[x, weights]);
    let sum = graph.node("Add", &[product, bias]);
    let active = graph.node("Relu", &[sum]);
    let y = graph.node_with("Softmax", &[active], &[("axis", Attribute::Int(-1))]);
    graph.output("y", y);
    let operators = graph.compile().unwrap().operators();
    let fused: Vec<_> = operators.iter().map(|operator| operator.fused.join("+")).collect();
    assert_eq!(fused, ["MatMul+Add+Relu", ""]);
    assert_eq!(operators[1].operator, "Softmax");
    assert!(operators[0].weight_bytes >= 15 * 4 && operators[1].weight_bytes == 0);
    let shapes: Vec<_> = operators.iter().map(|o| o.outputs[0].shape.clone().unwrap()).collect();
    assert_eq!(shapes, [[-1, 3], [-1, 3]]);
    assert!(operators.iter().all(|operator| operator.placement == "cpu"));
}

#[test]
fn work_is_counted_by_the_formulas() {
    let mut graph = Builder::default();
    let image = graph.input("image", DType::F32, &[-1, 2, 5, 5]);
    let kernel = graph.constant(&[3, 2, 3, 3], ramp(54));
    let map = graph.node("Conv", &[image, kernel]);
    let flat = graph.node("Flatten", &[map]);
    let weights = graph.constant(&[27, 4], ramp(108));
    let y = graph.node("MatMul", &[flat, weights]);
    graph.output("y", y);
    let device = CpuDevice::new(CpuOptions { threads: 1 });
    let image = floats(&[2, 2, 5, 5], &ramp(100));
    let work = work_of(&*device, &graph.0, &Assets::default(), &[image]).unwrap();
    let (conv, flatten, product) = (2 * (2 * 3 * 3 * 3) * (2 * 9), 2 * 27, 2 * (2 * 4) * 27);
    assert_eq!(work.operations, conv + flatten + product);
    assert_eq!(work.bytes, 4 * (100 + 54 + 108 + 8));
    assert_eq!(work.unknown_nodes, 0);
}

#[test]
fn every_kernel_that_is_measured_runs() {
    let device = CpuDevice::new(CpuOptions { threads: 1 });
    for kernel in kernels(KernelSizes::Small).unwrap() {
        let (name, inputs) = (kernel.name, &kernel.inputs);
        let work = match work_of(&*device, &kernel.def, &Assets::default(), inputs) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                assert_eq!(kernel.dtype, "int4", "{name}: {error}");
                continue;
            }
            work => work.unwrap(),
        };
        assert!(work.bytes > 0 && work.unknown_nodes == 0, "{name}: {work:?}");
        let limits = GraphLimits::default();
        let graph = compile_graph(&*device, &kernel.def, &Assets::default(), &limits).unwrap();
        graph.execute(inputs.clone(), &RunControl::unbounded()).unwrap().wait().unwrap();
    }
}
