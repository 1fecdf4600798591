use crate::{InferReply, InferRequest, NoSharedMemory, WireLimits, decode_infer, encode_infer};
use bytes::Bytes;
use mortise_types::{DType, Signature, TensorSpec};

/// Decodes arbitrary bytes as a request, and encodes what comes out as a reply.
/// The first byte chooses how the body is framed and the next two give the
/// header's length. For fuzzers and their corpus tests.
pub fn fuzz_decode(data: &[u8]) {
    let Some((framing, rest)) = data.split_first_chunk::<3>() else { return };
    let [mode, low, high] = *framing;
    let header_length = match mode % 3 {
        0 => None,
        1 => Some(usize::from(u16::from_le_bytes([low, high]))),
        _ => Some(0),
    };
    let dtype = [DType::F32, DType::Bool, DType::String][usize::from(low) % 3];
    let signature = Signature {
        inputs: vec![TensorSpec::new("x", dtype, &[-1, i64::from(high)])],
        outputs: Vec::new(),
    };
    let limits = WireLimits { max_elements: 1 << 20, ..WireLimits::default() };
    let body = Bytes::copy_from_slice(rest);
    if let Ok(request) = decode_infer(&body, header_length, Some(&signature), &limits) {
        encode_back(request);
    }
}

fn encode_back(mut request: InferRequest) {
    let inputs = std::mem::take(&mut request.inputs);
    let outputs: Vec<_> = inputs.into_iter().map(|input| (input.name, input.tensor)).collect();
    let reply = InferReply {
        model_name: "fuzz",
        model_version: 1,
        variant: Some("stable"),
        outputs: &outputs,
    };
    for binary in [false, true] {
        request.binary_output_default = binary;
        // Refusals are fine here; only a panic is a finding.
        let _ = encode_infer(&reply, &request, &NoSharedMemory);
    }
}
