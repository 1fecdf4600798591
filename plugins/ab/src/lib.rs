//! Experiments: groups of users by the hash of their key.
//!
//! **Configuration**:
//! - `experiment`: its name; another name draws other groups;
//! - `layer`: experiments of one layer exclude each other, experiments of
//!   different layers are independent; the experiment's name by default;
//! - `slice`: the part of the layer that is this experiment's, `[0, 1]`;
//! - `holdout`: share of users that no experiment touches, 0 by default; the
//!   same users for every experiment;
//! - `groups`: `{"treatment": {"version": 2, "share": 0.5}}`; whoever is in no
//!   group gets the stable version. By default each version gets as many.
//!
//! Users of the holdout or of another part of the layer get the stable version and
//! take no part: they are counted apart from its group. So is whoever is in no
//! group where a group of the stable version is named; where none is, they are the
//! control.

use mortise_plugin_sdk::hash::{self, mix, unit};
use mortise_plugin_sdk::{Candidate, Choice, Context, Error, Probe, Result, Router, export_router};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    experiment: String,
    layer: Option<String>,
    #[serde(default = "whole")]
    slice: [f64; 2],
    #[serde(default)]
    holdout: f64,
    #[serde(default)]
    groups: BTreeMap<String, Group>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    version: u64,
    share: f64,
}

fn whole() -> [f64; 2] {
    [0.0, 1.0]
}

struct Ab {
    holdout: f64,
    slice: [f64; 2],
    layer_seed: u64,
    group_seed: u64,
    /// Upper bound and variant of each group, ascending.
    bounds: Vec<(f64, u32)>,
    stable: u32,
    /// What becomes of users of this experiment that are in no group.
    rest: Choice,
}

impl Router for Ab {
    fn configure(variants: &[Candidate], ctx: &Context) -> Result<(Self, Vec<Probe>)> {
        let config: Config = ctx.config()?;
        let [from, until] = config.slice;
        if !(0.0 <= from && from < until && until <= 1.0) {
            return Err(Error::invalid("slice must be two numbers from 0 to 1 that rise"));
        }
        if !(0.0..1.0).contains(&config.holdout) {
            return Err(Error::invalid("holdout must be a share from 0 to below 1"));
        }
        let stable = variants.iter().position(|variant| variant.stable).unwrap_or(0) as u32;
        let layer = config.layer.as_ref().unwrap_or(&config.experiment);
        let bounds = bounds(&config, variants)?;
        let has_control = bounds.iter().any(|(_, variant)| *variant == stable);
        let rest = if has_control { Choice::outside(stable) } else { Choice::of(stable) };
        Ok((
            Self {
                holdout: config.holdout,
                slice: config.slice,
                layer_seed: hash_text("layer", layer),
                group_seed: hash_text("group", &config.experiment),
                bounds,
                stable,
                rest,
            },
            Vec::new(),
        ))
    }

    fn route(&self, key_hash: u64, _seed: u64, _matched: u64) -> Choice {
        let outside = Choice::outside(self.stable);
        if unit(mix(key_hash ^ HOLDOUT_SEED)) < self.holdout {
            return outside;
        }
        let place = unit(mix(key_hash ^ self.layer_seed));
        if place < self.slice[0] || place >= self.slice[1] {
            return outside;
        }
        let draw = unit(mix(key_hash ^ self.group_seed));
        let group = self.bounds.iter().find(|(bound, _)| draw < *bound);
        group.map_or(self.rest, |&(_, variant)| Choice::of(variant))
    }
}

export_router!(Ab);

/// Of all experiments: the users it keeps out are the same in each.
const HOLDOUT_SEED: u64 = 0x6d6f_7274_6973_6521;

fn bounds(config: &Config, variants: &[Candidate]) -> Result<Vec<(f64, u32)>> {
    let even = 1.0 / variants.len() as f64;
    let groups: Vec<Group> = match config.groups.is_empty() {
        true => variants.iter().map(|it| Group { version: it.version, share: even }).collect(),
        false => config.groups.values().copied().collect(),
    };
    let mut sum = 0.0;
    let mut bounds = Vec::new();
    for group in groups {
        let index = variants.iter().position(|variant| variant.version == group.version);
        let index = index.ok_or_else(|| {
            Error::invalid(format!("version {} of a group is not live", group.version))
        })?;
        if !(0.0..=1.0).contains(&group.share) {
            return Err(Error::invalid("the share of a group must lie between 0 and 1"));
        }
        sum += group.share;
        bounds.push((sum, index as u32));
    }
    match sum <= 1.0 + 1e-9 {
        true => Ok(bounds),
        false => Err(Error::invalid(format!("the shares of the groups add up to {sum}"))),
    }
}

