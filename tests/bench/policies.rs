//! What routing costs: a router alone, in its own program, and a million keys
//! through the routers that are sticky; then the throughput
//! of a server with a router, a transform and two versions beside one without,
//! the transform being a graph, or a plugin that is entered for each request;
//! and the tail of replies, open-loop, while a share of the requests is copied
//! to a shadow that answers, and to one that never does.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::load::{Load, Outcome, status_200};
use mortise_tests::open_loop::OpenLoop;
use mortise_tests::{Admin, Deployment, Server, http1, infer, paths, stats};
use serde_json::{Value, json};

use crate::report;

const CONNECTIONS: usize = 16;

/// Share of the capacity that is offered beside a shadow.
const OFFERED: f64 = 0.3;

/// Requests of an open-loop run that are due before this are not counted: they
/// wait for connections to be made.
const WARM: Duration = Duration::from_millis(500);

/// Turns in which the endpoints share each round's time: machines slow down and
/// speed up for seconds at a time.
const TURNS: u32 = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Interleaved pairs of each comparison.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds of load on each side of a pair.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

/// Ratios to `plain` in one round. `twin` is the same as `plain`: what the two
/// differ by is noise.
#[derive(Default)]
struct Ratios {
    routed: Vec<f64>,
    transformed: Vec<f64>,
    entered: Vec<f64>,
    twin: Vec<f64>,
    shadowed: Vec<f64>,
    hanging: Vec<f64>,
    twin_tail: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut result = own_program("router", &[])?;
    for (key, value) in own_program("sticky", &[])?.as_object().into_iter().flatten() {
        result[key] = value.clone();
    }
    let server = Server::start()?;
    let mut admin = server.admin()?;
    deploy_all(&mut admin)?;
    let time = Duration::from_secs(args.seconds);
    let mut ratios = Ratios::default();
    for number in 0..args.pairs {
        round(&server, time, number, &mut ratios)?;
    }
    let copies = copies(&mut admin)?;
    ensure!(copies > 0, "no copy was run");
    let medians = [
        ("throughput_ratio", ratios.transformed),
        ("throughput_ratio_entered", ratios.entered),
        ("throughput_ratio_router", ratios.routed),
        ("throughput_ratio_aa", ratios.twin),
        ("shadow_p99_ratio", ratios.shadowed),
        ("shadow_hanging_p99_ratio", ratios.hanging),
        ("shadow_p99_ratio_aa", ratios.twin_tail),
    ];
    for (key, values) in medians {
        result[key] = stats::median(values).into();
    }
    result["shadow_copies"] = copies.into();
    result["pairs"] = args.pairs.into();
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
}

fn deploy_all(admin: &mut Admin) -> Result<()> {
    for name in ["plain", "twin", "routed", "shadowed", "hanging"] {
        admin.deploy(name, &digits(None)?)?;
    }
    admin.deploy("routed", &digits(Some(split("weighted", Value::Null)))?)?;
    for (name, transform) in [("transformed", limits()), ("entered", faults(0))] {
        let deployment = || Ok::<_, anyhow::Error>(digits(None)?.transform(transform.clone()));
        admin.deploy(name, &deployment()?)?;
        admin.deploy(name, &deployment()?.rollout(split("weighted", Value::Null)))?;
    }
    admin.deploy("shadowed", &digits(Some(split("shadow", json!(0.1))))?)?;
    // Runs until it is stopped.
    let endless = digits(Some(split("shadow", json!(0.1))))?.transform(faults(1 << 50));
    admin.deploy("hanging", &endless)?;
    Ok(())
}

fn round(server: &Server, time: Duration, number: usize, ratios: &mut Ratios) -> Result<()> {
    let names = ["plain", "routed", "transformed", "entered", "twin"];
    let mut rps = [0.0; 5];
    for turn in 0..TURNS {
        let one = |name: &str| Ok(measure(server, name, time / TURNS)?.rps());
        let part = in_turn(names, number + turn as usize, one)?;
        rps.iter_mut().zip(part).for_each(|(sum, rps)| *sum += rps / f64::from(TURNS));
    }
    let [plain, routed, transformed, entered, twin] = rps;
    ratios.routed.push(routed / plain);
    ratios.transformed.push(transformed / plain);
    ratios.entered.push(entered / plain);
    ratios.twin.push(twin / plain);
    let p99 = |name: &str| tail(server, name, plain * OFFERED, time);
    let names = ["plain", "shadowed", "hanging", "twin"];
    let [alone, shadowed, hanging, twin_tail] = in_turn(names, number, p99)?;
    ratios.shadowed.push(shadowed / alone);
    ratios.hanging.push(hanging / alone);
    ratios.twin_tail.push(twin_tail / alone);
    println!(
        "plain {plain:.0} rps, routed {routed:.0}, with a transform {transformed:.0}, \
         entered for each request {entered:.0}, twin {twin:.0}; p99 at {:.0} rps: plain \
         {alone:.0} us, shadow {shadowed:.0}, hanging shadow {hanging:.0}, twin {twin_tail:.0}",
        plain * OFFERED
    );
    Ok(())
}

