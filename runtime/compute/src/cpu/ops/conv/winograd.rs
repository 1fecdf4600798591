//! Winograd's convolution F(2×2, 3×3): 16 products give 4 outputs where the
//! definition takes 36. Lavin and Gray, "Fast Algorithms for Convolutional
//! Neural Networks" (2015). Its rounding errors are about those of a plain sum.

use super::{GEMM, matrix};
use crate::cpu::op::OpContext;
use crate::cpu::ops::window::Window;
use crate::cpu::parallel::part_len;
use crate::cpu::wide::{Loop, widest};
use mortise_types::{DType, Error, Result};
use rayon::prelude::*;
use rten_gemm::{GemmInputA, GemmInputB, GemmOptions, PackedAMatrix};

/// Elements of a tile of the input, and so matrices to multiply by.
const POINTS: usize = 16;

/// Fewer channels than this make transforms that cost what products save.
const LEAST_CHANNELS: usize = 32;

/// More weights than this are not worth their transformed copy.
const MOST_WEIGHTS: usize = 256 * 256;

/// Fewer tiles than this leave the columns of a product mostly empty.
const LEAST_TILES: usize = 40;

/// Transformed weights: one matrix `[outputs, inputs]` for each point.
pub(super) struct Winograd {
    weights: Vec<PackedAMatrix<f32>>,
    inputs: usize,
    outputs: usize,
}

impl Winograd {
    /// Of weights `[outputs, inputs, 3, 3]`; `None` where it does not pay.
    pub(super) fn new(shape: &[usize], weights: &[f32]) -> Result<Option<Self>> {
        let &[outputs, inputs, 3, 3] = shape else { return Ok(None) };
        if outputs.min(inputs) < LEAST_CHANNELS || outputs * inputs > MOST_WEIGHTS {
            return Ok(None);
        }
        let mut points = vec![0.0f32; POINTS * outputs * inputs];
        for (place, kernel) in weights.chunks_exact(9).enumerate() {
            for (point, value) in transformed_kernel(kernel).into_iter().enumerate() {
                points[point * outputs * inputs + place] = value;
            }
        }
        let pack = |point: &[f32]| {
            let point = matrix(outputs, inputs, point)?;
            Ok(GEMM.with(|gemm| gemm.prepack_a(point)))
        };
        let weights = points.chunks_exact(outputs * inputs).map(pack).collect::<Result<_>>()?;
        Ok(Some(Self { weights, inputs, outputs }))
    }

    pub(super) fn packed_bytes(&self) -> usize {
        POINTS * self.inputs * self.outputs * size_of::<f32>()
    }

    /// Whether this is the way to go over images of this size.
    pub(super) fn suits(window: &Window) -> bool {
        let plain = window.strides.iter().chain(&window.dilations).all(|&step| step == 1);
        let many = |tiles: Tiles| tiles.count() >= LEAST_TILES;
        window.rank() == 2 && plain && Tiles::new(window).is_some_and(many)
    }

    /// One image; `out` holds what the sums are added to, if `adds`.
    pub(super) fn run(
        &self,
        ctx: &OpContext<'_>,
        window: &Window,
        image: &[f32],
        out: &mut [f32],
        adds: bool,
    ) -> Result<()> {
        let tiles = Tiles::new(window).ok_or_else(|| Error::internal("a negative pad"))?;
        let count = tiles.count();
        let mut points = ctx.allocate(DType::F32, &[POINTS, self.inputs, count])?;
        let points = points.as_mut_slice::<f32>()?;
        self.transform(&tiles, image, points);
        let mut products = ctx.allocate(DType::F32, &[POINTS, self.outputs, count])?;
        let products = products.as_mut_slice::<f32>()?;
        let control = ctx.control;
        let multiply =
            |((product, points), weights): ((&mut [f32], &[f32]), &PackedAMatrix<f32>)| {
                control.check()?;
                let a = GemmInputA::Packed(weights);
                let b = GemmInputB::Unpacked(matrix(self.inputs, count, points)?);
                GEMM.with(|gemm| gemm.gemm(product, a, b, GemmOptions::default()))
                    .map_err(|error| Error::internal(format!("Conv: {error}")))
            };
        let (product_len, point_len) = (self.outputs * count, self.inputs * count);
        if rayon::current_num_threads() > 1 {
            let products = products.par_chunks_exact_mut(product_len);
            let sides = products.zip(points.par_chunks_exact(point_len));
            sides.zip(&self.weights).try_for_each(multiply)?;
        } else {
            let products = products.chunks_exact_mut(product_len);
            let sides = products.zip(points.chunks_exact(point_len));
            sides.zip(&self.weights).try_for_each(multiply)?;
        }
        self.untransform(&tiles, products, out, adds);
        Ok(())
    }

