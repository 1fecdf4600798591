use crate::fields::{Fields, Value, mistyped};
use crate::messages::ModelInferRequest;
use bytes::Bytes;
use mortise_types::{DType, Error, Result, Shape, StringsBuilder, Tensor};
use mortise_wire::{
    InferRequest, NamedTensor, Parameter, Parameters, RequestedOutput, SharedInput, SliceDraft,
    Tensors, WireLimits, decode_binary, short_text,
};

impl ModelInferRequest {
    /// Reads the request. Raw contents and packed floats are borrowed from the
    /// message where their alignment allows it.
    ///
    /// # Errors
    /// [`mortise_types::ErrorKind::InvalidInput`] for what the client must
    /// change; the message names the tensor, what was expected, and what came.
    pub fn decode_infer(self, limits: &WireLimits) -> Result<InferRequest> {
        check_count("inputs", self.inputs.len(), limits)?;
        check_count("outputs", self.outputs.len(), limits)?;
        let mut parameters = Parameters::default();
        for entry in &self.parameters {
            let (name, value) = parameter(entry)?;
            parameters.insert(name, value.owned(limits)?, limits)?;
        }
        let id = match self.id.is_empty() {
            true => None,
            false => Some(short_text(&self.id, "the id", limits)?),
        };
        let outputs = self.outputs.iter().map(|output| requested(output, limits));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let tensors = tensors("input", &self.inputs, self.raw_contents, limits)?;
        InferRequest::new(id, tensors, Some(outputs), parameters)
    }
}

fn check_count(what: &str, count: usize, limits: &WireLimits) -> Result<()> {
    if count <= limits.max_tensors {
        return Ok(());
    }
    Err(Error::invalid(format!("\"{what}\" may have at most {} members", limits.max_tensors)))
}

/// Tensors as they are described, with their raw contents. `what` is what
/// messages call one of them.
pub(crate) fn tensors(
    what: &str,
    inputs: &[Bytes],
    raw: Vec<Bytes>,
    limits: &WireLimits,
) -> Result<Tensors> {
    let are_raw = !raw.is_empty();
    let raw_count = raw.len();
    let mut raw = raw.into_iter();
    let mut tensors = Tensors { here: Vec::with_capacity(inputs.len()), shared: Vec::new() };
    for (index, message) in inputs.iter().enumerate() {
        let input = Input::read(message, limits)
            .map_err(|error| error.context(format_args!("{what} {index}")))?;
        let Input { name, dtype, shape, contents, shared } = input;
        let here = match (shared, contents) {
            (Some(_), Some(_)) => Err(Error::invalid("has shared_memory_region and contents")),
            (Some(slice), None) => {
                tensors.shared.push(SharedInput { name, dtype, shape, slice });
                continue;
            }
            (None, Some(_)) if are_raw => Err(Error::invalid(format!(
                "has contents, but the message has raw_{what}_contents; send one of them"
            ))),
            (None, Some(contents)) => typed(dtype, &shape, message, contents),
            (None, None) if are_raw => match raw.next() {
                Some(bytes) => decode_binary(dtype, &shape, bytes),
                None => Err(Error::invalid(format!(
                    "has no data: there are only {raw_count} raw_{what}_contents"
                ))),
            },
            // An empty tensor may do without either.
            (None, None) => typed(dtype, &shape, message, &[]),
        };
        let tensor = here.map_err(|error| error.context(format_args!("{what} \"{name}\"")))?;
        tensors.here.push(NamedTensor { name, tensor });
    }
    match raw.len() {
        0 => Ok(tensors),
        rest => Err(Error::invalid(format!(
            "there are {rest} raw_{what}_contents more than {what}s that take them"
        ))),
    }
}

/// One input, its data still encoded.
struct Input<'a> {
    name: String,
    dtype: DType,
    shape: Shape,
    contents: Option<&'a [u8]>,
    shared: Option<mortise_wire::RegionSlice>,
}

