//! What the integration tests and the benchmarks share: a running server, small
//! clients for its ports, and a load generator. They drive the release binary
//! over sockets and know nothing of its insides.

pub mod admin;
pub mod collector;
pub mod grpc;
pub mod http1;
pub mod infer;
pub mod load;
pub mod onnx;
pub mod open_loop;
pub mod paths;
pub mod server;
pub mod stats;
pub mod wait;

pub use admin::{Admin, Deployment};
pub use http1::{Client, Response};
pub use server::{Options, Server};
