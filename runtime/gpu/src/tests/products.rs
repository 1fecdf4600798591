//! Matrix products.

use super::check::{Graph, Random};
use crate::device::Generation;
use crate::tune::{Kind, Tiles, Tuning};
use mortise_types::{Attribute, DType, Tensor};

const SIZES: [usize; 4] = [1, 7, 33, 129];

/// Relative to the answers' size; sums of up to 129 terms.
const F32: f32 = 2e-5;
const F16: f32 = 4e-3;

#[test]
fn products_of_odd_sizes_agree() {
    let mut random = Random::new();
    for m in SIZES {
        for k in SIZES {
            for n in SIZES {
                let mut graph = Graph::default();
                let x = graph.input(DType::F32, &[m as i64, k as i64]);
                let w = graph.constant(random.floats(&[k, n]));
                let row = if k == 33 { vec![1, n] } else { vec![n] };
                let bias = graph.constant(random.floats(&row));
                let product = graph.node("MatMul", &[x, w], &[]);
                let sum = graph.node("Add", &[product, bias], &[]);
                let y = graph.node("Relu", &[sum], &[]);
                graph.output(y);
                let inputs = [random.floats(&[m, k])];
                graph.agrees_on_device(&format!("{m}x{k}x{n}"), &inputs, F32);
            }
        }
    }
}

#[test]
fn products_match_float64() {
    let mut random = Random::new();
    let (m, k, n) = (33, 300, 65);
    let (a, b) = (random.floats(&[m, k]), random.floats(&[k, n]));
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[m as i64, k as i64]);
    let w = graph.input(DType::F32, &[k as i64, n as i64]);
    let y = graph.node("MatMul", &[x, w], &[]);
    graph.output(y);
    let got = graph.run_on(&*super::device(), &[a.clone(), b.clone()]).unwrap();
    let (a, b) = (a.as_slice::<f32>().unwrap(), b.as_slice::<f32>().unwrap());
    for (at, got) in got[0].as_slice::<f32>().unwrap().iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let terms = (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[i * n + column]));
        let (want, size) = terms.fold((0.0, 0.0), |(s, z), t| (s + t, z + t.abs()));
        let error = (f64::from(*got) - want).abs();
        assert!(error <= size * 1e-6, "[{row}, {column}]: {got} for {want}");
    }
}

/// Operands that can be read in fours, by all tiles there are, with terms enough
/// to be cut in parts; and of few rows.
#[test]
fn products_in_fours_match_float64_by_all_tiles() {
    let mut generation = Generation::open(super::adapter_index(), None).unwrap();
    let mut random = Random::new();
    for index in 0..Tiles::ALL.len() {
        for size in [[12, 132, 36], [100, 64, 256]] {
            generation.tuning = Tuning::only(Kind::Tiles, size, index);
            for (turn_a, turn_b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                fours(&generation, &mut random, size, [turn_a, turn_b]);
            }
        }
    }
    for m in 1..=8 {
        for turn_b in [0, 1] {
            fours(&generation, &mut random, [m, 36, 1100], [0, turn_b]);
        }
    }
}

fn fours(generation: &Generation, random: &mut Random, [m, n, k]: [usize; 3], turns: [i64; 2]) {
    let turned = |shape: [usize; 2], turn: i64| match turn {
        0 => shape,
        _ => [shape[1], shape[0]],
    };
    let (a, b) = (turned([m, k], turns[0]), turned([k, n], turns[1]));
    let (a, b) = (random.floats(&a), random.floats(&b));
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &a.shape().iter().map(|dim| *dim as i64).collect::<Vec<_>>());
    let w = graph.constant(b.clone());
    let turns_given = [("transA", Attribute::Int(turns[0])), ("transB", Attribute::Int(turns[1]))];
    let y = graph.node("Gemm", &[x, w], &turns_given);
    graph.output(y);
    let label = format!("{m}x{k}x{n} turned {turns:?}");
    let got = graph.run_poisoned(&label, generation, std::slice::from_ref(&a));
    let value = |tensor: &Tensor, at: [usize; 2], turn: i64| {
        let [row, column] = turned(at, turn);
        f64::from(tensor.as_slice::<f32>().unwrap()[row * tensor.shape()[1] + column])
    };
    for (at, got) in got[0].as_slice::<f32>().unwrap().iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let terms =
            (0..k).map(|i| value(&a, [row, i], turns[0]) * value(&b, [i, column], turns[1]));
        let (want, size) = terms.fold((0.0, 0.0), |(s, z), t| (s + t, z + t.abs()));
        let error = (f64::from(*got) - want).abs();
        assert!(error <= size * 1e-6, "{label} [{row}, {column}]: {got} for {want}");
    }
}

