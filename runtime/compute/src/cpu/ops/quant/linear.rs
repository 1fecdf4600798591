//! Floats as small integers and back.

use super::general::{Operands, dequantize, quantize};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::narrow::Codec;
use crate::cpu::ops::layout::{axis, by_dtype, dim, element_count, floats};
use crate::cpu::wide::{Loop, widest};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;
use std::borrow::Cow;

/// Which scale and zero point an element has.
pub(super) struct Grid {
    /// Elements that share a place along the axis: those inside of it.
    inner: usize,
    size: usize,
    block: usize,
    /// Places along the axis of the scale.
    blocks: usize,
    /// The scale varies outside and inside of the axis, too.
    blocked: bool,
}

impl Grid {
    pub(super) fn new(input: &Tensor, scale: &Tensor, along: i64, block: usize) -> Result<Self> {
        let shape = input.shape();
        if scale.len() == 1 && block == 0 {
            return Ok(Self { inner: 1, size: 1, block: 1, blocks: 1, blocked: false });
        }
        let along = axis(along, shape.len())?;
        let inner = element_count(&shape[along + 1..])?;
        let size = shape[along];
        if block == 0 {
            if scale.shape() != [size] {
                return Err(Error::invalid(format!(
                    "a scale {scale:?} does not fit axis {along} of {input:?}"
                )));
            }
            return Ok(Self { inner, size, block: 1, blocks: size, blocked: false });
        }
        let blocks = size.div_ceil(block);
        let fits = scale.rank() == shape.len()
            && (0..shape.len())
                .all(|at| scale.shape()[at] == if at == along { blocks } else { shape[at] });
        if !fits {
            return Err(Error::invalid(format!(
                "a scale {scale:?} does not fit {input:?} in blocks of {block}"
            )));
        }
        Ok(Self { inner, size, block, blocks, blocked: true })
    }

    pub(super) fn place(&self, element: usize) -> usize {
        let along = element / self.inner % self.size / self.block;
        if !self.blocked {
            return along;
        }
        let outer = element / (self.inner * self.size);
        (outer * self.blocks + along) * self.inner + element % self.inner
    }
}

pub(super) struct Parameters {
    pub(super) axis: i64,
    pub(super) block: usize,
    dtype: Option<DType>,
    /// The type in which `x / scale` is computed; that of the scale by default.
    pub(super) precision: Option<DType>,
    /// Whether 8-bit floats saturate instead of overflowing.
    pub(super) saturate: bool,
}

impl Parameters {
    fn of(node: &NodeDef) -> Result<Self> {
        let attributes = Attributes(node);
        let dtype = |name: &str| match attributes.int_or(name, 0)? {
            0 => Ok(None),
            number => {
                i32::try_from(number).ok().and_then(DType::from_onnx).map(Some).ok_or_else(|| {
                    Error::unsupported(format!("{}: {name} = {number}", node.describe()))
                })
            }
        };
        Ok(Self {
            axis: attributes.int_or("axis", 1)?,
            block: dim(attributes.int_or("block_size", 0)?)?,
            dtype: dtype("output_dtype")?,
            precision: dtype("precision")?,
            saturate: attributes.int_or("saturate", 1)? != 0,
        })
    }
}

/// Zero points as integers, one per scale.
fn zero_points(tensor: Option<&Tensor>, count: usize) -> Result<Vec<i32>> {
    let Some(tensor) = tensor else {
        return Ok(vec![0; count]);
    };
    if tensor.len() != count {
        return Err(Error::invalid(format!("{tensor:?} zero points for {count} scales")));
    }
    whole(tensor)
}

/// The values of an integer tensor of up to 32 bits.
pub(super) fn whole(tensor: &Tensor) -> Result<Vec<i32>> {
    by_dtype!(tensor.dtype(), [U8: u8, I8: i8, U16: u16, I16: i16, I32: i32], T => {
        Ok(tensor.as_slice::<T>()?.iter().map(|&value| i32::from(value)).collect())
    })
}

/// `x / scale + zero`, rounded half to even, within the type's range.
pub(super) struct Quantize(Parameters);

impl Quantize {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Parameters::of(node)?)))
    }
}

