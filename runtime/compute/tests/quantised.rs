//! Graphs with weights in fewer bits, against the same arithmetic in f64.

mod graphs;

use graphs::{Builder, floats, ramp};
use mortise_compute::{CpuDevice, CpuOptions, Executable, compile_quantised};
use mortise_graph::{GraphLimits, Precision, QuantReport, Quantisation, Ranges};
use mortise_types::{Assets, Attribute, DType, RunControl, Tensor, ValueId};
use rten_gemm::GemmExecutor;
use std::sync::Arc;

const DEPTH: usize = 70;
const WIDTH: usize = 37;

fn quantised(graph: &Builder, precision: Precision) -> (Arc<dyn Executable>, QuantReport) {
    let ranges = match precision {
        // Of the only input.
        Precision::Int8Static => Ranges::from([(0, [-3.0, 3.0])]),
        _ => Ranges::new(),
    };
    let device = CpuDevice::new(CpuOptions { threads: 1 });
    let how = Quantisation { precision, ranges };
    compile_quantised(&*device, &graph.0, &Assets::default(), &GraphLimits::default(), &how)
        .unwrap()
}

fn run(exe: &Arc<dyn Executable>, input: Tensor) -> Vec<f32> {
    let outputs = exe.execute(vec![input], &RunControl::unbounded()).unwrap().wait().unwrap();
    outputs[0].as_slice::<f32>().unwrap().to_vec()
}

fn weights() -> Vec<f32> {
    ramp(DEPTH * WIDTH).iter().enumerate().map(|(at, w)| w * (1 + at % WIDTH) as f32).collect()
}

/// `relu(x · W + b)` by MatMul and Add, or by Gemm with transposed weights.
fn layer(gemm: bool) -> Builder {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, DEPTH as i64]);
    let bias = graph.constant(&[WIDTH], ramp(WIDTH));
    let sum = if gemm {
        let stored: Vec<f32> =
            (0..WIDTH * DEPTH).map(|at| weights()[at % DEPTH * WIDTH + at / DEPTH] / 2.0).collect();
        let weights = graph.constant(&[WIDTH, DEPTH], stored);
        let attributes = [("transB", Attribute::Int(1)), ("alpha", Attribute::Float(2.0))];
        graph.node_with("Gemm", &[x, weights, bias], &attributes)
    } else {
        let weights = graph.constant(&[DEPTH, WIDTH], weights());
        let product = graph.node("MatMul", &[x, weights]);
        graph.node("Add", &[product, bias])
    };
    let output = graph.node("Relu", &[sum]);
    graph.output("y", output);
    graph
}

fn inputs(rows: usize) -> Vec<f32> {
    (0..rows * DEPTH)
        .map(|at| ((at * 61 % 127) as f32 / 63.5 - 1.0) * (1 + at / DEPTH % 3) as f32)
        .collect()
}

/// `relu(x · W + b)` in f64, and the sum of `|x| · |W|` of each cell.
fn reference(x: &[f32]) -> Vec<[f64; 2]> {
    let (w, bias) = (weights(), ramp(WIDTH));
    let cell = |row: &[f32], column: usize| {
        let terms =
            row.iter().enumerate().map(|(k, x)| f64::from(*x) * f64::from(w[k * WIDTH + column]));
        let (sum, size) =
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        [(sum + f64::from(bias[column])).max(0.0), size]
    };
    x.chunks(DEPTH)
        .flat_map(|row| (0..WIDTH).map(move |column| cell(row, column)).collect::<Vec<_>>())
        .collect()
}

/// Each precision keeps its share of the sum of the terms' sizes, which is the
/// sum of a half step of the weights (of 127 for int8, of 8 for int4, of 2¹¹
/// for halves) and of the rows (of 255 for int8, of 127 where kernels add pairs
/// of products in 16 bits): errors of terms mostly cancel, so that less than
/// the worst is allowed.
#[test]
fn layers_are_as_exact_as_their_weights() {
    let has_fewer_steps = GemmExecutor::<u8, i8, i32>::new().may_saturate();
    let cases = [
        (Precision::Int8, if has_fewer_steps { 0.012 } else { 0.006 }),
        (Precision::Int8Static, if has_fewer_steps { 0.012 } else { 0.01 }),
        (Precision::Int4, 0.07),
        (Precision::F16, 0.0005),
    ];
    for (precision, tolerance) in cases {
        for gemm in [false, true] {
            let (exe, report) = quantised(&layer(gemm), precision);
            assert_eq!((report.products, report.tables), (1, 0));
            assert!(report.left.is_empty(), "{:?}", report.left);
            let fused = if precision == Precision::Int4 { 2 } else { 1 };
            assert_eq!(exe.footprint().node_count, fused, "{precision:?}");
            assert!(exe.rows_independent(), "{precision:?}");
            for rows in [1, 2, 33, 129] {
                let x = inputs(rows);
                let got = run(&exe, floats(&[rows, DEPTH], &x));
                for (at, (got, [want, size])) in got.iter().zip(reference(&x)).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= tolerance * size.max(1.0), "{precision:?} {at}: {got} {want}");
                }
            }
        }
    }
}

