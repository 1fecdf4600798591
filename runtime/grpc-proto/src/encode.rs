use crate::inference as pb;
use crate::messages::{ModelInferResponse, field_len, put, put_unless_empty};
use bytes::BufMut;
use mortise_types::{DType, Error, Result, Tensor, TensorSpec};
use mortise_wire::{
    InferReply, InferRequest, ModelConfig, RegionSlice, RequestedOutput, SharedMemory, classify,
    encode_binary,
};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use std::borrow::Cow;

/// Encodes a reply as the request asks. Outputs go out as raw contents, which
/// are shared, not copied, or into shared memory.
///
/// # Errors
/// When a classification does not apply to an output, its datatype has no name
/// in the protocol, or it does not fit the shared memory that it is to go to.
pub fn encode_infer(
    reply: &InferReply<'_>,
    request: &InferRequest,
    parameters: &[(&str, bool)],
    memory: &dyn SharedMemory,
) -> Result<ModelInferResponse> {
    let mut head = Vec::with_capacity(128 + 64 * reply.outputs.len());
    let mut raw_contents = Vec::with_capacity(reply.outputs.len());
    put_unless_empty(1, reply.model_name.as_bytes(), &mut head);
    put(2, reply.model_version.to_string().as_bytes(), &mut head);
    put_unless_empty(3, request.id.as_deref().unwrap_or_default().as_bytes(), &mut head);
    if let Some(variant) = reply.variant {
        use pb::infer_parameter::ParameterChoice::{Int64Param, StringParam};
        put_parameter(4, "version", Int64Param(reply.model_version.cast_signed()), &mut head);
        put_parameter(4, "variant", StringParam(variant.to_owned()), &mut head);
    }
    for (name, value) in parameters {
        let choice = pb::infer_parameter::ParameterChoice::BoolParam(*value);
        put_parameter(4, name, choice, &mut head);
    }
    for (name, tensor) in reply.outputs {
        let raw = put_output(&mut head, name, tensor, request, memory)
            .map_err(|error| error.context(format_args!("output \"{name}\"")))?;
        raw_contents.push(raw);
    }
    Ok(ModelInferResponse { head: head.into(), raw_contents })
}

/// Writes what describes an output, and returns its data for the reply.
fn put_output(
    head: &mut Vec<u8>,
    name: &str,
    tensor: &Tensor,
    request: &InferRequest,
    memory: &dyn SharedMemory,
) -> Result<bytes::Bytes> {
    let wish: Option<&RequestedOutput> =
        request.outputs.iter().flatten().find(|output| output.name == name);
    let tensor = match wish.and_then(|wish| wish.classification) {
        Some(count) => Cow::Owned(classify(tensor, count)?),
        None => Cow::Borrowed(tensor),
    };
    let datatype = wire_name(tensor.dtype())?;
    let raw = encode_binary(&tensor)?;
    let slice = wish.and_then(|wish| wish.shared.as_ref());
    let mut place = Vec::new();
    if let Some(slice) = slice {
        memory.write(slice, &raw)?;
        put_slice(slice, raw.len(), &mut place);
    }
    let length = tensor_len(name, datatype, tensor.shape()) + place.len();
    head.put_u8(5 << 3 | 2);
    encode_varint(length as u64, head);
    put_tensor(name, datatype, tensor.shape(), head);
    head.extend_from_slice(&place);
    Ok(if slice.is_some() { bytes::Bytes::new() } else { raw })
}

/// Writes the fields that inputs and outputs begin with.
pub(crate) fn put_tensor(name: &str, datatype: &str, shape: &[usize], out: &mut Vec<u8>) {
    put(1, name.as_bytes(), out);
    put(2, datatype.as_bytes(), out);
    out.put_u8(3 << 3 | 2);
    encode_varint(shape_len(shape) as u64, out);
    shape.iter().for_each(|&dim| encode_varint(dim as u64, out));
}

