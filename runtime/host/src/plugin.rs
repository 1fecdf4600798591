use crate::instance::{Instance, Loaded};
use crate::log::LogGate;
use crate::pool::Pool;
use crate::state::Shared;
use crate::{Compiled, GraphRunner, Host, PluginLimits, PreparedGraph, World};
use mortise_types::{Assets, Error, Result, RunControl, Signature, Tensor, TensorSpec};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A loaded plugin: a pool of warm instances, or only its graph.
pub struct Plugin {
    world: World,
    plan: PluginPlan,
    signature: Signature,
    pool: Option<Arc<Pool>>,
}

/// How requests are answered.
pub enum PluginPlan {
    /// The host runs the graph; no instance is kept.
    Direct(Arc<dyn PreparedGraph>),
    /// [`Plugin::call`] enters an instance for each batch.
    Custom,
}

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
    /// Calls that ran into `call_timeout`, `graph_timeout` or the request's
    /// deadline.
    pub timeouts: u64,
    /// Brief calls that took longer than a moment and were made again.
    pub cut_short: u64,
    /// Calls refused because no instance came free in time, or in quarantine.
    pub refused: u64,
    /// Instances alive now.
    pub instances: usize,
    /// Instances made, first ones and replacements.
    pub instances_made: u64,
    pub quarantines: u64,
    /// The functions that were running at the last trap, the innermost first,
    /// as `f <- g <- h`. Told a moment after the call has failed.
    pub last_trap: Option<Arc<str>>,
    pub log_lines_dropped: u64,
    /// How often each limit of [`PluginLimits`] was hit, by field name.
    pub limits_hit: BTreeMap<&'static str, u64>,
}

impl Plugin {
    /// Makes the instances and runs `load` in each. Blocking: runs for up to
    /// `load_timeout` an instance, and needs 1 MiB of stack.
    ///
    /// # Errors
    /// What `load` returned; `PluginFailed` on a trap; `LimitExceeded` naming
    /// the limit that was hit.
    pub fn load(host: &Arc<Host>, compiled: &Compiled, request: LoadRequest) -> Result<Arc<Self>> {
        let LoadRequest { plugin, endpoint, config_json, assets, limits, runner } = request;
        let log = LogGate::new(limits.log_lines_per_second);
        let limits = Arc::new(limits);
        let limits_hit = Default::default();
        let shared = Arc::new(Shared { plugin, endpoint, assets, limits, runner, log, limits_hit });
        let world = compiled.world();
        let (first, loaded) = load_first(host, compiled, &shared, &config_json)?;
        let plugin = match loaded {
            Loaded::Direct(graph) => {
                let signature = graph.signature().clone();
                Self { world, plan: PluginPlan::Direct(graph), signature, pool: None }
            }
            Loaded::Custom(signature) => {
                check_signature(&shared, &signature)?;
                let first = (first, signature.clone());
                let pool = Pool::fill(host.clone(), compiled.clone(), shared, config_json, first)?;
                Self { world, plan: PluginPlan::Custom, signature, pool: Some(pool) }
            }
        };
        Ok(Arc::new(plugin))
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
    /// answered, and needs 1 MiB of stack. The inputs must fit
    /// [`Plugin::signature`]. A brief `control` ([`RunControl::brief`]) waits for
    /// no instance and stops the plugin after a moment.
    ///
    /// # Errors
    /// What the plugin returned; `PluginFailed` on a trap or an answer that
    /// does not fit the signature; `Deadline` when `control`'s deadline passed,
    /// `LimitExceeded` naming any other limit that was hit; `Overloaded` when
    /// no instance came free in time; `NotReady` in quarantine.
    pub fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        match (&self.plan, &self.pool) {
            (PluginPlan::Direct(graph), _) => graph.run(inputs, control),
            (PluginPlan::Custom, Some(pool)) => pool.call(inputs, control),
            (PluginPlan::Custom, None) => Err(Error::internal("a custom plan without a pool")),
        }
    }

    pub fn health(&self) -> PluginHealth {
        self.pool.as_ref().map_or(PluginHealth::Ready, |pool| pool.health())
    }

    pub fn stats(&self) -> PluginStats {
        self.pool.as_ref().map(|pool| pool.stats()).unwrap_or_default()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.close();
        }
    }
}

fn load_first(
    host: &Host,
    compiled: &Compiled,
    shared: &Arc<Shared>,
    config_json: &str,
) -> Result<(Instance, Loaded)> {
    let load = || {
        let mut instance = Instance::new(host, &compiled.code, compiled.world(), shared)?;
        let loaded = instance.load(config_json)?;
        Ok((instance, loaded))
    };
    load().map_err(|failure: crate::failure::Failure| failure.error)
}

/// Refuses a signature that no request could fit.
fn check_signature(shared: &Shared, signature: &Signature) -> Result<()> {
    let wrong = |what: String| {
        let Shared { plugin, endpoint, .. } = shared;
        Error::plugin(format!(
            "plugin \"{plugin}\" of endpoint \"{endpoint}\" returned a bad signature: {what}"
        ))
    };
    for (side, specs) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        if specs.is_empty() {
            return Err(wrong(format!("it has no {side}")));
        }
        let mut names = HashSet::new();
        for spec in specs {
            if !names.insert(&spec.name) {
                return Err(wrong(format!("two {side}s are named \"{}\"", spec.name)));
            }
            let may_vary = side == "output" && spec.has_any_rank();
            check_spec(spec, may_vary)
                .map_err(|what| wrong(format!("{side} \"{}\" {what}", spec.name)))?;
        }
    }
    Ok(())
}

fn check_spec(spec: &TensorSpec, any_rank: bool) -> std::result::Result<(), String> {
    if spec.name.is_empty() {
        return Err("has no name".into());
    }
    if spec.dtype.wire_name().is_none() {
        return Err(format!("has the dtype {}, which cannot cross the wire", spec.dtype));
    }
    if any_rank {
        return Ok(());
    }
    match spec.shape.iter().find(|&&dim| dim < -1) {
        Some(dim) => Err(format!("has the size {dim}; -1 means any")),
        None => Ok(()),
    }
}