/// What a row's answer is does not depend on the rows beside it, to the last
/// bit.
#[test]
fn rows_together_are_rows_alone() {
    for activation in ["Relu", "Gelu", "Tanh"] {
        let mut graph = Builder::default();
        let x = graph.input("x", DType::F32, &[-1, DEPTH as i64]);
        let w = graph.constant(&[DEPTH, WIDTH], weights());
        let product = graph.node("MatMul", &[x, w]);
        let y = graph.node(activation, &[product]);
        graph.output("y", y);
        for precision in [Precision::Int8, Precision::Int8Static] {
            let (exe, _) = quantised(&graph, precision);
            let x = inputs(131);
            let together = run(&exe, floats(&[131, DEPTH], &x));
            for (row, line) in x.chunks(DEPTH).zip(together.chunks(WIDTH)) {
                let alone = run(&exe, floats(&[1, DEPTH], row));
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&alone), bits(line), "{activation} {precision:?}");
            }
        }
    }
}

#[test]
fn odd_rows_spoil_nobody_else() {
    for precision in [Precision::Int8, Precision::Int8Static] {
        let (exe, _) = quantised(&layer(false), precision);
        let mut x = inputs(6);
        x[..DEPTH].fill(0.0);
        x[DEPTH + 3] = f32::NAN;
        x[2 * DEPTH + 5] = f32::INFINITY;
        x[3 * DEPTH..4 * DEPTH].fill(1e-44);
        x[4 * DEPTH..5 * DEPTH].iter_mut().for_each(|x| *x *= 1e35);
        let got = run(&exe, floats(&[6, DEPTH], &x));
        let rows: Vec<&[f32]> = got.chunks(WIDTH).collect();
        let bias: Vec<f32> = ramp(WIDTH).iter().map(|b| b.max(0.0)).collect();
        let near = |row: &[f32]| row.iter().zip(&bias).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(rows[0]), "zeros give the bias");
        assert!(near(rows[3]), "and so do numbers too small to be told from zero");
        assert!(rows[1].iter().chain(rows[2]).all(|y| y.is_nan()), "NaN and infinity are seen");
        assert!(rows[4].iter().all(|y| y.is_finite()), "huge numbers stay numbers");
        let alone = run(&exe, floats(&[1, DEPTH], &x[5 * DEPTH..]));
        assert_eq!(rows[5], alone);
        if precision == Precision::Int8 {
            let want = reference(&x[4 * DEPTH..5 * DEPTH]);
            let close = rows[4]
                .iter()
                .zip(want)
                .all(|(y, [want, size])| (f64::from(*y) - want).abs() <= 0.006 * size);
            assert!(close, "a row's own range reaches them");
        }
    }
}

#[test]
fn columns_of_zeros_give_the_bias() {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, 32]);
    let w =
        graph.constant(&[32, 8], (0..256).map(|at| if at % 8 == 3 { 0.0 } else { 1.0 }).collect());
    let product = graph.node("MatMul", &[x, w]);
    let bias = graph.constant(&[8], vec![0.25; 8]);
    let y = graph.node("Add", &[product, bias]);
    graph.output("y", y);
    for precision in Precision::ALL {
        let (exe, _) = quantised(&graph, precision);
        let y = run(&exe, floats(&[1, 32], &[1.0; 32]));
        assert_eq!(y[3], 0.25, "{precision:?}");
        assert!((y[0] - 32.25).abs() < 0.5, "{precision:?}: {}", y[0]);
    }
}

/// A table and a tied output layer.
fn embedding(vocabulary: usize) -> Builder {
    let mut graph = Builder::default();
    let ids = graph.input("ids", DType::I64, &[-1, -1]);
    let table = graph.constant(&[vocabulary, 24], ramp(vocabulary * 24));
    let rows = graph.node("Gather", &[table, ids]);
    graph.output("y", rows);
    graph
}

#[test]
fn tables_keep_their_rows() {
    for (precision, tolerance) in [
        (Precision::Int8, 1.0 / 254.0),
        (Precision::Int4, 1.0 / 254.0),
        (Precision::F16, 1.0 / 2048.0),
    ] {
        let (exe, report) = quantised(&embedding(50), precision);
        assert_eq!((report.products, report.tables), (0, 1));
        let share = report.float_bytes as f64 / report.bytes as f64;
        assert!(share > if precision == Precision::F16 { 1.99 } else { 3.4 }, "{share}");
        assert!(exe.rows_independent());
        let ids = [0i64, 49, -1, 7];
        let y = run(&exe, Tensor::from_vec(&[2, 2], ids.to_vec()).unwrap());
        for (at, y) in y.iter().enumerate() {
            let row = ids[at / 24].rem_euclid(50) as usize;
            let want = ramp(50 * 24)[row * 24 + at % 24];
            assert!((y - want).abs() <= tolerance * 0.2501, "{precision:?} {at}: {y} {want}");
        }
        let outside = Tensor::from_vec(&[1, 1], vec![50i64]).unwrap();
        let refused = exe.execute(vec![outside], &RunControl::unbounded());
        assert!(refused.and_then(mortise_compute::Ticket::wait).is_err());
    }
}

