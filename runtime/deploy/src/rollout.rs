//! Rollouts: a candidate version gets a share of the traffic, and a strategy
//! decides from what both versions do how the share moves.
//!
//! A rollout's state, its counts and its weight change in one transaction, and
//! only then does the traffic follow: after a crash it goes on from the last
//! committed tick.

mod active;
mod alert;
mod engine;
mod hook_line;
mod info;
mod lineup;
mod operate;
mod restore;
mod start;
mod steering;

pub(crate) use active::Active;
pub(crate) use alert::RouterAlert;
pub(crate) use engine::{start_ticker, take_reports};
pub use info::{
    EvidenceInfo, HookEvent, Hooks, MetricInfo, MetricReport, NoHooks, RolloutHook, RolloutPhase,
    RolloutStatus, RoutingTotals, SampledKeys, StrategyChange, VariantTotals,
};
pub(crate) use info::{Phase, Plan, StoredRollout, percent};
pub(crate) use lineup::lineup;
pub(crate) use start::Prepared;
pub(crate) use steering::router_warnings;
