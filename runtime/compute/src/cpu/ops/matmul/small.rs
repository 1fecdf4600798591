//! Products whose right side is small and constant: it stays in the nearest
//! cache, and rows are read where they lie, so that nothing is packed per run.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

/// Weights, with what fills them up, are at most this many: 32 KiB.
const MOST: usize = 8 * 1024;

/// Vectors of columns in a panel: with as many rows as [`ROWS`] they leave
/// registers for the weights and a number of the left side.
const VECTORS: usize = 2;

/// Rows computed together.
pub(super) const ROWS: usize = 6;

/// The right side of `[rows, depth] · [depth, columns]`.
pub(super) struct SmallRight {
    depth: usize,
    columns: usize,
    /// Columns in a panel: one or [`VECTORS`] vectors of this machine.
    width: usize,
    /// Panels of columns, each `[depth, width]`; zeros fill up the last one.
    panels: Vec<f32>,
}

impl SmallRight {
    /// `None` when it is too large or empty. `at` tells the element in a row
    /// and a column.
    pub(super) fn new(
        (depth, columns): (usize, usize),
        at: impl Fn(usize, usize) -> f32,
    ) -> Option<Self> {
        let lanes = Lanes.dispatch();
        let width = if columns <= lanes { lanes } else { VECTORS * lanes };
        let padded = columns.checked_next_multiple_of(width)?;
        if depth == 0 || columns == 0 || width > WIDEST || depth.checked_mul(padded)? > MOST {
            return None;
        }
        let mut panels = vec![0.0; depth * padded];
        for (number, panel) in panels.chunks_exact_mut(depth * width).enumerate() {
            for (row, line) in panel.chunks_exact_mut(width).enumerate() {
                let columns = number * width..columns.min((number + 1) * width);
                line.iter_mut().zip(columns).for_each(|(cell, column)| *cell = at(row, column));
            }
        }
        Some(Self { depth, columns, width, panels })
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    /// `out = a · right + bias`.
    pub(super) fn multiply(&self, a: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        let mut padded = vec![0.0; self.panels.len() / self.depth];
        if let Some(bias) = bias {
            padded[..self.columns].copy_from_slice(bias);
        }
        Multiply { right: self, a, bias: &padded, out }.dispatch();
    }
}

/// Elements of a vector of this machine.
struct Lanes;

impl SimdOp for Lanes {
    type Output = usize;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> usize {
        isa.f32().len()
    }
}

struct Multiply<'a> {
    right: &'a SmallRight,
    a: &'a [f32],
    /// As wide as all panels.
    bias: &'a [f32],
    out: &'a mut [f32],
}

impl SimdOp for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        match self.right.width == ops.len() {
            true => self.with::<1>(ops),
            false => self.with::<VECTORS>(ops),
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn with<const V: usize>(self, ops: impl NumOps<f32>) {
        let Self { right, mut a, bias, mut out } = self;
        let tile = Tile { right, bias };
        while !a.is_empty() {
            let rows = a.len() / right.depth;
            (a, out) = match rows {
                ROWS.. => tile.rows::<ROWS, V>(ops, a, out),
                4.. => tile.rows::<4, V>(ops, a, out),
                2.. => tile.rows::<2, V>(ops, a, out),
                _ => tile.rows::<1, V>(ops, a, out),
            };
        }
    }
}

#[derive(Clone, Copy)]
struct Tile<'a> {
    right: &'a SmallRight,
    bias: &'a [f32],
}

