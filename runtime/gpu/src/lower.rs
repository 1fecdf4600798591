//! From a plan with known shapes to steps: which node runs where, what each
//! dispatch binds, and what crosses between host and device.

use crate::context::Context;
use crate::heap::{Heap, Weight};
use crate::kernels;
use crate::kernels::pointwise::Chain;
use crate::operand::{Operand, Place, dense_strides, is_float, is_held};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use crate::tune::Tuning;
use crate::weights::{Format, WeightCache};
use mortise_graph::Plan;
use mortise_types::{Attribute, DType, Error, GraphBody, NodeDef, Result, Shape, Tensor, ValueId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Threads of the kernels that take one element each.
pub(crate) const THREADS: usize = 256;

/// Workgroups in one dimension of a dispatch, which every device allows.
pub(crate) const MAX_GROUPS: usize = 65_535;

/// One dispatch.
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) bindings: Vec<Place>,
    pub(crate) params: Params,
    pub(crate) groups: [u32; 3],
}

/// What a run does, in order.
pub(crate) enum Step {
    /// A host tensor goes into an arena buffer.
    Upload {
        value: ValueId,
        buffer: usize,
    },
    Launch(Launch),
    /// An arena buffer becomes a host tensor.
    Download {
        value: ValueId,
        operand: Operand,
    },
    /// Nodes that run on the CPU device, by index into the plan's body.
    Cpu {
        nodes: Vec<usize>,
    },
}

/// What lowering gives.
pub(crate) struct Lowered {
    pub(crate) steps: Vec<Step>,
    /// Bytes of every arena buffer.
    pub(crate) buffers: Vec<u64>,
    /// By node: whether it runs on the device.
    pub(crate) on_device: Vec<bool>,
    /// Whether a kernel may report an index out of range.
    pub(crate) checks: bool,
    /// Whether buffers that are not alive at once may lie in the same memory.
    pub(crate) shares_memory: bool,
    pub(crate) weights: Vec<Arc<Weight>>,
}

/// The arena buffer that kernels report into.
pub(crate) const STATUS: usize = 0;

/// Lowers `plan`, whose inputs have fixed shapes.
///
/// # Errors
/// `Overloaded` when weights do not fit the device, or what a kernel says.
pub(crate) fn lower(
    context: &Context,
    heap: &Arc<Heap>,
    cache: &WeightCache,
    tuning: &Tuning,
    plan: &Plan,
) -> Result<Lowered> {
    let mut builder = Builder::new(context, heap, cache, tuning, plan);
    builder.place_all()?;
    builder.finish()
}

/// What is known of a value while lowering.
#[derive(Clone)]
enum State {
    Host,
    Device(Operand),
    /// Computed by its reader.
    Deferred(Chain),
}

pub(crate) struct Builder<'a> {
    pub(crate) context: &'a Context,
    pub(crate) tuning: &'a Tuning,
    heap: &'a Arc<Heap>,
    cache: &'a WeightCache,
    plan: &'a Plan,
    uses: HashMap<ValueId, usize>,
    states: HashMap<ValueId, State>,
    /// Values that have a copy in host memory at this point of the steps.
    on_host: HashSet<ValueId>,
    steps: Vec<Step>,
    buffers: Vec<u64>,
    on_device: Vec<bool>,
    checks: bool,
    weights: Vec<Arc<Weight>>,
}

impl<'a> Builder<'a> {
    fn new(
        context: &'a Context,
        heap: &'a Arc<Heap>,
        cache: &'a WeightCache,
        tuning: &'a Tuning,
        plan: &'a Plan,
    ) -> Self {
        let inputs = plan.body.inputs.iter();
        Self {
            context,
            tuning,
            heap,
            cache,
            plan,
            uses: use_counts(&plan.body),
            states: inputs.clone().map(|value| (*value, State::Host)).collect(),
            on_host: inputs.copied().collect(),
            steps: Vec::new(),
            buffers: vec![4],
            on_device: vec![false; plan.body.nodes.len()],
            checks: false,
            weights: Vec::new(),
        }
    }

