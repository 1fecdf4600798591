//! Products of bytes for machines with AVX2 and without VNNI, where the library's
//! kernel adds pairs of products in 16 bits, which overflow: here bytes are widened
//! to 16 bits and pairs of products are added in 32.

use rayon::prelude::*;
use std::arch::x86_64::{
    __m128i, __m256i, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_madd_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256,
};

/// Columns of a panel: two vectors of sums.
const WIDTH: usize = 16;

/// Rows computed together: with the panel's two vectors of weights they leave a
/// register for a pair of the left side.
const ROWS: usize = 6;

/// Pairs of terms after which sums are put down, so that a panel's part stays in
/// the nearest cache.
const DEEPEST: usize = 512;

/// Rows that are widened together: with [`DEEPEST`] pairs of each, they fit the
/// second cache.
const MOST_ROWS: usize = 20 * ROWS;

/// Two terms of each column of a panel.
type Line = [[i8; WIDTH]; 2];

/// The right side of `[rows, depth] · [depth, columns]`.
pub(super) struct Pairs {
    depth: usize,
    columns: usize,
    /// Panels of columns one after the other, each of half as many lines as there
    /// are terms; zeros fill up the last pair and the last panel.
    lines: Vec<Line>,
}

impl Pairs {
    /// Whether this machine has the instructions.
    pub(super) fn are_possible() -> bool {
        is_x86_feature_detected!("avx2")
    }

