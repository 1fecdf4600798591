//! Models in the ONNX plugin, in the plugin host, on the CPU device.

use crate::cases::{Case, Cases};
use anyhow::{Context, Result};
use mortise_compute::{CpuDevice, CpuOptions};
use mortise_graph::GraphLimits;
use mortise_host::{Compiled, Host, HostConfig, LoadRequest, Plugin, PluginLimits, WorkerCommand};
use mortise_serve::Runner;
use mortise_types::{Asset, Assets, Bytes, RunControl, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first argument of the process that compiles the plugin.
pub(crate) const COMPILE_ARGUMENT: &str = "compile-plugin";

/// Longer than any test takes on a busy machine.
const TIME_OF_ONE: Duration = Duration::from_secs(30);

/// Loads models.
pub(crate) struct Models {
    host: Arc<Host>,
    plugin: Compiled,
    runner: Arc<Runner>,
}

impl Models {
    pub(crate) fn new(plugin: &Path, cache: &Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        let worker = WorkerCommand { program, args: vec![COMPILE_ARGUMENT.to_owned()] };
        let host = Host::new(HostConfig::new(cache, worker))?;
        let component =
            std::fs::read(plugin).with_context(|| format!("read {}", plugin.display()))?;
        let verified = host.verify(Bytes::from(component))?;
        let plugin = host.compile(&verified)?;
        let device = CpuDevice::new(CpuOptions { threads: 1 });
        Ok(Self { host, plugin, runner: Runner::new(device, GraphLimits::default()) })
    }

    /// Deploys the model of a case and asks it once.
    ///
    /// # Errors
    /// What the plugin, the device or an operator says.
    pub(crate) fn run(
        &self,
        cases: &Cases,
        case: &Case,
        inputs: Vec<Tensor>,
    ) -> mortise_types::Result<Vec<Tensor>> {
        let bytes = cases.bytes(case.model)?;
        let asset = Asset { digest: case.test.as_str().into(), bytes };
        let request = LoadRequest {
            plugin: "onnx".to_owned(),
            endpoint: case.test.clone(),
            config_json: json!({ "shapes": shapes(case) }).to_string(),
            assets: Assets::new(BTreeMap::from([("model".to_owned(), asset)])),
            limits: PluginLimits { instances: 1, ..PluginLimits::default() },
            runner: self.runner.clone(),
        };
        let plugin = Plugin::load(&self.host, &self.plugin, request)?;
        let deadline = Instant::now() + TIME_OF_ONE;
        plugin.call(inputs, &RunControl::new(Some(deadline), RunControl::DEFAULT_LOOP_ITERATIONS))
    }
}

/// The plugin wants to be told the ranks of inputs that declare none.
fn shapes(case: &Case) -> Map<String, Value> {
    let undeclared = case.inputs.iter().filter(|input| input.undeclared);
    undeclared.map(|input| (input.name.clone(), json!(vec![-1; input.shape.len()]))).collect()
}
