use crate::admission::Budget;
use crate::batch::{Engine, Timer};
use crate::config::ServeConfig;
use crate::endpoint::Endpoint;
use crate::lineup::Lineup;
use crate::pool::{PoolSize, WorkerPool};
use crate::reaper::{Drain, Draining, Reaper};
use crate::revision::Revision;
use crate::runner::{Baseline, GraphRanges, Quantiser, Runner};
use crate::shadow::Shadows;
use crate::stage::Stage;
use arc_swap::ArcSwap;
use mortise_compute::{CpuDevice, CpuOptions, Device};
use mortise_graph::Precision;
use mortise_host::GraphRunner;
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

type Endpoints = BTreeMap<String, Arc<Endpoint>>;

/// Every endpoint of the server, and the threads and memory they share.
pub struct Registry {
    endpoints: ArcSwap<Endpoints>,
    /// Held while the set of endpoints changes; requests never take it.
    changing: Mutex<()>,
    next_lane: AtomicU64,
    device: Arc<dyn Device>,
    runner: Arc<Runner>,
    reaper: Reaper,
    pub(crate) admitted_bytes: Arc<Budget>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) shadows: Shadows,
    pub(crate) config: ServeConfig,
}

impl Registry {
    /// Starts the thread pools.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(config: ServeConfig) -> Result<Arc<Self>> {
        let cpu = || CpuDevice::new(CpuOptions { threads: config.compute_threads.max(1) });
        let device = config.device.clone().unwrap_or_else(|| cpu());
        let threads = |error| Error::internal(format!("cannot start a thread: {error}"));
        let registry = Arc::new(Self {
            endpoints: ArcSwap::default(),
            changing: Mutex::new(()),
            next_lane: AtomicU64::new(0),
            runner: Runner::new(device.clone(), config.graph_limits.clone()),
            device,
            reaper: Reaper::new(config.on_background_thread).map_err(threads)?,
            admitted_bytes: Budget::new(config.max_admitted_bytes),
            engine: engine(&config).map_err(threads)?,
            shadows: Shadows::new(config.on_idle_thread),
            config,
        });
        sweep_sequences(Arc::downgrade(&registry)).map_err(threads)?;
        Ok(registry)
    }

    pub fn endpoint(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.endpoints.load().get(name).cloned()
    }

    /// All endpoints by name.
    pub fn list(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.load().values().cloned().collect()
    }

    pub fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    /// Prepares the graphs that plugins build.
    pub fn runner(&self) -> Arc<dyn GraphRunner> {
        self.runner.clone()
    }

    /// Fuses transforms that are graphs with the model's graph, where they fit.
    pub fn fuse_graphs(&self, stages: Vec<Stage>) -> Vec<Stage> {
        self.runner.fuse(stages)
    }

    /// Prepares graphs as they are, for comparing with and, with `observes`,
    /// for finding the ranges of their activations.
    pub fn baseline(&self, observes: bool) -> Arc<Baseline> {
        Baseline::new(self.runner.clone(), observes)
    }

    /// Prepares graphs with weights in fewer bits. `ranges` are those that
    /// [`Baseline::ranges`] gave, and empty unless the precision needs them.
    pub fn quantiser(&self, precision: Precision, ranges: GraphRanges) -> Arc<Quantiser> {
        Quantiser::new(self.runner.clone(), precision, ranges)
    }

    pub fn config(&self) -> &ServeConfig {
        &self.config
    }

    /// Makes a revision live with one pointer store. Requests that began with
    /// the old one end with it; it is dropped by a background thread after the
    /// last. Returns the drain of the old revision, if there was one.
    pub fn publish(&self, name: &str, revision: Arc<Revision>) -> Option<Drain> {
        self.publish_lineup(name, Lineup::single(revision)).pop()
    }

    /// Makes several versions live with one pointer store, as
    /// [`Registry::publish`] does for one. Returns the drains of the revisions
    /// that no longer take part.
    pub fn publish_lineup(&self, name: &str, lineup: Lineup) -> Vec<Drain> {
        let lineup = Arc::new(lineup);
        let old = self.ensure(name).swap(Some(lineup.clone()));
        self.retire(old, |revision| !lineup.has(revision))
    }

    fn retire(
        &self,
        old: Option<Arc<Lineup>>,
        left: impl Fn(&Arc<Revision>) -> bool,
    ) -> Vec<Drain> {
        let variants = old.iter().flat_map(|old| old.variants());
        let gone: Vec<Arc<Revision>> = variants
            .filter(|variant| left(&variant.revision))
            .map(|variant| variant.revision.clone())
            .collect();
        // Before the drains look at who else holds the revisions.
        drop(old);
        gone.into_iter().map(|revision| self.reaper.retire(revision)).collect()
    }

    /// Takes an endpoint out of service but keeps its name: requests are
    /// answered "not ready" with `reason`. Makes the endpoint if need be.
    pub fn withdraw(&self, name: &str, reason: &str) -> Vec<Drain> {
        let endpoint = self.ensure(name);
        endpoint.set_absence(reason);
        endpoint.sequences.clear();
        self.retire(endpoint.swap(None), |_| true)
    }

    /// Removes an endpoint: its name becomes unknown.
    pub fn remove(&self, name: &str) -> Vec<Drain> {
        let removed = self.change(|endpoints| endpoints.remove(name));
        let Some(removed) = removed else { return Vec::new() };
        removed.set_absence("it was removed");
        removed.sequences.clear();
        self.retire(removed.swap(None), |_| true)
    }

    /// Old revisions that still have requests under way.
    pub fn draining(&self) -> Vec<Draining> {
        self.reaper.draining()
    }

    /// Bytes of input tensors held by requests under way.
    pub fn admitted_bytes(&self) -> u64 {
        self.admitted_bytes.used()
    }

    fn ensure(&self, name: &str) -> Arc<Endpoint> {
        if let Some(endpoint) = self.endpoint(name) {
            return endpoint;
        }
        self.change(|endpoints| {
            let make = || {
                let lane = self.next_lane.fetch_add(1, Ordering::Relaxed);
                Arc::new(Endpoint::new(name, lane, self.config.max_endpoint_requests))
            };
            endpoints.entry(name.to_string()).or_insert_with(make).clone()
        })
    }

    /// Replaces the map of endpoints by a changed copy.
    fn change<T>(&self, edit: impl FnOnce(&mut Endpoints) -> T) -> T {
        let _changing = self.changing.lock();
        let mut endpoints = Endpoints::clone(&self.endpoints.load());
        let result = edit(&mut endpoints);
        self.endpoints.store(Arc::new(endpoints));
        result
    }
}

