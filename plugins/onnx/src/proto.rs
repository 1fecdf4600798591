//! ONNX's messages as Rust types, read from protobuf. Field numbers are those
//! of `onnx.proto`. Weights are left where they lie: a tensor keeps the range
//! of its bytes.

use crate::error::{at, invalid};
use crate::reader::{Field, Fields, File, Span, extend};
use mortise_plugin_sdk::{ByteRange, DType, Error, Result};

/// How deep graphs may lie in attributes of nodes of graphs.
const MAX_DEPTH: u32 = 16;
/// The most nodes, tensors or attributes of one file.
const MAX_ITEMS: u64 = 1_000_000;
/// Memory that each of them takes besides its text, for the reader's limit.
const ITEM_BYTES: u64 = 64;

/// `ModelProto`.
#[derive(Debug, Default)]
pub struct Model {
    pub opsets: Vec<(String, i64)>,
    pub graph: Option<Graph>,
    pub functions: Vec<Function>,
}

/// `GraphProto`.
#[derive(Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub initializers: Vec<Tensor>,
    pub sparse_initializer_count: usize,
    pub inputs: Vec<ValueInfo>,
    pub outputs: Vec<ValueInfo>,
}

/// `NodeProto`.
#[derive(Debug, Default)]
pub struct Node {
    /// Where the node lies in the file, for messages.
    pub offset: u64,
    pub domain: String,
    pub op: String,
    pub overload: String,
    pub name: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: Vec<Attribute>,
}

/// `AttributeProto`.
#[derive(Debug)]
pub struct Attribute {
    pub name: String,
    pub value: AttributeValue,
}

#[derive(Debug)]
pub enum AttributeValue {
    Int(i64),
    Float(f32),
    Text(Vec<u8>),
    Tensor(Tensor),
    Graph(Box<Graph>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<Vec<u8>>),
    /// The value of the attribute of this name of the calling node.
    Reference(String),
    /// A type. Values carry their own, so it is not kept.
    Type,
    /// A kind that cannot be passed on: its name.
    Other(&'static str),
}

/// `FunctionProto`.
#[derive(Debug, Default)]
pub struct Function {
    pub domain: String,
    pub name: String,
    pub overload: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// Attributes with a default.
    pub defaults: Vec<Attribute>,
    pub nodes: Vec<Node>,
    pub opsets: Vec<(String, i64)>,
}

/// `ValueInfoProto`.
#[derive(Debug)]
pub struct ValueInfo {
    pub name: String,
    pub kind: ValueKind,
}

/// `TypeProto`.
#[derive(Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Dimensions are `None` when the shape is not declared, and -1 where a
    /// size is not.
    Tensor {
        element: i64,
        dims: Option<Vec<i64>>,
    },
    /// `a sequence`, `a map` and so on.
    Other(&'static str),
    Undeclared,
}

/// `TensorProto`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<u64>,
    pub data: TensorData,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Bytes of the model file.
    File(ByteRange),
    /// Bytes of another file; to its end when there is no length.
    External {
        location: String,
        offset: u64,
        length: Option<u64>,
    },
    /// Little-endian bytes.
    Bytes(Vec<u8>),
    Strings(Vec<Vec<u8>>),
}

impl Tensor {
    /// The number of elements.
    ///
    /// # Errors
    /// When the product of the dimensions overflows.
    pub fn count(&self) -> Result<u64> {
        self.dims.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim)).ok_or_else(|| {
            invalid(format!("tensor \"{}\" has too many elements: {:?}", self.name, self.dims))
        })
    }

    /// Bytes of the elements.
    ///
    /// # Errors
    /// When the size overflows, or the elements are strings.
    pub fn byte_len(&self) -> Result<u64> {
        self.dtype.byte_len(self.count()?).ok_or_else(|| {
            invalid(format!("tensor \"{}\" has no byte size: {}", self.name, self.dtype))
        })
    }
}

