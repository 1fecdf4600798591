//! Sampling at given points of an image or volume, and grids of such points.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::{dims, element_count, integers};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::{SmallVec, smallvec};

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// What lies outside of the image.
#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// Reads the input at the points of a grid of coordinates in -1 to 1, as
/// PyTorch's `grid_sample`.
pub(super) struct GridSample {
    mode: Mode,
    padding: Padding,
    align_corners: bool,
}

impl GridSample {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let other = |what: &str, text: &str| {
            Error::unsupported(format!("{}: {what} \"{text}\"", node.describe()))
        };
        let mode = match attributes.text("mode")?.unwrap_or("linear") {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" | "bicubic" => Mode::Cubic,
            text => return Err(other("mode", text)),
        };
        let padding = match attributes.text("padding_mode")?.unwrap_or("zeros") {
            "zeros" => Padding::Zeros,
            "border" => Padding::Border,
            "reflection" => Padding::Reflection,
            text => return Err(other("padding_mode", text)),
        };
        let align_corners = attributes.int_or("align_corners", 0)? != 0;
        Ok(Box::new(Self { mode, padding, align_corners }))
    }

    /// From -1…1 to pixels. Coordinates are rounded as floats are where the
    /// grid holds floats, since a tie decides which pixel is the nearest.
    fn pixel(&self, at: f64, size: usize, single: bool) -> f64 {
        let size = size as f64;
        if single {
            let (at, size) = (at as f32, size as f32);
            return f64::from(if self.align_corners {
                (at + 1.0) / 2.0 * (size - 1.0)
            } else {
                ((at + 1.0) * size - 1.0) / 2.0
            });
        }
        if self.align_corners {
            (at + 1.0) / 2.0 * (size - 1.0)
        } else {
            ((at + 1.0) * size - 1.0) / 2.0
        }
    }

    fn bounds(&self, size: usize) -> (f64, f64) {
        if self.align_corners { (0.0, size as f64 - 1.0) } else { (-0.5, size as f64 - 0.5) }
    }

    /// Which elements along one dimension count for a coordinate, and how
    /// much; `None` stands for zero.
    fn taps(&self, at: f64, size: usize) -> SmallVec<[(Option<usize>, f64); 4]> {
        let (low, high) = self.bounds(size);
        let at = if self.mode == Mode::Nearest { at.round_ties_even() } else { at };
        let at = match self.padding {
            _ if (low..=high).contains(&at) => at,
            // As PyTorch does: a cubic moves its elements, not its centre.
            _ if self.mode == Mode::Cubic => at,
            Padding::Zeros => at,
            Padding::Border => at.clamp(0.0, size as f64 - 1.0),
            Padding::Reflection => reflect(at, low, high),
        };
        let (first, part) = (at.floor(), at - at.floor());
        let tap =
            |offset: i32, weight: f64| (self.element(first + f64::from(offset), size), weight);
        match self.mode {
            Mode::Nearest => smallvec![(self.element(at, size), 1.0)],
            Mode::Linear => smallvec![tap(0, 1.0 - part), tap(1, part)],
            Mode::Cubic => {
                let weights = cubic(part);
                (-1..3).zip(weights).map(|(offset, weight)| tap(offset, weight)).collect()
            }
        }
    }

    fn element(&self, at: f64, size: usize) -> Option<usize> {
        let (low, high) = self.bounds(size);
        let last = size as f64 - 1.0;
        let at = match self.padding {
            Padding::Zeros => at,
            Padding::Border => at.clamp(0.0, last),
            Padding::Reflection => reflect(at, low, high).trunc(),
        };
        (0.0..=last).contains(&at).then_some(at as usize)
    }
}

/// Folds a coordinate back at the borders until it is within.
fn reflect(at: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    let beyond = if at < low { low - at } else { at - high };
    if !(beyond > 0.0) || range <= 0.0 {
        return if range <= 0.0 { low } else { at };
    }
    let folds = (beyond / range).trunc();
    let rest = beyond - folds * range;
    if (at < low) == (folds % 2.0 == 0.0) { low + rest } else { high - rest }
}

/// The weights of Keys' cubic convolution with `a = -0.75`.
fn cubic(x: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    [far(x + 1.0), near(x), near(1.0 - x), far(2.0 - x)]
}

impl Operator for GridSample {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, grid) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let shape = output_shape(input, grid)?;
        let single = grid.dtype() != DType::F64;
        let source = cast_tensor(ctx, input, DType::F64)?;
        let points = cast_tensor(ctx, grid, DType::F64)?;
        let (source, points) = (source.as_slice::<f64>()?, points.as_slice::<f64>()?);
        let mut output = ctx.allocate(DType::F64, &shape)?;
        let target = output.as_mut_slice::<f64>()?;
        let sizes = &input.shape()[2..];
        let (channels, image) = (shape[1], element_count(sizes)?);
        let places = element_count(&shape[2..])?;
        for at in 0..shape[0] * places {
            if at % 1024 == 0 {
                ctx.control.check()?;
            }
            let (batch, place) = (at / places, at % places);
            let point = &points[at * sizes.len()..(at + 1) * sizes.len()];
            let taps = self.joint_taps(point, sizes, single);
            for channel in 0..channels {
                let plane = batch * channels + channel;
                let pixels = &source[plane * image..(plane + 1) * image];
                target[plane * places + place] =
                    taps.iter().map(|(index, weight)| pixels[*index] * weight).sum();
            }
        }
        Ok(smallvec![cast_tensor(ctx, &output, input.dtype())?.into()])
    }
}

