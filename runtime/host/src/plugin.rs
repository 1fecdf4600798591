use crate::{Compiled, GraphRunner, Host, PluginLimits, PreparedGraph, World};
use mortise_types::{Assets, Error, Result, RunControl, Signature, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What [`Plugin::load`] needs besides the machine code.
pub struct LoadRequest {
    /// Name of the plugin, for messages and logs.
    pub plugin: String,
    /// Name of the endpoint it serves, for messages and logs.
    pub endpoint: String,
    /// The configuration of the deployment: a JSON object.
    pub config_json: String,
    pub assets: Assets,
    pub limits: PluginLimits,
    pub runner: Arc<dyn GraphRunner>,
}

/// A loaded plugin: a pool of warm instances, or only its graph.
pub struct Plugin {
    world: World,
    plan: PluginPlan,
    signature: Signature,
}

/// How requests are answered.
pub enum PluginPlan {
    /// The host runs the graph; no instance is kept.
    Direct(Arc<dyn PreparedGraph>),
    /// [`Plugin::call`] enters an instance for each batch.
    Custom,
}

/// Whether a plugin can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginHealth {
    Ready,
    /// Calls are refused until `retry_in` has passed; then one instance is
    /// made to try it again.
    Quarantined {
        reason: String,
        retry_in: Duration,
    },
}

/// Counts since the plugin was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginStats {
    /// Calls that reached an instance.
    pub calls: u64,
    /// Calls that ended in a trap, a panic among them.
    pub traps: u64,
    /// Calls that ran into `call_timeout` or the request's deadline.
    pub timeouts: u64,
    /// Calls refused because no instance came free in time.
    pub refused: u64,
    /// Instances alive now.
    pub instances: usize,
    /// Instances made, first ones and replacements.
    pub instances_made: u64,
    pub quarantines: u64,
    pub log_lines_dropped: u64,
    /// How often each limit of [`PluginLimits`] was hit, by field name.
    pub limits_hit: BTreeMap<&'static str, u64>,
}

impl Plugin {
    /// Makes the instances and runs `load` in each. Blocking: runs for up to
    /// `load_timeout` an instance.
    ///
    /// # Errors
    /// What `load` returned, or `PluginFailed` on a trap and `LimitExceeded`
    /// naming the limit that was hit.
    pub fn load(host: &Arc<Host>, compiled: &Compiled, request: LoadRequest) -> Result<Arc<Self>> {
        let _ = (host, compiled, request);
        Err(Error::unsupported("load"))
    }

    pub fn world(&self) -> World {
        self.world
    }

    pub fn plan(&self) -> &PluginPlan {
        &self.plan
    }

    /// Inputs and outputs in the order of [`Plugin::call`].
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Answers one batch: `predict` of a model, `apply` of a transform, or the
    /// graph of a direct plan. Blocks until an instance is free and has
    /// answered. The inputs must fit [`Plugin::signature`].
    ///
    /// # Errors
    /// What the plugin returned; `PluginFailed` on a trap or an answer that
    /// does not fit the signature; `Deadline` when `control`'s deadline passed,
    /// `LimitExceeded` naming any other limit that was hit; `Overloaded` when
    /// no instance came free in time; `NotReady` in quarantine.
    pub fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        match &self.plan {
            PluginPlan::Direct(graph) => graph.run(inputs, control),
            PluginPlan::Custom => Err(Error::unsupported("call")),
        }
    }

    pub fn health(&self) -> PluginHealth {
        PluginHealth::Ready
    }

    pub fn stats(&self) -> PluginStats {
        PluginStats::default()
    }
}
