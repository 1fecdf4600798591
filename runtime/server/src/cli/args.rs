mod measure;

pub(crate) use measure::{
    BenchArgs, BenchCommand, BenchKernelsArgs, BenchModelArgs, DeviceArgs, InspectArgs, LocalArgs,
};

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Serve machine-learning models from sandboxed plugins, and swap them under load.
#[derive(Parser)]
#[command(
    name = "mortise",
    version,
    after_help = "\
Examples:
  mortise demo                                  # three endpoints on real data
  mortise serve                                 # a server with what was deployed
  mortise deploy digits digits.onnx             # deploy a model file
  mortise predict digits --json request.json"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the server.
    Serve(ServeArgs),
    /// Run a server with three endpoints on real data.
    Demo(DemoArgs),
    /// Deploy a model: a file, a folder of files, or a plugin of your own.
    Deploy(Box<DeployArgs>),
    /// Take an endpoint out of service and forget it.
    #[command(after_help = "Example:\n  mortise undeploy digits")]
    Undeploy(NameArgs),
    /// Bring back what an endpoint served before, whole.
    #[command(after_help = "Example:\n  mortise rollback digits")]
    Rollback(NameArgs),
    /// Watch or steer how a new version gets its traffic.
    Rollout(RolloutArgs),
    /// See and set how several versions of an endpoint share its traffic.
    Traffic(TrafficArgs),
    /// Try plugins out without a server.
    Plugin(PluginArgs),
    /// Compare the versions of an experiment.
    Experiment(ExperimentArgs),
    /// Bring an unloaded endpoint back into memory, or with --rps send it traffic.
    Load(LoadArgs),
    /// Take an endpoint out of memory, but keep it.
    #[command(after_help = "Example:\n  mortise unload digits")]
    Unload(NameArgs),
    /// Show what is deployed and whether it is ready.
    Status(StatusArgs),
    /// Show the operators that an endpoint or a model file runs, and where.
    Inspect(InspectArgs),
    /// Measure kernels or a model on this machine, beside what is possible.
    Bench(BenchArgs),
    /// Ask an endpoint for predictions.
    Predict(PredictArgs),
    /// Remove versions and files that nothing needs any more.
    #[command(after_help = "Example:\n  mortise gc")]
    Gc(GcArgs),
    /// Show who changed what, newest first.
    Audit(AuditArgs),
    /// Add and remove API keys of the data plane.
    Keys(KeysArgs),
    /// Compile a component from stdin to stdout, within limits.
    #[command(name = "__compile-plugin", hide = true)]
    CompilePlugin,
}

/// Where the server keeps its state and listens.
#[derive(Args, Clone, Default)]
pub(crate) struct ListenArgs {
    /// Host of all listeners, instead of the configuration's.
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// Port of the data plane; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    pub(crate) http_port: Option<u16>,
    /// Port of the data plane over gRPC; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    pub(crate) grpc_port: Option<u16>,
    /// Port of the metrics; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    pub(crate) metrics_port: Option<u16>,
    /// Port of the admin API; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
    /// What runs graphs: auto, cpu, gpu, or gpu:N [default: auto].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
}

#[derive(Args, Clone, Default)]
#[command(after_help = "\
Examples:
  mortise serve --config mortise.toml --store ./store
  mortise serve --http-port 0 --grpc-port 0 --metrics-port 0 --admin-port 0
  mortise serve --print-config > mortise.toml

The first line on stdout is JSON with the chosen addresses.")]
pub(crate) struct ServeArgs {
    /// Settings of the server; the defaults without it.
    #[arg(long, value_name = "FILE", env = "MORTISE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of everything that is deployed [default: ~/.local/share/mortise].
    #[arg(long, value_name = "DIR", env = "MORTISE_STORE")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    /// Print the settings with their documentation, and exit.
    #[arg(long)]
    pub(crate) print_config: bool,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  mortise demo                  # endpoints digits, breast-cancer and wine")]
pub(crate) struct DemoArgs {
    /// Settings of the server; the defaults without it.
    #[arg(long, value_name = "FILE", env = "MORTISE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Keep the store here, instead of in a directory that is removed at the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise keys add mobile-app --file keys.txt     # prints the key, once
  mortise keys remove mobile-app --file keys.txt

A running server with [auth] api_keys = \"keys.txt\" notices within a second.")]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) action: KeysAction,
}

