//! Serving: which revision answers a request, whether there is room for it, on
//! which thread it runs, and how an old revision is let go. Knows no HTTP, no
//! JSON and no device API.

mod admission;
mod config;
mod endpoint;
mod fair;
mod infer;
mod pool;
mod reaper;
mod registry;
mod revision;
mod runner;
mod service_time;
mod stage;
mod stats;
#[cfg(test)]
mod testing;
mod version_stats;

pub use config::ServeConfig;
pub use endpoint::{Endpoint, Readiness};
pub use infer::{InferAnswer, InferCall, SequenceId, SequenceStep};
pub use reaper::{Drain, Draining};
pub use registry::Registry;
pub use revision::{Revision, RevisionParts};
pub use runner::Runner;
pub use stage::{CustomStage, Stage, StageRun};
pub use stats::{LATENCY_BOUNDS_US, StatsSnapshot};
pub use version_stats::{BatchStats, DurationCount, Timings, VersionStatsSnapshot};
