//! Three runs in flight: each holds an arena and the buffers that carry its
//! inputs up and its outputs down.

use crate::context::{Context, Signal};
use crate::program::BoundCell;
use mortise_types::{Error, Result, RunControl};
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, Weak};
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
    /// Bind groups of programs for this arena. They keep its buffer alive, so
    /// they go when it does.
    bound: Vec<Weak<BoundCell>>,
    pub(crate) signal: Arc<Signal>,
}

impl Slot {
    /// Has `cell` emptied when the arena goes.
    pub(crate) fn follow(&mut self, cell: &Arc<BoundCell>) {
        self.bound.retain(|known| known.strong_count() > 0);
        self.bound.push(Arc::downgrade(cell));
    }

    fn unbind(&mut self) {
        let cells = self.bound.drain(..).filter_map(|cell| cell.upgrade());
        cells.for_each(|cell| *cell.lock() = None);
    }

    fn forget(&mut self) {
        self.unbind();
        (self.arena, self.upload, self.readback) = (None, None, None);
    }
}

pub(crate) struct Slots {
    free: Mutex<Vec<Slot>>,
    returned: Condvar,
}

impl Slots {
    pub(crate) fn new() -> Self {
        let slot = |index| Slot {
            index,
            arena: None,
            upload: None,
            readback: None,
            bound: Vec::new(),
            signal: Arc::default(),
        };
        Self { free: Mutex::new((0..SLOTS).map(slot).collect()), returned: Condvar::new() }
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

    /// Gives back the buffers of free slots.
    pub(crate) fn shed(&self) {
        self.free.lock().iter_mut().for_each(Slot::forget);
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
        let Some(slot) = self.slot.as_mut() else {
            return Err(Error::internal("a slot was given back too early"));
        };
        let usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        if slot.arena.as_ref().is_none_or(|arena| arena.size() < want.arena) {
            slot.unbind();
        }
        let arena = grow(context, "arena", &mut slot.arena, want.arena, usage, false)?;
        let usage = Usage::MAP_WRITE | Usage::COPY_SRC;
        let upload = grow(context, "uploads", &mut slot.upload, want.upload, usage, true)?;
        let usage = Usage::MAP_READ | Usage::COPY_DST;
        let readback = grow(context, "answers", &mut slot.readback, want.readback, usage, false)?;
        Ok(Buffers { arena, upload, readback })
    }

    /// Forgets the buffers: a run failed half way, and they may be mapped,
    /// unmapped or in use.
    pub(crate) fn discard(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.forget();
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
) -> Result<wgpu::Buffer> {
    if let Some(buffer) = buffer.as_ref().filter(|buffer| buffer.size() >= bytes) {
        return Ok(buffer.clone());
    }
    // The old one goes first: two large arenas may not fit.
    *buffer = None;
    let rounded = bytes.max(MIN_BYTES).checked_next_power_of_two().unwrap_or(bytes);
    let size = rounded.min(context.limits.max_buffer_size).max(bytes);
    let grown = context.buffer(label, size, usage, mapped)?;
    *buffer = Some(grown.clone());
    Ok(grown)
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.slots.free.lock().push(slot);
            self.slots.returned.notify_one();
        }
    }
}
