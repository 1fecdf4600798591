use crate::bindings::model::mortise::plugin::graph as raw;
use crate::{DType, Element, Result, Signature, Tensor, TensorSpec};
use std::cell::Cell;

/// The domain of ONNX's traditional machine-learning operators.
pub const ML: &str = "ai.onnx.ml";

/// A value of a graph under construction; only meaningful to its builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(u32);

/// A finished subgraph, for an attribute of `If`, `Loop` or `Scan`. Used once.
#[derive(Debug)]
pub struct Subgraph(u32);

/// An attribute of a node. Made with `From` from what it holds.
#[derive(Debug)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Text(Vec<u8>),
    Tensor(Tensor),
    Graph(Subgraph),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<Vec<u8>>),
}

/// Records a graph of ONNX operators. Nodes are added after the values that
/// they read; whether an operator is supported is decided by
/// [`GraphBuilder::finish`], which names every one that is not.
///
/// The typed functions ([`GraphBuilder::matmul`] and so on) cover the common
/// operators; [`GraphBuilder::node`] adds any other.
#[derive(Debug)]
pub struct GraphBuilder {
    raw: raw::Builder,
    opset: u32,
    node_count: Cell<u32>,
}

impl GraphBuilder {
    /// The operator set of the default domain that the typed functions mean.
    pub const OPSET: u32 = 21;
    /// The operator set of [`ML`] that [`GraphBuilder::node`] assumes.
    pub const ML_OPSET: u32 = 3;

    #[expect(clippy::new_without_default, reason = "it takes a handle of the host")]
    pub fn new() -> Self {
        Self { raw: raw::Builder::new(), opset: Self::OPSET, node_count: Cell::new(0) }
    }

    /// Declares the next input of the graph.
    ///
    /// # Errors
    /// When the specification is not valid.
    pub fn input(&self, spec: &TensorSpec) -> Result<Value> {
        Ok(Value(self.raw.input(&spec.into())?))
    }

    /// A constant, copied by handle.
    ///
    /// # Errors
    /// When a limit on bytes is hit.
    pub fn constant(&self, tensor: &Tensor) -> Result<Value> {
        Ok(Value(self.raw.constant(tensor.raw())?))
    }

    /// A one-dimensional constant.
    ///
    /// # Errors
    /// When a limit on bytes is hit.
    pub fn vector<T: Element>(&self, values: &[T]) -> Result<Value> {
        self.constant(&Tensor::from_slice(&[values.len()], values)?)
    }

    /// A zero-dimensional constant.
    ///
    /// # Errors
    /// When a limit on bytes is hit.
    pub fn scalar<T: Element>(&self, value: T) -> Result<Value> {
        self.constant(&Tensor::scalar(value)?)
    }

    /// A constant that lies in an asset: `length` bytes from `offset`,
    /// little-endian and row-major. The bytes go from the stored file to the
    /// device and never pass through the plugin.
    ///
    /// # Errors
    /// When the range is out of bounds or does not fit dtype and shape.
    pub fn weight(
        &self,
        asset: &str,
        range: ByteRange,
        dtype: DType,
        shape: &[u64],
    ) -> Result<Value> {
        let ByteRange { offset, length } = range;
        Ok(Value(self.raw.weight(asset, offset, length, dtype.into(), shape)?))
    }

    /// Starts a node of the default domain.
    pub fn node(&self, op: impl Into<String>) -> NodeBuilder<'_> {
        NodeBuilder {
            graph: self,
            domain: String::new(),
            op: op.into(),
            opset: self.opset,
            name: None,
            inputs: Vec::new(),
            attributes: Vec::new(),
        }
    }

    /// Starts a node of [`ML`].
    pub fn ml_node(&self, op: impl Into<String>) -> NodeBuilder<'_> {
        self.node(op).domain(ML, Self::ML_OPSET)
    }

    /// Opens a subgraph with `input_count` inputs and returns them. Until
    /// [`GraphBuilder::end_subgraph`], nodes are added to it; they may read
    /// values of the graphs around it.
    ///
    /// # Errors
    /// When the nesting is too deep.
    pub fn begin_subgraph(&self, input_count: u32) -> Result<Vec<Value>> {
        Ok(self.raw.begin_subgraph(input_count)?.into_iter().map(Value).collect())
    }

    /// # Errors
    /// When no subgraph is open or an output is unknown.
    pub fn end_subgraph(&self, outputs: &[Value]) -> Result<Subgraph> {
        let outputs: Vec<u32> = outputs.iter().map(|value| value.0).collect();
        Ok(Subgraph(self.raw.end_subgraph(&outputs)?))
    }

    /// Declares the next output of the graph.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn output(&self, name: &str, value: Value) -> Result<()> {
        Ok(self.raw.output(name, value.0)?)
    }

    /// Checks, optimises and compiles the graph.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] names the operator, its node and opset.
    pub fn finish(self) -> Result<Graph> {
        Ok(Graph(raw::Builder::finish(self.raw)?))
    }

    /// `relu_7`: a name for a node that was given none.
    fn next_name(&self, op: &str) -> String {
        let index = self.node_count.replace(self.node_count.get() + 1);
        format!("{}_{index}", op.to_ascii_lowercase())
    }
}

/// A range of bytes of an asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub offset: u64,
    pub length: u64,
}

