//! The opened device: queue, pipelines, and the thread that waits for it.

use crate::shaders::Kernel;
use mortise_types::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, current};
use std::time::{Duration, Instant};

/// Bytes of immediates that a kernel's parameters may take.
pub(crate) const MAX_PARAM_BYTES: usize = 128;

/// Buffers that one dispatch may bind.
pub(crate) const MAX_BINDINGS: usize = 8;

/// A submission that takes longer has hung the device.
const HANG: Duration = Duration::from_secs(60);

/// Submissions that may wait for the polling thread; the slots bound it.
const POLL_QUEUE: usize = 16;

/// The one instance of this process. It is never dropped: that would unload the
/// driver, and threads that used it call into it once more when they end.
pub(crate) fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::PRIMARY;
        descriptor.flags = wgpu::InstanceFlags::empty();
        wgpu::Instance::new(descriptor)
    })
}

/// An opened device. Everything made from it dies with it when it is lost.
pub(crate) struct Context {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    /// Adapter and driver, as one line.
    pub(crate) name: String,
    /// What tuning is remembered under: adapter, driver and its version.
    pub(crate) tuning_key: String,
    pub(crate) is_software: bool,
    /// Whether products of f16 run on matrix units: the adapter has them, and
    /// they passed their test.
    pub(crate) has_matrix_units: bool,
    layouts: Vec<Layout>,
    modules: Mutex<HashMap<Kernel, Arc<wgpu::ComputePipeline>>>,
    health: Arc<Health>,
    poller: Poller,
    #[cfg(test)]
    pub(crate) probe: Probe,
}

/// What tests see of an opened device, and do to it.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Probe {
    /// Kernels looked up, bind groups and buffers made.
    pub(crate) lookups: std::sync::atomic::AtomicU64,
    /// Whether buffers find no memory from here on.
    pub(crate) is_full: AtomicBool,
}

struct Layout {
    bindings: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// What the device's callbacks report.
#[derive(Default)]
struct Health {
    lost: AtomicBool,
    /// The first error that no scope caught.
    error: Mutex<Option<String>>,
}

impl Health {
    fn fail(&self, message: String) {
        self.error.lock().get_or_insert(message);
        self.lost.store(true, Ordering::Release);
    }
}

impl Context {
    /// With `matrix_units`, those are used where the adapter has them.
    ///
    /// # Errors
    /// `Unsupported` when the adapter lacks immediates or is too small.
    pub(crate) fn open(adapter: &wgpu::Adapter, matrix_units: bool) -> Result<Self> {
        let info = adapter.get_info();
        let limits = wanted_limits(adapter)?;
        let has_matrix_units = matrix_units && has_matrix_units(adapter);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mortise"),
            required_features: features(has_matrix_units),
            required_limits: limits.clone(),
            experimental_features: experiments(has_matrix_units),
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) =
            opened.map_err(|e| Error::internal(format!("cannot open {}: {e}", info.name)))?;
        let health = Arc::new(Health::default());
        watch(&device, &health);
        let poller = Poller::start(device.clone(), health.clone())?;
        let driver = format!("{} {}", info.driver, info.driver_info);
        Ok(Self {
            layouts: (0..=MAX_BINDINGS).map(|count| layout(&device, count)).collect(),
            modules: Mutex::default(),
            name: format!("{} ({})", info.name, driver.trim()),
            tuning_key: format!("{}|{}|{driver}", info.name, info.backend),
            is_software: info.device_type == wgpu::DeviceType::Cpu,
            has_matrix_units,
            device,
            queue,
            limits,
            health,
            poller,
            #[cfg(test)]
            probe: Probe::default(),
        })
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.health.lost.load(Ordering::Acquire)
    }

