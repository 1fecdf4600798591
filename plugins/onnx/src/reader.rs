//! A bounded protobuf reader over a file that is read in ranges. Only the
//! bytes that are asked for are fetched: a message is a [`Span`], its fields
//! are visited one by one, and what nobody opens (the weights) is skipped.

use crate::error::{at, invalid};
use mortise_plugin_sdk::Result;
use std::cell::{Cell, RefCell};

/// Where the bytes of a file come from.
pub trait Source {
    /// Size in bytes.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn size(&self) -> Result<u64>;

    /// Exactly `length` bytes from `offset`.
    ///
    /// # Errors
    /// When the range is out of bounds or cannot be read.
    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>>;
}

/// The window that is fetched at once.
const WINDOW_BYTES: u64 = 64 * 1024;

/// The most bytes that everything kept from the file may take together: names,
/// attributes and small constants, but not weights.
const MAX_KEPT_BYTES: u64 = 128 << 20;

/// The most bytes fetched at once when a field is kept.
const MAX_FETCH_BYTES: u64 = 8 << 20;

/// A file under reading.
pub struct File<'s> {
    source: &'s dyn Source,
    len: u64,
    window: RefCell<Window>,
    kept_left: Cell<u64>,
}

#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

/// A range of bytes of the file; `end` is exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    pub fn length(self) -> u64 {
        self.end - self.start
    }
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub number: u32,
    /// Where its tag starts.
    pub offset: u64,
    pub value: Wire,
}

/// A field's value as protobuf encodes it.
#[derive(Clone, Copy, Debug)]
pub enum Wire {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Span),
}

impl<'s> File<'s> {
    /// # Errors
    /// When the size cannot be read.
    pub fn open(source: &'s dyn Source) -> Result<Self> {
        let len = source.size()?;
        let kept_left = Cell::new(MAX_KEPT_BYTES);
        Ok(Self { source, len, window: RefCell::default(), kept_left })
    }

    /// The whole file as one message.
    pub fn message(&self) -> Fields<'_, 's> {
        self.fields(Span { start: 0, end: self.len })
    }

    /// The fields of the message that lies in `span`.
    pub fn fields(&self, span: Span) -> Fields<'_, 's> {
        Fields { file: self, position: span.start, end: span.end }
    }

    /// The bytes of a field, copied.
    ///
    /// # Errors
    /// When all that was kept exceeds the limit.
    pub fn bytes(&self, span: Span) -> Result<Vec<u8>> {
        self.keep(span.length(), span.start)?;
        if let Some(bytes) = self.window_bytes(span) {
            return Ok(bytes);
        }
        if span.length() <= WINDOW_BYTES / 4 {
            self.load_window(span.start)?;
            if let Some(bytes) = self.window_bytes(span) {
                return Ok(bytes);
            }
        }
        let mut bytes = Vec::new();
        let mut position = span.start;
        while position < span.end {
            let length = (span.end - position).min(MAX_FETCH_BYTES);
            let part = self.source.read(position, length)?;
            if part.len() as u64 != length {
                return Err(at(position, "the file is shorter than it says"));
            }
            bytes.extend(part);
            position += length;
        }
        Ok(bytes)
    }

    /// A field that holds text.
    ///
    /// # Errors
    /// When it is not UTF-8, or the limit on what is kept is hit.
    pub fn text(&self, span: Span) -> Result<String> {
        String::from_utf8(self.bytes(span)?).map_err(|_| at(span.start, "text is not UTF-8"))
    }

    /// Counts bytes that are about to be kept in memory.
    ///
    /// # Errors
    /// When the sum exceeds the limit.
    pub fn keep(&self, bytes: u64, offset: u64) -> Result<()> {
        let left = self.kept_left.get().checked_sub(bytes).ok_or_else(|| {
            at(
                offset,
                format!("names, attributes and constants take more than {MAX_KEPT_BYTES} bytes"),
            )
        })?;
        self.kept_left.set(left);
        Ok(())
    }

