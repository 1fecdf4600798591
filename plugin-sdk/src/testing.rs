//! Policies in native tests: rollouts with a scripted clock and scripted
//! statistics, and requests with scripted keys. Nothing waits and nothing is
//! random, so that a rollout of an hour is a test of a millisecond.
//!
//! ```
//! use mortise_plugin_sdk::testing::{Behaviour, Script};
//! use mortise_plugin_sdk::{
//!     Action, Context, Observation, Plan, Result, Strategy, Verdict, export_strategy,
//! };
//!
//! /// Tries a version on a tenth of the traffic for a minute.
//! struct Trial;
//!
//! impl Strategy for Trial {
//!     fn begin(_: &Context, _: Option<&[u8]>) -> Result<Plan> {
//!         Ok(Plan { weight: 1_000, check_every_ms: 10_000, state: Vec::new() })
//!     }
//!
//!     fn evaluate(_: &Context, observed: &Observation, _: &[u8]) -> Result<Verdict> {
//!         let window = &observed.candidate;
//!         let action = match observed.elapsed_ms {
//!             _ if window.errors * 10 > window.requests => Action::Rollback,
//!             60_000.. => Action::Promote,
//!             _ => Action::Hold,
//!         };
//!         let reason = format!("{} of {} failed", window.errors, window.requests);
//!         Ok(Verdict { action, reason, evidence: Vec::new(), state: Vec::new() })
//!     }
//! }
//!
//! export_strategy!(Trial);
//!
//! # fn main() {
//! let healthy = Script::new(Behaviour::default()).run::<Trial>("{}");
//! assert_eq!((healthy.end(), healthy.elapsed_ms), (Some(Action::Promote), 60_000));
//!
//! // It breaks after twenty seconds.
//! let breaks = |elapsed_ms| match elapsed_ms {
//!     ..=20_000 => Behaviour::default(),
//!     _ => Behaviour { error_rate: 0.5, ..Behaviour::default() },
//! };
//! let broken = Script::new(Behaviour::default()).candidate(breaks).run::<Trial>("{}");
//! assert_eq!((broken.end(), broken.elapsed_ms), (Some(Action::Rollback), 30_000));
//! # }
//! ```
//!
//! A router decides on scalars, and [`Routed`] gives it those of a request:
//!
//! ```
//! use mortise_plugin_sdk::testing::{Routed, two_versions};
//! use mortise_plugin_sdk::{Candidate, Choice, Context, Probe, Result, Router, export_router};
//!
//! /// Half of the users, by their key.
//! struct Half;
//!
//! impl Router for Half {
//!     fn configure(_: &[Candidate], _: &Context) -> Result<(Self, Vec<Probe>)> {
//!         Ok((Self, Vec::new()))
//!     }
//!
//!     fn route(&self, key_hash: u64, _seed: u64, _matched: u64) -> Choice {
//!         Choice::of(u32::from(key_hash < u64::MAX / 2))
//!     }
//! }
//!
//! export_router!(Half);
//!
//! # fn main() {
//! let router = Routed::<Half>::new(&two_versions(5_000), "{}").unwrap();
//! let first = router.of_user("ann");
//! assert_eq!(router.of_user("ann"), first);
//! let share = (0..10_000).filter(|n| router.of_user(&format!("user-{n}")).variant == 1).count();
//! assert!((4_800..5_200).contains(&share));
//! # }
//! ```

use crate::{
    Action, Candidate, Choice, Context, Finding, Moments, Observation, PREVIEW_ERRORS, Probe,
    Result, Router, Strategy, Verdict, Window, latency_bound_us,
};
use std::cell::Cell;

/// Elements of [`Window::latency`], as the host counts them.
const LATENCY_BUCKETS: usize = 90;

/// Evaluations after which a rollout counts as one that does not end.
const MAX_CHECKS: u64 = 10_000;

/// What one version does with its requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// Share of its requests that fail, from 0 to 1.
    pub error_rate: f64,
    /// Time of half of the requests that succeed; the others take a fifth
    /// longer, which is the next element of [`Window::latency`].
    pub latency_us: f64,
    /// Mean of each reported metric, which every request reports: half of the
    /// values lie one above it, half one below.
    pub metrics: Vec<(String, f64)>,
}

impl Default for Behaviour {
    /// Never fails, takes 300 µs and reports nothing.
    fn default() -> Self {
        Self { error_rate: 0.0, latency_us: 300.0, metrics: Vec::new() }
    }
}

type Scripted = Box<dyn Fn(u64) -> Behaviour>;

