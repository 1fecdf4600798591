//! Arithmetic on every element type, and the operations over it.

use mortise_types::{Element, bf16, f16};

/// What arithmetic operators need of an element. Integers wrap; an integer
/// divided by zero is zero, as in NumPy, since the alternative is a crash.
pub(crate) trait Number: Element {
    /// Whether models compute with it so much that each operation is worth loops
    /// of its own; others share loops that call the operation by its address.
    const HAS_OWN_LOOPS: bool = false;

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// Remainder with the sign of the dividend, as C's `fmod`.
    fn rem(self, other: Self) -> Self;
    /// Remainder with the sign of the divisor, as Python's `%`.
    fn modulo(self, other: Self) -> Self;
    fn pow(self, exponent: Self) -> Self;
    /// NaN when either is.
    fn max(self, other: Self) -> Self;
    /// NaN when either is.
    fn min(self, other: Self) -> Self;
    fn abs(self) -> Self;
    fn neg(self) -> Self;
    /// -1, 0 or 1; NaN stays.
    fn sign(self) -> Self;
    fn zero() -> Self;
    fn from_f64(value: f64) -> Self;
}

macro_rules! integers {
    ($($ty:ty, $abs:expr, $sign:expr;)*) => {$(
        impl Number for $ty {
            const HAS_OWN_LOOPS: bool = <$ty>::BITS >= 32 && <$ty>::MIN != 0;
            #[inline(always)]
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            #[inline(always)]
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn div(self, other: Self) -> Self {
                if other == 0 { 0 } else { self.wrapping_div(other) }
            }
            fn rem(self, other: Self) -> Self {
                if other == 0 { 0 } else { self.wrapping_rem(other) }
            }
            fn modulo(self, other: Self) -> Self {
                let rem = Number::rem(self, other);
                #[allow(unused_comparisons)]
                let opposite = (rem < 0) != (other < 0);
                if rem != 0 && opposite { rem.wrapping_add(other) } else { rem }
            }
            fn pow(self, exponent: Self) -> Self {
                match u32::try_from(exponent) {
                    Ok(exponent) => self.wrapping_pow(exponent),
                    Err(_) => (self as f64).powf(exponent as f64) as Self,
                }
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self { Ord::max(self, other) }
            #[inline(always)]
            fn min(self, other: Self) -> Self { Ord::min(self, other) }
            fn abs(self) -> Self { ($abs)(self) }
            fn neg(self) -> Self { self.wrapping_neg() }
            fn sign(self) -> Self { ($sign)(self) }
            fn zero() -> Self { 0 }
            fn from_f64(value: f64) -> Self { value as Self }
        }
    )*};
}

integers! {
    i8, i8::wrapping_abs, i8::signum; i16, i16::wrapping_abs, i16::signum;
    i32, i32::wrapping_abs, i32::signum; i64, i64::wrapping_abs, i64::signum;
    u8, |x| x, |x: u8| u8::from(x != 0); u16, |x| x, |x: u16| u16::from(x != 0);
    u32, |x| x, |x: u32| u32::from(x != 0); u64, |x| x, |x: u64| u64::from(x != 0);
}

macro_rules! floats {
    ($($ty:ty),*) => {$(
        impl Number for $ty {
            const HAS_OWN_LOOPS: bool = true;
            #[inline(always)]
            fn add(self, other: Self) -> Self { self + other }
            #[inline(always)]
            fn sub(self, other: Self) -> Self { self - other }
            #[inline(always)]
            fn mul(self, other: Self) -> Self { self * other }
            #[inline(always)]
            fn div(self, other: Self) -> Self { self / other }
            fn rem(self, other: Self) -> Self { self % other }
            fn modulo(self, other: Self) -> Self {
                let rem = self % other;
                if rem != 0.0 && (rem < 0.0) != (other < 0.0) { rem + other } else { rem }
            }
            fn pow(self, exponent: Self) -> Self { self.powf(exponent) }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                if self > other || self.is_nan() { self } else { other }
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                if self < other || self.is_nan() { self } else { other }
            }
            fn abs(self) -> Self { self.abs() }
            fn neg(self) -> Self { -self }
            fn sign(self) -> Self {
                if self > 0.0 { 1.0 } else if self < 0.0 { -1.0 } else { self }
            }
            fn zero() -> Self { 0.0 }
            fn from_f64(value: f64) -> Self { value as Self }
        }
    )*};
}

floats!(f32, f64);

