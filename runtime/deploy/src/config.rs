use crate::memory::machine_memory_bytes;
use crate::rollout::{Hooks, NoHooks};
use crate::stage::{NoObserver, StageObserver};
use crate::toolchain::{HostToolchain, Toolchain};
use crate::upstream::{NoUpstreams, Upstreams};
use mortise_host::{Host, PluginLimits};
use mortise_serve::Registry;
use mortise_types::Bytes;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What [`crate::Deployer::open`] needs.
pub struct DeployConfig {
    /// Created when missing, readable by the owner only. One process owns it.
    pub store_dir: PathBuf,
    pub limits: DeployLimits,
    /// For every plugin of every deployment that has none of its own.
    pub plugin_limits: PluginLimits,
    /// By the name of the plugin.
    pub limits_by_plugin: HashMap<String, PluginLimits>,
    /// Checks, compiles and loads plugins.
    pub toolchain: Arc<dyn Toolchain>,
    pub registry: Arc<Registry>,
    /// First-party plugins, which deployments refer to by name.
    pub builtins: Vec<BuiltinPlugin>,
    pub observer: Arc<dyn StageObserver>,
    /// Calls the hooks of rollouts.
    pub hooks: Arc<dyn Hooks>,
    /// Asks other servers.
    pub upstreams: Arc<dyn Upstreams>,
}

impl DeployConfig {
    /// Default limits, no first-party plugins, no observer, no hooks, no other
    /// servers.
    pub fn new(store_dir: PathBuf, host: Arc<Host>, registry: Arc<Registry>) -> Self {
        Self {
            store_dir,
            limits: DeployLimits::default(),
            plugin_limits: PluginLimits::default(),
            limits_by_plugin: HashMap::new(),
            toolchain: Arc::new(HostToolchain::new(host)),
            registry,
            builtins: Vec::new(),
            observer: Arc::new(NoObserver),
            hooks: Arc::new(NoHooks),
            upstreams: Arc::new(NoUpstreams),
        }
    }
}

/// A plugin that ships with the server.
#[derive(Clone)]
pub struct BuiltinPlugin {
    /// `onnx`
    pub name: String,
    /// The component.
    pub component: Bytes,
}

/// Bounds of the deployment side.
#[derive(Clone, Debug)]
pub struct DeployLimits {
    /// Bytes of one uploaded file. Default 4 GiB.
    pub max_artifact_bytes: u64,
    /// Files of one deployment, tests included. Default 64.
    pub max_files: usize,
    /// Deployments and loads under way at once; one more is refused. Default 4.
    pub max_concurrent_deployments: usize,
    /// Bytes that all loaded revisions may take together: weights, arenas and
    /// plugin instances, also of those being built or drained. Default 80 % of
    /// the memory of the machine or of the cgroup, whichever is less.
    pub max_model_memory_bytes: u64,
    /// Versions of an endpoint that `gc` keeps, besides the live one and the
    /// one that `rollback` needs. Default 5.
    pub keep_versions: usize,
    /// Lines of the audit log that `gc` keeps. Default 100,000.
    pub keep_audit_entries: u64,
    /// Time that all self-tests of one deployment may take. Default 120 s.
    pub self_test_timeout: Duration,
    /// Time a replaced revision may take to finish its requests before it is
    /// reported as stuck. Default 60 s.
    pub drain_timeout: Duration,
    /// CPU time a deployment may take at ordinary priority; what takes longer
    /// goes on at a low one. Small swaps stay quick on a busy machine, and
    /// slow loads disturb nobody. Default 5 ms.
    pub ordinary_priority_cpu: Duration,
}

impl Default for DeployLimits {
    fn default() -> Self {
        Self {
            max_artifact_bytes: 4 << 30,
            max_files: 64,
            max_concurrent_deployments: 4,
            max_model_memory_bytes: machine_memory_bytes() / 10 * 8,
            keep_versions: 5,
            keep_audit_entries: 100_000,
            self_test_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(60),
            ordinary_priority_cpu: Duration::from_millis(5),
        }
    }
}
