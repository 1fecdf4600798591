//! Sends a copy of some requests to every other version. Clients get the
//! stable version's replies; how the copies differ is counted.
//!
//! **Configuration**, optional: `share`, of the requests that are copied, 0 to
//! 1; 0.1 by default.

use mortise_plugin_sdk::{Candidate, Choice, Context, Error, Probe, Result, Router, export_router};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    share: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { share: 0.1 }
    }
}

struct Shadow {
    stable: u32,
    others: u32,
    share: f64,
}

impl Router for Shadow {
    fn configure(variants: &[Candidate], ctx: &Context) -> Result<(Self, Vec<Probe>)> {
        let Config { share } = ctx.config()?;
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid("share must lie between 0 and 1"));
        }
        let bit = |(index, variant): (usize, &Candidate)| u32::from(!variant.stable) << index;
        let others = variants.iter().enumerate().map(bit).fold(0, |mask, bit| mask | bit);
        let stable = variants.iter().position(|variant| variant.stable).unwrap_or(0) as u32;
        Ok((Self { stable, others, share }, Vec::new()))
    }

    fn route(&self, _key_hash: u64, seed: u64, _matched: u64) -> Choice {
        let unit = (seed >> 11) as f64 / (1u64 << 53) as f64;
        Choice { variant: self.stable, shadow: if unit < self.share { self.others } else { 0 } }
    }
}

export_router!(Shadow);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_the_stable_versions_and_copies_go_to_the_others() {
        let variant = |version, stable| Candidate { version, weight: 0, stable };
        let variants = [variant(1, false), variant(2, true), variant(3, false)];
        let all = Context::new(r#"{"share": 1}"#);
        let (router, _) = Shadow::configure(&variants, &all).unwrap();
        assert_eq!(router.route(7, 8, 0), Choice { variant: 1, shadow: 0b101 });
        let none = Context::new(r#"{"share": 0}"#);
        let (router, _) = Shadow::configure(&variants, &none).unwrap();
        assert_eq!(router.route(7, 8, 0), Choice::of(1));
    }
}
