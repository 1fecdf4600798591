//! Three runs in flight: each holds an arena and the buffers that carry its
//! inputs up and its outputs down.

use crate::context::{Context, Signal};
use mortise_types::{Error, Result, RunControl};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Runs in flight: one uploads while one computes and one is read back.
pub(crate) const SLOTS: usize = 3;

/// How long a run without a deadline waits for a slot between looks at the
/// device's health.
const PATIENCE: Duration = Duration::from_millis(100);

/// Smallest buffers, so that small models do not grow them step by step.
const MIN_BYTES: u64 = 1 << 16;

/// A run's own buffers. Grown to what runs need, and kept.
pub(crate) struct Slot {
    pub(crate) index: usize,
    arena: Option<wgpu::Buffer>,
    /// Mapped for writing whenever the slot is free.
    upload: Option<wgpu::Buffer>,
    readback: Option<wgpu::Buffer>,
    /// Changes with the arena's buffer; bind groups are made for one.
    pub(crate) arena_id: u64,
    pub(crate) signal: Arc<Signal>,
}

pub(crate) struct Slots {
    free: Mutex<Vec<Slot>>,
    returned: Condvar,
    next_arena_id: AtomicU64,
}

impl Slots {
    pub(crate) fn new() -> Self {
        let slot = |index| Slot {
            index,
            arena: None,
            upload: None,
            readback: None,
            arena_id: 0,
            signal: Arc::default(),
        };
        Self {
            free: Mutex::new((0..SLOTS).map(slot).collect()),
            returned: Condvar::new(),
            next_arena_id: AtomicU64::new(1),
        }
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// `Deadline`, or `NotReady` when the device is lost meanwhile.
    pub(crate) fn acquire(&self, context: &Context, control: &RunControl) -> Result<Lease<'_>> {
        let mut free = self.free.lock();
        loop {
            if let Some(slot) = free.pop() {
                return Ok(Lease { slots: self, slot: Some(slot) });
            }
            control.check()?;
            context.check()?;
            self.returned.wait_for(&mut free, PATIENCE);
        }
    }

    /// Bytes of the buffers of free slots; all of them when nothing runs.
    pub(crate) fn bytes(&self) -> u64 {
        let size = |buffer: &Option<wgpu::Buffer>| buffer.as_ref().map_or(0, wgpu::Buffer::size);
        let slots = self.free.lock();
        slots.iter().map(|s| size(&s.arena) + size(&s.upload) + size(&s.readback)).sum()
    }
}

/// A slot in use; it goes back on drop.
pub(crate) struct Lease<'a> {
    slots: &'a Slots,
    slot: Option<Slot>,
}

/// The buffers of a leased slot, at least as large as asked for.
pub(crate) struct Buffers {
    pub(crate) arena: wgpu::Buffer,
    pub(crate) upload: wgpu::Buffer,
    pub(crate) readback: wgpu::Buffer,
}

impl Lease<'_> {
    pub(crate) fn slot(&mut self) -> Result<&mut Slot> {
        self.slot.as_mut().ok_or_else(|| Error::internal("a slot was given back too early"))
    }

    /// # Errors
    /// `Overloaded` when the device has no memory to grow a buffer.
    pub(crate) fn buffers(&mut self, context: &Context, want: Sizes) -> Result<Buffers> {
        use wgpu::BufferUsages as Usage;
        let next_id = &self.slots.next_arena_id;
        let Some(slot) = self.slot.as_mut() else {
            return Err(Error::internal("a slot was given back too early"));
        };
        let usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        let (arena, grown) = grow(context, "arena", &mut slot.arena, want.arena, usage, false)?;
        if grown {
            slot.arena_id = next_id.fetch_add(1, Ordering::Relaxed);
        }
        let usage = Usage::MAP_WRITE | Usage::COPY_SRC;
        let (upload, _) = grow(context, "uploads", &mut slot.upload, want.upload, usage, true)?;
        let usage = Usage::MAP_READ | Usage::COPY_DST;
        let (readback, _) =
            grow(context, "answers", &mut slot.readback, want.readback, usage, false)?;
        Ok(Buffers { arena, upload, readback })
    }

    /// Forgets the buffers: a run failed half way, and they may be mapped,
    /// unmapped or in use.
    pub(crate) fn discard(&mut self) {
        if let Some(slot) = &mut self.slot {
            (slot.arena, slot.upload, slot.readback) = (None, None, None);
            slot.signal = Arc::default();
        }
    }
}

/// Bytes that a run needs of each buffer.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) arena: u64,
    pub(crate) upload: u64,
    pub(crate) readback: u64,
}

fn grow(
    context: &Context,
    label: &str,
    buffer: &mut Option<wgpu::Buffer>,
    bytes: u64,
    usage: wgpu::BufferUsages,
    mapped: bool,
) -> Result<(wgpu::Buffer, bool)> {
    if let Some(buffer) = buffer.as_ref().filter(|buffer| buffer.size() >= bytes) {
        return Ok((buffer.clone(), false));
    }
    // The old one goes first: two large arenas may not fit.
    *buffer = None;
    let rounded = bytes.max(MIN_BYTES).checked_next_power_of_two().unwrap_or(bytes);
    let size = rounded.min(context.limits.max_buffer_size).max(bytes);
    let grown = context.buffer(label, size, usage, mapped)?;
    *buffer = Some(grown.clone());
    Ok((grown, true))
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.slots.free.lock().push(slot);
            self.slots.returned.notify_one();
        }
    }
}
