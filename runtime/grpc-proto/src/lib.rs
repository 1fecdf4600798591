//! The Open Inference Protocol over gRPC: generated messages and services, and
//! infer requests to [`mortise_wire::InferRequest`] and back. Sans-IO.
//!
//! The two messages of an inference are not generated. A request is cut into
//! its members without reading them, their count is bounded while they arrive,
//! and tensors are slices of the message; a reply is written once.

mod decode;
mod encode;
mod fields;
mod fuzz;
mod messages;
#[cfg(test)]
mod tests;
mod upstream;

pub use encode::{encode_config, encode_infer};
pub use fuzz::fuzz_decode;
pub use messages::{ModelInferRequest, ModelInferResponse};
pub use upstream::decode_metadata;

/// Package `inference`.
#[allow(clippy::all, unreachable_pub)]
pub mod inference {
    tonic::include_proto!("inference");
    /// Package `inference.model_repository`.
    pub mod model_repository {
        tonic::include_proto!("inference.model_repository");
    }
}

/// Descriptors of every file, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
