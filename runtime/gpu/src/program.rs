//! A plan for fixed shapes, ready to replay: every offset, bind group and
//! workgroup count is settled, so that a run looks nothing up.

use crate::device::Generation;
use crate::heap::Weight;
use crate::lower::{Launch, Lowered, Step};
use crate::operand::{Operand, Place};
use crate::pack::Packed;
use crate::params::Params;
use crate::ranges::aligned;
use crate::slots::{Buffers, Lease, SLOTS, Sizes};
use crate::weights::{from_words, write_words};
use mortise_compute::{Device, Executable, OperatorInfo};
use mortise_graph::{GraphLimits, Plan};
use mortise_types::{
    DType, Error, GraphBody, Result, RunControl, Shape, Signature, Tensor, TensorSpec, ValueId,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes in front of a readback that hold the kernels' report.
const STATUS_BYTES: u64 = 16;

pub(crate) struct Program {
    segments: Vec<Segment>,
    sizes: Sizes,
    host_count: usize,
    inputs: Vec<usize>,
    outputs: Vec<Output>,
    /// By slot, for the arena that the slot has.
    bound: [Arc<BoundCell>; SLOTS],
    checks: bool,
    pub(crate) dispatch_count: usize,
    pub(crate) operators: Vec<OperatorInfo>,
    pub(crate) weights: Vec<Arc<Weight>>,
}

/// Where an output of the graph comes from.
enum Output {
    Host(usize),
    Constant(Tensor),
}

/// One submission, and the nodes that run on the CPU after it.
#[derive(Default)]
struct Segment {
    uploads: Vec<Upload>,
    dispatches: Vec<Dispatch>,
    downloads: Vec<Download>,
    cpu: Option<CpuPart>,
}

struct Upload {
    host: usize,
    arena_offset: u64,
    staging_offset: u64,
    bytes: u64,
}

#[derive(Clone)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: Arc<wgpu::ComputePipeline>,
    pub(crate) params: Params,
    pub(crate) groups: [u32; 3],
    bindings: Vec<Binding>,
}

#[derive(Clone)]
enum Binding {
    Arena { offset: u64, bytes: u64 },
    Weight(Arc<Weight>),
}

struct Download {
    host: usize,
    dtype: DType,
    shape: Shape,
    arena_offset: u64,
    staging_offset: u64,
    bytes: u64,
}

struct CpuPart {
    executable: Arc<dyn Executable>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

/// Bind groups of every dispatch, by segment.
pub(crate) struct Bound {
    groups: Vec<Vec<wgpu::BindGroup>>,
}

/// Bind groups as long as the arena that they bind is there.
pub(crate) type BoundCell = Mutex<Option<Arc<Bound>>>;

/// A segment with what it is bound to in one slot.
#[derive(Clone, Copy)]
struct Recorded<'a> {
    segment: &'a Segment,
    groups: &'a [wgpu::BindGroup],
    buffers: &'a Buffers,
}

impl Program {
    /// # Errors
    /// `LimitExceeded` when the arena goes over its limit; whatever the CPU device says of its nodes.
    pub(crate) fn new(
        generation: &Generation,
        cpu: &dyn Device,
        plan: &Plan,
        limits: &GraphLimits,
        lowered: Lowered,
    ) -> Result<Self> {
        let Packed { offsets, arena_bytes } = Packed::of(&lowered);
        let limit = limits.max_arena_bytes as u64;
        if arena_bytes > limit {
            let message = format!("the arena takes {arena_bytes} bytes, max_arena_bytes = {limit}");
            return Err(Error::limit(message));
        }
        let mut layout = Layout { generation, cpu, plan, limits, offsets, hosts: HashMap::new() };
        let segments = layout.segments(&lowered)?;
        let dispatch_count = segments.iter().map(|segment| segment.dispatches.len()).sum();
        let most = |bytes: &dyn Fn(&Segment) -> u64| segments.iter().map(bytes).max().unwrap_or(0);
        let end = |offset: u64, bytes: u64| offset + aligned(bytes);
        let upload = most(&|s| s.uploads.last().map_or(0, |u| end(u.staging_offset, u.bytes)));
        let readback = most(&|s| s.downloads.last().map_or(0, |d| end(d.staging_offset, d.bytes)));
        let inputs = plan.body.inputs.iter().map(|value| layout.host(*value)).collect();
        let outputs = plan.body.outputs.iter().map(|value| layout.output(*value));
        let outputs = outputs.collect::<Result<_>>()?;
        let mut operators = OperatorInfo::of_plan(plan);
        for (operator, _) in operators.iter_mut().zip(&lowered.on_device).filter(|(_, on)| **on) {
            operator.placement = "gpu";
        }
        Ok(Self {
            segments,
            sizes: Sizes { arena: arena_bytes, upload, readback: readback.max(STATUS_BYTES) },
            host_count: layout.hosts.len(),
            inputs,
            outputs,
            bound: Default::default(),
            checks: lowered.checks,
            dispatch_count,
            operators,
            weights: lowered.weights,
        })
    }

