//! Runs a program: operands out of slots, operator, results into slots.

use crate::cpu::arena::Arena;
use crate::cpu::compile::{Arg, Program, Step};
use crate::cpu::op::{Inputs, OpContext, Outputs, RunSubgraph};
use crate::describe::byte_len;
use crate::{Executable, Footprint, OperatorInfo, Ticket};
use mortise_graph::{Fact, GraphLimits, Plan};
use mortise_types::{
    Error, GraphBody, Result, RunControl, Signature, Tensor, TensorSpec, VARIABLE, Value, ValueId,
};
use smallvec::SmallVec;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A graph compiled for the CPU.
pub(crate) struct CpuExecutable {
    program: Program,
    signature: Signature,
    /// Of the outputs, as far as inference went.
    output_facts: Vec<Fact>,
    rows_independent: bool,
    arena: Arc<Arena>,
    footprint: Footprint,
    operators: Vec<OperatorInfo>,
    has_loops: bool,
    max_loop_iterations: u64,
    pool: Option<Arc<rayon::ThreadPool>>,
    /// How long the latest run took, to tell small graphs from large ones.
    latest_nanos: AtomicU64,
}

/// How long [`CpuExecutable::learn_outputs`] may run.
const LEARN_TIME: Duration = Duration::from_secs(2);

/// Elements that one input of such a run may have.
const LEARN_ELEMENTS: usize = 16 << 20;

/// Runs that take less stay on their caller: a hop to the pool and back costs
/// tens of microseconds, and gains at most the number of threads.
const POOL_WORTH: Duration = Duration::from_micros(400);

/// Steps of a brief run between two looks at the clock, which would cost as
/// much as a small step.
const BRIEF_STEPS: usize = 16;

impl CpuExecutable {
    pub(crate) fn new(
        mut plan: Plan,
        (program, kept): (Program, HashSet<ValueId>),
        limits: &GraphLimits,
        pool: Option<Arc<rayon::ThreadPool>>,
    ) -> Self {
        let packed_copies = program.packed_bytes();
        let has_loops = program.steps.iter().any(|step| !step.subgraphs.is_empty());
        for (index, constant) in plan.constants.iter_mut().enumerate() {
            constant.take_if(|_| !kept.contains(&ValueId(index as u32)));
        }
        let constants: usize = plan.constants.iter().flatten().map(byte_len).sum();
        let footprint = Footprint {
            weight_bytes: constants + packed_copies,
            peak_arena_bytes: 0,
            node_count: program.node_count(),
            packed_copies,
        };
        let fact = |value: &ValueId| plan.facts.get(value.index()).cloned().unwrap_or_default();
        let mut operators = OperatorInfo::of_plan(&plan);
        for (operator, step) in operators.iter_mut().zip(&program.steps) {
            operator.weight_bytes += step.packed_bytes();
        }
        Self {
            program,
            operators,
            output_facts: plan.body.outputs.iter().map(fact).collect(),
            signature: plan.signature,
            rows_independent: plan.rows_independent,
            arena: Arena::new(limits.max_arena_bytes),
            footprint,
            has_loops,
            max_loop_iterations: limits.max_loop_iterations,
            pool,
            latest_nanos: AtomicU64::new(0),
        }
    }

    /// Where inference does not know the dtype or rank of an output, a run on
    /// zeros tells. A graph that fails on zeros keeps what was inferred.
    pub(crate) fn learn_outputs(&mut self) {
        let known = |fact: &Fact| fact.dtype.is_some() && fact.shape.is_some();
        if self.output_facts.iter().all(known) {
            return;
        }
        let control = RunControl::new(Instant::now().checked_add(LEARN_TIME), 1000);
        let zeros = |spec: &TensorSpec| {
            let shape: Vec<usize> =
                spec.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(1)).collect();
            let elements = shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim));
            match elements {
                Some(0..=LEARN_ELEMENTS) => Tensor::zeros(spec.dtype, &shape),
                _ => Err(Error::limit("too large to try")),
            }
        };
        let inputs = self.signature.inputs.iter().map(zeros).collect::<Result<_>>();
        let run = || without_panics(|| self.run(inputs?, &control));
        let Ok(outputs) = run() else { return };
        let specs = self.signature.outputs.iter_mut().zip(&self.output_facts);
        for ((spec, fact), tensor) in specs.zip(outputs) {
            spec.dtype = fact.dtype.unwrap_or(tensor.dtype());
            spec.shape = fact.shape.clone().unwrap_or_else(|| vec![VARIABLE; tensor.rank()]);
        }
    }

    fn run(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        check_inputs(&self.signature, &inputs)?;
        let capped = self.has_loops.then(|| control.capped(self.max_loop_iterations));
        let control = capped.as_ref().unwrap_or(control);
        let inputs = inputs.into_iter().map(Value::Tensor);
        let run = Run { control, arena: &self.arena };
        let outputs = run.program(&self.program, inputs, None)?;
        outputs.into_iter().map(Value::into_tensor).collect()
    }
}

impl Executable for CpuExecutable {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn footprint(&self) -> Footprint {
        Footprint { peak_arena_bytes: self.arena.peak_bytes(), ..self.footprint }
    }

    fn operators(&self) -> Vec<OperatorInfo> {
        self.operators.clone()
    }

    fn rows_independent(&self) -> bool {
        self.rows_independent
    }

