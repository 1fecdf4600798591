//! Plugins and models in this process, without a server.

use super::args::{DeviceArgs, LocalArgs};
use super::deploy::{Component, Named, config, named_assets, plugin_and_assets};
use crate::{device, embedded};
use anyhow::{Context, Result, bail};
use mortise_compute::Device;
use mortise_deploy::{BuiltinPlugin, unknown_plugin};
use mortise_graph::GraphLimits;
use mortise_host::{
    Compiled, Host, HostConfig, LoadRequest, Plugin, PluginLimits, WorkerCommand, World,
};
use mortise_serve::{Runner, Stage};
use mortise_types::{Asset, Assets, Bytes};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// A compiled plugin and the host that runs it.
pub(super) struct LocalPlugin {
    pub(super) host: Arc<Host>,
    pub(super) compiled: Compiled,
    pub(super) scratch: TempDir,
}

impl LocalPlugin {
    /// Compiles a first-party plugin, or the file of one (.wasm). When there is
    /// none of its name, those of the `wanted` worlds are listed.
    ///
    /// # Errors
    /// When there is none, or it does not compile.
    pub(super) fn compile(plugin: &str, wanted: &[World]) -> Result<Self> {
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let worker = WorkerCommand { program, args: vec![crate::serve::COMPILE_COMMAND.into()] };
        let host = Host::new(HostConfig::new(scratch.path().join("cache"), worker))?;
        let verified = host.verify(component(&host, plugin, wanted)?)?;
        Ok(Self { compiled: host.compile(&verified)?, host, scratch })
    }
}

fn component(host: &Host, plugin: &str, wanted: &[World]) -> Result<Bytes> {
    if plugin.ends_with(".wasm") {
        let bytes = std::fs::read(plugin).with_context(|| format!("cannot read {plugin}"))?;
        return Ok(bytes.into());
    }
    let plugins = embedded::plugins();
    let found = plugins.iter().find(|known| known.name == plugin);
    let found = found.ok_or_else(|| {
        let world =
            |known: &BuiltinPlugin| Some(host.verify(known.component.clone()).ok()?.world());
        let known = plugins.iter().filter_map(|known| Some((known.name.as_str(), world(known)?)));
        unknown_plugin(plugin, wanted, known)
    })?;
    Ok(found.component.clone())
}

/// A model as a stage that nobody serves, and the device that runs it.
pub(super) struct LocalModel {
    pub(super) stage: Stage,
    pub(super) device: Arc<dyn Device>,
    _plugin: LocalPlugin,
}

impl LocalModel {
    /// # Errors
    /// When the file, the plugin or the device cannot be used.
    pub(super) fn load(path: &Path, args: &LocalArgs) -> Result<Self> {
        let (component, mut files) = plugin_and_assets(args.plugin.as_deref(), path)?;
        files.extend(named_assets(&args.asset)?);
        let name = match component {
            Component::Builtin(name) => name,
            Component::File(path) => path.to_string_lossy().into_owned(),
            Component::Ensemble(_) | Component::Upstream(_) => {
                bail!("{} is made of deployed endpoints; inspect those", path.display())
            }
        };
        let plugin = LocalPlugin::compile(&name, &[World::Model])?;
        if plugin.compiled.world() != World::Model {
            bail!("plugin \"{name}\" is a {}, and not a model", plugin.compiled.world());
        }
        let device = open(&args.device)?;
        let request = LoadRequest {
            plugin: name.clone(),
            endpoint: path.display().to_string(),
            config_json: Value::Object(config(&args.set)?).to_string(),
            assets: assets(&files)?,
            limits: PluginLimits { instances: 1, ..PluginLimits::default() },
            runner: Runner::new(device.clone(), GraphLimits::default()),
        };
        let loaded = Plugin::load(&plugin.host, &plugin.compiled, request)?;
        let stage = Stage::from_plugin(&name, plugin.compiled.digest(), &loaded);
        Ok(Self { stage, device, _plugin: plugin })
    }
}

/// The device that a command asks for; what is tuned for a GPU is not kept.
///
/// # Errors
/// When it is not there.
pub(super) fn open(args: &DeviceArgs) -> Result<Arc<dyn Device>> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let choice = args.device.parse().map_err(anyhow::Error::from)?;
    device::open(choice, args.threads.unwrap_or_else(cores), None)
}

fn assets(files: &[Named]) -> Result<Assets> {
    let read = |file: &Named| {
        let bytes = std::fs::read(&file.path)
            .with_context(|| format!("cannot read {}", file.path.display()))?;
        Ok((file.name.clone(), Asset { digest: file.name.as_str().into(), bytes: bytes.into() }))
    };
    Ok(Assets::new(files.iter().map(read).collect::<Result<BTreeMap<_, _>>>()?))
}
