//! Operators of one operand.

use super::number::{Number, by_numeric};
use super::select::writable;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::parallel::part_len;
use mortise_types::{DType, Error, NodeDef, Result, Tensor, bf16, f16};
use rayon::prelude::*;
use rten_simd::SimdUnaryOp;
use smallvec::smallvec;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// A function of one float. f32 is computed by vector code where there is
/// some and in f32 or f64 otherwise; halves go through f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Acos,
    Acosh,
    Asin,
    Asinh,
    Atan,
    Atanh,
    Ceil,
    Celu { alpha: f32 },
    Cos,
    Cosh,
    Elu { alpha: f32 },
    Erf,
    Exp,
    Floor,
    Gelu,
    GeluTanh,
    HardSigmoid { alpha: f32, beta: f32 },
    LeakyRelu { alpha: f32 },
    Log,
    Mish,
    Reciprocal,
    Relu,
    Round,
    Selu { alpha: f32, gamma: f32 },
    Shrink { bias: f32, lambd: f32 },
    Sigmoid,
    Sin,
    Sinh,
    Softplus,
    Softsign,
    Sqrt,
    HardSwish,
    Swish { alpha: f32 },
    Tan,
    Tanh,
    ThresholdedRelu { alpha: f32 },
}

impl Activation {
    /// # Errors
    /// `Unsupported` when `op` is no activation; `InvalidInput` for attributes
    /// of another type.
    pub(crate) fn parse(op: &str, attributes: &Attributes<'_>) -> Result<Self> {
        let float = |name: &str, default: f32| attributes.float_or(name, default);
        Ok(match op {
            "Acos" => Self::Acos,
            "Acosh" => Self::Acosh,
            "Asin" => Self::Asin,
            "Asinh" => Self::Asinh,
            "Atan" => Self::Atan,
            "Atanh" => Self::Atanh,
            "Ceil" => Self::Ceil,
            "Celu" => Self::Celu { alpha: float("alpha", 1.0)? },
            "Cos" => Self::Cos,
            "Cosh" => Self::Cosh,
            "Elu" => Self::Elu { alpha: float("alpha", 1.0)? },
            "Erf" => Self::Erf,
            "Exp" => Self::Exp,
            "Floor" => Self::Floor,
            "Gelu" => match attributes.text("approximate")? {
                None | Some("none") => Self::Gelu,
                Some("tanh") => Self::GeluTanh,
                Some(other) => {
                    return Err(Error::unsupported(format!("Gelu: approximate = {other}")));
                }
            },
            "HardSigmoid" => {
                Self::HardSigmoid { alpha: float("alpha", 0.2)?, beta: float("beta", 0.5)? }
            }
            "HardSwish" => Self::HardSwish,
            "LeakyRelu" => Self::LeakyRelu { alpha: float("alpha", 0.01)? },
            "Log" => Self::Log,
            "Mish" => Self::Mish,
            "QuickGelu" => Self::Swish { alpha: float("alpha", 1.702)? },
            "Reciprocal" => Self::Reciprocal,
            "Relu" => Self::Relu,
            "Round" => Self::Round,
            "Selu" => Self::Selu {
                alpha: float("alpha", 1.673_263_2)?,
                gamma: float("gamma", 1.050_701)?,
            },
            "Shrink" => Self::Shrink { bias: float("bias", 0.0)?, lambd: float("lambd", 0.5)? },
            "Sigmoid" => Self::Sigmoid,
            "Sin" => Self::Sin,
            "Sinh" => Self::Sinh,
            "Softplus" => Self::Softplus,
            "Softsign" => Self::Softsign,
            "Sqrt" => Self::Sqrt,
            "Swish" => Self::Swish { alpha: float("alpha", 1.0)? },
            "Tan" => Self::Tan,
            "Tanh" => Self::Tanh,
            "ThresholdedRelu" => Self::ThresholdedRelu { alpha: float("alpha", 1.0)? },
            other => return Err(Error::unsupported(format!("activation {other}"))),
        })
    }

