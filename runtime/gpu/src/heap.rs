//! Weights on the device: chunks that many models share.

use crate::context::Context;
use crate::ranges::{Ranges, aligned};
use mortise_types::Result;
use parking_lot::Mutex;
use std::sync::Arc;

/// Weights smaller than this share a chunk of this size.
const CHUNK_BYTES: u64 = 64 << 20;

/// A chunk is one buffer; a weight never spans two, because a binding cannot.
struct Chunk {
    buffer: wgpu::Buffer,
    ranges: Ranges,
    bytes: u64,
}

/// Every weight that the device holds.
#[derive(Default)]
pub(crate) struct Heap {
    chunks: Mutex<Vec<Option<Chunk>>>,
}

/// A range of the heap, given back on drop.
pub(crate) struct Weight {
    heap: Arc<Heap>,
    chunk: usize,
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Heap {
    /// Copies `data` to the device.
    ///
    /// # Errors
    /// `Overloaded` when the device is full, `LimitExceeded` when no binding
    /// can be that large.
    pub(crate) fn upload(self: &Arc<Self>, context: &Context, data: &[u8]) -> Result<Arc<Weight>> {
        context.check()?;
        let bytes = (data.len() as u64).next_multiple_of(4).max(4);
        let limit = u64::from(context.limits.max_storage_buffer_binding_size);
        if bytes > limit {
            let message = format!("a weight of {bytes} bytes exceeds the GPU's {limit} a binding");
            return Err(mortise_types::Error::limit(message));
        }
        let weight = Arc::new(self.take(context, bytes)?);
        match data.len().is_multiple_of(4) {
            true => context.queue.write_buffer(&weight.buffer, weight.offset, data),
            false => {
                let mut padded = data.to_vec();
                padded.resize(bytes as usize, 0);
                context.queue.write_buffer(&weight.buffer, weight.offset, &padded);
            }
        }
        Ok(weight)
    }

    fn take(self: &Arc<Self>, context: &Context, bytes: u64) -> Result<Weight> {
        let mut chunks = self.chunks.lock();
        for (index, chunk) in chunks.iter_mut().enumerate() {
            let Some(chunk) = chunk else { continue };
            if let Some(offset) = chunk.ranges.take(bytes) {
                let (heap, buffer) = (self.clone(), chunk.buffer.clone());
                return Ok(Weight { heap, chunk: index, buffer, offset, bytes });
            }
        }
        let size = aligned(bytes).max(CHUNK_BYTES).min(context.limits.max_buffer_size);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = context.buffer("weights", size, usage, false)?;
        let mut ranges = Ranges::fixed(size);
        let offset = ranges.take(bytes).unwrap_or_default();
        let chunk = Chunk { buffer: buffer.clone(), ranges, bytes: size };
        let index = chunks.iter().position(Option::is_none).unwrap_or_else(|| {
            chunks.push(None);
            chunks.len() - 1
        });
        chunks[index] = Some(chunk);
        Ok(Weight { heap: self.clone(), chunk: index, buffer, offset, bytes })
    }

    /// Bytes in use, and bytes of all chunks.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let chunks = self.chunks.lock();
        let sums = chunks.iter().flatten().map(|c| (c.bytes - c.ranges.free_bytes(), c.bytes));
        sums.fold((0, 0), |sum, chunk| (sum.0 + chunk.0, sum.1 + chunk.1))
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        let mut chunks = self.heap.chunks.lock();
        let Some(slot) = chunks.get_mut(self.chunk) else { return };
        let Some(chunk) = slot else { return };
        chunk.ranges.give(self.offset, self.bytes);
        // An empty chunk goes back, so that memory follows what is deployed.
        if chunk.ranges.free_bytes() == chunk.bytes {
            *slot = None;
        }
    }
}
