//! Memory for intermediate tensors: blocks are reused between operators and
//! requests, and the sum in use is bounded.

use mortise_types::{BufferPool, DType, Error, Line, Result, Storage, Tensor};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Recycles blocks by size. Blocks are handed out as they were left: every
/// operator writes all of its output before anyone reads it.
pub(crate) struct Arena {
    limit_bytes: usize,
    in_use_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    /// Free blocks by length in lines.
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    blocks: BTreeMap<usize, Vec<Vec<Line>>>,
    bytes: usize,
}

impl Arena {
    /// Free memory kept for reuse; more is returned to the allocator.
    const KEEP_FREE_BYTES: usize = 256 << 20;

    /// Sizes remembered; when there are more, those without blocks are dropped.
    const KEEP_SIZES: usize = 1024;

    pub(crate) fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            in_use_bytes: AtomicUsize::new(0),
            peak_bytes: AtomicUsize::new(0),
            free: Mutex::default(),
        })
    }

    /// An owned, writable tensor of unspecified contents.
    ///
    /// # Errors
    /// `LimitExceeded` when more than the limit would be in use at once.
    pub(crate) fn allocate(self: &Arc<Self>, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let bytes = shape
            .iter()
            .try_fold(1usize, |count, &dim| count.checked_mul(dim))
            .and_then(|count| dtype.byte_len(count))
            .ok_or_else(|| Error::limit(format!("a tensor of shape {shape:?} is too large")))?;
        let lines = Line::count_for(bytes);
        self.charge(lines * Line::BYTES, shape)?;
        let block = self.take_free(lines).unwrap_or_else(|| vec![Line::ZERO; lines]);
        let storage = Storage::from_lines(block, bytes, Some(self.clone()));
        Tensor::from_storage(dtype, shape, storage)
    }

    /// The most bytes that were ever in use at once.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    fn charge(&self, bytes: usize, shape: &[usize]) -> Result<()> {
        let before = self.in_use_bytes.fetch_add(bytes, Ordering::Relaxed);
        let after = before.saturating_add(bytes);
        if after > self.limit_bytes {
            self.in_use_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::limit(format!(
                "a tensor of shape {shape:?} would take the graph's memory to {after} bytes, \
                 over max_arena_bytes = {}",
                self.limit_bytes
            )));
        }
        self.peak_bytes.fetch_max(after, Ordering::Relaxed);
        Ok(())
    }

    fn take_free(&self, lines: usize) -> Option<Vec<Line>> {
        let mut free = self.free.lock();
        let block = free.blocks.get_mut(&lines)?.pop()?;
        free.bytes -= lines * Line::BYTES;
        Some(block)
    }
}

impl BufferPool for Arena {
    fn give_back(&self, lines: Vec<Line>) {
        let bytes = lines.len() * Line::BYTES;
        self.in_use_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut free = self.free.lock();
        if free.bytes + bytes <= Self::KEEP_FREE_BYTES {
            free.bytes += bytes;
            if free.blocks.len() > Self::KEEP_SIZES {
                free.blocks.retain(|_, blocks| !blocks.is_empty());
            }
            free.blocks.entry(lines.len()).or_default().push(lines);
        }
    }
}
