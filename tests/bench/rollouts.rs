//! Rollouts from end to end: a good version, one that fails more often and one
//! that is slower, under load; simulated rollouts of a healthy twin; and
//! `kill -9` in the middle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::load::{Load, Running, Verdict};
use mortise_tests::{Admin, Deployment, Options, Server, http1, infer, onnx, wait};
use serde_json::{Value, json};

use crate::{policies, report};

const ENDPOINT: &str = "sum";
const LIMIT: Duration = Duration::from_secs(240);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Simulated rollouts at each of three base error rates.
    #[arg(long, default_value_t = 500)]
    simulations: u64,
    /// `kill -9` in the middle of a rollout.
    #[arg(long, default_value_t = 50)]
    kills: u64,
    /// Time of each step of the rollouts under load.
    #[arg(long, default_value = "5s")]
    interval: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut result = under_load(args)?;
    let simulated = policies::own_program("canary", &[args.simulations.to_string()])?;
    for (key, value) in simulated.as_object().into_iter().flatten() {
        result[key] = value.clone();
    }
    result["kills"] = args.kills.into();
    result["resumed"] = kills(args.kills)?.into();
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
}

/// Promotes a good version, and has two bad ones rolled back.
fn under_load(args: &Args) -> Result<Value> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy(ENDPOINT, &model(1.0, 0.005, 0))?;
    let round_ns = round_ns(&server, &mut admin)?;
    let load = traffic(&server);
    let good = rollout(&mut admin, args, &model(2.0, 0.005, 0))?;
    let failing = rollout(&mut admin, args, &model(3.0, 0.03, 0))?;
    let work = (added_ns(&good, 3.0) / round_ns) as u64;
    let slow = rollout(&mut admin, args, &model(4.0, 0.005, work))?;
    let outcome = load.finish()?;
    let ended = |end: &Value, phase: &str| u64::from(end["phase"] == phase);
    for (what, end) in [("good", &good), ("failing", &failing), ("slow", &slow)] {
        println!("{what}: {} after {} ms: {}", end["phase"], end["elapsed_ms"], end["reason"]);
    }
    Ok(json!({
        "promoted": ended(&good, "promoted"),
        "rolled_back": ended(&failing, "rolled_back") + ended(&slow, "rolled_back"),
        "touched_share": {"errors": touched(&failing), "latency": touched(&slow)},
        "requests": outcome.samples.len() + outcome.failed,
        "failed_by_the_machinery": outcome.wrong,
    }))
}

/// Deploys, waits for the end, and returns it.
fn rollout(admin: &mut Admin, args: &Args, version: &Deployment) -> Result<Value> {
    let strategy = Part::builtin("canary").set("interval", args.interval.clone());
    let rollout = Rollout { key: Some("header:user".to_owned()), ..Rollout::of(strategy) };
    admin.deploy(ENDPOINT, &version.clone().rollout(rollout))?;
    wait::until("a rollout to end", LIMIT, || Ok(admin.rollout(ENDPOINT)?["phase"] != "running"))?;
    admin.rollout(ENDPOINT)
}

/// Share of the requests that a version answered while it was tried.
fn touched(end: &Value) -> f64 {
    let requests = |variant: &str| end[variant]["requests"].as_f64().unwrap_or(0.0);
    requests("candidate") / (requests("stable") + requests("candidate")).max(1.0)
}

/// What a round of the fault plugin's arithmetic takes, in ns: it differs several
/// times between machines. The fastest of a few requests, which waited for no one.
fn round_ns(server: &Server, admin: &mut Admin) -> Result<f64> {
    const ROUNDS: u64 = 4_000_000;
    const PROBE: &str = "probe";
    admin.deploy(PROBE, &model(1.0, 0.0, ROUNDS))?;
    let (mut client, body) = (server.client(), infer::json_fp32("x", 1, &[1.0]));
    let mut fastest = Duration::MAX;
    for _ in 0..9 {
        let start = Instant::now();
        let response = client.post(&infer::path(PROBE), &body)?;
        ensure!(response.status == 200, "{}: {}", response.status, response.text());
        fastest = fastest.min(start.elapsed());
    }
    admin.undeploy(PROBE)?;
    Ok(fastest.as_nanos() as f64 / ROUNDS as f64)
}

