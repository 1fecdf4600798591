use crate::binary;
use crate::data::Data;
use crate::limits::WireLimits;
use crate::number::FromNumber;
use crate::parameters::{Parameters, Sequence, short_text};
use crate::reader::{Kind, Reader};
use crate::shared::{RegionSlice, SharedInput, SharedMemory, SliceDraft};
use bytes::Bytes;
use mortise_types::{DType, Error, Result, Shape, Signature, Tensor, TensorSpec};
use std::time::Duration;

/// A decoded infer request.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// The client's own id, echoed in the reply.
    pub id: Option<String>,
    /// In the order of the request. Names may repeat: the registry checks them
    /// against the signature.
    pub inputs: Vec<NamedTensor>,
    /// Inputs that [`InferRequest::read_shared`] moves to `inputs`.
    pub shared_inputs: Vec<SharedInput>,
    /// `None` asks for all outputs.
    pub outputs: Option<Vec<RequestedOutput>>,
    pub parameters: Parameters,
    /// Whether outputs that do not say go back as binary data.
    pub binary_output_default: bool,
    /// How long the client will wait, from its `timeout` in microseconds.
    pub timeout: Option<Duration>,
    /// The client's `priority`; 0 is the default of the server.
    pub priority: u64,
    pub sequence: Option<Sequence>,
}

#[derive(Clone, Debug)]
pub struct NamedTensor {
    pub name: String,
    pub tensor: Tensor,
}

/// An output that the request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedOutput {
    pub name: String,
    /// Whether it goes back as binary data, when the request says.
    pub binary: Option<bool>,
    /// How many of the highest values go back, as `value:index` strings,
    /// instead of the tensor.
    pub classification: Option<usize>,
    /// Where its data goes, when not into the reply.
    pub shared: Option<RegionSlice>,
}

impl InferRequest {
    /// A request of what its framing gave, with what its parameters say.
    ///
    /// # Errors
    /// When a parameter that has a meaning is of another type.
    pub fn new(
        id: Option<String>,
        tensors: Tensors,
        outputs: Option<Vec<RequestedOutput>>,
        parameters: Parameters,
    ) -> Result<Self> {
        Ok(Self {
            id,
            inputs: tensors.here,
            shared_inputs: tensors.shared,
            // Some clients send an empty list for "all of them".
            outputs: outputs.filter(|outputs| !outputs.is_empty()),
            binary_output_default: parameters.bool("binary_data_output")?.unwrap_or(false),
            timeout: parameters.timeout()?,
            priority: parameters.u64("priority")?.unwrap_or(0),
            sequence: parameters.sequence()?,
            parameters,
        })
    }

    /// Bytes of inputs that are still in shared memory.
    pub fn shared_bytes(&self) -> u64 {
        self.shared_inputs.iter().fold(0, |sum, input| sum.saturating_add(input.slice.byte_size))
    }

    /// Copies the inputs that are in shared memory.
    ///
    /// # Errors
    /// When a region is not there or too short, or its data does not fit the
    /// input's datatype and shape.
    pub fn read_shared(&mut self, memory: &dyn SharedMemory) -> Result<()> {
        for input in std::mem::take(&mut self.shared_inputs) {
            let tensor = memory
                .read(&input.slice)
                .and_then(|bytes| binary::decode(input.dtype, &input.shape, bytes))
                .map_err(|error| error.context(label(&input.name)))?;
            self.inputs.push(NamedTensor { name: input.name, tensor });
        }
        Ok(())
    }
}

/// The inputs of a request by where their data is.
#[derive(Debug, Default)]
pub struct Tensors {
    pub here: Vec<NamedTensor>,
    pub shared: Vec<SharedInput>,
}