/// How both versions of a rollout behave at each time, in milliseconds since
/// the rollout began.
pub struct Script {
    requests_per_second: f64,
    stable: Scripted,
    candidate: Scripted,
    findings: Vec<(u64, Finding)>,
    /// Requests a second that name the candidate's version, and the share of them
    /// that fails.
    preview: (f64, f64),
}

impl Script {
    /// Both versions behave alike, at 200 requests a second together.
    pub fn new(behaviour: Behaviour) -> Self {
        let candidate = behaviour.clone();
        Self {
            requests_per_second: 200.0,
            stable: Box::new(move |_| behaviour.clone()),
            candidate: Box::new(move |_| candidate.clone()),
            findings: Vec::new(),
            preview: (0.0, 0.0),
        }
    }

    /// What the candidate does at each time.
    pub fn candidate(mut self, behave: impl Fn(u64) -> Behaviour + 'static) -> Self {
        self.candidate = Box::new(behave);
        self
    }

    /// What the stable version does at each time.
    pub fn stable(mut self, behave: impl Fn(u64) -> Behaviour + 'static) -> Self {
        self.stable = Box::new(behave);
        self
    }

    /// So many requests a second name the candidate's version, and this share of
    /// them fails.
    pub fn preview(mut self, requests_per_second: f64, error_rate: f64) -> Self {
        self.preview = (requests_per_second, error_rate);
        self
    }

    /// Of both versions together.
    pub fn requests_per_second(mut self, requests: f64) -> Self {
        self.requests_per_second = requests;
        self
    }

    /// A monitor says something about the candidate, at the first evaluation
    /// from this time on.
    pub fn finding(mut self, at_ms: u64, finding: Finding) -> Self {
        self.findings.push((at_ms, finding));
        self
    }

    /// Runs a rollout to its end, with this configuration, as the host does.
    ///
    /// # Panics
    /// When the strategy refuses the configuration or an evaluation; call its
    /// functions themselves to test that.
    pub fn run<S: Strategy>(&self, config: &str) -> Run {
        let ctx = Context::new(config);
        let plan = S::begin(&ctx, None).unwrap_or_else(|error| panic!("{config}: {error}"));
        let mut run = Run { weights: vec![plan.weight], ..Run::default() };
        let (mut weight, mut state) = (plan.weight, plan.state);
        let (mut stable, mut candidate) = (Remainder::default(), Remainder::default());
        let mut preview = Remainder::default();
        for check in 1..=MAX_CHECKS {
            let (before_ms, now_ms) = (run.elapsed_ms, check * plan.check_every_ms);
            let requests = self.requests_per_second * plan.check_every_ms as f64 / 1e3;
            let share = f64::from(weight) / f64::from(Candidate::WHOLE);
            let is_new = |(at, _): &&(u64, Finding)| (before_ms..now_ms).contains(at);
            let mut observed = Observation {
                elapsed_ms: now_ms,
                weight,
                stable: stable.window(requests * (1.0 - share), &(self.stable)(now_ms)),
                candidate: candidate.window(requests * share, &(self.candidate)(now_ms)),
                findings: self.findings.iter().filter(is_new).map(|(_, it)| it.clone()).collect(),
            };
            let previewed = self.preview.0 * plan.check_every_ms as f64 / 1e3;
            let metrics = &mut observed.candidate.metrics;
            metrics.extend(preview.preview(previewed, self.preview.1));
            let verdict = S::evaluate(&ctx, &observed, &state);
            let verdict = verdict.unwrap_or_else(|error| panic!("at {now_ms} ms: {error}"));
            (run.checks, run.elapsed_ms) = (check, now_ms);
            state.clone_from(&verdict.state);
            let action = verdict.action;
            run.last = Some(verdict);
            match action {
                Action::Hold => {}
                Action::SetWeight(next) => {
                    weight = next;
                    run.weights.push(next);
                }
                Action::Promote | Action::Rollback => break,
            }
        }
        run
    }
}

/// How a scripted rollout went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// The candidate's weight at the beginning, and each that was set.
    pub weights: Vec<u32>,
    pub checks: u64,
    pub elapsed_ms: u64,
    /// What the last evaluation said.
    pub last: Option<Verdict>,
}

impl Run {
    /// Promotion or rollback; `None` when the rollout had not ended after ten
    /// thousand evaluations.
    pub fn end(&self) -> Option<Action> {
        let action = self.last.as_ref().map(|verdict| verdict.action);
        action.filter(|action| matches!(action, Action::Promote | Action::Rollback))
    }

    /// Why the last evaluation decided so.
    pub fn reason(&self) -> &str {
        self.last.as_ref().map_or("", |verdict| &verdict.reason)
    }
}