    pub(crate) fn arena_bytes(&self) -> u64 {
        self.sizes.arena
    }

    /// Nothing is left to the CPU, so that a replay is all of a run.
    pub(crate) fn is_whole(&self) -> bool {
        self.segments.iter().all(|segment| segment.cpu.is_none())
    }

    /// Bytes of the buffers that a run takes.
    #[cfg(test)]
    pub(crate) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Bytes of device memory that the graph takes: its weights, each once,
    /// and the arena of one run.
    pub(crate) fn device_bytes(&self) -> u64 {
        let weights: HashMap<_, _> =
            self.weights.iter().map(|weight| (Arc::as_ptr(weight), weight.bytes)).collect();
        weights.values().sum::<u64>() + self.sizes.arena
    }

    /// Nodes left to the CPU are all there are.
    pub(crate) fn is_empty(&self) -> bool {
        self.dispatch_count == 0
    }

    /// # Errors
    /// `Deadline`, `Overloaded` without device memory, `NotReady` when the
    /// device is lost, `InvalidInput` for an index out of range, or what an
    /// operator on the CPU says.
    pub(crate) fn run(
        &self,
        generation: &Generation,
        inputs: Vec<Tensor>,
        control: &RunControl,
    ) -> Result<Vec<Tensor>> {
        let mut lease = generation.slots.acquire(&generation.context, control)?;
        self.run_in(&mut lease, generation, inputs, control)
    }

