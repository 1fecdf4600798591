//! Kernels by themselves, for tuning and for benchmarks: replayed on the
//! device without anything going up or down in between.

use crate::context::Context;
use crate::device::Generation;
use crate::lower;
use crate::peaks;
use crate::program::{Bound, Dispatch, Program};
use crate::weights::WeightCache;
use half::f16;
use mortise_compute::{CpuDevice, CpuOptions};
use mortise_graph::{Fact, GraphLimits, Plan};
use mortise_types::{
    Attribute, DType, Error, GraphBody, NodeDef, Result, RunControl, Signature, Tensor, Value,
    ValueId,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// Time of one replay on the device, out of `repeats` in one submission.
    ///
    /// # Errors
    /// As a run.
    pub(crate) fn time(&self, generation: &Generation, repeats: usize) -> Result<Duration> {
        self.program.replay(generation, 1)?;
        self.program.time(generation, repeats)
    }

    /// One run with everything that goes up and down.
    ///
    /// # Errors
    /// As a run.
    #[cfg(test)]
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
    [m, n, k]: [usize; 3],
    weights: Weights,
) -> Result<Replay> {
    let input = if weights == Weights::F16 { DType::F16 } else { DType::F32 };
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
            let scales = parts.constant(Tensor::from_vec(&[n * blocks], filled(n * blocks))?);
            let int = |name: &str, value: usize| (Arc::from(name), Attribute::Int(value as i64));
            let attributes =
                vec![int("K", k), int("N", n), int("bits", bits), int("block_size", 32)];
            parts.node("com.microsoft", "MatMulNBits", &[x, w, scales], attributes)
        }
    };
    parts.finish(generation, node)
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
    parts.finish(generation, x)
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

    fn finish(mut self, generation: &Generation, output: ValueId) -> Result<Replay> {
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
        let Generation { context, heap, tuning, .. } = generation;
        let cache = WeightCache::default();
        let lowered = lower::lower(context, heap, &cache, tuning, &plan)?;
        let cpu = CpuDevice::new(CpuOptions { threads: 1 });
        let limits = GraphLimits { max_arena_bytes: usize::MAX, ..GraphLimits::default() };
        Ok(Replay { program: Program::new(generation, &*cpu, &plan, &limits, lowered)? })
    }
}

/// Measures kernels of an opened adapter.
pub struct Bench {
    generation: Generation,
}

impl Bench {
    /// # Errors
    /// As [`crate::GpuDevice::open`].
    pub fn open(index: usize) -> Result<Self> {
        Ok(Self { generation: Generation::open(index, None)? })
    }

    pub fn name(&self) -> &str {
        &self.generation.context.name
    }

    /// Time of one product `[m, k] · [k, n]` on the device.
    ///
    /// # Errors
    /// `Overloaded` when it does not fit the device.
    pub fn product(&self, shape: [usize; 3], weights: Weights, repeats: usize) -> Result<Duration> {
        product(&self.generation, shape, weights)?.time(&self.generation, repeats)
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
    /// Time of one replay on the device, out of `repeats` in one submission.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub(crate) fn time(&self, generation: &Generation, repeats: usize) -> Result<Duration> {
        let start = Instant::now();
        self.replay(generation, repeats)?;
        Ok(start.elapsed() / repeats as u32)
    }

    /// Records the dispatches `repeats` times, submits them once, and waits.
    /// Answers how long recording and submitting took.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub(crate) fn replay(&self, generation: &Generation, repeats: usize) -> Result<Duration> {
        let context = &generation.context;
        let mut lease = generation.slots.acquire(context, &RunControl::unbounded())?;
        let groups = self.bind_for(generation, &mut lease)?;
        let start = Instant::now();
        let mut encoder = context.device.create_command_encoder(&Default::default());
        for _ in 0..repeats {
            self.record_all(&mut encoder, &groups);
        }
        let commands = encoder.finish();
        let recorded = start.elapsed();
        finish(context, commands)?;
        Ok(recorded)
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
