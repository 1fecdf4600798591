use half::{bf16, f16};
use std::fmt;

/// Element type of a tensor. The first group can cross the wire; the second is
/// ONNX's narrow types, which graphs may store and cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// `(dtype, wire name, ONNX TensorProto.DataType, bits)`; the one table behind
/// every conversion. An empty wire name means the type cannot cross the wire.
const TABLE: [(DType, &str, i32, usize); 24] = [
    (DType::Bool, "BOOL", 9, 8),
    (DType::U8, "UINT8", 2, 8),
    (DType::U16, "UINT16", 4, 16),
    (DType::U32, "UINT32", 12, 32),
    (DType::U64, "UINT64", 13, 64),
    (DType::I8, "INT8", 3, 8),
    (DType::I16, "INT16", 5, 16),
    (DType::I32, "INT32", 6, 32),
    (DType::I64, "INT64", 7, 64),
    (DType::F16, "FP16", 10, 16),
    (DType::BF16, "BF16", 16, 16),
    (DType::F32, "FP32", 1, 32),
    (DType::F64, "FP64", 11, 64),
    (DType::String, "BYTES", 8, 0),
    (DType::F8E4M3FN, "", 17, 8),
    (DType::F8E4M3FNUZ, "", 18, 8),
    (DType::F8E5M2, "", 19, 8),
    (DType::F8E5M2FNUZ, "", 20, 8),
    (DType::F8E8M0, "", 24, 8),
    (DType::U4, "", 21, 4),
    (DType::I4, "", 22, 4),
    (DType::U2, "", 25, 2),
    (DType::I2, "", 26, 2),
    (DType::F4E2M1, "", 23, 4),
];

impl DType {
    fn row(self) -> &'static (DType, &'static str, i32, usize) {
        &TABLE[self as usize]
    }

    /// Name in the Open Inference Protocol, or `None` for storage-only types.
    pub fn wire_name(self) -> Option<&'static str> {
        let name = self.row().1;
        (!name.is_empty()).then_some(name)
    }

    pub fn from_wire_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name && !name.is_empty()).map(|row| row.0)
    }

    /// The number of this type in ONNX's `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        self.row().2
    }

    pub fn from_onnx(number: i32) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == number).map(|row| row.0)
    }

    /// Bits of one element; 0 for [`DType::String`].
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// Bytes that `count` elements take, sub-byte types packed; `None` for
    /// strings or on overflow.
    pub fn byte_len(self, count: usize) -> Option<usize> {
        match self {
            DType::String => None,
            _ => count.checked_mul(self.bits()).map(|bits| bits.div_ceil(8)),
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    pub fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64)
    }

    pub fn is_unsigned_int(self) -> bool {
        matches!(self, DType::U8 | DType::U16 | DType::U32 | DType::U64)
    }

    pub fn is_int(self) -> bool {
        self.is_signed_int() || self.is_unsigned_int()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wire_name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{self:?}"),
        }
    }
}

/// A Rust type that is the element of exactly one [`DType`]. `bool` tensors are
/// read as `u8` through [`crate::Tensor::bool_bytes`].
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + PartialOrd + fmt::Debug {
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
    f16 => F16, bf16 => BF16, f32 => F32, f64 => F64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_rows_stand_at_their_own_index() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
            assert_eq!(DType::from_onnx(row.2), Some(row.0));
        }
    }

    #[test]
    fn packed_types_round_up_to_bytes() {
        assert_eq!(DType::I4.byte_len(3), Some(2));
        assert_eq!(DType::U2.byte_len(5), Some(2));
        assert_eq!(DType::F64.byte_len(usize::MAX), None);
        assert_eq!(DType::from_wire_name(""), None);
    }
}