    /// As [`Program::run`], in a slot that is held already.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub(crate) fn run_in(
        &self,
        lease: &mut Lease<'_>,
        generation: &Generation,
        inputs: Vec<Tensor>,
        control: &RunControl,
    ) -> Result<Vec<Tensor>> {
        let mut hosts: Vec<Option<Tensor>> = vec![None; self.host_count];
        for (slot, tensor) in self.inputs.iter().zip(inputs) {
            hosts[*slot] = Some(tensor);
        }
        let done = self.segments(generation, lease, &mut hosts, control);
        if done.is_err() {
            lease.discard();
            // Whatever a call to a lost device says, the loss is the reason.
            generation.context.check()?;
        }
        done?;
        let output = |output: &Output| match output {
            Output::Host(slot) => hosts[*slot].clone().ok_or_else(missing),
            Output::Constant(tensor) => Ok(tensor.clone()),
        };
        self.outputs.iter().map(output).collect()
    }

    fn segments(
        &self,
        generation: &Generation,
        lease: &mut Lease<'_>,
        hosts: &mut [Option<Tensor>],
        control: &RunControl,
    ) -> Result<()> {
        let buffers = lease.buffers(&generation.context, self.sizes)?;
        let bound = self.bound(generation, lease, &buffers)?;
        for (segment, groups) in self.segments.iter().zip(&bound.groups) {
            control.check()?;
            if !(segment.dispatches.is_empty() && segment.downloads.is_empty()) {
                let recorded = Recorded { segment, groups, buffers: &buffers };
                self.submit(generation, lease, recorded, hosts)?;
            }
            if let Some(cpu) = &segment.cpu {
                cpu.run(hosts, control)?;
            }
        }
        Ok(())
    }

    /// Leases' buffers and bind groups, for replays.
    pub(crate) fn bind_for(
        &self,
        generation: &Generation,
        lease: &mut Lease<'_>,
    ) -> Result<Arc<Bound>> {
        let buffers = lease.buffers(&generation.context, self.sizes)?;
        self.bound(generation, lease, &buffers)
    }

    /// Records every dispatch, and nothing that goes up or down.
    pub(crate) fn record_all(&self, encoder: &mut wgpu::CommandEncoder, bound: &Bound) {
        for (segment, groups) in self.segments.iter().zip(&bound.groups) {
            record(encoder, segment, groups);
        }
    }

    /// Every dispatch with its bind group, in order.
    pub(crate) fn recorded<'a>(
        &'a self,
        bound: &'a Bound,
    ) -> impl Iterator<Item = (&'a Dispatch, &'a wgpu::BindGroup)> {
        let segments = self.segments.iter().zip(&bound.groups);
        segments.flat_map(|(segment, groups)| segment.dispatches.iter().zip(groups))
    }

    /// The bind groups for the slot's arena, made when the arena is new.
    fn bound(
        &self,
        generation: &Generation,
        lease: &mut Lease<'_>,
        buffers: &Buffers,
    ) -> Result<Arc<Bound>> {
        let slot = lease.slot()?;
        let cell = &self.bound[slot.index];
        if let Some(known) = &*cell.lock() {
            return Ok(known.clone());
        }
        let group = |dispatch: &Dispatch| {
            let bindings = dispatch.bindings.iter();
            let bindings: Vec<_> = bindings.map(|b| b.resolve(&buffers.arena)).collect();
            generation.context.bind(&bindings)
        };
        let groups = self.segments.iter().map(|s| s.dispatches.iter().map(group).collect());
        let made = Arc::new(Bound { groups: groups.collect() });
        *cell.lock() = Some(made.clone());
        slot.follow(cell);
        Ok(made)
    }

    fn submit(
        &self,
        generation: &Generation,
        lease: &mut Lease<'_>,
        recorded: Recorded<'_>,
        hosts: &mut [Option<Tensor>],
    ) -> Result<()> {
        let Recorded { segment, groups, buffers } = recorded;
        let context = &generation.context;
        context.check()?;
        stage(segment, &buffers.upload, hosts)?;
        buffers.upload.unmap();
        let mut encoder = context.device.create_command_encoder(&Default::default());
        for upload in &segment.uploads {
            let (from, to) = (upload.staging_offset, upload.arena_offset);
            encoder.copy_buffer_to_buffer(&buffers.upload, from, &buffers.arena, to, upload.bytes);
        }
        if self.checks {
            encoder.clear_buffer(&buffers.arena, 0, Some(STATUS_BYTES));
        }
        record(&mut encoder, segment, groups);
        if self.checks {
            encoder.copy_buffer_to_buffer(&buffers.arena, 0, &buffers.readback, 0, STATUS_BYTES);
        }
        for download in &segment.downloads {
            let (from, to) = (download.arena_offset, download.staging_offset);
            let bytes = download.bytes;
            encoder.copy_buffer_to_buffer(&buffers.arena, from, &buffers.readback, to, bytes);
        }
        let slot = lease.slot()?;
        slot.signal.expect(2);
        let submission = context.queue.submit([encoder.finish()]);
        for (buffer, mode) in
            [(&buffers.upload, wgpu::MapMode::Write), (&buffers.readback, wgpu::MapMode::Read)]
        {
            let signal = slot.signal.clone();
            buffer.map_async(mode, .., move |mapped| signal.arrive(mapped.is_ok()));
        }
        context.watch_for(submission)?;
        slot.signal.wait(context)?;
        let read = self.read(segment, &buffers.readback, hosts);
        buffers.readback.unmap();
        read
    }

    fn read(
        &self,
        segment: &Segment,
        readback: &wgpu::Buffer,
        hosts: &mut [Option<Tensor>],
    ) -> Result<()> {
        let view = readback.get_mapped_range(..).map_err(unmapped)?;
        if self.checks && view[..4] != [0; 4] {
            return Err(Error::invalid("an index is out of range"));
        }
        for download in &segment.downloads {
            let start = download.staging_offset as usize;
            let bytes = &view[start..start + download.bytes as usize];
            let words: &[u32] = bytemuck::cast_slice(bytes);
            hosts[download.host] = Some(from_words(download.dtype, &download.shape, words)?);
        }
        Ok(())
    }
}

