//! `mortise demo`: a server with endpoints on real data, from the binary alone.

use crate::cli::CliError;
use crate::cli::args::DemoArgs;
use crate::cli::client::AdminClient;
use crate::config::Resolved;
use crate::embedded::{DEMOS, Demo, File};
use crate::serve::{self, Running};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// The transform's configuration among a demo's files.
const TRANSFORM_FILE: &str = "tabular.json";

/// The self-tests among a demo's files.
const TESTS_FILE: &str = "tests.toml";

/// A request on real data among a demo's files.
const REQUEST_FILE: &str = "request.json";

/// # Errors
/// When the server cannot start. A demo endpoint that fails is reported on
/// stderr, and the server goes on.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let raw = crate::settings(args.config.as_deref(), &args.listen)?;
    let temporary = match &args.store {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("cannot make a directory for the store")?),
    };
    let kept = args.store.clone();
    let store: PathBuf =
        kept.or_else(|| temporary.as_ref().map(|dir| dir.path().to_path_buf())).unwrap_or_default();
    let config = Resolved::new(&raw, store)?;
    let logging = crate::start_logging(&config.log);
    serve::run(config, logging, |running| async move {
        // The client of the admin API blocks.
        let _ = tokio::task::spawn_blocking(move || deploy_all(&running)).await;
    })
}

fn deploy_all(running: &Running) {
    let client = AdminClient::new(&format!("http://{}", running.admin), &running.token);
    let mut served = Vec::new();
    for demo in DEMOS {
        match deploy(&client, demo) {
            Ok(version) => {
                eprintln!("{:<14} version {version} is live", demo.name);
                served.push(demo);
            }
            Err(error) => eprintln!("{:<14} failed: {error:#}", demo.name),
        }
    }
    print_addresses(running);
    served.iter().for_each(|demo| print_curl(running, demo));
    if let Some(demo) = served.iter().find(|demo| demo.only_input().is_some()) {
        print_tritonclient(running, demo);
    }
    print_commands(running);
    eprintln!("\nDEMO READY: {} endpoints; Ctrl-C stops the server", served.len());
}

/// Deploys one endpoint, unless the store has it already, and returns its
/// version.
fn deploy(client: &AdminClient, demo: &Demo) -> Result<Value> {
    let path = format!("/v1/endpoints/{}", demo.name);
    if let Ok(status) = client.get(&path)
        && status["state"] == "ready"
    {
        return Ok(status["revision"]["version"]["number"].clone());
    }
    let end = client.deploy(demo.name, &demo.upload(client)?, |_| {})?;
    match end["event"].as_str() {
        Some("deployed") => Ok(end["deployed"]["version"].clone()),
        _ => bail!("{}", end["error"].as_str().unwrap_or("the deployment broke off")),
    }
}

impl Demo {
    fn file(&self, name: &str) -> Option<&'static File> {
        self.files.iter().find(|file| file.name == name)
    }

    fn upload(&self, client: &AdminClient) -> Result<Value> {
        let model = self.files.iter().find(|file| file.name.ends_with(".onnx"));
        let model = model.ok_or_else(|| {
            CliError::new("the demo has no model file", "build again with `cargo xtask build`")
        })?;
        let transforms = match self.file(TRANSFORM_FILE) {
            None => Vec::new(),
            Some(file) => {
                let config: Map<String, Value> = serde_json::from_slice(file.bytes)?;
                vec![json!({"plugin": {"name": "tabular"}, "config": config})]
            }
        };
        let tests = match self.file(TESTS_FILE) {
            None => Value::Null,
            Some(file) => {
                json!({"upload": client.upload(file.bytes)?, "data": self.test_data(client)?})
            }
        };
        Ok(json!({
            "plugin": {"name": "onnx"},
            "assets": [{"name": "model.onnx", "upload": client.upload(model.bytes)?}],
            "transforms": transforms,
            "tests": tests,
        }))
    }

    /// The files that the tests name.
    fn test_data(&self, client: &AdminClient) -> Result<Vec<Value>> {
        let tests = self.file(TESTS_FILE).map_or(&b""[..], |file| file.bytes);
        let tests = std::str::from_utf8(tests)?;
        let is_named = |file: &&File| tests.contains(&format!("\"{}\"", file.name));
        let upload = |file: &File| -> Result<Value> {
            Ok(json!({"name": file.name, "upload": client.upload(file.bytes)?}))
        };
        self.files.iter().filter(is_named).map(upload).collect()
    }

    /// A request of the protocol.
    fn request(&self) -> Option<Value> {
        serde_json::from_slice(self.file(REQUEST_FILE)?.bytes).ok()
    }

    /// The input of a request that has one.
    fn only_input(&self) -> Option<Value> {
        match self.request()?["inputs"].as_array()?.as_slice() {
            [input] => Some(input.clone()),
            _ => None,
        }
    }
}

fn print_addresses(running: &Running) {
    eprintln!("\nHTTP      http://{}", running.http);
    eprintln!("gRPC      {}", running.grpc);
    eprintln!("metrics   http://{}/metrics", running.metrics);
    eprintln!("admin     http://{} (token in {})", running.admin, running.store.display());
}

/// As this program was called, so that it works where a path was typed.
fn print_commands(running: &Running) {
    let program = std::env::args().next().unwrap_or_else(|| "mortise".to_owned());
    let store = running.store.display();
    eprintln!("\n# The command line, in another terminal");
    eprintln!("{program} status --store {store}");
    eprintln!("{program} load digits --rps 100 --seconds 10 --store {store}");
}

fn print_curl(running: &Running, demo: &Demo) {
    let Some(request) = demo.request() else { return };
    // No demo's data holds a quote that a shell would read.
    eprintln!("\n# {}", demo.name);
    eprintln!("curl -s http://{}/v2/models/{}/infer -d '{request}'", running.http, demo.name);
}

fn print_tritonclient(running: &Running, demo: &Demo) {
    let Some(input) = demo.only_input() else { return };
    let text = |key: &str| input[key].as_str().unwrap_or_default().to_string();
    let (name, datatype) = (text("name"), text("datatype"));
    eprintln!(
        "\n# Python, after: pip install 'tritonclient[http]'\n\
         import numpy as np, tritonclient.http as triton, tritonclient.utils as utils\n\
         client = triton.InferenceServerClient(\"{}\")\n\
         data = np.array({}, utils.triton_to_np_dtype(\"{datatype}\")).reshape({})\n\
         tensor = triton.InferInput(\"{name}\", data.shape, \"{datatype}\")\n\
         tensor.set_data_from_numpy(data)\n\
         answer = client.infer(\"{}\", [tensor]).get_response()\n\
         print([(out[\"name\"], out[\"shape\"]) for out in answer[\"outputs\"]])",
        running.http, input["data"], input["shape"], demo.name
    );
}
