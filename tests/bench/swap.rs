//! Swaps under load: two versions that answer differently take turns through the
//! admin API and every stage, while clients check that each answer belongs to
//! the version that it claims. Then the stall that deploying a slow model causes
//! to another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mortise_tests::load::{Check, Load, Outcome, Verdict};
use mortise_tests::{Admin, Deployment, Server, http1, infer, onnx, stats, wait};
use serde_json::{Value, json};

use crate::report;

const ENDPOINT: &str = "net";
const CLIENTS: usize = 16;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Swaps in all.
    #[arg(long, default_value_t = 1_000)]
    swaps: u32,
    /// Swaps begun each second.
    #[arg(long, default_value_t = 12.0)]
    rate: f64,
    /// Seconds of load without swaps, before and after.
    #[arg(long, default_value_t = 10)]
    steady_seconds: u64,
    /// Rounds of the stall test.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Matrix products computed while the slow model is loaded.
    #[arg(long, default_value_t = 24)]
    slow_products: usize,
    /// Length of the sums in those products; each has a million of them.
    #[arg(long, default_value_t = 16_384)]
    slow_depth: i64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let versions = Versions::deploy(&server, &mut admin)?;
    let swapped = swap(args, &server, &mut admin, &versions)?;
    let stall = stall(args, &server, &mut admin, &versions)?;
    let mut result = swapped;
    for (key, value) in stall.as_object().into_iter().flatten() {
        result[key] = value.clone();
    }
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
}

/// The two versions, by turns: odd numbers are the first, even the second.
struct Versions {
    models: [Vec<u8>; 2],
    requests: Arc<Vec<Vec<u8>>>,
    /// The data of the answer to each request, as text, by version.
    expected: Arc<[Vec<Vec<u8>>; 2]>,
}

impl Versions {
    /// Deploys versions 1 and 2 and asks each what it answers.
    fn deploy(server: &Server, admin: &mut Admin) -> Result<Self> {
        let models = [onnx::tagged_network(0.0), onnx::tagged_network(1_000.0)];
        let mut random = fastrand::Rng::with_seed(2);
        let mut row = || -> Vec<f32> { (0..64).map(|_| f32::from(random.u8(0..17))).collect() };
        let bodies: Vec<_> = (0..32).map(|_| infer::json_fp32("x", 64, &row())).collect();
        let mut expected = [Vec::new(), Vec::new()];
        for (index, model) in models.iter().enumerate() {
            admin.deploy(ENDPOINT, &Deployment::onnx(model.clone()))?;
            let mut client = server.client();
            for body in &bodies {
                let answer = client.post(&infer::path(ENDPOINT), body)?.ok()?;
                let data = data_of(&answer.body).context("an answer without data")?;
                expected[index].push(data.to_vec());
            }
        }
        ensure!(expected[0] != expected[1], "both versions answer alike");
        let request = |body: &Vec<u8>| http1::request("POST", &infer::path(ENDPOINT), &[], body);
        let requests = Arc::new(bodies.iter().map(request).collect());
        Ok(Self { models, requests, expected: Arc::new(expected) })
    }

    fn load(&self, server: &Server, connections: usize) -> Load {
        let expected = self.expected.clone();
        let check: Check = Arc::new(move |request, status, body| {
            if status != 200 {
                return Verdict::Failed;
            }
            let right = version_of(body).zip(data_of(body)).is_some_and(|(version, data)| {
                is_same(&expected[usize::from(version % 2 == 0)][request], data)
            });
            if right { Verdict::Right } else { Verdict::Wrong }
        });
        Load { address: server.http, connections, requests: self.requests.clone(), check }
    }
}

/// The text after `"data":[`, up to the closing bracket: comparing text is cheap
/// enough not to disturb the measurement.
fn data_of(body: &[u8]) -> Option<&[u8]> {
    let rest = after(body, b"\"data\":[")?;
    rest.split(|byte| *byte == b']').next()
}

/// Whether two answers are of one version: the same text, or numbers that differ
/// by what another order of additions may make, as when requests are merged.
/// The versions themselves are 1,000 apart.
fn is_same(expected: &[u8], data: &[u8]) -> bool {
    const TOLERANCE: f64 = 0.01;
    let numbers = |text: &[u8]| -> Option<Vec<f64>> {
        let text = std::str::from_utf8(text).ok()?;
        text.split(',').map(|number| number.trim().parse().ok()).collect()
    };
    let agree = |a: Vec<f64>, b: Vec<f64>| {
        a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= TOLERANCE)
    };
    expected == data || numbers(expected).zip(numbers(data)).is_some_and(|(a, b)| agree(a, b))
}

fn version_of(body: &[u8]) -> Option<u64> {
    let rest = after(body, b"\"model_version\":\"")?;
    std::str::from_utf8(rest.split(|byte| *byte == b'"').next()?).ok()?.parse().ok()
}

