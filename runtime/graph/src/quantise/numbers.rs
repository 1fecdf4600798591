//! Floats as fewer bits. All of it is symmetric: zero stays zero.

use super::candidates::{Product, Table};
use super::{BLOCK, MIN_ELEMENTS};
use mortise_types::{Tensor, f16};

/// A weight and its scales, where it has some.
type Made = [Option<Tensor>; 2];

/// The largest step of 8 bits.
const STEPS: f32 = 127.0;

/// Columns whose numbers are read together, so that a matrix stored by columns
/// is not walked across.
const STRIP: usize = 64;

/// `[depth, columns]` bytes and one scale for each column.
pub(super) fn columns(product: &Product, values: &[f32]) -> Result<Made, &'static str> {
    let [depth, columns] = product.size;
    let mut bytes = vec![0i8; depth * columns];
    let mut scales = vec![0.0f32; columns];
    for first in (0..columns).step_by(STRIP) {
        let strip = first..(first + STRIP).min(columns);
        let mut largest = [0.0f32; STRIP];
        for k in 0..depth {
            for (largest, column) in largest.iter_mut().zip(strip.clone()) {
                *largest = largest.max(values[place(product, k, column)].abs());
            }
        }
        for (largest, column) in largest.into_iter().zip(strip.clone()) {
            scales[column] = scale_of(largest);
        }
        for k in 0..depth {
            for column in strip.clone() {
                let value = values[place(product, k, column)];
                bytes[k * columns + column] = step(value, scales[column]);
            }
        }
    }
    scales.iter_mut().for_each(|scale| *scale *= product.alpha);
    pair(Tensor::from_vec(&[depth, columns], bytes), Tensor::from_vec(&[columns], scales))
}

/// Blocks of 4-bit numbers as `MatMulNBits` of `com.microsoft` reads them:
/// `[columns, blocks, bytes]`, the low half first, 8 for zero. As in GGML's
/// `Q4_0`, the number furthest from zero becomes the lowest step.
pub(super) fn blocks(product: &Product, values: &[f32]) -> Result<Made, &'static str> {
    let [depth, columns] = product.size;
    let count = depth.div_ceil(BLOCK);
    let mut bytes = vec![0u8; columns * count * BLOCK / 2];
    let mut scales = vec![0.0f32; columns * count];
    for (at, (scale, bytes)) in scales.iter_mut().zip(bytes.chunks_mut(BLOCK / 2)).enumerate() {
        let (column, first) = (at / count, at % count * BLOCK);
        let mut block = [0.0f32; BLOCK];
        for (value, k) in block.iter_mut().zip(first..depth) {
            *value = values[place(product, k, column)];
        }
        *scale = block_of(&block, bytes) * product.alpha;
    }
    pair(
        Tensor::from_vec(&[columns, count, BLOCK / 2], bytes),
        Tensor::from_vec(&[columns, count], scales),
    )
}

/// Fills the bytes of one block and returns its scale.
fn block_of(block: &[f32; BLOCK], bytes: &mut [u8]) -> f32 {
    const LOWEST: f32 = -8.0;
    let furthest = block.iter().copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let scale = furthest / LOWEST;
    let scale = if scale.abs() < f32::MIN_POSITIVE { 0.0 } else { scale };
    let step = |value: f32| match scale {
        0.0 => 8,
        _ => ((value / scale).round_ties_even() - LOWEST).clamp(0.0, 15.0) as u8,
    };
    for (byte, two) in bytes.iter_mut().zip(block.chunks_exact(2)) {
        *byte = step(two[0]) | step(two[1]) << 4;
    }
    scale
}

/// `[depth, columns]` halves.
pub(super) fn halves(product: &Product, values: &[f32]) -> Result<Made, &'static str> {
    let [depth, columns] = product.size;
    let limit = f16::MAX.to_f32();
    if values.iter().any(|value| (value * product.alpha).abs() > limit) {
        return Err("its weight holds numbers that half precision does not reach");
    }
    let half = |at: usize| {
        let value = values[place(product, at / columns, at % columns)];
        f16::from_f32(value * product.alpha)
    };
    let halves = (0..depth * columns).map(half).collect();
    Ok([Tensor::from_vec(&[depth, columns], halves).ok(), None])
}

/// A table of bytes with one scale for each row.
pub(super) fn rows(table: &Table, values: &[f32]) -> Made {
    let [rows, columns] = table.size;
    let largest = |row: &[f32]| row.iter().fold(0.0f32, |top, value| top.max(value.abs()));
    let lines = values.chunks_exact(columns.max(1));
    let scales: Vec<f32> = lines.clone().map(|row| scale_of(largest(row))).collect();
    let bytes = lines.zip(&scales).flat_map(|(row, scale)| row.iter().map(|x| step(*x, *scale)));
    let bytes = Tensor::from_vec(&[rows, columns], bytes.collect()).ok();
    [bytes, Tensor::from_vec(&[rows], scales).ok()]
}