#[test]
fn transposed_and_batched_products_agree() {
    let mut random = Random::new();
    for (turn_a, turn_b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for m in [3, 40] {
            let (k, n) = (17, 9);
            let mut graph = Graph::default();
            let a_shape = if turn_a == 1 { [k, m] } else { [m, k] };
            let b_shape = if turn_b == 1 { [n, k] } else { [k, n] };
            let x = graph.input(DType::F32, &a_shape.map(|dim| dim as i64));
            let w = graph.constant(random.floats(&b_shape));
            let bias = graph.constant(random.floats(&[m, 1]));
            let attributes = [
                ("transA", Attribute::Int(turn_a)),
                ("transB", Attribute::Int(turn_b)),
                ("alpha", Attribute::Float(0.5)),
                ("beta", Attribute::Float(-2.0)),
            ];
            let y = graph.node("Gemm", &[x, w, bias], &attributes);
            graph.output(y);
            let inputs = [random.floats(&a_shape)];
            graph.agrees_on_device(&format!("{turn_a}{turn_b} {m}"), &inputs, F32);
        }
    }
    let shapes: [(&[usize], &[usize]); 5] = [
        (&[2, 3, 5, 7], &[2, 3, 7, 4]),
        (&[2, 3, 5, 7], &[7, 4]),
        (&[2, 3, 20, 7], &[3, 7, 4]),
        (&[3, 1, 5, 7], &[1, 4, 7, 2]),
        (&[5, 7], &[6, 7, 3]),
    ];
    for (a, b) in shapes {
        let mut graph = Graph::default();
        let dims = |shape: &[usize]| shape.iter().map(|dim| *dim as i64).collect::<Vec<_>>();
        let x = graph.input(DType::F32, &dims(a));
        let w = graph.input(DType::F32, &dims(b));
        let y = graph.node("MatMul", &[x, w], &[]);
        graph.output(y);
        let inputs = [random.floats(a), random.floats(b)];
        graph.agrees_on_device(&format!("{a:?} {b:?}"), &inputs, F32);
    }
}

#[test]
fn half_precision_weights_agree() {
    let mut random = Random::new();
    for m in SIZES {
        for (k, n) in [(7, 33), (33, 7), (64, 40)] {
            let mut graph = Graph::default();
            let x = graph.input(DType::F16, &[-1, k as i64]);
            let w = graph.constant(random.halves(&[k, n]));
            let y = graph.node("MatMul", &[x, w], &[]);
            graph.output(y);
            graph.agrees_on_device(&format!("{m}x{k}x{n}"), &[random.halves(&[m, k])], F16);
        }
    }
}

#[test]
fn what_is_no_number_stays_so() {
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 3]);
    let w =
        graph.constant(Tensor::from_vec(&[3, 2], vec![1.0f32, 0.5, 2.0, -1.0, 0.0, 3.0]).unwrap());
    let product = graph.node("MatMul", &[x, w], &[]);
    let y = graph.node("Relu", &[product], &[]);
    graph.output(y);
    graph.output(product);
    let rows = [
        [f32::NAN, 1.0, 2.0],
        [f32::INFINITY, 1.0, 1.0],
        [f32::NEG_INFINITY, 1.0, 1.0],
        [f32::INFINITY, f32::NEG_INFINITY, 1.0],
        [1e38, 1e38, 1e38],
        [0.0, -0.0, 1e-40],
    ];
    for count in [rows.len(), rows.len() * 4] {
        let values: Vec<f32> = rows.iter().cycle().take(count).flatten().copied().collect();
        let input = Tensor::from_vec(&[count, 3], values).unwrap();
        graph.agrees_on_device("special", &[input], F32);
    }
}

#[test]
fn an_mlp_agrees_at_every_batch_size() {
    let mut random = Random::new();
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 64]);
    let w1 = graph.constant(random.floats(&[64, 100]));
    let b1 = graph.constant(random.floats(&[100]));
    let w2 = graph.constant(random.floats(&[100, 10]));
    let b2 = graph.constant(random.floats(&[10]));
    let hidden = graph.node("Gemm", &[x, w1, b1], &[]);
    let hidden = graph.node("Relu", &[hidden], &[]);
    let scores = graph.node("Gemm", &[hidden, w2, b2], &[]);
    graph.output(scores);
    for rows in [1, 2, 5, 7, 33, 129] {
        graph.agrees_on_device(&format!("{rows} rows"), &[random.floats(&[rows, 64])], F32);
    }
}
