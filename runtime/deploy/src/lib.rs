//! From uploaded files to a live revision, and back: the stages of a
//! deployment, the store that survives `kill -9`, self-tests, rollback.
//!
//! [`Deployer::open`] takes ownership of a store directory and restores every
//! live endpoint. [`Deployer::upload`] streams a file to disk,
//! [`Deployer::deploy`] takes finished uploads through every [`Stage`]. The
//! format of the tests that travel with a deployment is in [`selftest`].
//!
//! Every method blocks (on disk, on plugins, on the stages of a deployment):
//! call them from a thread that serves nobody. The heavy work itself runs on
//! threads of low priority that belong to this crate.

mod background;
mod builtin;
mod config;
mod deployer;
pub mod ensemble;
mod generate;
mod inspect;
mod memory;
mod pipeline;
mod quantize;
mod request;
mod retire;
mod rollout;
pub mod selftest;
pub mod serving;
mod stage;
mod status;
mod store;
mod toolchain;
mod traffic;
mod upstream;

pub use background::{lower_priority, only_when_idle};
pub use builtin::{nearest, unknown_plugin};
pub use config::{BuiltinPlugin, DeployConfig, DeployLimits};
pub use deployer::Deployer;
pub use generate::rows as example_rows;
pub use inspect::{
    GraphInspection, Inspection, OperatorInspection, OutputInspection, StageInspection,
};
pub use memory::machine_memory_bytes;
pub use quantize::{LeftInfo, QuantizeInfo, QuantizeMode, QuantizeReport};
pub use request::{
    DeployRequest, NamedUpload, PluginRef, QuantizeRequest, RolloutRequest, TestUpload,
    TransformRequest,
};
pub use rollout::{
    EvidenceInfo, HookEvent, Hooks, MetricInfo, MetricReport, NoHooks, RolloutHook, RolloutPhase,
    RolloutStatus, RoutingTotals, SampledKeys, StrategyChange, VariantTotals,
};
pub use selftest::difference::Difference;
pub use stage::{Failure, NoObserver, Stage, StageObserver, StageTiming};
pub use status::{
    AssetInfo, AuditEntry, AuditQuery, Deployed, EndpointState, EndpointStatus, GcReport,
    InProgress, Merging, PartInfo, Reversion, RevisionInfo, SignatureInfo, StoreStatus, TensorInfo,
    VersionInfo,
};
pub use store::{Upload, UploadWriter};
pub use toolchain::{CompiledPlugin, HostToolchain, Toolchain, VerifiedPlugin};
pub use traffic::{
    BesideRequest, LiveVersion, RouterChoice, TrafficChange, TrafficStatus, VersionShare,
};
pub use upstream::{NoUpstreams, UpstreamModel, UpstreamTarget, Upstreams};
