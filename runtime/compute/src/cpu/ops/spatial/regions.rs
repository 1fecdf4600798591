//! Pooling over regions of interest.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::{dim, index, integers};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

/// Samples that all cells of one region may take.
const MAX_SAMPLES: f64 = (1 << 22) as f64;

/// Splits each region into cells and takes the mean or largest of samples that
/// are interpolated inside each.
pub(super) struct RoiAlign {
    largest: bool,
    half_pixel: bool,
    cells: [usize; 2],
    /// Samples per cell and dimension; `None` for about one a pixel.
    sampling: Option<usize>,
    scale: f64,
}

impl RoiAlign {
    /// Before opset 16 pixels are points.
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Self::parse(node, "output_half_pixel")
    }

    pub(super) fn build_half_pixel(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Self::parse(node, "half_pixel")
    }

    fn parse(node: &NodeDef, default: &str) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let other = |what: &str, text: &str| {
            Error::unsupported(format!("{}: {what} \"{text}\"", node.describe()))
        };
        let largest = match attributes.text("mode")?.unwrap_or("avg") {
            "avg" => false,
            "max" => true,
            text => return Err(other("mode", text)),
        };
        let name = "coordinate_transformation_mode";
        let half_pixel = match attributes.text(name)?.unwrap_or(default) {
            "half_pixel" => true,
            "output_half_pixel" => false,
            text => return Err(other(name, text)),
        };
        let sampling = dim(attributes.int_or("sampling_ratio", 0)?)?;
        let size = |name: &str| dim(attributes.int_or(name, 1)?);
        Ok(Box::new(Self {
            largest,
            half_pixel,
            cells: [size("output_height")?, size("output_width")?],
            sampling: (sampling > 0).then_some(sampling),
            scale: f64::from(attributes.float_or("spatial_scale", 1.0)?),
        }))
    }

    /// The cells of a region `[x1, y1, x2, y2]`. Every step is rounded by
    /// `round`, since the last bit of a size decides the number of samples.
    fn region(&self, corners: &[f64], image: [usize; 2], round: fn(f64) -> f64) -> Result<Region> {
        let offset = if self.half_pixel { 0.5 } else { 0.0 };
        let at = |corner: usize| round(round(corners[corner] * self.scale) - offset);
        let start = [at(1), at(0)];
        let mut size = [round(at(3) - at(1)), round(at(2) - at(0))];
        if !self.half_pixel {
            size = size.map(|size| size.max(1.0));
        }
        let cell = [0, 1].map(|axis| round(size[axis] / self.cells[axis] as f64));
        let samples = cell.map(|cell| self.sampling.map_or(cell.ceil().max(0.0), |n| n as f64));
        let total = samples[0] * samples[1] * (self.cells[0] * self.cells[1]) as f64;
        if !(total <= MAX_SAMPLES) {
            return Err(Error::limit(format!(
                "a region takes {total} samples, at most {MAX_SAMPLES} are allowed"
            )));
        }
        Ok(Region { start, cell, samples: samples.map(|count| count as usize), image })
    }

    /// The value of one cell in one plane.
    fn pool(&self, plane: &[f64], region: &Region, cell: [usize; 2]) -> f64 {
        let mut pooled = if self.largest { f64::NEG_INFINITY } else { 0.0 };
        let [rows, columns] = region.samples;
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |at| (row, at))) {
            let corners = region.corners(cell, [row, column]);
            let weighed = corners.iter().map(|&(index, weight)| plane[index] * weight);
            if self.largest {
                pooled = weighed.fold(pooled, f64::max);
            } else {
                pooled += weighed.sum::<f64>();
            }
        }
        match rows * columns {
            0 => 0.0,
            _ if self.largest => pooled,
            count => pooled / count as f64,
        }
    }
}

struct Region {
    start: [f64; 2],
    cell: [f64; 2],
    samples: [usize; 2],
    image: [usize; 2],
}

impl Region {
    /// The four pixels around a sample and their weights; nothing counts when
    /// the sample is outside of the image.
    fn corners(&self, cell: [usize; 2], sample: [usize; 2]) -> [(usize, f64); 4] {
        let mut low = [0; 2];
        let mut high = [0; 2];
        let mut part = [0.0; 2];
        for axis in 0..2 {
            let step = (sample[axis] as f64 + 0.5) / self.samples[axis] as f64;
            let at = self.start[axis] + (cell[axis] as f64 + step) * self.cell[axis];
            let size = self.image[axis];
            if !(-1.0..=size as f64).contains(&at) {
                return [(0, 0.0); 4];
            }
            let at = at.max(0.0);
            low[axis] = (at as usize).min(size - 1);
            high[axis] = (low[axis] + 1).min(size - 1);
            part[axis] = if low[axis] + 1 >= size { 0.0 } else { at - low[axis] as f64 };
        }
        let width = self.image[1];
        let [y, x] = part;
        [
            (low[0] * width + low[1], (1.0 - y) * (1.0 - x)),
            (low[0] * width + high[1], (1.0 - y) * x),
            (high[0] * width + low[1], y * (1.0 - x)),
            (high[0] * width + high[1], y * x),
        ]
    }
}

impl Operator for RoiAlign {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, regions) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let batches = integers(inputs.tensor(2)?)?;
        let (count, [batch, channels, height, width]) = geometry(input, regions, &batches)?;
        let source = cast_tensor(ctx, input, DType::F64)?;
        let corners = cast_tensor(ctx, regions, DType::F64)?;
        let (source, corners) = (source.as_slice::<f64>()?, corners.as_slice::<f64>()?);
        let round = match input.dtype() {
            DType::F64 => |x| x,
            _ => |x| f64::from(x as f32),
        };
        let [rows, columns] = self.cells;
        let mut output = ctx.allocate(DType::F64, &[count, channels, rows, columns])?;
        let mut cells = output.as_mut_slice::<f64>()?.iter_mut();
        for (corners, &of) in corners.chunks_exact(4).zip(batches.iter()) {
            ctx.control.check()?;
            let region = self.region(corners, [height, width], round)?;
            let first = index(of, batch)? * channels;
            for plane in first..first + channels {
                let plane = &source[plane * height * width..(plane + 1) * height * width];
                for cell in (0..rows).flat_map(|row| (0..columns).map(move |at| [row, at])) {
                    if let Some(out) = cells.next() {
                        *out = self.pool(plane, &region, cell);
                    }
                }
            }
        }
        Ok(smallvec![cast_tensor(ctx, &output, input.dtype())?.into()])
    }
}

fn geometry(input: &Tensor, regions: &Tensor, batches: &[i64]) -> Result<(usize, [usize; 4])> {
    match (input.shape(), regions.shape()) {
        (&[batch, channels, height, width], &[count, 4])
            if height > 0 && width > 0 && batches.len() == count =>
        {
            Ok((count, [batch, channels, height, width]))
        }
        _ => Err(Error::invalid(format!("regions {regions:?} do not fit {input:?}"))),
    }
}
