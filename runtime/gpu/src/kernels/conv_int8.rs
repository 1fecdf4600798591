//! Convolutions of 8-bit integers: `ConvInteger` and `QLinearConv`.

use super::pointwise::Chain;
use super::quant::{MAX_TERMS, scale_len, scale_len_any, shift};
use super::window::Window;
use super::{input, int, ints, only_output};
use crate::lower::{Builder, MAX_GROUPS, THREADS};
use crate::operand::{Operand, Place};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use crate::weights::{Format, column_words, packed_filters};
use mortise_types::{DType, NodeDef, Result, Shape, Tensor, ValueId};

/// Outputs of a group that are too few for a tile.
const FEW_OUTPUTS: usize = 8;

/// Workgroups that keep a large device busy; with fewer, tiles are smaller.
const BUSY: usize = 128;

/// Where a node has its operands.
struct Inputs {
    x: usize,
    weights: usize,
    x_zero: usize,
    weight_zeros: usize,
    bias: Option<usize>,
}

/// An integer convolution whose filters are constant.
struct Conv {
    x: ValueId,
    weights: Tensor,
    x_zero: Option<ValueId>,
    weight_zeros: Option<Tensor>,
    bias: Option<ValueId>,
    output: ValueId,
    groups: usize,
    window: Window,
    shape: Shape,
}

/// # Errors
/// As [`Builder::operand`].
pub(crate) fn conv_integer(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let inputs = Inputs { x: 0, weights: 1, x_zero: 2, weight_zeros: 3, bias: None };
    let Some(call) = Conv::of(builder, node, &inputs) else { return Ok(false) };
    let sums = call.launch(builder)?;
    builder.define(call.output, sums);
    Ok(true)
}

/// The integer convolution, and then back to 8 bits.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn qlinear_conv(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let inputs = Inputs { x: 0, weights: 3, x_zero: 2, weight_zeros: 5, bias: Some(8) };
    let Some(call) = Conv::of(builder, node, &inputs) else { return Ok(false) };
    let Some(steps) = Steps::of(builder, node, call.shape[1]) else { return Ok(false) };
    let sums = call.launch(builder)?;
    let rank = call.shape.len();
    let mut operands = vec![sums];
    for value in steps.values {
        let dense = builder.dense(value)?;
        let mut shape = vec![dense.len()];
        // One factor a channel, or one for all.
        shape.resize(if dense.len() == 1 { 1 } else { rank - 1 }, 1);
        operands.push(Operand::dense(dense.place, dense.dtype, &shape));
    }
    match Chain::of(steps.template, steps.dtype, &call.shape, operands) {
        Some(chain) => builder.defer(call.output, chain),
        None => return Ok(false),
    }
    Ok(true)
}

/// What takes sums to 8 bits.
struct Steps {
    /// Scales of weights, image and answer, and the zero point of the answer.
    values: [ValueId; 4],
    template: &'static str,
    dtype: DType,
}

impl Steps {
    fn of(builder: &Builder<'_>, node: &NodeDef, outputs: usize) -> Option<Self> {
        let values = [input(node, 4)?, input(node, 1)?, input(node, 6)?, input(node, 7)?];
        let [weights, image, answer, zero] = values;
        let one = |value: ValueId| scale_len(builder, value) == Some(1);
        let by_channel = [1, outputs].contains(&scale_len(builder, weights)?);
        let dtype = builder.dtype(zero)?;
        let zeros_given = input(node, 2).is_some() && input(node, 5).is_some();
        let fits = zeros_given && by_channel && one(image) && one(answer);
        let template = requantised(dtype)?;
        (fits && scale_len_any(builder, zero) == Some(1)).then_some(Self {
            values,
            template,
            dtype,
        })
    }
}

fn requantised(dtype: DType) -> Option<&'static str> {
    const U8: &str = "clamp(i32(clamp(round(f32($0) * ($1 * $2 / $3)), -1e6, 1e6)) + $4, 0i, 255i)";
    const I8: &str =
        "clamp(i32(clamp(round(f32($0) * ($1 * $2 / $3)), -1e6, 1e6)) + $4, -128i, 127i)";
    match dtype {
        DType::U8 => Some(U8),
        DType::I8 => Some(I8),
        _ => None,
    }
}

