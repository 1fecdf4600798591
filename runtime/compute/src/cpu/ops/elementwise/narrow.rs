//! ONNX's 8-bit floats and its 4- and 2-bit types, which graphs store and cast.

use mortise_types::DType;

/// How a narrow type maps its codes to numbers.
#[derive(Clone, Copy)]
pub(crate) enum Codec {
    Float(MiniFloat),
    /// A power of two: `2^(code - 127)`; 255 is NaN.
    Exponent,
    Integer {
        bits: u32,
        signed: bool,
    },
}

/// A float of one byte or less.
#[derive(Clone, Copy)]
pub(crate) struct MiniFloat {
    mantissa_bits: u32,
    exponent_bits: u32,
    bias: i32,
    specials: Specials,
}

/// Which codes are not finite numbers.
#[derive(Clone, Copy, PartialEq)]
enum Specials {
    /// As in IEEE 754: infinities, and NaNs beyond them.
    Ieee,
    /// All ones is NaN; there is no infinity.
    NanOnly,
    /// Minus zero is NaN; there is no infinity.
    NegativeZero,
    /// Every code is a finite number; NaN becomes minus zero.
    None,
}

impl Codec {
    /// `None` for types that are not narrow.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let float = |exponent_bits, mantissa_bits, bias, specials| {
            Some(Self::Float(MiniFloat { mantissa_bits, exponent_bits, bias, specials }))
        };
        match dtype {
            DType::F8E4M3FN => float(4, 3, 7, Specials::NanOnly),
            DType::F8E4M3FNUZ => float(4, 3, 8, Specials::NegativeZero),
            DType::F8E5M2 => float(5, 2, 15, Specials::Ieee),
            DType::F8E5M2FNUZ => float(5, 2, 16, Specials::NegativeZero),
            DType::F4E2M1 => float(2, 1, 1, Specials::None),
            DType::F8E8M0 => Some(Self::Exponent),
            DType::U4 => Some(Self::Integer { bits: 4, signed: false }),
            DType::I4 => Some(Self::Integer { bits: 4, signed: true }),
            DType::U2 => Some(Self::Integer { bits: 2, signed: false }),
            DType::I2 => Some(Self::Integer { bits: 2, signed: true }),
            _ => None,
        }
    }

    pub(crate) fn decode(self, code: u8) -> f64 {
        match self {
            Self::Float(float) => float.decode(code),
            Self::Exponent if code == 255 => f64::NAN,
            Self::Exponent => f64::from(i32::from(code) - 127).exp2(),
            Self::Integer { bits, signed: false } => f64::from(code & mask(bits)),
            Self::Integer { bits, signed: true } => {
                let shift = 8 - bits;
                f64::from(((code << shift) as i8) >> shift)
            }
        }
    }

    /// Floats round to the nearest, ties to even, and saturate if asked to;
    /// exponents round up and lose the sign; integers are truncated towards zero and keep their low bits.
    pub(crate) fn encode(self, value: f64, saturate: bool) -> u8 {
        match self {
            Self::Float(float) => float.encode(value, saturate),
            Self::Exponent if !value.is_finite() => 255,
            Self::Exponent if value == 0.0 => 0,
            Self::Exponent => {
                let largest = if saturate { 254.0 } else { 255.0 };
                (value.abs().log2().ceil() + 127.0).clamp(0.0, largest) as u8
            }
            Self::Integer { bits, .. } => (value as i64 as u8) & mask(bits),
        }
    }
}

fn mask(bits: u32) -> u8 {
    ((1u32 << bits) - 1) as u8
}

impl MiniFloat {
    fn sign(self) -> u8 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    fn decode(self, code: u8) -> f64 {
        if self.is_nan(code) {
            return f64::NAN;
        }
        let magnitude = code & (self.sign() - 1);
        let sign = if code & self.sign() != 0 { -1.0 } else { 1.0 };
        if self.specials == Specials::Ieee && magnitude == self.infinity() {
            return sign * f64::INFINITY;
        }
        sign * self.magnitude(magnitude)
    }

    fn magnitude(self, code: u8) -> f64 {
        let exponent = i32::from(code >> self.mantissa_bits);
        let mantissa = f64::from(code & mask(self.mantissa_bits));
        let one = f64::from(1u32 << self.mantissa_bits);
        if exponent == 0 {
            return mantissa / one * f64::from(1 - self.bias).exp2();
        }
        (1.0 + mantissa / one) * f64::from(exponent - self.bias).exp2()
    }

    fn is_nan(self, code: u8) -> bool {
        let magnitude = code & (self.sign() - 1);
        match self.specials {
            Specials::Ieee => magnitude > self.infinity(),
            Specials::NanOnly => magnitude == self.sign() - 1,
            Specials::NegativeZero => code == self.sign(),
            Specials::None => false,
        }
    }

