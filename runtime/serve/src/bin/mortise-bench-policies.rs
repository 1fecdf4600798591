//! What policies cost and how they decide, as one JSON object a run. Takes a
//! command and the folder of the first-party components (`target/plugins`):
//!
//! - `router`: from the decoded request to the chosen variant;
//! - `canary`: rollouts of a healthy twin and of a worse version, with scripted
//!   statistics through the component that ships.
//!
//! With `worker` as its only argument it is the compiling child process.

use mortise_host::{
    Action, Host, HostConfig, Observation, PluginLimits, PolicyRequest, RouteVariant, RouterPlugin,
    StrategyPlugin, Window, WorkerCommand, compile_worker_main,
};
use mortise_serve::{KeySource, RequestFacts, Routing, VARIANT_LATENCY_BUCKETS};
use mortise_types::{Bytes, Error, Result};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["worker"] => return compile_worker_main(),
        ["router", folder] => Bench::new(folder).and_then(|bench| bench.router()),
        ["canary", folder] => Bench::new(folder).and_then(|bench| bench.canary(500)),
        ["canary", folder, rollouts] => match rollouts.parse() {
            Ok(rollouts) => Bench::new(folder).and_then(|bench| bench.canary(rollouts)),
            Err(_) => Err(Error::invalid("the number of rollouts is a number")),
        },
        _ => Err(Error::invalid("usage: mortise-bench-policies router|canary FOLDER [ROLLOUTS]")),
    };
    match outcome {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Bench {
    host: Arc<Host>,
    components: PathBuf,
    scratch: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// A request with a few headers and no parameters.
struct Headers([(&'static str, Vec<u8>); 4]);

impl RequestFacts for Headers {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_slice())
    }

    fn parameter(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
}

impl Bench {
    fn new(components: &str) -> Result<Self> {
        let failed = |error| Error::internal(format!("{error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let scratch = std::env::temp_dir().join(format!("mortise-policies-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).map_err(failed)?;
        let worker = WorkerCommand { program, args: vec!["worker".to_string()] };
        let host = Host::new(HostConfig::new(scratch.join("cache"), worker))?;
        Ok(Self { host, components: components.into(), scratch })
    }

    fn compiled(&self, name: &str) -> Result<mortise_host::Compiled> {
        let path: &Path = &self.components.join(format!("{name}.wasm"));
        let bytes = std::fs::read(path).map_err(|error| {
            Error::not_found(format!("cannot read {}: {error}", path.display()))
        })?;
        let verified = self.host.verify(Bytes::from(bytes))?;
        self.host.compile(&verified)
    }

    fn request(name: &str, config_json: &str) -> PolicyRequest {
        PolicyRequest {
            plugin: name.to_string(),
            endpoint: "bench".to_string(),
            config_json: config_json.to_string(),
            limits: PluginLimits::default(),
        }
    }

    /// Medians over rounds, since one call is shorter than a clock is exact.
    fn router(&self) -> Result<String> {
        const ROUNDS: usize = 101;
        const CALLS: usize = 2_000;
        let cases = [
            ("weighted", "{}"),
            ("header", r#"{"rules": [{"when": "header:x-beta", "equals": "1"}]}"#),
            ("ab", r#"{"experiment": "e"}"#),
            ("shadow", "{}"),
            ("bandit", "{}"),
        ];
        let mut json = String::from("{");
        for (name, config) in cases {
            let routing = self.routing(name, config)?;
            let mut facts = Headers([
                ("content-type", b"application/json".to_vec()),
                ("host", b"localhost:8000".to_vec()),
                ("user", Vec::new()),
                ("accept", b"*/*".to_vec()),
            ]);
            let mut times: Vec<f64> = Vec::with_capacity(ROUNDS);
            let mut on_candidate = 0usize;
            for round in 0..ROUNDS {
                facts.0[2].1 = format!("user-{round}").into_bytes();
                let started = Instant::now();
                for _ in 0..CALLS {
                    let choice = routing.choose(Some(&facts), &[]);
                    on_candidate += choice.map_or(0, |choice| choice.variant);
                }
                times.push(started.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
            }
            times.sort_by(f64::total_cmp);
            let median = times[ROUNDS / 2];
            eprintln!("{name:<9} {median:.3} us a request ({on_candidate} to the candidate)");
            if routing.undecided() > 0 {
                return Err(Error::internal(format!("{name} failed: {:?}", routing.stats())));
            }
            // Writing into a string cannot fail.
            let _ = write!(json, "\"{name}_us\":{median:.4},");
            if name == "weighted" {
                let _ = write!(json, "\"router_us\":{median:.4},");
            }
        }
        Ok(json.trim_end_matches(',').to_string() + "}")
    }

    fn routing(&self, name: &str, config: &str) -> Result<Routing> {
        let variant = |version, weight, stable| RouteVariant { version, weight, stable };
        let variants = vec![variant(1, 7_500, true), variant(2, 2_500, false)];
        let compiled = self.compiled(name)?;
        let request = Self::request(name, config);
        let router = RouterPlugin::load(&self.host, &compiled, request, variants)?;
        let key = KeySource::parse("header:user")?;
        Ok(Routing::new(Box::new(router), Some(key)))
    }

    fn canary(&self, rollouts: u64) -> Result<String> {
        let config = r#"{"interval": "60s", "check": "5s"}"#;
        let compiled = self.compiled("canary")?;
        let request = Self::request("canary", config);
        let strategy = StrategyPlugin::load(&self.host, &compiled, request)?;
        let mut json = String::from("{\"simulations\":[");
        let mut false_rollbacks = 0;
        let rates = [0.005, 0.007, 0.009];
        for rate in rates {
            let twins = simulate(&strategy, rollouts, Version::twin(rate), rate)?;
            let worse = simulate(&strategy, rollouts, Version::failing(0.03), rate)?;
            let slower = simulate(&strategy, rollouts, Version::slower(rate, 3.0), rate)?;
            false_rollbacks += twins.rolled_back;
            eprintln!(
                "errors {:.1} %: twins rolled back {} of {rollouts}; 3 % errors caught {} of \
                 {rollouts} after {} checks, {:.2} % of requests touched; 3x latency caught {} \
                 after {} checks",
                rate * 100.0,
                twins.rolled_back,
                worse.rolled_back,
                worse.median_checks,
                worse.touched * 100.0,
                slower.rolled_back,
                slower.median_checks
            );
            let _ = write!(
                json,
                "{{\"base_error_rate\":{rate},\"aa_rolled_back\":{},\"aa_promoted\":{},\
                 \"errors_caught\":{},\"errors_checks\":{},\"errors_touched\":{:.5},\
                 \"latency_caught\":{},\"latency_checks\":{},\"latency_touched\":{:.5}}},",
                twins.rolled_back,
                twins.promoted,
                worse.rolled_back,
                worse.median_checks,
                worse.touched,
                slower.rolled_back,
                slower.median_checks,
                slower.touched
            );
        }
        let total = rollouts * rates.len() as u64;
        let share = false_rollbacks as f64 / total as f64;
        let json = json.trim_end_matches(',');
        Ok(format!(
            "{json}],\"aa_rollouts\":{total},\"aa_false_rollbacks\":{false_rollbacks},\
             \"aa_false_share\":{share:.4}}}"
        ))
    }
}

/// How a version behaves.
#[derive(Clone, Copy)]
struct Version {
    error_rate: f64,
    /// Of the median latency.
    slowdown: f64,
}

impl Version {
    fn twin(error_rate: f64) -> Self {
        Self { error_rate, slowdown: 1.0 }
    }

    fn failing(error_rate: f64) -> Self {
        Self { error_rate, slowdown: 1.0 }
    }

    fn slower(error_rate: f64, slowdown: f64) -> Self {
        Self { error_rate, slowdown }
    }

    /// `requests` requests: errors one by one, latencies log-normal.
    fn window(self, requests: u64, random: &mut Random) -> Window {
        let mut window = Window { requests, ..Window::default() };
        window.latency = vec![0; VARIANT_LATENCY_BUCKETS];
        for _ in 0..requests {
            if random.unit() < self.error_rate {
                window.errors += 1;
                continue;
            }
            let us = 2_000.0 * self.slowdown * (0.5 * random.normal()).exp();
            let bucket = (4.0 * (us / 10.0).log2()).ceil().max(0.0) as usize;
            window.latency[bucket.min(VARIANT_LATENCY_BUCKETS - 1)] += 1;
        }
        window
    }
}

/// How some rollouts ended.
struct Outcomes {
    rolled_back: u64,
    promoted: u64,
    /// Until the end.
    median_checks: u64,
    /// Share of all requests that the candidate answered, until the end.
    touched: f64,
}

/// Requests in one check, of both versions together.
const REQUESTS_PER_CHECK: f64 = 1_000.0;

/// A rollout that has not ended by then counts as neither.
const MAX_CHECKS: u64 = 2_000;

fn simulate(
    strategy: &StrategyPlugin,
    rollouts: u64,
    candidate: Version,
    base: f64,
) -> Result<Outcomes> {
    let mut outcomes = Outcomes { rolled_back: 0, promoted: 0, median_checks: 0, touched: 0.0 };
    let mut checks = Vec::new();
    let (mut touched, mut all) = (0, 0);
    for seed in 0..rollouts {
        let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ base.to_bits());
        let plan = strategy.begin(None)?;
        let (mut weight, mut state) = (plan.weight, plan.state);
        for check in 1..=MAX_CHECKS {
            let share = f64::from(weight) / 10_000.0;
            let on_candidate = (REQUESTS_PER_CHECK * share).round() as u64;
            let on_stable = REQUESTS_PER_CHECK as u64 - on_candidate;
            (touched, all) = (touched + on_candidate, all + on_candidate + on_stable);
            let observed = Observation {
                elapsed_ms: check * plan.check_every_ms,
                weight,
                stable: Version::twin(base).window(on_stable, &mut random),
                candidate: candidate.window(on_candidate, &mut random),
                findings: Vec::new(),
            };
            let verdict = strategy.evaluate(&observed, &state)?;
            state = verdict.state;
            match verdict.action {
                Action::Hold => continue,
                Action::SetWeight(next) => {
                    weight = next;
                    continue;
                }
                Action::Promote => outcomes.promoted += 1,
                Action::Rollback => outcomes.rolled_back += 1,
            }
            checks.push(check);
            break;
        }
    }
    checks.sort_unstable();
    outcomes.median_checks = checks.get(checks.len() / 2).copied().unwrap_or(MAX_CHECKS);
    outcomes.touched = touched as f64 / all.max(1) as f64;
    Ok(outcomes)
}

/// splitmix64, and draws from it.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}