fn after<'a>(body: &'a [u8], marker: &[u8]) -> Option<&'a [u8]> {
    let at = body.windows(marker.len()).position(|window| window == marker)?;
    body.get(at + marker.len()..)
}

fn swap(args: &Args, server: &Server, admin: &mut Admin, versions: &Versions) -> Result<Value> {
    let steady_time = Duration::from_secs(args.steady_seconds);
    let load = versions.load(server, CLIENTS);
    // The first second finds pools and caches cold.
    load.run(Duration::from_secs(1))?;
    let running = load.start();
    wait::pass(steady_time);
    let begin = running.elapsed();
    let started = Instant::now();
    for index in 0..args.swaps {
        let due = Duration::from_secs_f64(f64::from(index) / args.rate);
        wait::pass(due.saturating_sub(started.elapsed()));
        let model = versions.models[index as usize % 2].clone();
        let deployed = admin.deploy(ENDPOINT, &Deployment::onnx(model))?;
        let version = deployed["version"].as_u64().context("no version in the answer")?;
        ensure!(version == u64::from(index) + 3, "version {version} after {index} swaps");
    }
    let end = running.elapsed();
    wait::pass(steady_time);
    let outcome = running.finish()?;
    Ok(swap_report(args, &outcome, begin, end))
}

fn swap_report(args: &Args, outcome: &Outcome, begin: Duration, end: Duration) -> Value {
    let swapping = outcome.between(begin, end);
    let mut steady = outcome.between(Duration::ZERO, begin);
    steady.samples.extend(outcome.between(end, Duration::MAX).samples);
    let (p99_steady, p99_swapping) = (steady.latency_us(0.99), swapping.latency_us(0.99));
    let rate = f64::from(args.swaps) / (end - begin).as_secs_f64();
    println!("{:<10} {:>10} {:>9} {:>9} {:>9}", "", "requests", "p50 us", "p99 us", "max us");
    for (name, part) in [("steady", &steady), ("swapping", &swapping)] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| part.latency_us(share));
        println!("{name:<10} {:>10} {p50:>9} {p99:>9} {max:>9}", part.samples.len());
    }
    println!(
        "{} swaps at {rate:.1}/s: {} failed, {} answers of another version than claimed",
        args.swaps, outcome.failed, outcome.wrong
    );
    json!({
        "swaps": args.swaps, "swaps_per_s": rate, "clients": CLIENTS,
        "requests": outcome.samples.len() + outcome.failed + outcome.wrong,
        "failed": outcome.failed, "mixed_versions": outcome.wrong,
        "p99_steady_us": p99_steady, "p99_swapping_us": p99_swapping,
        "p99_ratio": f64::from(p99_swapping) / f64::from(p99_steady.max(1)),
    })
}

/// How many clients watch for a stall: fewer than cores would leave the load
/// alone, and many would measure each other.
const WATCHERS: usize = 2;

fn stall(args: &Args, server: &Server, admin: &mut Admin, versions: &Versions) -> Result<Value> {
    let load = versions.load(server, WATCHERS);
    let slow = Deployment::onnx(onnx::slow_to_load(args.slow_depth, args.slow_products));
    let (mut before, mut during, mut ratios, mut cpu) = (vec![], vec![], vec![], vec![]);
    // The quiet window is as long as the last deployment, so that both see as
    // many of the machine's own hiccups.
    let mut window = Duration::from_secs(5);
    for round in 1..=args.rounds {
        let running = load.start();
        wait::pass(window);
        let begin = running.elapsed();
        let deployed = admin.deploy("slow", &slow)?;
        let end = running.elapsed();
        let outcome = running.finish()?;
        ensure!(outcome.failed + outcome.wrong == 0, "requests failed beside the deployment");
        window = (end - begin).clamp(Duration::from_secs(1), Duration::from_secs(30));
        let quiet_max = f64::from(outcome.between(Duration::ZERO, begin).latency_us(1.0));
        let busy_max = f64::from(outcome.between(begin, end).latency_us(1.0));
        println!(
            "stall round {round}: slowest {quiet_max:.0} us before, {busy_max:.0} us during \
             a deployment of {:.1} s",
            (end - begin).as_secs_f64()
        );
        before.push(quiet_max);
        during.push(busy_max);
        ratios.push(busy_max / quiet_max.max(1.0));
        cpu.push(longest_stage_s(&deployed));
        admin.undeploy("slow")?;
    }
    Ok(json!({
        "stall_before_max_us": stats::median(before),
        "stall_during_max_us": stats::median(during),
        "stall_ratio": stats::median(ratios),
        "stall_rounds": args.rounds,
        "stall_load_s": stats::median(cpu),
    }))
}

/// The stage that computed the constants, in seconds.
fn longest_stage_s(deployed: &Value) -> f64 {
    let stages = deployed["stages"].as_array().into_iter().flatten();
    let longest = stages.filter_map(|stage| stage["duration_us"].as_f64()).fold(0.0, f64::max);
    longest / 1e6
}