    /// # Panics
    /// When `values` are not `depth` rows of at least one column.
    pub(super) fn pack(values: &[i8], depth: usize, columns: usize) -> Self {
        assert_eq!(values.len(), depth * columns);
        let mut lines = vec![Line::default(); columns.div_ceil(WIDTH) * depth.div_ceil(2)];
        for (panel, lines) in lines.chunks_exact_mut(depth.div_ceil(2).max(1)).enumerate() {
            let columns_here = panel * WIDTH..columns.min((panel + 1) * WIDTH);
            for (term, row) in values.chunks_exact(columns).enumerate() {
                let cells = lines[term / 2].as_flattened_mut();
                let cells = cells.iter_mut().skip(term % 2).step_by(2);
                cells.zip(&row[columns_here.clone()]).for_each(|(cell, value)| *cell = *value);
            }
        }
        Self { depth, columns, lines }
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// `output = a · right`, exactly, of rows of `a` one after the other.
    ///
    /// # Panics
    /// When the machine has no AVX2: see [`Pairs::are_possible`].
    pub(super) fn multiply(&self, a: &[u8], output: &mut [i32]) {
        assert!(Self::are_possible());
        let threads = rayon::current_num_threads();
        let rows = a.len() / self.depth;
        let share = rows.div_ceil(threads).next_multiple_of(ROWS).min(MOST_ROWS);
        let block = |(a, output): (&[u8], &mut [i32])| self.block(a, output);
        let (step, out_step) = (share * self.depth, share * self.columns);
        if threads > 1 && rows > ROWS {
            a.par_chunks(step).zip(output.par_chunks_mut(out_step)).for_each(block);
        } else {
            a.chunks(step).zip(output.chunks_mut(out_step)).for_each(block);
        }
    }

    fn block(&self, a: &[u8], output: &mut [i32]) {
        let pairs = self.depth.div_ceil(2);
        let wide = widened(a, self.depth);
        for from in (0..pairs).step_by(DEEPEST) {
            let part = from..pairs.min(from + DEEPEST);
            for (panel, lines) in self.lines.chunks_exact(pairs).enumerate() {
                let left = panel * WIDTH;
                let columns = left..self.columns.min(left + WIDTH);
                let target = Target { stride: self.columns, columns, is_first: from == 0 };
                let tile = Tile { wide: &wide, pairs, part: part.clone(), lines, target };
                // SAFETY: `multiply` made sure that there is AVX2.
                unsafe { tile.all_rows(output) };
            }
        }
    }
}

/// How many of the rows that are left are computed together.
fn together(rows: usize) -> usize {
    match rows {
        ROWS.. => ROWS,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Pairs of terms, each in 16 bits, of the rows that are computed [`together`]: a
/// pair of each of them, then the next. Rows of an odd depth end with a zero.
fn widened(a: &[u8], depth: usize) -> Vec<i32> {
    let (rows, pairs) = (a.len() / depth, depth.div_ceil(2));
    let mut wide = vec![0i32; rows * pairs];
    let mut first = 0;
    while first < rows {
        let count = together(rows - first);
        let block = &mut wide[first * pairs..(first + count) * pairs];
        for (at, row) in a[first * depth..(first + count) * depth].chunks_exact(depth).enumerate() {
            let cells = block.iter_mut().skip(at).step_by(count);
            let (whole, odd) = row.as_chunks::<2>();
            let odd = odd.first().map(|byte| [*byte, 0]);
            for (cell, [low, high]) in cells.zip(whole.iter().copied().chain(odd)) {
                *cell = i32::from(low) | i32::from(high) << 16;
            }
        }
        first += count;
    }
    wide
}

/// Where the sums of a panel go.
struct Target {
    stride: usize,
    columns: std::ops::Range<usize>,
    /// Whether nothing is there yet.
    is_first: bool,
}

/// All rows of a block with one panel.
struct Tile<'a> {
    wide: &'a [i32],
    /// Of a row of `wide`.
    pairs: usize,
    /// Those of this turn.
    part: std::ops::Range<usize>,
    lines: &'a [Line],
    target: Target,
}

impl Tile<'_> {
    #[target_feature(enable = "avx2")]
    fn all_rows(&self, output: &mut [i32]) {
        let rows = self.wide.len() / self.pairs;
        let mut row = 0;
        while row < rows {
            match together(rows - row) {
                ROWS => self.rows::<ROWS>(row, output),
                4 => self.rows::<4>(row, output),
                2 => self.rows::<2>(row, output),
                _ => self.rows::<1>(row, output),
            }
            row += together(rows - row);
        }
    }

    #[target_feature(enable = "avx2")]
    fn rows<const R: usize>(&self, first: usize, output: &mut [i32]) {
        let (rows, _) = self.wide[first * self.pairs..].as_chunks::<R>();
        let sums = products(&rows[self.part.clone()], &self.lines[self.part.clone()]);
        let Target { stride, columns, is_first } = &self.target;
        for (row, sums) in sums.into_iter().enumerate() {
            let line = &mut output[(first + row) * stride..][columns.clone()];
            let sums: [i32; WIDTH] = bytemuck::cast(sums);
            for (cell, sum) in line.iter_mut().zip(sums) {
                *cell = if *is_first { sum } else { cell.wrapping_add(sum) };
            }
        }
    }
}

/// The sums of each row's products with a panel.
#[inline]
#[target_feature(enable = "avx2")]
fn products<const R: usize>(rows: &[[i32; R]], lines: &[Line]) -> [[__m256i; 2]; R] {
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (row, line) in rows.iter().zip(lines) {
        let halves: [__m128i; 2] = bytemuck::cast(*line);
        let weights = [_mm256_cvtepi8_epi16(halves[0]), _mm256_cvtepi8_epi16(halves[1])];
        for (pair, sums) in row.iter().zip(&mut sums) {
            let pair = _mm256_set1_epi32(*pair);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pair, weights));
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_whole_numbers() {
        if !Pairs::are_possible() {
            return;
        }
        let mut state = 5u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for [rows, depth, columns] in
            [[1, 1, 1], [7, 3, 33], [6, 2, 16], [13, 2_050, 17], [129, 40, 15], [3, 1_025, 48]]
        {
            let a: Vec<u8> = (0..rows * depth).map(|_| byte()).collect();
            let b: Vec<i8> = (0..depth * columns).map(|_| byte() as i8).collect();
            check(&a, &b, [rows, depth, columns]);
            // What would overflow 16 bits.
            check(&vec![255; rows * depth], &vec![-128; depth * columns], [rows, depth, columns]);
        }
    }

    fn check(a: &[u8], b: &[i8], [rows, depth, columns]: [usize; 3]) {
        let mut got = vec![7; rows * columns];
        Pairs::pack(b, depth, columns).multiply(a, &mut got);
        for (at, got) in got.into_iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let term =
                |k: usize| i32::from(a[row * depth + k]) * i32::from(b[k * columns + column]);
            let want: i32 = (0..depth).map(term).sum();
            assert_eq!(got, want, "{rows} {depth} {columns} at {row} {column}");
        }
    }
}
