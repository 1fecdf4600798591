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
//! [`Transform`], [`Transform::apply`] and [`export_transform!`].
//!
//! **Policies** decide about traffic. A [`Router`] chooses the version that
//! answers a request, from scalars: the hash of its sticky key, a random seed,
//! and one bit for each [`Probe`] into its headers and parameters. Whatever else
//! it knows it has learned from reported metrics ([`Router::learn`]), and
//! published as a state that every thread's instance installs. A [`Strategy`]
//! decides how a new version gets its share. It is a pure function of what both
//! versions did since the last evaluation and of a state, which the host stores
//! with the decision in one transaction: whatever must be remembered goes into
//! the state, as bytes that the next version of the plugin can read. When a
//! policy traps, runs too long or answers nonsense, the stable version answers,
//! traffic stays where it is, and operators are told.
//!
//! ```
//! use mortise_plugin_sdk::{
//!     Candidate, Choice, Context, Place, Probe, Result, Router, export_router,
//! };
//!
//! /// Requests with a header get the newest version, all others the stable one.
//! struct Testers {
//!     stable: u32,
//!     newest: u32,
//! }
//!
//! impl Router for Testers {
//!     fn configure(variants: &[Candidate], _: &Context) -> Result<(Self, Vec<Probe>)> {
//!         let stable = variants.iter().position(|variant| variant.stable).unwrap_or(0) as u32;
//!         let newest = (0..variants.len()).max_by_key(|&at| variants[at].version).unwrap_or(0) as u32;
//!         let probe = Probe { place: Place::parse("header:x-tester")?, literal: None };
//!         Ok((Self { stable, newest }, vec![probe]))
//!     }
//!
//!     fn route(&self, _key_hash: u64, _seed: u64, matched: u64) -> Choice {
//!         Choice::of(if matched & 1 == 1 { self.newest } else { self.stable })
//!     }
//! }
//!
//! export_router!(Testers);
//! # fn main() {}
//! ```
//!
//! Neither kind of policy touches the host, so that all of both can be tested
//! with plain `cargo test`; [`testing`] has the clock, the statistics and the
//! requests. `mortise plugin replay` shows what a built policy decides about a
//! recording.
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
pub mod hash;
pub mod log;
mod ops;
mod plugin;
mod router;
mod signature;
mod strategy;
mod tensor;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use context::{Assets, Context};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use graph::{Attribute, ByteRange, Graph, GraphBuilder, ML, NodeBuilder, Subgraph, Value};
pub use ops::Gemm;
pub use plugin::{Loaded, Model, Transform};
pub use router::{Candidate, Choice, Event, Place, Probe, Router};
pub use signature::{ANY_RANK, Signature, TensorSpec, VARIABLE};
pub use strategy::{
    Action, Evidence, Finding, Moments, Observation, PREVIEW_ERRORS, Plan, Severity, Strategy,
    Verdict, Window, latency_bound_us,
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
