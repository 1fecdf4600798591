//! Kernels by themselves, for tuning and for benchmarks: replayed on the
//! device without anything going up or down in between.

use crate::context::Context;
use crate::device::Generation;
use crate::heap::Weight;
use crate::lower::{self, Step};
use crate::peaks;
use crate::program::{Bound, Dispatch, Program};
use crate::tune::{Kind, Tuning};
use crate::units;
use crate::weights::WeightCache;
use half::f16;
use mortise_compute::{CpuDevice, CpuOptions, Device};
use mortise_graph::{Fact, GraphLimits, Plan};
use mortise_types::{
    Assets, Attribute, DType, Error, GraphBody, GraphDef, NodeDef, Result, RunControl, Shape,
    Signature, Tensor, Value, ValueId,
};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a device is busy before it is measured, after it rested.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// The same between measurements that follow one another.
pub(crate) const KEEP_WARM: Duration = Duration::from_millis(5);

/// How the right side of a product is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    F32,
    F16,
    /// 8 bits, with a scale for each 32.
    Int8,
    /// 4 bits, with a scale for each 32.
    Int4,
}

impl Weights {
    /// Bytes of a `k × n` matrix on the device.
    pub fn bytes(self, k: usize, n: usize) -> usize {
        match self {
            Self::F32 => k * n * 4,
            Self::F16 => k * n * 2,
            Self::Int8 => k * n + k * n / 32 * 8,
            Self::Int4 => k * n / 2 + k * n / 32 * 8,
        }
    }
}

/// Dispatches that can be replayed.
pub(crate) struct Replay {
    program: Program,
}

impl Replay {
    /// As [`Program::time`].
    ///
    /// # Errors
    /// As a run.
    pub(crate) fn time(
        &self,
        generation: &Generation,
        repeats: usize,
        warm_up: Duration,
    ) -> Result<Duration> {
        self.program.time(generation, repeats, warm_up)
    }

    /// One run with everything that goes up and down.
    ///
    /// # Errors
    /// As a run.
    pub(crate) fn run(
        &self,
        generation: &Generation,
        inputs: Vec<Tensor>,
        control: &RunControl,
    ) -> Result<Vec<Tensor>> {
        self.program.run(generation, inputs, control)
    }

    /// Median time to record one dispatch, out of `rounds` recordings that are
    /// not submitted.
    ///
    /// # Errors
    /// As a run.
    pub(crate) fn record_time(&self, generation: &Generation, rounds: usize) -> Result<Duration> {
        let groups = self.bound(generation)?;
        let time = median(rounds, || self.record(&generation.context, &groups));
        Ok(time / self.program.dispatch_count as u32)
    }

    fn bound(&self, generation: &Generation) -> Result<Arc<Bound>> {
        let mut lease = generation.slots.acquire(&generation.context, &RunControl::unbounded())?;
        self.program.bind_for(generation, &mut lease)
    }

    /// Records as a run does, and drops what was recorded.
    fn record(&self, context: &Context, groups: &Bound) {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        self.program.record_all(&mut encoder, groups);
        drop(encoder.finish());
    }

    /// The same dispatches in wgpu's calls alone, for comparison.
    ///
    /// # Errors
    /// As a run.
    pub(crate) fn bare(&self, generation: &Generation) -> Result<Bare> {
        let groups = self.bound(generation)?;
        let list = self.program.recorded(&groups);
        let list = list.map(|(dispatch, group)| (dispatch.clone(), group.clone())).collect();
        Ok(Bare { list })
    }
}

/// Dispatches of one pipeline, as wgpu takes them.
pub(crate) struct Bare {
    list: Vec<(Dispatch, wgpu::BindGroup)>,
}

impl Bare {
    /// Records in one pass, and drops what was recorded.
    pub(crate) fn record(&self, context: &Context, binding: Rebinding) {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        if let Some((dispatch, group)) = self.list.first() {
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, group, &[]);
        }
        for (dispatch, group) in &self.list {
            if binding == Rebinding::Each {
                pass.set_bind_group(0, group, &[]);
            }
            pass.set_immediates(0, dispatch.params.bytes());
            let [x, y, z] = dispatch.groups;
            pass.dispatch_workgroups(x, y, z);
        }
        drop(pass);
        drop(encoder.finish());
    }

    fn record_time(&self, context: &Context, rounds: usize, binding: Rebinding) -> Duration {
        median(rounds, || self.record(context, binding)) / self.list.len() as u32
    }
}

