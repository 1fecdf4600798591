//! Operators of two or more broadcast operands.

use super::cast::cast_tensor;
use super::number::{Add, Arithmetic, Bits, Modulo, Number, Pow, Relation, Rem, by_numeric};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::broadcast::{broadcast_shape, zip_assign, zip_into};
use crate::cpu::parallel::{in_parts, part_len};
use mortise_types::{DType, Error, NodeDef, Result, Tensor, Value};
use smallvec::smallvec;
use std::marker::PhantomData;

/// Two operands of one dtype to the same dtype.
struct Binary<A>(PhantomData<A>);

pub(crate) fn build<A: Arithmetic>(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Binary::<A>(PhantomData)))
}

impl<A: Arithmetic> Operator for Binary<A> {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.take(0)?, inputs.take(1)?);
        Ok(smallvec![arithmetic::<A>(ctx, a, b)?.into()])
    }
}

/// Computes in place when one operand has the output's shape and is unshared.
pub(crate) fn arithmetic<A: Arithmetic>(
    ctx: &OpContext<'_>,
    a: Tensor,
    b: Tensor,
) -> Result<Tensor> {
    same_dtype(&a, &b)?;
    by_numeric!(a.dtype(), "arithmetic", T => {
        if T::HAS_OWN_LOOPS {
            combined::<T>(ctx, a, b, A::apply::<T>)
        } else {
            combined::<T>(ctx, a, b, A::apply::<T> as fn(T, T) -> T)
        }
    })
}

fn combined<T: Number>(
    ctx: &OpContext<'_>,
    mut a: Tensor,
    mut b: Tensor,
    f: impl Fn(T, T) -> T + Copy + Sync,
) -> Result<Tensor> {
    let shape = broadcast_shape(&[a.shape(), b.shape()])?;
    if a.shape() == shape.as_slice()
        && let Ok(target) = a.as_mut_slice::<T>()
    {
        let other = b.as_slice::<T>()?;
        match part_len(target.len(), 1).filter(|_| b.shape() == shape.as_slice()) {
            Some(len) => in_parts(len, target, other, &|target, other| {
                target.iter_mut().zip(other).for_each(|(a, b)| *a = f(*a, *b));
            }),
            None => zip_assign((&shape, b.shape()), target, other, f),
        }
        return Ok(a);
    }
    if b.shape() == shape.as_slice()
        && let Ok(target) = b.as_mut_slice::<T>()
    {
        zip_assign((&shape, a.shape()), target, a.as_slice::<T>()?, |b, a| f(a, b));
        return Ok(b);
    }
    let mut output = ctx.allocate(T::DTYPE, &shape)?;
    let operands = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let target = output.as_mut_slice::<T>()?;
    zip_into((a.shape(), b.shape(), &shape), operands, target, f);
    Ok(output)
}

fn same_dtype(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dtype() == b.dtype() {
        return Ok(());
    }
    Err(Error::invalid(format!("operands are {} and {}; cast one of them", a.dtype(), b.dtype())))
}

/// Any number of operands, folded from the left.
struct Variadic<A> {
    mean: bool,
    operation: PhantomData<A>,
}

pub(crate) fn build_variadic<A: Arithmetic>(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Variadic::<A> { mean: false, operation: PhantomData }))
}

pub(crate) fn build_mean(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Variadic::<Add> { mean: true, operation: PhantomData }))
}

impl<A: Arithmetic> Operator for Variadic<A> {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let mut total = inputs.take(0)?;
        for index in 1..inputs.len() {
            total = arithmetic::<A>(ctx, total, inputs.take(index)?)?;
        }
        if self.mean {
            let divisor = Tensor::scalar(inputs.len() as f64);
            let divisor = cast_tensor(ctx, &divisor, total.dtype())?;
            total = arithmetic::<super::number::Div>(ctx, total, divisor)?;
        }
        Ok(smallvec![total.into()])
    }
}

pub(crate) fn build_mod(node: &NodeDef) -> Result<Box<dyn Operator>> {
    if Attributes(node).int_or("fmod", 0)? == 0 {
        build::<Modulo>(node)
    } else {
        build::<Rem>(node)
    }
}

/// Base and exponent may differ in dtype; the base's is the result's.
struct Power;

pub(crate) fn build_pow(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Power))
}

impl Operator for Power {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let (base, exponent) = (inputs.take(0)?, inputs.take(1)?);
        let dtype = base.dtype();
        if dtype == DType::F32 && exponent.len() == 1 && exponent.rank() <= base.rank() {
            let value = cast_tensor(ctx, &exponent, DType::F64)?.as_slice::<f64>()?[0];
            if let Some(output) = small_power(ctx, &base, value)? {
                return Ok(smallvec![output.into()]);
            }
        }
        let output = if dtype.is_int() && exponent.dtype().is_float() {
            let base = cast_tensor(ctx, &base, DType::F64)?;
            let exponent = cast_tensor(ctx, &exponent, DType::F64)?;
            cast_tensor(ctx, &arithmetic::<Pow>(ctx, base, exponent)?, dtype)?
        } else {
            let exponent = cast_tensor(ctx, &exponent, dtype)?;
            arithmetic::<Pow>(ctx, base, exponent)?
        };
        Ok(smallvec![output.into()])
    }
}

