//! Builds small graphs, runs them on both devices and compares.

use super::poison;
use crate::device::Generation;
use crate::lower::Lowered;
use mortise_compute::{CpuDevice, CpuOptions, Device, compile_graph};
use mortise_graph::{GraphLimits, Plan};
use mortise_types::{
    Assets, Attribute, DType, GraphDef, NodeDef, Result, RunControl, Signature, Tensor, TensorSpec,
    ValueDef, ValueId, ValueSource,
};
use std::sync::Arc;

/// A graph under construction.
#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) def: GraphDef,
}

impl Graph {
    fn value(&mut self, name: &str, source: ValueSource) -> ValueId {
        self.def.values.push(ValueDef { name: name.to_owned(), source });
        ValueId(self.def.values.len() as u32 - 1)
    }

    pub(crate) fn input(&mut self, dtype: DType, shape: &[i64]) -> ValueId {
        let name = format!("x{}", self.def.inputs.len());
        let value = self.value(&name, ValueSource::Input);
        self.def.body.inputs.push(value);
        self.def.inputs.push(TensorSpec::new(&name, dtype, shape));
        value
    }

    pub(crate) fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.value("constant", ValueSource::Constant(tensor))
    }

    pub(crate) fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(Tensor::from_vec(&[values.len()], values.to_vec()).unwrap())
    }

    pub(crate) fn node(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        attributes: &[(&str, Attribute)],
    ) -> ValueId {
        self.nodes("", op, inputs, attributes, 1)[0]
    }

    pub(crate) fn nodes(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[ValueId],
        attributes: &[(&str, Attribute)],
        count: usize,
    ) -> Vec<ValueId> {
        let outputs: Vec<ValueId> = (0..count).map(|_| self.value(op, ValueSource::Node)).collect();
        let opset = if domain.is_empty() { 21 } else { 1 };
        self.def.body.nodes.push(NodeDef {
            domain: domain.into(),
            op: op.into(),
            opset,
            name: format!("{op}_{}", outputs[0].0),
            inputs: inputs.iter().copied().map(Some).collect(),
            attributes: attributes.iter().map(|(n, a)| (Arc::from(*n), a.clone())).collect(),
            outputs: outputs.iter().copied().map(Some).collect(),
        });
        outputs
    }

    pub(crate) fn output(&mut self, value: ValueId) {
        let name = format!("y{}", self.def.output_names.len());
        self.def.body.outputs.push(value);
        self.def.output_names.push(name);
    }

    pub(crate) fn run_on(&self, device: &dyn Device, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let executable =
            compile_graph(device, &self.def, &Assets::default(), &GraphLimits::default())?;
        executable.execute(inputs.to_vec(), &RunControl::unbounded())?.wait()
    }

    /// Runs on both devices and compares all outputs; on the GPU also in memory
    /// that was poisoned before.
    pub(crate) fn agrees_as(&self, label: &str, inputs: &[Tensor], tolerance: f32) {
        let device = super::device();
        let cpu = CpuDevice::new(CpuOptions { threads: 1 });
        let want = self.run_on(&*cpu, inputs).unwrap();
        let served = self.run_on(&*device, inputs).unwrap_or_else(|e| panic!("{label}: {e}"));
        let poisoned = poison::run(label, &device.generation(), &self.planned(inputs), inputs);
        for got in [served, poisoned] {
            assert_eq!(got.len(), want.len());
            got.iter().zip(&want).for_each(|(got, want)| close(label, got, want, tolerance));
        }
    }

    /// Runs on an opened device, in memory that was poisoned before.
    pub(crate) fn run_poisoned(
        &self,
        label: &str,
        generation: &Generation,
        inputs: &[Tensor],
    ) -> Vec<Tensor> {
        poison::run(label, generation, &self.planned(inputs), inputs)
    }

    /// The graph's plan for inputs like these.
    fn planned(&self, inputs: &[Tensor]) -> Plan {
        let cpu = CpuDevice::new(CpuOptions { threads: 1 });
        let limits = GraphLimits::default();
        let evaluate = Device::evaluate(&*cpu);
        let plan = mortise_graph::plan(&self.def, &Assets::default(), &limits, evaluate).unwrap();
        let shapes: Vec<_> = inputs.iter().map(|tensor| tensor.shape().into()).collect();
        plan.specialised(&shapes, &limits, evaluate).unwrap()
    }

    /// Nodes of the graph that run on the CPU, after planning, for inputs like
    /// these.
    pub(crate) fn left_to_cpu(&self, inputs: &[Tensor]) -> Vec<String> {
        let plan = self.planned(inputs);
        let lowered = lowered(&super::device().generation(), &plan);
        let nodes = plan.body.nodes.iter().zip(&lowered.on_device);
        nodes.filter(|(_, on_device)| !**on_device).map(|(node, _)| node.op.to_string()).collect()
    }

    /// Runs the graph as it is, on the GPU alone: for operators that the CPU
    /// device may not have.
    pub(crate) fn run_unplanned(&self, inputs: &[Tensor]) -> Vec<Tensor> {
        let generation = super::device().generation();
        let constant = |value: &ValueDef| match &value.source {
            ValueSource::Constant(tensor) => Some(tensor.clone().into()),
            _ => None,
        };
        let mut facts = vec![mortise_graph::Fact::default(); self.def.values.len()];
        for (value, tensor) in self.def.body.inputs.iter().zip(inputs) {
            let fact = &mut facts[value.index()];
            fact.dtype = Some(tensor.dtype());
            fact.shape = Some(tensor.shape().iter().map(|dim| *dim as i64).collect());
        }
        let plan = Plan {
            body: self.def.body.clone(),
            constants: self.def.values.iter().map(constant).collect(),
            facts,
            origins: Default::default(),
            signature: Signature::default(),
            rows_independent: false,
        };
        let all = lowered(&generation, &plan).on_device.iter().all(|on_device| *on_device);
        assert!(all, "left to the CPU");
        poison::run("unplanned", &generation, &plan, inputs)
    }

    /// As [`Graph::agrees_as`], and every node has to run on the device.
    pub(crate) fn agrees_on_device(&self, label: &str, inputs: &[Tensor], tolerance: f32) {
        let left = self.left_to_cpu(inputs);
        assert!(left.is_empty(), "{label}: left to the CPU: {left:?}");
        self.agrees_as(label, inputs, tolerance);
    }
}