/// Decodes an infer request. `header_length` is the value of the header
/// `Inference-Header-Content-Length`: the bytes of JSON before the binary
/// data. 0 means that the whole body is the data of the model's only input,
/// whose shape then comes from `signature`. Tensors borrow from `body` where
/// their alignment allows it.
///
/// # Errors
/// [`mortise_types::ErrorKind::InvalidInput`] for what the client must change,
/// [`mortise_types::ErrorKind::Unsupported`] for extensions that are not
/// served; the message names the tensor, what was expected, and what came.
pub fn decode_infer(
    body: &Bytes,
    header_length: Option<usize>,
    signature: Option<&Signature>,
    limits: &WireLimits,
) -> Result<InferRequest> {
    match header_length {
        Some(0) => decode_raw(body, signature),
        Some(length) if length > body.len() => Err(Error::invalid(format!(
            "Inference-Header-Content-Length is {length}, but the body has only {} bytes",
            body.len()
        ))),
        Some(length) => decode_json(&body[..length], Some(body.slice(length..)), limits),
        None => decode_json(body, None, limits),
    }
}

/// A request without JSON: the body is the one input, and every output goes
/// back as binary data.
fn decode_raw(body: &Bytes, signature: Option<&Signature>) -> Result<InferRequest> {
    let signature = signature
        .ok_or_else(|| Error::invalid("a raw binary request needs a model with a signature"))?;
    let [spec] = signature.inputs.as_slice() else {
        return Err(Error::invalid(format!(
            "a raw binary request needs a model with one input, this one has {}",
            signature.inputs.len()
        )));
    };
    let tensor = raw_tensor(spec, body).map_err(|error| error.context(label(&spec.name)))?;
    Ok(InferRequest {
        inputs: vec![NamedTensor { name: spec.name.clone(), tensor }],
        binary_output_default: true,
        ..InferRequest::default()
    })
}

fn raw_tensor(spec: &TensorSpec, body: &Bytes) -> Result<Tensor> {
    // One string needs no length: the body is the string.
    let elements = match spec.dtype.byte_len(1) {
        None => 1,
        Some(size) if body.len().is_multiple_of(size) => body.len() / size,
        Some(size) => {
            return Err(Error::invalid(format!(
                "{} bytes are not a whole number of {} elements of {size} bytes",
                body.len(),
                spec.dtype
            )));
        }
    };
    let shape = infer_shape(spec, elements)?;
    if spec.dtype == DType::String {
        return Tensor::from_strings(&shape, [body].into_iter().collect());
    }
    binary::decode(spec.dtype, &shape, body.clone())
}

/// The shape of `elements` elements, with the one variable dimension filled in.
fn infer_shape(spec: &TensorSpec, elements: usize) -> Result<Shape> {
    let variable = spec.shape.iter().filter(|&&dim| dim < 0).count();
    if variable > 1 {
        return Err(Error::invalid(format!(
            "a raw binary request can have one variable dimension, the shape {:?} has {variable}; \
             send JSON with the shape",
            spec.shape
        )));
    }
    let fixed = spec.shape.iter().filter(|&&dim| dim >= 0);
    let fixed = fixed.fold(1usize, |count, &dim| count.saturating_mul(dim as usize));
    let whole = if fixed == 0 { elements == 0 } else { elements.is_multiple_of(fixed) };
    if !whole || (variable == 0 && elements != fixed) {
        return Err(Error::invalid(format!(
            "expects {} of shape {:?}, got {elements} elements",
            spec.dtype, spec.shape
        )));
    }
    let rest = elements.checked_div(fixed).unwrap_or(0);
    Ok(spec.shape.iter().map(|&dim| if dim < 0 { rest } else { dim as usize }).collect())
}

fn decode_json(json: &[u8], tail: Option<Bytes>, limits: &WireLimits) -> Result<InferRequest> {
    if json.is_empty() {
        return Err(Error::invalid("the request has no body; send a JSON object with \"inputs\""));
    }
    let mut reader = Reader::new(json, limits.max_depth);
    if reader.kind()? != Kind::Object {
        return Err(Error::invalid(format!(
            "the request must be a JSON object, got {}",
            reader.kind()?.name()
        )));
    }
    let envelope = Envelope::read(&mut reader, limits)?;
    reader.finish()?;
    envelope.into_request(tail)
}

/// The JSON of a request, with its binary inputs still to be cut from the tail.
#[derive(Default)]
struct Envelope {
    id: Option<String>,
    inputs: Option<Vec<Input>>,
    outputs: Option<Vec<RequestedOutput>>,
    parameters: Option<Parameters>,
}