/// Fractions of requests and errors that a window was too short for.
#[derive(Default)]
struct Remainder {
    requests: f64,
    errors: f64,
}

impl Remainder {
    fn preview(&mut self, requests: f64, error_rate: f64) -> Option<Moments> {
        let count = whole(&mut self.requests, requests);
        let errors = whole(&mut self.errors, count as f64 * error_rate) as f64;
        let name = PREVIEW_ERRORS.to_owned();
        (count > 0).then_some(Moments { name, count, sum: errors, sum_of_squares: errors })
    }

    fn window(&mut self, requests: f64, behaviour: &Behaviour) -> Window {
        let requests = whole(&mut self.requests, requests);
        let errors = whole(&mut self.errors, requests as f64 * behaviour.error_rate).min(requests);
        let answered = requests - errors;
        let mut latency = vec![0; LATENCY_BUCKETS];
        let bucket = latency_bucket(behaviour.latency_us);
        latency[bucket] = answered / 2;
        latency[(bucket + 1).min(LATENCY_BUCKETS - 1)] += answered - answered / 2;
        let count = requests as f64;
        let moments = |(name, mean): &(String, f64)| Moments {
            name: name.clone(),
            count: requests,
            sum: count * mean,
            sum_of_squares: count * (mean * mean + 1.0),
        };
        let metrics = behaviour.metrics.iter().map(moments).collect();
        Window { requests, errors, latency, metrics }
    }
}

/// What is due, in whole numbers; the rest is due later.
fn whole(rest: &mut f64, more: f64) -> u64 {
    *rest += more;
    let due = (*rest + 1e-9).floor().max(0.0);
    *rest -= due;
    due as u64
}

/// The element of [`Window::latency`] that counts a request of this time.
fn latency_bucket(us: f64) -> usize {
    let bucket = (0..LATENCY_BUCKETS).find(|&at| us <= latency_bound_us(at) * (1.0 + 1e-9));
    bucket.unwrap_or(LATENCY_BUCKETS - 1)
}

/// Version 1, which is stable, and version 2 with this weight.
pub fn two_versions(weight: u32) -> [Candidate; 2] {
    [
        Candidate { version: 1, weight: Candidate::WHOLE - weight, stable: true },
        Candidate { version: 2, weight, stable: false },
    ]
}

/// A configured router, and requests for it.
pub struct Routed<R> {
    pub router: R,
    /// The questions that it asks about each request.
    pub probes: Vec<Probe>,
    /// Counts requests: the seed of each is another.
    seed: Cell<u64>,
}

impl<R: Router> Routed<R> {
    /// # Errors
    /// What the router says about its configuration.
    pub fn new(variants: &[Candidate], config: &str) -> Result<Self> {
        let (router, probes) = R::configure(variants, &Context::new(config))?;
        Ok(Self { router, probes, seed: Cell::new(0) })
    }

    /// A request of this user, that no probe fits.
    pub fn of_user(&self, key: &str) -> Choice {
        self.router.route(key_hash(key), self.next_seed(), 0)
    }

    /// A request without a key.
    pub fn of_nobody(&self) -> Choice {
        let seed = self.next_seed();
        self.router.route(mix(seed), seed, 0)
    }

    fn next_seed(&self) -> u64 {
        self.seed.set(self.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        mix(self.seed.get())
    }
}

/// What the host makes of a sticky key.
pub fn key_hash(key: &str) -> u64 {
    mix(key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

/// The finaliser of splitmix64.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_of_requests_and_errors_are_carried_over() {
        let behaviour = Behaviour { error_rate: 0.25, ..Behaviour::default() };
        let mut remainder = Remainder::default();
        let windows: Vec<Window> = (0..4).map(|_| remainder.window(2.5, &behaviour)).collect();
        let sum = |of: fn(&Window) -> u64| windows.iter().map(of).sum::<u64>();
        assert_eq!((sum(|it| it.requests), sum(|it| it.errors)), (10, 2));
        assert_eq!(sum(|it| it.latency.iter().sum()), 8);
    }

    #[test]
    fn times_are_counted_in_the_element_whose_bound_they_reach() {
        for (us, want) in [(1.0, 0), (10.0, 0), (20.0, 4), (20.1, 5), (1e12, LATENCY_BUCKETS - 1)] {
            assert_eq!(latency_bucket(us), want, "{us}");
        }
    }

    /// `runtime/serve/src/routing.rs` has the same number.
    #[test]
    fn keys_are_hashed_as_by_the_host() {
        assert_eq!(key_hash("user-1"), 0xc499_b5f8_a721_df58);
    }
}