/// `factor - 1` times the median latency, in ns.
fn added_ns(end: &Value, factor: f64) -> f64 {
    let latency: Vec<u64> = end["stable"]["latency"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64)
        .collect();
    let total: u64 = latency.iter().sum();
    let mut so_far = 0;
    let median = latency.iter().position(|count| {
        so_far += count;
        so_far * 2 >= total
    });
    let median_us = 10.0 * (median.unwrap_or(0) as f64 / 4.0).exp2();
    median_us * 1_000.0 * (factor - 1.0)
}

/// Time between evaluations of the rollout that is killed: long enough that
/// what a server read from its store can be asked before it evaluates again.
const TICK: Duration = Duration::from_millis(500);

/// Kills the server in the middle of a rollout, again and again, and counts how
/// often it went on at the same step with the evidence of the last tick.
fn kills(kills: u64) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    server.admin()?.deploy(ENDPOINT, &model(1.0, 0.005, 0))?;
    let strategy = Part::builtin("canary")
        .set("interval", "1h")
        .set("check", format!("{}ms", TICK.as_millis()))
        .set("steps", json!([25, 100]))
        // Killed and started all the time, its latency says nothing.
        .set("latency_tolerance", 1_000);
    let version = model(2.0, 0.005, 0).rollout(Rollout::of(strategy));
    server.admin()?.deploy(ENDPOINT, &version)?;
    let mut random = fastrand::Rng::with_seed(5);
    let mut resumed = 0;
    for kill in 0..kills {
        let load = traffic(&server);
        let mut admin = server.admin()?;
        let start = progress(&mut admin)?;
        wait::until("a tick", LIMIT, || Ok(progress(&mut admin)?.tick > start.tick))?;
        wait::pass(TICK.mul_f64(random.f64()));
        let before = progress(&mut admin)?;
        server.kill()?;
        load.finish()?;
        server = Server::start_with(options.clone())?;
        let after = progress(&mut server.admin()?)?;
        let is_resumed = after.went_on_from(&before);
        if !is_resumed {
            println!("kill {kill}: {before:?} became {after:?}");
        }
        resumed += u64::from(is_resumed);
    }
    Ok(resumed)
}

/// What must survive.
#[derive(Debug)]
struct Progress {
    weight: f64,
    tick: u64,
    /// Time that was evaluated.
    evaluated_ms: u64,
    /// Odds of each test at the last tick.
    evidence: Value,
    /// Requests of the candidate, with those since the last tick.
    requests: u64,
}

impl Progress {
    /// Whether this was read from a store whose server was killed right after
    /// `before`: the tick of then, or the one that was just due.
    fn went_on_from(&self, before: &Self) -> bool {
        let is_same_step = self.weight == before.weight;
        match self.tick.checked_sub(before.tick) {
            Some(0) => {
                let is_same_time = self.evaluated_ms == before.evaluated_ms;
                let is_same_evidence = self.evidence == before.evidence;
                is_same_step && is_same_time && is_same_evidence && self.requests <= before.requests
            }
            Some(1) => is_same_step && self.requests >= before.requests,
            _ => false,
        }
    }
}

fn progress(admin: &mut Admin) -> Result<Progress> {
    let rollout = admin.rollout(ENDPOINT)?;
    ensure!(rollout["phase"] == "running", "{rollout}");
    Ok(Progress {
        weight: rollout["weight_percent"].as_f64().context("no weight")?,
        tick: rollout["tick"].as_u64().context("no tick")?,
        evaluated_ms: rollout["elapsed_ms"].as_u64().context("no time")?,
        evidence: rollout["evidence"].clone(),
        requests: rollout["candidate"]["requests"].as_u64().context("no requests")?,
    })
}

fn model(tag: f32, error_rate: f64, work: u64) -> Deployment {
    let faults = Part::builtin("faults")
        .set("input", json!({"name": "x", "datatype": "FP32", "shape": [-1, 1]}))
        .set("error_rate", error_rate)
        .set("work", work);
    Deployment::onnx(onnx::tagged_sum(tag)).transform(faults)
}

/// Requests of many users. A status of 500 is the versions' own; anything else
/// that is no success is the machinery's.
fn traffic(server: &Server) -> Running {
    let request = |user: u32| {
        let body = infer::json_fp32("x", 1, &[user as f32]);
        let user = format!("user-{user}");
        http1::request("POST", &infer::path(ENDPOINT), &[("user", &user)], &body)
    };
    let check = Arc::new(|_: usize, status: u16, _: &[u8]| match status {
        200 => Verdict::Right,
        500 => Verdict::Failed,
        _ => Verdict::Wrong,
    });
    let requests = Arc::new((0..1_000).map(request).collect());
    Load { address: server.http, connections: 4, requests, check }.start()
}