/// Reads a whole model.
///
/// # Errors
/// When the file is malformed (with the byte), or a limit is hit.
pub fn read_model(file: &File<'_>) -> Result<Model> {
    let parser = Parser { file, items_left: std::cell::Cell::new(MAX_ITEMS) };
    parser.model(file.message())
}

struct Parser<'f, 's> {
    file: &'f File<'s>,
    items_left: std::cell::Cell<u64>,
}

impl<'f, 's> Parser<'f, 's> {
    fn model(&self, mut fields: Fields<'_, '_>) -> Result<Model> {
        let mut model = Model::default();
        while let Some(field) = fields.next_field()? {
            match field.number {
                7 => model.graph = Some(self.graph(&field, 0)?),
                8 => model.opsets.push(self.opset(&field)?),
                25 => model.functions.push(self.function(&field)?),
                _ => {}
            }
        }
        Ok(model)
    }

    fn opset(&self, field: &Field) -> Result<(String, i64)> {
        self.item(field)?;
        let (mut domain, mut version) = (String::new(), 0);
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => domain = self.text(&field)?,
                2 => version = field.int()?,
                _ => {}
            }
        }
        Ok((domain, version))
    }

    fn function(&self, field: &Field) -> Result<Function> {
        self.item(field)?;
        let mut function = Function::default();
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => function.name = self.text(&field)?,
                4 => function.inputs.push(self.text(&field)?),
                5 => function.outputs.push(self.text(&field)?),
                7 => function.nodes.push(self.node(&field, 1)?),
                9 => function.opsets.push(self.opset(&field)?),
                10 => function.domain = self.text(&field)?,
                11 => function.defaults.push(self.attribute(&field, 1)?),
                13 => function.overload = self.text(&field)?,
                _ => {}
            }
        }
        Ok(function)
    }

    fn graph(&self, field: &Field, depth: u32) -> Result<Graph> {
        if depth > MAX_DEPTH {
            return Err(at(field.offset, format!("graphs lie more than {MAX_DEPTH} deep")));
        }
        self.item(field)?;
        let mut graph = Graph::default();
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => graph.nodes.push(self.node(&field, depth)?),
                5 => graph.initializers.push(self.tensor(&field)?),
                11 => graph.inputs.push(self.value_info(&field)?),
                12 => graph.outputs.push(self.value_info(&field)?),
                15 => graph.sparse_initializer_count += 1,
                _ => {}
            }
        }
        Ok(graph)
    }

    fn node(&self, field: &Field, depth: u32) -> Result<Node> {
        self.item(field)?;
        let mut node = Node { offset: field.offset, ..Node::default() };
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => node.inputs.push(self.text(&field)?),
                2 => node.outputs.push(self.text(&field)?),
                3 => node.name = self.text(&field)?,
                4 => node.op = self.text(&field)?,
                5 => node.attributes.push(self.attribute(&field, depth)?),
                7 => node.domain = self.text(&field)?,
                8 => node.overload = self.text(&field)?,
                _ => {}
            }
        }
        Ok(node)
    }

    fn attribute(&self, field: &Field, depth: u32) -> Result<Attribute> {
        self.item(field)?;
        let offset = field.offset;
        let mut parts = AttributeParts::default();
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            self.attribute_field(&field, depth, &mut parts)?;
        }
        let name = parts.name.clone();
        Ok(Attribute { name, value: parts.into_value(offset)? })
    }

    fn attribute_field(&self, field: &Field, depth: u32, parts: &mut AttributeParts) -> Result<()> {
        match field.number {
            1 => parts.name = self.text(field)?,
            2 => parts.float = Some(field.float()?),
            3 => parts.int = Some(field.int()?),
            4 => parts.text = Some(self.file.bytes(field.span()?)?),
            5 => parts.tensor = Some(self.tensor(field)?),
            6 => parts.graph = Some(Box::new(self.graph(field, depth + 1)?)),
            7 => extend(self.file, field, &mut parts.floats)?,
            8 => extend(self.file, field, &mut parts.ints)?,
            9 => parts.texts.push(self.kept_text(field)?),
            10 => parts.other = Some("a list of tensors"),
            11 => parts.other = Some("a list of graphs"),
            14 => parts.is_type = true,
            15 => parts.other = Some("a list of types"),
            22 | 23 => parts.other = Some("a sparse tensor"),
            20 => parts.kind = field.int()?,
            21 => parts.reference = self.text(field)?,
            _ => {}
        }
        Ok(())
    }

    /// One of many strings: a short one still takes a vector.
    fn kept_text(&self, field: &Field) -> Result<Vec<u8>> {
        self.file.keep(24, field.offset)?;
        self.file.bytes(field.span()?)
    }

    fn value_info(&self, field: &Field) -> Result<ValueInfo> {
        self.item(field)?;
        let mut info = ValueInfo { name: String::new(), kind: ValueKind::Undeclared };
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => info.name = self.text(&field)?,
                2 => info.kind = self.value_kind(&field)?,
                _ => {}
            }
        }
        Ok(info)
    }

    fn value_kind(&self, field: &Field) -> Result<ValueKind> {
        let mut kind = ValueKind::Undeclared;
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => kind = self.tensor_kind(&field)?,
                4 => kind = ValueKind::Other("a sequence"),
                5 => kind = ValueKind::Other("a map"),
                7 => kind = ValueKind::Other("an opaque value"),
                8 => kind = ValueKind::Other("a sparse tensor"),
                9 => kind = ValueKind::Other("an optional"),
                _ => {}
            }
        }
        Ok(kind)
    }

    fn tensor_kind(&self, field: &Field) -> Result<ValueKind> {
        let (mut element, mut dims) = (0, None);
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => element = field.int()?,
                2 => dims = Some(self.declared_dims(&field)?),
                _ => {}
            }
        }
        Ok(ValueKind::Tensor { element, dims })
    }

    fn declared_dims(&self, field: &Field) -> Result<Vec<i64>> {
        let mut dims = Vec::new();
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            if field.number != 1 {
                continue;
            }
            self.file.keep(8, field.offset)?;
            let mut size = -1;
            let mut inner = self.open(&field)?;
            while let Some(field) = inner.next_field()? {
                if field.number == 1 {
                    size = field.int()?.max(-1);
                }
            }
            dims.push(size);
        }
        Ok(dims)
    }

    fn tensor(&self, field: &Field) -> Result<Tensor> {
        self.item(field)?;
        let mut parts = TensorParts::default();
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            self.tensor_field(&field, &mut parts)?;
        }
        parts.into_tensor(field.offset)
    }

    fn tensor_field(&self, field: &Field, parts: &mut TensorParts) -> Result<()> {
        match field.number {
            1 => extend(self.file, field, &mut parts.dims)?,
            2 => parts.dtype = field.int()?,
            4 => self.packed_floats(field, 4, parts)?,
            5 | 7 | 11 => extend(self.file, field, &mut parts.ints)?,
            6 => parts.strings.push(self.kept_text(field)?),
            8 => parts.name = self.text(field)?,
            9 => parts.raw = Some(field.span()?),
            10 => self.packed_floats(field, 8, parts)?,
            13 => self.external(field, parts)?,
            14 => parts.is_external = field.int()? == 1,
            _ => {}
        }
        Ok(())
    }

    /// `float_data` and `double_data`: one packed run lies in the file exactly
    /// as raw data would, so only its range is kept.
    fn packed_floats(&self, field: &Field, size: u64, parts: &mut TensorParts) -> Result<()> {
        if let crate::reader::Wire::Bytes(span) = field.value
            && parts.bytes.is_empty()
            && parts.packed.is_none()
        {
            if !span.length().is_multiple_of(size) {
                return Err(at(
                    field.offset,
                    format!("packed floats take {} bytes", span.length()),
                ));
            }
            parts.packed = Some(span);
            return Ok(());
        }
        if let Some(span) = parts.packed.take() {
            parts.bytes = self.file.bytes(span)?;
        }
        if size == 4 {
            let mut values = Vec::<f32>::new();
            extend(self.file, field, &mut values)?;
            parts.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        } else {
            let mut values = Vec::<f64>::new();
            extend(self.file, field, &mut values)?;
            parts.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(())
    }

    fn external(&self, field: &Field, parts: &mut TensorParts) -> Result<()> {
        let (mut key, mut value) = (String::new(), String::new());
        let mut fields = self.open(field)?;
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => key = self.text(&field)?,
                2 => value = self.text(&field)?,
                _ => {}
            }
        }
        let number = |value: &str| {
            value.parse::<u64>().map_err(|_| {
                at(field.offset, format!("external data has the {key} \"{value}\", not a number"))
            })
        };
        match key.as_str() {
            "location" => parts.location = Some(value),
            "offset" => parts.offset = number(&value)?,
            "length" => parts.length = Some(number(&value)?),
            _ => {}
        }
        Ok(())
    }

    fn open(&self, field: &Field) -> Result<Fields<'f, 's>> {
        Ok(self.file.fields(field.span()?))
    }

    fn text(&self, field: &Field) -> Result<String> {
        self.file.text(field.span()?)
    }

    fn item(&self, field: &Field) -> Result<()> {
        let left = self.items_left.get().checked_sub(1).ok_or_else(|| {
            at(field.offset, format!("more than {MAX_ITEMS} nodes, tensors and attributes"))
        })?;
        self.items_left.set(left);
        self.file.keep(ITEM_BYTES, field.offset)
    }
}

