use mortise_types::{Assets, GraphDef, Result, RunControl, Signature, Tensor};
use std::any::Any;
use std::sync::Arc;

/// Compiles the graphs that plugins describe. Implemented above this crate,
/// over a device.
pub trait GraphRunner: Send + Sync {
    /// Checks and compiles `def`. Every instance of a plugin calls this with
    /// the same graph: implementations return the same object for equal graphs
    /// and assets.
    ///
    /// # Errors
    /// `Unsupported` names every operator that is not implemented.
    /// `LimitExceeded` when it takes more of the device than `budget`.
    fn prepare(
        &self,
        def: &GraphDef,
        assets: &Assets,
        budget: GraphBudget,
    ) -> Result<Arc<dyn PreparedGraph>>;
}

/// What one graph of a plugin may take of the device; see
/// [`crate::PluginLimits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphBudget {
    pub max_device_bytes: u64,
    pub max_dispatches: u64,
}

/// A compiled graph.
pub trait PreparedGraph: Send + Sync {
    fn signature(&self) -> &Signature;

    /// Runs the graph: inputs and outputs in the signature's order.
    ///
    /// # Errors
    /// `InvalidInput` on a wrong count, dtype or shape, `Deadline` and
    /// `LimitExceeded` when `control` says so.
    fn run(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>>;

    /// Whether rows of several requests may be put into one run: dimension 0 of
    /// every input and output is the batch, and no operator mixes rows.
    fn rows_independent(&self) -> bool {
        false
    }

    /// For the implementor of [`GraphRunner`] to get its own type back.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}