/// Records the whole segment in one pass.
fn record(encoder: &mut wgpu::CommandEncoder, segment: &Segment, groups: &[wgpu::BindGroup]) {
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let mut current: Option<&wgpu::ComputePipeline> = None;
    for (dispatch, group) in segment.dispatches.iter().zip(groups) {
        let pipeline = &*dispatch.pipeline;
        if current.is_none_or(|known| !std::ptr::eq(known, pipeline)) {
            pass.set_pipeline(pipeline);
            current = Some(pipeline);
        }
        pass.set_bind_group(0, group, &[]);
        pass.set_immediates(0, dispatch.params.bytes());
        let [x, y, z] = dispatch.groups;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Writes the inputs of a segment where the device fetches them.
fn stage(segment: &Segment, upload: &wgpu::Buffer, hosts: &[Option<Tensor>]) -> Result<()> {
    let Some(last) = segment.uploads.last() else { return Ok(()) };
    let end = last.staging_offset + last.bytes;
    let mut view = upload.get_mapped_range_mut(..end).map_err(unmapped)?;
    for upload in &segment.uploads {
        let tensor = hosts[upload.host].as_ref().ok_or_else(missing)?;
        let start = upload.staging_offset as usize;
        let range = start..start + upload.bytes as usize;
        match (tensor.dtype(), tensor.bytes()) {
            (DType::F32 | DType::I32, Some(bytes)) => view.slice(range).copy_from_slice(bytes),
            _ => {
                let mut words = vec![0u32; tensor.len()];
                write_words(tensor, &mut words)?;
                view.slice(range).copy_from_slice(bytemuck::cast_slice(&words));
            }
        }
    }
    Ok(())
}

fn unmapped(error: wgpu::MapRangeError) -> Error {
    Error::internal(format!("a staging buffer is not mapped: {error}"))
}

fn missing() -> Error {
    Error::internal("a value of the run is missing")
}

impl Binding {
    fn resolve<'a>(&'a self, arena: &'a wgpu::Buffer) -> wgpu::BufferBinding<'a> {
        let (buffer, offset, bytes) = match self {
            Self::Arena { offset, bytes } => (arena, *offset, *bytes),
            Self::Weight(weight) => (&weight.buffer, weight.offset, weight.bytes),
        };
        wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(bytes) }
    }
}

impl CpuPart {
    fn run(&self, hosts: &mut [Option<Tensor>], control: &RunControl) -> Result<()> {
        let input = |slot: &usize| hosts[*slot].clone().ok_or_else(missing);
        let inputs = self.inputs.iter().map(input).collect::<Result<_>>()?;
        let outputs = self.executable.execute(inputs, control)?.wait()?;
        for (slot, tensor) in self.outputs.iter().zip(outputs) {
            hosts[*slot] = Some(tensor);
        }
        Ok(())
    }
}

/// What turns steps into segments.
struct Layout<'a> {
    generation: &'a Generation,
    cpu: &'a dyn Device,
    plan: &'a Plan,
    limits: &'a GraphLimits,
    offsets: Vec<u64>,
    /// Where values lie among the host tensors of a run.
    hosts: HashMap<ValueId, usize>,
}

