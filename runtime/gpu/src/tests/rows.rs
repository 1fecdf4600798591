//! Softmax, normalisation, reductions and gathering.

use super::check::{Graph, Random};
use mortise_types::{Attribute, DType, ErrorKind, Tensor};

const F32: f32 = 2e-5;

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|dim| *dim as i64).collect()
}

#[test]
fn softmax_agrees_along_every_axis() {
    let mut random = Random::new();
    for shape in [vec![7, 129], vec![3, 1], vec![2, 33, 5], vec![1, 1000]] {
        for op in ["Softmax", "LogSoftmax"] {
            for axis in 0..shape.len() as i64 {
                let mut graph = Graph::default();
                let x = graph.input(DType::F32, &dims(&shape));
                let y = graph.node(op, &[x], &[("axis", Attribute::Int(axis))]);
                graph.output(y);
                graph.agrees_on_device(
                    &format!("{op} {shape:?} {axis}"),
                    &[random.floats(&shape)],
                    F32,
                );
            }
        }
    }
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 4]);
    let y = graph.node("Softmax", &[x], &[]);
    graph.output(y);
    let rows =
        vec![1e30, -1e30, 0.0, 1.0, f32::NEG_INFINITY, 0.0, 1.0, 2.0, f32::NAN, 0.0, 1.0, 2.0];
    graph.agrees_on_device("special", &[Tensor::from_vec(&[3, 4], rows).unwrap()], F32);
}

#[test]
fn normalisation_agrees() {
    let mut random = Random::new();
    for length in [1, 7, 33, 129, 768] {
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &[-1, 3, length as i64]);
        let skip = graph.input(DType::F32, &[-1, 3, length as i64]);
        let scale = graph.constant(random.floats(&[length]));
        let bias = graph.constant(random.floats(&[length]));
        let y = graph.node("LayerNormalization", &[x, scale, bias], &[]);
        graph.output(y);
        let inputs = [&[x, skip, scale, bias][..], &[x, skip, scale, bias, bias]];
        for inputs in inputs {
            let y = graph.nodes("com.microsoft", "SkipLayerNormalization", inputs, &[], 1)[0];
            graph.output(y);
        }
        let shape = [2, 3, length];
        let inputs = [random.floats(&shape), random.floats(&shape)];
        // With one or two values a row, the variance can be close to nothing.
        let tolerance = if length == 1 { 1e-2 } else { 1e-4 };
        graph.agrees_on_device(&format!("{length}"), &inputs, tolerance);
    }
}

#[test]
fn reductions_agree() {
    let mut random = Random::new();
    let shape = [3usize, 7, 33, 5];
    let ops = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare"];
    for op in ops {
        for (axes, keep) in
            [(&[1i64][..], 1), (&[3], 0), (&[1, 2], 0), (&[-1, -2, -3], 1), (&[0], 0)]
        {
            let mut graph = Graph::default();
            let x = graph.input(DType::F32, &dims(&shape));
            let axes_value = graph.ints(axes);
            let keepdims = ("keepdims", Attribute::Int(keep));
            let y = graph.node(&format!("Reduce{op}"), &[x, axes_value], &[keepdims]);
            graph.output(y);
            graph.agrees_on_device(&format!("{op} {axes:?}"), &[random.floats(&shape)], 1e-4);
        }
    }
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 3, 5, 5]);
    let mean = graph.node("GlobalAveragePool", &[x], &[]);
    let most = graph.node("GlobalMaxPool", &[x], &[]);
    graph.output(mean);
    graph.output(most);
    graph.agrees_on_device("global", &[random.floats(&[2, 3, 5, 5])], F32);
}

#[test]
fn gathering_checks_every_index() {
    let mut random = Random::new();
    for (shape, axis) in [(vec![50, 33], 0), (vec![3, 50, 7], 1), (vec![4, 50], 1)] {
        let mut graph = Graph::default();
        let data = graph.constant(random.floats(&shape));
        let indices = graph.input(DType::I64, &[-1, 5]);
        let y = graph.node("Gather", &[data, indices], &[("axis", Attribute::Int(axis))]);
        graph.output(y);
        graph.agrees_on_device(&format!("{shape:?}"), &[random.indices(&[7, 5], 50)], 0.0);
        let negative = Tensor::from_vec(&[1, 5], vec![-1i64, -50, 0, 49, -2]).unwrap();
        graph.agrees_on_device("negative", &[negative], 0.0);
        for wrong in [50, -51, 1 << 20, i64::from(i32::MIN), 1 << 40] {
            let wrong = Tensor::from_vec(&[1, 5], vec![0i64, 1, wrong, 3, 4]).unwrap();
            let error = graph.run_on(&*super::device(), &[wrong]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
    }
}