    fn execute(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Ticket> {
        let start = Instant::now();
        let run = || without_panics(|| self.run(inputs, control));
        let large = self.latest_nanos.load(Ordering::Relaxed) > POOL_WORTH.as_nanos() as u64;
        let outputs = match &self.pool {
            Some(pool) if large => pool.install(run),
            _ => run(),
        }?;
        self.latest_nanos.store(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(Ticket::ready(Ok(outputs)))
    }
}

/// Turns a panic of a kernel into an error of this one request. Kernels check
/// their inputs; this is for the check that somebody forgot.
pub(crate) fn without_panics<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Error::internal("an operator panicked; this is a bug in Mortise")))
}

fn check_inputs(signature: &Signature, inputs: &[Tensor]) -> Result<()> {
    let specs = &signature.inputs;
    if specs.len() != inputs.len() {
        let (want, got) = (specs.len(), inputs.len());
        return Err(Error::invalid(format!("the graph takes {want} inputs, got {got}")));
    }
    specs.iter().zip(inputs).try_for_each(|(spec, tensor)| spec.check(tensor))
}

impl Program {
    fn node_count(&self) -> usize {
        let inner = |step: &Step| -> usize {
            step.subgraphs.iter().map(|(_, program)| program.node_count()).sum()
        };
        self.steps.iter().map(|step| 1 + inner(step)).sum()
    }

    fn packed_bytes(&self) -> usize {
        self.steps.iter().map(Step::packed_bytes).sum()
    }
}

impl Step {
    /// Bytes that the operator and those of its subgraphs copied into layouts
    /// of their own.
    fn packed_bytes(&self) -> usize {
        let inner = self.subgraphs.iter().map(|(_, program)| program.packed_bytes());
        self.op.packed_bytes() + inner.sum::<usize>()
    }
}

/// What all bodies of one run share.
struct Run<'a> {
    control: &'a RunControl,
    arena: &'a Arc<Arena>,
}

/// The values alive in one body.
type Frame = SmallVec<[Option<Value>; 8]>;

impl Run<'_> {
    fn program(
        &self,
        program: &Program,
        inputs: impl Iterator<Item = Value>,
        outer: Option<&[Option<Value>]>,
    ) -> Result<Vec<Value>> {
        let mut frame = Frame::new();
        frame.resize_with(program.slot_count, || None);
        store(&program.inputs, inputs, &mut frame);
        for (source, slot) in &program.captures {
            frame[*slot as usize] = outer.and_then(|outer| read(source, outer));
        }
        // A run that is predicted to be short ends before it would be late.
        let every = if self.control.is_brief() { BRIEF_STEPS } else { 1 };
        for (number, step) in program.steps.iter().enumerate() {
            if number % every == every - 1 {
                self.control.check()?;
            }
            self.step(step, &mut frame)?;
        }
        let outputs = program.outputs.iter().map(|arg| take(arg, &mut frame));
        outputs.map(|value| value.ok_or_else(|| Error::internal("an output is missing"))).collect()
    }

    fn step(&self, step: &Step, frame: &mut Frame) -> Result<()> {
        let mut args: SmallVec<[Option<Value>; 4]> =
            step.args.iter().map(|arg| take(arg, frame)).collect();
        let outputs = self.operator(step, frame, &mut args).map_err(|e| e.context(&step.label))?;
        for slot in &step.drops {
            frame[*slot as usize] = None;
        }
        let needed = step.outputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if outputs.len() < needed {
            let got = outputs.len();
            let message = format!("gives {got} outputs where {needed} are read");
            return Err(Error::invalid(message).context(&step.label));
        }
        store(&step.outputs, outputs.into_iter(), frame);
        Ok(())
    }

    fn operator(&self, step: &Step, frame: &Frame, args: &mut [Option<Value>]) -> Result<Outputs> {
        let (control, arena) = (self.control, self.arena);
        let output_count = step.outputs.len();
        if step.subgraphs.is_empty() {
            let ctx = OpContext { control, arena, subgraphs: None, output_count };
            return step.op.run(&ctx, Inputs::new(args));
        }
        let inner = Subgraphs { run: self, step, outer: frame };
        let ctx = OpContext { control, arena, subgraphs: Some(&inner), output_count };
        step.op.run(&ctx, Inputs::new(args))
    }
}

/// The subgraphs of a step, with the values around them.
struct Subgraphs<'a> {
    run: &'a Run<'a>,
    step: &'a Step,
    outer: &'a [Option<Value>],
}

impl RunSubgraph for Subgraphs<'_> {
    fn run_body(&self, body: &Arc<GraphBody>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let mut known = self.step.subgraphs.iter();
        let program = known.find(|(other, _)| Arc::ptr_eq(other, body));
        let (_, program) = program.ok_or_else(|| Error::internal("an unknown subgraph"))?;
        if inputs.len() != program.inputs.len() {
            let (want, got) = (program.inputs.len(), inputs.len());
            return Err(Error::invalid(format!("the subgraph takes {want} inputs, got {got}")));
        }
        self.run.program(program, inputs.into_iter(), Some(self.outer))
    }
}

fn store(slots: &[Option<u32>], values: impl Iterator<Item = Value>, frame: &mut [Option<Value>]) {
    for (slot, value) in slots.iter().zip(values) {
        if let Some(slot) = slot {
            frame[*slot as usize] = Some(value);
        }
    }
}

fn take(arg: &Arg, frame: &mut [Option<Value>]) -> Option<Value> {
    match arg {
        Arg::Last(slot) => frame[*slot as usize].take(),
        other => read(other, frame),
    }
}

fn read(arg: &Arg, frame: &[Option<Value>]) -> Option<Value> {
    match arg {
        Arg::Absent => None,
        Arg::Shared(slot) | Arg::Last(slot) => frame[*slot as usize].clone(),
        Arg::Constant(value) => Some(value.clone()),
    }
}