impl Conv {
    fn of(builder: &Builder<'_>, node: &NodeDef, inputs: &Inputs) -> Option<Self> {
        let x = input(node, inputs.x).filter(|x| builder.is_held(*x))?;
        let weights = builder.constant(input(node, inputs.weights)?)?.clone();
        let x_zero = input(node, inputs.x_zero);
        let weight_zeros = match input(node, inputs.weight_zeros) {
            Some(zeros) => Some(builder.constant(zeros)?.clone()),
            None => None,
        };
        let bias = inputs.bias.and_then(|at| input(node, at));
        let (image, filters) = (builder.shape(x)?, weights.shape());
        let groups = usize::try_from(int(node, "group", 1)?).ok().filter(|groups| *groups > 0)?;
        let fits = fitting(&image, filters, groups)
            && small(builder.dtype(x)?)
            && small(weights.dtype())
            && own_kernel(node, &filters[2..])
            && filters[1..].iter().product::<usize>() <= MAX_TERMS;
        fits.then_some(())?;
        let window = Window::new(node, &image[2..], &filters[2..])?;
        let mut shape = Shape::from_slice(&[image[0], filters[0]]);
        shape.extend_from_slice(window.spatial(image.len() - 2));
        let is_one = |zero: ValueId| {
            builder.dtype(zero) == builder.dtype(x) && scale_len_any(builder, zero) == Some(1)
        };
        let zeros_fit = weight_zeros.as_ref().is_none_or(|zeros| {
            zeros.dtype() == weights.dtype() && [1, filters[0]].contains(&zeros.len())
        });
        let bias_fits = bias.is_none_or(|bias| {
            builder.dtype(bias) == Some(DType::I32)
                && scale_len_any(builder, bias) == Some(filters[0])
        });
        let output = only_output(node)?;
        let call = Self { x, weights, x_zero, weight_zeros, bias, output, groups, window, shape };
        (x_zero.is_none_or(is_one) && zeros_fit && bias_fits && call.is_small()).then_some(call)
    }

    fn outputs(&self) -> usize {
        self.shape[1] / self.groups
    }

    fn channels(&self) -> usize {
        self.weights.shape()[1]
    }

    fn is_small(&self) -> bool {
        self.shape[0] * self.groups <= MAX_GROUPS
            && self.outputs().div_ceil(32) <= MAX_GROUPS
            && self.window.positions().div_ceil(32) <= MAX_GROUPS
            && self.shape.iter().product::<usize>() < 1 << 29
    }

    /// Emits the convolution and answers where its sums are.
    fn launch(&self, builder: &mut Builder<'_>) -> Result<Operand> {
        let image = builder.dense(self.x)?;
        let bias = self.bias.map(|bias| builder.dense(bias)).transpose()?;
        let x_zero = match self.x_zero {
            Some(zero) => builder.dense(zero)?.place,
            None => self.constant(builder, 0, || Ok(vec![0]))?,
        };
        let sums = builder.allocate(DType::I32, &self.shape);
        let call = Operands { image, x_zero, bias, out: sums.place.clone() };
        match self.outputs() < FEW_OUTPUTS {
            true => self.directly(builder, call)?,
            false => self.tiled(builder, call)?,
        }
        Ok(sums)
    }

    /// One for each output.
    fn weight_zeros(&self) -> Vec<i32> {
        let signed = self.weights.dtype() == DType::I8;
        let value = |byte: &u8| if signed { i32::from(*byte as i8) } else { i32::from(*byte) };
        let bytes = self.weight_zeros.as_ref().and_then(Tensor::bytes).unwrap_or(&[0]);
        bytes.iter().map(value).cycle().take(self.shape[1]).collect()
    }

    fn constant(
        &self,
        builder: &mut Builder<'_>,
        at: u32,
        values: impl FnOnce() -> Result<Vec<i32>>,
    ) -> Result<Place> {
        let tensor = builder.derived((self.output, at), || {
            let values = values()?;
            Tensor::from_vec(&[values.len()], values)
        })?;
        Ok(Place::Weight(builder.weight(&tensor, Format::Words)?))
    }

