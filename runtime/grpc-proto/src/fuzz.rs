use crate::{ModelInferRequest, encode_infer};
use bytes::Bytes;
use mortise_wire::{InferReply, NoSharedMemory, WireLimits};
use prost::Message;

/// Decodes arbitrary bytes as a message that asks for an inference, and encodes
/// what comes out as a reply. For fuzzers and their corpus tests.
pub fn fuzz_decode(data: &[u8]) {
    let limits = WireLimits { max_elements: 1 << 20, ..WireLimits::default() };
    let Ok(message) = ModelInferRequest::decode(Bytes::copy_from_slice(data)) else { return };
    let again = ModelInferRequest::decode(Bytes::from(message.encode_to_vec()));
    assert_eq!(again.as_ref(), Ok(&message), "a message is not what it was encoded from");
    let Ok(mut request) = message.decode_infer(&limits) else { return };
    // Refusals are fine here; only a panic is a finding.
    let _ = request.read_shared(&NoSharedMemory);
    let inputs = std::mem::take(&mut request.inputs);
    let outputs: Vec<_> = inputs.into_iter().map(|input| (input.name, input.tensor)).collect();
    let reply =
        InferReply { model_name: "fuzz", model_version: 1, variant: Some("a"), outputs: &outputs };
    let _ = encode_infer(&reply, &request, &[], &NoSharedMemory);
}