impl Tile<'_> {
    /// Computes `R` rows and returns what is left on both sides.
    #[inline(always)]
    fn rows<'i, 'o, const R: usize, const V: usize>(
        self,
        ops: impl NumOps<f32>,
        a: &'i [f32],
        out: &'o mut [f32],
    ) -> (&'i [f32], &'o mut [f32]) {
        let SmallRight { depth, columns, ref panels, .. } = *self.right;
        let lanes = ops.len();
        let width = V * lanes;
        let (now, rest) = a.split_at(R * depth);
        let (done, out) = out.split_at_mut(R * columns);
        let rows: [&[f32]; R] = std::array::from_fn(|row| &now[row * depth..][..depth]);
        for (number, panel) in panels.chunks_exact(depth * width).enumerate() {
            let first = number * width;
            let bias: [_; V] = std::array::from_fn(|v| ops.load(&self.bias[first + v * lanes..]));
            let mut sums = [bias; R];
            for k in 0..depth {
                // SAFETY: a panel is `depth · width` long, and each row `depth`.
                let (weights, factors): ([_; V], [_; R]) = unsafe {
                    let line = panel.as_ptr().add(k * width);
                    (
                        std::array::from_fn(|v| ops.load_ptr(line.add(v * lanes))),
                        std::array::from_fn(|row| ops.splat(*rows[row].get_unchecked(k))),
                    )
                };
                for row in 0..R {
                    for v in 0..V {
                        sums[row][v] = ops.mul_add(factors[row], weights[v], sums[row][v]);
                    }
                }
            }
            let count = width.min(columns - first);
            // By numbers known when this is compiled, or the sums of the loop
            // above would live in memory.
            for row in 0..R {
                let line = &mut done[row * columns + first..][..count];
                if count == width {
                    for v in 0..V {
                        ops.store(sums[row][v], &mut line[v * lanes..]);
                    }
                } else {
                    let mut whole = [0.0; WIDEST];
                    for v in 0..V {
                        ops.store(sums[row][v], &mut whole[v * lanes..]);
                    }
                    line.iter_mut().zip(whole).for_each(|(cell, sum)| *cell = sum);
                }
            }
        }
        (rest, out)
    }
}

/// Columns of a panel on machines with vectors of 512 bits.
const WIDEST: usize = VECTORS * 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_float64() {
        let mut random = fastrand::Rng::new();
        for [rows, depth, columns] in
            [[1, 1, 1], [2, 3, 7], [7, 64, 10], [13, 33, 16], [29, 5, 17], [6, 64, 64], [11, 9, 33]]
        {
            let mut floats =
                |count| -> Vec<f32> { (0..count).map(|_| random.f32() * 2.0 - 1.0).collect() };
            let (a, b) = (floats(rows * depth), floats(depth * columns));
            let bias = floats(columns);
            let right = SmallRight::new((depth, columns), |k, c| b[k * columns + c]).unwrap();
            for bias in [None, Some(&*bias)] {
                let mut got = vec![f32::NAN; rows * columns];
                right.multiply(&a, bias, &mut got);
                for (at, got) in got.iter().enumerate() {
                    let (row, column) = (at / columns, at % columns);
                    let term = |k: usize| {
                        f64::from(a[row * depth + k]) * f64::from(b[k * columns + column])
                    };
                    let bias = bias.map_or(0.0, |bias| f64::from(bias[column]));
                    let want = (0..depth).map(term).sum::<f64>() + bias;
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < 1e-6 * depth as f64 + 1e-6, "{rows} {depth} {columns} {at}");
                }
            }
        }
        assert!(SmallRight::new((1_024, 64), |_, _| 0.0).is_none());
        assert!(SmallRight::new((0, 4), |_, _| 0.0).is_none());
    }

    /// What is no number stays in its own row and column.
    #[test]
    fn what_is_no_number_spreads_to_nobody_else() {
        let right = SmallRight::new((3, 10), |k, c| (k * 10 + c) as f32).unwrap();
        let mut a = vec![1.0; 7 * 3];
        a[4 * 3 + 1] = f32::NAN;
        let mut out = vec![0.0; 7 * 10];
        right.multiply(&a, None, &mut out);
        for (row, line) in out.chunks(10).enumerate() {
            assert!(line.iter().all(|x| x.is_nan() == (row == 4)), "{row}");
        }
    }
}