    /// Writes the points `[16, inputs, tiles]` of an image, some channels on
    /// each thread.
    fn transform(&self, tiles: &Tiles, image: &[f32], points: &mut [f32]) {
        let (count, plane) = (tiles.count(), tiles.input[0] * tiles.input[1]);
        let channels = part_len(image.len(), plane).map_or(self.inputs, |len| len / plane);
        let mut parts: Vec<Transform<'_>> = image
            .chunks(channels * plane)
            .map(|image| Transform { tiles, image, points: Vec::with_capacity(POINTS) })
            .collect();
        for point in points.chunks_exact_mut(self.inputs * count) {
            let slices = point.chunks_mut(channels * count);
            parts.iter_mut().zip(slices).for_each(|(part, slice)| part.points.push(slice));
        }
        if parts.len() > 1 {
            parts.into_par_iter().for_each(widest);
        } else {
            parts.into_iter().for_each(widest);
        }
    }

    /// Writes the output, or adds to it, some channels on each thread.
    fn untransform(&self, tiles: &Tiles, products: &[f32], out: &mut [f32], adds: bool) {
        let plane = tiles.output[0] * tiles.output[1];
        let channels = self.outputs;
        let part = |first, out: &mut [f32]| {
            widest(Untransform { tiles, products, channels, first, out, adds });
        };
        match part_len(out.len(), plane) {
            Some(len) => {
                let parts = out.par_chunks_mut(len).enumerate();
                parts.for_each(|(index, out)| part(index * len / plane, out));
            }
            None => part(0, out),
        }
    }
}

/// `G · g · Gᵀ` with G = [1 0 0; ½ ½ ½; ½ -½ ½; 0 0 1].
fn transformed_kernel(kernel: &[f32]) -> [f32; POINTS] {
    let lift = |[a, b, c]: [f64; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    let at = |row: usize, column: usize| f64::from(kernel[row * 3 + column]);
    let columns: [[f64; 4]; 3] = [0, 1, 2].map(|x| lift([at(0, x), at(1, x), at(2, x)]));
    let mut points = [0.0; POINTS];
    for row in 0..4 {
        let lifted = lift([columns[0][row], columns[1][row], columns[2][row]]);
        (0..4).for_each(|column| points[row * 4 + column] = lifted[column] as f32);
    }
    points
}

/// How an image falls into tiles of 4×4 that overlap by 2.
struct Tiles {
    high: usize,
    wide: usize,
    input: [usize; 2],
    output: [usize; 2],
    /// Padding above and on the left.
    pads: [usize; 2],
}

impl Tiles {
    /// `None` where padding is negative.
    fn new(window: &Window) -> Option<Self> {
        let pad = |axis: usize| usize::try_from(window.pads.begin[axis]).ok();
        Some(Self {
            high: window.output[0].div_ceil(2),
            wide: window.output[1].div_ceil(2),
            input: [window.input[0], window.input[1]],
            output: [window.output[0], window.output[1]],
            pads: [pad(0)?, pad(1)?],
        })
    }

    fn count(&self) -> usize {
        self.high * self.wide
    }
}

/// `Bᵀ · d · B` of every tile d of some channels, by point.
struct Transform<'a> {
    tiles: &'a Tiles,
    /// Of these channels, as are the points.
    image: &'a [f32],
    points: Vec<&'a mut [f32]>,
}

impl Loop for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tiles, image, mut points } = self;
        let (wide, count) = (tiles.wide, tiles.count());
        let plane = tiles.input[0] * tiles.input[1];
        let size = 2 * (wide + 1);
        // Four rows, each as its even and then its odd columns.
        let mut rows = vec![0.0f32; 4 * size];
        let mut mixed = vec![0.0f32; 4 * size];
        let mut line = vec![0.0f32; size];
        for (channel, image) in image.chunks_exact(plane).enumerate() {
            for y in 0..tiles.high {
                // The lower half of a tile is the upper one of the next.
                rows.copy_within(2 * size.., 0);
                for row in if y == 0 { 0..4 } else { 2..4 } {
                    let halves = &mut rows[row * size..(row + 1) * size];
                    split_row(tiles, image, 2 * y + row, &mut line, halves);
                }
                mix_rows(&rows, &mut mixed, size);
                let start = channel * count + y * wide;
                for (halves, points) in mixed.chunks_exact(size).zip(points.chunks_exact_mut(4)) {
                    mix_columns(halves, points, start);
                }
            }
        }
    }
}