/// The fields of an `AttributeProto` as they come.
#[derive(Default)]
struct AttributeParts {
    name: String,
    kind: i64,
    reference: String,
    int: Option<i64>,
    float: Option<f32>,
    text: Option<Vec<u8>>,
    tensor: Option<Tensor>,
    graph: Option<Box<Graph>>,
    ints: Vec<i64>,
    floats: Vec<f32>,
    texts: Vec<Vec<u8>>,
    is_type: bool,
    other: Option<&'static str>,
}

impl AttributeParts {
    fn into_value(mut self, offset: u64) -> Result<AttributeValue> {
        use AttributeValue as V;
        if !self.reference.is_empty() {
            return Ok(V::Reference(self.reference));
        }
        if self.kind == 0 {
            self.kind = self.guess_kind();
        }
        let missing = |what: &str| at(offset, format!("attribute \"{}\" has no {what}", self.name));
        Ok(match self.kind {
            // proto3 writers leave zeros and empty text out.
            1 => V::Float(self.float.unwrap_or(0.0)),
            2 => V::Int(self.int.unwrap_or(0)),
            3 => V::Text(self.text.unwrap_or_default()),
            4 => V::Tensor(self.tensor.ok_or_else(|| missing("tensor"))?),
            5 => V::Graph(self.graph.ok_or_else(|| missing("graph"))?),
            6 => V::Floats(self.floats),
            7 => V::Ints(self.ints),
            8 => V::Texts(self.texts),
            9 => V::Other("a list of tensors"),
            10 => V::Other("a list of graphs"),
            11 | 12 => V::Other("a sparse tensor"),
            13 => V::Type,
            14 => V::Other("a list of types"),
            other => return Err(at(offset, format!("attribute type {other} is unknown"))),
        })
    }

