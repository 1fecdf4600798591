/// A number as it stands in the JSON text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number<'a> {
    Decimal(Decimal<'a>),
    /// `NaN`, `Infinity` or `-Infinity`.
    Special(f64),
}

/// `±mantissa × 10^exponent`, and its text for when that is not exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Decimal<'a> {
    pub(crate) text: &'a str,
    negative: bool,
    /// All digits, when they fit.
    mantissa: Option<u64>,
    exponent: i32,
    /// Written without a fraction and without an exponent.
    whole: bool,
}

/// Why a number is not an element of the wanted type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    NotWhole,
    OutOfRange,
}

/// Reads the number at the start of `bytes`, and how many bytes it takes;
/// `None` when there is none.
pub(crate) fn scan(bytes: &[u8]) -> Option<(Number<'_>, usize)> {
    if let Some(special) = scan_special(bytes) {
        return Some(special);
    }
    let mut scan = Scan { bytes, at: 0, mantissa: Some(0) };
    let negative = scan.take(b'-');
    let leading_zero = scan.byte() == Some(b'0');
    let digits = scan.digits();
    if digits == 0 || (leading_zero && digits > 1) {
        return None;
    }
    let mut fraction_digits = 0;
    let has_fraction = scan.take(b'.');
    if has_fraction {
        fraction_digits = scan.digits();
        if fraction_digits == 0 {
            return None;
        }
    }
    let has_exponent = scan.take(b'e') || scan.take(b'E');
    let exponent = if has_exponent { scan.exponent()? } else { 0 };
    let decimal = Decimal {
        text: std::str::from_utf8(bytes.get(..scan.at)?).ok()?,
        negative,
        mantissa: scan.mantissa,
        exponent: exponent.saturating_sub(i32::try_from(fraction_digits).unwrap_or(i32::MAX)),
        whole: !has_fraction && !has_exponent,
    };
    Some((Number::Decimal(decimal), scan.at))
}

/// The tokens that Python's `json` writes for what JSON has no number for.
#[inline]
fn scan_special(bytes: &[u8]) -> Option<(Number<'_>, usize)> {
    let (word, value) = match bytes {
        [b'N', ..] => ("NaN", f64::NAN),
        [b'I', ..] => ("Infinity", f64::INFINITY),
        [b'-', b'I', ..] => ("-Infinity", f64::NEG_INFINITY),
        _ => return None,
    };
    bytes.starts_with(word.as_bytes()).then_some((Number::Special(value), word.len()))
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    mantissa: Option<u64>,
}

impl Scan<'_> {
    #[inline]
    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let found = self.byte() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Reads digits into the mantissa; returns how many.
    #[inline]
    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            let digit = u64::from(digit - b'0');
            self.mantissa =
                self.mantissa.and_then(|value| value.checked_mul(10)?.checked_add(digit));
            self.at += 1;
        }
        self.at - start
    }

    fn exponent(&mut self) -> Option<i32> {
        let negative = self.take(b'-');
        if !negative {
            self.take(b'+');
        }
        let start = self.at;
        let mut value = 0i32;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            value = value.saturating_mul(10).saturating_add(i32::from(digit - b'0'));
            self.at += 1;
        }
        (self.at > start).then_some(if negative { -value } else { value })
    }
}

/// Powers of ten that an f64 holds exactly.
const POWERS_F64: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];
/// Powers of ten that an f32 holds exactly.
const POWERS_F32: [f32; 11] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10];

/// Exact operands and one rounding give the correctly rounded value (Clinger,
/// "How to read floating point numbers accurately", 1990); all other numbers
/// go to the standard library's parser, which is correct for every text.
macro_rules! to_float {
    ($name:ident, $ty:ty, $powers:ident, $mantissa_bits:literal) => {
        #[inline]
        fn $name(&self) -> Result<$ty, Misfit> {
            let power = $powers.get(self.exponent.unsigned_abs() as usize);
            let mantissa = self.mantissa.filter(|&mantissa| mantissa <= 1 << $mantissa_bits);
            if let (Some(mantissa), Some(power)) = (mantissa, power) {
                let mantissa = mantissa as $ty;
                let value = if self.exponent < 0 { mantissa / power } else { mantissa * power };
                return Ok(if self.negative { -value } else { value });
            }
            match self.text.parse::<$ty>() {
                Ok(value) if value.is_finite() => Ok(value),
                _ => Err(Misfit::OutOfRange),
            }
        }
    };
}