    /// # Errors
    /// `NotReady` once the device is lost.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.is_lost() {
            return Ok(());
        }
        let reason = self.health.error.lock().clone().unwrap_or_else(|| "no reason given".into());
        Err(Error::not_ready(format!("the GPU was lost while it served this request: {reason}")))
    }

    /// The compiled kernel, compiling it on first use.
    ///
    /// # Errors
    /// `Internal` when the driver refuses the shader.
    pub(crate) fn pipeline(&self, kernel: &Kernel) -> Result<Arc<wgpu::ComputePipeline>> {
        #[cfg(test)]
        self.probe.lookups.fetch_add(1, Ordering::Relaxed);
        let mut known = self.modules.lock();
        if let Some(pipeline) = known.get(kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.compile(kernel)?);
        known.insert(kernel.clone(), pipeline.clone());
        Ok(pipeline)
    }

    fn compile(&self, kernel: &Kernel) -> Result<wgpu::ComputePipeline> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let source = wgpu::ShaderSource::Wgsl(kernel.source().into());
        let label = Some(kernel.name());
        let module = wgpu::ShaderModuleDescriptor { label, source };
        // SAFETY: the text is our own: kernels bound every index by their
        // parameters or clamp it, their loops end, and divisors are not zero.
        let module = unsafe {
            let checks = wgpu::ShaderRuntimeChecks::unchecked();
            self.device.create_shader_module_trusted(module, checks)
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&self.layouts[kernel.binding_count()].pipeline),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(pipeline),
            Some(error) => {
                Err(Error::internal(format!("kernel {} does not compile: {error}", kernel.name())))
            }
        }
    }

    pub(crate) fn bind(&self, buffers: &[wgpu::BufferBinding<'_>]) -> wgpu::BindGroup {
        #[cfg(test)]
        self.probe.lookups.fetch_add(1, Ordering::Relaxed);
        let numbered = buffers.iter().zip(0..);
        let entries: Vec<_> = numbered
            .map(|(buffer, binding)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(buffer.clone()),
            })
            .collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.layouts[buffers.len()].bindings,
            entries: &entries,
        })
    }

    /// # Errors
    /// `Overloaded` when the device has not that much memory left.
    pub(crate) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer> {
        if bytes > self.limits.max_buffer_size {
            let limit = self.limits.max_buffer_size;
            let message = format!("{label} of {bytes} bytes exceeds the GPU's {limit} a buffer");
            return Err(Error::limit(message));
        }
        let full = |reason: &dyn std::fmt::Display| {
            Error::overloaded(format!("the GPU has no {bytes} bytes left for {label}: {reason}"))
        };
        #[cfg(test)]
        {
            self.probe.lookups.fetch_add(1, Ordering::Relaxed);
            if self.probe.is_full.load(Ordering::Relaxed) {
                return Err(full(&"a test says so"));
            }
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: mapped,
        });
        match pollster::block_on(memory.pop()) {
            None => Ok(buffer),
            Some(error) => Err(full(&error)),
        }
    }

    /// Has the polling thread wait for `submission`; callbacks run on it.
    ///
    /// # Errors
    /// `Internal` when the thread is gone.
    pub(crate) fn watch_for(&self, submission: wgpu::SubmissionIndex) -> Result<()> {
        let queue = self.poller.queue.as_ref();
        queue
            .and_then(|queue| queue.send(submission).ok())
            .ok_or_else(|| Error::internal("the thread that polls the GPU is gone"))
    }

    /// Makes the device as good as lost, to see what recovers.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.device.destroy();
        self.health.fail("destroyed by a test".to_owned());
    }
}

fn watch(device: &wgpu::Device, health: &Arc<Health>) {
    let lost = health.clone();
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            lost.fail(format!("{reason:?}: {message}"));
        }
    });
    let failed = health.clone();
    // An error that no scope caught leaves the device in a state we did not
    // plan for: it is opened anew.
    device.on_uncaptured_error(Arc::new(move |error| failed.fail(error.to_string())));
}

/// The thread that waits for submissions. Dropping it waits for the thread, so
/// that nothing is in the driver when the process ends.
struct Poller {
    queue: Option<SyncSender<wgpu::SubmissionIndex>>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    fn start(device: wgpu::Device, health: Arc<Health>) -> Result<Self> {
        let (sender, receiver) = sync_channel(POLL_QUEUE);
        let thread = std::thread::Builder::new()
            .name("mortise-gpu".to_owned())
            .spawn(move || poll(&device, &health, &receiver))
            .map_err(|error| Error::internal(format!("cannot start the GPU's thread: {error}")))?;
        Ok(Self { queue: Some(sender), thread: Some(thread) })
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != current().id()) {
            // It does not panic; if it did, there is nothing to wait for.
            let _ = thread.join();
        }
    }
}