impl<'a> Input<'a> {
    fn read(message: &'a [u8], limits: &WireLimits) -> Result<Self> {
        let (mut name, mut dtype, mut contents) = (None, None, None);
        let mut shape = Shape::new();
        let mut slice = SliceDraft::default();
        let mut fields = Fields::of(message);
        while let Some((tag, value)) = fields.next()? {
            match tag {
                1 => name = Some(value.text("\"name\"")?),
                2 => dtype = Some(datatype(value.text("\"datatype\"")?)?),
                3 => value.each_varint("\"shape\"", |dim| push_dim(&mut shape, dim, limits))?,
                4 => slice_parameter(&mut slice, value.bytes("a parameter")?, limits)?,
                5 => contents = Some(value.bytes("\"contents\"")?),
                _ => {}
            }
        }
        check_elements(&shape, limits)?;
        let name = name.ok_or_else(|| Error::invalid("has no \"name\""))?;
        Ok(Self {
            name: short_text(name, "\"name\"", limits)?,
            dtype: dtype.ok_or_else(|| Error::invalid("has no \"datatype\""))?,
            shape,
            contents,
            shared: slice.finish()?,
        })
    }
}

fn datatype(name: &str) -> Result<DType> {
    DType::from_wire_name(name).ok_or_else(|| {
        let name: String = name.chars().take(32).collect();
        Error::invalid(format!(
            "\"{name}\" is not a datatype; the datatypes are BOOL, UINT8, UINT16, UINT32, UINT64, \
             INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64 and BYTES"
        ))
    })
}

fn push_dim(shape: &mut Shape, dim: u64, limits: &WireLimits) -> Result<()> {
    if shape.len() == limits.max_rank {
        return Err(Error::invalid(format!(
            "\"shape\" may have at most {} dimensions",
            limits.max_rank
        )));
    }
    // The field is signed: a negative dimension is a huge one here.
    let dim = i64::try_from(dim).ok().and_then(|dim| usize::try_from(dim).ok());
    let dim = dim.ok_or_else(|| Error::invalid("a dimension of \"shape\" is negative"))?;
    shape.push(dim);
    Ok(())
}

fn check_elements(shape: &Shape, limits: &WireLimits) -> Result<()> {
    let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    if count.is_some_and(|count| count <= limits.max_elements) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "shape {:?} has more than the {} elements that a tensor may have",
        shape.as_slice(),
        limits.max_elements
    )))
}

/// A tensor from `contents`, a part of `message`.
fn typed(dtype: DType, shape: &Shape, message: &Bytes, contents: &[u8]) -> Result<Tensor> {
    let count = shape.iter().product();
    match dtype {
        DType::Bool => Tensor::from_bools(
            shape,
            numbers(dtype, contents, "bool_contents", count, |value| Some(u8::from(value != 0)))?,
        ),
        DType::I8 => signed::<i8>(dtype, shape, contents),
        DType::I16 => signed::<i16>(dtype, shape, contents),
        DType::I32 => signed::<i32>(dtype, shape, contents),
        DType::U8 => unsigned::<u8>(dtype, shape, contents),
        DType::U16 => unsigned::<u16>(dtype, shape, contents),
        DType::U32 => unsigned::<u32>(dtype, shape, contents),
        DType::I64 => Tensor::from_vec(
            shape,
            numbers(dtype, contents, "int64_contents", count, |value| Some(value.cast_signed()))?,
        ),
        DType::U64 => {
            Tensor::from_vec(shape, numbers(dtype, contents, "uint64_contents", count, Some)?)
        }
        DType::F32 => floats(dtype, shape, message, contents, "fp32_contents"),
        DType::F64 => floats(dtype, shape, message, contents, "fp64_contents"),
        DType::String => strings(shape, contents, count),
        other => Err(Error::invalid(format!(
            "{other} has no typed contents; send it in raw_input_contents"
        ))),
    }
}

