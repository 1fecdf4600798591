//! Splits traffic by weight, sticky by key: requests with one key always get
//! the same version, and when the weight of a version grows, keys move to it
//! and none moves away.
//!
//! Each version draws a number from the key, `-ln(u) / weight`, and the
//! smallest one answers (weighted rendezvous hashing). A version's number
//! shrinks when its weight grows and no other number changes, which is why
//! nobody flips back. Each version draws its own numbers, so that the next
//! rollout begins with other keys than the last one.
//!
//! **Configuration**, optional: `salt`, a text. Another salt assigns all keys
//! anew.

use mortise_plugin_sdk::hash::{self, mix};
use mortise_plugin_sdk::{Candidate, Choice, Context, Probe, Result, Router, export_router};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    salt: String,
}

struct Weighted {
    /// Versions with some weight.
    shares: Vec<Share>,
    /// Answers when no version has weight.
    stable: u32,
}

struct Share {
    index: u32,
    /// Hash of salt and version.
    seed: u64,
    inverse_weight: f64,
}

impl Router for Weighted {
    fn configure(variants: &[Candidate], ctx: &Context) -> Result<(Self, Vec<Probe>)> {
        let config: Config = ctx.config()?;
        let salt = hash::bytes(0, config.salt.as_bytes());
        let stable = variants.iter().position(|variant| variant.stable).unwrap_or(0);
        let share = |(index, variant): (usize, &Candidate)| Share {
            index: index as u32,
            seed: mix(salt ^ mix(variant.version)),
            inverse_weight: f64::from(variant.weight).recip(),
        };
        let with_weight = variants.iter().enumerate().filter(|(_, variant)| variant.weight > 0);
        let shares = with_weight.map(share).collect();
        Ok((Self { shares, stable: stable as u32 }, Vec::new()))
    }

    fn route(&self, key_hash: u64, _seed: u64, _matched: u64) -> Choice {
        if let [only] = self.shares.as_slice() {
            return Choice::of(only.index);
        }
        let mut best = (f64::INFINITY, self.stable);
        for share in &self.shares {
            let draw = -unit(mix(key_hash ^ share.seed)).ln() * share.inverse_weight;
            if draw < best.0 {
                best = (draw, share.index);
            }
        }
        Choice::of(best.1)
    }
}

export_router!(Weighted);

/// A number above 0 and at most 1, from the upper 53 bits.
fn unit(hash: u64) -> f64 {
    ((hash >> 11) + 1) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_plugin_sdk::testing::{Routed, two_versions};

    const KEYS: u64 = 1_000_000;

    fn router(weight: u32, salt: &str) -> Routed<Weighted> {
        Routed::new(&two_versions(weight), &format!("{{\"salt\": {salt:?}}}")).unwrap()
    }

    fn is_candidate(router: &Routed<Weighted>, key: u64) -> bool {
        router.router.route(mix(key), 0, 0).variant == 1
    }

    #[test]
    fn a_million_keys_never_leave_the_new_version_on_a_ramp() {
        let ramp = [100, 500, 2_500, 5_000, 10_000];
        let routers = ramp.map(|weight| router(weight, ""));
        let mut counts = [0u64; 5];
        for key in 0..KEYS {
            let on = routers.each_ref().map(|router| is_candidate(router, key));
            assert!(on.is_sorted(), "key {key} left the new version: {on:?}");
            counts.iter_mut().zip(on).for_each(|(count, on)| *count += u64::from(on));
        }
        for (count, weight) in counts.into_iter().zip(ramp) {
            let share = f64::from(weight) / f64::from(Candidate::WHOLE);
            let deviation = (KEYS as f64 * share * (1.0 - share)).sqrt();
            let gap = (count as f64 - KEYS as f64 * share).abs();
            assert!(gap <= 3.29 * deviation, "{count} keys at {weight}: 99.9 % lie nearer");
        }
    }

    #[test]
    fn salts_assign_independently() {
        let (one, other) = (router(5_000, "a"), router(5_000, "b"));
        let both = (0..100_000).filter(|&key| is_candidate(&one, key) && is_candidate(&other, key));
        let both = both.count() as f64;
        assert!((both - 25_000.0).abs() < 3.29 * (100_000.0f64 * 0.25 * 0.75).sqrt(), "{both}");
    }

    #[test]
    fn a_user_stays_and_nobody_is_assigned_each_time() {
        let router = router(5_000, "");
        assert!((0..20).all(|_| router.of_user("ann") == router.of_user("ann")));
        let on_candidate = (0..1_000).filter(|_| router.of_nobody().variant == 1).count();
        assert!((400..600).contains(&on_candidate), "{on_candidate}");
    }

    #[test]
    fn without_weights_the_stable_version_answers() {
        let variants = [
            Candidate { version: 1, weight: 0, stable: false },
            Candidate { version: 2, weight: 0, stable: true },
        ];
        let (router, probes) = Weighted::configure(&variants, &Context::new("")).unwrap();
        assert_eq!((router.route(1, 2, 0), probes.len()), (Choice::of(1), 0));
    }
}
