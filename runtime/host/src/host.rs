use crate::cache::Cache;
use crate::clock::TickClock;
use crate::engine::{Engines, Flavour};
use crate::state::State;
use crate::{HostConfig, compile, verify, wasi};
use mortise_types::{Bytes, Error, Result};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use wasmtime::component::{Component, InstancePre};

/// The engine that all plugins run on, with its artifact cache.
pub struct Host {
    config: HostConfig,
    engines: Engines,
    compatibility: u64,
    cache: Cache,
    /// Machine code in use: endpoints that serve one plugin share it.
    loaded: Mutex<HashMap<Arc<str>, Weak<Code>>>,
}

/// Which contract a component implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum World {
    /// Exports `model-api`: `load` and `predict`.
    Model,
    /// Exports `transform-api`: `load` and `apply`.
    Transform,
    /// Exports `router-api`: `configure`, `route`, `learn` and `install`.
    Router,
    /// Exports `strategy-api`: `begin` and `evaluate`.
    Strategy,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            World::Model => "model",
            World::Transform => "transform",
            World::Router => "router",
            World::Strategy => "strategy",
        })
    }
}

/// A component that was checked against the contract.
#[derive(Clone)]
pub struct Verified {
    pub(crate) world: World,
    pub(crate) digest: Arc<str>,
    pub(crate) component: Bytes,
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
    pub(crate) code: Arc<Code>,
}

impl Compiled {
    pub fn world(&self) -> World {
        self.world
    }

    /// `sha256:<hex>` of the component.
    pub fn digest(&self) -> &Arc<str> {
        &self.digest
    }

    /// Whether the machine code was there already, in memory or in the cache.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }
}

/// Machine code, linked for each engine that it was needed on.
pub(crate) struct Code {
    /// `None` when the component is too large for a slot.
    pub pooled: Option<InstancePre<State>>,
    spare: OnceLock<Result<InstancePre<State>>>,
}

impl Host {
    /// Starts the engine and its clock thread and opens the artifact cache.
    ///
    /// # Errors
    /// `Internal` when the cache folder cannot be made private or the engine
    /// cannot reserve its memory.
    pub fn new(config: HostConfig) -> Result<Arc<Self>> {
        let engines = Engines::new(config.max_instances)?;
        let cache = Cache::open(&config.cache_dir, config.max_cache_bytes)?;
        let compatibility = engines.compatibility();
        Ok(Arc::new(Self { config, engines, compatibility, cache, loaded: Mutex::default() }))
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
        let features = self.engines.pooled.engine.get_wasm_features();
        verify::verify(component, features, self.config.max_component_bytes)
    }

    /// Takes the machine code from the cache, or compiles in a child process.
    /// Blocking.
    ///
    /// # Errors
    /// `LimitExceeded` naming the limit of [`crate::CompileLimits`] that was
    /// hit, `InvalidInput` when the component does not compile, `Internal`
    /// when the child cannot be started.
    pub fn compile(&self, verified: &Verified) -> Result<Compiled> {
        let compiled = |from_cache, code| Compiled {
            world: verified.world,
            digest: verified.digest.clone(),
            from_cache,
            code,
        };
        if let Some(code) = self.loaded(&verified.digest) {
            return Ok(compiled(true, code));
        }
        let (from_cache, code) = self.code_of(verified)?;
        Ok(compiled(from_cache, self.share(&verified.digest, code)))
    }

    /// The clock that deadlines of plugins are counted on.
    pub(crate) fn clock(&self) -> &TickClock {
        &self.engines.clock
    }

    fn loaded(&self, digest: &str) -> Option<Arc<Code>> {
        self.loaded.lock().get(digest)?.upgrade()
    }

    /// Remembers code for as long as it is used. The first of two concurrent
    /// compilations wins.
    fn share(&self, digest: &Arc<str>, code: Code) -> Arc<Code> {
        let mut loaded = self.loaded.lock();
        loaded.retain(|_, code| code.strong_count() > 0);
        if let Some(code) = loaded.get(digest).and_then(Weak::upgrade) {
            return code;
        }
        let code = Arc::new(code);
        loaded.insert(digest.clone(), Arc::downgrade(&code));
        code
    }

    fn code_of(&self, verified: &Verified) -> Result<(bool, Code)> {
        let digest = verified.digest.trim_start_matches("sha256:");
        let name = format!("{digest}-{:016x}", self.compatibility);
        if let Some(artifact) = self.cache.get(&name) {
            // SAFETY: the cache returns only what this host's worker made and
            // this host's key signed.
            match unsafe { self.load(&artifact) } {
                Ok(code) => return Ok((true, code)),
                Err(error) => tracing::warn!("a cached artifact does not load: {error}"),
            }
        }
        let artifact =
            compile::compile(&self.config.worker, &self.config.compile, &verified.component)?;
        self.cache.put(&name, &artifact);
        // SAFETY: the worker has just made it from a verified component.
        Ok((false, unsafe { self.load(&artifact) }?))
    }

    /// # Safety
    /// `artifact` is machine code made by the engine's own compiler.
    unsafe fn load(&self, artifact: &[u8]) -> Result<Code> {
        // SAFETY: promised by the caller.
        let pooled = unsafe { link(&self.engines.pooled, artifact) };
        let spare = OnceLock::new();
        let pooled = match pooled {
            Ok(pooled) => Some(pooled),
            Err(error) => {
                tracing::debug!("a plugin does not fit the instance pool: {error:#}");
                // SAFETY: promised by the caller.
                let linked = unsafe { link(&self.engines.spare, artifact) }.map_err(|error| {
                    Error::invalid(format!("the component cannot be linked: {error:#}"))
                })?;
                let _ = spare.set(Ok(linked));
                None
            }
        };
        Ok(Code { pooled, spare })
    }

    /// The code for an instance outside the pool.
    pub(crate) fn spare<'a>(&self, code: &'a Code) -> Result<&'a InstancePre<State>> {
        let relink = || {
            let pooled = code.pooled.as_ref();
            let pooled = pooled.ok_or_else(|| Error::internal("code without an engine"))?;
            let relink = || {
                let artifact = pooled.component().serialize()?;
                // SAFETY: serialised by the engine just now.
                unsafe { link(&self.engines.spare, &artifact) }
            };
            relink().map_err(|error| Error::internal(format!("cannot link a plugin: {error:#}")))
        };
        code.spare.get_or_init(relink).as_ref().map_err(Clone::clone)
    }
}

/// # Safety
/// `artifact` is machine code made by the engine's own compiler.
unsafe fn link(flavour: &Flavour, artifact: &[u8]) -> wasmtime::Result<InstancePre<State>> {
    // SAFETY: promised by the caller.
    let component = unsafe { Component::deserialize(&flavour.engine, artifact) }?;
    match wasi::link(&flavour.engine, &flavour.linker, &component)? {
        Some(linker) => linker.instantiate_pre(&component),
        None => flavour.linker.instantiate_pre(&component),
    }
}

/// `sha256:<hex>` of the bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