/// A table of halves. Numbers that are too large become the largest there is.
pub(super) fn half_table(table: &Table, values: &[f32]) -> Made {
    let limit = f16::MAX.to_f32();
    let halves = values.iter().map(|value| f16::from_f32(value.clamp(-limit, limit)));
    [Tensor::from_vec(&table.size, halves.collect()).ok(), None]
}

fn pair(
    weights: mortise_types::Result<Tensor>,
    scales: mortise_types::Result<Tensor>,
) -> Result<Made, &'static str> {
    Ok([weights.ok(), scales.ok()])
}

fn place(product: &Product, k: usize, column: usize) -> usize {
    let [depth, columns] = product.size;
    if product.transposed { column * depth + k } else { k * columns + column }
}

/// Zero where the numbers are too small to be told from it. The largest step
/// is finite: rounded up, that of `f32::MAX` would not be.
fn scale_of(largest: f32) -> f32 {
    let scale = largest / STEPS;
    let scale = if largest.is_finite() { scale.min(f32::MAX.next_down() / STEPS) } else { scale };
    if scale < f32::MIN_POSITIVE { 0.0 } else { scale }
}

fn step(value: f32, scale: f32) -> i8 {
    match scale {
        0.0 => 0,
        _ => (value / scale).round_ties_even().clamp(-STEPS, STEPS) as i8,
    }
}

const _: () = assert!(MIN_ELEMENTS >= BLOCK);

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::ValueId;

    fn product(size: [usize; 2], transposed: bool, alpha: f32) -> Product {
        let (x, weight) = (ValueId(0), ValueId(1));
        Product { x, weight, transposed, alpha, size, bias: None }
    }

    fn varied(count: usize) -> Vec<f32> {
        (0..count)
            .map(|at| ((at * 7919 % 2003) as f32 / 1001.0 - 1.0) * (1 + at % 5) as f32)
            .collect()
    }

    /// Every number is within half a step of what is kept for it, however the
    /// matrix is stored.
    #[test]
    fn columns_are_within_half_a_step() {
        for (depth, width) in [(1, 1), (33, 129), (64, 64)] {
            for (transposed, alpha) in [(false, 1.0), (true, -2.5)] {
                let product = product([depth, width], transposed, alpha);
                let values = varied(depth * width);
                let [bytes, scales] = columns(&product, &values).unwrap().map(Option::unwrap);
                let (bytes, scales) =
                    (bytes.as_slice::<i8>().unwrap(), scales.as_slice::<f32>().unwrap());
                for k in 0..depth {
                    for (column, scale) in scales.iter().enumerate() {
                        let want = alpha * values[place(&product, k, column)];
                        let got = f32::from(bytes[k * width + column]) * scale;
                        assert!((got - want).abs() <= scale.abs() * 0.5001, "{k} {column}");
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_are_within_a_step_and_padded_with_zeros() {
        for (depth, width) in [(1, 3), (33, 5), (96, 7)] {
            let product = product([depth, width], false, 1.0);
            let values = varied(depth * width);
            let [bytes, scales] = blocks(&product, &values).unwrap().map(Option::unwrap);
            assert_eq!(bytes.shape(), [width, depth.div_ceil(BLOCK), BLOCK / 2]);
            let (bytes, scales) =
                (bytes.as_slice::<u8>().unwrap(), scales.as_slice::<f32>().unwrap());
            let count = depth.div_ceil(BLOCK);
            for column in 0..width {
                for k in 0..count * BLOCK {
                    let at = column * count * BLOCK + k;
                    let nibble = bytes[at / 2] >> (at % 2 * 4) & 15;
                    let scale = scales[at / BLOCK];
                    let got = (f32::from(nibble) - 8.0) * scale;
                    let want = if k < depth { values[place(&product, k, column)] } else { 0.0 };
                    // The step above the highest one is cut off.
                    assert!(
                        (got - want).abs() <= scale.abs() * 1.001,
                        "{k} {column}: {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn zeros_and_extremes_stay_finite() {
        let product = product([2, 3], false, 1.0);
        let values = [0.0, f32::MAX, 1e-42, 0.0, -f32::MAX, -1e-42];
        let [bytes, scales] = columns(&product, &values).unwrap().map(Option::unwrap);
        assert_eq!(bytes.as_slice::<i8>().unwrap(), [0, 127, 0, 0, -127, 0]);
        let scales = scales.as_slice::<f32>().unwrap();
        assert_eq!([scales[0], scales[2]], [0.0, 0.0]);
        assert!((scales[1] * 127.0).is_finite());
        assert!(halves(&product, &values).is_err());
    }
}
