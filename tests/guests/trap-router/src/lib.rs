//! A router that traps on each request.

use mortise_plugin_sdk::{Candidate, Choice, Context, Probe, Result, Router, export_router};

struct Trap;

impl Router for Trap {
    fn configure(_: &[Candidate], _: &Context) -> Result<(Self, Vec<Probe>)> {
        Ok((Self, Vec::new()))
    }

    fn route(&self, key_hash: u64, _seed: u64, _matched: u64) -> Choice {
        panic!("no way for {key_hash}")
    }
}

export_router!(Trap);