/// One operator application, finished by [`NodeBuilder::output`] or
/// [`NodeBuilder::outputs`].
#[derive(Debug)]
#[must_use = "a node is added by `output` or `outputs`"]
pub struct NodeBuilder<'a> {
    graph: &'a GraphBuilder,
    domain: String,
    op: String,
    opset: u32,
    name: Option<String>,
    inputs: Vec<Option<u32>>,
    attributes: Vec<(String, Attribute)>,
}

impl NodeBuilder<'_> {
    /// The operator's domain and the version of its operator set.
    pub fn domain(mut self, domain: impl Into<String>, opset: u32) -> Self {
        self.domain = domain.into();
        self.opset = opset;
        self
    }

    /// The version of the operator set that gives the operator its meaning.
    pub fn opset(mut self, opset: u32) -> Self {
        self.opset = opset;
        self
    }

    /// A name for messages; one is made up when none is given.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    pub fn input(self, value: Value) -> Self {
        self.optional(Some(value))
    }

    /// The next input, or `None` for an optional one that is left out.
    pub fn optional(mut self, value: Option<Value>) -> Self {
        self.inputs.push(value.map(|value| value.0));
        self
    }

    pub fn inputs(mut self, values: impl IntoIterator<Item = Value>) -> Self {
        self.inputs.extend(values.into_iter().map(|value| Some(value.0)));
        self
    }

    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<Attribute>) -> Self {
        self.attributes.push((name.into(), value.into()));
        self
    }

    /// Adds the node and returns its one output.
    ///
    /// # Errors
    /// When a limit is hit or an input is unknown.
    pub fn output(self) -> Result<Value> {
        let mut outputs = self.outputs(1)?;
        outputs.pop().ok_or_else(|| crate::Error::failed("the host returned no output value"))
    }

    /// Adds the node and returns its `count` outputs.
    ///
    /// # Errors
    /// As [`NodeBuilder::output`].
    pub fn outputs(self, count: u32) -> Result<Vec<Value>> {
        let name = self.name.unwrap_or_else(|| self.graph.next_name(&self.op));
        let attributes: Vec<(String, Lowered)> =
            self.attributes.into_iter().map(|(name, value)| (name, value.lower())).collect();
        let (tensors, moved) = split(attributes);
        let borrowed = tensors.iter().map(|(name, tensor)| raw::NamedAttribute {
            name: name.clone(),
            value: raw::Attribute::Tensor(tensor.raw()),
        });
        let node = raw::Node {
            domain: self.domain,
            op: self.op,
            opset: self.opset,
            name,
            inputs: self.inputs,
            attributes: borrowed.chain(moved).collect(),
            output_count: count,
        };
        Ok(self.graph.raw.op(&node)?.into_iter().map(Value).collect())
    }
}

/// An attribute on its way to the host: tensors are passed by reference,
/// everything else is moved, since lists can be large.
enum Lowered {
    Tensor(Tensor),
    Moved(raw::Attribute<'static>),
}

impl Attribute {
    fn lower(self) -> Lowered {
        Lowered::Moved(match self {
            Self::Tensor(tensor) => return Lowered::Tensor(tensor),
            Self::Int(value) => raw::Attribute::Int(value),
            Self::Float(value) => raw::Attribute::Float(value),
            Self::Text(value) => raw::Attribute::Text(value),
            Self::Graph(value) => raw::Attribute::Graph(value.0),
            Self::Ints(values) => raw::Attribute::Ints(values),
            Self::Floats(values) => raw::Attribute::Floats(values),
            Self::Texts(values) => raw::Attribute::Texts(values),
        })
    }
}

type Tensors = Vec<(String, Tensor)>;

fn split(attributes: Vec<(String, Lowered)>) -> (Tensors, Vec<raw::NamedAttribute<'static>>) {
    let (mut tensors, mut moved) = (Vec::new(), Vec::new());
    for (name, value) in attributes {
        match value {
            Lowered::Tensor(tensor) => tensors.push((name, tensor)),
            Lowered::Moved(value) => moved.push(raw::NamedAttribute { name, value }),
        }
    }
    (tensors, moved)
}

macro_rules! attribute_from {
    ($($ty:ty => $variant:ident),* $(,)?) => {
        $(impl From<$ty> for Attribute {
            fn from(value: $ty) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

attribute_from! {
    i64 => Int,
    f32 => Float,
    &str => Text,
    Vec<u8> => Text,
    Tensor => Tensor,
    Subgraph => Graph,
    Vec<i64> => Ints,
    &[i64] => Ints,
    Vec<f32> => Floats,
    &[f32] => Floats,
    Vec<Vec<u8>> => Texts,
}

impl From<&[String]> for Attribute {
    fn from(texts: &[String]) -> Self {
        Self::Texts(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
    }
}

/// A compiled graph: the plan of a plugin, or something that `predict` and
/// `apply` run.
#[derive(Debug)]
pub struct Graph(raw::Graph);

impl Graph {
    /// Inputs as declared; outputs as inferred, with [`crate::VARIABLE`] where
    /// a size is not known before the graph runs.
    pub fn signature(&self) -> Signature {
        self.0.signature().into()
    }

    /// Runs the graph; inputs and outputs are in the signature's order.
    ///
    /// # Errors
    /// When count, dtype or shape of an input is wrong, the deadline passes,
    /// or a limit is hit.
    pub fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let inputs: Vec<_> = inputs.iter().map(|tensor| tensor.raw()).collect();
        Ok(self.0.run(&inputs)?.into_iter().map(Tensor::owned).collect())
    }

    pub(crate) fn into_raw(self) -> raw::Graph {
        self.0
    }
}