    /// Alternates between what the device can run and what it cannot, so that
    /// values cross as seldom as the order of the graph allows.
    fn place_all(&mut self) -> Result<()> {
        let mut pending: Vec<usize> = (0..self.plan.body.nodes.len()).collect();
        while !pending.is_empty() {
            let before = pending.len();
            let mut rest = Vec::new();
            for index in pending {
                let node = &self.plan.body.nodes[index];
                if self.is_ready(node) && kernels::lower(self, node)? {
                    self.on_device[index] = true;
                } else {
                    rest.push(index);
                }
            }
            pending = self.place_on_cpu(rest)?;
            if pending.len() == before {
                return Err(Error::internal("nodes of the graph wait for one another"));
            }
        }
        Ok(())
    }

    fn place_on_cpu(&mut self, pending: Vec<usize>) -> Result<Vec<usize>> {
        let (mut nodes, mut rest) = (Vec::new(), Vec::new());
        let mut made: HashSet<ValueId> = HashSet::new();
        for index in pending {
            let node = &self.plan.body.nodes[index];
            let reads = reads(node);
            let ready = reads.iter().all(|v| self.is_known(*v) || made.contains(v));
            // What reads a value just made is looked at again: the device may
            // be able to run it.
            let again = reads.iter().any(|v| made.contains(v)) && kernels::may_lower(node);
            if !ready || again {
                rest.push(index);
                continue;
            }
            for value in reads {
                if !made.contains(&value) {
                    self.fetch(value)?;
                }
            }
            made.extend(node.outputs.iter().flatten());
            nodes.push(index);
        }
        for value in &made {
            self.states.insert(*value, State::Host);
            self.on_host.insert(*value);
        }
        if !nodes.is_empty() {
            self.steps.push(Step::Cpu { nodes });
        }
        Ok(rest)
    }

    fn is_ready(&self, node: &NodeDef) -> bool {
        reads(node).iter().all(|value| self.is_known(*value))
    }

    fn is_known(&self, value: ValueId) -> bool {
        self.constant(value).is_some()
            || self.plan.constants.get(value.index()).is_some_and(Option::is_some)
            || self.states.contains_key(&value)
    }

    fn finish(mut self) -> Result<Lowered> {
        for value in self.plan.body.outputs.clone() {
            self.fetch(value)?;
        }
        let Self { steps, buffers, on_device, checks, weights, .. } = self;
        Ok(Lowered { steps, buffers, on_device, checks, shares_memory: true, weights })
    }

    /// Has a value in host memory from here on.
    fn fetch(&mut self, value: ValueId) -> Result<()> {
        if self.plan.constants.get(value.index()).is_some_and(Option::is_some)
            || self.on_host.contains(&value)
        {
            return Ok(());
        }
        let mut operand = self.dense(value)?;
        if matches!(operand.place, Place::Weight(_)) {
            let target = self.allocate(operand.dtype, &operand.shape);
            let (strides, shape) = (operand.strides.clone(), operand.shape.clone());
            let copy = Copy { source_offset: 0, target_offset: 0, target_strides: &strides };
            self.copy(&operand.place, &strides, &target.place, &shape, copy);
            operand = target;
        }
        self.steps.push(Step::Download { value, operand });
        self.on_host.insert(value);
        Ok(())
    }
}

