//! A host, and the guests that are loaded into it.

pub(crate) mod guests;

use mortise_host::{
    Compiled, GraphBudget, GraphRunner, Host, HostConfig, LoadRequest, Plugin, PluginLimits,
    PreparedGraph, WorkerCommand,
};
use mortise_types::{Assets, Bytes, GraphDef, Result, RunControl, Signature, Tensor, TensorSpec};
use std::any::Any;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

pub(crate) fn config(cache_dir: &Path) -> HostConfig {
    let program = env!("CARGO_BIN_EXE_mortise-compile-worker").into();
    HostConfig::new(cache_dir, WorkerCommand { program, args: Vec::new() })
}

/// One host for all tests of the process.
pub(crate) fn host() -> &'static Arc<Host> {
    static HOST: OnceLock<(tempfile::TempDir, Arc<Host>)> = OnceLock::new();
    let start = || {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(config(dir.path())).unwrap();
        (dir, host)
    };
    &HOST.get_or_init(start).1
}

/// A guest, compiled once.
pub(crate) fn compiled(name: &'static str) -> Compiled {
    static COMPILED: Mutex<Option<HashMap<&str, Compiled>>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let compile = || {
        let verified = host().verify(Bytes::from(guests::component(name))).unwrap();
        host().compile(&verified).unwrap()
    };
    compiled.get_or_insert_default().entry(name).or_insert_with(compile).clone()
}

/// Limits that are quick to hit.
pub(crate) fn limits() -> PluginLimits {
    PluginLimits {
        call_timeout: Duration::from_millis(300),
        load_timeout: Duration::from_secs(1),
        graph_timeout: Duration::from_millis(500),
        memory_bytes: 32 << 20,
        max_handles: 1000,
        max_tensor_bytes: 16 << 20,
        max_host_calls_per_call: 200_000,
        max_host_calls_per_load: 300_000,
        max_graph_nodes: 10_000,
        instances: 2,
        quarantine_after: 1000,
        ..PluginLimits::default()
    }
}

pub(crate) fn load(guest: &'static str, config: &str, limits: PluginLimits) -> Result<Arc<Plugin>> {
    load_named(host(), &compiled(guest), guest, config, limits)
}

pub(crate) fn load_on(
    host: &Arc<Host>,
    compiled: &Compiled,
    config: &str,
    limits: PluginLimits,
) -> Result<Arc<Plugin>> {
    load_named(host, compiled, "guest", config, limits)
}

fn load_named(
    host: &Arc<Host>,
    compiled: &Compiled,
    name: &str,
    config: &str,
    limits: PluginLimits,
) -> Result<Arc<Plugin>> {
    let request = LoadRequest {
        plugin: name.into(),
        endpoint: "e".into(),
        config_json: config.into(),
        assets: Assets::default(),
        limits,
        runner: Arc::new(Runner),
    };
    Plugin::load(host, compiled, request)
}

/// The guest `evil` with a behaviour for negative inputs.
pub(crate) fn evil(behave: &str, limits: PluginLimits) -> Result<Arc<Plugin>> {
    load("evil", &format!(r#"{{"behave":"{behave}","when":"negative"}}"#), limits)
}

pub(crate) fn tensor(values: &[f32]) -> Vec<Tensor> {
    vec![Tensor::from_vec(&[values.len()], values.to_vec()).unwrap()]
}

pub(crate) fn within(time: Duration) -> RunControl {
    RunControl::new(Some(std::time::Instant::now() + time), 1_000_000)
}

/// Stands in for the device: knows `Loop`, which never ends, and lets every
/// other graph give back its input.
struct Runner;

struct Graph {
    signature: Signature,
    endless: bool,
}

impl GraphRunner for Runner {
    fn prepare(
        &self,
        def: &GraphDef,
        _: &Assets,
        _: GraphBudget,
    ) -> Result<Arc<dyn PreparedGraph>> {
        let spec = |name: &String| TensorSpec { name: name.clone(), ..def.inputs[0].clone() };
        let outputs = def.output_names.iter().map(spec).collect();
        let signature = Signature { inputs: def.inputs.clone(), outputs };
        let endless = def.body.nodes.iter().any(|node| &*node.op == "Loop");
        Ok(Arc::new(Graph { signature, endless }))
    }
}

impl PreparedGraph for Graph {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    #[expect(clippy::while_immutable_condition, reason = "only the deadline ends it")]
    fn run(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        while self.endless {
            control.check()?;
        }
        Ok(inputs)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
