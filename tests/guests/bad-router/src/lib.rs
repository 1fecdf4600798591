//! A router that does what its configuration tells it to on each request:
//! `{"behave": "trap"}`, `"loop"` or `"nowhere"`, a variant that is not there.

use mortise_plugin_sdk::{Candidate, Choice, Context, Probe, Result, Router, export_router};
use std::hint::black_box;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    behave: Behave,
}

#[derive(serde::Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum Behave {
    Trap,
    Loop,
    Nowhere,
}

impl Router for Behave {
    fn configure(_: &[Candidate], ctx: &Context) -> Result<(Self, Vec<Probe>)> {
        Ok((ctx.config::<Config>()?.behave, Vec::new()))
    }

    fn route(&self, key_hash: u64, _seed: u64, _matched: u64) -> Choice {
        match self {
            Self::Trap => panic!("no way for {key_hash}"),
            Self::Loop => loop {
                black_box(key_hash);
            },
            Self::Nowhere => Choice::of(99),
        }
    }
}

export_router!(Behave);
