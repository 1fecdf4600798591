use crate::binary;
use crate::classify;
use crate::request::{InferRequest, RequestedOutput};
use crate::shared::SharedMemory;
use bytes::Bytes;
use mortise_types::{DType, Element, Error, Result, Tensor};
use std::borrow::Cow;

/// The answer to an infer request.
#[derive(Clone, Copy, Debug)]
pub struct InferReply<'a> {
    pub model_name: &'a str,
    /// The version that answered.
    pub model_version: u64,
    /// What that version is called among those that share the traffic; goes
    /// out, with the version, as parameters.
    pub variant: Option<&'a str>,
    /// In the order in which they go out.
    pub outputs: &'a [(String, Tensor)],
}

/// An encoded reply.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The body, in order. Large binary outputs are shared, not copied.
    pub segments: Vec<Bytes>,
    /// Bytes of JSON before the binary data, when there is binary data: the
    /// value of `Inference-Header-Content-Length`.
    pub header_length: Option<usize>,
}

impl Encoded {
    pub fn byte_len(&self) -> usize {
        self.segments.iter().map(Bytes::len).sum()
    }
}

/// Binary outputs up to this size are copied behind the JSON: one write of one
/// buffer costs less than a vector of small ones.
const COPY_BELOW_BYTES: usize = 16 * 1024;

/// Encodes a reply as the request asks: outputs as JSON or binary data,
/// classifications in place of tensors. Non-finite numbers go out as the
/// tokens `NaN`, `Infinity` and `-Infinity`, which are not JSON's but which
/// Python's `json`, and so tritonclient, reads; binary data has no such limit.
///
/// # Errors
/// [`mortise_types::ErrorKind::InvalidInput`] when JSON is asked for and cannot
/// hold the output (FP16, BF16, strings that are not UTF-8), when a
/// classification does not apply to it, or when it does not fit the shared
/// memory that it is to go to.
pub fn encode_infer(
    reply: &InferReply<'_>,
    request: &InferRequest,
    memory: &dyn SharedMemory,
) -> Result<Encoded> {
    let mut json = Vec::with_capacity(json_capacity(reply));
    let mut binaries = Vec::new();
    json.push(b'{');
    if let Some(id) = &request.id {
        json.extend_from_slice(b"\"id\":");
        write_string(&mut json, id);
        json.push(b',');
    }
    json.extend_from_slice(b"\"model_name\":");
    write_string(&mut json, reply.model_name);
    json.extend_from_slice(b",\"model_version\":\"");
    json.extend_from_slice(itoa::Buffer::new().format(reply.model_version).as_bytes());
    json.push(b'"');
    if let Some(variant) = reply.variant {
        write_origin(&mut json, reply.model_version, variant);
    }
    json.extend_from_slice(b",\"outputs\":[");
    for (index, (name, tensor)) in reply.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_output(&mut json, &mut binaries, (name, tensor), request, memory)
            .map_err(|error| error.context(format_args!("output \"{name}\"")))?;
    }
    json.extend_from_slice(b"]}");
    Ok(assemble(json, binaries))
}

fn write_origin(json: &mut Vec<u8>, version: u64, variant: &str) {
    json.extend_from_slice(b",\"parameters\":{\"version\":");
    json.extend_from_slice(itoa::Buffer::new().format(version).as_bytes());
    json.extend_from_slice(b",\"variant\":");
    write_string(json, variant);
    json.push(b'}');
}

/// Encodes a reply for the generate extension: outputs as members of one JSON
/// object, those of one element without brackets.
///
/// # Errors
/// As [`encode_infer`] for JSON.
pub fn encode_generated(reply: &InferReply<'_>, id: Option<&str>) -> Result<Bytes> {
    let mut json = Vec::with_capacity(json_capacity(reply));
    json.push(b'{');
    if let Some(id) = id {
        json.extend_from_slice(b"\"id\":");
        write_string(&mut json, id);
        json.push(b',');
    }
    json.extend_from_slice(b"\"model_name\":");
    write_string(&mut json, reply.model_name);
    json.extend_from_slice(b",\"model_version\":\"");
    json.extend_from_slice(itoa::Buffer::new().format(reply.model_version).as_bytes());
    json.push(b'"');
    for (name, tensor) in reply.outputs {
        json.push(b',');
        write_string(&mut json, name);
        json.push(b':');
        let start = json.len();
        write_data(&mut json, tensor)
            .map_err(|error| error.context(format_args!("output \"{name}\"")))?;
        if tensor.len() == 1 {
            json.remove(start);
            json.pop();
        }
    }
    json.push(b'}');
    Ok(json.into())
}

pub(crate) fn assemble(mut json: Vec<u8>, binaries: Vec<Bytes>) -> Encoded {
    let header_length = (!binaries.is_empty()).then_some(json.len());
    if binaries.iter().map(Bytes::len).sum::<usize>() <= COPY_BELOW_BYTES {
        binaries.iter().for_each(|binary| json.extend_from_slice(binary));
        return Encoded { segments: vec![json.into()], header_length };
    }
    let mut segments = Vec::with_capacity(1 + binaries.len());
    segments.push(json.into());
    segments.extend(binaries.into_iter().filter(|binary| !binary.is_empty()));
    Encoded { segments, header_length }
}

/// A guess that spares most replies a second allocation.
fn json_capacity(reply: &InferReply<'_>) -> usize {
    let tensors: usize = reply
        .outputs
        .iter()
        .map(|(name, tensor)| name.len() + 160 + tensor.len().min(1 << 16) * 12)
        .sum();
    COPY_BELOW_BYTES.min(256 + tensors)
}