/// What a bare recording binds: the group of each dispatch, or the first alone.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rebinding {
    Each,
    Once,
}

/// One dispatch of a model.
pub struct DispatchTime {
    pub kernel: &'static str,
    pub groups: [u32; 3],
    pub time: Duration,
}

/// Times to record one dispatch, over a pass of 1,000.
pub struct RecordTimes {
    /// As a run does, bind groups included.
    pub ours: Duration,
    /// The same calls to wgpu and nothing around them.
    pub bare: Duration,
    /// As `bare` with one bind group for all: what binding costs is the rest.
    pub unbound: Duration,
}

/// A product `[m, k] · [k, n]` with constant weights.
///
/// # Errors
/// `Overloaded` when the weights do not fit the device.
pub(crate) fn product(
    generation: &Generation,
    size: [usize; 3],
    weights: Weights,
) -> Result<Replay> {
    prepared(size, weights)?.replay(generation)
}

/// A plan of one product, which can be lowered more than once.
///
/// # Errors
/// None that is not ours.
pub(crate) fn prepared([m, n, k]: [usize; 3], weights: Weights) -> Result<Prepared> {
    let input = if weights == Weights::F32 { DType::F32 } else { DType::F16 };
    let mut parts = Parts::default();
    let x = parts.input(input, &[m, k]);
    let node = match weights {
        Weights::F32 => {
            let w = parts.constant(Tensor::from_vec(&[k, n], filled(k * n))?);
            parts.node("", "MatMul", &[x, w], Vec::new())
        }
        Weights::F16 => {
            let values = filled(k * n).into_iter().map(f16::from_f32).collect();
            let w = parts.constant(Tensor::from_vec(&[k, n], values)?);
            parts.node("", "MatMul", &[x, w], Vec::new())
        }
        Weights::Int8 | Weights::Int4 => {
            let bits = if weights == Weights::Int8 { 8 } else { 4 };
            let blocks = k.div_ceil(32);
            let bytes = (0..n * blocks * 4 * bits).map(|at| (at * 37) as u8).collect();
            let w = parts.constant(Tensor::from_vec(&[n, blocks, 4 * bits], bytes)?);
            let scales = filled(n * blocks).into_iter().map(|scale| f16::from_f32(scale / 8.0));
            let scales = parts.constant(Tensor::from_vec(&[n * blocks], scales.collect())?);
            let int = |name: &str, value: usize| (Arc::from(name), Attribute::Int(value as i64));
            let attributes =
                vec![int("K", k), int("N", n), int("bits", bits), int("block_size", 32)];
            parts.node("com.microsoft", "MatMulNBits", &[x, w, scales], attributes)
        }
    };
    Ok(parts.finish(node))
}

/// A chain of `count` products of one row, each too small to take time.
///
/// # Errors
/// As [`product`].
pub(crate) fn chain(generation: &Generation, count: usize) -> Result<Replay> {
    let mut parts = Parts::default();
    let mut x = parts.input(DType::F32, &[1, 8]);
    let w = parts.constant(Tensor::from_vec(&[8, 8], filled(64))?);
    for _ in 0..count {
        x = parts.node("", "MatMul", &[x, w], Vec::new());
    }
    parts.finish(x).replay(generation)
}

/// Small values that differ.
fn filled(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 37 % 101) as f32 - 50.0) / 500.0).collect()
}

/// A plan put together by hand.
#[derive(Default)]
struct Parts {
    body: GraphBody,
    constants: Vec<Option<Value>>,
    facts: Vec<Fact>,
}

impl Parts {
    fn value(&mut self, constant: Option<Value>, fact: Fact) -> ValueId {
        self.constants.push(constant);
        self.facts.push(fact);
        ValueId(self.facts.len() as u32 - 1)
    }

    fn input(&mut self, dtype: DType, shape: &[usize]) -> ValueId {
        let shape = shape.iter().map(|dim| *dim as i64).collect();
        let value = self.value(None, Fact { dtype: Some(dtype), shape: Some(shape) });
        self.body.inputs.push(value);
        value
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.value(Some(tensor.into()), Fact::default())
    }

    fn node(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[ValueId],
        attributes: Vec<(Arc<str>, Attribute)>,
    ) -> ValueId {
        let output = self.value(None, Fact::default());
        self.body.nodes.push(NodeDef {
            domain: domain.into(),
            op: op.into(),
            opset: 21,
            name: String::new(),
            inputs: inputs.iter().copied().map(Some).collect(),
            attributes,
            outputs: vec![Some(output)],
        });
        output
    }

