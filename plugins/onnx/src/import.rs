//! Turns a parsed model into calls of a [`Sink`]: names become values, model
//! functions are put in where they are called, initialisers become weights.

use crate::error::{at, invalid};
use crate::proto::{
    self, Attribute, AttributeValue, Function, Graph, Model, Node, Tensor, TensorData, ValueInfo,
    ValueKind,
};
use crate::sink::{Argument, Call, Place, Sink};
use mortise_plugin_sdk::{ByteRange, Error, Result, TensorSpec, VARIABLE};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

/// The most nodes that a model may have after its functions are put in.
const MAX_NODES: u32 = 200_000;
/// How deep function calls and subgraphs may lie in each other.
const MAX_DEPTH: usize = 32;
/// The most bytes of one tensor that is an attribute or is small enough to be
/// kept in the plugin.
const MAX_ATTRIBUTE_TENSOR_BYTES: u64 = 64 << 20;
/// `Identity` of this operator set takes every type.
const IDENTITY_OPSET: u32 = 16;

/// The files of the deployment, as the importer needs them.
pub trait Files {
    /// The asset that holds the model itself.
    fn model(&self) -> &str;
    /// The asset for the `location` of external data, and its size.
    fn external(&self, location: &str) -> Result<(String, u64)>;
    fn read(&self, place: Place<'_>) -> Result<Vec<u8>>;
}

/// What the importer is told besides the model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Shapes of inputs that replace the declared ones, by name.
    pub shapes: BTreeMap<String, Vec<i64>>,
}

/// What was changed on the way, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notes(pub(crate) Vec<String>);

/// Puts the whole model into the sink.
///
/// # Errors
/// When the model is malformed, or uses what cannot be passed on; the message
/// names the node or tensor.
pub fn import<S: Sink>(
    model: &Model,
    files: &dyn Files,
    options: &Options,
    sink: &mut S,
) -> Result<Notes> {
    let graph = model.graph.as_ref().ok_or_else(|| invalid("it holds no graph"))?;
    let functions = index_functions(&model.functions)?;
    let opsets = opset_table(&model.opsets)?;
    let mut importer = Importer {
        sink,
        files,
        functions,
        nodes_left: MAX_NODES,
        depth: 0,
        notes: Notes::default(),
    };
    let scope = Scope::new(None, Rc::new(Frame { opsets, ..Frame::default() }));
    importer.inputs(graph, options, &scope)?;
    importer.initializers(graph, &scope)?;
    importer.nodes(&graph.nodes, &scope, &zip_maps(graph))?;
    importer.outputs(graph, &scope)?;
    Ok(importer.notes)
}

/// The attributes of one node by name.
type Arguments<'m, G> = Vec<(&'m str, Argument<'m, G>)>;

/// Domain, name and overload.
type FunctionKey<'m> = (&'m str, &'m str, &'m str);

struct Importer<'a, 'm, S: Sink> {
    sink: &'a mut S,
    files: &'a dyn Files,
    functions: HashMap<FunctionKey<'m>, &'m Function>,
    nodes_left: u32,
    depth: usize,
    notes: Notes,
}

/// The names of one graph or function body; lookups go outwards.
struct Scope<'m, V> {
    names: RefCell<HashMap<&'m str, Option<V>>>,
    outer: Option<Rc<Scope<'m, V>>>,
    frame: Rc<Frame<'m, V>>,
}

/// What a function body sees of its call: the attributes and the operator
/// sets. The model's own graph has a frame without attributes.
struct Frame<'m, V> {
    attributes: HashMap<&'m str, Passed<'m, V>>,
    opsets: HashMap<&'m str, u32>,
    /// The functions under way, for recursion.
    active: Vec<FunctionKey<'m>>,
}

/// An attribute's value, and the scope that a graph in it reads.
#[derive(Clone)]
struct Passed<'m, V> {
    value: &'m AttributeValue,
    scope: Rc<Scope<'m, V>>,
}

impl<V> Default for Frame<'_, V> {
    fn default() -> Self {
        Self { attributes: HashMap::new(), opsets: HashMap::new(), active: Vec::new() }
    }
}