    /// The code of IEEE infinity without its sign.
    fn infinity(self) -> u8 {
        mask(self.exponent_bits) << self.mantissa_bits
    }

    /// The code of the largest finite number.
    fn largest(self) -> u8 {
        match self.specials {
            Specials::Ieee => self.infinity() - 1,
            Specials::NanOnly => self.sign() - 2,
            Specials::NegativeZero | Specials::None => self.sign() - 1,
        }
    }

    fn nan(self) -> u8 {
        match self.specials {
            Specials::NegativeZero | Specials::None => self.sign(),
            Specials::Ieee | Specials::NanOnly => self.sign() - 1,
        }
    }

    fn encode(self, value: f64, saturate: bool) -> u8 {
        if value.is_nan() {
            return self.nan();
        }
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        let magnitude = self.nearest(value.abs());
        if magnitude > self.largest() {
            return match (saturate || self.specials == Specials::None, self.specials) {
                (true, _) => sign | self.largest(),
                (false, Specials::Ieee) => sign | self.infinity(),
                (false, _) => sign & !self.sign() | self.nan(),
            };
        }
        if magnitude == 0 && self.specials == Specials::NegativeZero { 0 } else { sign | magnitude }
    }

    /// The nearest code, ties to even; one above the largest when over range.
    fn nearest(self, value: f64) -> u8 {
        let largest = self.largest();
        let (mut low, mut high) = (0, largest);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.magnitude(middle) <= value { low = middle } else { high = middle - 1 }
        }
        // The step above the largest is as wide as the one below it.
        let (below, above) = (self.magnitude(low), self.magnitude(low + 1));
        let half = below + (above - below) / 2.0;
        let up = value > half || (value == half && low % 2 == 1);
        if up { low + 1 } else { low }
    }
}

/// Codes one by one, from bytes that hold `8 / bits` of them, low bits first.
pub(crate) fn unpack(bytes: &[u8], bits: usize, count: usize) -> impl Iterator<Item = u8> {
    let per_byte = 8 / bits;
    (0..count).map(move |index| {
        let byte = bytes.get(index / per_byte).copied().unwrap_or(0);
        (byte >> (index % per_byte * bits)) & mask(bits as u32)
    })
}

/// The reverse of [`unpack`]; unused high bits are zero.
pub(crate) fn pack(codes: impl Iterator<Item = u8>, bits: usize, bytes: &mut [u8]) {
    bytes.fill(0);
    let per_byte = 8 / bits;
    for (index, code) in codes.enumerate() {
        if let Some(byte) = bytes.get_mut(index / per_byte) {
            *byte |= code << (index % per_byte * bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: [DType; 9] = [
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F4E2M1,
        DType::U4,
        DType::I4,
        DType::U2,
        DType::I2,
    ];

    #[test]
    fn every_code_survives_a_round_trip() {
        for dtype in NARROW {
            let codec = Codec::of(dtype).unwrap();
            for code in 0..=mask(dtype.bits() as u32) {
                let value = codec.decode(code);
                let again = codec.decode(codec.encode(value, false));
                assert!(value == again || (value.is_nan() && again.is_nan()), "{dtype:?} {code}");
            }
        }
    }

    #[test]
    fn known_codes() {
        let cases = [
            (DType::F8E4M3FN, 448.0, true, 0x7e),
            (DType::F8E4M3FN, 1000.0, true, 0x7e),
            (DType::F8E4M3FN, 1000.0, false, 0x7f),
            (DType::F8E5M2, 1e6, false, 0x7c),
            (DType::F8E5M2, 1e6, true, 0x7b),
            (DType::F8E4M3FNUZ, -0.0, true, 0x00),
            (DType::F8E4M3FN, 1.0, true, 0x38),
            (DType::F8E4M3FN, 1.0625, true, 0x38),
            (DType::F8E4M3FN, 1.1875, true, 0x3a),
            (DType::F4E2M1, 5.0, true, 0x06),
            (DType::F4E2M1, -100.0, true, 0x0f),
            (DType::I4, -3.7, true, 0x0d),
            (DType::F4E2M1, f64::NAN, true, 0x08),
            (DType::F8E8M0, 4.0, true, 129),
            (DType::F8E8M0, 5.0, true, 130),
            (DType::F8E8M0, 3e38, true, 254),
            (DType::F8E8M0, 3e38, false, 255),
            (DType::F8E8M0, f64::INFINITY, true, 255),
        ];
        for (dtype, value, saturate, want) in cases {
            let got = Codec::of(dtype).unwrap().encode(value, saturate);
            assert_eq!(got, want, "{value} as {dtype:?}");
        }
    }

    #[test]
    fn codes_pack_low_bits_first() {
        let mut bytes = [0xff; 2];
        pack([1, 2, 3].into_iter(), 4, &mut bytes);
        assert_eq!(bytes, [0x21, 0x03]);
        assert_eq!(unpack(&bytes, 4, 3).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