/// Halves compute in f32 and round once.
macro_rules! halves {
    ($($ty:ty),*) => {$(
        impl Number for $ty {
            fn add(self, other: Self) -> Self { via::<$ty>(self, other, Number::add) }
            fn sub(self, other: Self) -> Self { via::<$ty>(self, other, Number::sub) }
            fn mul(self, other: Self) -> Self { via::<$ty>(self, other, Number::mul) }
            fn div(self, other: Self) -> Self { via::<$ty>(self, other, Number::div) }
            fn rem(self, other: Self) -> Self { via::<$ty>(self, other, Number::rem) }
            fn modulo(self, other: Self) -> Self { via::<$ty>(self, other, Number::modulo) }
            fn pow(self, other: Self) -> Self { via::<$ty>(self, other, Number::pow) }
            fn max(self, other: Self) -> Self { via::<$ty>(self, other, Number::max) }
            fn min(self, other: Self) -> Self { via::<$ty>(self, other, Number::min) }
            fn abs(self) -> Self { <$ty>::from_f32(self.to_f32().abs()) }
            fn neg(self) -> Self { -self }
            fn sign(self) -> Self { <$ty>::from_f32(Number::sign(self.to_f32())) }
            fn zero() -> Self { <$ty>::ZERO }
            fn from_f64(value: f64) -> Self { <$ty>::from_f64(value) }
        }
    )*};
}

halves!(f16, bf16);

trait Half: Copy {
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
}

impl Half for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Half for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

fn via<H: Half>(a: H, b: H, f: fn(f32, f32) -> f32) -> H {
    H::narrow(f(a.widen(), b.widen()))
}

/// An operation of two numbers of one type.
pub(crate) trait Arithmetic: Send + Sync + 'static {
    fn apply<T: Number>(a: T, b: T) -> T;
}

/// A relation between two elements.
pub(crate) trait Relation: Send + Sync + 'static {
    /// Whether strings and booleans may be compared.
    const EQUALITY: bool = false;
    fn holds<T: PartialOrd>(a: T, b: T) -> bool;
}

/// An operation on bits.
pub(crate) trait Bits: Send + Sync + 'static {
    fn apply(a: u64, b: u64) -> u64;
}

macro_rules! operations {
    ($($name:ident: $trait:ident, |$a:ident, $b:ident| $body:expr;)*) => {$(
        pub(crate) struct $name;
        operations!(@ $name $trait $a $b $body);
    )*};
    (@ $name:ident Arithmetic $a:ident $b:ident $body:expr) => {
        impl Arithmetic for $name {
            #[inline(always)]
            fn apply<T: Number>($a: T, $b: T) -> T { $body }
        }
    };
    (@ $name:ident Relation $a:ident $b:ident $body:expr) => {
        impl Relation for $name {
            #[inline(always)]
            fn holds<T: PartialOrd>($a: T, $b: T) -> bool { $body }
        }
    };
    (@ $name:ident Bits $a:ident $b:ident $body:expr) => {
        impl Bits for $name {
            #[inline(always)]
            fn apply($a: u64, $b: u64) -> u64 { $body }
        }
    };
}

operations! {
    Add: Arithmetic, |a, b| a.add(b);
    Sub: Arithmetic, |a, b| a.sub(b);
    Mul: Arithmetic, |a, b| a.mul(b);
    Div: Arithmetic, |a, b| a.div(b);
    Rem: Arithmetic, |a, b| a.rem(b);
    Modulo: Arithmetic, |a, b| a.modulo(b);
    Pow: Arithmetic, |a, b| a.pow(b);
    Max: Arithmetic, |a, b| a.max(b);
    Min: Arithmetic, |a, b| a.min(b);
    PRelu: Arithmetic, |a, b| if a < T::zero() { a.mul(b) } else { a };
    Greater: Relation, |a, b| a > b;
    GreaterEqual: Relation, |a, b| a >= b;
    Less: Relation, |a, b| a < b;
    LessEqual: Relation, |a, b| a <= b;
    BitAnd: Bits, |a, b| a & b;
    BitOr: Bits, |a, b| a | b;
    BitXor: Bits, |a, b| a ^ b;
}

pub(crate) struct Equal;

impl Relation for Equal {
    const EQUALITY: bool = true;
    #[inline(always)]
    fn holds<T: PartialOrd>(a: T, b: T) -> bool {
        a == b
    }
}

/// Runs `$body` with `$T` standing for the Rust type of a numeric `$dtype`.
macro_rules! by_numeric {
    ($dtype:expr, $what:expr, $T:ident => $body:expr) => {{
        use mortise_types::{DType, bf16, f16};
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            DType::I64 => {
                type $T = i64;
                $body
            }
            DType::I32 => {
                type $T = i32;
                $body
            }
            DType::I16 => {
                type $T = i16;
                $body
            }
            DType::I8 => {
                type $T = i8;
                $body
            }
            DType::U64 => {
                type $T = u64;
                $body
            }
            DType::U32 => {
                type $T = u32;
                $body
            }
            DType::U16 => {
                type $T = u16;
                $body
            }
            DType::U8 => {
                type $T = u8;
                $body
            }
            DType::F16 => {
                type $T = f16;
                $body
            }
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            other => Err(mortise_types::Error::unsupported(format!(
                "{} of {other} is not supported",
                $what
            ))),
        }
    }};
}
pub(crate) use by_numeric;
