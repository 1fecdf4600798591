//! What plugins can call: the contract's interfaces over [`State`]. Every
//! argument is hostile.

mod assets;
mod graph;
mod tensor;

use crate::bindings::types;
use crate::limits::{LimitHit, Refusal};
use crate::state::State;
use mortise_types::{Error, Shape};

/// Dimensions that a tensor of a plugin can have.
const MAX_RANK: usize = 64;

impl types::Host for State {}

impl State {
    /// Whether a list of `bytes` may go to the plugin.
    fn check_list(&self, bytes: usize) -> Result<(), Refusal> {
        let limit = self.shared.limits.max_list_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(LimitHit::count("max_list_bytes", limit).into())
    }
}

fn shape_of(dims: &[u64]) -> Result<Shape, Error> {
    if dims.len() > MAX_RANK {
        return Err(Error::invalid(format!(
            "a tensor has at most {MAX_RANK} dimensions, got {}",
            dims.len()
        )));
    }
    let too_large = |_| Error::invalid(format!("shape {dims:?} is too large"));
    dims.iter().map(|&dim| usize::try_from(dim).map_err(too_large)).collect()
}
