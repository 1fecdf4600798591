//! Tensors made by a rule.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{
    axis, by_dtype, by_width, cells, cells_mut, doubles, element_count, one_integer,
};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;

/// `start, start + delta, …` below `limit`.
pub(super) struct Range;

impl Operator for Range {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let parts = [inputs.tensor(0)?, inputs.tensor(1)?, inputs.tensor(2)?];
        let dtype = parts[0].dtype();
        if parts.iter().any(|part| part.dtype() != dtype || part.len() != 1) {
            return Err(Error::invalid(format!(
                "Range takes three scalars of one type: {parts:?}"
            )));
        }
        if matches!(dtype, DType::F16 | DType::BF16) {
            return half_range(ctx, parts);
        }
        let output = by_dtype!(dtype, [F32: f32, F64: f64, I64: i64, I32: i32, I16: i16], T => {
            let [start, limit, delta] = [
                parts[0].as_slice::<T>()?[0],
                parts[1].as_slice::<T>()?[0],
                parts[2].as_slice::<T>()?[0],
            ];
            let count = range_len(start as f64, limit as f64, delta as f64)?;
            let mut output = ctx.allocate(dtype, &[count])?;
            for (at, cell) in output.as_mut_slice::<T>()?.iter_mut().enumerate() {
                *cell = <T as Ramp>::at(start, delta, at);
            }
            Ok(output)
        })?;
        Ok(smallvec![output.into()])
    }
}

fn range_len(start: f64, limit: f64, delta: f64) -> Result<usize> {
    if delta == 0.0 {
        return Err(Error::invalid("a delta of 0 never ends"));
    }
    let steps = ((limit - start) / delta).ceil().max(0.0);
    if steps < (1u64 << 40) as f64 {
        return Ok(steps as usize);
    }
    Err(Error::limit(format!("a range of {steps} elements is too long")))
}

/// Half floats count as floats do, and are rounded at the end.
fn half_range(ctx: &OpContext<'_>, parts: [&Tensor; 3]) -> Result<Outputs> {
    let dtype = parts[0].dtype();
    let output = by_dtype!(dtype, [F16: mortise_types::f16, BF16: mortise_types::bf16], T => {
        let read = |part: &Tensor| Ok::<_, Error>(part.as_slice::<T>()?[0].to_f32());
        let (start, limit, delta) = (read(parts[0])?, read(parts[1])?, read(parts[2])?);
        let count = range_len(f64::from(start), f64::from(limit), f64::from(delta))?;
        let mut output = ctx.allocate(dtype, &[count])?;
        for (at, cell) in output.as_mut_slice::<T>()?.iter_mut().enumerate() {
            *cell = T::from_f32(start + at as f32 * delta);
        }
        Ok(output)
    })?;
    Ok(smallvec![output.into()])
}

trait Ramp {
    fn at(start: Self, delta: Self, index: usize) -> Self;
}

macro_rules! ramp {
    ($($ty:ty => $rule:expr),* $(,)?) => {
        $(impl Ramp for $ty {
            fn at(start: Self, delta: Self, index: usize) -> Self {
                $rule(start, delta, index as $ty)
            }
        })*
    };
}

ramp! {
    f32 => |start, delta, index| start + index * delta,
    f64 => |start, delta, index| start + index * delta,
    i64 => |start: i64, delta: i64, index| start.wrapping_add(delta.wrapping_mul(index)),
    i32 => |start: i32, delta: i32, index| start.wrapping_add(delta.wrapping_mul(index)),
    i16 => |start: i16, delta: i16, index| start.wrapping_add(delta.wrapping_mul(index)),
}

/// `off`, with `on` at the given place along an axis.
pub(super) struct OneHot(i64);

impl OneHot {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).int_or("axis", -1)?)))
    }
}

