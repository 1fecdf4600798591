//! What the protocol means, whatever carries it: HTTP and gRPC both answer
//! from here.

pub(crate) mod infer;
pub(crate) mod logging;
pub(crate) mod models;
pub(crate) mod receiving;
pub(crate) mod regions;
#[cfg(test)]
pub(crate) mod testing;

use crate::app::App;
use crate::auth::ApiKeys;
use crate::trace::Tracer;
use logging::LogControl;
use mortise_observe::Observer;
use mortise_serve::Registry;
use mortise_types::{Error, Result};
use mortise_wire::WireLimits;
use receiving::BodyBudget;
use regions::Regions;
use std::sync::Arc;

/// What the data plane answers from.
pub(crate) struct Plane {
    pub(crate) registry: Arc<Registry>,
    pub(crate) limits: WireLimits,
    pub(crate) observer: Arc<Observer>,
    pub(crate) tracer: Arc<Tracer>,
    /// Who may ask for anything but the server's health; everybody without it.
    pub(crate) keys: Option<Arc<ApiKeys>>,
    pub(crate) control: Arc<dyn Control>,
    /// What is being received, over all listeners.
    pub(crate) receiving: Arc<BodyBudget>,
    /// Registered shared memory.
    pub(crate) regions: Arc<Regions>,
    pub(crate) logging: Arc<LogControl>,
    pub(crate) permits: Permits,
}

/// What clients may do on the data ports besides asking.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Permits {
    /// Load and unload models.
    pub(crate) repository_control: bool,
    /// Change what is logged and traced.
    pub(crate) settings_control: bool,
}

/// What the data plane asks of the server around it.
pub(crate) trait Control: Send + Sync {
    fn is_ready(&self) -> bool;

    /// Blocks until the model is live.
    fn load(&self, name: &str) -> Result<()>;

    fn unload(&self, name: &str) -> Result<()>;
}

/// Who the audit log names for loads and unloads on the data port.
const WHO: &str = "repository control on the data port";

impl Control for App {
    fn is_ready(&self) -> bool {
        App::is_ready(self)
    }

    fn load(&self, name: &str) -> Result<()> {
        self.deployer.load(name, WHO).map(drop)
    }

    fn unload(&self, name: &str) -> Result<()> {
        self.deployer.unload(name, WHO).map(drop)
    }
}

impl Plane {
    pub(crate) fn new(app: Arc<App>, logging: Arc<LogControl>) -> Self {
        Self {
            registry: app.registry.clone(),
            limits: WireLimits::default(),
            observer: app.observer.clone(),
            tracer: app.tracer.clone(),
            keys: app.keys.clone(),
            receiving: BodyBudget::new(app.config.max_buffered_body_bytes),
            regions: Arc::new(Regions::new(app.config.shared_memory.clone())),
            logging,
            permits: app.config.permits,
            control: app,
        }
    }

    /// Loads or unloads a model, on a thread that may block.
    ///
    /// # Errors
    /// `Forbidden` unless the configuration allows it, and what the action says.
    pub(crate) async fn repository(
        &self,
        name: &str,
        action: fn(&dyn Control, &str) -> Result<()>,
    ) -> Result<()> {
        if !self.permits.repository_control {
            return Err(Error::forbidden(
                "loading and unloading on the data port is switched off; set \
                 http.repository_control = true, or use the admin API",
            ));
        }
        let (control, name) = (self.control.clone(), name.to_owned());
        off_worker(true, move || action(&*control, &name)).await?
    }

    /// # Errors
    /// `Forbidden` unless settings may be changed on the data ports.
    pub(crate) fn permit_settings(&self) -> Result<()> {
        match self.permits.settings_control {
            true => Ok(()),
            false => Err(Error::forbidden(
                "changing settings on the data port is switched off; set \
                 http.settings_control = true",
            )),
        }
    }
}

/// Work on more bytes than this leaves the thread that serves connections:
/// about a tenth of a millisecond of decoding.
const LARGE_BYTES: usize = 64 * 1024;

/// Whether work on `bytes` is too long for a thread that serves connections.
pub(crate) fn is_large(bytes: usize) -> bool {
    bytes > LARGE_BYTES
}

/// Runs `work` here, or on a thread that may block when it is `heavy`.
///
/// # Errors
/// `Internal` when the work panicked.
pub(crate) async fn off_worker<T: Send + 'static>(
    heavy: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if !heavy {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("a background task failed: {error}")))
}
