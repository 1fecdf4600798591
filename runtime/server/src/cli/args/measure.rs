use super::AdminArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// A model file that is loaded into this process, and the device that runs it.
#[derive(Args)]
pub(crate) struct LocalArgs {
    /// A first-party plugin (onnx, mlp), or the file of a plugin (.wasm);
    /// chosen by the file's extension by default.
    #[arg(long)]
    pub(crate) plugin: Option<String>,
    /// A value of the plugin's configuration, JSON or text; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Another file for the plugin, by name; may be repeated.
    #[arg(long, value_name = "NAME=PATH")]
    pub(crate) asset: Vec<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Args)]
pub(crate) struct DeviceArgs {
    /// What runs graphs: auto, cpu, gpu, or gpu:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: String,
    /// Threads of the CPU device; one a core by default.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise inspect digits                      # an endpoint of a running server
  mortise inspect model.onnx                  # a file, without a server
  mortise inspect weights.safetensors --plugin mlp --set layers=3 --json

Each line is one operator: where it runs, what was fused into it, the bytes of
its weights and the shape of its output, with -1 where inputs decide.")]
pub(crate) struct InspectArgs {
    /// Name of an endpoint, or a model file.
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) local: LocalArgs,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise bench kernels --device cpu --threads 1
  mortise bench model model.onnx --batch 1,32")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Time every kernel, and say how near it is to what the machine can do.
    Kernels(BenchKernelsArgs),
    /// Time a model file, and say how near it is to what the machine can do.
    Model(BenchModelArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise bench kernels
  mortise bench kernels --device gpu --json
  mortise bench kernels --filter matmul --threads 1

The share is of the floor: operations over the peak, or bytes over the
bandwidth, whichever takes longer, both measured first. The last line is JSON.")]
pub(crate) struct BenchKernelsArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Only kernels with this in their name.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) filter: String,
    /// Small sizes, for devices that compute in software.
    #[arg(long)]
    pub(crate) small: bool,
    /// Print nothing but the JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise bench model model.onnx
  mortise bench model bert.onnx --batch 1,8 --length 128 --threads 1
  mortise bench model weights.safetensors --plugin mlp --set layers=3

Inputs are made up. Operations are those of products, convolutions, attention
and recurrences; bytes are weights, inputs and outputs. The last line is JSON.")]
pub(crate) struct BenchModelArgs {
    /// A model file.
    pub(crate) path: PathBuf,
    /// Rows in a run; several, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub(crate) batch: Vec<usize>,
    /// Size of variable dimensions other than the first, such as a sequence's.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) length: usize,
    #[command(flatten)]
    pub(crate) local: LocalArgs,
    /// Print nothing but the JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