/// Measures each endpoint, in another order in each round, so that none gains
/// by its place.
fn in_turn<const N: usize>(
    names: [&str; N],
    round: usize,
    measure: impl Fn(&str) -> Result<f64>,
) -> Result<[f64; N]> {
    let mut results = [0.0; N];
    for at in (0..N).map(|at| (at + round) % N) {
        results[at] = measure(names[at])?;
    }
    Ok(results)
}

/// What `mortise-bench-policies` prints.
pub(crate) fn own_program(command: &str, more: &[String]) -> Result<Value> {
    let program = std::env::current_exe()?.with_file_name("mortise-bench-policies");
    let folder = paths::plugin("weighted");
    let folder = folder.parent().context("components lie in a folder")?;
    let output = Command::new(&program)
        .arg(command)
        .arg(folder)
        .args(more)
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    print!("{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{} failed", program.display());
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn digits(rollout: Option<Rollout>) -> Result<Deployment> {
    let model = std::fs::read(paths::demo("digits/model.onnx"))?;
    Ok(Deployment { rollout, ..Deployment::onnx(model) })
}

fn split(router: &str, share: Value) -> Rollout {
    let mut router = Part::builtin(router);
    if !share.is_null() {
        router = router.set("share", share);
    }
    let strategy = Part::builtin("manual").set("weight", 50);
    let key = Some("header:user".to_owned());
    Rollout { router: Some(router), key, ..Rollout::of(strategy) }
}

/// Limits the pixels: a graph, which is fused with the model's.
fn limits() -> Part {
    let column = json!({"name": "pixels", "type": "number", "width": 64});
    let step = json!({"step": "clip", "columns": {"pixels": {"min": 0, "max": 16}}});
    Part::builtin("tabular")
        .set("columns", json!([column]))
        .set("steps", json!([step]))
        .set("output", json!({"name": "pixels"}))
}

/// A plugin that passes pixels through, after some rounds of arithmetic.
fn faults(work: u64) -> Part {
    let input = json!({"name": "pixels", "datatype": "FP32", "shape": [-1, 64]});
    Part::builtin("faults").set("input", input).set("work", work)
}

fn requests(name: &str) -> Arc<Vec<Vec<u8>>> {
    let pixels: Vec<f32> = (0..64).map(|at| f32::from((at * 7 % 17) as u8)).collect();
    let body = infer::json_fp32("pixels", 64, &pixels);
    let request = |user: usize| {
        let user = format!("user-{user}");
        http1::request("POST", &infer::path(name), &[("user", &user)], &body)
    };
    Arc::new((0..64).map(request).collect())
}

fn measure(server: &Server, name: &str, time: Duration) -> Result<Outcome> {
    let load = Load {
        address: server.http,
        connections: CONNECTIONS,
        requests: requests(name),
        check: status_200(),
    };
    let outcome = load.run(time)?;
    ensure!(outcome.failed == 0, "{} requests to {name} failed", outcome.failed);
    Ok(outcome)
}

/// Microseconds at the 99th percentile, from when a request was due.
fn tail(server: &Server, name: &str, per_second: f64, duration: Duration) -> Result<f64> {
    let offered = OpenLoop {
        address: server.http,
        requests: requests(name),
        per_second,
        duration: WARM + duration,
        max_connections: 256,
    }
    .run()?;
    let failed = offered.answers.iter().filter(|answer| answer.status != 200).count();
    ensure!(failed == 0, "{failed} requests to {name} failed");
    let counted = offered.answers.iter().filter(|answer| answer.due >= WARM);
    let mut latency: Vec<u32> = counted.map(|answer| answer.latency_us).collect();
    Ok(f64::from(stats::percentile(&mut latency, 0.99).max(1)))
}

fn copies(admin: &mut Admin) -> Result<u64> {
    let candidate = admin.rollout("shadowed")?["candidate"].take();
    ensure!(candidate["shadow_differing"] == 0, "equal models differ: {candidate}");
    candidate["shadow_compared"].as_u64().context("no count of copies")
}
