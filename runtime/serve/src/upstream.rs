use crate::stage::{CustomStage, Stage, StageRun};
use mortise_host::{PluginHealth, PluginStats};
use mortise_types::{Result, RunControl, Signature, Tensor, TraceContext};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Another server that answers in the place of a model here. Who implements it
/// bounds what is under way, and reuses connections.
pub trait Upstream: Send + Sync {
    fn signature(&self) -> &Signature;

    /// Inputs and outputs in the order of the signature. Dropping the future
    /// gives the request up. The server is told of `trace`.
    ///
    /// # Errors
    /// `Deadline` at `deadline`; `NotReady` when the server cannot be reached,
    /// breaks off, or takes longer than it may; else what it answers.
    fn infer<'a>(
        &'a self,
        inputs: Vec<Tensor>,
        deadline: Instant,
        trace: Option<&'a TraceContext>,
    ) -> UpstreamAnswer<'a>;

    /// As [`Upstream::infer`] without a trace, on the calling thread, which must
    /// not be one that serves.
    ///
    /// # Errors
    /// As [`Upstream::infer`].
    fn infer_blocking(&self, inputs: Vec<Tensor>, deadline: Instant) -> Result<Vec<Tensor>>;

    /// Whether requests are worth sending.
    fn health(&self) -> PluginHealth;
}

/// Outputs that are on their way.
pub type UpstreamAnswer<'a> = Pin<Box<dyn Future<Output = Result<Vec<Tensor>>> + Send + 'a>>;

/// Of a call that brings no deadline: warm-up and self-tests bring one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl Stage {
    /// The stage that asks another server. `digest` is that of its description.
    pub fn upstream(digest: &str, upstream: Arc<dyn Upstream>) -> Self {
        Self {
            name: "upstream".to_string(),
            digest: digest.to_string(),
            transforms: Vec::new(),
            signature: upstream.signature().clone(),
            run: StageRun::Custom(Arc::new(Remote(upstream))),
        }
    }
}

struct Remote(Arc<dyn Upstream>);

/// Behind transforms, in shadows, self-tests and warm-ups. Other requests wait
/// without a thread.
impl CustomStage for Remote {
    fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        let deadline = control.deadline().unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT);
        self.0.infer_blocking(inputs, deadline)
    }

    fn health(&self) -> PluginHealth {
        self.0.health()
    }

    fn stats(&self) -> PluginStats {
        PluginStats::default()
    }

    fn as_upstream(&self) -> Option<&dyn Upstream> {
        Some(&*self.0)
    }
}