/// Bytes that [`put_tensor`] writes.
fn tensor_len(name: &str, datatype: &str, shape: &[usize]) -> usize {
    field_len(1, name.len()) + field_len(2, datatype.len()) + field_len(3, shape_len(shape))
}

fn shape_len(shape: &[usize]) -> usize {
    shape.iter().map(|&dim| encoded_len_varint(dim as u64)).sum()
}

/// # Errors
/// `Unsupported` when the protocol has no name for it.
pub(crate) fn wire_name(dtype: DType) -> Result<&'static str> {
    dtype
        .wire_name()
        .ok_or_else(|| Error::unsupported(format!("{dtype} has no name in the protocol")))
}

/// Says where in shared memory an output is, and how long.
fn put_slice(slice: &RegionSlice, bytes: usize, out: &mut Vec<u8>) {
    use pb::infer_parameter::ParameterChoice::{Int64Param, StringParam};
    put_parameter(4, "shared_memory_region", StringParam(slice.region.clone()), out);
    put_parameter(4, "shared_memory_offset", Int64Param(slice.offset.cast_signed()), out);
    put_parameter(4, "shared_memory_byte_size", Int64Param((bytes as u64).cast_signed()), out);
}

/// Writes an entry of a map of parameters.
fn put_parameter(
    tag: u32,
    name: &str,
    choice: pb::infer_parameter::ParameterChoice,
    out: &mut Vec<u8>,
) {
    let mut entry = Vec::new();
    put(1, name.as_bytes(), &mut entry);
    let value = pb::InferParameter { parameter_choice: Some(choice) };
    put(2, &value.encode_to_vec(), &mut entry);
    put(tag, &entry, out);
}

/// The configuration of a model as its message.
pub fn encode_config(config: &ModelConfig<'_>) -> pb::ModelConfig {
    let versions = vec![config.version.cast_signed()];
    let specific = pb::model_version_policy::Specific { versions };
    let policy_choice = pb::model_version_policy::PolicyChoice::Specific(specific);
    let parameter = |(name, value): &(&str, String)| {
        ((*name).to_owned(), pb::ModelParameter { string_value: value.clone() })
    };
    pb::ModelConfig {
        name: config.name.to_owned(),
        platform: config.platform.to_owned(),
        backend: config.platform.to_owned(),
        version_policy: Some(pb::ModelVersionPolicy { policy_choice: Some(policy_choice) }),
        max_batch_size: 0,
        input: config.signature.inputs.iter().map(config_input).collect(),
        output: config.signature.outputs.iter().map(config_output).collect(),
        parameters: config.parameters.iter().map(parameter).collect(),
        ..pb::ModelConfig::default()
    }
}

fn config_input(spec: &TensorSpec) -> pb::ModelInput {
    pb::ModelInput {
        name: spec.name.clone(),
        data_type: config_type(spec.dtype).into(),
        dims: spec.shape.to_vec(),
    }
}

fn config_output(spec: &TensorSpec) -> pb::ModelOutput {
    pb::ModelOutput {
        name: spec.name.clone(),
        data_type: config_type(spec.dtype).into(),
        dims: spec.shape.to_vec(),
    }
}

fn config_type(dtype: DType) -> pb::DataType {
    match dtype {
        DType::Bool => pb::DataType::TypeBool,
        DType::U8 => pb::DataType::TypeUint8,
        DType::U16 => pb::DataType::TypeUint16,
        DType::U32 => pb::DataType::TypeUint32,
        DType::U64 => pb::DataType::TypeUint64,
        DType::I8 => pb::DataType::TypeInt8,
        DType::I16 => pb::DataType::TypeInt16,
        DType::I32 => pb::DataType::TypeInt32,
        DType::I64 => pb::DataType::TypeInt64,
        DType::F16 => pb::DataType::TypeFp16,
        DType::BF16 => pb::DataType::TypeBf16,
        DType::F32 => pb::DataType::TypeFp32,
        DType::F64 => pb::DataType::TypeFp64,
        DType::String => pb::DataType::TypeString,
        _ => pb::DataType::TypeInvalid,
    }
}