    /// Files of the first IR version have no types: the field that is set
    /// tells.
    fn guess_kind(&self) -> i64 {
        let set = [
            (self.float.is_some(), 1),
            (self.int.is_some(), 2),
            (self.text.is_some(), 3),
            (self.tensor.is_some(), 4),
            (self.graph.is_some(), 5),
            (!self.floats.is_empty(), 6),
            (!self.ints.is_empty(), 7),
            (!self.texts.is_empty(), 8),
            (self.is_type, 13),
            (self.other.is_some(), 9),
        ];
        set.iter().find(|(is_set, _)| *is_set).map_or(7, |&(_, kind)| kind)
    }
}

/// The fields of a `TensorProto` as they come.
#[derive(Default)]
struct TensorParts {
    name: String,
    dtype: i64,
    dims: Vec<i64>,
    raw: Option<Span>,
    packed: Option<Span>,
    bytes: Vec<u8>,
    ints: Vec<i64>,
    strings: Vec<Vec<u8>>,
    is_external: bool,
    location: Option<String>,
    offset: u64,
    length: Option<u64>,
}

impl TensorParts {
    fn into_tensor(self, offset: u64) -> Result<Tensor> {
        let dtype = element_type(self.dtype, || format!("tensor \"{}\"", self.name))?;
        let negative =
            || at(offset, format!("tensor \"{}\" has a negative size: {:?}", self.name, self.dims));
        let dims: Result<Vec<u64>> =
            self.dims.iter().map(|&dim| u64::try_from(dim).map_err(|_| negative())).collect();
        let (dims, name) = (dims?, self.name.clone());
        let data = self.into_data(dtype, offset)?;
        let tensor = Tensor { name, dtype, dims, data };
        tensor.check(offset)?;
        Ok(tensor)
    }

