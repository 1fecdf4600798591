//! Conversion between element types.

use super::narrow::{Codec, pack, unpack};
use super::number::by_numeric;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::StringsOut;
use mortise_types::{DType, Element, Error, NodeDef, Result, Tensor, bf16, f16};
use smallvec::smallvec;

/// To the dtype of the attribute, or to that of a second input.
struct Cast {
    to: Option<DType>,
    /// Whether 8-bit floats saturate instead of overflowing.
    saturate: bool,
}

pub(crate) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let number = Attributes(node).int("to")?;
    let to = number.and_then(|to| DType::from_onnx(i32::try_from(to).ok()?));
    let to = to.ok_or_else(|| Error::invalid(format!("Cast: to = {number:?} is no dtype")))?;
    Ok(Box::new(Cast { to: Some(to), saturate: saturates(node)? }))
}

pub(crate) fn build_like(node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Cast { to: None, saturate: saturates(node)? }))
}

fn saturates(node: &NodeDef) -> Result<bool> {
    match Attributes(node).text("round_mode")? {
        None | Some("up") => Ok(Attributes(node).int_or("saturate", 1)? != 0),
        Some(other) => {
            Err(Error::unsupported(format!("{}: round_mode \"{other}\"", node.describe())))
        }
    }
}

impl Operator for Cast {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let to = self.to.map_or_else(|| inputs.tensor(1).map(Tensor::dtype), Ok)?;
        let tensor = inputs.take(0)?;
        if tensor.dtype() == to {
            return Ok(smallvec![tensor.into()]);
        }
        if let (false, Some(codec)) = (self.saturate, Codec::of(to)) {
            return Ok(smallvec![narrowed(ctx, &tensor, to, codec, false)?.into()]);
        }
        Ok(smallvec![cast_tensor(ctx, &tensor, to)?.into()])
    }
}

/// `tensor` as `to`: floats are truncated towards zero and saturate, any
/// number but zero is true.
///
/// # Errors
/// `InvalidInput` for text that is no number, `Unsupported` for dtypes that
/// are only stored.
pub(crate) fn cast_tensor(ctx: &OpContext<'_>, tensor: &Tensor, to: DType) -> Result<Tensor> {
    if tensor.dtype() != to {
        if let Some(codec) = Codec::of(tensor.dtype()) {
            return cast_tensor(ctx, &widened(ctx, tensor, codec)?, to);
        }
        if let Some(codec) = Codec::of(to) {
            return narrowed(ctx, tensor, to, codec, true);
        }
    }
    match (tensor.dtype(), to) {
        (from, to) if from == to => Ok(tensor.clone()),
        (DType::String, to) => parse_tensor(ctx, tensor, to),
        (DType::Bool, DType::String) => {
            let text = |flag: &u8| if *flag == 0 { "0" } else { "1" }.to_owned();
            format_tensor(tensor.shape(), tensor.bool_bytes()?.iter().map(text))
        }
        (from, DType::String) => by_numeric!(from, "Cast", T => {
            let values = tensor.as_slice::<T>()?;
            format_tensor(tensor.shape(), values.iter().map(|value| value.text()))
        }),
        (DType::Bool, to) => convert(ctx, tensor.shape(), tensor.bool_bytes()?, to),
        (from, to) => by_numeric!(from, "Cast", T => {
            convert(ctx, tensor.shape(), tensor.as_slice::<T>()?, to)
        }),
    }
}

/// A narrow tensor in f32, which holds all of its numbers exactly.
fn widened(ctx: &OpContext<'_>, tensor: &Tensor, codec: Codec) -> Result<Tensor> {
    let mut output = ctx.allocate(DType::F32, tensor.shape())?;
    let target = output.as_mut_slice::<f32>()?;
    let codes = unpack(tensor.bytes().unwrap_or_default(), tensor.dtype().bits(), target.len());
    target.iter_mut().zip(codes).for_each(|(out, code)| *out = codec.decode(code) as f32);
    Ok(output)
}

fn narrowed(
    ctx: &OpContext<'_>,
    tensor: &Tensor,
    to: DType,
    codec: Codec,
    saturate: bool,
) -> Result<Tensor> {
    let wide = cast_tensor(ctx, tensor, DType::F64)?;
    let mut output = ctx.allocate(to, tensor.shape())?;
    let codes = wide.as_slice::<f64>()?.iter().map(|value| codec.encode(*value, saturate));
    pack(codes, to.bits(), output.mut_bytes().unwrap_or_default());
    Ok(output)
}

fn convert<A: Scalar>(
    ctx: &OpContext<'_>,
    shape: &[usize],
    values: &[A],
    to: DType,
) -> Result<Tensor> {
    let mut output = ctx.allocate(to, shape)?;
    if to == DType::Bool {
        let flags = output.mut_bytes().into_iter().flatten();
        flags.zip(values).for_each(|(flag, value)| *flag = u8::from(!value.is_zero()));
        return Ok(output);
    }
    by_numeric!(to, "Cast", B => {
        let target = output.as_mut_slice::<B>()?;
        target.iter_mut().zip(values).for_each(|(out, value)| *out = B::from_scalar(*value));
        Ok(())
    })?;
    Ok(output)
}

/// A numeric element that converts to every other. Integers go through i64 or
/// u64 and floats through f64, so that nothing is rounded twice.
pub(crate) trait Scalar: Element {
    fn wide(self) -> Wide;
    fn from_wide(wide: Wide) -> Self;
    fn text(self) -> String;

