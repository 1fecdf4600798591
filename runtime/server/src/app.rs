use crate::auth::ApiKeys;
use crate::config::Resolved;
use crate::net::Tls;
use crate::trace::Tracer;
use anyhow::Result;
use mortise_deploy::Deployer;
use mortise_observe::Observer;
use mortise_serve::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// What every listener shares.
pub(crate) struct App {
    pub(crate) registry: Arc<Registry>,
    pub(crate) deployer: Arc<Deployer>,
    pub(crate) config: Resolved,
    pub(crate) observer: Arc<Observer>,
    pub(crate) tracer: Arc<Tracer>,
    pub(crate) keys: Option<Arc<ApiKeys>>,
    pub(crate) tls: Option<Arc<Tls>>,
    draining: AtomicBool,
}

impl App {
    /// # Errors
    /// When certificates or API keys are configured and cannot be used.
    pub(crate) fn new(
        registry: Arc<Registry>,
        deployer: Arc<Deployer>,
        config: Resolved,
    ) -> Result<Self> {
        let observer = Arc::new(Observer::new());
        Ok(Self {
            tracer: Tracer::new(config.tracing.as_ref(), observer.traces.clone())?,
            registry,
            deployer,
            observer,
            keys: config.api_keys.clone().map(ApiKeys::load).transpose()?,
            tls: config.tls.clone().map(Tls::load).transpose()?,
            config,
            draining: AtomicBool::new(false),
        })
    }

    /// Whether the server takes requests: it does from the moment it listens
    /// until it is told to stop. An endpoint that is not ready does not change
    /// this.
    pub(crate) fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// Tells tasks that the server is stopping. Each listener has its own.
#[derive(Clone)]
pub(crate) struct Shutdown(watch::Receiver<bool>);

/// The other end of every [`Shutdown`].
pub(crate) struct ShutdownTrigger(watch::Sender<bool>);

impl Shutdown {
    pub(crate) fn new() -> (ShutdownTrigger, Self) {
        let (trigger, shutdown) = watch::channel(false);
        (ShutdownTrigger(trigger), Self(shutdown))
    }

    /// Returns when the server begins to stop, at once if it already has.
    pub(crate) async fn requested(&mut self) {
        // A dropped trigger means the same: nobody is left to stop us later.
        let _ = self.0.wait_for(|&stopping| stopping).await;
    }
}

impl ShutdownTrigger {
    pub(crate) fn stop(&self) {
        self.0.send_replace(true);
    }
}