impl<'m, V: Copy> Scope<'m, V> {
    fn new(outer: Option<Rc<Self>>, frame: Rc<Frame<'m, V>>) -> Rc<Self> {
        Rc::new(Self { names: RefCell::default(), outer, frame })
    }

    fn bind(&self, name: &'m str, value: Option<V>, offset: u64) -> Result<()> {
        if self.names.borrow_mut().insert(name, value).is_some() {
            return Err(at(offset, format!("\"{name}\" is written twice")));
        }
        Ok(())
    }

    /// The value of a name: outer `None` when unknown, inner `None` for an
    /// optional input of a function that the caller left out.
    fn lookup(&self, name: &str) -> Option<Option<V>> {
        let mut scope = Some(self);
        while let Some(current) = scope {
            if let Some(&value) = current.names.borrow().get(name) {
                return Some(value);
            }
            scope = current.outer.as_deref();
        }
        None
    }

    fn read(&self, name: &str, offset: u64) -> Result<Option<V>> {
        if name.is_empty() {
            return Ok(None);
        }
        self.lookup(name)
            .ok_or_else(|| at(offset, format!("\"{name}\" is read before anything writes it")))
    }

    /// A name that must have a value, such as an output.
    fn require(&self, name: &str, offset: u64) -> Result<V> {
        self.read(name, offset)?
            .ok_or_else(|| at(offset, format!("output \"{name}\" has no value")))
    }

    /// Whether `name` is bound here and not further out.
    fn owns(&self, name: &str) -> bool {
        self.names.borrow().contains_key(name)
    }
}