/// Squares, cubes and roots, which are most of the powers in models.
fn small_power(ctx: &OpContext<'_>, base: &Tensor, exponent: f64) -> Result<Option<Tensor>> {
    let power: fn(f32) -> f32 = match exponent {
        2.0 => |x| x * x,
        3.0 => |x| x * x * x,
        1.0 => |x| x,
        _ => return Ok(None),
    };
    let mut output = ctx.allocate(DType::F32, base.shape())?;
    let values = base.as_slice::<f32>()?;
    output.as_mut_slice::<f32>()?.iter_mut().zip(values).for_each(|(out, x)| *out = power(*x));
    Ok(Some(output))
}

/// Two operands of one dtype to a boolean.
struct Compare<R>(PhantomData<R>);

pub(crate) fn build_compare<R: Relation>(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Compare::<R>(PhantomData)))
}

impl<R: Relation> Operator for Compare<R> {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        same_dtype(a, b)?;
        let shape = broadcast_shape(&[a.shape(), b.shape()])?;
        let shapes = (a.shape(), b.shape(), shape.as_slice());
        let mut output = ctx.allocate(DType::Bool, &shape)?;
        let target = output.mut_bytes().ok_or_else(|| Error::internal("fresh memory is shared"))?;
        match a.dtype() {
            DType::String if R::EQUALITY => {
                let (a, b): (Vec<&[u8]>, Vec<&[u8]>) =
                    (a.strings()?.iter().collect(), b.strings()?.iter().collect());
                zip_into(shapes, (&a, &b), target, holds::<R, _>);
            }
            DType::Bool if R::EQUALITY => {
                let operands = (a.bool_bytes()?, b.bool_bytes()?);
                zip_into(shapes, operands, target, holds::<R, _>);
            }
            dtype => by_numeric!(dtype, "comparison", T => {
                let operands = (a.as_slice::<T>()?, b.as_slice::<T>()?);
                if T::HAS_OWN_LOOPS {
                    zip_into(shapes, operands, target, holds::<R, T>);
                } else {
                    zip_into(shapes, operands, target, holds::<R, T> as fn(T, T) -> u8);
                }
                Ok(())
            })?,
        }
        Ok(smallvec![output.into()])
    }
}

#[inline(always)]
fn holds<R: Relation, T: PartialOrd>(a: T, b: T) -> u8 {
    u8::from(R::holds(a, b))
}

/// Two booleans to a boolean.
struct Logic<B>(PhantomData<B>);

pub(crate) fn build_logic<B: Bits>(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Logic::<B>(PhantomData)))
}

impl<B: Bits> Operator for Logic<B> {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let operands = (a.bool_bytes()?, b.bool_bytes()?);
        let shape = broadcast_shape(&[a.shape(), b.shape()])?;
        let mut output = ctx.allocate(DType::Bool, &shape)?;
        let target = output.mut_bytes().ok_or_else(|| Error::internal("fresh memory is shared"))?;
        zip_into((a.shape(), b.shape(), &shape), operands, target, bits::<B>);
        Ok(smallvec![output.into()])
    }
}

fn bits<B: Bits>(a: u8, b: u8) -> u8 {
    B::apply(u64::from(a), u64::from(b)) as u8
}

/// Two integers of one dtype, bit by bit.
struct Bitwise<B>(PhantomData<B>);

pub(crate) fn build_bits<B: Bits>(_node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Bitwise::<B>(PhantomData)))
}

impl<B: Bits> Operator for Bitwise<B> {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        on_integers(ctx, &inputs, "a bitwise operator", B::apply)
    }
}

/// Shifts unsigned integers; a shift by the width or more gives zero.
struct Shift {
    left: bool,
}

pub(crate) fn build_shift(node: &NodeDef) -> Result<Box<dyn Operator>> {
    match Attributes(node).text("direction")? {
        Some("LEFT") => Ok(Box::new(Shift { left: true })),
        Some("RIGHT") => Ok(Box::new(Shift { left: false })),
        other => Err(Error::invalid(format!("BitShift: direction {other:?}; use LEFT or RIGHT"))),
    }
}

impl Operator for Shift {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        fn bits(by: u64) -> u32 {
            u32::try_from(by).unwrap_or(u32::MAX)
        }
        let shift: fn(u64, u64) -> u64 = match self.left {
            true => |a, by| a.checked_shl(bits(by)).unwrap_or(0),
            false => |a, by| a.checked_shr(bits(by)).unwrap_or(0),
        };
        on_integers(ctx, &inputs, "BitShift", shift)
    }
}

/// Sign bits are extended into and cut off again, which changes no low bit.
fn on_integers(
    ctx: &OpContext<'_>,
    inputs: &Inputs<'_>,
    what: &str,
    f: fn(u64, u64) -> u64,
) -> Result<Outputs> {
    let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
    same_dtype(a, b)?;
    let shape = broadcast_shape(&[a.shape(), b.shape()])?;
    let shapes = (a.shape(), b.shape(), shape.as_slice());
    let mut output = ctx.allocate(a.dtype(), &shape)?;
    macro_rules! by_integer {
        ($($dtype:ident => $ty:ty),*) => {
            match a.dtype() {
                $(DType::$dtype => {
                    let operands = (a.as_slice::<$ty>()?, b.as_slice::<$ty>()?);
                    let target = output.as_mut_slice::<$ty>()?;
                    zip_into(shapes, operands, target, |a, b| f(a as u64, b as u64) as $ty);
                })*
                other => return Err(Error::unsupported(format!("{what} of {other}"))),
            }
        };
    }
    by_integer!(U8 => u8, U16 => u16, U32 => u32, U64 => u64, I8 => i8, I16 => i16, I32 => i32, I64 => i64);
    Ok(smallvec![Value::Tensor(output)])
}