fn signed<T: mortise_types::Element + TryFrom<i64>>(
    dtype: DType,
    shape: &Shape,
    contents: &[u8],
) -> Result<Tensor> {
    let read = |value: u64| T::try_from(value.cast_signed()).ok();
    let count = shape.iter().product();
    Tensor::from_vec(shape, numbers(dtype, contents, "int_contents", count, read)?)
}

fn unsigned<T: mortise_types::Element + TryFrom<u64>>(
    dtype: DType,
    shape: &Shape,
    contents: &[u8],
) -> Result<Tensor> {
    let count = shape.iter().product();
    let read = |value: u64| T::try_from(value).ok();
    Tensor::from_vec(shape, numbers(dtype, contents, "uint_contents", count, read)?)
}

/// Fields of `InferTensorContents`, in the order of their numbers, from 1.
const CONTENTS: [&str; 8] = [
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
];

/// Calls `take` with each piece of the field called `wanted`.
fn pieces<'a>(
    dtype: DType,
    contents: &'a [u8],
    wanted: &str,
    mut take: impl FnMut(Value<'a>) -> Result<()>,
) -> Result<()> {
    let mut fields = Fields::of(contents);
    while let Some((tag, value)) = fields.next()? {
        let name = (tag as usize).checked_sub(1).and_then(|index| CONTENTS.get(index));
        match name {
            Some(&name) if name == wanted => take(value)?,
            // What is empty is as good as absent.
            Some(_) if value == Value::Bytes(&[]) => {}
            Some(name) => {
                return Err(Error::invalid(format!("has {name}, but {dtype} takes {wanted}")));
            }
            None => {}
        }
    }
    Ok(())
}

fn numbers<T>(
    dtype: DType,
    contents: &[u8],
    field: &str,
    count: usize,
    read: impl Fn(u64) -> Option<T>,
) -> Result<Vec<T>> {
    // An element takes a byte at least: a lying shape reserves no more.
    let mut values = Vec::with_capacity(count.min(contents.len()));
    pieces(dtype, contents, field, |piece| {
        piece.each_varint(field, |value| {
            if values.len() == count {
                return Err(Error::invalid(format!("{field} has more than {count} elements")));
            }
            values.push(read(value).ok_or_else(|| {
                Error::invalid(format!("element {} is out of range for {dtype}", values.len()))
            })?);
            Ok(())
        })
    })?;
    Ok(values)
}

/// Packed floats are what the tensor's memory is: one piece is not copied.
fn floats(
    dtype: DType,
    shape: &Shape,
    message: &Bytes,
    contents: &[u8],
    field: &str,
) -> Result<Tensor> {
    let mut whole = Bytes::new();
    let mut more = Vec::new();
    pieces(dtype, contents, field, |piece| {
        match piece {
            Value::Bytes(packed) if whole.is_empty() && more.is_empty() => {
                whole = message.slice_ref(packed);
            }
            Value::Bytes(packed) => more.extend_from_slice(packed),
            Value::Fixed32(bits) if dtype == DType::F32 => more.extend(bits.to_le_bytes()),
            Value::Fixed64(bits) if dtype == DType::F64 => more.extend(bits.to_le_bytes()),
            _ => return Err(mistyped(field)),
        }
        Ok(())
    })?;
    match more.is_empty() {
        true => decode_binary(dtype, shape, whole),
        false => decode_binary(dtype, shape, [whole.as_ref(), &more].concat().into()),
    }
}

fn strings(shape: &Shape, contents: &[u8], count: usize) -> Result<Tensor> {
    let mut strings = StringsBuilder::default();
    let mut taken = 0;
    pieces(DType::String, contents, "bytes_contents", |piece| {
        if taken == count {
            return Err(Error::invalid(format!("bytes_contents has more than {count} elements")));
        }
        taken += 1;
        strings.push(piece.bytes("bytes_contents")?);
        Ok(())
    })?;
    Tensor::from_strings(shape, strings.finish())
}