impl<'m, S: Sink> Importer<'_, 'm, S> {
    fn inputs(
        &mut self,
        graph: &'m Graph,
        options: &Options,
        scope: &Scope<'m, S::Value>,
    ) -> Result<()> {
        let initialized: HashSet<&str> =
            graph.initializers.iter().map(|tensor| tensor.name.as_str()).collect();
        let is_input = |name: &str| graph.inputs.iter().any(|input| input.name == name);
        if let Some(name) = options.shapes.keys().find(|name| !is_input(name)) {
            let names: Vec<&str> = graph.inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(Error::invalid(format!(
                "the configuration gives a shape for \"{name}\", but the model's inputs are {names:?}"
            )));
        }
        // An input with an initialiser has a default that a caller may
        // replace; the default is what is served.
        for input in graph.inputs.iter().filter(|input| !initialized.contains(&*input.name)) {
            let value = self.sink.input(&input_spec(input, options)?)?;
            scope.bind(&input.name, Some(value), 0)?;
        }
        Ok(())
    }

    fn initializers(&mut self, graph: &'m Graph, scope: &Scope<'m, S::Value>) -> Result<()> {
        if graph.sparse_initializer_count > 0 {
            return Err(Error::unsupported("sparse initialisers are not supported"));
        }
        for tensor in &graph.initializers {
            let value = self.tensor_value(tensor)?;
            scope.bind(&tensor.name, Some(value), 0)?;
        }
        Ok(())
    }

    fn outputs(&mut self, graph: &'m Graph, scope: &Scope<'m, S::Value>) -> Result<()> {
        let zipped = zip_maps(graph);
        for output in &graph.outputs {
            if let ValueKind::Other(kind) = output.kind
                && !zipped.contains(&*output.name)
            {
                return Err(Error::unsupported(format!(
                    "output \"{}\" is {kind}; only tensors can be served",
                    output.name
                )));
            }
            let value = scope.require(&output.name, 0)?;
            self.sink.output(&output.name, value)?;
        }
        Ok(())
    }

    fn nodes(
        &mut self,
        nodes: &'m [Node],
        scope: &Rc<Scope<'m, S::Value>>,
        zipped: &HashSet<&str>,
    ) -> Result<()> {
        for node in nodes {
            if is_zip_map(node) && node.outputs.first().is_some_and(|name| zipped.contains(&**name))
            {
                self.unzip(node, scope)?;
            } else {
                self.node(node, scope)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &'m Node, scope: &Rc<Scope<'m, S::Value>>) -> Result<()> {
        self.nodes_left = self.nodes_left.checked_sub(1).ok_or_else(|| {
            at(
                node.offset,
                format!("with its functions put in, the model has over {MAX_NODES} nodes"),
            )
        })?;
        let domain = normal_domain(&node.domain);
        if let Some(&function) = self.functions.get(&(domain, &*node.op, &*node.overload)) {
            return self.call_function(function, node, scope);
        }
        if domain.is_empty() && node.op == "Constant" {
            return self.constant_node(node, scope);
        }
        let opset = *scope.frame.opsets.get(domain).ok_or_else(|| {
            at(
                node.offset,
                format!(
                    "node {} is of domain \"{domain}\", which opset_import lacks",
                    describe(node)
                ),
            )
        })?;
        let inputs: Result<Vec<_>> =
            node.inputs.iter().map(|name| scope.read(name, node.offset)).collect();
        let mut inputs = inputs?;
        while let Some(None) = inputs.last() {
            inputs.pop();
        }
        let attributes = self.arguments(node, scope)?;
        let output_count =
            node.outputs.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
        let call = Call {
            domain,
            op: &node.op,
            opset,
            name: &node.name,
            inputs,
            attributes,
            output_count: u32::try_from(output_count)?,
        };
        let outputs = self.sink.node(call)?;
        self.bind_outputs(node, scope, &outputs)
    }

    fn bind_outputs(
        &self,
        node: &'m Node,
        scope: &Scope<'m, S::Value>,
        values: &[S::Value],
    ) -> Result<()> {
        for (name, &value) in node.outputs.iter().zip(values) {
            if !name.is_empty() {
                scope.bind(name, Some(value), node.offset)?;
            }
        }
        Ok(())
    }

    /// Serves the matrix of probabilities in place of a list of maps.
    fn unzip(&mut self, node: &'m Node, scope: &Scope<'m, S::Value>) -> Result<()> {
        let (input, output) = match (node.inputs.as_slice(), node.outputs.as_slice()) {
            ([input], [output]) => (input, output),
            _ => return Err(at(node.offset, "ZipMap takes one input and gives one output")),
        };
        let value = scope.require(input, node.offset)?;
        let classes = node.attributes.iter().find_map(class_names).unwrap_or_default();
        self.notes.0.push(format!(
            "output \"{output}\" is served as a matrix with one column per class: {classes}"
        ));
        scope.bind(output, Some(value), node.offset)
    }

    /// The attributes of a node, with references to the caller's resolved; a
    /// reference to one that is absent there is left out.
    fn arguments(
        &mut self,
        node: &'m Node,
        scope: &Rc<Scope<'m, S::Value>>,
    ) -> Result<Arguments<'m, S::Subgraph>> {
        let mut arguments = Vec::with_capacity(node.attributes.len());
        for attribute in &node.attributes {
            if let Some(passed) = resolve(attribute, scope) {
                // `Optional` names the type that an empty one would have.
                if matches!(passed.value, AttributeValue::Type) && node.op == "Optional" {
                    continue;
                }
                let argument = self.argument(&attribute.name, &passed, node)?;
                arguments.push((attribute.name.as_str(), argument));
            }
        }
        Ok(arguments)
    }

    fn argument(
        &mut self,
        name: &str,
        passed: &Passed<'m, S::Value>,
        node: &Node,
    ) -> Result<Argument<'m, S::Subgraph>> {
        Ok(match passed.value {
            AttributeValue::Int(value) => Argument::Int(*value),
            AttributeValue::Float(value) => Argument::Float(*value),
            AttributeValue::Text(value) => Argument::Text(value),
            AttributeValue::Ints(values) => Argument::Ints(values),
            AttributeValue::Floats(values) => Argument::Floats(values),
            AttributeValue::Texts(values) => Argument::Texts(values),
            AttributeValue::Tensor(tensor) => Argument::Tensor(self.in_memory(tensor)?),
            AttributeValue::Graph(graph) => Argument::Graph(self.subgraph(graph, &passed.scope)?),
            AttributeValue::Reference(_) => {
                return Err(at(node.offset, format!("attribute {name} refers to a reference")));
            }
            AttributeValue::Type | AttributeValue::Other(_) => {
                let kind = match passed.value {
                    AttributeValue::Other(kind) => kind,
                    _ => "a type",
                };
                return Err(Error::unsupported(format!(
                    "attribute {name} of node {} is {kind}, which is not supported",
                    describe(node)
                )));
            }
        })
    }

    fn subgraph(
        &mut self,
        graph: &'m Graph,
        outer: &Rc<Scope<'m, S::Value>>,
    ) -> Result<S::Subgraph> {
        self.enter(0)?;
        let scope = Scope::new(Some(outer.clone()), outer.frame.clone());
        let values = self.sink.begin_subgraph(u32::try_from(graph.inputs.len())?)?;
        for (input, value) in graph.inputs.iter().zip(values) {
            scope.bind(&input.name, Some(value), 0)?;
        }
        self.initializers(graph, &scope)?;
        self.nodes(&graph.nodes, &scope, &HashSet::new())?;
        let outputs: Result<Vec<_>> =
            graph.outputs.iter().map(|output| self.subgraph_output(&output.name, &scope)).collect();
        self.depth -= 1;
        self.sink.end_subgraph(&outputs?)
    }

    /// An output that is a value of an outer graph passes through a node, so
    /// that a subgraph's outputs are always its own.
    fn subgraph_output(&mut self, name: &str, scope: &Scope<'m, S::Value>) -> Result<S::Value> {
        let value = scope.require(name, 0)?;
        if scope.owns(name) {
            return Ok(value);
        }
        let call = Call {
            domain: "",
            op: "Identity",
            opset: IDENTITY_OPSET,
            name,
            inputs: vec![Some(value)],
            attributes: Vec::new(),
            output_count: 1,
        };
        let outputs = self.sink.node(call)?;
        outputs.first().copied().ok_or_else(|| Error::failed("the builder gave no value"))
    }

    fn call_function(
        &mut self,
        function: &'m Function,
        node: &'m Node,
        caller: &Rc<Scope<'m, S::Value>>,
    ) -> Result<()> {
        self.enter(node.offset)?;
        let frame = function_frame(function, node, caller)?;
        let scope = Scope::new(None, Rc::new(frame));
        for (index, name) in function.inputs.iter().enumerate() {
            let argument = node.inputs.get(index).map_or("", String::as_str);
            scope.bind(name, caller.read(argument, node.offset)?, node.offset)?;
        }
        if node.inputs.len() > function.inputs.len() || node.outputs.len() > function.outputs.len()
        {
            return Err(at(
                node.offset,
                format!("node {} has more inputs or outputs than its function", describe(node)),
            ));
        }
        self.nodes(&function.nodes, &scope, &HashSet::new())?;
        for (name, inner) in node.outputs.iter().zip(&function.outputs) {
            if !name.is_empty() {
                caller.bind(name, Some(scope.require(inner, node.offset)?), node.offset)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn enter(&mut self, offset: u64) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(at(offset, format!("functions and graphs lie more than {MAX_DEPTH} deep")));
        }
        Ok(())
    }

    /// A `Constant` node becomes a constant of the graph.
    fn constant_node(&mut self, node: &'m Node, scope: &Rc<Scope<'m, S::Value>>) -> Result<()> {
        let passed = node.attributes.iter().find_map(|attribute| resolve(attribute, scope));
        let value = passed
            .ok_or_else(|| at(node.offset, format!("node {} has no value", describe(node))))?;
        let value = match value.value {
            AttributeValue::Tensor(tensor) => self.tensor_value(tensor)?,
            other => {
                let tensor = literal(other).ok_or_else(|| {
                    Error::unsupported(format!(
                        "node {} holds a sparse tensor, which is not supported",
                        describe(node)
                    ))
                })?;
                self.sink.constant(&tensor)?
            }
        };
        self.bind_outputs(node, scope, &[value])
    }

    /// Numbers in a file become weights and are never read here.
    fn tensor_value(&mut self, tensor: &Tensor) -> Result<S::Value> {
        match &tensor.data {
            TensorData::Bytes(_) | TensorData::Strings(_) => self.sink.constant(tensor),
            TensorData::File(range) => {
                let place = Place { asset: self.files.model(), range: *range };
                self.sink.weight(place, tensor.dtype, &tensor.dims)
            }
            TensorData::External { location, offset, .. } => {
                let (asset, range) = self.external(tensor, location, *offset)?;
                self.sink.weight(Place { asset: &asset, range }, tensor.dtype, &tensor.dims)
            }
        }
    }

    fn external(
        &self,
        tensor: &Tensor,
        location: &str,
        offset: u64,
    ) -> Result<(String, ByteRange)> {
        let (asset, len) = self
            .files
            .external(location)
            .map_err(|error| error.context(format!("tensor \"{}\"", tensor.name)))?;
        let length = tensor.byte_len()?;
        if offset.checked_add(length).is_none_or(|end| end > len) {
            return Err(invalid(format!(
                "tensor \"{}\" takes {length} bytes from {offset} of \"{asset}\", which has {len}",
                tensor.name
            )));
        }
        Ok((asset, ByteRange { offset, length }))
    }

    /// A tensor that is an attribute: the bytes are read.
    fn in_memory(&self, tensor: &'m Tensor) -> Result<Cow<'m, Tensor>> {
        let (asset, range) = match &tensor.data {
            TensorData::Bytes(_) | TensorData::Strings(_) => return Ok(Cow::Borrowed(tensor)),
            TensorData::File(range) => (self.files.model().to_owned(), *range),
            TensorData::External { location, offset, .. } => {
                self.external(tensor, location, *offset)?
            }
        };
        if range.length > MAX_ATTRIBUTE_TENSOR_BYTES {
            return Err(Error::unsupported(format!(
                "tensor \"{}\" is an attribute of {} bytes; at most {MAX_ATTRIBUTE_TENSOR_BYTES} are \
                 supported",
                tensor.name, range.length
            )));
        }
        let bytes = self.files.read(Place { asset: &asset, range })?;
        Ok(Cow::Owned(Tensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            dims: tensor.dims.clone(),
            data: TensorData::Bytes(bytes),
        }))
    }
}