#[test]
fn weights_are_kept_once_and_small() {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, 512]);
    let w = graph.constant(&[512, 512], ramp(512 * 512));
    let y = graph.node("MatMul", &[x, w]);
    graph.output("y", y);
    for (precision, ratio) in
        [(Precision::Int8, 3.9), (Precision::Int4, 6.3), (Precision::F16, 1.99)]
    {
        let (exe, report) = quantised(&graph, precision);
        let floats = (512 * 512 * 4) as f64;
        assert_eq!(report.float_bytes as f64, floats);
        assert!(floats / report.bytes as f64 >= ratio, "{precision:?}: {}", report.bytes);
        let held = exe.footprint().weight_bytes as f64;
        assert!(floats / held >= ratio, "{precision:?}: {held} on the device");
    }
}

#[test]
fn what_stays_is_named() {
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, 4, 9, 9]);
    let w = graph.constant(&[8, 4, 3, 3], ramp(288));
    let conv = graph.node("Conv", &[x, w]);
    let flat = graph.node("Flatten", &[conv]);
    let mut bad = ramp(392 * 4);
    bad[5] = f32::NAN;
    let bad = graph.constant(&[392, 4], bad);
    let y = graph.node("MatMul", &[flat, bad]);
    graph.output("y", y);
    let (_, report) = quantised(&graph, Precision::Int8);
    assert_eq!(report.products, 0);
    let left: Vec<(&str, &str)> =
        report.left.iter().map(|left| (&*left.operator, left.reason)).collect();
    let want = [
        ("Conv", "weights of convolutions stay FP32"),
        ("MatMul", "its weight holds NaN or infinity"),
    ];
    assert_eq!(left, want);
}

/// `MatMulNBits` as files have it: with zero points, in 4 and 8 bits, and with
/// a depth that does not fill the last block.
#[test]
fn blocks_of_few_bits_are_multiplied() {
    for (bits, with_zeros) in [(4usize, false), (4, true), (8, false), (8, true)] {
        let (depth, columns, block) = (40, 5, 16);
        let blocks = 3;
        let bytes: Vec<u8> =
            (0..columns * blocks * block * bits / 8).map(|at| (at * 89 % 256) as u8).collect();
        let scales: Vec<f32> = ramp(columns * blocks);
        let zero_row = (blocks * bits).div_ceil(8);
        let zeros: Vec<u8> = (0..columns * zero_row).map(|at| (at * 53 % 256) as u8).collect();
        let number = |bytes: &[u8], at: usize| match bits {
            8 => f64::from(bytes[at]),
            _ => f64::from(bytes[at / 2] >> (at % 2 * 4) & 15),
        };
        let mut graph = Builder::default();
        let x = graph.input("x", DType::F32, &[-1, depth as i64]);
        let b = graph
            .tensor(Tensor::from_vec(&[columns, blocks, block * bits / 8], bytes.clone()).unwrap());
        let s = graph.constant(&[columns, blocks], scales.clone());
        let mut given: Vec<ValueId> = vec![x, b, s];
        if with_zeros {
            given
                .push(graph.tensor(Tensor::from_vec(&[columns, zero_row], zeros.clone()).unwrap()));
        }
        let sizes = [("K", depth), ("N", columns), ("bits", bits), ("block_size", block)];
        let attributes = sizes.map(|(name, size)| (name, Attribute::Int(size as i64)));
        let mut node = graph.make("MatMulNBits", &given, &attributes);
        node.domain = "com.microsoft".into();
        let y = node.outputs[0].unwrap();
        graph.0.body.nodes.push(node);
        graph.output("y", y);
        let values: Vec<f32> = (0..3 * depth).map(|at| (at % 13) as f32 - 6.0).collect();
        let got = graph.run(vec![floats(&[3, depth], &values)]).unwrap();
        let got = got[0].as_slice::<f32>().unwrap();
        for (at, got) in got.iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let want: f64 = (0..depth)
                .map(|k| {
                    let place = column * blocks + k / block;
                    let zero = match with_zeros {
                        true => number(&zeros[column * zero_row..], k / block),
                        false => f64::from(1 << (bits - 1)),
                    };
                    let q = number(&bytes, column * blocks * block + k);
                    f64::from(values[row * depth + k]) * (q - zero) * f64::from(scales[place])
                })
                .sum();
            assert!(
                (f64::from(*got) - want).abs() <= 1e-4 * want.abs().max(1.0),
                "{bits} {at}: {got} {want}"
            );
        }
    }
}