fn poll(device: &wgpu::Device, health: &Health, queue: &Receiver<wgpu::SubmissionIndex>) {
    while let Ok(submission) = queue.recv() {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(HANG) };
        if let Err(error) = device.poll(wait) {
            health.fail(format!("waiting for it failed: {error}"));
        }
    }
}

/// Counts down callbacks; the thread that runs a request waits for all.
#[derive(Default)]
pub(crate) struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    pending: usize,
    failed: bool,
}

impl Signal {
    pub(crate) fn expect(&self, count: usize) {
        *self.state.lock() = SignalState { pending: count, failed: false };
    }

    pub(crate) fn arrive(&self, ok: bool) {
        let mut state = self.state.lock();
        state.pending = state.pending.saturating_sub(1);
        state.failed |= !ok;
        self.changed.notify_all();
    }

    /// # Errors
    /// `NotReady` when the device did not come back with an answer.
    pub(crate) fn wait(&self, context: &Context) -> Result<()> {
        let give_up = Instant::now() + HANG * 2;
        let mut state = self.state.lock();
        while state.pending > 0 {
            if self.changed.wait_until(&mut state, give_up).timed_out() {
                context.health.fail("it gave no answer".to_owned());
                break;
            }
        }
        let failed = state.failed;
        drop(state);
        context.check()?;
        match failed {
            true => Err(Error::not_ready("the GPU dropped this request's answer")),
            false => Ok(()),
        }
    }
}

/// Whether the adapter multiplies 16 by 16 matrices of f16 into f32, by
/// subgroups of 32 threads as the kernels expect them.
fn has_matrix_units(adapter: &wgpu::Adapter) -> bool {
    let info = adapter.get_info();
    let half = wgpu::CooperativeScalarType::F16;
    let fits = |shape: &wgpu::CooperativeMatrixProperties| {
        [shape.m_size, shape.n_size, shape.k_size] == [16; 3]
            && shape.ab_type == half
            && shape.cr_type == wgpu::CooperativeScalarType::F32
    };
    adapter.features().contains(features(true))
        && [info.subgroup_min_size, info.subgroup_max_size] == [32; 2]
        && adapter.cooperative_matrix_properties().iter().any(fits)
}

fn features(matrix_units: bool) -> wgpu::Features {
    let units = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP
        | wgpu::Features::SUBGROUP_BARRIER;
    let more = if matrix_units { units } else { wgpu::Features::empty() };
    wgpu::Features::IMMEDIATES | more
}

fn experiments(matrix_units: bool) -> wgpu::ExperimentalFeatures {
    if !matrix_units {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the one experiment that is used is matrix units, by one shader of
    // our own, which has to give right and equal answers before it serves.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

fn wanted_limits(adapter: &wgpu::Adapter) -> Result<wgpu::Limits> {
    let name = adapter.get_info().name;
    let has = adapter.limits();
    if !adapter.features().contains(wgpu::Features::IMMEDIATES)
        || has.max_immediate_size < MAX_PARAM_BYTES as u32
    {
        return Err(Error::unsupported(format!(
            "{name} has no {MAX_PARAM_BYTES} bytes of immediates"
        )));
    }
    if (has.max_storage_buffers_per_shader_stage as usize) < MAX_BINDINGS {
        return Err(Error::unsupported(format!("{name} binds fewer than {MAX_BINDINGS} buffers")));
    }
    Ok(wgpu::Limits {
        max_immediate_size: MAX_PARAM_BYTES as u32,
        max_storage_buffer_binding_size: has.max_storage_buffer_binding_size,
        max_buffer_size: has.max_buffer_size,
        max_compute_workgroup_storage_size: has.max_compute_workgroup_storage_size,
        min_storage_buffer_offset_alignment: has.min_storage_buffer_offset_alignment,
        ..wgpu::Limits::default()
    })
}

fn layout(device: &wgpu::Device, count: usize) -> Layout {
    // One buffer holds all values of a run, and one buffer bound both read-only
    // and writable in a dispatch is refused: everything is bound writable.
    let entry = |binding| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: false },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let entries: Vec<_> = (0..count as u32).map(entry).collect();
    let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: None,
        entries: &entries,
    });
    let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&bindings)],
        immediate_size: MAX_PARAM_BYTES as u32,
    });
    Layout { bindings, pipeline }
}