/// The names and operator sets that a function's body sees when `node` calls
/// it from `caller`.
fn function_frame<'m, V: Copy>(
    function: &'m Function,
    node: &'m Node,
    caller: &Rc<Scope<'m, V>>,
) -> Result<Frame<'m, V>> {
    let key = function_key(function);
    let mut active = caller.frame.active.clone();
    if active.contains(&key) {
        return Err(at(node.offset, format!("function \"{}\" calls itself", function.name)));
    }
    active.push(key);
    let mut attributes = HashMap::new();
    for attribute in &function.defaults {
        let passed = Passed { value: &attribute.value, scope: caller.clone() };
        attributes.insert(attribute.name.as_str(), passed);
    }
    for attribute in &node.attributes {
        if let Some(passed) = resolve(attribute, caller) {
            attributes.insert(attribute.name.as_str(), passed);
        }
    }
    Ok(Frame { attributes, opsets: opset_table(&function.opsets)?, active })
}

/// The value of an attribute; `None` when it refers to one of the caller that
/// is absent.
fn resolve<'m, V: Copy>(
    attribute: &'m Attribute,
    scope: &Rc<Scope<'m, V>>,
) -> Option<Passed<'m, V>> {
    match &attribute.value {
        AttributeValue::Reference(name) => {
            let passed = scope.frame.attributes.get(name.as_str())?;
            Some(Passed { value: passed.value, scope: passed.scope.clone() })
        }
        value => Some(Passed { value, scope: scope.clone() }),
    }
}

