//! The GPU device: opened when it is made, and again when it is lost.

use crate::choice::{Decision, DeviceChoice, candidates, choose, open};
use crate::context::Context;
use crate::executable::GpuExecutable;
use crate::heap::Heap;
use crate::peaks;
use crate::slots::Slots;
use crate::tune::Tuning;
use crate::units;
use mortise_compute::measure::Peaks;
use mortise_compute::{CpuDevice, Device, DeviceCaps, DeviceCounters, Executable};
use mortise_graph::{Evaluate, GraphLimits, Plan};
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the CPU serves instead after a device could not be opened, or was
/// full.
const RETRY: Duration = Duration::from_secs(5);

/// Runs graphs as compute shaders; what has no shader runs on the CPU device,
/// within the same plan.
pub struct GpuDevice {
    shared: Arc<Shared>,
}

/// What the device and its executables share.
pub(crate) struct Shared {
    index: usize,
    tuning_file: Option<PathBuf>,
    /// [`RETRY`], except in tests.
    pub(crate) retry: Duration,
    pub(crate) cpu: Arc<CpuDevice>,
    state: Mutex<State>,
    counts: Counts,
}

struct State {
    generation: Option<Arc<Generation>>,
    retry_at: Option<Instant>,
}

/// All that dies when the device is lost.
pub(crate) struct Generation {
    pub(crate) heap: Arc<Heap>,
    pub(crate) slots: Slots,
    pub(crate) tuning: Tuning,
    pub(crate) context: Context,
}

#[derive(Default)]
struct Counts {
    losses: AtomicU64,
    fallback_runs: AtomicU64,
    out_of_memory: AtomicU64,
}

/// The device that serves, and why.
pub struct Chosen {
    pub device: Arc<dyn Device>,
    /// For the log: what was chosen.
    pub name: String,
    pub reason: String,
}

/// Opens what `choice` names. `cpu` serves when that is the choice, and runs
/// what the GPU cannot. What is tuned for the adapter is kept in `tuning_file`.
///
/// # Errors
/// `InvalidInput` when a named adapter is not there, `Unsupported` when it
/// cannot run the kernels. With [`DeviceChoice::Auto`] the CPU serves instead.
pub fn choose_device(
    choice: DeviceChoice,
    cpu: Arc<CpuDevice>,
    tuning_file: Option<PathBuf>,
) -> Result<Chosen> {
    let found = candidates(choice);
    let Decision { index, device: name, reason } = choose(choice, &found)?;
    let Some(index) = index else { return Ok(Chosen { device: cpu, name, reason }) };
    match GpuDevice::open(index, cpu.clone(), tuning_file) {
        Ok(device) => Ok(Chosen { device, name, reason }),
        Err(error) if choice == DeviceChoice::Auto => {
            let reason = format!("{name} cannot be used: {error}");
            Ok(Chosen { device: cpu, name: "cpu".to_owned(), reason })
        }
        Err(error) => Err(error),
    }
}

impl GpuDevice {
    /// Opens adapter `index` as [`crate::adapters`] counts, tunes its kernels on first
    /// use, and keeps what was found in `tuning_file`.
    ///
    /// # Errors
    /// `NotFound` when it is not there, `Unsupported` when it is too small.
    pub fn open(
        index: usize,
        cpu: Arc<CpuDevice>,
        tuning_file: Option<PathBuf>,
    ) -> Result<Arc<Self>> {
        Self::open_retrying(index, cpu, tuning_file, RETRY)
    }

    /// As [`GpuDevice::open`], with the time that the CPU serves after a fault.
    ///
    /// # Errors
    /// As [`GpuDevice::open`].
    pub(crate) fn open_retrying(
        index: usize,
        cpu: Arc<CpuDevice>,
        tuning_file: Option<PathBuf>,
        retry: Duration,
    ) -> Result<Arc<Self>> {
        let generation = Some(Arc::new(Generation::open(index, tuning_file.as_deref())?));
        let state = Mutex::new(State { generation, retry_at: None });
        let counts = Counts::default();
        let shared = Shared { index, tuning_file, retry, cpu, state, counts };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }

