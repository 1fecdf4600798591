//! The CPU device: prepacked weights, a flat list of steps, one arena a graph.

mod arena;
mod compile;
mod executor;
mod op;
mod ops;
mod parallel;
mod registry;
mod wide;

pub use crate::cpu::ops::ml_trees::plain::{
    TreeAggregate, TreeBranch, TreeClasses, TreeEnsemble, TreeNode, TreeTest, TreeTransform,
};

use crate::cpu::arena::Arena;
use crate::cpu::executor::CpuExecutable;
use crate::cpu::op::{Inputs, OpContext};
use crate::measure::{self, Peaks};
use crate::{Device, DeviceCaps, Executable};
use mortise_graph::{Evaluate, GraphLimits, Plan};
use mortise_types::{Attribute, Error, NodeDef, Result, RunControl, Value};
use std::sync::Arc;

/// How a [`CpuDevice`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads that one large run may use; 1 keeps every run on its caller.
    pub threads: usize,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// Runs graphs with native kernels in host memory.
pub struct CpuDevice {
    threads: usize,
    /// `None` where one thread is all there is: runs stay on their caller.
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl CpuDevice {
    pub fn new(options: CpuOptions) -> Arc<Self> {
        let threads = options.threads.max(1);
        let pool = (threads > 1).then(|| build_pool(threads)).flatten();
        Arc::new(Self { threads, pool })
    }
}

/// A pool that cannot be made (no more threads on this machine) is done
/// without: the device then runs on its callers.
fn build_pool(threads: usize) -> Option<Arc<rayon::ThreadPool>> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("compute-{index}"))
        .build()
        .ok()
        .map(Arc::new)
}

impl Device for CpuDevice {
    fn caps(&self) -> DeviceCaps {
        DeviceCaps { name: "cpu".to_owned(), threads: self.threads }
    }

    fn evaluate(&self) -> &dyn Evaluate {
        self
    }

    fn peaks(&self) -> Result<Peaks> {
        let int8 = self.on_every_thread(|| measure::cpu_int8_per_second().unwrap_or(0.0));
        let f32_per_second = self.on_every_thread(measure::cpu_f32_per_second);
        Ok(Peaks {
            f32_per_second,
            int8_per_second: Some(int8).filter(|rate| *rate > 0.0),
            // Halves are widened to floats.
            f16_per_second: Some(f32_per_second),
            bytes_per_second: self.on_every_thread(measure::cpu_bytes_per_second),
        })
    }

    fn compile(&self, plan: Plan, limits: &GraphLimits) -> Result<Arc<dyn Executable>> {
        let plan = plan.chained(self);
        let program = compile::compile(&plan)?;
        let mut executable = CpuExecutable::new(plan, program, limits, self.pool.clone());
        executable.learn_outputs();
        Ok(Arc::new(executable))
    }
}

impl CpuDevice {
    /// The sum over all threads of what `rate` measures on each, at once.
    fn on_every_thread(&self, rate: impl Fn() -> f64 + Sync) -> f64 {
        match &self.pool {
            Some(pool) => pool.broadcast(|_| rate()).into_iter().sum(),
            None => rate(),
        }
    }
}

impl Evaluate for CpuDevice {
    fn supports(&self, node: &NodeDef) -> Result<()> {
        registry::build(node).map(drop)
    }

    fn evaluate(
        &self,
        node: &NodeDef,
        mut inputs: Vec<Option<Value>>,
        max_bytes: usize,
        control: &RunControl,
    ) -> Result<Vec<Value>> {
        if node.attributes.iter().any(|(_, value)| matches!(value, Attribute::Graph(_))) {
            return Err(Error::unsupported("a node with subgraphs cannot be folded"));
        }
        let op = registry::build(node)?;
        let arena = Arena::new(max_bytes);
        let output_count = node.outputs.len();
        let ctx = OpContext { control, arena: &arena, subgraphs: None, output_count };
        let run = || op.run(&ctx, Inputs::new(&mut inputs));
        let outputs = executor::without_panics(run).map_err(|e| e.context(node.describe()))?;
        Ok(outputs.into_vec())
    }
}