fn function_key(function: &Function) -> FunctionKey<'_> {
    (normal_domain(&function.domain), &function.name, &function.overload)
}

fn index_functions(functions: &[Function]) -> Result<HashMap<FunctionKey<'_>, &Function>> {
    let mut index = HashMap::new();
    for function in functions {
        if index.insert(function_key(function), function).is_some() {
            return Err(invalid(format!("function \"{}\" is defined twice", function.name)));
        }
    }
    Ok(index)
}

/// Operator sets by domain. Of several for one domain the last one counts, as
/// in onnxruntime.
fn opset_table(opsets: &[(String, i64)]) -> Result<HashMap<&str, u32>> {
    if opsets.is_empty() {
        // Files older than opset_import mean the first operator set.
        return Ok(HashMap::from([("", 1)]));
    }
    let mut table = HashMap::new();
    for (domain, version) in opsets {
        let version =
            u32::try_from(*version).ok().filter(|&version| version > 0).ok_or_else(|| {
                invalid(format!("opset_import of domain \"{domain}\" has version {version}"))
            })?;
        table.insert(normal_domain(domain), version);
    }
    Ok(table)
}

/// `ai.onnx` is another name of the default domain.
fn normal_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn is_zip_map(node: &Node) -> bool {
    node.op == "ZipMap" && node.domain == "ai.onnx.ml"
}