fn requested(message: &[u8], limits: &WireLimits) -> Result<RequestedOutput> {
    let mut output = RequestedOutput::default();
    let mut slice = SliceDraft::default();
    let mut fields = Fields::of(message);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => output.name = short_text(value.text("an output's name")?, "a name", limits)?,
            2 => {
                let entry = value.bytes("a parameter")?;
                match parameter(entry)? {
                    ("classification", count) => {
                        let count = count.whole("classification")?;
                        // 0 is how clients say that they want the tensor itself.
                        output.classification = usize::try_from(count).ok().filter(|&n| n > 0);
                    }
                    _ => slice_parameter(&mut slice, entry, limits)?,
                }
            }
            _ => {}
        }
    }
    let named = |error: Error| error.context(format_args!("output \"{}\"", output.name));
    let shared = slice.finish().map_err(named)?;
    Ok(RequestedOutput { shared, ..output })
}

/// Takes a parameter that says where in shared memory a tensor is; others are
/// hints of other servers.
fn slice_parameter(slice: &mut SliceDraft, entry: &[u8], limits: &WireLimits) -> Result<()> {
    match parameter(entry)? {
        (name @ "shared_memory_region", value) => {
            slice.region = Some(short_text(value.text(name)?, name, limits)?);
        }
        (name @ "shared_memory_offset", value) => slice.offset = Some(value.whole(name)?),
        (name @ "shared_memory_byte_size", value) => slice.byte_size = Some(value.whole(name)?),
        _ => {}
    }
    Ok(())
}

/// An `InferParameter`.
#[derive(Clone, Copy)]
enum Choice<'a> {
    None,
    Bool(bool),
    Integer(i128),
    Text(&'a str),
    Float(f64),
}

/// An entry of a map of parameters.
fn parameter(entry: &[u8]) -> Result<(&str, Choice<'_>)> {
    let (mut name, mut choice) = ("", Choice::None);
    let mut fields = Fields::of(entry);
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => name = value.text("a parameter's name")?,
            2 => choice = Choice::read(value.bytes("a parameter's value")?)?,
            _ => {}
        }
    }
    Ok((name, choice))
}

impl<'a> Choice<'a> {
    fn read(message: &'a [u8]) -> Result<Self> {
        let mut choice = Self::None;
        let mut fields = Fields::of(message);
        while let Some((tag, value)) = fields.next()? {
            choice = match (tag, value) {
                (1, value) => Self::Bool(value.varint("bool_param")? != 0),
                (2, value) => Self::Integer(value.varint("int64_param")?.cast_signed().into()),
                (3, value) => Self::Text(value.text("string_param")?),
                (4, Value::Fixed64(bits)) => Self::Float(f64::from_bits(bits)),
                (4, _) => return Err(mistyped("double_param")),
                (5, value) => Self::Integer(value.varint("uint64_param")?.into()),
                _ => choice,
            };
        }
        Ok(choice)
    }

    fn owned(self, limits: &WireLimits) -> Result<Parameter> {
        Ok(match self {
            Self::None => return Err(Error::invalid("a parameter has no value")),
            Self::Bool(value) => Parameter::Bool(value),
            Self::Integer(value) => Parameter::Integer(value),
            Self::Float(value) => Parameter::Float(value),
            Self::Text(text) => Parameter::String(short_text(text, "a parameter's text", limits)?),
        })
    }

    fn whole(self, name: &str) -> Result<u64> {
        let value = match self {
            Self::Integer(value) => u64::try_from(value).ok(),
            _ => None,
        };
        value.ok_or_else(|| {
            Error::invalid(format!("{name} must be a whole number that is not negative"))
        })
    }

    fn text(self, name: &str) -> Result<&'a str> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(Error::invalid(format!("{name} must be text"))),
        }
    }
}