impl GridSample {
    /// The elements of all dimensions together. A point lists the last
    /// dimension first.
    fn joint_taps(&self, point: &[f64], sizes: &[usize], single: bool) -> Vec<(usize, f64)> {
        let mut joint = vec![(0, 1.0)];
        for (&at, &size) in point.iter().rev().zip(sizes) {
            let taps = self.taps(self.pixel(at, size, single), size);
            let extend = |(index, weight): (usize, f64)| {
                let inside = taps
                    .iter()
                    .filter_map(move |(tap, part)| Some((index * size + (*tap)?, weight * part)));
                inside.collect::<SmallVec<[_; 4]>>()
            };
            joint = joint.into_iter().flat_map(extend).collect();
        }
        joint
    }
}

fn output_shape(input: &Tensor, grid: &Tensor) -> Result<Shape> {
    let rank = input.rank();
    let fits = (3..=5).contains(&rank)
        && grid.rank() == rank
        && grid.shape()[0] == input.shape()[0]
        && grid.shape()[rank - 1] == rank - 2
        && !input.shape()[2..].contains(&0);
    if !fits {
        return Err(Error::invalid(format!("a grid {grid:?} does not fit {input:?}")));
    }
    let mut shape: Shape = input.shape()[..2].into();
    shape.extend_from_slice(&grid.shape()[1..rank - 1]);
    Ok(shape)
}

/// The points that an affine map sends the pixels of an image to.
pub(super) struct AffineGrid {
    align_corners: bool,
}

impl AffineGrid {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let align_corners = Attributes(node).int_or("align_corners", 0)? != 0;
        Ok(Box::new(Self { align_corners }))
    }

    /// The coordinate of pixel `at` of `size`, in -1 to 1.
    fn coordinate(&self, at: usize, size: usize) -> f64 {
        match (self.align_corners, size) {
            (true, 1) => -1.0,
            (true, _) => 2.0 * at as f64 / (size as f64 - 1.0) - 1.0,
            (false, _) => (2.0 * at as f64 + 1.0) / size as f64 - 1.0,
        }
    }
}

impl Operator for AffineGrid {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let theta = inputs.tensor(0)?;
        let size = dims(&integers(inputs.tensor(1)?)?)?;
        let spatial = size.get(2..).unwrap_or_default();
        let rank = spatial.len();
        if !(2..=3).contains(&rank) || theta.shape() != [size[0], rank, rank + 1] {
            return Err(Error::invalid(format!("theta {theta:?} does not fit a size of {size:?}")));
        }
        let mut shape: Shape = smallvec![size[0]];
        shape.extend_from_slice(spatial);
        shape.push(rank);
        let maps = cast_tensor(ctx, theta, DType::F64)?;
        let maps = maps.as_slice::<f64>()?;
        let mut output = ctx.allocate(DType::F64, &shape)?;
        let points = element_count(spatial)?;
        for (at, point) in output.as_mut_slice::<f64>()?.chunks_exact_mut(rank).enumerate() {
            let map = &maps[at / points * rank * (rank + 1)..];
            // The last dimension comes first, as in a point of a grid.
            let (mut rest, mut from) = (at % points, SmallVec::<[f64; 3]>::new());
            for &size in spatial.iter().rev() {
                from.push(self.coordinate(rest % size, size));
                rest /= size;
            }
            for (row, out) in map.chunks_exact(rank + 1).zip(point) {
                *out = from.iter().zip(row).map(|(x, factor)| x * factor).sum::<f64>() + row[rank];
            }
        }
        Ok(smallvec![cast_tensor(ctx, &output, theta.dtype())?.into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_folded_back() {
        let cases = [
            (-1.0, 0.0),
            (2.0, 2.0),
            (3.0, 2.0),
            (-2.5, 1.5),
            (5.0, 0.0),
            (f64::INFINITY, f64::NAN),
        ];
        for (at, want) in cases {
            let got = reflect(at, -0.5, 2.5);
            assert!(got == want || got.is_nan() && want.is_nan(), "{at}: {got}");
        }
        assert_eq!(reflect(7.0, 0.0, 0.0), 0.0, "a single pixel reflects into itself");
    }

    #[test]
    fn cubic_weights_sum_to_one() {
        for x in [0.0, 0.25, 0.5, 0.9] {
            assert!((cubic(x).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }
}