impl Envelope {
    fn read(reader: &mut Reader<'_>, limits: &WireLimits) -> Result<Self> {
        let mut envelope = Self::default();
        reader.object(|reader, key| {
            let twice = match key {
                "id" | "inputs" | "outputs" | "parameters" if reader.take_null()? => false,
                "id" => {
                    let id = text(reader, "\"id\"", limits)?;
                    envelope.id.replace(id).is_some()
                }
                "inputs" => {
                    let inputs = list(reader, "\"inputs\"", limits, Input::read)?;
                    envelope.inputs.replace(inputs).is_some()
                }
                "outputs" => {
                    let outputs = list(reader, "\"outputs\"", limits, RequestedOutput::read)?;
                    envelope.outputs.replace(outputs).is_some()
                }
                "parameters" => {
                    want(reader, Kind::Object, "\"parameters\"")?;
                    let parameters = Parameters::read(reader, limits)?;
                    envelope.parameters.replace(parameters).is_some()
                }
                _ => {
                    reader.skip_value()?;
                    false
                }
            };
            refuse_twice(twice, key, "the request")
        })?;
        Ok(envelope)
    }

    fn into_request(self, tail: Option<Bytes>) -> Result<InferRequest> {
        let inputs = self.inputs.ok_or_else(|| Error::invalid("the request has no \"inputs\""))?;
        let parameters = self.parameters.unwrap_or_default();
        InferRequest::new(self.id, attach(inputs, tail)?, self.outputs, parameters)
    }
}

/// Cuts the binary inputs from the tail, in the order of the request.
pub(crate) fn attach(inputs: Vec<Input>, tail: Option<Bytes>) -> Result<Tensors> {
    let mut tail = tail;
    let mut tensors = Tensors { here: Vec::with_capacity(inputs.len()), shared: Vec::new() };
    for input in inputs {
        let named = label(&input.name);
        let tensor = match input.source {
            Source::Tensor(tensor) => tensor,
            Source::Binary { dtype, shape, size } => {
                let bytes = cut(&mut tail, size).map_err(|error| error.context(&named))?;
                binary::decode(dtype, &shape, bytes).map_err(|error| error.context(&named))?
            }
            Source::Shared { dtype, shape, slice } => {
                tensors.shared.push(SharedInput { name: input.name, dtype, shape, slice });
                continue;
            }
        };
        tensors.here.push(NamedTensor { name: input.name, tensor });
    }
    match tail {
        Some(rest) if !rest.is_empty() => Err(Error::invalid(format!(
            "the body has {} bytes more than its inputs' binary_data_size say",
            rest.len()
        ))),
        _ => Ok(tensors),
    }
}

fn cut(tail: &mut Option<Bytes>, size: usize) -> Result<Bytes> {
    let tail = tail.as_mut().ok_or_else(|| {
        Error::invalid("has binary_data_size, but there is no Inference-Header-Content-Length")
    })?;
    if size > tail.len() {
        return Err(Error::invalid(format!(
            "has a binary_data_size of {size}, but only {} bytes are left in the body",
            tail.len()
        )));
    }
    Ok(tail.split_to(size))
}

pub(crate) struct Input {
    name: String,
    source: Source,
}

enum Source {
    Tensor(Tensor),
    Binary { dtype: DType, shape: Shape, size: usize },
    Shared { dtype: DType, shape: Shape, slice: RegionSlice },
}

/// The members of an input as they come, in any order.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    dtype: Option<DType>,
    shape: Option<Shape>,
    data: Option<DraftData>,
    binary_size: Option<u64>,
    shared: SliceDraft,
}

enum DraftData {
    Read(Data),
    /// Came before the datatype: its position in the text, to be read later.
    At(usize),
}

impl Input {
    pub(crate) fn read(reader: &mut Reader<'_>, index: usize, limits: &WireLimits) -> Result<Self> {
        let mut draft = Draft::default();
        let read = reader.object(|reader, key| draft.member(reader, key, limits));
        let named = match &draft.name {
            Some(name) => label(name),
            None => format!("input {index}"),
        };
        read.and_then(|()| draft.finish(reader, limits)).map_err(|error| error.context(named))
    }
}

