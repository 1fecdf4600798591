//! Runs graphs. [`Device`] is the seam that every kind of hardware implements;
//! no vendor or API name shows above it.

mod cpu;
mod describe;
pub mod measure;

pub use cpu::{
    CpuDevice, CpuOptions, TreeAggregate, TreeBranch, TreeClasses, TreeEnsemble, TreeNode,
    TreeTest, TreeTransform,
};
pub use describe::{OperatorInfo, ValueInfo};

use measure::Peaks;
use mortise_graph::{Evaluate, GraphLimits, Plan, QuantReport, Quantisation};
use mortise_types::{Assets, GraphDef, Result, RunControl, Signature, Tensor, ValueId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Something that compiles plans and runs them.
pub trait Device: Send + Sync {
    fn caps(&self) -> DeviceCaps;

    /// What planning asks about operators and folds constants with.
    fn evaluate(&self) -> &dyn Evaluate;

    /// # Errors
    /// `Unsupported` naming every operator it cannot run; `LimitExceeded`.
    fn compile(&self, plan: Plan, limits: &GraphLimits) -> Result<Arc<dyn Executable>>;

    /// What it can do at most, measured now; takes up to a second.
    ///
    /// # Errors
    /// When the device is lost or has no memory left.
    fn peaks(&self) -> Result<Peaks>;

    /// What went wrong with it so far; nothing can with some.
    fn counters(&self) -> DeviceCounters {
        DeviceCounters::default()
    }
}

/// Faults of a device since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Times that it was lost.
    pub losses: u64,
    /// Runs that the CPU did instead.
    pub fallback_runs: u64,
    /// Runs and deployments that failed because its memory was full.
    pub out_of_memory: u64,
}

/// A compiled graph. Runs may overlap, on any threads.
pub trait Executable: Send + Sync {
    /// Names, dtypes and shapes as the graph computes them, which may differ
    /// from what a file declares.
    fn signature(&self) -> &Signature;

    fn footprint(&self) -> Footprint;

    /// The operators in the order in which they run, as far as a run has
    /// settled it.
    fn operators(&self) -> Vec<OperatorInfo>;

    /// Time of one of `repeats` runs one after the other, without what moves
    /// inputs and outputs to the device and back.
    ///
    /// # Errors
    /// As [`Executable::execute`].
    fn time(&self, inputs: &[Tensor], repeats: usize) -> Result<Duration> {
        let (control, repeats) = (RunControl::unbounded(), repeats.max(1));
        let start = Instant::now();
        for _ in 0..repeats {
            self.execute(inputs.to_vec(), &control)?.wait()?;
        }
        Ok(start.elapsed() / repeats as u32)
    }

    /// Whether rows of several requests may be put into one run.
    fn rows_independent(&self) -> bool;

    /// Starts a run. `inputs` are in the order of the signature.
    ///
    /// # Errors
    /// `InvalidInput` when inputs do not fit the signature or an operator;
    /// `Deadline`; `LimitExceeded`.
    fn execute(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Ticket>;
}

/// What a device can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCaps {
    /// For people: `cpu`, and how many threads.
    pub name: String,
    pub threads: usize,
}

/// What a compiled graph costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of weights and folded constants, packed copies included.
    pub weight_bytes: usize,
    /// Most bytes of intermediate tensors seen at once.
    pub peak_arena_bytes: usize,
    pub node_count: usize,
    /// Bytes of weights that were copied into a layout of the device's own.
    pub packed_copies: usize,
}

/// A run under way.
pub struct Ticket(Result<Vec<Tensor>>);

impl Ticket {
    /// A run that is over already.
    pub fn ready(result: Result<Vec<Tensor>>) -> Self {
        Self(result)
    }

    pub fn is_ready(&self) -> bool {
        true
    }

    /// Outputs in the order of the signature; blocks until they are there.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn wait(self) -> Result<Vec<Tensor>> {
        self.0
    }
}

/// Plans a graph for `device` and compiles it.
///
/// # Errors
/// `InvalidInput` for a malformed graph, `Unsupported` naming every operator
/// that the device lacks, `LimitExceeded` or `Deadline` for a costly one.
pub fn compile_graph(
    device: &dyn Device,
    def: &GraphDef,
    assets: &Assets,
    limits: &GraphLimits,
) -> Result<Arc<dyn Executable>> {
    let plan = mortise_graph::plan(def, assets, limits, device.evaluate())?;
    device.compile(plan, limits)
}

/// As [`compile_graph`], with activations whose ranges
/// [`compile_quantised`] may need as outputs behind those of the signature;
/// returns their values in that order.
///
/// # Errors
/// As [`compile_graph`].
pub fn compile_observed(
    device: &dyn Device,
    def: &GraphDef,
    assets: &Assets,
    limits: &GraphLimits,
) -> Result<(Arc<dyn Executable>, Vec<ValueId>)> {
    let (plan, observed) = mortise_graph::plan_observed(def, assets, limits, device.evaluate())?;
    Ok((device.compile(plan, limits)?, observed))
}

/// As [`compile_graph`], with weights in fewer bits.
///
/// # Errors
/// As [`compile_graph`].
pub fn compile_quantised(
    device: &dyn Device,
    def: &GraphDef,
    assets: &Assets,
    limits: &GraphLimits,
    how: &Quantisation,
) -> Result<(Arc<dyn Executable>, QuantReport)> {
    let (plan, report) =
        mortise_graph::plan_quantised(def, assets, limits, device.evaluate(), how)?;
    Ok((device.compile(plan, limits)?, report))
}
