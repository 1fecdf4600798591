//! Graphs under construction, for the tests.

#![allow(dead_code, reason = "each test binary uses some of it")]

use mortise_compute::{CpuDevice, CpuOptions, Executable, compile_graph};
use mortise_graph::GraphLimits;
use mortise_types::{
    Assets, Attribute, DType, GraphDef, NodeDef, Result, RunControl, Tensor, TensorSpec, ValueDef,
    ValueId, ValueSource,
};
use std::sync::Arc;

/// A graph under construction; a thin stand-in for the plugins' builder.
#[derive(Default)]
pub(crate) struct Builder(pub(crate) GraphDef);

impl Builder {
    pub(crate) fn value(&mut self, name: &str, source: ValueSource) -> ValueId {
        self.0.values.push(ValueDef { name: name.to_owned(), source });
        ValueId(self.0.values.len() as u32 - 1)
    }

    pub(crate) fn input(&mut self, name: &str, dtype: DType, shape: &[i64]) -> ValueId {
        let value = self.value(name, ValueSource::Input);
        self.0.body.inputs.push(value);
        self.0.inputs.push(TensorSpec::new(name, dtype, shape));
        value
    }

    pub(crate) fn constant(&mut self, shape: &[usize], values: Vec<f32>) -> ValueId {
        let tensor = Tensor::from_vec(shape, values).unwrap();
        self.value("constant", ValueSource::Constant(tensor))
    }

    pub(crate) fn ints(&mut self, values: Vec<i64>) -> ValueId {
        let tensor = Tensor::from_vec(&[values.len()], values).unwrap();
        self.value("ints", ValueSource::Constant(tensor))
    }

    pub(crate) fn make(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        attributes: &[(&str, Attribute)],
    ) -> NodeDef {
        let output = self.value(op, ValueSource::Node);
        NodeDef {
            domain: "".into(),
            op: op.into(),
            opset: 21,
            name: format!("{op}_{}", output.0),
            inputs: inputs.iter().copied().map(Some).collect(),
            attributes: attributes.iter().map(|(n, a)| (Arc::from(*n), a.clone())).collect(),
            outputs: vec![Some(output)],
        }
    }

    pub(crate) fn node(&mut self, op: &str, inputs: &[ValueId]) -> ValueId {
        self.node_with(op, inputs, &[])
    }

    pub(crate) fn node_with(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        attributes: &[(&str, Attribute)],
    ) -> ValueId {
        let node = self.make(op, inputs, attributes);
        let output = node.outputs[0].unwrap();
        self.0.body.nodes.push(node);
        output
    }

    pub(crate) fn tensor(&mut self, tensor: Tensor) -> ValueId {
        self.value("constant", ValueSource::Constant(tensor))
    }

    /// `DynamicQuantizeLinear`: the bytes, their scale and their zero point.
    pub(crate) fn quantized(&mut self, x: ValueId) -> (ValueId, ValueId, ValueId) {
        let mut node = self.make("DynamicQuantizeLinear", &[x], &[]);
        let bytes = node.outputs[0].unwrap();
        let scale = self.value("scale", ValueSource::Node);
        let zero = self.value("zero", ValueSource::Node);
        node.outputs = vec![Some(bytes), Some(scale), Some(zero)];
        self.0.body.nodes.push(node);
        (bytes, scale, zero)
    }

    pub(crate) fn output(&mut self, name: &str, value: ValueId) {
        self.0.body.outputs.push(value);
        self.0.output_names.push(name.to_owned());
    }

    pub(crate) fn compile_with(&self, limits: &GraphLimits) -> Result<Arc<dyn Executable>> {
        let device = CpuDevice::new(CpuOptions { threads: 1 });
        compile_graph(&*device, &self.0, &Assets::default(), limits)
    }

    pub(crate) fn compile(&self) -> Result<Arc<dyn Executable>> {
        self.compile_with(&GraphLimits::default())
    }

    pub(crate) fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        self.compile()?.execute(inputs, &RunControl::unbounded())?.wait()
    }
}

pub(crate) fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_vec(shape, values.to_vec()).unwrap()
}

/// Values that differ from one another and stay small.
pub(crate) fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 200.0).collect()
}
