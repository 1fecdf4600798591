//! Thompson sampling: each version is chosen as often as it is likely to be the
//! best, by what clients report about its answers, however late.
//!
//! **Configuration**, optional:
//! - `metric`: the reported metric that is the reward, from 0 to 1; `reward`;
//! - `memory`: how many rewards of a version count, older ones fade; 10,000.
//!
//! Rewards are taken as successes in part: a value of 0.3 counts as three
//! tenths of a success and seven of a failure. Each version's rate then has a
//! beta distribution, from which every request draws; the highest draw answers.

use mortise_plugin_sdk::hash::mix;
use mortise_plugin_sdk::{
    Candidate, Choice, Context, Error, Event, Probe, Result, Router, export_router,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    metric: String,
    memory: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { metric: "reward".to_owned(), memory: 10_000.0 }
    }
}

/// Successes and failures of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tally {
    successes: f64,
    failures: f64,
}

struct Bandit {
    config: Config,
    versions: Vec<u64>,
    tallies: BTreeMap<u64, Tally>,
    /// Tallies of the versions, in their order, for `route`.
    arms: Vec<Tally>,
}

impl Router for Bandit {
    fn configure(variants: &[Candidate], ctx: &Context) -> Result<(Self, Vec<Probe>)> {
        let config: Config = ctx.config()?;
        if !(config.memory >= 1.0) {
            return Err(Error::invalid("memory must be at least 1"));
        }
        let versions: Vec<u64> = variants.iter().map(|variant| variant.version).collect();
        let arms = vec![Tally::default(); versions.len()];
        Ok((Self { config, versions, tallies: BTreeMap::new(), arms }, Vec::new()))
    }

    fn route(&self, _key_hash: u64, seed: u64, _matched: u64) -> Choice {
        let mut random = Random(seed);
        let mut best = (f64::NEG_INFINITY, 0);
        for (index, arm) in self.arms.iter().enumerate() {
            let draw = random.beta(1.0 + arm.successes, 1.0 + arm.failures);
            if draw > best.0 {
                best = (draw, index as u32);
            }
        }
        Choice::of(best.1)
    }

    fn learn(&mut self, events: &[Event]) -> Result<Vec<u8>> {
        for event in events.iter().filter(|event| event.metric == self.config.metric) {
            let tally = self.tallies.entry(event.version).or_default();
            tally.add(event.value.clamp(0.0, 1.0), self.config.memory);
        }
        self.refresh();
        Ok(serde_json::to_vec(&self.tallies)?)
    }

    fn install(&mut self, state: &[u8]) -> Result<()> {
        self.tallies = serde_json::from_slice(state)?;
        self.refresh();
        Ok(())
    }
}

export_router!(Bandit);

impl Bandit {
    fn refresh(&mut self) {
        let tally = |version: &u64| self.tallies.get(version).copied().unwrap_or_default();
        self.arms = self.versions.iter().map(tally).collect();
    }
}

impl Tally {
    fn add(&mut self, reward: f64, memory: f64) {
        self.successes += reward;
        self.failures += 1.0 - reward;
        let total = self.successes + self.failures;
        if total > memory {
            self.successes *= memory / total;
            self.failures *= memory / total;
        }
    }
}

/// splitmix64, and draws from it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let drawn = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        drawn
    }

    /// Above 0 and at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        x / (x + y)
    }

    /// Marsaglia and Tsang (2000), for shapes of at least 1. Rejects fewer than
    /// one draw in twenty, so that the bound is never met.
    fn gamma(&mut self, shape: f64) -> f64 {
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        for _ in 0..64 {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return d * v;
            }
        }
        d
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_plugin_sdk::testing::{Routed, two_versions};

    fn bandit() -> Bandit {
        Routed::<Bandit>::new(&two_versions(0), "").unwrap().router
    }

    fn share_of_second(bandit: &Bandit, from: u64) -> f64 {
        let second = (from..from + 2_000).filter(|&seed| bandit.route(0, seed, 0).variant == 1);
        second.count() as f64 / 2_000.0
    }

    #[test]
    fn delayed_rewards_move_the_traffic_to_the_better_version() {
        let mut bandit = bandit();
        let start = share_of_second(&bandit, 0);
        assert!((start - 0.5).abs() < 0.05, "{start}");
        let mut random = Random(1);
        for round in 0..50u64 {
            // Rewards come in batches, long after the answers.
            let events: Vec<Event> = (0..40)
                .map(|index| {
                    let variant = bandit.route(0, round * 100 + index, 0).variant;
                    let rate = [0.2, 0.3][variant as usize];
                    let value = f64::from(u8::from(random.unit() < rate));
                    Event { version: u64::from(variant) + 1, metric: "reward".to_owned(), value }
                })
                .collect();
            bandit.learn(&events).unwrap();
        }
        let end = share_of_second(&bandit, 1 << 40);
        assert!(end > 0.9, "{end}");
    }

    #[test]
    fn what_was_learned_is_published_and_installed() {
        let mut teacher = bandit();
        let event = |metric: &str, value| Event { version: 2, metric: metric.to_owned(), value };
        let events: Vec<Event> = (0..200).map(|_| event("reward", 1.0)).collect();
        let state = teacher.learn(&events).unwrap();
        assert_eq!(teacher.learn(&[event("other", 0.0)]).unwrap(), state);
        let mut pupil = bandit();
        pupil.install(&state).unwrap();
        assert_eq!(pupil.arms, teacher.arms);
        assert!(share_of_second(&pupil, 0) > 0.95);
        assert!(pupil.install(b"nonsense").is_err());
    }

    #[test]
    fn old_rewards_fade() {
        let mut tally = Tally::default();
        (0..1_000).for_each(|_| tally.add(1.0, 100.0));
        (0..200).for_each(|_| tally.add(0.0, 100.0));
        assert!(tally.successes < 20.0 && tally.failures > 80.0, "{tally:?}");
    }
}
