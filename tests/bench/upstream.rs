//! A model that the real Triton serves, and the same model as an ONNX version
//! here, in a canary; Triton is killed in the middle. Once the version here is
//! the one that is tried, once the one there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::load::{Load, Outcome, Running, status_200};
use mortise_tests::{Admin, Deployment, Server, http1, infer, paths, stats, wait};
use serde_json::{Value, json};

use crate::report;
use crate::versus::servers::{self, Peer};
use crate::versus::{MODELS, Model};

const LIMIT: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Interleaved pairs that compare Triton alone with Triton through us.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of load on each side of a pair.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let peer = servers::triton(&MODELS);
    let result = match peer {
        Ok(peer) => measure(args, peer)?,
        Err(error) => json!({"upstream": null, "reason": format!("{error:#}")}),
    };
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
}

fn measure(args: &Args, mut peer: Peer) -> Result<Value> {
    let through = through(args, &peer)?;
    let candidate = killed(&mut peer, Side::Candidate)?;
    let mut peer = servers::triton(&MODELS)?;
    let stable = killed(&mut peer, Side::Stable)?;
    let sum = |key: &str| candidate[key].as_u64().zip(stable[key].as_u64()).map(|(a, b)| a + b);
    Ok(json!({
        "requests": sum("requests"),
        "failed": sum("failed"),
        "triton_is_candidate": candidate,
        "triton_is_stable": stable,
        "throughput_ratio_16": through.0,
        "p50_added_us_1": through.1,
    }))
}

/// What Triton is in the rollout.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Candidate,
    Stable,
}

/// Kills Triton in the middle of a canary and waits for the end.
fn killed(peer: &mut Peer, side: Side) -> Result<Value> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let there = Deployment::of(Part::upstream(peer.http).set("check_every_ms", 200));
    let (first, second) = match side {
        Side::Candidate => (digits()?, there),
        Side::Stable => (there, digits()?),
    };
    admin.deploy(Model::Digits.name(), &first)?;
    let strategy = Part::builtin("canary")
        .set("interval", "2s")
        .set("check", "200ms")
        .set("steps", json!([5, 25, 50, 100]))
        // Another server is slower than the same model here, which is no fault.
        .set("latency_tolerance", 1_000);
    let rollout = Rollout { key: Some("header:user".to_owned()), ..Rollout::of(strategy) };
    admin.deploy(Model::Digits.name(), &second.rollout(rollout))?;
    let load = start_load(&server, 8);
    wait::until("a step", LIMIT, || Ok(status(&mut admin)?["weight_percent"] == 25.0))?;
    peer.kill()?;
    wait::until("the rollout to end", LIMIT, || Ok(status(&mut admin)?["phase"] != "running"))?;
    let end = status(&mut admin)?;
    let outcome = load.finish()?;
    println!("triton {}: {} {}", name(side), end["phase"], end["reason"]);
    Ok(json!({
        "phase": end["phase"],
        "reason": end["reason"],
        "last_error": end[name(side)]["last_error"],
        "fallbacks": end[name(side)]["fallbacks"],
        "requests": outcome.samples.len() + outcome.failed + outcome.wrong,
        "failed": outcome.failed + outcome.wrong,
    }))
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Candidate => "candidate",
        Side::Stable => "stable",
    }
}

fn status(admin: &mut Admin) -> Result<Value> {
    admin.rollout(Model::Digits.name())
}

/// Throughput through us over that of Triton alone, and what we add to the
/// median of one connection.
fn through(args: &Args, peer: &Peer) -> Result<(f64, f64)> {
    let server = Server::start()?;
    let there = Deployment::of(Part::upstream(peer.http));
    server.admin()?.deploy(Model::Digits.name(), &there)?;
    let time = Duration::from_secs(args.seconds);
    let (mut ratios, mut added) = (Vec::new(), Vec::new());
    for pair in 0..args.pairs {
        let run = |address, connections| load(address, connections).run(time);
        let (ours, theirs) = (run(server.http, 16)?, run(peer.http, 16)?);
        let (ours_1, theirs_1) = (run(server.http, 1)?, run(peer.http, 1)?);
        let p50 = |outcome: &Outcome| f64::from(outcome.latency_us(0.5));
        ratios.push(ours.rps() / theirs.rps().max(1e-9));
        added.push(p50(&ours_1) - p50(&theirs_1));
        println!(
            "pair {pair}: through us {:.0} rps, triton alone {:.0} rps; one connection {:.0} us, \
             alone {:.0} us",
            ours.rps(),
            theirs.rps(),
            p50(&ours_1),
            p50(&theirs_1)
        );
    }
    Ok((stats::median(ratios), stats::median(added)))
}

fn start_load(server: &Server, connections: usize) -> Running {
    load(server.http, connections).start()
}

fn load(address: std::net::SocketAddr, connections: usize) -> Load {
    let pixels: Vec<f32> = (0..64).map(|at| f32::from((at * 7 % 17) as u8)).collect();
    let body = infer::json_fp32("pixels", 64, &pixels);
    let path = infer::path(Model::Digits.name());
    let request = |user: usize| {
        let user = format!("user-{user}");
        http1::request("POST", &path, &[("user", &user)], &body)
    };
    let requests = Arc::new((0..256).map(request).collect());
    Load { address, connections, requests, check: status_200() }
}

fn digits() -> Result<Deployment> {
    let model = std::fs::read(paths::demo("digits/model.onnx")).context("read the demo's model")?;
    Ok(Deployment::onnx(model))
}