impl Decimal<'_> {
    to_float!(f32, f32, POWERS_F32, 24);
    to_float!(f64, f64, POWERS_F64, 53);

    #[inline]
    fn integer(&self) -> Result<i128, Misfit> {
        if !self.whole {
            return Err(Misfit::NotWhole);
        }
        let magnitude = i128::from(self.mantissa.ok_or(Misfit::OutOfRange)?);
        Ok(if self.negative { -magnitude } else { magnitude })
    }
}

/// An element type that JSON numbers can be read as.
pub(crate) trait FromNumber: Sized {
    fn from_number(number: Number<'_>) -> Result<Self, Misfit>;
}

macro_rules! from_integer {
    ($($ty:ty),*) => {$(
        impl FromNumber for $ty {
            #[inline]
            fn from_number(number: Number<'_>) -> Result<Self, Misfit> {
                match number {
                    Number::Decimal(decimal) => {
                        Self::try_from(decimal.integer()?).map_err(|_| Misfit::OutOfRange)
                    }
                    Number::Special(_) => Err(Misfit::NotWhole),
                }
            }
        }
    )*};
}

from_integer!(u8, u16, u32, u64, i8, i16, i32, i64);

impl FromNumber for f32 {
    #[inline]
    fn from_number(number: Number<'_>) -> Result<Self, Misfit> {
        match number {
            Number::Decimal(decimal) => decimal.f32(),
            Number::Special(value) => Ok(value as f32),
        }
    }
}

impl FromNumber for f64 {
    #[inline]
    fn from_number(number: Number<'_>) -> Result<Self, Misfit> {
        match number {
            Number::Decimal(decimal) => decimal.f64(),
            Number::Special(value) => Ok(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: FromNumber>(text: &str) -> Result<T, Misfit> {
        let (number, length) = scan(text.as_bytes()).unwrap();
        assert_eq!(length, text.len());
        T::from_number(number)
    }

    #[test]
    fn floats_are_correctly_rounded() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..200_000 {
            let digits = random.u64(..) >> random.u32(0..64);
            let point = random.usize(0..6);
            let text = format!("{digits}.{:0point$}1e{}", 0, random.i32(-45..36), point = point);
            let want: f64 = text.parse().unwrap();
            assert_eq!(read::<f64>(&text), Ok(want), "{text}");
            match text.parse::<f32>().unwrap() {
                want if want.is_finite() => assert_eq!(read::<f32>(&text), Ok(want), "{text}"),
                _ => assert_eq!(read::<f32>(&text), Err(Misfit::OutOfRange)),
            }
        }
    }

    #[test]
    fn every_printed_float_reads_back() {
        let mut random = fastrand::Rng::with_seed(12);
        let mut buffer = zmij::Buffer::new();
        for _ in 0..100_000 {
            let single = f32::from_bits(random.u32(..));
            if single.is_finite() {
                assert_eq!(read::<f32>(buffer.format_finite(single)), Ok(single));
                // What Python prints for the same value.
                assert_eq!(read::<f32>(&format!("{}", f64::from(single))), Ok(single));
            }
            let double = f64::from_bits(random.u64(..));
            if double.is_finite() {
                assert_eq!(read::<f64>(buffer.format_finite(double)), Ok(double));
            }
        }
    }

    #[test]
    fn edges() {
        assert_eq!(read::<f64>("-0.0").unwrap().to_bits(), (-0.0f64).to_bits());
        assert_eq!(read::<f32>("1e39"), Err(Misfit::OutOfRange));
        assert_eq!(read::<f32>("1e-99999999999"), Ok(0.0));
        assert_eq!(read::<f64>("1e99999999999"), Err(Misfit::OutOfRange));
        assert_eq!(read::<f32>("Infinity"), Ok(f32::INFINITY));
        assert_eq!(read::<u64>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(read::<u64>("18446744073709551616"), Err(Misfit::OutOfRange));
        assert_eq!(read::<i64>("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(read::<i64>("9223372036854775808"), Err(Misfit::OutOfRange));
        assert_eq!(read::<u8>("-1"), Err(Misfit::OutOfRange));
        assert_eq!(read::<u8>("-0"), Ok(0));
        assert_eq!(read::<i32>("1.0"), Err(Misfit::NotWhole));
        assert_eq!(read::<i32>("1e2"), Err(Misfit::NotWhole));
        assert_eq!(read::<i32>("NaN"), Err(Misfit::NotWhole));
    }
}
