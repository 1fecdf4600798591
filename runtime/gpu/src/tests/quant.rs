//! Quantised operators.

use super::check::{Graph, Random};
use mortise_types::{Attribute, DType, Tensor};

fn weights(random: &mut Random, shape: &[usize], signed: bool) -> Tensor {
    let bytes = random.bytes(shape);
    match signed {
        true => Tensor::from_vec(shape, bytes.iter().map(|b| *b as i8).collect()).unwrap(),
        false => Tensor::from_vec(shape, bytes).unwrap(),
    }
}

/// Against integers of 64 bits.
#[test]
fn integer_products_are_exact() {
    let mut random = Random::new();
    for (m, k, n) in [(1, 1, 1), (7, 33, 65), (129, 129, 7), (33, 66, 129)] {
        for signed in [false, true] {
            exact(&mut random, [m, k, n], signed);
        }
    }
}

fn exact(random: &mut Random, [m, k, n]: [usize; 3], signed: bool) {
    let wide = |tensor: &Tensor| -> Vec<i64> {
        let bytes = tensor.bytes().unwrap_or_default().iter();
        bytes.map(|b| if signed { i64::from(*b as i8) } else { i64::from(*b) }).collect()
    };
    let dtype = if signed { DType::I8 } else { DType::U8 };
    let (x, w) = (weights(random, &[m, k], signed), weights(random, &[k, n], signed));
    let (x_zero, w_zeros) = (weights(random, &[1], signed), weights(random, &[n], signed));
    let mut graph = Graph::default();
    let input = graph.input(dtype, &[m as i64, k as i64]);
    let constants = [&w, &x_zero, &w_zeros].map(|tensor| graph.constant(tensor.clone()));
    let y = graph.node("MatMulInteger", &[input, constants[0], constants[1], constants[2]], &[]);
    let plain = graph.node("MatMulInteger", &[input, constants[0]], &[]);
    graph.output(y);
    graph.output(plain);
    let on_gpu = graph.run_unplanned(std::slice::from_ref(&x));
    let cpu = mortise_compute::CpuDevice::new(mortise_compute::CpuOptions { threads: 1 });
    let on_cpu = graph.run_on(&*cpu, std::slice::from_ref(&x)).unwrap();
    let [x, w, x_zero, w_zeros] = [x, w, x_zero, w_zeros].map(|tensor| wide(&tensor));
    let answers = on_gpu.iter().zip([1, 0]).chain(on_cpu.iter().zip([1, 0]));
    for (got, with_zeros) in answers {
        for (at, got) in got.as_slice::<i32>().unwrap().iter().enumerate() {
            let (row, column) = (at / n, at % n);
            let term = |i: usize| {
                (x[row * k + i] - with_zeros * x_zero[0])
                    * (w[i * n + column] - with_zeros * w_zeros[column])
            };
            let want: i64 = (0..k).map(term).sum();
            assert_eq!(i64::from(*got), want, "{m}x{k}x{n} signed {signed} [{row}, {column}]");
        }
    }
}

/// Multiples of the scale, so that rounding is never a matter of the last bit.
fn on_grid(random: &mut Random, shape: &[usize]) -> Tensor {
    let values = random.floats(shape);
    let values = values.as_slice::<f32>().unwrap().iter().map(|v| (v * 90.0).round() * 0.007);
    Tensor::from_vec(shape, values.collect::<Vec<f32>>()).unwrap()
}

#[test]
fn dynamic_quantisation_agrees() {
    let mut random = Random::new();
    for (m, k, n) in [(1, 7, 5), (33, 64, 40)] {
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &[-1, k as i64]);
        let w = graph.constant(weights(&mut random, &[k, n], true));
        let parts = graph.nodes("", "DynamicQuantizeLinear", &[x], &[], 3);
        let product = graph.node("MatMulInteger", &[parts[0], w, parts[2]], &[]);
        let to = Attribute::Int(i64::from(DType::F32.onnx()));
        let product = graph.node("Cast", &[product], &[("to", to)]);
        let y = graph.node("Mul", &[product, parts[1]], &[]);
        graph.output(y);
        // A value on the edge may be rounded the other way: one step of 255.
        graph.agrees_on_device(&format!("{m} {k} {n}"), &[random.floats(&[m, k])], 2e-2);
    }
}

