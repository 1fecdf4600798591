//! Measures kernels, graphs and the machine under them, through [`Device`]
//! alone, so that every device is measured alike.

mod kernels;
mod peaks;

pub use kernels::{Kernel, KernelSizes, kernels};
pub use peaks::{Arithmetic, Peaks};
pub(crate) use peaks::{cpu_bytes_per_second, cpu_f32_per_second, cpu_int8_per_second};

use crate::{Device, Executable, compile_graph};
use mortise_graph::{GraphLimits, Work};
use mortise_types::{Assets, GraphDef, Result, Tensor};
use std::time::Duration;

/// How long one sample should take, so that the clock's grain does not show.
const SAMPLE: Duration = Duration::from_millis(20);

/// Samples, of which the median counts.
const SAMPLES: usize = 5;

/// Runs in one sample at most.
const MAX_REPEATS: usize = 10_000;

/// What a graph took on a device, beside what it is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Of one run, the median of several samples.
    pub time: Duration,
    pub work: Work,
}

impl Timing {
    /// Billions of operations a second.
    pub fn gflops(&self) -> f64 {
        self.work.operations as f64 / self.time.as_secs_f64() / 1e9
    }

    /// Gigabytes a second of weights, inputs and outputs.
    pub fn gbs(&self) -> f64 {
        self.work.bytes as f64 / self.time.as_secs_f64() / 1e9
    }

    /// The least time that `peaks` allow over the time taken: 1 is as fast as
    /// can be. More means that bytes came from a cache. `None` where the peak
    /// that counts is not known.
    pub fn floor_share(&self, peaks: &Peaks, arithmetic: Arithmetic) -> Option<f64> {
        peaks.floor(&self.work, arithmetic).map(|floor| floor / self.time.as_secs_f64())
    }
}

/// Compiles a graph for `device` and times it with `inputs`.
///
/// # Errors
/// As compiling and running the graph.
pub fn time_graph(
    device: &dyn Device,
    def: &GraphDef,
    assets: &Assets,
    inputs: &[Tensor],
) -> Result<Timing> {
    let limits = GraphLimits { max_arena_bytes: usize::MAX, ..GraphLimits::default() };
    let work = work_of(device, def, assets, inputs)?;
    let executable = compile_graph(device, def, assets, &limits)?;
    Ok(Timing { time: time_executable(&*executable, inputs)?, work })
}

/// The work of one run of a graph with `inputs`.
///
/// # Errors
/// As planning the graph.
pub fn work_of(
    device: &dyn Device,
    def: &GraphDef,
    assets: &Assets,
    inputs: &[Tensor],
) -> Result<Work> {
    let limits = GraphLimits::default();
    let plan = mortise_graph::plan(def, assets, &limits, device.evaluate())?;
    let shapes: Vec<_> = inputs.iter().map(|input| input.shape().into()).collect();
    Ok(plan.specialised(&shapes, &limits, device.evaluate())?.work())
}

/// The time of one run, the median of several samples after a warm-up.
///
/// # Errors
/// As a run.
pub fn time_executable(executable: &dyn Executable, inputs: &[Tensor]) -> Result<Duration> {
    executable.time(inputs, 2)?;
    let once = executable.time(inputs, 1)?.max(Duration::from_nanos(1));
    let repeats = (SAMPLE.as_nanos() / once.as_nanos()).clamp(1, MAX_REPEATS as u128) as usize;
    let samples = (0..SAMPLES).map(|_| executable.time(inputs, repeats));
    let mut samples = samples.collect::<Result<Vec<_>>>()?;
    samples.sort_unstable();
    Ok(samples[samples.len() / 2])
}
