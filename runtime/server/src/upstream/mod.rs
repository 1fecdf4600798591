//! Versions that another server answers, over HTTP/1.1.

mod client;
mod health;
mod remote;

use client::Client;
use mortise_deploy::{UpstreamModel, UpstreamTarget, Upstreams};
use mortise_serve::Upstream;
use mortise_types::{Error, Result};
use mortise_wire::{decode_extensions, decode_metadata};
use remote::Remote;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// The extension by which a server says that it takes binary tensors.
const BINARY_EXTENSION: &str = "binary_tensor_data";

/// Asks servers that speak the Open Inference Protocol.
pub(crate) struct HttpUpstreams(Handle);

impl HttpUpstreams {
    /// Requests run on the runtime of `handle`.
    pub(crate) fn new(handle: Handle) -> Self {
        Self(handle)
    }
}

impl Upstreams for HttpUpstreams {
    fn describe(&self, target: &UpstreamTarget) -> Result<UpstreamModel> {
        let client = Client::new(target)?;
        let deadline = Instant::now() + Duration::from_millis(target.timeout_ms);
        self.0.block_on(async {
            let about_model = client.get(client.model_path(), deadline).await?.success()?;
            let about_server = client.get("/v2", deadline).await?.success()?;
            let extensions = decode_extensions(&about_server.body);
            Ok(UpstreamModel {
                signature: decode_metadata(&about_model.body)?,
                is_binary: extensions.iter().any(|name| name == BINARY_EXTENSION),
            })
        })
    }

    fn connect(&self, target: &UpstreamTarget, model: UpstreamModel) -> Result<Arc<dyn Upstream>> {
        if model.signature.outputs.is_empty() {
            return Err(Error::invalid("the upstream's model has no outputs"));
        }
        Ok(Remote::start(Client::new(target)?, target, model, &self.0))
    }
}