#[derive(Subcommand)]
pub(crate) enum KeysAction {
    /// Make a key for a client, print it, and keep its digest.
    Add(KeyArgs),
    /// Remove a client's key.
    Remove(KeyArgs),
}

#[derive(Args)]
pub(crate) struct KeyArgs {
    /// The client's name, as rate limits and logs call it.
    pub(crate) name: String,
    /// The file that `auth.api_keys` names.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// How to reach the server.
#[derive(Args, Clone)]
pub(crate) struct AdminArgs {
    /// Address of the admin API; by default what the server wrote into the store.
    #[arg(long, value_name = "URL", env = "MORTISE_ADMIN")]
    pub(crate) admin: Option<String>,
    /// Bearer token of the admin API; by default what the server wrote into the store.
    #[arg(long, value_name = "TOKEN", env = "MORTISE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The server's store directory [default: ~/.local/share/mortise].
    #[arg(long, value_name = "DIR", env = "MORTISE_STORE")]
    pub(crate) store: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise deploy digits digits.onnx --tests tests.toml
  mortise deploy cancer model.onnx --transform tabular=columns.json
  mortise deploy net weights.safetensors --plugin mlp --set layers=3
  mortise deploy mine my_model.wasm --asset vocabulary=words.txt
  mortise deploy both steps.toml --plugin ensemble
  mortise deploy digits new.onnx --rollout canary --set interval=60s
  mortise deploy digits third.onnx --beside 20% --router bandit
  mortise deploy digits digits.onnx --quantize int8 --calibrate rows.csv --max-quantize-error 0.05
  mortise deploy digits --upstream grpc://triton:8001 --set model=digits_v2

The plugin is chosen by the file's extension: .onnx is served by `onnx`,
.safetensors by `mlp`, and a .wasm file is a plugin itself.")]
pub(crate) struct DeployArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// A model file, a folder of a model's files, or a plugin (.wasm).
    #[arg(required_unless_present = "upstream", conflicts_with = "upstream")]
    pub(crate) path: Option<PathBuf>,
    /// Another server of the same protocol that answers for this version, as
    /// http://HOST:PORT or grpc://HOST:PORT, over TLS https:// or grpcs://.
    /// Its model has the endpoint's name unless --set model=NAME says
    /// otherwise; version, timeout_ms, max_concurrent and check_every_ms can
    /// be set too.
    #[arg(long, value_name = "URL", conflicts_with_all = ["plugin", "asset"])]
    pub(crate) upstream: Option<String>,
    /// A first-party plugin (onnx, mlp), the file of a plugin (.wasm), or
    /// `ensemble` for a file that puts deployed models in a row.
    #[arg(long)]
    pub(crate) plugin: Option<String>,
    /// Number of the version; the next free one by default.
    #[arg(long, value_name = "V")]
    pub(crate) version: Option<u64>,
    /// A transform in front of the model, with its configuration; may be repeated.
    #[arg(long, value_name = "PLUGIN=FILE.json")]
    pub(crate) transform: Vec<String>,
    /// A value of the plugin's configuration, JSON or text; may be repeated.
    /// With --rollout it is the strategy's, and model.KEY=VALUE the plugin's.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// How requests wait, merge and are limited; by default nothing needs tuning.
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) serving: Option<PathBuf>,
    /// Give the version a share of the traffic, moved by this strategy: canary,
    /// blue-green, manual, or the file of one (.wasm).
    #[arg(long, value_name = "STRATEGY", group = "shared")]
    pub(crate) rollout: Option<String>,
    /// Keep the version beside the live one, with this share of the traffic,
    /// until `mortise traffic` promotes or retires it.
    #[arg(long, value_name = "PERCENT", conflicts_with = "rollout", group = "shared")]
    pub(crate) beside: Option<String>,
    /// What decides about each request while versions share the traffic:
    /// weighted (the default), ab, header, shadow, bandit, or the file of a
    /// router (.wasm).
    #[arg(long, value_name = "ROUTER", requires = "shared")]
    pub(crate) router: Option<String>,
    /// A value of the router's configuration, JSON or text; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "shared")]
    pub(crate) router_set: Vec<String>,
    /// Where requests carry the key that keeps a user on one version:
    /// header:NAME, parameter:NAME or input:NAME.
    #[arg(long, value_name = "PLACE", requires = "shared")]
    pub(crate) key: Option<String>,
    /// A service that is told before and after each step, by POST.
    #[arg(long, value_name = "URL", requires = "rollout", conflicts_with = "beside")]
    pub(crate) hook: Option<String>,
    /// Take a step only when the hook answers with success. Steps back are taken
    /// without asking.
    #[arg(long, requires = "hook")]
    pub(crate) hook_confirm: bool,
    /// Another file for the plugin, by name; may be repeated.
    #[arg(long, value_name = "NAME=PATH")]
    pub(crate) asset: Vec<String>,
    /// Put the model's FP32 weights into fewer bits: int8, int8-static, int4 or
    /// f16. What stays FP32, the sizes and the difference are reported.
    #[arg(long, value_name = "MODE", value_parser = ["int8", "int8-static", "int4", "f16"])]
    pub(crate) quantize: Option<String>,
    /// Sample inputs (CSV with a header, or JSON as examples of self-tests) that
    /// int8-static finds ranges on and outputs are compared on; made-up ones
    /// without it.
    #[arg(long, value_name = "FILE", requires = "quantize")]
    pub(crate) calibrate: Option<PathBuf>,
    /// Refuse the deployment when an output differs by more than this from what
    /// it was, in its own units.
    #[arg(long, value_name = "X", requires = "quantize")]
    pub(crate) max_quantize_error: Option<f64>,
    /// Self-tests (TOML); a deployment that fails them does not go live.
    #[arg(long, value_name = "FILE")]
    pub(crate) tests: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
pub(crate) struct NameArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise load digits                                  # back into memory
  mortise load digits --rps 200 --seconds 60           # a demo's own sample
  mortise load mine --rps 50 --csv rows.csv --shift age=+2sd")]
pub(crate) struct LoadArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// Send this many requests each second.
    #[arg(long, value_name = "N")]
    pub(crate) rps: Option<f64>,
    /// How long; until it is stopped by default.
    #[arg(long, value_name = "S", requires = "rps")]
    pub(crate) seconds: Option<f64>,
    /// A request to send, in JSON; for the endpoints of the demo, their own.
    #[arg(long, value_name = "FILE", requires = "rps", conflicts_with = "csv")]
    pub(crate) sample: Option<PathBuf>,
    /// A file of rows, sent one by one in turn.
    #[arg(long, value_name = "FILE", requires = "rps")]
    pub(crate) csv: Option<PathBuf>,
    /// Add to a column, in standard deviations (+2sd) or as it is (-1).
    #[arg(long, value_name = "COLUMN=SHIFT", requires = "rps")]
    pub(crate) shift: Option<String>,
    /// Share of requests, from 0 to 1, that are spoilt, so that every version
    /// refuses them; counted apart from failures.
    #[arg(long, value_name = "P", requires = "rps", default_value_t = 0.0)]
    pub(crate) error_rate: f64,
    /// Send a user's name in this header, one of a thousand.
    #[arg(long, value_name = "NAME", requires = "rps")]
    pub(crate) key_header: Option<String>,
    /// Address of the data plane; by default what the server wrote into the store.
    #[arg(long, value_name = "URL", env = "MORTISE_URL", requires = "rps")]
    pub(crate) url: Option<String>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise rollout status digits --watch
  mortise rollout pause digits
  mortise rollout promote digits")]
pub(crate) struct RolloutArgs {
    #[command(subcommand)]
    pub(crate) command: RolloutCommand,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise deploy digits third.onnx --beside 20% --key header:user
  mortise traffic status digits
  mortise traffic set digits --share 2=30 --share 3=10
  mortise traffic set digits --router bandit
  mortise traffic promote digits 3
  mortise traffic retire digits 2")]
pub(crate) struct TrafficArgs {
    #[command(subcommand)]
    pub(crate) command: TrafficCommand,
}

#[derive(Subcommand)]
pub(crate) enum TrafficCommand {
    /// Show the versions, their shares and what they did.
    Status(NameArgs),
    /// Change shares, the router, or where the key of a user is.
    Set(TrafficSetArgs),
    /// Make a version the stable one, in its place.
    Promote(VersionArgs),
    /// Take a version out of service.
    Retire(VersionArgs),
}

#[derive(Args)]
pub(crate) struct TrafficSetArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// The share of a version beside the stable one, which gets what the others
    /// leave; may be repeated.
    #[arg(long, value_name = "VERSION=PERCENT")]
    pub(crate) share: Vec<String>,
    /// What decides about each request: weighted, ab, header, shadow, bandit, or
    /// the file of a router (.wasm).
    #[arg(long, value_name = "ROUTER")]
    pub(crate) router: Option<String>,
    /// A value of the router's configuration, JSON or text; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "router")]
    pub(crate) router_set: Vec<String>,
    /// Where requests carry the key that keeps a user on one version:
    /// header:NAME, parameter:NAME or input:NAME.
    #[arg(long, value_name = "PLACE")]
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
pub(crate) struct VersionArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// Number of a version beside the stable one.
    pub(crate) version: u64,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  mortise plugin replay canary windows.json --set interval=60s")]
pub(crate) struct PluginArgs {
    #[command(subcommand)]
    pub(crate) command: PluginCommand,
}

#[derive(Subcommand)]
pub(crate) enum PluginCommand {
    /// Show what a router or strategy decides about a recording.
    Replay(ReplayArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise rollout status digits --watch --json > windows.json
  mortise plugin replay canary windows.json --set interval=60s
  mortise plugin replay weighted requests.json --variants 1=75,2=25 --key header:user

A strategy replays what `rollout status --watch --json` printed. A router replays
requests, JSON objects such as
  {\"headers\": {\"user\": \"a\"}, \"parameters\": {}, \"inputs\": []}")]
pub(crate) struct ReplayArgs {
    /// A first-party router or strategy, or the file of one (.wasm).
    pub(crate) plugin: String,
    /// JSON values one after the other; - for stdin.
    pub(crate) recording: PathBuf,
    /// A value of the plugin's configuration, JSON or text; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The versions that a router chooses among with their shares in percent,
    /// the stable one first.
    #[arg(long, value_name = "V=PERCENT,…", default_value = "1=50,2=50")]
    pub(crate) variants: String,
    /// Where requests carry the key that keeps a user on one version.
    #[arg(long, value_name = "PLACE")]
    pub(crate) key: Option<String>,
    /// Print each decision as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise deploy m new.onnx --beside 50% --router ab \\
      --router-set experiment=price --key header:user
  mortise experiment record m revenue=12.5 --version 2
  mortise experiment report m

Clients report what came of answers by POST to /v1/endpoints/NAME/metrics of the
admin API: a list such as
  [{\"version\": 2, \"metric\": \"revenue\", \"value\": 12.5}]
where the version is the one that the answer named. Leave out answers whose
variant is \"outside\": they take no part in the experiment.")]
pub(crate) struct ExperimentArgs {
    #[command(subcommand)]
    pub(crate) command: ExperimentCommand,
}

#[derive(Subcommand)]
pub(crate) enum ExperimentCommand {
    /// Show lift, its interval, and whether the samples have the right sizes.
    Report(NameArgs),
    /// Report values of metrics about a version's answers.
    Record(ExperimentRecordArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise experiment record m revenue=12.5 --version 2
  mortise experiment record m --file reports.json")]
pub(crate) struct ExperimentRecordArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// Values; several of one metric are several values.
    #[arg(value_name = "METRIC=VALUE", required_unless_present = "file")]
    pub(crate) values: Vec<String>,
    /// The version whose answers they are about.
    #[arg(long, value_name = "V", required_unless_present = "file")]
    pub(crate) version: Option<u64>,
    /// A JSON list of reports with version, metric and value.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["values", "version"])]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Subcommand)]
pub(crate) enum RolloutCommand {
    /// Show weights, counts and the evidence so far.
    Status(RolloutStatusArgs),
    /// Leave the traffic as it is.
    Pause(NameArgs),
    /// Go on after a pause.
    Resume(NameArgs),
    /// Make the new version the live one now.
    Promote(RolloutPromoteArgs),
    /// Give all traffic back to the old version now.
    Abort(NameArgs),
    /// Give the new version this share.
    Weight(RolloutWeightArgs),
    /// Put another strategy in charge; it takes over the state where it can.
    Swap(RolloutSwapArgs),
}

#[derive(Args)]
pub(crate) struct RolloutStatusArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// Keep showing it until it ends.
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
pub(crate) struct RolloutWeightArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// Such as 25%.
    pub(crate) percent: String,
    /// Do it even when the hook does not agree.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
pub(crate) struct RolloutPromoteArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// Do it even when the hook does not agree.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
pub(crate) struct RolloutSwapArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// A first-party strategy, or the file of one (.wasm).
    pub(crate) strategy: String,
    /// A value of its configuration. The same strategy keeps the others as they
    /// are; another one begins with its defaults.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Let the same strategy forget its other values, too.
    #[arg(long)]
    pub(crate) defaults: bool,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise status
  mortise status digits --json")]
pub(crate) struct StatusArgs {
    /// Name of the endpoint; all by default.
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise predict iris --row sepal_length=5.1,sepal_width=3.5
  mortise predict digits --row 'pixels=[0,0,5,13]'
  mortise predict digits --json request.json
  cat request.json | mortise predict digits --json -
  mortise predict wine --csv rows.csv --output predictions.csv

The JSON is a request of the Open Inference Protocol, or an object of input
names with nested lists. The header of a CSV file names the inputs, or the
columns of a single input.")]
#[command(group = clap::ArgGroup::new("source").required(true).multiple(false))]
pub(crate) struct PredictArgs {
    /// Name of the endpoint.
    pub(crate) name: String,
    /// One row: values by input name.
    #[arg(long, value_name = "A=1,B=2", group = "source")]
    pub(crate) row: Option<String>,
    /// A request in JSON; - for stdin.
    #[arg(long, value_name = "FILE", group = "source")]
    pub(crate) json: Option<PathBuf>,
    /// A file of rows.
    #[arg(long, value_name = "FILE", group = "source")]
    pub(crate) csv: Option<PathBuf>,
    /// Where to write the predictions for a CSV file; stdout by default.
    #[arg(long, value_name = "FILE", requires = "csv")]
    pub(crate) output: Option<PathBuf>,
    /// Rows of a CSV file in one request.
    #[arg(long, value_name = "ROWS", default_value_t = 256, requires = "csv")]
    pub(crate) batch_rows: usize,
    /// Address of the data plane; by default what the server wrote into the store.
    #[arg(long, value_name = "URL", env = "MORTISE_URL")]
    pub(crate) url: Option<String>,
    /// Ask this version instead of the live one.
    #[arg(long, value_name = "V")]
    pub(crate) version: Option<u64>,
    /// The server's store directory [default: ~/.local/share/mortise].
    #[arg(long, value_name = "DIR", env = "MORTISE_STORE")]
    pub(crate) store: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  mortise audit
  mortise audit digits --limit 10 --json")]
pub(crate) struct AuditArgs {
    /// Name of the endpoint; all by default.
    pub(crate) name: Option<String>,
    /// Number of entries, newest first.
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_shows_an_example() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let has_example = help.contains("mortise ") || command.get_name() == "help";
            assert!(has_example, "`mortise {}` has no example", command.get_name());
        }
    }
}