pub(crate) fn write_output(
    json: &mut Vec<u8>,
    binaries: &mut Vec<Bytes>,
    (name, tensor): (&str, &Tensor),
    request: &InferRequest,
    memory: &dyn SharedMemory,
) -> Result<()> {
    let wish = request.outputs.iter().flatten().find(|output| output.name == name);
    let tensor = match wish.and_then(|wish: &RequestedOutput| wish.classification) {
        Some(count) => Cow::Owned(classify::top(tensor, count)?),
        None => Cow::Borrowed(tensor),
    };
    let datatype = tensor.dtype().wire_name().ok_or_else(|| {
        Error::unsupported(format!("{} has no name in the protocol", tensor.dtype()))
    })?;
    json.extend_from_slice(b"{\"name\":");
    write_string(json, name);
    json.extend_from_slice(b",\"datatype\":\"");
    json.extend_from_slice(datatype.as_bytes());
    json.extend_from_slice(b"\",\"shape\":");
    write_integers(json, tensor.shape().iter().map(|&dim| dim as u64));
    if let Some(slice) = wish.and_then(|wish| wish.shared.as_ref()) {
        // The client said where it goes, and is not told again: Triton's C++
        // client takes parameters of an output for those of binary data.
        memory.write(slice, &binary::encode(&tensor)?)?;
    } else if wish.and_then(|wish| wish.binary).unwrap_or(request.binary_output_default) {
        let binary = binary::encode(&tensor)?;
        json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        json.extend_from_slice(itoa::Buffer::new().format(binary.len()).as_bytes());
        json.push(b'}');
        binaries.push(binary);
    } else {
        json.extend_from_slice(b",\"data\":");
        write_data(json, &tensor)?;
    }
    json.push(b'}');
    Ok(())
}

/// The elements as one flat JSON array.
fn write_data(json: &mut Vec<u8>, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::Bool => {
            let word = |&byte: &u8| if byte == 0 { "false" } else { "true" };
            write_words(json, tensor.bool_bytes()?.iter().map(word));
        }
        DType::U8 => integers::<u8>(json, tensor)?,
        DType::U16 => integers::<u16>(json, tensor)?,
        DType::U32 => integers::<u32>(json, tensor)?,
        DType::U64 => integers::<u64>(json, tensor)?,
        DType::I8 => integers::<i8>(json, tensor)?,
        DType::I16 => integers::<i16>(json, tensor)?,
        DType::I32 => integers::<i32>(json, tensor)?,
        DType::I64 => integers::<i64>(json, tensor)?,
        DType::F32 => floats(json, tensor.as_slice::<f32>()?),
        DType::F64 => floats(json, tensor.as_slice::<f64>()?),
        DType::String => return write_strings(json, tensor),
        other => {
            return Err(Error::invalid(format!(
                "{other} cannot be sent as JSON; ask for binary data (binary_data or \
                 binary_data_output)"
            )));
        }
    }
    Ok(())
}

fn integers<T: Element + itoa::Integer>(json: &mut Vec<u8>, tensor: &Tensor) -> Result<()> {
    write_integers(json, tensor.as_slice::<T>()?.iter().copied());
    Ok(())
}

fn write_integers<T: itoa::Integer>(json: &mut Vec<u8>, values: impl Iterator<Item = T>) {
    let mut buffer = itoa::Buffer::new();
    separated(json, values, |json, value| {
        json.extend_from_slice(buffer.format(value).as_bytes());
    });
}

fn floats<T: zmij::Float + Copy + Into<f64>>(json: &mut Vec<u8>, values: &[T]) {
    let mut buffer = zmij::Buffer::new();
    separated(json, values.iter().copied(), |json, value| {
        let wide: f64 = value.into();
        let text = if wide.is_finite() {
            buffer.format_finite(value)
        } else if wide.is_nan() {
            "NaN"
        } else if wide > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        json.extend_from_slice(text.as_bytes());
    });
}

fn write_words(json: &mut Vec<u8>, words: impl Iterator<Item = &'static str>) {
    separated(json, words, |json, word| json.extend_from_slice(word.as_bytes()));
}

fn write_strings(json: &mut Vec<u8>, tensor: &Tensor) -> Result<()> {
    json.push(b'[');
    for (index, item) in tensor.strings()?.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let text = std::str::from_utf8(item).map_err(|_| {
            Error::invalid(format!(
                "element {index} is not UTF-8 and cannot be sent as JSON; ask for binary data \
                 (binary_data or binary_data_output)"
            ))
        })?;
        write_string(json, text);
    }
    json.push(b']');
    Ok(())
}

fn separated<T>(
    json: &mut Vec<u8>,
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    json.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write(json, item);
    }
    json.push(b']');
}

/// Writes a JSON string, quotes included.
fn write_string(json: &mut Vec<u8>, text: &str) {
    json.push(b'"');
    let mut rest = text.as_bytes();
    let special = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < 0x20;
    while let Some(at) = rest.iter().position(special) {
        let (plain, tail) = rest.split_at(at);
        json.extend_from_slice(plain);
        if let Some((&byte, tail)) = tail.split_first() {
            write_escape(json, byte);
            rest = tail;
        }
    }
    json.extend_from_slice(rest);
    json.push(b'"');
}

fn write_escape(json: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' | b'\\' => json.extend_from_slice(&[b'\\', byte]),
        b'\n' => json.extend_from_slice(b"\\n"),
        b'\r' => json.extend_from_slice(b"\\r"),
        b'\t' => json.extend_from_slice(b"\\t"),
        _ => json.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
    }
}
