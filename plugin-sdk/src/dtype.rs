use crate::bindings::model::mortise::plugin::types::Dtype as Raw;
use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    BF16,
    F32,
    F64,
    /// Variable-length bytes: strings in ONNX, `BYTES` on the wire.
    String,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    U4,
    I4,
    U2,
    I2,
    F4E2M1,
}

/// `(dtype, the contract's, name, ONNX TensorProto.DataType, bits)`; the one
/// table behind every conversion.
const TABLE: [(DType, Raw, &str, i32, u32); 24] = [
    (DType::Bool, Raw::Bool, "BOOL", 9, 8),
    (DType::U8, Raw::Uint8, "UINT8", 2, 8),
    (DType::U16, Raw::Uint16, "UINT16", 4, 16),
    (DType::U32, Raw::Uint32, "UINT32", 12, 32),
    (DType::U64, Raw::Uint64, "UINT64", 13, 64),
    (DType::I8, Raw::Int8, "INT8", 3, 8),
    (DType::I16, Raw::Int16, "INT16", 5, 16),
    (DType::I32, Raw::Int32, "INT32", 6, 32),
    (DType::I64, Raw::Int64, "INT64", 7, 64),
    (DType::F16, Raw::Fp16, "FP16", 10, 16),
    (DType::BF16, Raw::Bf16, "BF16", 16, 16),
    (DType::F32, Raw::Fp32, "FP32", 1, 32),
    (DType::F64, Raw::Fp64, "FP64", 11, 64),
    (DType::String, Raw::Bytes, "BYTES", 8, 0),
    (DType::F8E4M3FN, Raw::Float8e4m3fn, "FLOAT8E4M3FN", 17, 8),
    (DType::F8E4M3FNUZ, Raw::Float8e4m3fnuz, "FLOAT8E4M3FNUZ", 18, 8),
    (DType::F8E5M2, Raw::Float8e5m2, "FLOAT8E5M2", 19, 8),
    (DType::F8E5M2FNUZ, Raw::Float8e5m2fnuz, "FLOAT8E5M2FNUZ", 20, 8),
    (DType::F8E8M0, Raw::Float8e8m0, "FLOAT8E8M0", 24, 8),
    (DType::U4, Raw::Uint4, "UINT4", 21, 4),
    (DType::I4, Raw::Int4, "INT4", 22, 4),
    (DType::U2, Raw::Uint2, "UINT2", 25, 2),
    (DType::I2, Raw::Int2, "INT2", 26, 2),
    (DType::F4E2M1, Raw::Float4e2m1, "FLOAT4E2M1", 23, 4),
];

impl DType {
    /// The name in the Open Inference Protocol (`FP32`, `BYTES`), or ONNX's
    /// for the types that do not cross the wire.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].2
    }

    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The number of this type in ONNX's `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        TABLE[self as usize].3
    }

    pub fn from_onnx(number: i32) -> Option<Self> {
        TABLE.iter().find(|row| row.3 == number).map(|row| row.0)
    }

    /// Bits of one element; 0 for [`DType::String`].
    pub fn bits(self) -> u32 {
        TABLE[self as usize].4
    }

    /// Bytes that `count` elements take, sub-byte types packed; `None` for
    /// strings or on overflow.
    pub fn byte_len(self, count: u64) -> Option<u64> {
        match self {
            Self::String => None,
            _ => count.checked_mul(u64::from(self.bits())).map(|bits| bits.div_ceil(8)),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<DType> for Raw {
    fn from(dtype: DType) -> Self {
        TABLE[dtype as usize].1
    }
}

impl From<Raw> for DType {
    fn from(raw: Raw) -> Self {
        TABLE[raw as usize].0
    }
}

/// A Rust type that is the element of exactly one [`DType`].
pub trait Element: bytemuck::Pod + fmt::Debug {
    const DTYPE: DType;
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),* $(,)?) => {
        $(impl Element for $ty { const DTYPE: DType = DType::$dtype; })*
    };
}

elements! {
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    f32 => F32, f64 => F64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_rows_stand_at_their_own_index_in_both_enums() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
            assert_eq!(row.1 as usize, index);
            assert_eq!(DType::from_onnx(row.3), Some(row.0));
            assert_eq!(DType::from_name(row.2), Some(row.0));
        }
    }
}