    fn window_bytes(&self, span: Span) -> Option<Vec<u8>> {
        let window = self.window.borrow();
        let start = usize::try_from(span.start.checked_sub(window.start)?).ok()?;
        let end = usize::try_from(span.end.checked_sub(window.start)?).ok()?;
        window.bytes.get(start..end).map(<[u8]>::to_vec)
    }

    fn load_window(&self, start: u64) -> Result<()> {
        let length = self.len.saturating_sub(start).min(WINDOW_BYTES);
        let bytes = self.source.read(start, length)?;
        *self.window.borrow_mut() = Window { start, bytes };
        Ok(())
    }

    fn window_byte(&self, position: u64) -> Option<u8> {
        let window = self.window.borrow();
        let index = usize::try_from(position.checked_sub(window.start)?).ok()?;
        window.bytes.get(index).copied()
    }

    fn byte(&self, position: u64) -> Result<u8> {
        if let Some(byte) = self.window_byte(position) {
            return Ok(byte);
        }
        self.load_window(position)?;
        self.window_byte(position).ok_or_else(|| at(position, "the file ends early"))
    }
}

/// Visits the fields of one message in order.
pub struct Fields<'f, 's> {
    file: &'f File<'s>,
    position: u64,
    end: u64,
}

impl Fields<'_, '_> {
    /// The next field, or `None` at the end of the message.
    ///
    /// # Errors
    /// When the bytes are no protobuf; the message names the offset.
    pub fn next_field(&mut self) -> Result<Option<Field>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let offset = self.position;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).unwrap_or(0);
        if number == 0 {
            return Err(at(offset, "a field has no valid number"));
        }
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => Wire::Bytes(self.span()?),
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(at(offset, format!("wire type {other} of field {number}"))),
        };
        Ok(Some(Field { number, offset, value }))
    }

    fn done(&self) -> bool {
        self.position >= self.end
    }

    fn span(&mut self) -> Result<Span> {
        let offset = self.position;
        let length = self.varint()?;
        let start = self.position;
        let end = start.checked_add(length).filter(|&end| end <= self.end).ok_or_else(|| {
            at(offset, format!("a field of {length} bytes is longer than what holds it"))
        })?;
        self.position = end;
        Ok(Span { start, end })
    }

    fn varint(&mut self) -> Result<u64> {
        let offset = self.position;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take()?;
            // The tenth byte holds one bit: bits beyond the 64th are dropped,
            // as every protobuf reader does.
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(at(offset, "a number is longer than ten bytes"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.take()?;
        }
        Ok(bytes)
    }

    fn take(&mut self) -> Result<u8> {
        if self.position >= self.end {
            return Err(at(self.position, "a message ends within a field"));
        }
        let byte = self.file.byte(self.position)?;
        self.position += 1;
        Ok(byte)
    }
}

impl Field {
    /// # Errors
    /// When the field is not a varint.
    pub fn int(&self) -> Result<i64> {
        match self.value {
            Wire::Varint(value) => Ok(value as i64),
            _ => Err(self.wrong("a varint")),
        }
    }

    /// # Errors
    /// When the field is not 32 bits wide.
    pub fn float(&self) -> Result<f32> {
        match self.value {
            Wire::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(self.wrong("a 32-bit float")),
        }
    }

    /// # Errors
    /// When the field has no length.
    pub fn span(&self) -> Result<Span> {
        match self.value {
            Wire::Bytes(span) => Ok(span),
            _ => Err(self.wrong("a message or bytes")),
        }
    }

    fn wrong(&self, want: &str) -> mortise_plugin_sdk::Error {
        at(self.offset, format!("field {} should be {want}", self.number))
    }
}

/// What can stand in a repeated numeric field, packed or not.
pub trait Number: Sized {
    /// Bytes that one element takes in memory, for the limit on what is kept.
    const KEPT_BYTES: u64;
    fn single(field: &Field) -> Result<Self>;
    fn packed(fields: &mut Fields<'_, '_>) -> Result<Self>;
}