    fn tiled(&self, builder: &mut Builder<'_>, call: Operands) -> Result<()> {
        let window = &self.window;
        let (channels, outputs) = (self.channels(), self.outputs());
        let planes = self.shape[0] * self.groups;
        let quads = column_words(channels, 4);
        let (shift_x, shift_w) = (shift(call.image.dtype), shift(self.weights.dtype()));
        let packed = self.pack(builder, &call.image, [planes, channels, quads]);
        let both = || packed_filters(&self.weights, shift_w);
        let words = builder.derived((self.output, 2), || Ok(both()?.0))?;
        let words = Place::Weight(builder.weight(&words, Format::Words)?);
        let zeros = self.weight_zeros();
        let filters = self.constant(builder, 3, || {
            let (_, sums) = both()?;
            let pairs = sums.as_slice::<i32>()?.iter().zip(&zeros);
            Ok(pairs.flat_map(|(sum, zero)| [*sum, zero - shift_w]).collect())
        })?;
        let taps = window.taps();
        let tiles =
            |tile: usize| [window.positions().div_ceil(tile), outputs.div_ceil(tile), planes];
        let side = if tiles(64).iter().product::<usize>() < BUSY { 8 } else { 16 };
        let shifted = zeros.iter().any(|zero| *zero != shift_w);
        let constants = [
            ("KERNEL_Y", window.kernel[0] as u32),
            ("KERNEL_X", window.kernel[1] as u32),
            ("SHIFT_X", shift_x as u32),
            ("HAS_ZEROS", u32::from(shifted)),
            ("HAS_BIAS", u32::from(call.bias.is_some())),
            ("SIDE", side as u32),
        ];
        let params = Params::new()
            .sizes(&[outputs, window.positions(), quads * taps, self.groups])
            .sizes(&[window.input[0], window.input[1], window.output[1], channels])
            .sizes(&window.strides)
            .sizes(&window.dilations)
            .sizes(&window.pads)
            .size(channels * taps);
        let bias = call.bias.map_or(call.x_zero.clone(), |bias| bias.place);
        let bindings = vec![words, packed, call.out, filters, call.x_zero, bias];
        let kernel = Kernel::new(File::ConvInt8, 6, &constants);
        builder.launch(kernel, bindings, params, tiles(4 * side));
        Ok(())
    }

    /// The image with four channels in a word.
    fn pack(
        &self,
        builder: &mut Builder<'_>,
        image: &Operand,
        [planes, channels, quads]: [usize; 3],
    ) -> Place {
        let plane = self.window.input[0] * self.window.input[1];
        let packed = builder.allocate(DType::I32, &[planes, quads, plane]);
        let total = packed.len();
        let params = Params::new().sizes(&[total, plane, channels, quads]);
        let constants = [("SHIFT", shift(image.dtype) as u32)];
        let kernel = Kernel::new(File::PackChannels, 2, &constants);
        let bindings = vec![image.place.clone(), packed.place.clone()];
        builder.launch(kernel, bindings, params, [total.div_ceil(THREADS), 1, 1]);
        packed.place
    }

    fn directly(&self, builder: &mut Builder<'_>, call: Operands) -> Result<()> {
        let window = &self.window;
        let total: usize = self.shape.iter().product();
        let params = Params::new()
            .sizes(&[total, self.outputs(), self.groups, self.channels()])
            .sizes(&window.input)
            .sizes(&window.output)
            .sizes(&window.kernel)
            .sizes(&window.strides)
            .sizes(&window.dilations)
            .sizes(&window.pads);
        let weights = Place::Weight(builder.weight(&self.weights, Format::Words)?);
        let zeros = self.constant(builder, 1, || Ok(self.weight_zeros()))?;
        let constants = [("HAS_BIAS", u32::from(call.bias.is_some()))];
        let bias = call.bias.map_or(call.x_zero.clone(), |bias| bias.place);
        let bindings = vec![weights, call.image.place, call.out, call.x_zero, zeros, bias];
        let kernel = Kernel::new(File::ConvDirectInt8, 6, &constants);
        builder.launch(kernel, bindings, params, [total.div_ceil(THREADS), 1, 1]);
        Ok(())
    }
}

/// What a convolution reads and writes on the device.
struct Operands {
    image: Operand,
    x_zero: Place,
    bias: Option<Operand>,
    out: Place,
}

fn small(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}

fn fitting(image: &[usize], filters: &[usize], groups: usize) -> bool {
    image.len() == filters.len()
        && image.len() > 2
        && filters[1].checked_mul(groups) == Some(image[1])
        && filters.iter().all(|size| *size > 0)
        && filters[0].is_multiple_of(groups)
}

/// Whether the node says of its window what its filters say.
fn own_kernel(node: &NodeDef, kernel: &[usize]) -> bool {
    let given = ints(node, "kernel_shape");
    given.is_none_or(|given| {
        given.len() == kernel.len()
            && given.iter().zip(kernel).all(|(given, own)| usize::try_from(*given) == Ok(*own))
    })
}