impl Draft {
    fn member(&mut self, reader: &mut Reader<'_>, key: &str, limits: &WireLimits) -> Result<()> {
        let twice = match key {
            "name" => {
                let name = text(reader, "\"name\"", limits)?;
                self.name.replace(name).is_some()
            }
            "datatype" => {
                let dtype = read_datatype(reader)?;
                self.dtype.replace(dtype).is_some()
            }
            "shape" => {
                let shape = read_shape(reader, limits)?;
                self.shape.replace(shape).is_some()
            }
            "data" => {
                let data = self.read_data(reader, limits)?;
                self.data.replace(data).is_some()
            }
            "parameters" => {
                if !reader.take_null()? {
                    self.read_parameters(reader, limits)?;
                }
                false
            }
            _ => {
                reader.skip_value()?;
                false
            }
        };
        refuse_twice(twice, key, "an input")
    }

    fn read_data(&self, reader: &mut Reader<'_>, limits: &WireLimits) -> Result<DraftData> {
        let Some(dtype) = self.dtype else {
            let position = reader.position();
            reader.skip_value()?;
            return Ok(DraftData::At(position));
        };
        let count = self.shape.as_ref().map(|shape| shape.iter().product());
        Data::read(reader, dtype, count, limits).map(DraftData::Read)
    }

    fn read_parameters(&mut self, reader: &mut Reader<'_>, limits: &WireLimits) -> Result<()> {
        want(reader, Kind::Object, "\"parameters\"")?;
        reader.object(|reader, key| match key {
            "binary_data_size" => {
                self.binary_size = Some(whole(reader, "binary_data_size")?);
                Ok(())
            }
            // The others are hints of other servers, such as a content type.
            _ => read_slice_parameter(&mut self.shared, reader, key, limits),
        })
    }

    fn finish(self, reader: &Reader<'_>, limits: &WireLimits) -> Result<Input> {
        let name = self.name.ok_or_else(|| missing("name"))?;
        let dtype = self.dtype.ok_or_else(|| missing("datatype"))?;
        let shape = self.shape.ok_or_else(|| missing("shape"))?;
        if let Some(slice) = self.shared.finish()? {
            if self.data.is_some() || self.binary_size.is_some() {
                return Err(Error::invalid("has shared_memory_region and data; send one"));
            }
            return Ok(Input { name, source: Source::Shared { dtype, shape, slice } });
        }
        let source = match (self.data, self.binary_size) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("has both \"data\" and binary_data_size; send one"));
            }
            (None, None) => {
                return Err(Error::invalid("has neither \"data\" nor binary_data_size"));
            }
            (None, Some(size)) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                Source::Binary { dtype, shape, size }
            }
            (Some(DraftData::Read(data)), None) => Source::Tensor(data.into_tensor(&shape)?),
            (Some(DraftData::At(position)), None) => {
                let count = shape.iter().product();
                let data = Data::read(&mut reader.at(position), dtype, Some(count), limits)?;
                Source::Tensor(data.into_tensor(&shape)?)
            }
        };
        Ok(Input { name, source })
    }
}

impl RequestedOutput {
    fn read(reader: &mut Reader<'_>, index: usize, limits: &WireLimits) -> Result<Self> {
        let mut name = None;
        let mut output = Self::default();
        let mut shared = SliceDraft::default();
        let read = reader.object(|reader, key| match key {
            "name" => {
                name = Some(text(reader, "\"name\"", limits)?);
                Ok(())
            }
            "parameters" if !reader.take_null()? => {
                output.read_parameters(reader, &mut shared, limits)
            }
            "parameters" => Ok(()),
            _ => reader.skip_value(),
        });
        let named = match &name {
            Some(name) => format!("output \"{name}\""),
            None => format!("output {index}"),
        };
        let slice = read.and_then(|()| shared.finish());
        output.shared = slice.map_err(|error| error.context(&named))?;
        output.name = name.ok_or_else(|| missing("name").context(named))?;
        Ok(output)
    }

    fn read_parameters(
        &mut self,
        reader: &mut Reader<'_>,
        shared: &mut SliceDraft,
        limits: &WireLimits,
    ) -> Result<()> {
        want(reader, Kind::Object, "\"parameters\"")?;
        reader.object(|reader, key| match key {
            "binary_data" => {
                want(reader, Kind::Bool, key)?;
                self.binary = Some(reader.bool()?);
                Ok(())
            }
            "classification" => {
                let count = whole(reader, key)?;
                // 0 is how clients say that they want the tensor itself.
                self.classification = usize::try_from(count).ok().filter(|&count| count > 0);
                Ok(())
            }
            _ => read_slice_parameter(shared, reader, key, limits),
        })
    }
}