    fn is_zero(self) -> bool {
        match self.wide() {
            Wide::Signed(value) => value == 0,
            Wide::Unsigned(value) => value == 0,
            Wide::Float(value) => value == 0.0,
        }
    }

    #[inline(always)]
    fn from_scalar<A: Scalar>(value: A) -> Self {
        Self::from_wide(value.wide())
    }
}

pub(crate) enum Wide {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

macro_rules! scalars {
    ($($ty:ty => $variant:ident, $wide:ty;)*) => {$(
        impl Scalar for $ty {
            #[inline(always)]
            fn wide(self) -> Wide { Wide::$variant(self as $wide) }
            #[inline(always)]
            fn from_wide(wide: Wide) -> Self {
                match wide {
                    Wide::Signed(value) => value as Self,
                    Wide::Unsigned(value) => value as Self,
                    Wide::Float(value) => value as Self,
                }
            }
            fn text(self) -> String { self.wide().text() }
        }
    )*};
}

scalars! {
    i8 => Signed, i64; i16 => Signed, i64; i32 => Signed, i64; i64 => Signed, i64;
    u8 => Unsigned, u64; u16 => Unsigned, u64; u32 => Unsigned, u64; u64 => Unsigned, u64;
    f32 => Float, f64; f64 => Float, f64;
}

macro_rules! half_scalars {
    ($($ty:ty),*) => {$(
        impl Scalar for $ty {
            #[inline(always)]
            fn wide(self) -> Wide { Wide::Float(self.to_f64()) }
            fn from_wide(wide: Wide) -> Self {
                match wide {
                    Wide::Signed(value) => Self::from_f64(value as f64),
                    Wide::Unsigned(value) => Self::from_f64(value as f64),
                    Wide::Float(value) => Self::from_f64(value),
                }
            }
            fn text(self) -> String { self.wide().text() }
        }
    )*};
}

half_scalars!(f16, bf16);

impl Wide {
    fn text(self) -> String {
        match self {
            Self::Signed(value) => value.to_string(),
            Self::Unsigned(value) => value.to_string(),
            Self::Float(value) => general(value),
        }
    }
}

/// C's `%.8g`, which is how the reference runtime writes floats.
fn general(value: f64) -> String {
    const DIGITS: i32 = 8;
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "INF" } else { "-INF" }.to_owned();
    }
    let scientific = format!("{value:.*e}", DIGITS as usize - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..DIGITS).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim_zeros(mantissa), exponent.abs());
    }
    let decimals = (DIGITS - 1 - exponent).max(0) as usize;
    trim_zeros(&format!("{value:.decimals$}")).to_owned()
}

fn trim_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

fn format_tensor(shape: &[usize], texts: impl ExactSizeIterator<Item = String>) -> Result<Tensor> {
    let mut strings = StringsOut::new(texts.len())?;
    for text in texts {
        strings.push(text.as_bytes())?;
    }
    strings.finish(shape)
}

fn parse_tensor(ctx: &OpContext<'_>, tensor: &Tensor, to: DType) -> Result<Tensor> {
    let mut values = Vec::with_capacity(tensor.len());
    for item in tensor.strings()?.iter() {
        values.push(parse(item).ok_or_else(|| {
            let text = String::from_utf8_lossy(item);
            Error::invalid(format!("\"{text}\" is not a number"))
        })?);
    }
    let mut output = ctx.allocate(to, tensor.shape())?;
    if to == DType::Bool {
        let flags = output.mut_bytes().into_iter().flatten();
        flags.zip(values).for_each(|(flag, value)| *flag = u8::from(f64::from_wide(value) != 0.0));
        return Ok(output);
    }
    by_numeric!(to, "Cast", T => {
        let target = output.as_mut_slice::<T>()?;
        target.iter_mut().zip(values).for_each(|(out, value)| *out = T::from_wide(value));
        Ok(())
    })?;
    Ok(output)
}

/// Integers exactly, then decimal and scientific notation, infinities and NaN.
fn parse(item: &[u8]) -> Option<Wide> {
    let text = std::str::from_utf8(item).ok()?.trim();
    if let Ok(value) = text.parse::<i64>() {
        return Some(Wide::Signed(value));
    }
    if let Ok(value) = text.parse::<u64>() {
        return Some(Wide::Unsigned(value));
    }
    text.parse::<f64>().ok().map(Wide::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_c_writes_them() {
        let cases = [
            (3.25, "3.25"),
            (1.0, "1"),
            (1e-5, "1e-05"),
            (123_456_789.0, "1.2345679e+08"),
            (0.1, "0.1"),
            (-0.0, "-0"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-INF"),
            (1e20, "1e+20"),
        ];
        for (value, want) in cases {
            assert_eq!(general(value), want);
        }
    }

    #[test]
    fn text_is_parsed_exactly() {
        let number = |text: &str| parse(text.as_bytes()).map(f64::from_wide);
        assert_eq!(number("3.5e2"), Some(350.0));
        assert_eq!(number("-INF"), Some(f64::NEG_INFINITY));
        assert_eq!(number("12ab"), None);
        assert_eq!(
            parse(b"9223372036854775807").map(i64::from_wide),
            Some(i64::MAX),
            "no detour through f64"
        );
    }
}