fn hash_text(kind: &str, text: &str) -> u64 {
    hash::bytes(hash::bytes(1, kind.as_bytes()), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_plugin_sdk::testing::{Routed, two_versions};

    const KEYS: u64 = 100_000;

    fn router(config: &str) -> Ab {
        Routed::<Ab>::new(&two_versions(0), config).unwrap().router
    }

    fn treated(router: &Ab, key: u64) -> bool {
        router.route(mix(key), 0, 0).variant == 1
    }

    #[test]
    fn experiments_in_different_layers_are_independent() {
        let (one, other) = (router(r#"{"experiment": "a"}"#), router(r#"{"experiment": "b"}"#));
        let mut cells = [[0f64; 2]; 2];
        for key in 0..KEYS {
            cells[usize::from(treated(&one, key))][usize::from(treated(&other, key))] += 1.0;
        }
        let total = KEYS as f64;
        let row = |index: usize| cells[index][0] + cells[index][1];
        let column = |index: usize| cells[0][index] + cells[1][index];
        let mut chi_square = 0.0;
        for (i, cells) in cells.iter().enumerate() {
            for (j, cell) in cells.iter().enumerate() {
                let expected = row(i) * column(j) / total;
                chi_square += (cell - expected).powi(2) / expected;
            }
        }
        assert!(chi_square < 10.83, "99.9 % of independent ones are below: {chi_square}");
    }

    #[test]
    fn experiments_of_one_layer_exclude_each_other() {
        let config = |name: &str, slice: &str| {
            router(&format!(
                r#"{{"experiment": "{name}", "layer": "l", "slice": {slice},
                    "groups": {{"t": {{"version": 2, "share": 1}}}}}}"#
            ))
        };
        let (one, other) = (config("a", "[0, 0.5]"), config("b", "[0.5, 1]"));
        assert!((0..KEYS).all(|key| treated(&one, key) != treated(&other, key)));
    }

    #[test]
    fn the_holdout_is_the_same_for_all_and_of_its_size() {
        let config = |name: &str| {
            router(&format!(
                r#"{{"experiment": "{name}", "holdout": 0.1,
                    "groups": {{"t": {{"version": 2, "share": 1}}}}}}"#
            ))
        };
        let (one, other) = (config("a"), config("b"));
        assert!((0..KEYS).all(|key| treated(&one, key) == treated(&other, key)));
        let held = (0..KEYS).filter(|&key| !treated(&one, key)).count() as f64;
        assert!((held - 10_000.0).abs() < 3.29 * (KEYS as f64 * 0.09).sqrt(), "{held}");
    }

    /// Keys by where they go: control, treatment, outside.
    fn divided(config: &str) -> [usize; 3] {
        let router = router(config);
        let mut counts = [0; 3];
        for key in 0..KEYS {
            let choice = router.route(mix(key), 0, 0);
            counts[if choice.shadow == 0 { choice.variant as usize } else { 2 }] += 1;
        }
        counts
    }

    #[test]
    fn whoever_takes_no_part_is_no_control() {
        let cases = [
            (r#"{"experiment": "a"}"#, [0.5, 0.5, 0.0]),
            (r#"{"experiment": "a", "holdout": 0.2}"#, [0.4, 0.4, 0.2]),
            (r#"{"experiment": "a", "slice": [0.5, 1]}"#, [0.25, 0.25, 0.5]),
            (
                r#"{"experiment": "a", "groups": {"t": {"version": 2, "share": 0.3}}}"#,
                [0.7, 0.3, 0.0],
            ),
            (
                r#"{"experiment": "a", "groups": {"c": {"version": 1, "share": 0.3},
                    "t": {"version": 2, "share": 0.3}}}"#,
                [0.3, 0.3, 0.4],
            ),
        ];
        for (config, shares) in cases {
            for (count, share) in divided(config).into_iter().zip(shares) {
                let expected = KEYS as f64 * share;
                let spread = 3.29 * (expected * (1.0 - share)).sqrt();
                assert!((count as f64 - expected).abs() <= spread, "{config}: {count} {share}");
            }
        }
    }
}
