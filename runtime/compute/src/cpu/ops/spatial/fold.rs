//! Putting elements where computed positions say.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::{
    View, axes, by_width, cells, cells_mut, copy_view, dims, element_count, index, integers,
    strides,
};
use crate::cpu::ops::window::WindowAttributes;
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;

/// Sums columns of blocks back into the image that they were taken from.
pub(super) struct Col2Im(WindowAttributes);

impl Col2Im {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(WindowAttributes::parse(node)?)))
    }
}

/// How blocks lie on an image.
struct Blocks {
    image: Shape,
    block: Shape,
    strides: Shape,
    dilations: Shape,
    /// Padding before each dimension.
    begin: Vec<i64>,
    /// Positions that a block takes along each dimension.
    counts: Shape,
}

impl Blocks {
    fn new(attributes: &WindowAttributes, image: Shape, block: Shape) -> Result<Self> {
        let rank = image.len();
        if rank != block.len() || rank == 0 {
            return Err(Error::invalid(format!("blocks {block:?} do not fit an image {image:?}")));
        }
        let (strides, dilations) = (attributes.strides(rank)?, attributes.dilations(rank)?);
        let pads = attributes.explicit_pads(rank)?;
        let count = |axis: usize| {
            let extent = block[axis].checked_sub(1)?.checked_mul(dilations[axis])? as i64 + 1;
            let free = image[axis] as i64 + pads.begin[axis] + pads.end[axis] - extent;
            usize::try_from(free).ok().map(|free| free / strides[axis] + 1)
        };
        let counts = (0..rank).map(count).collect::<Option<Shape>>();
        let counts =
            counts.ok_or_else(|| Error::invalid(format!("blocks {block:?} exceed {image:?}")))?;
        let (strides, dilations) = (strides.iter().copied(), dilations.iter().copied());
        Ok(Self {
            image,
            block,
            strides: strides.collect(),
            dilations: dilations.collect(),
            begin: pads.begin.to_vec(),
            counts,
        })
    }

    /// The pixel under element `element` of the block at `position`; `None` in
    /// the padding.
    fn pixel(&self, mut element: usize, mut position: usize) -> Option<usize> {
        let (mut pixel, mut step) = (0, 1);
        for axis in (0..self.image.len()).rev() {
            let (size, block, count) = (self.image[axis], self.block[axis], self.counts[axis]);
            let inside = element % block * self.dilations[axis];
            let at = (position % count * self.strides[axis] + inside) as i64 - self.begin[axis];
            pixel += usize::try_from(at).ok().filter(|&at| at < size)? * step;
            step *= size;
            element /= block;
            position /= count;
        }
        Some(pixel)
    }
}

impl Operator for Col2Im {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let image = dims(&integers(inputs.tensor(1)?)?)?;
        let block = dims(&integers(inputs.tensor(2)?)?)?;
        let blocks = Blocks::new(&self.0, image, block)?;
        let (area, positions) = (element_count(&blocks.block)?, element_count(&blocks.counts)?);
        let (batch, channels) = match *input.shape() {
            [batch, rows, columns] if area > 0 && rows % area == 0 && columns == positions => {
                (batch, rows / area)
            }
            _ => {
                let block = &blocks.block;
                return Err(Error::invalid(format!("{input:?} are no blocks of {block:?}")));
            }
        };
        let mut shape: Shape = smallvec![batch, channels];
        shape.extend_from_slice(&blocks.image);
        let pixels = element_count(&blocks.image)?;
        let source = cast_tensor(ctx, input, DType::F64)?;
        let source = source.as_slice::<f64>()?;
        let mut output = ctx.allocate(DType::F64, &shape)?;
        let target = output.as_mut_slice::<f64>()?;
        target.fill(0.0);
        for element in 0..area {
            ctx.control.check()?;
            for position in 0..positions {
                let Some(pixel) = blocks.pixel(element, position) else { continue };
                for plane in 0..batch * channels {
                    let from = (plane * area + element) * positions + position;
                    target[plane * pixels + pixel] += source[from];
                }
            }
        }
        Ok(smallvec![cast_tensor(ctx, &output, input.dtype())?.into()])
    }
}

/// The reverse of a max pool: each value goes back to its index.
pub(super) struct MaxUnpool(WindowAttributes);

