//! Quantisation for every type that is not an everyday one: packed integers,
//! 8- and 4-bit floats, and scales that are no 32-bit floats.

use super::linear::{Grid, Parameters};
use crate::cpu::op::OpContext;
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::elementwise::narrow::{Codec, pack};
use mortise_types::{DType, Error, Result, Tensor, bf16, f16};

/// The operands of either direction.
pub(super) struct Operands<'a> {
    pub(super) input: &'a Tensor,
    pub(super) scale: &'a Tensor,
    pub(super) zero: Option<&'a Tensor>,
}

impl Operands<'_> {
    fn grid(&self, parameters: &Parameters) -> Result<Grid> {
        let counts = self.zero.is_none_or(|zero| zero.len() == self.scale.len());
        if !counts {
            let (zero, scales) = (self.zero, self.scale.len());
            return Err(Error::invalid(format!("{zero:?} zero points for {scales} scales")));
        }
        Grid::new(self.input, self.scale, parameters.axis, parameters.block)
    }

    fn zeros(&self, ctx: &OpContext<'_>) -> Result<Vec<f64>> {
        let Some(zero) = self.zero else { return Ok(vec![0.0; self.scale.len()]) };
        Ok(cast_tensor(ctx, zero, DType::F64)?.as_slice::<f64>()?.to_vec())
    }
}

/// `x / scale + zero` as `dtype`.
pub(super) fn quantize(
    ctx: &OpContext<'_>,
    on: &Operands<'_>,
    parameters: &Parameters,
    dtype: DType,
) -> Result<Tensor> {
    let (grid, zeros) = (on.grid(parameters)?, on.zeros(ctx)?);
    let input = cast_tensor(ctx, on.input, DType::F64)?;
    let scales = cast_tensor(ctx, on.scale, DType::F64)?;
    let (input, scales) = (input.as_slice::<f64>()?, scales.as_slice::<f64>()?);
    let precision = parameters.precision.unwrap_or(on.scale.dtype());
    let value = |(element, x): (usize, &f64)| {
        let place = grid.place(element);
        (divide(*x, scales[place], precision), zeros[place])
    };
    let values = input.iter().enumerate().map(value);
    let mut output = ctx.allocate(dtype, on.input.shape())?;
    if let (Some(codec @ Codec::Float(_)), target) = (Codec::of(dtype), output.mut_bytes()) {
        let codes = values.map(|(x, zero)| codec.encode(x + zero, parameters.saturate));
        pack(codes, dtype.bits(), target.unwrap_or_default());
        return Ok(output);
    }
    let (low, high) = range(dtype)?;
    // NaN becomes the zero point.
    let whole = |x: f64| if x.is_nan() { 0.0 } else { x.round_ties_even() };
    let whole = values.map(|(x, zero)| (whole(x) + zero).clamp(low, high)).collect();
    cast_tensor(ctx, &Tensor::from_vec(on.input.shape(), whole)?, dtype)
}

/// The quotient as the given type computes it.
fn divide(x: f64, scale: f64, precision: DType) -> f64 {
    match precision {
        DType::F64 => x / scale,
        DType::F16 => (f16::from_f64(x) / f16::from_f64(scale)).to_f64(),
        DType::BF16 => (bf16::from_f64(x) / bf16::from_f64(scale)).to_f64(),
        _ => f64::from(x as f32 / scale as f32),
    }
}

/// The least and the largest number of an integer type.
fn range(dtype: DType) -> Result<(f64, f64)> {
    let bits = dtype.bits() as i32;
    match dtype {
        DType::U8 | DType::U16 | DType::U4 | DType::U2 => Ok((0.0, 2f64.powi(bits) - 1.0)),
        DType::I8 | DType::I16 | DType::I4 | DType::I2 => {
            let half = 2f64.powi(bits - 1);
            Ok((-half, half - 1.0))
        }
        other => Err(Error::unsupported(format!("quantising to {other}"))),
    }
}

/// `(q - zero) * scale` as `dtype`.
pub(super) fn dequantize(
    ctx: &OpContext<'_>,
    on: &Operands<'_>,
    parameters: &Parameters,
    dtype: DType,
) -> Result<Tensor> {
    let (grid, zeros) = (on.grid(parameters)?, on.zeros(ctx)?);
    let input = cast_tensor(ctx, on.input, DType::F64)?;
    let scales = cast_tensor(ctx, on.scale, DType::F64)?;
    let scales = scales.as_slice::<f64>()?;
    let mut output = ctx.allocate(DType::F64, on.input.shape())?;
    let cells = output.as_mut_slice::<f64>()?.iter_mut();
    for (element, (cell, value)) in cells.zip(input.as_slice::<f64>()?).enumerate() {
        let place = grid.place(element);
        *cell = (value - zeros[place]) * scales[place];
    }
    cast_tensor(ctx, &output, dtype)
}
