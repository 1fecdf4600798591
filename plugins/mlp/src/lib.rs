//! A multi-layer perceptron on safetensors weights, built by hand: the SDK's
//! example of a model.
//!
//! **Assets**: one safetensors file under the name `model`, with a matrix
//! `layers.{i}.weight` of shape `[out, in]` and optionally a vector
//! `layers.{i}.bias` of shape `[out]` for each layer, counted from 0. This is
//! how PyTorch saves an `nn.ModuleList` called `layers` of `nn.Linear`.
//!
//! **Configuration**, all optional:
//! - `activation` between the layers: `relu` (the default), `tanh`, `sigmoid`,
//!   `gelu` or `none`;
//! - `output_activation` after the last one: `none` (the default), `softmax`
//!   or `sigmoid`;
//! - `input` and `output`: the names of the tensors (`x` and `y`).

// The logic that needs no host lives in a module of its own, so that plain
// `cargo test` covers it.
mod layers;

use layers::{Layer, Slice};
use mortise_plugin_sdk::{
    Assets, Context, DType, Error, Gemm, GraphBuilder, Loaded, Model, Result, TensorSpec, VARIABLE,
    Value, export_model, log,
};
use serde::Deserialize;

/// Where the weights are.
const ASSET: &str = "model";

/// The longest header that is read; the largest public models have 1 MiB.
const MAX_HEADER_BYTES: u64 = 16 << 20;

// A misspelt key is an error that lists the right ones.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    activation: Activation,
    output_activation: OutputActivation,
    input: String,
    output: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            activation: Activation::Relu,
            output_activation: OutputActivation::None,
            input: "x".into(),
            output: "y".into(),
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Activation {
    None,
    Relu,
    Tanh,
    Sigmoid,
    Gelu,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutputActivation {
    None,
    Softmax,
    Sigmoid,
}

// Nothing is kept: the host runs the graph, and `predict` is never called.
struct Mlp;

impl Model for Mlp {
    fn load(ctx: &Context) -> Result<Loaded<Self>> {
        let config: Config = ctx.config()?;
        // Only the header is read; the weights stay in the file.
        let layers = layers::read(&header(&ctx.assets())?)?;
        let graph = GraphBuilder::new();

        // -1 is a size that each request chooses: here, its number of rows.
        let spec = TensorSpec::new(&config.input, DType::F32, [VARIABLE, layers[0].inputs as i64]);
        let mut x = graph.input(&spec)?;
        for (index, layer) in layers.iter().enumerate() {
            x = linear(&graph, layer, x)?;
            if index + 1 < layers.len() {
                x = activate(&graph, config.activation, x)?;
            }
        }
        let y = match config.output_activation {
            OutputActivation::None => x,
            OutputActivation::Softmax => graph.softmax(x, -1)?,
            OutputActivation::Sigmoid => graph.sigmoid(x)?,
        };
        graph.output(&config.output, y)?;

        log::info!("built {} layers", layers.len());
        // The graph is checked and compiled by `finish`. A model whose answers
        // need code of its own would return `Loaded::Custom` instead.
        Ok(Loaded::Direct(graph.finish()?))
    }
}

export_model!(Mlp);

/// `x · weightᵀ + bias`. A weight is a range of the asset: its bytes go from
/// the stored file to the device and never pass through this plugin.
fn linear(graph: &GraphBuilder, layer: &Layer, x: Value) -> Result<Value> {
    let weight = |slice: &Slice| graph.weight(ASSET, slice.range, slice.dtype, &slice.shape);
    let bias = layer.bias.as_ref().map(weight).transpose()?;
    let options = Gemm { transpose_right: true, ..Gemm::default() };
    graph.gemm(x, weight(&layer.weight)?, bias, options)
}

fn activate(graph: &GraphBuilder, activation: Activation, x: Value) -> Result<Value> {
    match activation {
        Activation::None => Ok(x),
        Activation::Relu => graph.relu(x),
        Activation::Tanh => graph.tanh(x),
        Activation::Sigmoid => graph.sigmoid(x),
        Activation::Gelu => graph.gelu(x),
    }
}

/// A safetensors file starts with the length of its header, which is JSON.
fn header(assets: &Assets) -> Result<layers::Header> {
    let file_bytes = assets.len(ASSET)?;
    let prefix: [u8; 8] = assets.read(ASSET, 0, 8.min(file_bytes))?.try_into().map_err(|_| {
        Error::invalid("the weights are no safetensors file: it is shorter than 8 bytes")
    })?;
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER_BYTES || length > file_bytes - 8 {
        return Err(Error::invalid(format!(
            "the weights are no safetensors file: it says that its header takes {length} bytes, of \
             {file_bytes} in all"
        )));
    }
    Ok(layers::Header { json: assets.read(ASSET, 8, length)?, file_bytes })
}
