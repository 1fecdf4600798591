//! What a Mortise plugin is written with: one trait per world, a macro that
//! exports it, and typed access to tensors, graphs, assets and the log.
//!
//! A **model** says how requests are answered. Most models build a graph once,
//! in `load`; the host optimises it and runs it without entering the plugin:
//!
//! ```
//! use mortise_plugin_sdk::{
//!     Context, DType, GraphBuilder, Loaded, Model, Result, Tensor, TensorSpec, export_model,
//! };
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     factor: f32,
//! }
//!
//! struct Scale;
//!
//! impl Model for Scale {
//!     fn load(ctx: &Context) -> Result<Loaded<Self>> {
//!         let config: Config = ctx.config()?;
//!         let g = GraphBuilder::new();
//!         let x = g.input(&TensorSpec::new("x", DType::F32, [-1, 4]))?;
//!         let factor = g.scalar(config.factor)?;
//!         g.output("y", g.mul(x, factor)?)?;
//!         Ok(Loaded::Direct(g.finish()?))
//!     }
//! }
//!
//! export_model!(Scale);
//! # fn main() {}
//! ```
//!
//! A model that needs its own code per batch returns [`Loaded::Custom`] and
//! implements [`Model::predict`]. A **transform** has the same shape:
//! [`Transform`], [`Transform::apply`] and [`export_transform!`]. Policies decide
//! about traffic: a [`Router`] chooses the version that answers a request, a
//! [`Strategy`] how a new version gets its share. Neither touches the host, so
//! that all of both can be tested with plain `cargo test`.
//!
//! Plugins compile for `wasm32-unknown-unknown` with the crate type `cdylib`.
//! They also compile natively, so that logic that does not touch the host can
//! be tested with plain `cargo test`; only [`Tensor`], [`GraphBuilder`],
//! [`Graph`] and [`Assets`] need the host and panic without it.

#[doc(hidden)]
pub mod abi;
mod bindings;
mod context;
mod dtype;
mod error;
mod graph;
pub mod log;
mod ops;
mod plugin;
mod router;
mod signature;
mod strategy;
mod tensor;

pub use context::{Assets, Context};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use graph::{Attribute, ByteRange, Graph, GraphBuilder, ML, NodeBuilder, Subgraph, Value};
pub use ops::Gemm;
pub use plugin::{Loaded, Model, Transform};
pub use router::{Candidate, Choice, Event, Place, Probe, Router};
pub use signature::{ANY_RANK, Signature, TensorSpec, VARIABLE};
pub use strategy::{
    Action, Evidence, Finding, Moments, Observation, Plan, Severity, Strategy, Verdict, Window,
    latency_bound_us,
};
pub use tensor::{Strings, Tensor};

/// What the export macros expand to; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::abi;
    pub use crate::bindings::{model, router, strategy, transform};
    pub use crate::plugin::{ModelExport, TransformExport};
    pub use crate::router::RouterExport;
    pub use crate::strategy::StrategyExport;
}

/// The plugin in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