    /// Over a slice, with vector code where there is some.
    pub(crate) fn map_f32(self, values: &mut [f32]) {
        match self {
            Self::Relu => each(values, |x| if x < 0.0 { 0.0 } else { x }),
            Self::LeakyRelu { alpha } => each(values, |x| if x < 0.0 { alpha * x } else { x }),
            Self::Sqrt => each(values, f32::sqrt),
            Self::Reciprocal => each(values, |x| 1.0 / x),
            Self::HardSigmoid { alpha, beta } => {
                each(values, |x| clamp(alpha.mul_add(x, beta), 0.0, 1.0));
            }
            Self::Exp => rten_vecmath::Exp {}.map_mut(values),
            Self::Erf => rten_vecmath::Erf {}.map_mut(values),
            Self::Sigmoid => rten_vecmath::Sigmoid {}.map_mut(values),
            Self::Tanh => rten_vecmath::Tanh {}.map_mut(values),
            Self::Gelu => rten_vecmath::Gelu {}.map_mut(values),
            Self::Swish { alpha } => rten_vecmath::Swish { alpha }.map_mut(values),
            other => each(values, |x| other.scalar(f64::from(x)) as f32),
        }
    }

    /// The definition, in f64.
    pub(crate) fn scalar(self, x: f64) -> f64 {
        match self {
            Self::Acos => x.acos(),
            Self::Acosh => x.acosh(),
            Self::Asin => x.asin(),
            Self::Asinh => x.asinh(),
            Self::Atan => x.atan(),
            Self::Atanh => x.atanh(),
            Self::Ceil => x.ceil(),
            Self::Cos => x.cos(),
            Self::Cosh => x.cosh(),
            Self::Floor => x.floor(),
            Self::Log => x.ln(),
            Self::Round => x.round_ties_even(),
            Self::Sin => x.sin(),
            Self::Sinh => x.sinh(),
            Self::Tan => x.tan(),
            Self::Sqrt => x.sqrt(),
            Self::Reciprocal => x.recip(),
            other => other.scalar_activation(x),
        }
    }

    fn scalar_activation(self, x: f64) -> f64 {
        let wide = f64::from;
        match self {
            Self::Celu { alpha } => {
                positive(x) + negative(wide(alpha) * (x / wide(alpha)).exp_m1())
            }
            Self::Elu { alpha } => {
                if x < 0.0 {
                    wide(alpha) * x.exp_m1()
                } else {
                    x
                }
            }
            Self::Erf => erf(x),
            Self::Exp => x.exp(),
            Self::Gelu => 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2)),
            Self::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Self::HardSigmoid { alpha, beta } => clamp(wide(alpha) * x + wide(beta), 0.0, 1.0),
            Self::HardSwish => x * clamp(x / 6.0 + 0.5, 0.0, 1.0),
            Self::LeakyRelu { alpha } => {
                if x < 0.0 {
                    wide(alpha) * x
                } else {
                    x
                }
            }
            Self::Mish => x * softplus(x).tanh(),
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Selu { alpha, gamma } => {
                wide(gamma) * if x > 0.0 { x } else { wide(alpha) * x.exp_m1() }
            }
            Self::Shrink { bias, lambd } => {
                if x < -wide(lambd) {
                    x + wide(bias)
                } else if x > wide(lambd) {
                    x - wide(bias)
                } else {
                    0.0
                }
            }
            Self::Sigmoid => sigmoid(x),
            Self::Softplus => softplus(x),
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Swish { alpha } => x * sigmoid(wide(alpha) * x),
            Self::Tanh => x.tanh(),
            Self::ThresholdedRelu { alpha } => {
                if x > wide(alpha) {
                    x
                } else {
                    0.0
                }
            }
            _ => x,
        }
    }
}

fn each(values: &mut [f32], f: impl Fn(f32) -> f32) {
    values.iter_mut().for_each(|value| *value = f(*value));
}

