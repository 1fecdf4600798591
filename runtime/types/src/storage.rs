use bytes::Bytes;
use std::sync::Arc;

/// One cache line, the unit in which owned tensor memory is allocated, so that
/// every owned tensor is 64-byte aligned.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u64; 8]);

impl Line {
    pub const BYTES: usize = 64;
    pub const ZERO: Line = Line([0; 8]);

    /// Lines that hold `bytes` bytes.
    pub fn count_for(bytes: usize) -> usize {
        bytes.div_ceil(Self::BYTES)
    }
}

/// Where an owned buffer goes when its last tensor is dropped. An arena
/// implements this to reuse memory and to account for it.
pub trait BufferPool: Send + Sync {
    fn give_back(&self, lines: Vec<Line>);
}

/// The bytes of a numeric tensor: owned and aligned (and mutable while
/// unshared), or a shared read-only view of a request body or a mapped file.
#[derive(Clone)]
pub enum Storage {
    Owned(Arc<OwnedBuffer>),
    Shared(Bytes),
}

pub struct OwnedBuffer {
    lines: Vec<Line>,
    len_bytes: usize,
    pool: Option<Arc<dyn BufferPool>>,
}

impl Drop for OwnedBuffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::take(&mut self.lines));
        }
    }
}

impl Storage {
    /// Zeroed, owned, 64-byte aligned memory.
    pub fn zeroed(len_bytes: usize) -> Self {
        Self::from_lines(vec![Line::ZERO; Line::count_for(len_bytes)], len_bytes, None)
    }

    /// Owned memory from whole lines; `pool` gets them back on drop.
    ///
    /// # Panics
    /// When `lines` is shorter than `len_bytes`.
    pub fn from_lines(
        lines: Vec<Line>,
        len_bytes: usize,
        pool: Option<Arc<dyn BufferPool>>,
    ) -> Self {
        assert!(lines.len() * Line::BYTES >= len_bytes, "buffer shorter than its length");
        Self::Owned(Arc::new(OwnedBuffer { lines, len_bytes, pool }))
    }

    /// Takes a vector without copying it.
    pub fn from_vec<T: bytemuck::Pod + Send + Sync>(values: Vec<T>) -> Self {
        struct PodVec<T>(Vec<T>);
        impl<T: bytemuck::Pod> AsRef<[u8]> for PodVec<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        Self::Shared(Bytes::from_owner(PodVec(values)))
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Owned(buffer) => {
                &bytemuck::cast_slice::<Line, u8>(&buffer.lines)[..buffer.len_bytes]
            }
            Self::Shared(bytes) => bytes,
        }
    }

    /// The bytes for writing, when owned and not shared with another tensor.
    pub fn as_mut_bytes(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::Owned(buffer) => {
                let buffer = Arc::get_mut(buffer)?;
                let len = buffer.len_bytes;
                Some(&mut bytemuck::cast_slice_mut::<Line, u8>(&mut buffer.lines)[..len])
            }
            Self::Shared(_) => None,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Owned(buffer) => buffer.len_bytes,
            Self::Shared(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A shareable view of the bytes; keeps the memory alive, copies nothing.
    pub fn to_shared(&self) -> Bytes {
        struct Keep(Arc<OwnedBuffer>);
        impl AsRef<[u8]> for Keep {
            fn as_ref(&self) -> &[u8] {
                &bytemuck::cast_slice::<Line, u8>(&self.0.lines)[..self.0.len_bytes]
            }
        }
        match self {
            Self::Owned(buffer) => Bytes::from_owner(Keep(buffer.clone())),
            Self::Shared(bytes) => bytes.clone(),
        }
    }

    /// A view of part of the bytes; copies nothing.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self::Shared(self.to_shared().slice(range))
    }
}
