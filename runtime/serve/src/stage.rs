use crate::ensemble::Ensemble;
use crate::runner::CompiledGraph;
use crate::upstream::Upstream;
use mortise_host::{Plugin, PluginHealth, PluginPlan, PluginStats, PreparedGraph};
use mortise_types::{Result, RunControl, Signature, Tensor};
use std::sync::Arc;

/// One step of a revision: a transform or the model.
pub struct Stage {
    /// Name of the plugin, for messages and status.
    pub name: String,
    /// Digest of the plugin's component, `sha256:<hex>`.
    pub digest: String,
    /// Plugins whose graphs are fused in front of this one's, in order.
    pub transforms: Vec<String>,
    pub signature: Signature,
    pub run: StageRun,
}

/// How a stage answers.
pub enum StageRun {
    /// The host runs a graph; no plugin is entered.
    Direct(Arc<dyn PreparedGraph>),
    /// A plugin is called, on a thread that may block.
    Custom(Arc<dyn CustomStage>),
}

/// A plugin that answers requests itself; implemented by [`Plugin`].
pub trait CustomStage: Send + Sync {
    /// Inputs and outputs in the order of the stage's signature.
    ///
    /// # Errors
    /// What the plugin reports, or the limit that it hit.
    fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>>;

    /// Whether [`CustomStage::call`] heeds a control that is brief
    /// ([`RunControl::brief`]): it then never holds its thread for longer than
    /// a moment.
    fn can_be_brief(&self) -> bool {
        false
    }

    fn health(&self) -> PluginHealth;

    /// Counts since the plugin was loaded.
    fn stats(&self) -> PluginStats;

    /// The ensemble that this is, if it is one.
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "only this crate makes ensembles")]
    fn as_ensemble(&self) -> Option<&Ensemble> {
        None
    }

    /// The other server that this asks, if it asks one.
    fn as_upstream(&self) -> Option<&dyn Upstream> {
        None
    }
}

impl CustomStage for Plugin {
    fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        Plugin::call(self, inputs, control)
    }

    fn can_be_brief(&self) -> bool {
        true
    }

    fn health(&self) -> PluginHealth {
        Plugin::health(self)
    }

    fn stats(&self) -> PluginStats {
        Plugin::stats(self)
    }
}

impl Stage {
    /// The stage that a loaded plugin asks for. A plugin whose plan is a graph
    /// is let go here: only its graph serves.
    pub fn from_plugin(name: &str, digest: &str, plugin: &Arc<Plugin>) -> Self {
        let run = match plugin.plan() {
            PluginPlan::Direct(graph) => StageRun::Direct(graph.clone()),
            PluginPlan::Custom => StageRun::Custom(plugin.clone()),
        };
        let signature = plugin.signature().clone();
        let (name, digest) = (name.to_string(), digest.to_string());
        Self { name, digest, transforms: Vec::new(), signature, run }
    }

    /// The plugins that this stage is made of, in the order of their graphs.
    pub fn plugins(&self) -> impl Iterator<Item = &str> {
        self.transforms.iter().chain([&self.name]).map(String::as_str)
    }

    /// `true` when a plugin is entered for each request.
    pub fn is_custom(&self) -> bool {
        matches!(self.run, StageRun::Custom(_))
    }

    /// Whether a run holds its thread for no longer than a moment, or than was
    /// predicted.
    pub(crate) fn can_be_brief(&self) -> bool {
        match &self.run {
            StageRun::Direct(_) => true,
            StageRun::Custom(plugin) => plugin.can_be_brief(),
        }
    }

    /// Bytes of weights and working memory that the stage's graph needs; 0 for
    /// a custom stage, whose memory is bounded by its plugin's limits.
    pub fn memory_bytes(&self) -> u64 {
        self.graph().map_or(0, |graph| graph.memory_bytes())
    }

    /// The graph that answers; `None` for a custom stage.
    pub fn graph(&self) -> Option<Arc<CompiledGraph>> {
        let StageRun::Direct(graph) = &self.run else { return None };
        graph.clone().as_any().downcast().ok()
    }

    /// `int8`: what the weights of the stage's graph were put into, if they were.
    pub fn precision(&self) -> Option<&'static str> {
        self.graph()?.precision().map(|precision| precision.name())
    }

    /// Whether the device has proven that rows do not mix.
    pub(crate) fn rows_independent(&self) -> bool {
        match &self.run {
            StageRun::Direct(graph) => graph.rows_independent(),
            StageRun::Custom(_) => false,
        }
    }

    /// Counts of a custom stage's plugin since it was loaded.
    pub fn plugin_stats(&self) -> Option<PluginStats> {
        match &self.run {
            StageRun::Direct(_) => None,
            StageRun::Custom(plugin) => Some(plugin.stats()),
        }
    }

    pub(crate) fn as_ensemble(&self) -> Option<&Ensemble> {
        match &self.run {
            StageRun::Direct(_) => None,
            StageRun::Custom(plugin) => plugin.as_ensemble(),
        }
    }

    pub(crate) fn as_upstream(&self) -> Option<&dyn Upstream> {
        match &self.run {
            StageRun::Direct(_) => None,
            StageRun::Custom(plugin) => plugin.as_upstream(),
        }
    }

    pub(crate) fn execute(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        match &self.run {
            StageRun::Direct(graph) => graph.run(inputs, control),
            StageRun::Custom(plugin) => plugin.call(inputs, control),
        }
    }

    pub(crate) fn health(&self) -> PluginHealth {
        match &self.run {
            StageRun::Direct(_) => PluginHealth::Ready,
            StageRun::Custom(plugin) => plugin.health(),
        }
    }
}