impl Number for i64 {
    const KEPT_BYTES: u64 = 8;
    fn single(field: &Field) -> Result<Self> {
        field.int()
    }
    fn packed(fields: &mut Fields<'_, '_>) -> Result<Self> {
        Ok(fields.varint()? as i64)
    }
}

impl Number for f32 {
    const KEPT_BYTES: u64 = 4;
    fn single(field: &Field) -> Result<Self> {
        field.float()
    }
    fn packed(fields: &mut Fields<'_, '_>) -> Result<Self> {
        Ok(f32::from_le_bytes(fields.array()?))
    }
}

impl Number for f64 {
    const KEPT_BYTES: u64 = 8;
    fn single(field: &Field) -> Result<Self> {
        match field.value {
            Wire::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(field.wrong("a 64-bit float")),
        }
    }
    fn packed(fields: &mut Fields<'_, '_>) -> Result<Self> {
        Ok(f64::from_le_bytes(fields.array()?))
    }
}

/// Adds the elements of a repeated field to `values`, packed or not.
///
/// # Errors
/// When the field has another type, or the limit on what is kept is hit.
pub fn extend<N: Number>(file: &File<'_>, field: &Field, values: &mut Vec<N>) -> Result<()> {
    let Wire::Bytes(span) = field.value else {
        file.keep(N::KEPT_BYTES, field.offset)?;
        values.push(N::single(field)?);
        return Ok(());
    };
    let mut fields = file.fields(span);
    while !fields.done() {
        file.keep(N::KEPT_BYTES, fields.position)?;
        values.push(N::packed(&mut fields)?);
    }
    Ok(())
}

/// A file in memory, for tests and fuzzing.
impl Source for &[u8] {
    fn size(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let start = usize::try_from(offset)?;
        let end = start.saturating_add(usize::try_from(length)?);
        self.get(start..end).map(<[u8]>::to_vec).ok_or_else(|| invalid("a range is out of bounds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(bytes: &[u8]) -> Result<Vec<(u32, String)>> {
        let file = File::open(&bytes)?;
        let mut fields = file.message();
        let mut seen = Vec::new();
        while let Some(field) = fields.next_field()? {
            seen.push((field.number, format!("{:?}", field.value)));
        }
        Ok(seen)
    }

    #[test]
    fn well_formed_fields_are_visited() {
        let bytes = [0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f];
        let seen = visit(&bytes).unwrap();
        assert_eq!(seen[0], (1, "Varint(150)".into()));
        assert_eq!(seen[1], (2, "Bytes(Span { start: 5, end: 7 })".into()));
        assert_eq!(seen[2], (3, "Fixed32(1065353216)".into()));
    }

    #[test]
    fn malformed_bytes_are_errors_with_their_offset() {
        let cases: [(&[u8], &str); 6] = [
            (&[0x08], "byte 1: a message ends within a field"),
            (&[0x0b], "byte 0: wire type 3 of field 1"),
            (&[0x00, 0x00], "byte 0: a field has no valid number"),
            (&[0x12, 0x05, 1], "byte 1: a field of 5 bytes is longer than what holds it"),
            (
                &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                "byte 1: a number is longer",
            ),
            (&[0x1d, 0, 0], "byte 3: a message ends within a field"),
        ];
        for (bytes, want) in cases {
            let error = visit(bytes).unwrap_err();
            assert!(error.message().contains(want), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn packed_and_single_numbers_read_alike() {
        let bytes: &[u8] = &[0x08, 3, 0x0a, 3, 1, 0xac, 0x02];
        let file = File::open(&bytes).unwrap();
        let (mut fields, mut values) = (file.message(), Vec::<i64>::new());
        while let Some(field) = fields.next_field().unwrap() {
            extend(&file, &field, &mut values).unwrap();
        }
        assert_eq!(values, [3, 1, 300]);
    }
}