impl MaxUnpool {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(WindowAttributes::parse(node)?)))
    }

    /// The shape of what was pooled, from that of the pool.
    fn inferred(&self, shape: &[usize]) -> Result<Shape> {
        let (Some(lead), Some(spatial)) = (shape.get(..2), shape.get(2..)) else {
            return Err(Error::invalid(format!("MaxUnpool of {shape:?}: expected [N, C, …]")));
        };
        let rank = spatial.len();
        let (kernel, strides) = (self.0.kernel(None)?, self.0.strides(rank)?);
        let pads = self.0.explicit_pads(rank)?;
        if kernel.len() != rank {
            return Err(Error::invalid(format!("a kernel {kernel:?} does not fit {shape:?}")));
        }
        let mut inferred: Shape = lead.into();
        for axis in 0..rank {
            let covered = (spatial[axis] as i64 - 1).saturating_mul(strides[axis] as i64);
            let size = covered + kernel[axis] as i64 - pads.begin[axis] - pads.end[axis];
            inferred.push(usize::try_from(size).unwrap_or(0));
        }
        Ok(inferred)
    }
}

impl Operator for MaxUnpool {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, indices) = (inputs.tensor(0)?, integers(inputs.tensor(1)?)?);
        let inferred = self.inferred(input.shape())?;
        let shape = match inputs.optional(2)? {
            Some(shape) => dims(&integers(shape)?)?,
            None => inferred.clone(),
        };
        let fits = indices.len() == input.len()
            && shape.len() == inferred.len()
            && shape.iter().zip(&inferred).all(|(out, inner)| out >= inner);
        if !fits {
            return Err(Error::invalid(format!("{input:?} does not unpool to {shape:?}")));
        }
        // Indices count in the inferred shape, which lies at the start of the
        // given one.
        let (total, steps, outer) =
            (element_count(&inferred)?, strides(&inferred), strides(&shape));
        let place = |mut at: usize| {
            steps.iter().zip(&outer).fold(0, |sum, (step, out)| {
                let digit = at / step;
                at %= step;
                sum + digit * out
            })
        };
        let mut output = zeros(ctx, input.dtype(), &shape)?;
        by_width!(input.dtype(), T => {
            let target = cells_mut::<T>(&mut output)?;
            for (&value, &to) in cells::<T>(input)?.iter().zip(indices.iter()) {
                target[place(index(to, total)?)] = value;
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

fn zeros(ctx: &OpContext<'_>, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let mut output = ctx.allocate(dtype, shape)?;
    output.mut_bytes().unwrap_or_default().fill(0);
    Ok(output)
}

/// Cuts or zero-pads both ends of axes to given sizes.
pub(super) struct CenterCropPad(Option<Vec<i64>>);

impl CenterCropPad {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).ints("axes")?.map(<[i64]>::to_vec))))
    }
}

impl Operator for CenterCropPad {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let sizes = dims(&integers(inputs.tensor(1)?)?)?;
        let all: Vec<i64> = (0..input.rank() as i64).collect();
        let chosen = axes(self.0.as_ref().unwrap_or(&all), input.rank())?;
        if chosen.len() != sizes.len() {
            return Err(Error::invalid(format!("sizes {sizes:?} for axes {chosen:?}")));
        }
        let mut shape: Shape = input.shape().into();
        let mut view = View::of(input.shape());
        let mut start: Shape = Shape::from_elem(0, input.rank());
        for (&axis, &size) in chosen.iter().zip(&sizes) {
            let old = input.shape()[axis];
            shape[axis] = size;
            view.shape[axis] = old.min(size);
            view.offset += (old.saturating_sub(size) / 2) as isize * view.strides[axis];
            start[axis] = size.saturating_sub(old) / 2;
        }
        let cut = copy_view(ctx, input, &view, &view.shape)?;
        if cut.shape() == shape.as_slice() {
            return Ok(smallvec![cut.into()]);
        }
        Ok(smallvec![padded(ctx, &cut, &shape, &start)?.into()])
    }
}

/// Zeros of `shape` with `inner` at `start`.
fn padded(ctx: &OpContext<'_>, inner: &Tensor, shape: &[usize], start: &[usize]) -> Result<Tensor> {
    let mut output = zeros(ctx, inner.dtype(), shape)?;
    let Some((&run, outer)) = inner.shape().split_last().filter(|_| !inner.is_empty()) else {
        return Ok(output);
    };
    let steps = strides(shape);
    by_width!(inner.dtype(), T => {
        let target = cells_mut::<T>(&mut output)?;
        for (row, values) in cells::<T>(inner)?.chunks_exact(run).enumerate() {
            let (mut rest, mut to) = (row, start[outer.len()]);
            for (axis, size) in outer.iter().enumerate().rev() {
                to += (rest % size + start[axis]) * steps[axis];
                rest /= size;
            }
            target[to..to + run].copy_from_slice(values);
        }
        Ok(())
    })?;
    Ok(output)
}
