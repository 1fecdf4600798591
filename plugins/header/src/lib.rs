//! Routes by what stands in a request: testers with a header, tenants with a
//! parameter.
//!
//! **Configuration**: `rules`, the first that fits decides, and the stable
//! version answers when none does:
//!
//! ```json
//! {"rules": [{"when": "header:x-beta", "equals": "1", "version": 2}]}
//! ```
//!
//! `when` is `header:NAME` or `parameter:NAME`; without `equals` any value fits;
//! without `version` the rule means the newest version that is not stable.

use mortise_plugin_sdk::{
    Candidate, Choice, Context, Error, Place, Probe, Result, Router, export_router,
};
use serde::Deserialize;

/// As many as one bit mask answers.
const MAX_RULES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    when: String,
    equals: Option<String>,
    version: Option<u64>,
}

struct Header {
    /// The variant of each rule, in order.
    targets: Vec<u32>,
    stable: u32,
}

impl Router for Header {
    fn configure(variants: &[Candidate], ctx: &Context) -> Result<(Self, Vec<Probe>)> {
        let config: Config = ctx.config()?;
        if config.rules.is_empty() || config.rules.len() > MAX_RULES {
            return Err(Error::invalid(format!("rules must be 1 to {MAX_RULES}")));
        }
        let stable = variants.iter().position(|variant| variant.stable).unwrap_or(0) as u32;
        let targets =
            config.rules.iter().map(|rule| target(rule, variants)).collect::<Result<_>>()?;
        let probe =
            |rule: Rule| Ok(Probe { place: Place::parse(&rule.when)?, literal: rule.equals });
        let probes = config.rules.into_iter().map(probe).collect::<Result<_>>()?;
        Ok((Self { targets, stable }, probes))
    }

    fn route(&self, _key_hash: u64, _seed: u64, matched: u64) -> Choice {
        let first = matched.trailing_zeros() as usize;
        Choice::of(self.targets.get(first).copied().unwrap_or(self.stable))
    }
}

export_router!(Header);

fn target(rule: &Rule, variants: &[Candidate]) -> Result<u32> {
    let others = variants.iter().filter(|variant| !variant.stable).map(|variant| variant.version);
    let version = rule.version.or(others.max());
    let found = variants.iter().position(|variant| Some(variant.version) == version);
    found.map(|index| index as u32).ok_or_else(|| {
        let versions: Vec<u64> = variants.iter().map(|variant| variant.version).collect();
        Error::invalid(format!(
            "rule \"{}\" names no live version; there are {versions:?}",
            rule.when
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_plugin_sdk::testing::{Routed, two_versions};

    #[test]
    fn the_first_rule_that_fits_decides() {
        let config = r#"{"rules": [
            {"when": "header:X-Old", "version": 1},
            {"when": "parameter:tenant", "equals": "a"}
        ]}"#;
        let Routed { router, probes, .. } =
            Routed::<Header>::new(&two_versions(0), config).unwrap();
        assert_eq!(probes[0].place, Place::Header("x-old".to_owned()));
        assert_eq!(probes[1].literal.as_deref(), Some("a"));
        let routes = [0b00, 0b01, 0b10, 0b11].map(|matched| router.route(0, 0, matched).variant);
        assert_eq!(routes, [0, 0, 1, 0]);
    }

    #[test]
    fn wrong_rules_are_named() {
        for (config, want) in [
            (r#"{"rules": []}"#, "1 to 64"),
            (r#"{"rules": [{"when": "cookie:x"}]}"#, "cookie:x"),
            (r#"{"rules": [{"when": "header:x", "version": 9}]}"#, "[1, 2]"),
        ] {
            let error = Routed::<Header>::new(&two_versions(0), config).err().unwrap();
            assert!(error.message().contains(want), "{error}");
        }
    }
}
