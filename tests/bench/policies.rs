//! What routing costs: a router alone, in its own program; then the throughput
//! of a server with a router and two versions beside one without, and the tail
//! of replies while a share of the requests is copied to a shadow.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::load::{Load, Outcome, status_200};
use mortise_tests::{Admin, Deployment, Server, http1, infer, paths, stats};
use serde_json::{Value, json};

use crate::report;

const CONNECTIONS: usize = 16;
/// Far below what a core answers, so that queues do not form by themselves.
const SHADOW_CONNECTIONS: usize = 1;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Interleaved pairs of each comparison.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds of load on each side of a pair.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut result = own_program("router", &[])?;
    let server = Server::start()?;
    let mut admin = server.admin()?;
    // `plain` and `twin` are the same thing: what they differ by is noise.
    for name in ["plain", "twin", "routed", "shadowed"] {
        admin.deploy(name, &digits(None)?)?;
    }
    admin.deploy("routed", &digits(Some(split("weighted", Value::Null)))?)?;
    admin.deploy("shadowed", &digits(Some(split("shadow", json!(0.1))))?)?;
    let duration = Duration::from_secs(args.seconds);
    let (mut throughput, mut noise, mut tail, mut tail_noise) = (vec![], vec![], vec![], vec![]);
    for pair in 0..args.pairs {
        let run = |name: &str, connections| measure(&server, name, connections, duration);
        let (plain, routed) = (run("plain", CONNECTIONS)?, run("routed", CONNECTIONS)?);
        let twin = run("twin", CONNECTIONS)?;
        throughput.push(routed.rps() / plain.rps());
        noise.push(twin.rps() / plain.rps());
        let plain = run("plain", SHADOW_CONNECTIONS)?;
        let shadowed = run("shadowed", SHADOW_CONNECTIONS)?;
        let twin = run("twin", SHADOW_CONNECTIONS)?;
        let p99 = |outcome: &Outcome| f64::from(outcome.latency_us(0.99).max(1));
        tail.push(p99(&shadowed) / p99(&plain));
        tail_noise.push(p99(&twin) / p99(&plain));
        println!(
            "pair {pair}: throughput {:.3} (A/A {:.3}), p99 beside a shadow {:.3} (A/A {:.3})",
            throughput[pair], noise[pair], tail[pair], tail_noise[pair]
        );
    }
    let copies = copies(&mut admin)?;
    ensure!(copies > 0, "no copy was run");
    result["throughput_ratio"] = stats::median(throughput).into();
    result["throughput_ratio_aa"] = stats::median(noise).into();
    result["shadow_p99_ratio"] = stats::median(tail).into();
    result["shadow_p99_ratio_aa"] = stats::median(tail_noise).into();
    result["shadow_copies"] = copies.into();
    result["pairs"] = args.pairs.into();
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
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

fn measure(server: &Server, name: &str, connections: usize, time: Duration) -> Result<Outcome> {
    let pixels: Vec<f32> = (0..64).map(|at| f32::from((at * 7 % 17) as u8)).collect();
    let body = infer::json_fp32("pixels", 64, &pixels);
    let request = |user: usize| {
        let user = format!("user-{user}");
        http1::request("POST", &infer::path(name), &[("user", &user)], &body)
    };
    let requests = Arc::new((0..64).map(request).collect());
    let load = Load { address: server.http, connections, requests, check: status_200() };
    let outcome = load.run(time)?;
    ensure!(outcome.failed == 0, "{} requests to {name} failed", outcome.failed);
    Ok(outcome)
}

fn copies(admin: &mut Admin) -> Result<u64> {
    let candidate = admin.rollout("shadowed")?["candidate"].take();
    ensure!(candidate["shadow_differing"] == 0, "equal models differ: {candidate}");
    candidate["shadow_compared"].as_u64().context("no count of copies")
}