    /// Bytes of weights in use, of the chunks that hold them, and of the
    /// buffers of idle slots.
    pub fn memory(&self) -> (u64, u64, u64) {
        match &self.shared.state.lock().generation {
            Some(generation) => {
                let (used, chunks) = generation.heap.usage();
                (used, chunks, generation.slots.bytes())
            }
            None => (0, 0, 0),
        }
    }

    #[cfg(test)]
    pub(crate) fn lose(&self) {
        if let Some(generation) = &self.shared.state.lock().generation {
            generation.context.lose();
        }
    }

    /// Loses the device, which then cannot be opened for as long as a retry
    /// takes.
    #[cfg(test)]
    pub(crate) fn close(&self) {
        self.lose();
        let mut state = self.shared.state.lock();
        state.retry_at = Some(Instant::now() + self.shared.retry);
    }

    #[cfg(test)]
    pub(crate) fn generation(&self) -> Arc<Generation> {
        self.shared.generation().expect("the device is open")
    }
}

impl Generation {
    pub(crate) fn open(index: usize, tuning_file: Option<&Path>) -> Result<Self> {
        let mut made = Self::untuned(index, true)?;
        units::check(&mut made);
        if made.context.is_lost() {
            made = Self::untuned(index, false)?;
        }
        Tuning::load_or_measure(&mut made, tuning_file);
        // What tests and measurements took is given back.
        made.slots = Slots::new();
        Ok(made)
    }

    fn untuned(index: usize, matrix_units: bool) -> Result<Self> {
        let (heap, slots, tuning) = (Arc::default(), Slots::new(), Tuning::default());
        Ok(Self { heap, slots, tuning, context: open(index, matrix_units)? })
    }
}

impl Shared {
    /// The device as it is open now; `None` while it cannot be opened.
    pub(crate) fn generation(&self) -> Option<Arc<Generation>> {
        let mut state = self.state.lock();
        if let Some(generation) = state.generation.take() {
            if !generation.context.is_lost() {
                state.generation = Some(generation.clone());
                return Some(generation);
            }
            self.counts.losses.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(device = %generation.context.name, "the GPU was lost; opening it again");
        }
        if state.retry_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        match Generation::open(self.index, self.tuning_file.as_deref()) {
            Ok(generation) => state.generation = Some(Arc::new(generation)),
            Err(error) => {
                tracing::error!(%error, "the GPU cannot be opened; the CPU serves meanwhile");
                state.retry_at = Some(Instant::now() + self.retry);
            }
        }
        state.generation.clone()
    }

    pub(crate) fn count_fallback(&self) {
        self.counts.fallback_runs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_out_of_memory(&self) {
        self.counts.out_of_memory.fetch_add(1, Ordering::Relaxed);
    }
}

impl Device for GpuDevice {
    fn caps(&self) -> DeviceCaps {
        let state = self.shared.state.lock();
        let open = state.generation.as_ref().map(|generation| generation.context.name.clone());
        DeviceCaps {
            name: format!("gpu: {}", open.unwrap_or_else(|| "lost".to_owned())),
            threads: self.shared.cpu.caps().threads,
        }
    }

    fn evaluate(&self) -> &dyn Evaluate {
        Device::evaluate(&*self.shared.cpu)
    }

    fn compile(&self, plan: Plan, limits: &GraphLimits) -> Result<Arc<dyn Executable>> {
        Ok(GpuExecutable::new(self.shared.clone(), plan, limits)?)
    }

    fn peaks(&self) -> Result<Peaks> {
        let generation = self.shared.generation();
        let open = generation.ok_or_else(|| Error::not_ready("the GPU is lost"))?;
        peaks::peaks(&open.context)
    }

    fn counters(&self) -> DeviceCounters {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.shared.counts;
        DeviceCounters {
            losses: read(&counts.losses),
            fallback_runs: read(&counts.fallback_runs),
            out_of_memory: read(&counts.out_of_memory),
        }
    }
}
