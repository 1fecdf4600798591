//! The vocabulary every layer shares: dtypes, shapes, tensors, values, graph
//! definitions, errors and deadlines. Plain data; no IO, no threads, no serde.

mod assets;
mod deadline;
mod dtype;
mod error;
mod graph_def;
mod signature;
mod storage;
mod tensor;
mod trace;
mod value;

pub use assets::{Asset, Assets};
pub use deadline::{Clock, CutShort, ManualClock, RunControl, SystemClock};
pub use dtype::{DType, Element};
pub use error::{Error, ErrorKind, Result};
pub use graph_def::{
    Attribute, GraphBody, GraphDef, NodeDef, ValueDef, ValueId, ValueSource, WeightRef,
};
pub use signature::{ANY_RANK, Signature, TensorSpec, VARIABLE};
pub use storage::{BufferPool, Line, Storage};
pub use tensor::{Shape, Strings, StringsBuilder, Tensor};
pub use trace::TraceContext;
pub use value::{MapKeys, Value};

// What other crates need to name the types in these signatures.
pub use bytes::Bytes;
pub use half::{bf16, f16};
