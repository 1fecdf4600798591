//! The client's side of the protocol: requests to another server and its
//! answers.

use crate::limits::WireLimits;
use crate::reader::Reader;
use crate::reply::{Encoded, assemble, write_output};
use crate::request::{InferRequest, Input, NamedTensor, attach, list};
use crate::shared::NoSharedMemory;
use bytes::Bytes;
use mortise_types::{DType, Error, Result, Signature, Tensor, TensorSpec};
use serde::Deserialize;

/// Encodes an infer request; with `binary`, tensors go and come as binary data.
///
/// # Errors
/// `InvalidInput` when JSON cannot hold an input (FP16, BF16, strings that are
/// not UTF-8).
pub fn encode_request(inputs: &[(&str, Tensor)], binary: bool) -> Result<Encoded> {
    let style = InferRequest { binary_output_default: binary, ..InferRequest::default() };
    let mut json = b"{\"inputs\":[".to_vec();
    let mut binaries = Vec::new();
    for (index, (name, tensor)) in inputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_output(&mut json, &mut binaries, (name, tensor), &style, &NoSharedMemory)
            .map_err(|error| error.context(format_args!("input \"{name}\"")))?;
    }
    json.push(b']');
    if binary {
        json.extend_from_slice(b",\"parameters\":{\"binary_data_output\":true}");
    }
    json.push(b'}');
    Ok(assemble(json, binaries))
}

/// Decodes the answer to an infer request. `header_length` is the value of the
/// header `Inference-Header-Content-Length`.
///
/// # Errors
/// `InvalidInput` saying what is malformed.
pub fn decode_answer(
    body: &Bytes,
    header_length: Option<usize>,
    limits: &WireLimits,
) -> Result<Vec<NamedTensor>> {
    let length = header_length.unwrap_or(body.len());
    if length > body.len() {
        return Err(Error::invalid("its JSON is longer than the body"));
    }
    let mut reader = Reader::new(&body[..length], limits.max_depth);
    let mut outputs = None;
    reader.object(|reader, key| match key {
        "outputs" => {
            outputs = Some(list(reader, "\"outputs\"", limits, Input::read)?);
            Ok(())
        }
        _ => reader.skip_value(),
    })?;
    reader.finish()?;
    let outputs = outputs.ok_or_else(|| Error::invalid("it has no \"outputs\""))?;
    Ok(attach(outputs, header_length.map(|length| body.slice(length..)))?.here)
}

/// Reads what `GET /v2/models/{m}` answers.
///
/// # Errors
/// `InvalidInput` when it is not as the protocol says, `Unsupported` naming
/// a datatype that is not known.
pub fn decode_metadata(body: &[u8]) -> Result<Signature> {
    #[derive(Deserialize)]
    struct Body {
        inputs: Vec<Spec>,
        outputs: Vec<Spec>,
    }
    #[derive(Deserialize)]
    struct Spec {
        name: String,
        datatype: String,
        shape: Vec<i64>,
    }
    let specs = |specs: Vec<Spec>| -> Result<Vec<TensorSpec>> {
        let spec = |spec: Spec| {
            let dtype = DType::from_wire_name(&spec.datatype).ok_or_else(|| {
                Error::unsupported(format!("\"{}\" has datatype {}", spec.name, spec.datatype))
            })?;
            Ok(TensorSpec::new(spec.name, dtype, &spec.shape))
        };
        specs.into_iter().map(spec).collect()
    };
    let body: Body = serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("the metadata is not as expected: {error}")))?;
    Ok(Signature { inputs: specs(body.inputs)?, outputs: specs(body.outputs)? })
}

/// The extensions that `GET /v2` lists; none when it lists nothing.
pub fn decode_extensions(body: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        extensions: Vec<String>,
    }
    serde_json::from_slice(body).map_or_else(|_| Vec::new(), |body: Body| body.extensions)
}

/// The message of `{"error":…}`.
pub fn decode_error(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        error: String,
    }
    serde_json::from_slice(body).ok().map(|body: Body| body.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode_infer;

    #[test]
    fn requests_are_what_the_server_decodes() {
        let numbers = Tensor::from_vec(&[2, 2], vec![1.0f32, -2.5, 3.0, 0.0]).unwrap();
        let words = Tensor::from_strings(&[2], ["a", "é"].into_iter().collect()).unwrap();
        let inputs = [("x", numbers), ("words", words)];
        for binary in [true, false] {
            let encoded = encode_request(&inputs, binary).unwrap();
            let body = Bytes::from(encoded.segments.concat());
            let limits = WireLimits::default();
            let request = decode_infer(&body, encoded.header_length, None, &limits).unwrap();
            assert_eq!(request.binary_output_default, binary);
            for ((name, tensor), got) in inputs.iter().zip(&request.inputs) {
                let facts = |tensor: &Tensor| {
                    let shape = tensor.shape().to_vec();
                    (tensor.dtype(), shape, crate::encode_binary(tensor).unwrap())
                };
                assert_eq!((*name, facts(tensor)), (got.name.as_str(), facts(&got.tensor)));
            }
        }
    }

    #[test]
    fn answers_and_metadata_are_read_or_refused() {
        let json = br#"{"model_name":"m","outputs":[
            {"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}},
            {"name":"n","datatype":"INT64","shape":[1],"data":[7]}]}"#;
        let mut body = json.to_vec();
        body.extend([1.5f32, 2.0].iter().flat_map(|value| value.to_le_bytes()));
        let limits = WireLimits::default();
        let outputs = decode_answer(&body.clone().into(), Some(json.len()), &limits).unwrap();
        assert_eq!(outputs[0].tensor.as_slice::<f32>().unwrap(), [1.5, 2.0]);
        assert_eq!(outputs[1].tensor.as_slice::<i64>().unwrap(), [7]);
        body.truncate(json.len() + 4);
        assert!(decode_answer(&body.into(), Some(json.len()), &limits).is_err());
        assert!(decode_answer(&Bytes::from_static(b"{}"), None, &limits).is_err());

        let metadata = br#"{"name":"m","versions":["1"],"platform":"p",
            "inputs":[{"name":"x","datatype":"FP32","shape":[-1,64]}],
            "outputs":[{"name":"y","datatype":"BYTES","shape":[-1]}]}"#;
        let signature = decode_metadata(metadata).unwrap();
        assert_eq!(signature.inputs, [TensorSpec::new("x", DType::F32, &[-1, 64])]);
        assert_eq!(signature.outputs, [TensorSpec::new("y", DType::String, &[-1])]);
        assert!(decode_metadata(b"[]").is_err());
        assert_eq!(decode_extensions(br#"{"extensions":["a"]}"#), ["a"]);
        assert_eq!(decode_error(br#"{"error":"no"}"#).as_deref(), Some("no"));
    }
}
