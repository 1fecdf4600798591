//! The client's side of the protocol: requests to another server and its
//! answers.

use crate::decode::tensors;
use crate::encode::{put_tensor, wire_name};
use crate::fields::Fields;
use crate::inference as pb;
use crate::messages::{ModelInferRequest, ModelInferResponse, OUTPUTS};
use mortise_types::{DType, Error, Result, Signature, Tensor, TensorSpec};
use mortise_wire::{NamedTensor, WireLimits, encode_binary};

impl ModelInferRequest {
    /// A request whose inputs go as raw contents. An empty version is the live
    /// one.
    ///
    /// # Errors
    /// `Unsupported` when the datatype of an input has no name in the protocol.
    pub fn asking(model: &str, version: &str, inputs: &[(&str, Tensor)]) -> Result<Self> {
        let mut request = Self {
            model_name: model.to_owned(),
            model_version: version.to_owned(),
            ..Self::default()
        };
        for (name, tensor) in inputs {
            let named = |error: Error| error.context(format_args!("input \"{name}\""));
            let datatype = wire_name(tensor.dtype()).map_err(named)?;
            let mut input = Vec::new();
            put_tensor(name, datatype, tensor.shape(), &mut input);
            request.inputs.push(input.into());
            request.raw_contents.push(encode_binary(tensor).map_err(named)?);
        }
        Ok(request)
    }
}

impl ModelInferResponse {
    /// The outputs. Raw contents are borrowed where their alignment allows it.
    ///
    /// # Errors
    /// `InvalidInput` saying what is malformed.
    pub fn outputs(&self, limits: &WireLimits) -> Result<Vec<NamedTensor>> {
        let mut outputs = Vec::new();
        let mut fields = Fields::of(&self.head);
        while let Some((tag, value)) = fields.next()? {
            if tag != OUTPUTS {
                continue;
            }
            if outputs.len() == limits.max_tensors {
                let max = limits.max_tensors;
                return Err(Error::invalid(format!("there are more than {max} outputs")));
            }
            outputs.push(self.head.slice_ref(value.bytes("an output")?));
        }
        // Outputs are described as inputs are.
        let tensors = tensors("output", &outputs, self.raw_contents.clone(), limits)?;
        match tensors.shared.is_empty() {
            true => Ok(tensors.here),
            false => Err(Error::invalid("an output is in shared memory, which was not asked for")),
        }
    }
}

/// Reads what a server says about a model.
///
/// # Errors
/// `Unsupported` naming a datatype that is not known.
pub fn decode_metadata(told: pb::ModelMetadataResponse) -> Result<Signature> {
    let spec = |tensor: pb::model_metadata_response::TensorMetadata| {
        let dtype = DType::from_wire_name(&tensor.datatype).ok_or_else(|| {
            Error::unsupported(format!("\"{}\" has datatype {}", tensor.name, tensor.datatype))
        })?;
        Ok(TensorSpec::new(tensor.name, dtype, &tensor.shape))
    };
    let specs = |tensors: Vec<_>| tensors.into_iter().map(spec).collect::<Result<Vec<_>>>();
    Ok(Signature { inputs: specs(told.inputs)?, outputs: specs(told.outputs)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode_infer;
    use bytes::Bytes;
    use mortise_wire::{InferReply, NoSharedMemory};
    use prost::Message;

    #[test]
    fn requests_and_answers_are_those_of_the_server() {
        let numbers = Tensor::from_vec(&[2, 2], vec![1.0f32, -2.5, 3.0, 0.0]).unwrap();
        let words = Tensor::from_strings(&[2], ["a", "é"].into_iter().collect()).unwrap();
        let sent = [("x", numbers.clone()), ("words", words.clone())];
        let asked = ModelInferRequest::asking("m", "3", &sent).unwrap().encode_to_vec();
        let asked = ModelInferRequest::decode(Bytes::from(asked)).unwrap();
        assert_eq!((asked.model_name.as_str(), asked.model_version.as_str()), ("m", "3"));
        let limits = WireLimits::default();
        let request = asked.decode_infer(&limits).unwrap();
        let facts = |name: &str, tensor: &Tensor| {
            let bytes = encode_binary(tensor).unwrap();
            (name.to_owned(), tensor.dtype(), tensor.shape().to_vec(), bytes)
        };
        let want = sent.each_ref().map(|(name, tensor)| facts(name, tensor));
        let got: Vec<_> =
            request.inputs.iter().map(|input| facts(&input.name, &input.tensor)).collect();
        assert_eq!(got, want);

        let outputs = [("x".to_owned(), numbers), ("words".to_owned(), words)];
        let reply = InferReply {
            model_name: "m",
            model_version: 3,
            variant: Some("stable"),
            outputs: &outputs,
        };
        let sent = encode_infer(&reply, &request, &[], &NoSharedMemory).unwrap().encode_to_vec();
        let told = ModelInferResponse::decode(Bytes::from(sent)).unwrap();
        let outputs = told.outputs(&limits).unwrap();
        let got: Vec<_> =
            outputs.iter().map(|output| facts(&output.name, &output.tensor)).collect();
        assert_eq!(got, want);
        let none = WireLimits { max_tensors: 1, ..limits };
        assert!(told.outputs(&none).unwrap_err().message().contains("more than 1 outputs"));
    }
}