    fn finish(mut self, output: ValueId) -> Prepared {
        self.body.outputs.push(output);
        let Self { body, constants, facts } = self;
        let plan = Plan {
            body,
            constants,
            facts,
            origins: Default::default(),
            signature: Signature::default(),
            rows_independent: false,
        };
        Prepared { plan, cache: WeightCache::default(), weights: Mutex::default() }
    }
}

/// A plan, and its weights on the device.
pub(crate) struct Prepared {
    plan: Plan,
    cache: WeightCache,
    /// Keep the weights where they are.
    weights: Mutex<Vec<Arc<Weight>>>,
}

impl Prepared {
    /// The plan's dispatches, with the generation's tuning as it is now.
    ///
    /// # Errors
    /// `Overloaded` when the weights do not fit the device.
    pub(crate) fn replay(&self, generation: &Generation) -> Result<Replay> {
        let Generation { context, heap, tuning, .. } = generation;
        let lowered = lower::lower(context, heap, &self.cache, tuning, &self.plan)?;
        self.weights.lock().extend(lowered.weights.iter().cloned());
        let cpu = CpuDevice::new(CpuOptions { threads: 1 });
        let limits = GraphLimits { max_arena_bytes: usize::MAX, ..GraphLimits::default() };
        Ok(Replay { program: Program::new(generation, &*cpu, &self.plan, &limits, lowered)? })
    }
}

/// Measures kernels of an opened adapter.
pub struct Bench {
    generation: Generation,
}

impl Bench {
    /// What is tuned for the adapter is kept in `tuning_file`.
    ///
    /// # Errors
    /// As [`crate::GpuDevice::open`].
    pub fn open(index: usize, tuning_file: Option<&Path>) -> Result<Self> {
        Ok(Self { generation: Generation::open(index, tuning_file)? })
    }

    /// Whether products of f16 run on matrix units.
    pub fn has_matrix_units(&self) -> bool {
        self.generation.context.has_matrix_units
    }

    /// Times of a product with every choice of tiles there is for it, as the
    /// choices describe themselves.
    ///
    /// # Errors
    /// As [`Bench::product`].
    pub fn choices(
        &mut self,
        size: [usize; 3],
        weights: Weights,
        repeats: usize,
    ) -> Result<Vec<(String, Duration)>> {
        let kind = Kind::of(weights, self.has_matrix_units());
        let prepared = prepared(size, weights)?;
        let tuned = self.generation.tuning.clone();
        let time = |index: usize| {
            self.generation.tuning = Tuning::only(kind, size, index);
            let warm_up = if index == 0 { WARM_UP } else { KEEP_WARM };
            let replay = prepared.replay(&self.generation)?;
            Ok((kind.describe(index), replay.time(&self.generation, repeats, warm_up)?))
        };
        let times = (0..kind.choices()).map(time).collect();
        self.generation.tuning = tuned;
        times
    }

    pub fn name(&self) -> &str {
        &self.generation.context.name
    }

    /// Time of one product `[m, k] · [k, n]` on the device.
    ///
    /// # Errors
    /// `Overloaded` when it does not fit the device.
    pub fn product(&self, shape: [usize; 3], weights: Weights, repeats: usize) -> Result<Duration> {
        product(&self.generation, shape, weights)?.time(&self.generation, repeats, WARM_UP)
    }

    /// Runs products on matrix units `repeats` times, of shapes and numbers that
    /// change every 20; answers how many were not right or not bit by bit the
    /// same as before, or `None` without matrix units.
    ///
    /// # Errors
    /// As a run.
    pub fn unstable_products(&mut self, repeats: usize) -> Result<Option<usize>> {
        const SAME: usize = 20;
        if !self.generation.context.has_matrix_units {
            return Ok(None);
        }
        let mut failed = 0;
        for round in 0..repeats.div_ceil(SAME) {
            failed += units::unstable(&mut self.generation, round, SAME)?;
        }
        Ok(Some(failed))
    }