/// What kernels ask and do.
impl Builder<'_> {
    pub(crate) fn constant(&self, value: ValueId) -> Option<&Tensor> {
        self.plan.constants.get(value.index())?.as_ref()?.tensor().ok()
    }

    /// The shape, when it is known before the run.
    pub(crate) fn shape(&self, value: ValueId) -> Option<Shape> {
        if let Some(tensor) = self.constant(value) {
            return Some(tensor.shape().into());
        }
        match self.states.get(&value)? {
            State::Device(operand) => Some(operand.shape.clone()),
            State::Deferred(chain) => Some(chain.shape.clone()),
            State::Host => {
                let shape = self.plan.facts.get(value.index())?.shape.as_ref()?;
                shape.iter().map(|dim| usize::try_from(*dim).ok()).collect()
            }
        }
    }

    pub(crate) fn dtype(&self, value: ValueId) -> Option<DType> {
        if let Some(tensor) = self.constant(value) {
            return Some(tensor.dtype());
        }
        match self.states.get(&value)? {
            State::Device(operand) => Some(operand.dtype),
            State::Deferred(chain) => Some(chain.dtype),
            State::Host => self.plan.facts.get(value.index())?.dtype,
        }
    }

    /// Whether a kernel can have the value: of a type the device holds, of
    /// known shape, not empty.
    pub(crate) fn is_held(&self, value: ValueId) -> bool {
        self.dtype(value).is_some_and(is_held)
            && self.shape(value).is_some_and(|shape| {
                let count = shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
                count.is_some_and(|count| count > 0 && count < 1 << 29)
            })
    }

    pub(crate) fn is_float(&self, value: ValueId) -> bool {
        self.is_held(value) && self.dtype(value).is_some_and(is_float)
    }

    pub(crate) fn uses(&self, value: ValueId) -> usize {
        self.uses.get(&value).copied().unwrap_or(0)
    }

    /// The chain that computes a value which only its next reader wants.
    pub(crate) fn deferred(&self, value: ValueId) -> Option<&Chain> {
        match self.states.get(&value)? {
            State::Deferred(chain) if self.uses(value) == 1 => Some(chain),
            _ => None,
        }
    }

    /// The value in device memory, by whatever strides it has.
    ///
    /// # Errors
    /// `Overloaded` when a weight does not fit.
    pub(crate) fn operand(&mut self, value: ValueId) -> Result<Operand> {
        if let Some(tensor) = self.constant(value).cloned() {
            let weight = self.weight(&tensor, Format::Words)?;
            return Ok(Operand::dense(Place::Weight(weight), tensor.dtype(), tensor.shape()));
        }
        match self.states.get(&value).cloned() {
            Some(State::Device(operand)) => Ok(operand),
            Some(State::Deferred(chain)) => {
                let operand = chain.launch(self)?;
                self.define(value, operand.clone());
                Ok(operand)
            }
            Some(State::Host) => {
                let unknown = || Error::internal("a value of unknown shape is wanted on the GPU");
                let dtype = self.dtype(value).ok_or_else(unknown)?;
                let shape = self.shape(value).ok_or_else(unknown)?;
                let operand = self.allocate(dtype, &shape);
                if let Place::Arena(buffer) = operand.place {
                    self.steps.push(Step::Upload { value, buffer });
                }
                self.define(value, operand.clone());
                Ok(operand)
            }
            None => Err(Error::internal("a value is read before it is made")),
        }
    }

    /// The value in device memory, row-major.
    ///
    /// # Errors
    /// As [`Builder::operand`].
    pub(crate) fn dense(&mut self, value: ValueId) -> Result<Operand> {
        let operand = self.operand(value)?;
        if operand.is_dense() {
            return Ok(operand);
        }
        let target = self.allocate(operand.dtype, &operand.shape);
        let strides = dense_strides(&operand.shape);
        let copy = Copy { source_offset: 0, target_offset: 0, target_strides: &strides };
        let shape = operand.shape.clone();
        self.copy(&operand.place, &operand.strides, &target.place, &shape, copy);
        self.define(value, target.clone());
        Ok(target)
    }

    pub(crate) fn weight(&mut self, tensor: &Tensor, format: Format) -> Result<Arc<Weight>> {
        let weight = self.cache.get(self.context, self.heap, tensor, format)?;
        self.weights.push(weight.clone());
        Ok(weight)
    }

    /// A tensor computed from constants of one node, once for all programs.
    ///
    /// # Errors
    /// As `make`.
    pub(crate) fn derived(
        &self,
        key: (ValueId, u32),
        make: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.cache.derived(key, make)
    }

    pub(crate) fn allocate(&mut self, dtype: DType, shape: &[usize]) -> Operand {
        let words: usize = shape.iter().product();
        self.buffers.push(words.max(1) as u64 * 4);
        Operand::dense(Place::Arena(self.buffers.len() - 1), dtype, shape)
    }

    pub(crate) fn define(&mut self, value: ValueId, operand: Operand) {
        self.states.insert(value, State::Device(operand));
    }

    pub(crate) fn defer(&mut self, value: ValueId, chain: Chain) {
        self.states.insert(value, State::Deferred(chain));
    }

    /// The place that kernels report bad indices to.
    pub(crate) fn status(&mut self) -> Place {
        self.checks = true;
        Place::Arena(STATUS)
    }

    pub(crate) fn launch(
        &mut self,
        kernel: Kernel,
        bindings: Vec<Place>,
        params: Params,
        groups: [usize; 3],
    ) {
        let groups = groups.map(|count| count.clamp(1, MAX_GROUPS) as u32);
        self.steps.push(Step::Launch(Launch { kernel, bindings, params, groups }));
    }

    /// Copies `shape` elements between two strided layouts.
    pub(crate) fn copy(
        &mut self,
        source: &Place,
        strides: &[usize],
        target: &Place,
        shape: &[usize],
        copy: Copy<'_>,
    ) {
        let layouts = [Shape::from_slice(strides), Shape::from_slice(copy.target_strides)];
        let (dims, kept) = crate::operand::collapse(shape, &layouts);
        let padded = |values: &Shape, fill: usize| {
            let mut all = vec![fill; COPY_RANK.saturating_sub(values.len())];
            all.extend(values);
            all
        };
        let count: usize = shape.iter().product();
        let params = Params::new()
            .size(count)
            .size(copy.source_offset)
            .size(copy.target_offset)
            .size(0)
            .sizes(&padded(&dims, 1))
            .sizes(&padded(&kept[0], 0))
            .sizes(&padded(&kept[1], 0));
        let bindings = vec![source.clone(), target.clone()];
        let groups = [count.div_ceil(THREADS), 1, 1];
        self.launch(Kernel::new(File::Copy, 2, &[]), bindings, params, groups);
    }
}

