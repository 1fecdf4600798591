//! The Open Inference Protocol V2 as bytes: infer requests and replies in JSON
//! and with the binary tensor extension, and the small JSON bodies around them.
//!
//! Sans-IO: nothing here reads a socket, knows an HTTP header beyond
//! `Inference-Header-Content-Length`'s value, or runs a model.

mod binary;
mod classify;
mod data;
mod describe;
mod fuzz;
mod limits;
mod number;
mod parameters;
mod reader;
mod reply;
mod request;
mod shared;
#[cfg(test)]
mod tests;
mod upstream;

pub use binary::{decode as decode_binary, encode as encode_binary};
pub use classify::top as classify;
pub use describe::{
    IndexEntry, ModelConfig, ModelMetadata, ServerMetadata, error_body, index_body,
    model_ready_body, wants_ready_only,
};
pub use fuzz::fuzz_decode;
pub use limits::WireLimits;
pub use parameters::{Parameter, Parameters, Sequence, SequenceId, short_text};
pub use reply::{Encoded, InferReply, encode_generated, encode_infer};
pub use request::{InferRequest, NamedTensor, RequestedOutput, Tensors, decode_infer};
pub use shared::{NoSharedMemory, RegionSlice, SharedInput, SharedMemory, SliceDraft};
pub use upstream::{
    decode_answer, decode_error, decode_extensions, decode_metadata, encode_request,
};