impl Operator for Quantize {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, scale, zero) = (inputs.tensor(0)?, inputs.tensor(1)?, inputs.optional(2)?);
        let dtype = zero.map(Tensor::dtype).or(self.0.dtype).unwrap_or(DType::U8);
        if self.0.dtype.is_some_and(|wanted| wanted != dtype) {
            return Err(Error::invalid(format!("a zero point {zero:?} is not of output_dtype")));
        }
        let everyday = scale.dtype() == DType::F32
            && self.0.precision.is_none_or(|precision| precision == DType::F32)
            && matches!(dtype, DType::U8 | DType::I8 | DType::U16 | DType::I16);
        if !everyday {
            let on = Operands { input, scale, zero };
            return Ok(smallvec![quantize(ctx, &on, &self.0, dtype)?.into()]);
        }
        let grid = Grid::new(input, scale, self.0.axis, self.0.block)?;
        let zeros = zero_points(zero, scale.len())?;
        let values = float_values(input)?;
        let scales = float_values(scale)?;
        let mut output = ctx.allocate(dtype, input.shape())?;
        by_dtype!(dtype, [U8: u8, I8: i8, U16: u16, I16: i16], T => {
            let cells = output.as_mut_slice::<T>()?.iter_mut();
            for (element, (cell, &value)) in cells.zip(values.iter()).enumerate() {
                let place = grid.place(element);
                let wide = quantized(value / scales[place], zeros[place]);
                *cell = wide.clamp(i32::from(T::MIN), i32::from(T::MAX)) as T;
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Half floats are read as floats.
pub(super) fn float_values(tensor: &Tensor) -> Result<Cow<'_, [f32]>> {
    match tensor.dtype() {
        DType::F16 => {
            let halves = tensor.as_slice::<mortise_types::f16>()?;
            Ok(halves.iter().map(|half| half.to_f32()).collect())
        }
        _ => floats(tensor),
    }
}

/// Rounds half to even; the cast saturates, and NaN becomes the zero point.
pub(super) fn quantized(value: f32, zero: i32) -> i32 {
    (value.round_ties_even() as i32).saturating_add(zero)
}

/// `(q - zero) * scale`.
pub(super) struct Dequantize(Parameters);

impl Dequantize {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Parameters::of(node)?)))
    }
}

impl Operator for Dequantize {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, scale, zero) = (inputs.tensor(0)?, inputs.tensor(1)?, inputs.optional(2)?);
        if zero.is_some_and(|zero| zero.dtype() != input.dtype()) {
            return Err(Error::invalid(format!("a zero point {zero:?} does not fit {input:?}")));
        }
        let dtype = self.0.dtype.unwrap_or(scale.dtype());
        let everyday = scale.dtype() == DType::F32 && dtype == DType::F32;
        if !everyday || Codec::of(input.dtype()).is_some() {
            let on = Operands { input, scale, zero };
            return Ok(smallvec![dequantize(ctx, &on, &self.0, dtype)?.into()]);
        }
        let grid = Grid::new(input, scale, self.0.axis, self.0.block)?;
        let zeros = zero_points(zero, scale.len())?;
        let scales = scale.as_slice::<f32>()?;
        let mut output = ctx.allocate(DType::F32, input.shape())?;
        by_dtype!(input.dtype(), [U8: u8, I8: i8, U16: u16, I16: i16, I32: i32], T => {
            let cells = output.as_mut_slice::<f32>()?.iter_mut();
            for (element, (cell, &value)) in cells.zip(input.as_slice::<T>()?).enumerate() {
                let place = grid.place(element);
                *cell = i32::from(value).wrapping_sub(zeros[place]) as f32 * scales[place];
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Bytes whose range just holds the tensor and zero; one scale for all of it.
pub(super) struct Dynamic;

impl Operator for Dynamic {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let values = input.as_slice::<f32>()?;
        let (low, high) = widest(Span(values));
        let scale = if low == high { 1.0 } else { (high - low) / 255.0 };
        let zero = (-low / scale).clamp(0.0, 255.0).round_ties_even() as u8;
        let mut output = ctx.allocate(DType::U8, input.shape())?;
        let bytes = output.as_mut_slice::<u8>()?;
        widest(ToBytes { values, scale, zero: f32::from(zero), bytes });
        Ok(smallvec![output.into(), Tensor::scalar(scale).into(), Tensor::scalar(zero).into()])
    }
}

/// The least and the largest of some numbers and zero; NaN is neither.
pub(super) struct Span<'a>(pub(super) &'a [f32]);

impl Loop for Span<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32) {
        const LANES: usize = 64;
        let (mut low, mut high) = ([0.0f32; LANES], [0.0f32; LANES]);
        for chunk in self.0.chunks(LANES) {
            for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(chunk) {
                *low = if x < *low { x } else { *low };
                *high = if x > *high { x } else { *high };
            }
        }
        (low.into_iter().fold(0.0, f32::min), high.into_iter().fold(0.0, f32::max))
    }
}

/// `x / scale + zero` as bytes, rounded half to even; NaN becomes `zero`.
struct ToBytes<'a> {
    values: &'a [f32],
    scale: f32,
    zero: f32,
    bytes: &'a mut [u8],
}

impl Loop for ToBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (least, most) = (-self.zero, 255.0 - self.zero);
        for (byte, &value) in self.bytes.iter_mut().zip(self.values) {
            let steps = (value / self.scale).round_ties_even();
            // Comparisons with NaN fail: it is put at zero steps first.
            let steps = if steps.is_nan() { 0.0 } else { steps };
            let steps = if steps < least { least } else { steps };
            let steps = if steps > most { most } else { steps };
            *byte = (steps + self.zero) as i32 as u8;
        }
    }
}
