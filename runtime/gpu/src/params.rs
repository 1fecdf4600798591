//! Parameters of one dispatch, as the bytes that the shader's `Params` has.

use crate::context::MAX_PARAM_BYTES;

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Params {
    bytes: [u8; MAX_PARAM_BYTES],
    len: usize,
}

impl Params {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; MAX_PARAM_BYTES], len: 0 }
    }

    /// # Panics
    /// When more words are pushed than a kernel may take.
    #[must_use]
    pub(crate) fn word(mut self, word: u32) -> Self {
        self.bytes[self.len..self.len + 4].copy_from_slice(&word.to_le_bytes());
        self.len += 4;
        self
    }

    /// A size or stride, which the limits of a binding keep below 2^31.
    #[must_use]
    pub(crate) fn size(self, value: usize) -> Self {
        self.word(value as u32)
    }

    #[must_use]
    pub(crate) fn sizes<'a>(self, values: impl IntoIterator<Item = &'a usize>) -> Self {
        values.into_iter().fold(self, |params, value| params.size(*value))
    }

    #[must_use]
    pub(crate) fn float(self, value: f32) -> Self {
        self.word(value.to_bits())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