    fn into_data(self, dtype: DType, offset: u64) -> Result<TensorData> {
        if self.is_external {
            let location = self.location.ok_or_else(|| {
                at(offset, format!("tensor \"{}\" is external but has no location", self.name))
            })?;
            return Ok(TensorData::External { location, offset: self.offset, length: self.length });
        }
        if dtype == DType::String {
            return Ok(TensorData::Strings(self.strings));
        }
        if let Some(span) = self.raw.or(self.packed) {
            return Ok(TensorData::File(ByteRange { offset: span.start, length: span.length() }));
        }
        if !self.bytes.is_empty() {
            return Ok(TensorData::Bytes(self.bytes));
        }
        Ok(TensorData::Bytes(narrow(dtype, &self.ints)))
    }
}

impl Tensor {
    fn check(&self, offset: u64) -> Result<()> {
        let (want, got) = match &self.data {
            TensorData::Strings(strings) => (self.count()?, strings.len() as u64),
            TensorData::Bytes(bytes) => (self.byte_len()?, bytes.len() as u64),
            TensorData::File(range) => (self.byte_len()?, range.length),
            TensorData::External { length, .. } => {
                let want = self.byte_len()?;
                (want, length.unwrap_or(want))
            }
        };
        if want == got {
            return Ok(());
        }
        let unit = if self.dtype == DType::String { "strings" } else { "bytes" };
        Err(at(
            offset,
            format!(
                "tensor \"{}\" ({} {:?}) takes {want} {unit}, the file has {got}",
                self.name, self.dtype, self.dims
            ),
        ))
    }
}

/// `int32_data`, `int64_data` and `uint64_data` as the bytes of the type that
/// they stand for. Packed 4- and 2-bit types come byte by byte, floats of 8
/// and 16 bits as their bits.
fn narrow(dtype: DType, ints: &[i64]) -> Vec<u8> {
    let width = (dtype.bits() as usize / 8).clamp(1, 8);
    ints.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width)).collect()
}

/// The dtype of `TensorProto.DataType` `number`; `what` is for the message.
///
/// # Errors
/// When the type is undefined or unknown.
pub fn element_type(number: i64, what: impl Fn() -> String) -> Result<DType> {
    match number {
        0 => Err(invalid(format!("{} has no element type", what()))),
        14 | 15 => Err(Error::unsupported(format!("{} has complex numbers as elements", what()))),
        _ => i32::try_from(number)
            .ok()
            .and_then(DType::from_onnx)
            .ok_or_else(|| Error::unsupported(format!("{} has element type {number}", what()))),
    }
}
