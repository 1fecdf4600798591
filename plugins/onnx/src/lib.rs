//! Serves ONNX files. The file is parsed here, inside the sandbox; the graph
//! is built in the host, and weights go from the stored file to the device
//! without passing through this plugin.
//!
//! **Assets**: the model file as `model` (or the only asset that ends in
//! `.onnx`), and the files of external data under their own names.
//!
//! **Configuration**, all optional:
//! - `shapes`: shapes of inputs that replace the declared ones, by name, with
//!   -1 for a size that may differ between requests:
//!   `{"shapes": {"input": [-1, 3, 224, 224]}}`.
//!
//! What differs from running the file as it is:
//! - A `ZipMap` at an output is removed: the output keeps its name and is the
//!   matrix `[rows, classes]` of probabilities, whose columns are in the order
//!   of the class labels, which the plugin logs. Any other sequence or map at
//!   an output is unsupported.
//! - An input that has an initialiser is a constant.
//! - Declared shapes and types of outputs are not looked at.

mod builder;
mod error;
#[doc(hidden)]
pub mod import;
#[doc(hidden)]
pub mod proto;
#[doc(hidden)]
pub mod reader;
#[doc(hidden)]
pub mod sink;
#[cfg(test)]
mod tests;
mod trace;

use import::Options;
use mortise_plugin_sdk::{Context, GraphBuilder, Loaded, Model, Result, export_model, log};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    shapes: BTreeMap<String, Vec<i64>>,
}

struct Onnx;

impl Model for Onnx {
    fn load(ctx: &Context) -> Result<Loaded<Self>> {
        let config: Config = ctx.config()?;
        let files = builder::AssetFiles::find(ctx.assets())?;
        let model = proto::read_model(&reader::File::open(&files)?)?;
        let graph = GraphBuilder::new();
        let options = Options { shapes: config.shapes };
        let notes = import::import(&model, &files, &options, &mut builder::HostSink(&graph))?;
        notes.0.iter().for_each(|note| log::info!("{note}"));
        Ok(Loaded::Direct(graph.finish()?))
    }
}

export_model!(Onnx);

/// Parses and imports `bytes` as a model without a host: what the fuzzer
/// calls. Any input must end in `Ok` or `Err`.
///
/// # Errors
/// When the bytes are no valid model.
pub fn fuzz(bytes: &[u8]) -> Result<()> {
    trace::trace(bytes).map(drop)
}
