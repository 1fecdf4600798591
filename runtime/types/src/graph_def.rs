//! A graph as a plugin describes it: ONNX's operators over values, not yet
//! checked, optimised or placed on a device.

use crate::{DType, Shape, Tensor, TensorSpec};
use std::sync::Arc;

/// Index of a value in [`GraphDef::values`]. Subgraphs share the numbering of
/// the graph around them, so an inner node names an outer value directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A complete graph: the top-level body and every value of it and of the
/// subgraphs inside its attributes.
#[derive(Clone, Debug, Default)]
pub struct GraphDef {
    pub values: Vec<ValueDef>,
    /// Top-level body; its inputs and outputs are those of the graph.
    pub body: GraphBody,
    /// As declared, in the order of `body.inputs`.
    pub inputs: Vec<TensorSpec>,
    /// Names in the order of `body.outputs`. Types and shapes are inferred.
    pub output_names: Vec<String>,
}

/// Nodes in topological order with the values that enter and leave.
#[derive(Clone, Debug, Default)]
pub struct GraphBody {
    pub inputs: Vec<ValueId>,
    pub nodes: Vec<NodeDef>,
    pub outputs: Vec<ValueId>,
}

#[derive(Clone, Debug)]
pub struct ValueDef {
    pub name: String,
    pub source: ValueSource,
}

#[derive(Clone, Debug)]
pub enum ValueSource {
    /// An input of the graph or of a subgraph.
    Input,
    /// Bytes of an asset, read by the device and never by the plugin.
    Weight(WeightRef),
    Constant(Tensor),
    /// Written by the node that lists it among its outputs.
    Node,
}

/// A tensor inside an asset: `length` bytes from `offset`, little-endian,
/// row-major, of `dtype` and `shape`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightRef {
    pub asset: Arc<str>,
    pub offset: u64,
    pub length: u64,
    pub dtype: DType,
    pub shape: Shape,
}

#[derive(Clone, Debug)]
pub struct NodeDef {
    /// `""` for ONNX's default domain, `"ai.onnx.ml"`, `"com.microsoft"`.
    pub domain: Arc<str>,
    pub op: Arc<str>,
    /// Version of the domain's operator set that gives `op` its meaning.
    pub opset: u32,
    /// The node's own name, for messages; may be empty.
    pub name: String,
    /// `None` for an optional input that was left out.
    pub inputs: Vec<Option<ValueId>>,
    pub attributes: Vec<(Arc<str>, Attribute)>,
    /// `None` for an optional output that nothing reads.
    pub outputs: Vec<Option<ValueId>>,
}

#[derive(Clone, Debug)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    String(Vec<u8>),
    Tensor(Tensor),
    Graph(Arc<GraphBody>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<Vec<u8>>),
    Tensors(Vec<Tensor>),
}

impl NodeDef {
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|(key, _)| &**key == name).map(|(_, value)| value)
    }

    /// `Conv "conv1" (ai.onnx, opset 13)`: how messages name a node.
    pub fn describe(&self) -> String {
        let domain = if self.domain.is_empty() { "ai.onnx" } else { &*self.domain };
        format!("{} \"{}\" ({domain}, opset {})", self.op, self.name, self.opset)
    }
}
