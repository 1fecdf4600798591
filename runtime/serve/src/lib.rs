//! Serving: which revision answers a request, whether there is room for it, on
//! which thread it runs, and how an old revision is let go. Knows no HTTP, no
//! JSON and no device API.

mod admission;
mod batch;
mod cache;
mod config;
mod endpoint;
mod ensemble;
mod fair;
mod in_place;
mod infer;
mod key_sample;
mod lineup;
mod options;
mod pool;
mod rate_limit;
mod reaper;
mod registry;
mod revision;
mod routing;
mod runner;
mod sequence;
mod service_time;
mod shadow;
mod stage;
mod state;
mod stats;
#[cfg(test)]
mod testing;
mod upstream;
mod variant_stats;
mod version_stats;

pub use config::ServeConfig;
pub use endpoint::{Endpoint, Readiness};
pub use ensemble::{EnsemblePlan, EnsembleStep, StepLog, StepRun};
pub use infer::{InferAnswer, InferCall, SequenceId, SequenceStep};
pub use lineup::{Lineup, Variant};
pub use options::{
    BatchOptions, CacheOptions, LevelOptions, Rate, RateLimits, SequenceOptions, ServingOptions,
    StateTie, TimeoutAction,
};
pub use reaper::{Drain, Draining};
pub use registry::Registry;
pub use revision::{Revision, RevisionParts};
pub use routing::{
    KeySource, RequestFacts, Router, Routing, RoutingCounts, RoutingSnapshot, hash_key,
};
pub use runner::{Baseline, CompiledGraph, GraphRanges, QuantSummary, Quantiser, Runner};
pub use stage::{CustomStage, Stage, StageRun};
pub use stats::{LATENCY_BOUNDS_US, StatsSnapshot};
pub use upstream::{Upstream, UpstreamAnswer};
pub use variant_stats::{
    MetricMoments, ShadowSnapshot, VARIANT_LATENCY_BUCKETS, VARIANT_MAX_METRICS, VariantStats,
    VariantStatsSnapshot,
};
pub use version_stats::{BatchStats, DurationCount, Timings, VersionStatsSnapshot};