/// The outputs of the graph that a `ZipMap` writes and that no node reads.
fn zip_maps(graph: &Graph) -> HashSet<&str> {
    let outputs: HashSet<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
    let zipped = graph.nodes.iter().filter(|node| is_zip_map(node));
    let mut names: HashSet<&str> = zipped
        .flat_map(|node| &node.outputs)
        .map(String::as_str)
        .filter(|name| outputs.contains(name))
        .collect();
    if !names.is_empty() {
        for_each_read(graph, &mut |name| {
            names.remove(name);
        });
    }
    names
}

/// Visits every name that a node of the graph or of one inside it reads.
fn for_each_read(graph: &Graph, visit: &mut dyn FnMut(&str)) {
    for node in &graph.nodes {
        node.inputs.iter().for_each(|name| visit(name));
        for attribute in &node.attributes {
            if let AttributeValue::Graph(inner) = &attribute.value {
                for_each_read(inner, visit);
                inner.outputs.iter().for_each(|output| visit(&output.name));
            }
        }
    }
}

/// The class labels of a `ZipMap`, for the log.
fn class_names(attribute: &Attribute) -> Option<String> {
    match (&*attribute.name, &attribute.value) {
        ("classlabels_int64s", AttributeValue::Ints(labels)) => Some(format!("{labels:?}")),
        ("classlabels_strings", AttributeValue::Texts(labels)) => {
            let labels: Vec<_> =
                labels.iter().map(|label| String::from_utf8_lossy(label)).collect();
            Some(format!("{labels:?}"))
        }
        _ => None,
    }
}

fn input_spec(input: &ValueInfo, options: &Options) -> Result<TensorSpec> {
    let name = &input.name;
    let (element, dims) = match &input.kind {
        ValueKind::Tensor { element, dims } => (*element, dims),
        ValueKind::Other(kind) => {
            return Err(Error::unsupported(format!(
                "input \"{name}\" is {kind}; only tensors can be sent"
            )));
        }
        ValueKind::Undeclared => return Err(invalid(format!("input \"{name}\" has no type"))),
    };
    let dtype = proto::element_type(element, || format!("input \"{name}\""))?;
    let shape = options.shapes.get(name).or(dims.as_ref()).ok_or_else(|| {
        Error::unsupported(format!(
            "input \"{name}\" declares no shape; give one in the configuration, as in \
             {{\"shapes\": {{\"{name}\": [{VARIABLE}, 4]}}}}"
        ))
    })?;
    Ok(TensorSpec::new(name, dtype, shape.clone()))
}

/// The tensor that a `Constant` node's attribute of another type stands for.
fn literal(value: &AttributeValue) -> Option<Tensor> {
    use mortise_plugin_sdk::DType;
    let (dtype, dims, data) = match value {
        AttributeValue::Int(value) => {
            (DType::I64, vec![], TensorData::Bytes(value.to_le_bytes().into()))
        }
        AttributeValue::Float(value) => {
            (DType::F32, vec![], TensorData::Bytes(value.to_le_bytes().into()))
        }
        AttributeValue::Text(value) => {
            (DType::String, vec![], TensorData::Strings(vec![value.clone()]))
        }
        AttributeValue::Ints(values) => {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (DType::I64, vec![values.len() as u64], TensorData::Bytes(bytes))
        }
        AttributeValue::Floats(values) => {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (DType::F32, vec![values.len() as u64], TensorData::Bytes(bytes))
        }
        AttributeValue::Texts(values) => {
            (DType::String, vec![values.len() as u64], TensorData::Strings(values.clone()))
        }
        _ => return None,
    };
    Some(Tensor { name: String::new(), dtype, dims, data })
}

/// `Conv "conv1"`.
fn describe(node: &Node) -> String {
    format!("{} \"{}\"", node.op, node.name)
}
