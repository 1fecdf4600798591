use mortise_host::{
    Compiled, Host, LoadRequest, Plugin, PolicyRequest, RouteVariant, RouterPlugin, StrategyPlugin,
    Verified, World,
};
use mortise_serve::Stage;
use mortise_types::{Bytes, Error, Result};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Turns components into stages of a revision. The real one is [`HostToolchain`];
/// tests bring their own.
pub trait Toolchain: Send + Sync {
    /// Checks a component against the contract. `digest` is that of its bytes.
    ///
    /// # Errors
    /// When the component fits no world.
    fn verify(&self, digest: &str, component: Bytes) -> Result<Box<dyn VerifiedPlugin>>;
}

/// A component that fits a world.
pub trait VerifiedPlugin: Send {
    fn world(&self) -> World;
    /// Whether compiling costs nothing, since it was done before.
    fn is_compiled(&self) -> bool;
    /// # Errors
    /// When the component does not compile within the limits.
    fn compile(self: Box<Self>) -> Result<Box<dyn CompiledPlugin>>;
}

/// A component with its machine code.
pub trait CompiledPlugin: Send {
    /// # Errors
    /// What the plugin's `load` reports, or the limit that it hit.
    fn load(&self, request: LoadRequest) -> Result<Stage>;

    /// Configures a router for these variants.
    ///
    /// # Errors
    /// What the plugin reports, or the limit that it hit.
    fn router(
        &self,
        request: PolicyRequest,
        variants: Vec<RouteVariant>,
    ) -> Result<Arc<RouterPlugin>> {
        let _ = variants;
        Err(Error::unsupported(format!("\"{}\" cannot route", request.plugin)))
    }

    /// # Errors
    /// What the plugin reports, or the limit that it hit.
    fn strategy(&self, request: PolicyRequest) -> Result<StrategyPlugin> {
        Err(Error::unsupported(format!("\"{}\" is no strategy", request.plugin)))
    }
}

/// [`Toolchain`] over the plugin host. Remembers the newest components it
/// compiled, so that a swap between known plugins compiles nothing.
pub struct HostToolchain {
    host: Arc<Host>,
    recent: Arc<Mutex<VecDeque<Compiled>>>,
}

impl HostToolchain {
    /// Components whose machine code is kept in memory.
    const MAX_RECENT: usize = 32;

    pub fn new(host: Arc<Host>) -> Self {
        Self { host, recent: Arc::default() }
    }

    fn recall(&self, digest: &str) -> Option<Compiled> {
        self.recent.lock().iter().find(|compiled| **compiled.digest() == *digest).cloned()
    }
}

impl Toolchain for HostToolchain {
    fn verify(&self, digest: &str, component: Bytes) -> Result<Box<dyn VerifiedPlugin>> {
        let state = match self.recall(digest) {
            Some(compiled) => State::Compiled(compiled),
            None => State::Verified(self.host.verify(component)?),
        };
        Ok(Box::new(HostPlugin { host: self.host.clone(), recent: self.recent.clone(), state }))
    }
}

struct HostPlugin {
    host: Arc<Host>,
    recent: Arc<Mutex<VecDeque<Compiled>>>,
    state: State,
}

enum State {
    Verified(Verified),
    Compiled(Compiled),
}

impl VerifiedPlugin for HostPlugin {
    fn world(&self) -> World {
        match &self.state {
            State::Verified(verified) => verified.world(),
            State::Compiled(compiled) => compiled.world(),
        }
    }

    fn is_compiled(&self) -> bool {
        matches!(self.state, State::Compiled(_))
    }

    fn compile(self: Box<Self>) -> Result<Box<dyn CompiledPlugin>> {
        let compiled = match self.state {
            State::Compiled(compiled) => compiled,
            State::Verified(verified) => {
                let compiled = self.host.compile(&verified)?;
                let mut recent = self.recent.lock();
                recent.truncate(HostToolchain::MAX_RECENT - 1);
                recent.push_front(compiled.clone());
                compiled
            }
        };
        Ok(Box::new(HostCode { host: self.host, compiled }))
    }
}

struct HostCode {
    host: Arc<Host>,
    compiled: Compiled,
}

impl CompiledPlugin for HostCode {
    fn load(&self, request: LoadRequest) -> Result<Stage> {
        let name = request.plugin.clone();
        let plugin = Plugin::load(&self.host, &self.compiled, request)?;
        Ok(Stage::from_plugin(&name, self.compiled.digest(), &plugin))
    }

    fn router(
        &self,
        request: PolicyRequest,
        variants: Vec<RouteVariant>,
    ) -> Result<Arc<RouterPlugin>> {
        RouterPlugin::load(&self.host, &self.compiled, request, variants)
    }

    fn strategy(&self, request: PolicyRequest) -> Result<StrategyPlugin> {
        StrategyPlugin::load(&self.host, &self.compiled, request)
    }
}