impl Layout<'_> {
    fn host(&mut self, value: ValueId) -> usize {
        let next = self.hosts.len();
        *self.hosts.entry(value).or_insert(next)
    }

    fn output(&mut self, value: ValueId) -> Result<Output> {
        match self.plan.constants.get(value.index()).and_then(Option::as_ref) {
            Some(constant) => Ok(Output::Constant(constant.tensor()?.clone())),
            None => Ok(Output::Host(self.host(value))),
        }
    }

    fn segments(&mut self, lowered: &Lowered) -> Result<Vec<Segment>> {
        let mut segments = vec![Segment::default()];
        for step in &lowered.steps {
            if segments.last().is_some_and(|segment| segment.cpu.is_some()) {
                segments.push(Segment::default());
            }
            let Some(segment) = segments.last_mut() else { continue };
            match step {
                Step::Upload { value, buffer } => {
                    let bytes = lowered.buffers[*buffer];
                    let host = self.host(*value);
                    segment.upload(host, self.offsets[*buffer], bytes);
                }
                Step::Launch(launch) => {
                    segment.dispatches.push(self.dispatch(launch, &lowered.buffers)?);
                }
                Step::Download { value, operand } => {
                    let host = self.host(*value);
                    segment.download(host, operand, &self.offsets);
                }
                Step::Cpu { nodes } => segment.cpu = Some(self.cpu_part(nodes)?),
            }
        }
        Ok(segments)
    }

    fn dispatch(&self, launch: &Launch, buffers: &[u64]) -> Result<Dispatch> {
        let binding = |place: &Place| match place {
            Place::Arena(at) => Binding::Arena { offset: self.offsets[*at], bytes: buffers[*at] },
            Place::Weight(weight) => Binding::Weight(weight.clone()),
        };
        Ok(Dispatch {
            pipeline: self.generation.context.pipeline(&launch.kernel)?,
            params: launch.params,
            groups: launch.groups,
            bindings: launch.bindings.iter().map(binding).collect(),
        })
    }

    /// A plan of its own for nodes that run on the CPU.
    fn cpu_part(&mut self, nodes: &[usize]) -> Result<CpuPart> {
        let plan = self.plan;
        let part: Vec<_> = nodes.iter().map(|index| plan.body.nodes[*index].clone()).collect();
        let made: Vec<ValueId> =
            part.iter().flat_map(|node| node.outputs.iter().flatten().copied()).collect();
        let is_constant =
            |value: &ValueId| plan.constants.get(value.index()).is_some_and(Option::is_some);
        let mut inputs: Vec<ValueId> = part.iter().flat_map(crate::lower::reads).collect();
        inputs.retain(|value| !made.contains(value) && !is_constant(value));
        inputs.sort_unstable();
        inputs.dedup();
        let wanted = |value: &ValueId| {
            let others = plan.body.nodes.iter().enumerate().filter(|(at, _)| !nodes.contains(at));
            plan.body.outputs.contains(value)
                || others.into_iter().any(|(_, node)| crate::lower::reads(node).contains(value))
        };
        let outputs: Vec<ValueId> = made.iter().copied().filter(wanted).collect();
        let spec = |value: &ValueId| self.spec(*value);
        let signature = Signature {
            inputs: inputs.iter().map(spec).collect::<Result<_>>()?,
            outputs: outputs.iter().map(|value| loose(*value)).collect(),
        };
        let body = GraphBody { inputs: inputs.clone(), nodes: part, outputs: outputs.clone() };
        let constants = plan.constants.clone();
        let (facts, origins) = (plan.facts.clone(), plan.origins.clone());
        let part = Plan { body, constants, facts, origins, signature, rows_independent: false };
        let executable = self.cpu.compile(part, self.limits)?;
        let inputs = inputs.into_iter().map(|value| self.host(value)).collect();
        let outputs = outputs.into_iter().map(|value| self.host(value)).collect();
        Ok(CpuPart { executable, inputs, outputs })
    }

    fn spec(&self, value: ValueId) -> Result<TensorSpec> {
        let fact = self.plan.facts.get(value.index());
        let dtype = fact.and_then(|fact| fact.dtype);
        let shape = fact.and_then(|fact| fact.shape.as_deref());
        match (dtype, shape) {
            (Some(dtype), Some(shape)) => Ok(TensorSpec::new(name(value), dtype, shape)),
            // Sequences and optionals cannot cross; the whole plan stays on
            // the CPU then.
            _ => Err(Error::unsupported("a value of unknown type between devices")),
        }
    }
}

fn name(value: ValueId) -> String {
    format!("v{}", value.0)
}

fn loose(value: ValueId) -> TensorSpec {
    TensorSpec::new(name(value), DType::F32, &[mortise_types::VARIABLE])
}

impl Segment {
    fn upload(&mut self, host: usize, arena_offset: u64, bytes: u64) {
        let end = |upload: &Upload| upload.staging_offset + aligned(upload.bytes);
        let staging_offset = self.uploads.last().map_or(0, end);
        self.uploads.push(Upload { host, arena_offset, staging_offset, bytes });
    }

    fn download(&mut self, host: usize, operand: &Operand, offsets: &[u64]) {
        let Place::Arena(buffer) = operand.place else { return };
        let end = |download: &Download| download.staging_offset + aligned(download.bytes);
        self.downloads.push(Download {
            host,
            dtype: operand.dtype,
            shape: operand.shape.clone(),
            arena_offset: offsets[buffer],
            staging_offset: self.downloads.last().map_or(aligned(STATUS_BYTES), end),
            bytes: operand.len() as u64 * 4,
        });
    }
}