/// Dimensions that the copy kernel steps through.
pub(crate) const COPY_RANK: usize = 6;

/// Where a strided copy begins and how it writes; offsets in elements.
pub(crate) struct Copy<'a> {
    pub(crate) source_offset: usize,
    pub(crate) target_offset: usize,
    pub(crate) target_strides: &'a [usize],
}

/// Values that a node reads, those its subgraphs capture included.
pub(crate) fn reads(node: &NodeDef) -> Vec<ValueId> {
    let mut values: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
    for body in subgraphs(node) {
        values.extend(captured(body));
    }
    values
}

fn subgraphs(node: &NodeDef) -> impl Iterator<Item = &Arc<GraphBody>> {
    node.attributes.iter().filter_map(|(_, attribute)| match attribute {
        Attribute::Graph(body) => Some(body),
        _ => None,
    })
}

fn captured(body: &GraphBody) -> HashSet<ValueId> {
    let mut used: HashSet<ValueId> = body.outputs.iter().copied().collect();
    let mut made: HashSet<ValueId> = body.inputs.iter().copied().collect();
    for node in &body.nodes {
        used.extend(reads(node));
        made.extend(node.outputs.iter().flatten());
    }
    used.retain(|value| !made.contains(value));
    used
}

fn use_counts(body: &GraphBody) -> HashMap<ValueId, usize> {
    let mut counts = HashMap::new();
    let read = body.nodes.iter().flat_map(reads).chain(body.outputs.iter().copied());
    read.for_each(|value| *counts.entry(value).or_default() += 1);
    counts
}
