//! Where an imported graph goes: the host's builder in a plugin, a recorder in
//! tests and under the fuzzer.

use crate::proto::Tensor;
use mortise_plugin_sdk::{ByteRange, DType, Result, TensorSpec};
use std::borrow::Cow;

/// Takes a graph node by node. A constant or weight may be asked for while a
/// subgraph is open, and is read by nodes of that subgraph only.
pub trait Sink {
    type Value: Copy;
    type Subgraph;

    fn input(&mut self, spec: &TensorSpec) -> Result<Self::Value>;
    /// A tensor whose data is `Bytes` or `Strings`.
    fn constant(&mut self, tensor: &Tensor) -> Result<Self::Value>;
    fn weight(&mut self, place: Place<'_>, dtype: DType, dims: &[u64]) -> Result<Self::Value>;
    fn node(&mut self, call: Call<'_, Self::Value, Self::Subgraph>) -> Result<Vec<Self::Value>>;
    fn begin_subgraph(&mut self, input_count: u32) -> Result<Vec<Self::Value>>;
    fn end_subgraph(&mut self, outputs: &[Self::Value]) -> Result<Self::Subgraph>;
    fn output(&mut self, name: &str, value: Self::Value) -> Result<()>;
}

/// A range of bytes of an asset.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub asset: &'a str,
    pub range: ByteRange,
}

/// One operator application.
pub struct Call<'a, V, S> {
    pub domain: &'a str,
    pub op: &'a str,
    pub opset: u32,
    pub name: &'a str,
    pub inputs: Vec<Option<V>>,
    pub attributes: Vec<(&'a str, Argument<'a, S>)>,
    pub output_count: u32,
}

/// The value of an attribute.
pub enum Argument<'a, S> {
    Int(i64),
    Float(f32),
    Text(&'a [u8]),
    /// Data is `Bytes` or `Strings`.
    Tensor(Cow<'a, Tensor>),
    Graph(S),
    Ints(&'a [i64]),
    Floats(&'a [f32]),
    Texts(&'a [Vec<u8>]),
}
