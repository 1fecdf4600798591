//! From a graph as a plugin describes it to a plan that a device can compile:
//! checked, weights resolved, types and shapes inferred, constants folded, dead
//! code removed and common patterns fused. No execution and no device here; the
//! device lends an [`Evaluate`] for constant folding.

mod fold;
mod fuse;
mod infer;
mod limits;
mod plan;
mod prune;
mod rows;
mod validate;
mod weights;

pub use fuse::FUSED_DOMAIN;
pub use infer::Fact;
pub use limits::GraphLimits;
pub use plan::{Evaluate, Plan, plan};