/// The steps of a plan.
pub(crate) fn lowered(generation: &Generation, plan: &Plan) -> Lowered {
    let (context, heap, cache) = (&generation.context, &generation.heap, Default::default());
    crate::lower::lower(context, heap, &cache, &generation.tuning, plan).unwrap()
}

/// Fails when an element differs by more than `tolerance` times the largest
/// magnitude around it, or is NaN or infinite on one side only.
pub(crate) fn close(label: &str, got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{label}");
    let numbers = |tensor: &Tensor| match tensor.dtype() {
        DType::F32 => tensor.as_slice::<f32>().unwrap().to_vec(),
        DType::F16 => tensor.as_slice::<half::f16>().unwrap().iter().map(|v| v.to_f32()).collect(),
        _ => Vec::new(),
    };
    let (g, w) = (numbers(got), numbers(want));
    if g.is_empty() {
        assert_eq!(got.bytes(), want.bytes(), "{label}");
        return;
    }
    let finite = w.iter().filter(|v| v.is_finite()).map(|v| v.abs());
    let scale = finite.fold(1e-6f32, f32::max).max(1.0);
    for (at, (g, w)) in g.iter().zip(&w).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan());
        let near = (g - w).abs() <= tolerance * (w.abs() + 0.1 * scale).max(1e-3);
        assert!(same || near, "{label}: element {at}: got {g}, want {w}, scale {scale}");
    }
}

/// Fresh random inputs for every run; the seed is printed when a test fails.
pub(crate) struct Random(fastrand::Rng);

impl Random {
    pub(crate) fn new() -> Self {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        Self(fastrand::Rng::with_seed(seed))
    }

    pub(crate) fn floats(&mut self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.0.f32() * 2.0 - 1.0).collect();
        Tensor::from_vec(shape, values).unwrap()
    }

    pub(crate) fn halves(&mut self, shape: &[usize]) -> Tensor {
        let floats = self.floats(shape);
        let values = floats.as_slice::<f32>().unwrap().iter().map(|v| half::f16::from_f32(*v));
        Tensor::from_vec(shape, values.collect()).unwrap()
    }

    /// Integers from 0 up to `limit`.
    pub(crate) fn indices(&mut self, shape: &[usize], limit: i64) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<i64> = (0..count).map(|_| self.0.i64(0..limit)).collect();
        Tensor::from_vec(shape, values).unwrap()
    }

    pub(crate) fn bytes(&mut self, shape: &[usize]) -> Vec<u8> {
        (0..shape.iter().product()).map(|_| self.0.u8(..)).collect()
    }

    pub(crate) fn usize(&mut self, limit: usize) -> usize {
        self.0.usize(..limit)
    }
}
