use mortise_types::{Error, Result};
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

/// The fields of one message, in the order they came. Nothing is copied.
pub(crate) struct Fields<'a>(&'a [u8]);

/// The value of a field, as far as the encoding tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The next field's number and value; `None` at the end.
    ///
    /// # Errors
    /// When the bytes are not an encoded message, or hold a group.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (tag, wire_type) = decode_key(&mut self.0).map_err(damaged)?;
        let value = match wire_type {
            WireType::Varint => Value::Varint(varint(&mut self.0)?),
            WireType::ThirtyTwoBit => Value::Fixed32(self.0.try_get_u32_le().map_err(damaged)?),
            WireType::SixtyFourBit => Value::Fixed64(self.0.try_get_u64_le().map_err(damaged)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(varint(&mut self.0)?).unwrap_or(usize::MAX);
                let cut = self.0.split_at_checked(length);
                let (bytes, rest) = cut.ok_or_else(|| damaged("a field ends after its message"))?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            WireType::StartGroup | WireType::EndGroup => {
                return Err(damaged("groups are not part of the protocol"));
            }
        };
        Ok(Some((tag, value)))
    }
}

impl<'a> Value<'a> {
    pub(crate) fn bytes(self, what: &str) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(mistyped(what)),
        }
    }

    pub(crate) fn text(self, what: &str) -> Result<&'a str> {
        std::str::from_utf8(self.bytes(what)?)
            .map_err(|_| Error::invalid(format!("{what} is not UTF-8")))
    }

    pub(crate) fn varint(self, what: &str) -> Result<u64> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(mistyped(what)),
        }
    }

    /// Calls `take` with each number of a repeated field, which may come one
    /// by one or packed.
    pub(crate) fn each_varint(
        self,
        what: &str,
        mut take: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Varint(value) => take(value),
            Self::Bytes(mut packed) => {
                while !packed.is_empty() {
                    take(varint(&mut packed)?)?;
                }
                Ok(())
            }
            _ => Err(mistyped(what)),
        }
    }
}

pub(crate) fn varint(bytes: &mut &[u8]) -> Result<u64> {
    decode_varint(bytes).map_err(damaged)
}

pub(crate) fn mistyped(what: &str) -> Error {
    Error::invalid(format!("{what} is encoded as another type"))
}

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the message is damaged: {error}"))
}
