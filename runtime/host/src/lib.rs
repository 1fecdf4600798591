//! Runs untrusted plugins: checks a component against the contract in `wit/`,
//! compiles it in a child process, keeps warm instances of it, and holds every
//! call to limits. The only crate that knows wasmtime.
//!
//! ```text
//! Bytes ─Host::verify→ Verified ─Host::compile→ Compiled ─Plugin::load→ Plugin ─call→ answer
//! ```

mod bindings;
mod budget;
mod cache;
mod clock;
mod compile;
mod config;
mod engine;
mod failure;
mod handles;
mod host;
mod imports;
mod instance;
mod limits;
mod log;
mod measure;
mod plugin;
mod policy;
mod pool;
mod quarantine;
mod recorder;
mod router;
mod runner;
mod state;
mod strategy;
mod verify;
mod wasi;
mod worker;

pub use config::{CompileLimits, HostConfig, WorkerCommand};
pub use host::{Compiled, Host, Verified, World};
pub use limits::PluginLimits;
pub use measure::{Measurements, Subjects, measure};
pub use plugin::{LoadRequest, Plugin, PluginHealth, PluginPlan, PluginStats};
pub use policy::PolicyRequest;
pub use router::{
    MAX_PROBES, MAX_VARIANTS, Place, Probe, RouteChoice, RouteVariant, RouterPlugin, RouterStats,
    RoutingEvent,
};
pub use runner::{GraphBudget, GraphRunner, PreparedGraph};
pub use strategy::{
    Action, Evidence, Finding, Moments, Observation, Severity, StrategyPlan, StrategyPlugin,
    Verdict, Window,
};
pub use worker::compile_worker_main;