/// NaN stays.
fn clamp<T: PartialOrd>(x: T, low: T, high: T) -> T {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// `max(x, 0)`; NaN stays.
fn positive(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// `min(x, 0)`; NaN stays.
fn negative(x: f64) -> f64 {
    if x > 0.0 { 0.0 } else { x }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + e^x)` without overflow for large `x`.
fn softplus(x: f64) -> f64 {
    positive(x) + (-x.abs()).exp().ln_1p()
}

/// The error function in f64: its Maclaurin series near zero, and elsewhere
/// Lentz's continued fraction of `erfc`; about 1e-15.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x == 0.0 {
        return x;
    }
    let size = x.abs();
    let value = if size < 2.5 { erf_series(size) } else { 1.0 - erfc_fraction(size) };
    value.copysign(x)
}

fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        let part = term / (2.0 * n + 1.0);
        sum += part;
        if part.abs() < 1e-17 * sum.abs() {
            break;
        }
    }
    sum * 2.0 / PI.sqrt()
}

fn erfc_fraction(x: f64) -> f64 {
    if x > 27.0 {
        return 0.0;
    }
    let fraction = (1..=60).rev().fold(x, |tail, k| x + f64::from(k) / 2.0 / tail);
    (-x * x).exp() / PI.sqrt() / fraction
}

struct Unary(Activation);

pub(crate) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Unary(Activation::parse(&node.op, &Attributes(node))?)))
}

impl Operator for Unary {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let mut output = writable(ctx, inputs.take(0)?)?;
        activate(self.0, &mut output)?;
        Ok(smallvec![output.into()])
    }
}

/// Applies a function to an unshared float tensor.
///
/// # Errors
/// `Unsupported` for other dtypes.
pub(crate) fn activate(function: Activation, tensor: &mut Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 => {
            let values = tensor.as_mut_slice::<f32>()?;
            match part_len(values.len(), 1) {
                Some(len) => values.par_chunks_mut(len).for_each(|part| function.map_f32(part)),
                None => function.map_f32(values),
            }
        }
        DType::F64 => {
            let values = tensor.as_mut_slice::<f64>()?;
            values.iter_mut().for_each(|value| *value = function.scalar(*value));
        }
        DType::F16 => {
            let values = tensor.as_mut_slice::<f16>()?;
            values.iter_mut().for_each(|x| *x = f16::from_f64(function.scalar(x.to_f64())));
        }
        DType::BF16 => {
            let values = tensor.as_mut_slice::<bf16>()?;
            values.iter_mut().for_each(|x| *x = bf16::from_f64(function.scalar(x.to_f64())));
        }
        other => return Err(Error::unsupported(format!("{function:?} of {other}"))),
    }
    Ok(())
}

/// Functions that integers have too.
#[derive(Clone, Copy)]
enum Signed {
    Abs,
    Neg,
    Sign,
    Relu,
}

pub(crate) fn build_signed(node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(match &*node.op {
        "Abs" => Signed::Abs,
        "Neg" => Signed::Neg,
        "Sign" => Signed::Sign,
        _ => Signed::Relu,
    }))
}

impl Operator for Signed {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let mut output = writable(ctx, inputs.take(0)?)?;
        by_numeric!(output.dtype(), "this operator", T => {
            self.apply(output.as_mut_slice::<T>()?);
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

impl Signed {
    fn apply<T: Number>(self, values: &mut [T]) {
        let map = |values: &mut [T], f: fn(T) -> T| values.iter_mut().for_each(|x| *x = f(*x));
        match self {
            Self::Abs => map(values, T::abs),
            Self::Neg => map(values, T::neg),
            Self::Sign => map(values, T::sign),
            Self::Relu => {
                for value in values {
                    *value = if *value < T::zero() { T::zero() } else { *value };
                }
            }
        }
    }
}

/// `Not` of booleans, `BitwiseNot` of integers.
struct Not {
    boolean: bool,
}

pub(crate) fn build_not(node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Not { boolean: &*node.op == "Not" }))
}

impl Operator for Not {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let mut output = writable(ctx, inputs.take(0)?)?;
        let dtype = output.dtype();
        if (dtype == DType::Bool) != self.boolean || !(dtype.is_int() || dtype == DType::Bool) {
            return Err(Error::unsupported(format!("this operator of {dtype}")));
        }
        let flip = if self.boolean { 1 } else { 0xff };
        output.mut_bytes().into_iter().flatten().for_each(|byte| *byte ^= flip);
        Ok(smallvec![output.into()])
    }
}

/// `IsNaN` and `IsInf`: floats to booleans.
struct Predicate {
    nan: bool,
    positive: bool,
    negative: bool,
}

pub(crate) fn build_predicate(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let attributes = Attributes(node);
    let nan = &*node.op == "IsNaN";
    Ok(Box::new(Predicate {
        nan,
        positive: !nan && attributes.int_or("detect_positive", 1)? != 0,
        negative: !nan && attributes.int_or("detect_negative", 1)? != 0,
    }))
}

impl Predicate {
    fn holds(&self, x: f64) -> bool {
        (self.nan && x.is_nan())
            || (self.positive && x == f64::INFINITY)
            || (self.negative && x == f64::NEG_INFINITY)
    }
}

impl Operator for Predicate {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let mut output = ctx.allocate(DType::Bool, input.shape())?;
        let mut flags = output.mut_bytes().into_iter().flatten();
        let mut set = |x: f64| {
            if let Some(flag) = flags.next() {
                *flag = u8::from(self.holds(x));
            }
        };
        match input.dtype() {
            DType::F32 => input.as_slice::<f32>()?.iter().for_each(|x| set(f64::from(*x))),
            DType::F64 => input.as_slice::<f64>()?.iter().for_each(|x| set(*x)),
            DType::F16 => input.as_slice::<f16>()?.iter().for_each(|x| set(x.to_f64())),
            DType::BF16 => input.as_slice::<bf16>()?.iter().for_each(|x| set(x.to_f64())),
            other => return Err(Error::unsupported(format!("this operator of {other}"))),
        }
        Ok(smallvec![output.into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from tables and from mpmath.
    const CASES: &[(Activation, f64, f64)] = &[
        (Activation::Erf, 0.5, 0.520_499_877_813_046_5),
        (Activation::Erf, -2.0, -0.995_322_265_018_952_7),
        (Activation::Erf, 3.0, 0.999_977_909_503_001_4),
        (Activation::Erf, f64::INFINITY, 1.0),
        (Activation::Gelu, 1.0, 0.841_344_746_068_542_9),
        (Activation::Softplus, 1000.0, 1000.0),
        (Activation::Softplus, -1000.0, 0.0),
        (Activation::Sigmoid, -1000.0, 0.0),
        (Activation::Round, 2.5, 2.0),
        (Activation::Round, -3.5, -4.0),
        (Activation::Celu { alpha: 2.0 }, -1.0, -0.786_938_680_574_733_2),
        (Activation::HardSwish, 1.0, 0.666_666_666_666_666_6),
        (Activation::Shrink { bias: 1.0, lambd: 1.5 }, 2.0, 1.0),
        (Activation::Relu, f64::NEG_INFINITY, 0.0),
    ];

    #[test]
    fn known_values() {
        for (function, x, want) in CASES {
            let got = function.scalar(*x);
            assert!((got - want).abs() < 1e-14, "{function:?}({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn vector_code_agrees_with_the_definition() {
        let functions = [
            Activation::Relu,
            Activation::LeakyRelu { alpha: 0.1 },
            Activation::Sqrt,
            Activation::Reciprocal,
            Activation::Exp,
            Activation::Erf,
            Activation::Sigmoid,
            Activation::Tanh,
            Activation::Gelu,
            Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
            Activation::Swish { alpha: 1.0 },
        ];
        let inputs: Vec<f32> =
            (-400..=400).map(|i| i as f32 * 0.1).chain([f32::NAN, 0.0, -0.0]).collect();
        for function in functions {
            let mut got = inputs.clone();
            function.map_f32(&mut got);
            for (x, got) in inputs.iter().zip(got) {
                let want = function.scalar(f64::from(*x)) as f32;
                let close = (got - want).abs() <= 2e-6 * want.abs().max(0.5);
                assert!(
                    close || got == want || (got.is_nan() && want.is_nan()),
                    "{function:?}({x}) = {got}, not {want}"
                );
            }
        }
    }
}