/// Copies a row of the padded image, even columns before odd ones.
#[inline(always)]
fn split_row(tiles: &Tiles, image: &[f32], row: usize, line: &mut [f32], halves: &mut [f32]) {
    let [height, width] = tiles.input;
    let Some(row) = row.checked_sub(tiles.pads[0]).filter(|row| *row < height) else {
        halves.fill(0.0);
        return;
    };
    let start = tiles.pads[1].min(line.len());
    let length = width.min(line.len() - start);
    line[start..start + length].copy_from_slice(&image[row * width..row * width + length]);
    let (even, odd) = halves.split_at_mut(line.len() / 2);
    for ((pair, even), odd) in line.chunks_exact(2).zip(even).zip(odd) {
        *even = pair[0];
        *odd = pair[1];
    }
}

/// `Bᵀ` times four rows: d₀-d₂, d₁+d₂, d₂-d₁, d₁-d₃.
#[inline(always)]
fn mix_rows(rows: &[f32], mixed: &mut [f32], size: usize) {
    let [d0, d1, d2, d3] = [0, 1, 2, 3].map(|row| &rows[row * size..(row + 1) * size]);
    let (m0, rest) = mixed.split_at_mut(size);
    let (m1, rest) = rest.split_at_mut(size);
    let (m2, m3) = rest.split_at_mut(size);
    for x in 0..size {
        m0[x] = d0[x] - d2[x];
        m1[x] = d1[x] + d2[x];
        m2[x] = d2[x] - d1[x];
        m3[x] = d1[x] - d3[x];
    }
}

/// The same along a row of tiles, to four points from `start` on.
#[inline(always)]
fn mix_columns(halves: &[f32], points: &mut [&mut [f32]], start: usize) {
    let wide = halves.len() / 2 - 1;
    let (even, odd) = halves.split_at(wide + 1);
    let (d0, d1, d2, d3) = (&even[..wide], &odd[..wide], &even[1..], &odd[1..]);
    let [p0, p1, p2, p3] = points else { return };
    let range = start..start + wide;
    let (p0, p1) = (&mut p0[range.clone()], &mut p1[range.clone()]);
    let (p2, p3) = (&mut p2[range.clone()], &mut p3[range]);
    for x in 0..wide {
        p0[x] = d0[x] - d2[x];
        p1[x] = d1[x] + d2[x];
        p2[x] = d2[x] - d1[x];
        p3[x] = d1[x] - d3[x];
    }
}

/// `Aᵀ · m · A` of every tile m: two rows and two columns of the output.
struct Untransform<'a> {
    tiles: &'a Tiles,
    products: &'a [f32],
    /// All that there are, and the first one of `out`.
    channels: usize,
    first: usize,
    out: &'a mut [f32],
    adds: bool,
}

impl Loop for Untransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tiles, products, channels, first, out, adds } = self;
        let (wide, count) = (tiles.wide, tiles.count());
        let [height, width] = tiles.output;
        // For two rows: the sums of the four columns of points.
        let mut sums = vec![0.0f32; 8 * wide];
        let mut row = vec![0.0f32; 2 * wide];
        for (channel, out) in out.chunks_exact_mut(height * width).enumerate() {
            for y in 0..tiles.high {
                let start = (first + channel) * count + y * wide;
                for column in 0..4 {
                    let points = &products[column * channels * count + start..];
                    sum_rows(points, 4 * channels * count, &mut sums, column * wide, wide);
                }
                let lines = out.chunks_exact_mut(width).skip(2 * y);
                for (line, sums) in lines.zip(sums.chunks_exact(4 * wide)) {
                    sum_columns(sums, &mut row);
                    if adds {
                        line.iter_mut().zip(&row).for_each(|(out, x)| *out += x);
                    } else {
                        line.copy_from_slice(&row[..width]);
                    }
                }
            }
        }
    }
}

/// m₀+m₁+m₂ for the upper row of outputs and m₁-m₂-m₃ for the lower one, of
/// points that lie `step` apart.
#[inline(always)]
fn sum_rows(points: &[f32], step: usize, sums: &mut [f32], at: usize, wide: usize) {
    let [m0, m1, m2, m3] = [0, 1, 2, 3].map(|row| &points[row * step..row * step + wide]);
    let (upper, lower) = sums.split_at_mut(4 * wide);
    let (upper, lower) = (&mut upper[at..at + wide], &mut lower[at..at + wide]);
    for x in 0..wide {
        upper[x] = m0[x] + m1[x] + m2[x];
        lower[x] = m1[x] - m2[x] - m3[x];
    }
}

/// s₀+s₁+s₂ and s₁-s₂-s₃ in turn.
#[inline(always)]
fn sum_columns(sums: &[f32], row: &mut [f32]) {
    let wide = row.len() / 2;
    let [s0, s1, s2, s3] = [0, 1, 2, 3].map(|column| &sums[column * wide..(column + 1) * wide]);
    for (x, pair) in row.chunks_exact_mut(2).enumerate() {
        pair[0] = s0[x] + s1[x] + s2[x];
        pair[1] = s1[x] - s2[x] - s3[x];
    }
}
