//! A strategy that traps at each evaluation.

use mortise_plugin_sdk::{Context, Observation, Plan, Result, Strategy, Verdict, export_strategy};

struct Trap;

impl Strategy for Trap {
    fn begin(_: &Context, _: Option<&[u8]>) -> Result<Plan> {
        Ok(Plan { weight: 3_000, check_every_ms: 50, state: Vec::new() })
    }

    fn evaluate(_: &Context, observed: &Observation, _: &[u8]) -> Result<Verdict> {
        panic!("no verdict at {}", observed.weight)
    }
}

export_strategy!(Trap);
