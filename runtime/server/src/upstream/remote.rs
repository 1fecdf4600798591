use super::client::{Client, Question, Reply};
use super::health::Health;
use mortise_deploy::{UpstreamModel, UpstreamTarget};
use mortise_host::PluginHealth;
use mortise_serve::{Upstream, UpstreamAnswer};
use mortise_types::{Error, ErrorKind, Result, Signature, Tensor, TraceContext};
use mortise_wire::{NamedTensor, WireLimits};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// A model of another server.
pub(super) struct Remote {
    client: Client,
    model: UpstreamModel,
    /// One for each request under way.
    permits: Semaphore,
    max_concurrent: usize,
    health: Health,
    handle: Handle,
}

impl Remote {
    /// Checks its readiness from now on until it is dropped.
    pub(super) fn start(
        client: Client,
        target: &UpstreamTarget,
        model: UpstreamModel,
        handle: &Handle,
    ) -> Arc<Self> {
        let check_every = Duration::from_millis(target.check_every_ms);
        let remote = Arc::new(Self {
            client,
            model,
            permits: Semaphore::new(target.max_concurrent),
            max_concurrent: target.max_concurrent,
            health: Health::new(check_every, Instant::now()),
            handle: handle.clone(),
        });
        handle.spawn(check_until_dropped(Arc::downgrade(&remote), check_every));
        remote
    }

    async fn ask(
        &self,
        inputs: Vec<Tensor>,
        deadline: Instant,
        trace: Option<&TraceContext>,
    ) -> Result<Vec<Tensor>> {
        let permit = tokio::time::timeout_at(deadline.into(), self.permits.acquire());
        // Nobody closes the semaphore.
        let Ok(Ok(_permit)) = permit.await else {
            return Err(Error::deadline(format!(
                "{} requests to {} were under way until the deadline (max_concurrent = {})",
                self.max_concurrent,
                self.client.url(),
                self.max_concurrent
            )));
        };
        let specs = &self.model.signature.inputs;
        let named: Vec<(&str, Tensor)> =
            specs.iter().map(|spec| spec.name.as_str()).zip(inputs).collect();
        let question = Question { inputs: &named, is_binary: self.model.is_binary, trace };
        let reply = self.client.infer(question, deadline).await;
        let reply = reply.map_err(|error| self.about(error));
        self.note(&reply);
        let outputs = reply?.outputs(&WireLimits::default());
        let outputs = outputs.and_then(|outputs| self.in_order(outputs));
        // Malformed is the server's fault, not the request's.
        outputs.map_err(|error| {
            error
                .context(format_args!("the answer of {}", self.client.url()))
                .with_kind(ErrorKind::PluginFailed)
        })
    }

    fn about(&self, error: Error) -> Error {
        error.context(format_args!("upstream {}", self.client.url()))
    }

    /// The outputs in the order of the signature.
    fn in_order(&self, outputs: Vec<NamedTensor>) -> Result<Vec<Tensor>> {
        let find = |name: &str| {
            let found = outputs.iter().find(|output| output.name == name);
            let found = found.ok_or_else(|| Error::invalid(format!("has no output \"{name}\"")))?;
            Ok(found.tensor.clone())
        };
        self.model.signature.outputs.iter().map(|spec| find(&spec.name)).collect()
    }

    /// What a request says about the server's health: refusals of the request
    /// itself say nothing against it.
    fn note(&self, reply: &Result<Reply>) {
        match reply {
            Err(error) if error.kind() == ErrorKind::NotReady => self.failed(error.message()),
            Err(error) if error.kind() == ErrorKind::Deadline => self.failed(error.message()),
            _ => self.health.succeeded(),
        }
    }

    fn failed(&self, reason: &str) {
        if self.health.failed(reason) {
            let url = self.client.url();
            tracing::warn!(url, reason, "an upstream is out of service until it is ready again");
        }
    }

    async fn check(&self, check_every: Duration) {
        let now = Instant::now();
        self.health.checking(now);
        let deadline = now + check_every.max(MIN_CHECK_TIME);
        match self.client.check_ready(deadline).await {
            Ok(()) => self.health.succeeded(),
            Err(error) => self.failed(self.about(error).message()),
        }
    }
}

/// A check may always take this long.
const MIN_CHECK_TIME: Duration = Duration::from_secs(1);

async fn check_until_dropped(remote: Weak<Remote>, check_every: Duration) {
    loop {
        tokio::time::sleep(check_every).await;
        let Some(remote) = remote.upgrade() else { return };
        remote.check(check_every).await;
    }
}

impl Upstream for Remote {
    fn signature(&self) -> &Signature {
        &self.model.signature
    }

    fn infer<'a>(
        &'a self,
        inputs: Vec<Tensor>,
        deadline: Instant,
        trace: Option<&'a TraceContext>,
    ) -> UpstreamAnswer<'a> {
        Box::pin(self.ask(inputs, deadline, trace))
    }

    fn infer_blocking(&self, inputs: Vec<Tensor>, deadline: Instant) -> Result<Vec<Tensor>> {
        self.handle.block_on(self.ask(inputs, deadline, None))
    }

    fn health(&self) -> PluginHealth {
        self.health.now(Instant::now())
    }
}