impl Operator for OneHot {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (indices, depth, values) = (inputs.tensor(0)?, inputs.tensor(1)?, inputs.tensor(2)?);
        let depth = match doubles(depth)?.as_ref() {
            [depth] if *depth >= 1.0 && *depth < (1u64 << 31) as f64 => *depth as usize,
            other => return Err(Error::invalid(format!("depth cannot be {other:?}"))),
        };
        let along = axis(self.0, indices.rank() + 1)?;
        let mut shape: Shape = indices.shape().into();
        shape.insert(along, depth);
        if values.len() != 2 {
            return Err(Error::invalid("values must be the off and the on value"));
        }
        let inner = element_count(&indices.shape()[along..])?;
        let mut output = ctx.allocate(values.dtype(), &shape)?;
        let wanted = doubles(indices)?;
        by_width!(values.dtype(), T => {
            let (off, on) = (cells::<T>(values)?[0], cells::<T>(values)?[1]);
            let cells = cells_mut::<T>(&mut output)?;
            cells.fill(off);
            for (at, &index) in wanted.iter().enumerate() {
                let index = if index < 0.0 { index + depth as f64 } else { index };
                if index >= 0.0 && (index as usize) < depth {
                    cells[(at / inner * depth + index as usize) * inner + at % inner] = on;
                }
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

/// The upper or lower triangle, zeros elsewhere.
pub(super) struct Trilu {
    upper: bool,
}

impl Trilu {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self { upper: Attributes(node).int_or("upper", 1)? != 0 }))
    }
}

impl Operator for Trilu {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let &[.., rows, columns] = input.shape() else {
            return Err(Error::invalid(format!("expected a matrix, got {:?}", input.shape())));
        };
        let diagonal = match inputs.optional(1)? {
            Some(tensor) => one_integer(tensor)?,
            None => 0,
        };
        let mut output = ctx.allocate(input.dtype(), input.shape())?;
        by_width!(input.dtype(), T => {
            let lines = cells_mut::<T>(&mut output)?.chunks_exact_mut(columns.max(1));
            for (at, (line, source)) in
                lines.zip(cells::<T>(input)?.chunks_exact(columns.max(1))).enumerate()
            {
                // The first column on or above the diagonal of this row, and
                // the one after it.
                let first = diagonal.saturating_add((at % rows) as i64);
                let split = if self.upper { first } else { first.saturating_add(1) };
                let split = split.clamp(0, columns as i64) as usize;
                line.fill(T::default());
                let kept = if self.upper { split..columns } else { 0..split };
                line[kept.clone()].copy_from_slice(&source[kept]);
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Ones on a diagonal.
pub(super) struct EyeLike {
    diagonal: i64,
    dtype: Option<DType>,
}

impl EyeLike {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let dtype = match attributes.int("dtype")? {
            None => None,
            Some(number) => Some(
                i32::try_from(number)
                    .ok()
                    .and_then(DType::from_onnx)
                    .ok_or_else(|| Error::unsupported(format!("dtype {number}")))?,
            ),
        };
        Ok(Box::new(Self { diagonal: attributes.int_or("k", 0)?, dtype }))
    }
}

impl Operator for EyeLike {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let &[rows, columns] = input.shape() else {
            return Err(Error::invalid(format!("expected a matrix, got {:?}", input.shape())));
        };
        let dtype = self.dtype.unwrap_or(input.dtype());
        let one = one_of(dtype)?;
        let mut output = ctx.allocate(dtype, &[rows, columns])?;
        by_width!(dtype, T => {
            let one = cells::<T>(&one)?[0];
            let cells = cells_mut::<T>(&mut output)?;
            cells.fill(T::default());
            for row in 0..rows {
                let column = self.diagonal.saturating_add(row as i64);
                if (0..columns as i64).contains(&column) {
                    cells[row * columns + column as usize] = one;
                }
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

fn one_of(dtype: DType) -> Result<Tensor> {
    if dtype == DType::Bool {
        return Tensor::from_bools(&[], vec![1]);
    }
    crate::cpu::ops::layout::by_number!(dtype, T => Ok(Tensor::scalar(1 as T)))
}