#[test]
fn linear_products_in_8_bits_agree() {
    let mut random = Random::new();
    let (m, k, n) = (9, 33, 20);
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, k as i64]);
    let x_scale = graph.constant(Tensor::scalar(0.007f32));
    let x_zero = graph.constant(Tensor::scalar(128u8));
    let q = graph.node("QuantizeLinear", &[x, x_scale, x_zero], &[]);
    let w = graph.constant(weights(&mut random, &[k, n], false));
    let w_scale = graph.constant(Tensor::scalar(0.02f32));
    let w_zero = graph.constant(Tensor::scalar(120u8));
    let y_scale = graph.constant(Tensor::scalar(0.1f32));
    let y_zero = graph.constant(Tensor::scalar(100u8));
    let inputs = [q, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero];
    let y = graph.node("QLinearMatMul", &inputs, &[]);
    let back = graph.node("DequantizeLinear", &[y, y_scale, y_zero], &[]);
    graph.output(back);
    // One step of the answer's scale.
    let input = on_grid(&mut random, &[m, k]);
    assert!(graph.left_to_cpu(std::slice::from_ref(&input)).is_empty());
    let got = graph.run_on(&*super::device(), std::slice::from_ref(&input)).unwrap();
    let cpu = mortise_compute::CpuDevice::new(mortise_compute::CpuOptions { threads: 1 });
    let want = graph.run_on(&*cpu, &[input]).unwrap();
    let pairs = got[0].as_slice::<f32>().unwrap().iter().zip(want[0].as_slice::<f32>().unwrap());
    let off = pairs.clone().filter(|(g, w)| (*g - *w).abs() > 0.01).count();
    assert!(off * 50 <= m * n, "{off} of {} answers differ by a step", m * n);
    assert!(pairs.clone().all(|(g, w)| (g - w).abs() < 0.11));
}

/// Float64 over the matrix that the packed weights stand for.
#[test]
fn products_with_few_bits_match_float64() {
    let mut random = Random::new();
    for bits in [4usize, 8] {
        for (m, k, n, block) in [(1, 64, 33, 32), (7, 100, 5, 16), (40, 96, 70, 32)] {
            for with_zeros in [false, true] {
                few_bits(&mut random, [m, k, n], [bits, block], with_zeros);
            }
        }
    }
}

fn few_bits(random: &mut Random, [m, k, n]: [usize; 3], [bits, block]: [usize; 2], zeros: bool) {
    let blocks = k.div_ceil(block);
    let packed = random.bytes(&[n, blocks, block * bits / 8]);
    let scales = random.floats(&[n * blocks]);
    let pitch = (blocks * bits).div_ceil(8);
    let points = random.bytes(&[n, pitch]);
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[m as i64, k as i64]);
    let w = Tensor::from_vec(&[n, blocks, block * bits / 8], packed.clone()).unwrap();
    let mut inputs = vec![x, graph.constant(w), graph.constant(scales.clone())];
    if zeros {
        inputs.push(graph.constant(Tensor::from_vec(&[n, pitch], points.clone()).unwrap()));
    }
    let int = |name, value: usize| (name, Attribute::Int(value as i64));
    let attributes = [int("K", k), int("N", n), int("bits", bits), int("block_size", block)];
    let y = graph.nodes("com.microsoft", "MatMulNBits", &inputs, &attributes, 1)[0];
    graph.output(y);
    let input = random.floats(&[m, k]);
    let got = graph.run_unplanned(std::slice::from_ref(&input));

    let nibble = |bytes: &[u8], at: usize| match bits {
        8 => f64::from(bytes[at]),
        _ => f64::from(bytes[at / 2] >> (4 * (at % 2)) & 15),
    };
    let scales = scales.as_slice::<f32>().unwrap();
    let weight = |column: usize, at: usize| {
        let row = &packed[column * blocks * block * bits / 8..];
        let zero = match zeros {
            true => nibble(&points[column * pitch..], at / block),
            false => f64::from(1 << (bits - 1)),
        };
        (nibble(row, at) - zero) * f64::from(scales[column * blocks + at / block])
    };
    let x = input.as_slice::<f32>().unwrap();
    for (at, got) in got[0].as_slice::<f32>().unwrap().iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let terms = (0..k).map(|i| f64::from(x[row * k + i]) * weight(column, i));
        let (want, size) = terms.fold((0.0, 0.0), |(s, z), t| (s + t, z + t.abs()));
        let label = format!("{m}x{k}x{n} in {bits} bits, block {block}, zeros {zeros}");
        assert!((f64::from(*got) - want).abs() <= size * 1e-5, "{label}: {got} for {want}");
    }
}
