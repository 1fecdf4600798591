//! Runs untrusted plugins: checks a component against the contract in `wit/`,
//! compiles it in a child process, keeps warm instances of it, and holds every
//! call to limits. The only crate that knows wasmtime.
//!
//! ```text
//! Bytes ─Host::verify→ Verified ─Host::compile→ Compiled ─Plugin::load→ Plugin ─call→ answer
//! ```

mod config;
mod host;
mod limits;
mod plugin;
mod runner;
mod worker;

pub use config::{CompileLimits, HostConfig, WorkerCommand};
pub use host::{Compiled, Host, Verified, World};
pub use limits::PluginLimits;
pub use plugin::{LoadRequest, Plugin, PluginHealth, PluginPlan, PluginStats};
pub use runner::{GraphRunner, PreparedGraph};
pub use worker::compile_worker_main;