/// How often sequences that have been silent too long are looked for.
const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// Ends silent sequences, and those that hold back a replaced revision for too
/// long, as long as the registry lives.
fn sweep_sequences(registry: Weak<Registry>) -> std::io::Result<()> {
    let sweep = move || {
        while let Some(registry) = registry.upgrade() {
            let now = registry.config.clock.now();
            let limit = registry.config.sequence_drain_timeout;
            let is_due = |revision: &Revision| {
                revision.retired().is_some_and(|at| now.saturating_duration_since(at) >= limit)
            };
            registry.list().iter().for_each(|endpoint| endpoint.sequences.sweep(now, is_due));
            drop(registry);
            std::thread::sleep(SWEEP_EVERY);
        }
    };
    std::thread::Builder::new().name("mortise-sweep".to_string()).spawn(sweep).map(drop)
}

fn engine(config: &ServeConfig) -> std::io::Result<Arc<Engine>> {
    let (compute, plugins) = (compute_pool(config), plugin_pool(config));
    Ok(Arc::new(Engine {
        compute: WorkerPool::new(&compute)?,
        compute_threads: compute.max_per_endpoint,
        plugins: WorkerPool::new(&plugins)?,
        plugin_threads: plugins.max_per_endpoint,
        timer: Timer::new()?,
        clock: config.clock.clone(),
        max_loop_iterations: config.max_loop_iterations,
    }))
}

/// One thread more than cores, and one endpoint may hold all but one: a model
/// that runs into its deadline on every core leaves a thread to the others.
fn compute_pool(config: &ServeConfig) -> PoolSize {
    let threads = config.compute_threads.max(1);
    PoolSize { name: "mortise-run", threads: threads + 1, max_per_endpoint: threads }
}

fn plugin_pool(config: &ServeConfig) -> PoolSize {
    let threads = config.plugin_threads.max(2);
    PoolSize { name: "mortise-plugin", threads, max_per_endpoint: threads - 1 }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "serving_tests.rs"]
mod serving_tests;
