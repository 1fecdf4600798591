//! Versions that another server answers, over HTTP/1.1 or gRPC.

mod client;
mod grpc;
mod health;
mod http;
mod remote;

use client::Client;
use mortise_deploy::{UpstreamModel, UpstreamTarget, Upstreams};
use mortise_serve::Upstream;
use mortise_types::{Error, Result};
use remote::Remote;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Asks servers that speak the Open Inference Protocol.
pub(crate) struct Servers(Handle);

impl Servers {
    /// Requests run on the runtime of `handle`.
    pub(crate) fn new(handle: Handle) -> Self {
        Self(handle)
    }
}

impl Upstreams for Servers {
    fn describe(&self, target: &UpstreamTarget) -> Result<UpstreamModel> {
        let client = Client::new(target)?;
        let deadline = Instant::now() + Duration::from_millis(target.timeout_ms);
        self.0.block_on(client.describe(deadline))
    }

    fn connect(&self, target: &UpstreamTarget, model: UpstreamModel) -> Result<Arc<dyn Upstream>> {
        if model.signature.outputs.is_empty() {
            return Err(Error::invalid("the upstream's model has no outputs"));
        }
        Ok(Remote::start(Client::new(target)?, target, model, &self.0))
    }
}
