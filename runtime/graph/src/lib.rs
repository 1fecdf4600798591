//! From a graph as a plugin describes it to a plan that a device can compile:
//! checked, weights resolved, types and shapes inferred, constants folded, dead
//! code removed, common patterns fused, and weights put into fewer bits where that is
//! wanted. No execution and no device here; the
//! device lends an [`Evaluate`] for constant folding.

mod fold;
mod forward;
mod fuse;
mod infer;
mod join;
mod limits;
mod plan;
mod prune;
mod quantise;
mod rename;
mod rows;
mod validate;
mod weights;
mod work;

pub use fuse::FUSED_DOMAIN;
pub use infer::Fact;
pub use join::{join, joined_asset};
pub use limits::GraphLimits;
pub use plan::{Evaluate, Origins, Plan, plan, plan_observed, plan_quantised};
pub use quantise::{Left, Precision, QuantReport, Quantisation, Ranges};
pub use work::Work;
