//! `DFT` and `STFT`.

use super::fourier::{Complex, Direction, Fourier};
use super::{complex, length};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::{axis, dim, element_count, one_integer};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;

/// Along one axis of a tensor whose last dimension is the complex number.
pub(super) struct Dft {
    /// `None` where the axis is an input.
    axis: Option<i64>,
    inverse: bool,
    onesided: bool,
}

impl Dft {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let axis = Attributes(node).int_or("axis", 1)?;
        Ok(Box::new(Self { axis: Some(axis), ..Self::parse(node)? }))
    }

    pub(super) fn build_with_axis_input(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self::parse(node)?))
    }

    fn parse(node: &NodeDef) -> Result<Self> {
        let flag = |name: &str| Ok(Attributes(node).int_or(name, 0)? != 0);
        Ok(Self { axis: None, inverse: flag("inverse")?, onesided: flag("onesided")? })
    }

    fn axis(&self, inputs: &Inputs<'_>, rank: usize) -> Result<usize> {
        let along = match (self.axis, inputs.optional(2)?) {
            (Some(axis), _) => axis,
            (None, Some(tensor)) => one_integer(tensor)?,
            (None, None) => -2,
        };
        let resolved = axis(along, rank)?;
        if resolved + 1 == rank {
            return Err(Error::invalid(format!("axis {along} is that of the complex numbers")));
        }
        Ok(resolved)
    }

    /// Of the transform, and of what of it is given.
    fn lengths(&self, given: Option<usize>, size: usize) -> Result<(usize, usize)> {
        let full = match given {
            Some(length) => length,
            // The other half of a one-sided spectrum is its mirror image.
            None if self.inverse && self.onesided => 2 * size.saturating_sub(1),
            None => size,
        };
        if full == 0 {
            return Err(Error::invalid("a transform of no elements"));
        }
        let half = self.onesided && !self.inverse;
        Ok((full, if half { full / 2 + 1 } else { full }))
    }
}

impl Operator for Dft {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let along = self.axis(&inputs, input.rank())?;
        let size = input.shape()[along];
        let (full, kept) = self.lengths(length(&inputs, 1)?, size)?;
        let real = self.inverse && self.onesided;
        let mut shape: Shape = input.shape().into();
        shape[along] = kept;
        shape[input.rank() - 1] = if real { 1 } else { 2 };
        let mut output = ctx.allocate(DType::F64, &shape)?;
        let target = output.as_mut_slice::<f64>()?;
        let width = if real { 1 } else { 2 };
        let source = complex(ctx, input)?;
        let outer = element_count(&input.shape()[..along])?;
        let inner = element_count(&input.shape()[along + 1..input.rank() - 1])?;
        let direction = if self.inverse { Direction::Inverse } else { Direction::Forward };
        let fourier = Fourier::new(full);
        // Scratch of the transform counts against the arena, too.
        let _scratch = ctx.allocate(DType::F64, &[full, 8])?;
        let mut line: Vec<Complex> = Vec::with_capacity(full);
        for (before, after) in (0..outer).flat_map(|at| (0..inner).map(move |rest| (at, rest))) {
            ctx.control.check()?;
            line.clear();
            let cells = (0..size.min(full)).map(|k| source[(before * size + k) * inner + after]);
            line.extend(cells);
            line.resize(full, [0.0; 2]);
            if real {
                mirror(&mut line);
            }
            fourier.run(&mut line, direction);
            for (k, value) in line.iter().take(kept).enumerate() {
                let to = ((before * kept + k) * inner + after) * width;
                target[to..to + width].copy_from_slice(&value[..width]);
            }
        }
        Ok(smallvec![cast_tensor(ctx, &output, input.dtype())?.into()])
    }
}

/// Fills the second half of a spectrum whose signal is real.
fn mirror(line: &mut [Complex]) {
    let length = line.len();
    for k in length / 2 + 1..length {
        let [real, imaginary] = line[length - k];
        line[k] = [real, -imaginary];
    }
}

/// Transforms of overlapping, windowed pieces of a signal.
pub(super) struct Stft {
    onesided: bool,
}

impl Stft {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let onesided = Attributes(node).int_or("onesided", 1)? != 0;
        Ok(Box::new(Self { onesided }))
    }
}

impl Operator for Stft {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let mut signal = inputs.tensor(0)?.clone();
        if let &[batch, samples] = signal.shape() {
            signal = signal.reshaped(&[batch, samples, 1])?;
        }
        let &[batch, samples, _] = signal.shape() else {
            return Err(Error::invalid(format!(
                "STFT takes [batch, samples, 1 or 2], not {signal:?}"
            )));
        };
        let step = dim(one_integer(inputs.tensor(1)?)?)?;
        let window = inputs.optional(2)?.map(|tensor| cast_tensor(ctx, tensor, DType::F64));
        let window = window.transpose()?;
        let window = window.as_ref().map(Tensor::as_slice::<f64>).transpose()?;
        let frame = length(&inputs, 3)?.or(window.map(<[f64]>::len)).unwrap_or(samples);
        if step == 0 || frame == 0 || frame > samples || window.is_some_and(|w| w.len() != frame) {
            return Err(Error::invalid(format!(
                "frames of {frame} every {step} do not fit {samples} samples and the window"
            )));
        }
        let frames = (samples - frame) / step + 1;
        let kept = if self.onesided { frame / 2 + 1 } else { frame };
        let mut output = ctx.allocate(DType::F64, &[batch, frames, kept, 2])?;
        let source = complex(ctx, &signal)?;
        let fourier = Fourier::new(frame);
        let lines = output.as_mut_slice::<f64>()?.chunks_exact_mut(kept * 2);
        for (at, target) in lines.enumerate() {
            ctx.control.check()?;
            let start = at / frames * samples + at % frames * step;
            let mut line = source[start..start + frame].to_vec();
            for (value, weight) in line.iter_mut().zip(window.unwrap_or_default()) {
                *value = [value[0] * weight, value[1] * weight];
            }
            fourier.run(&mut line, Direction::Forward);
            target.copy_from_slice(line[..kept].as_flattened());
        }
        Ok(smallvec![cast_tensor(ctx, &output, signal.dtype())?.into()])
    }
}