    /// What each dispatch of a model takes by itself, for inputs of these
    /// shapes.
    ///
    /// # Errors
    /// As [`crate::GpuDevice`]'s compilation and runs.
    pub fn profile(&self, def: &GraphDef, shapes: &[Shape]) -> Result<Vec<DispatchTime>> {
        const REPEATS: u32 = 20;
        let cpu = CpuDevice::new(CpuOptions { threads: 1 });
        let limits = GraphLimits::default();
        let evaluate = Device::evaluate(&*cpu);
        let plan = mortise_graph::plan(def, &Assets::default(), &limits, evaluate)?;
        let plan = plan.specialised(shapes, &limits, evaluate)?;
        let Generation { context, heap, tuning, .. } = &self.generation;
        let lowered = lower::lower(context, heap, &WeightCache::default(), tuning, &plan)?;
        let name = |step: &Step| match step {
            Step::Launch(launch) => Some(launch.kernel.name()),
            _ => None,
        };
        let names: Vec<_> = lowered.steps.iter().filter_map(name).collect();
        let program = Program::new(&self.generation, &*cpu, &plan, &limits, lowered)?;
        let replay = Replay { program };
        let bound = replay.bound(&self.generation)?;
        let timed = |(name, (dispatch, group)): (&'static str, (&Dispatch, &wgpu::BindGroup))| {
            let run = |repeats: u32| {
                let mut encoder = context.device.create_command_encoder(&Default::default());
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.set_immediates(0, dispatch.params.bytes());
                let [x, y, z] = dispatch.groups;
                (0..repeats).for_each(|_| pass.dispatch_workgroups(x, y, z));
                drop(pass);
                let start = Instant::now();
                finish(context, encoder.finish())?;
                Ok::<_, Error>(start.elapsed() / repeats)
            };
            run(2)?;
            Ok(DispatchTime { kernel: name, groups: dispatch.groups, time: run(REPEATS)? })
        };
        names.into_iter().zip(replay.program.recorded(&bound)).map(timed).collect()
    }

    /// Gigabytes read and written a second when copying `bytes` on the device.
    ///
    /// # Errors
    /// `Overloaded` when they do not fit.
    pub fn bandwidth(&self, bytes: u64) -> Result<f64> {
        Ok(peaks::bytes_per_second(&self.generation.context, bytes)? / 1e9)
    }

    /// Times to record one dispatch.
    ///
    /// # Errors
    /// As a run.
    pub fn record_times(&self) -> Result<RecordTimes> {
        const ROUNDS: usize = 200;
        let chain = chain(&self.generation, 1_000)?;
        let (bare, context) = (chain.bare(&self.generation)?, &self.generation.context);
        Ok(RecordTimes {
            ours: chain.record_time(&self.generation, ROUNDS)?,
            bare: bare.record_time(context, ROUNDS, Rebinding::Each),
            unbound: bare.record_time(context, ROUNDS, Rebinding::Once),
        })
    }
}

/// The median time of `rounds` calls, after one that warms up.
fn median(rounds: usize, mut call: impl FnMut()) -> Duration {
    call();
    let timed = |_| {
        let start = Instant::now();
        call();
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..rounds).map(timed).collect();
    times.sort_unstable();
    times[rounds / 2]
}

impl Program {
    /// Time of one replay on the device, out of `repeats` in one submission: the
    /// best of three, once the device has been busy for `warm_up`, so that it has
    /// its full clock.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub(crate) fn time(
        &self,
        generation: &Generation,
        repeats: usize,
        warm_up: Duration,
    ) -> Result<Duration> {
        let start = Instant::now();
        let run = || self.replay(generation, repeats);
        run()?;
        while start.elapsed() < warm_up {
            run()?;
        }
        Ok(run()?.min(run()?).min(run()?) / repeats as u32)
    }

    /// Records the dispatches `repeats` times, submits them once, and waits.
    /// Answers how long it took from the submission on.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub(crate) fn replay(&self, generation: &Generation, repeats: usize) -> Result<Duration> {
        let context = &generation.context;
        let mut lease = generation.slots.acquire(context, &RunControl::unbounded())?;
        let groups = self.bind_for(generation, &mut lease)?;
        let mut encoder = context.device.create_command_encoder(&Default::default());
        for _ in 0..repeats {
            self.record_all(&mut encoder, &groups);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        finish(context, commands)?;
        Ok(start.elapsed())
    }
}

/// Submits commands and waits until they are done.
///
/// # Errors
/// `NotReady` when the device is lost.
pub(crate) fn finish(context: &Context, commands: wgpu::CommandBuffer) -> Result<()> {
    let submission = context.queue.submit([commands]);
    let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
    let done = context.device.poll(wait);
    done.map_err(|error| Error::not_ready(format!("the GPU did not finish: {error}")))?;
    context.check()
}