fn label(name: &str) -> String {
    format!("input \"{name}\"")
}

fn missing(member: &str) -> Error {
    Error::invalid(format!("has no \"{member}\""))
}

/// Reads a parameter that says where in shared memory a tensor is, and skips
/// any other.
fn read_slice_parameter(
    slice: &mut SliceDraft,
    reader: &mut Reader<'_>,
    key: &str,
    limits: &WireLimits,
) -> Result<()> {
    match key {
        "shared_memory_region" => slice.region = Some(text(reader, key, limits)?),
        "shared_memory_offset" => slice.offset = Some(whole(reader, key)?),
        "shared_memory_byte_size" => slice.byte_size = Some(whole(reader, key)?),
        _ => return reader.skip_value(),
    }
    Ok(())
}

fn refuse_twice(twice: bool, key: &str, what: &str) -> Result<()> {
    match twice {
        true => Err(Error::invalid(format!("\"{key}\" is given twice in {what}"))),
        false => Ok(()),
    }
}

fn want(reader: &mut Reader<'_>, kind: Kind, what: &str) -> Result<()> {
    match reader.kind()? {
        got if got == kind => Ok(()),
        got => Err(Error::invalid(format!("{what} must be {}, got {}", kind.name(), got.name()))),
    }
}

fn text(reader: &mut Reader<'_>, what: &str, limits: &WireLimits) -> Result<String> {
    want(reader, Kind::String, what)?;
    let text = reader.string()?;
    short_text(&text, what, limits)
}

fn whole(reader: &mut Reader<'_>, what: &str) -> Result<u64> {
    want(reader, Kind::Number, what)?;
    u64::from_number(reader.number()?)
        .map_err(|_| Error::invalid(format!("{what} must be a whole number that is not negative")))
}

pub(crate) fn list<T>(
    reader: &mut Reader<'_>,
    what: &str,
    limits: &WireLimits,
    read: impl Fn(&mut Reader<'_>, usize, &WireLimits) -> Result<T>,
) -> Result<Vec<T>> {
    want(reader, Kind::Array, what)?;
    let mut items = Vec::new();
    reader.array(|reader| {
        if items.len() == limits.max_tensors {
            return Err(Error::invalid(format!(
                "{what} may have at most {} members",
                limits.max_tensors
            )));
        }
        want(reader, Kind::Object, &format!("member {} of {what}", items.len()))?;
        items.push(read(reader, items.len(), limits)?);
        Ok(())
    })?;
    Ok(items)
}

fn read_datatype(reader: &mut Reader<'_>) -> Result<DType> {
    want(reader, Kind::String, "\"datatype\"")?;
    let name = reader.string()?;
    DType::from_wire_name(&name).ok_or_else(|| {
        let name: String = name.chars().take(32).collect();
        Error::invalid(format!(
            "\"{name}\" is not a datatype; the datatypes are BOOL, UINT8, UINT16, UINT32, UINT64, \
             INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64 and BYTES"
        ))
    })
}

fn read_shape(reader: &mut Reader<'_>, limits: &WireLimits) -> Result<Shape> {
    want(reader, Kind::Array, "\"shape\"")?;
    let mut shape = Shape::new();
    let mut elements = Some(1usize);
    reader.array(|reader| {
        let dim = whole(reader, "a dimension of \"shape\"")?;
        if shape.len() == limits.max_rank {
            return Err(Error::invalid(format!(
                "\"shape\" may have at most {} dimensions",
                limits.max_rank
            )));
        }
        let dim = usize::try_from(dim).unwrap_or(usize::MAX);
        elements = elements.and_then(|count| count.checked_mul(dim));
        shape.push(dim);
        Ok(())
    })?;
    if elements.is_none_or(|count| count > limits.max_elements) {
        return Err(Error::invalid(format!(
            "shape {:?} has more than the {} elements that a tensor may have",
            shape.as_slice(),
            limits.max_elements
        )));
    }
    Ok(shape)
}
