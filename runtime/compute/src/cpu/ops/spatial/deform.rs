//! Convolution whose taps are moved by offsets that the model computes.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::dim;
use crate::cpu::ops::window::{Window, WindowAttributes};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

/// Over images; taps between pixels are interpolated.
pub(super) struct DeformConv {
    window: WindowAttributes,
    groups: usize,
    offset_groups: usize,
}

impl DeformConv {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            window: WindowAttributes::parse(node)?,
            groups: dim(attributes.int_or("group", 1)?)?,
            offset_groups: dim(attributes.int_or("offset_group", 1)?)?,
        }))
    }
}

/// All operands in double precision, with how they fit together.
struct Operands<'a> {
    input: &'a [f64],
    weights: &'a [f64],
    offsets: &'a [f64],
    bias: Option<&'a [f64]>,
    mask: Option<&'a [f64]>,
    window: Window,
    channels: usize,
    /// Input channels of a group, and of a group of offsets.
    group_channels: usize,
    offset_channels: usize,
    outputs: usize,
    group_outputs: usize,
}

impl Operands<'_> {
    /// The samples under one output place: channel by channel, tap by tap.
    fn samples(&self, batch: usize, place: usize, samples: &mut [f64]) {
        let (taps, places) = (self.taps(), self.places());
        let [height, width] = [self.window.input[0], self.window.input[1]];
        for (at, sample) in samples.iter_mut().enumerate() {
            let (channel, tap) = (at / taps, at % taps);
            let group = channel / self.offset_channels;
            let groups = self.channels / self.offset_channels;
            let block = (batch * groups + group) * taps + tap;
            let moved = |axis: usize| self.offsets[(block * 2 + axis) * places + place];
            let [y, x] = self.tap(place, tap);
            let start = (batch * self.channels + channel) * height * width;
            let plane = &self.input[start..start + height * width];
            let value = bilinear(plane, [height, width], [y + moved(0), x + moved(1)]);
            *sample = value * self.mask.map_or(1.0, |mask| mask[block * places + place]);
        }
    }

    /// Where a tap of an output place lies before it is moved.
    fn tap(&self, place: usize, tap: usize) -> [f64; 2] {
        let Window { kernel, strides, dilations, pads, output, .. } = &self.window;
        let places = [place / output[1], place % output[1]];
        let taps = [tap / kernel[1], tap % kernel[1]];
        [0, 1].map(|axis| {
            let at = places[axis] * strides[axis] + taps[axis] * dilations[axis];
            at as f64 - pads.begin[axis] as f64
        })
    }

    fn taps(&self) -> usize {
        self.window.kernel.iter().product()
    }

    fn places(&self) -> usize {
        self.window.output.iter().product()
    }

    /// All outputs of one place.
    fn convolve(&self, samples: &[f64], mut write: impl FnMut(usize, f64)) {
        let length = self.group_channels * self.taps();
        for output in 0..self.outputs {
            let weights = &self.weights[output * length..(output + 1) * length];
            let inputs = &samples[output / self.group_outputs * length..];
            let sum: f64 = weights.iter().zip(inputs).map(|(weight, input)| weight * input).sum();
            write(output, sum + self.bias.map_or(0.0, |bias| bias[output]));
        }
    }
}

/// Zero outside of the plane.
fn bilinear(plane: &[f64], [height, width]: [usize; 2], [y, x]: [f64; 2]) -> f64 {
    let (top, left) = (y.floor(), x.floor());
    let pixel = |y: f64, x: f64| {
        let inside = y >= 0.0 && x >= 0.0 && y < height as f64 && x < width as f64;
        if inside { plane[y as usize * width + x as usize] } else { 0.0 }
    };
    let (down, right) = (y - top, x - left);
    pixel(top, left) * (1.0 - down) * (1.0 - right)
        + pixel(top, left + 1.0) * (1.0 - down) * right
        + pixel(top + 1.0, left) * down * (1.0 - right)
        + pixel(top + 1.0, left + 1.0) * down * right
}

impl Operator for DeformConv {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let wide = |index: usize| -> Result<Option<Tensor>> {
            inputs.optional(index)?.map(|tensor| cast_tensor(ctx, tensor, DType::F64)).transpose()
        };
        let (input, weights, offsets) = (wide(0)?, wide(1)?, wide(2)?);
        let (Some(input), Some(weights), Some(offsets)) = (&input, &weights, &offsets) else {
            return Err(Error::invalid("DeformConv takes an input, weights and offsets"));
        };
        let (bias, mask) = (wide(3)?, wide(4)?);
        let operands = self.operands([input, weights, offsets], bias.as_ref(), mask.as_ref())?;
        let (batch, outputs, places) = (input.shape()[0], operands.outputs, operands.places());
        let mut shape = vec![batch, outputs];
        shape.extend_from_slice(&operands.window.output);
        let mut output = ctx.allocate(DType::F64, &shape)?;
        let target = output.as_mut_slice::<f64>()?;
        let mut samples = ctx.allocate(DType::F64, &[operands.channels * operands.taps()])?;
        let samples = samples.as_mut_slice::<f64>()?;
        for at in 0..batch * places {
            ctx.control.check()?;
            let (batch, place) = (at / places, at % places);
            operands.samples(batch, place, samples);
            operands.convolve(samples, |output, value| {
                target[(batch * outputs + output) * places + place] = value;
            });
        }
        Ok(smallvec![cast_tensor(ctx, &output, inputs.tensor(0)?.dtype())?.into()])
    }
}

impl DeformConv {
    fn operands<'a>(
        &self,
        [input, weights, offsets]: [&'a Tensor; 3],
        bias: Option<&'a Tensor>,
        mask: Option<&'a Tensor>,
    ) -> Result<Operands<'a>> {
        let (&[batch, channels, ..], &[outputs, group_channels, ..]) =
            (input.shape(), weights.shape())
        else {
            return Err(Error::invalid(format!("{input:?} and {weights:?} are no images")));
        };
        if input.rank() != 4 || weights.rank() != 4 {
            let rank = input.rank().saturating_sub(2);
            return Err(Error::unsupported(format!("DeformConv over {rank} dimensions, not 2")));
        }
        let window = self.window.resolve(&input.shape()[2..], Some(&weights.shape()[2..]))?;
        let (taps, out) =
            (window.kernel[0] * window.kernel[1], [window.output[0], window.output[1]]);
        let (groups, offset_groups) = (self.groups, self.offset_groups);
        let planes = |count: usize| [batch, count, out[0], out[1]];
        let fits = groups > 0
            && offset_groups > 0
            && group_channels > 0
            && channels == group_channels * groups
            && outputs.is_multiple_of(groups)
            && outputs > 0
            && channels.is_multiple_of(offset_groups)
            && offsets.shape() == planes(2 * offset_groups * taps)
            && mask.is_none_or(|mask| mask.shape() == planes(offset_groups * taps))
            && bias.is_none_or(|bias| bias.shape() == [outputs]);
        if !fits {
            return Err(Error::invalid(format!(
                "weights {weights:?}, offsets {offsets:?}, bias and mask do not fit {input:?}"
            )));
        }
        Ok(Operands {
            input: input.as_slice()?,
            weights: weights.as_slice()?,
            offsets: offsets.as_slice()?,
            bias: bias.map(Tensor::as_slice).transpose()?,
            mask: mask.map(Tensor::as_slice).transpose()?,
            window,
            channels,
            group_channels,
            offset_channels: channels / offset_groups,
            outputs,
            group_outputs: outputs / groups,
        })
    }
}
