//! The panels of FP16 that matrix units read. The units themselves are tested on
//! the device that has them, see `units.rs`.

use super::check::Random;
use super::poison::run_kernel;
use crate::params::Params;
use crate::shaders::{File, Kernel};
use half::f16;
use mortise_types::{DType, Tensor};

const PANEL: usize = 32;

/// Panels of a matrix, `value` by row and term, zeros behind the last term.
fn panels(rows: usize, k: usize, value: impl Fn(usize, usize) -> f32) -> Vec<u16> {
    let bits = |panel: usize, row: usize, at: usize| match panel * PANEL + at {
        term if term < k => f16::from_f32(value(row, term)).to_bits(),
        _ => 0,
    };
    let each = (0..k.div_ceil(PANEL)).flat_map(|panel| (0..rows).map(move |row| (panel, row)));
    each.flat_map(|(panel, row)| (0..PANEL).map(move |at| bits(panel, row, at))).collect()
}

fn halves(words: &Tensor) -> Vec<u16> {
    let words = words.as_slice::<i32>().unwrap().iter();
    words.flat_map(|word| [*word as u16, (*word >> 16) as u16]).collect()
}

#[test]
fn rows_become_panels() {
    let mut random = Random::new();
    for (rows, k, turned) in [(1, 1, false), (7, 33, false), (5, 64, true), (33, 129, true)] {
        let input = random.floats(&[rows, k]);
        let strides = if turned { [1, rows] } else { [k, 1] };
        let count = k.div_ceil(PANEL);
        let params = Params::new().sizes(&[rows, k, count]).sizes(&strides);
        let shape = [count, rows, PANEL / 2];
        let kernel = Kernel::new(File::PackHalf, 2, &[]);
        let got = run_kernel(kernel, std::slice::from_ref(&input), (DType::I32, &shape), params, 2);
        let values = input.as_slice::<f32>().unwrap();
        let want = panels(rows, k, |row, term| values[row * strides[0] + term * strides[1]]);
        assert_eq!(halves(&got), want, "{rows} rows of {k}, turned {turned}");
    }
}

#[test]
fn weights_become_panels() {
    let mut random = Random::new();
    for bits in [4, 8, 16] {
        for (n, k, block) in [(1, 32, 16), (9, 100, 32), (33, 64, 64)] {
            weights(&mut random, bits, [n, k, block]);
        }
    }
}

fn weights(random: &mut Random, bits: usize, [n, k, block]: [usize; 3]) {
    let blocks = k.div_ceil(block);
    // Behind the last term f16 have zeros, and other formats anything.
    let padded = if bits == 16 { k.next_multiple_of(8) } else { blocks * block };
    let pitch = padded * bits / 32;
    let mut bytes = random.bytes(&[n, pitch * 4]);
    if bits == 16 {
        let number = |at: usize| match at % padded {
            term if term < k => f16::from_f32((at * 37 % 101) as f32 / 50.0 - 1.0),
            _ => f16::ZERO,
        };
        bytes = (0..n * padded).flat_map(|at| number(at).to_le_bytes()).collect();
    }
    let word = |bytes: &[u8]| i32::from_le_bytes(bytes.try_into().unwrap());
    let words = Tensor::from_vec(&[n, pitch], bytes.chunks_exact(4).map(word).collect()).unwrap();
    let (scales, zeros) = (random.floats(&[n * blocks]), random.floats(&[n * blocks]));
    let count = k.div_ceil(PANEL);
    let params = Params::new().sizes(&[n, k, pitch, count, block]);
    let kernel = Kernel::new(File::Expand, 4, &[("BITS", bits as u32)]);
    let inputs = [words, scales.clone(), zeros.clone()];
    let got = run_kernel(kernel, &inputs, (DType::I32, &[count, n, PANEL / 2]), params, 1);

    let (scales, zeros) = (scales.as_slice::<f32>().unwrap(), zeros.as_slice::<f32>().unwrap());
    let want = panels(n, k, |column, term| {
        let at = column * padded + term;
        let scaled = |number: u8| {
            let block = column * blocks + term / block;
            (f32::from(number) - zeros[block]) * scales[block]
        };
        match bits {
            4 => scaled(bytes[at / 2] >> (4 * (at % 2)) & 15),
            8 => scaled(bytes[at]),
            _ => f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32(),
        }
    });
    assert_eq!(halves(&got), want, "{bits} bits, {n} columns of {k}, blocks of {block}");
}
