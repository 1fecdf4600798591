//! `kill -9` at random moments of deployments. After each restart the endpoint
//! serves the old or the new version, whole, and nothing that was acknowledged
//! is missing. Version `n` answers `x + n`, so every answer names its version.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mortise_tests::{Deployment, Options, Server, infer, onnx};
use serde_json::{Value, json};

use crate::report;

const ENDPOINT: &str = "counter";
/// Never touched after its first deployment.
const NEIGHBOUR: &str = "neighbour";

/// When to kill: in this stage, as the server reports it; while uploading; or as
/// soon as the deployment is acknowledged.
const MOMENTS: [&str; 8] = [
    "uploading",
    "uploaded",
    "verified",
    "compiled",
    "self_tested",
    "warmed",
    "live",
    "acknowledged",
];

/// The most that a kill comes after its moment; stages are shorter than this.
const MAX_DELAY_US: u64 = 3_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// Seed of the moments; chosen and printed when left out.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Default)]
struct Tally {
    by_stage: BTreeMap<String, usize>,
    torn: Vec<String>,
    lost: Vec<String>,
    went_live: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    server.admin()?.deploy(NEIGHBOUR, &deployment(7))?;
    server.admin()?.deploy(ENDPOINT, &deployment(1))?;
    let (mut tally, mut live) = (Tally::default(), 1);
    for kill in 0..args.kills {
        let moment = MOMENTS[kill % MOMENTS.len()];
        let delay = Duration::from_micros(random.u64(0..MAX_DELAY_US));
        let next = next_version(&server)?;
        let attempt = deploy_and_kill(&mut server, next, moment, delay)?;
        *tally.by_stage.entry(attempt.stage).or_default() += 1;
        server = Server::start_with(options.clone())?;
        match whole_version(&server) {
            Ok(found) if found != live && found != next => {
                tally.torn.push(format!("kill {kill}: version {found}, not {live} or {next}"));
            }
            Ok(found) => {
                if attempt.acknowledged && found != next {
                    tally
                        .lost
                        .push(format!("kill {kill}: {next} was acknowledged, {found} serves"));
                }
                tally.went_live += usize::from(found == next);
                live = found;
            }
            Err(error) => tally.torn.push(format!("kill {kill} ({moment}): {error:#}")),
        }
    }
    print(args, seed, &tally);
    Ok(())
}

fn deployment(version: u64) -> Deployment {
    let answer = version as f64 + 0.5;
    let tests =
        format!("[[example]]\ninputs = {{ x = [[0.5]] }}\noutputs = {{ y = [[{answer:?}]] }}\n");
    Deployment::onnx(onnx::tagged_sum(version as f32)).version(version).tests(&tests)
}

/// A number that no version of the endpoint has, also none that a kill left
/// behind unfinished.
fn next_version(server: &Server) -> Result<u64> {
    let versions = server.admin()?.get(&format!("/v1/endpoints/{ENDPOINT}/versions"))?;
    let list = versions.ok()?.json()?;
    let numbers = list.as_array().into_iter().flatten().filter_map(|version| {
        version["number"].as_u64().or_else(|| version["version"]["number"].as_u64())
    });
    numbers.max().map(|newest| newest + 1).context("the endpoint has no versions")
}

struct Attempt {
    /// The last that was heard of before the kill.
    stage: String,
    acknowledged: bool,
}

/// Starts deploying and kills the server `delay` after `moment`.
fn deploy_and_kill(
    server: &mut Server,
    version: u64,
    moment: &str,
    delay: Duration,
) -> Result<Attempt> {
    let mut admin = server.admin()?;
    let deployment = deployment(version);
    let (events, inbox) = mpsc::channel::<String>();
    let started = Arc::new(AtomicBool::new(false));
    let flag = started.clone();
    let client = std::thread::spawn(move || {
        flag.store(true, Ordering::Release);
        let mut tell = |stage: &str| drop(events.send(stage.to_owned()));
        let result = admin.try_deploy(ENDPOINT, &deployment, &mut tell);
        if matches!(result, Ok(Ok(_))) {
            tell("acknowledged");
        }
    });
    while !started.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
    let mut stage = "uploading".to_owned();
    while stage != moment {
        match inbox.recv() {
            Ok(next) => stage = next,
            Err(_) => break,
        }
    }
    let due = Instant::now() + delay;
    while Instant::now() < due {
        std::hint::spin_loop();
    }
    server.kill()?;
    // Joining ends the channel, so everything that was heard is in the inbox.
    client.join().map_err(|_| anyhow::anyhow!("the deploying client panicked"))?;
    if let Some(last) = inbox.try_iter().last() {
        stage = last;
    }
    let acknowledged = stage == "acknowledged";
    Ok(Attempt { stage, acknowledged })
}

/// The version that serves, after checking that everything about it agrees.
fn whole_version(server: &Server) -> Result<u64> {
    let mut client = server.client();
    client.get("/v2/health/ready")?.ok()?;
    let state = server.admin()?.describe(ENDPOINT)?;
    anyhow::ensure!(state["state"] == "ready", "the endpoint is not ready: {state}");
    let described = state["revision"]["version"]["number"].as_u64().context("no version")?;
    let mut ask = |endpoint: &str| -> Result<(u64, f64)> {
        let request = infer::json_fp32("x", 1, &[0.25]);
        let answer = client.post(&infer::path(endpoint), &request)?.ok()?.json()?;
        let version = answer["model_version"].as_str().and_then(|text| text.parse().ok());
        let data = infer::output(&answer, "y").and_then(|data| data.first()?.as_f64());
        version.zip(data).with_context(|| format!("not an answer: {answer}"))
    };
    let (claimed, data) = ask(ENDPOINT)?;
    anyhow::ensure!(claimed == described, "version {described} is live, {claimed} answers");
    anyhow::ensure!(data == claimed as f64 + 0.25, "version {claimed} answers {data}");
    let neighbour = ask(NEIGHBOUR)?;
    anyhow::ensure!(neighbour == (7, 7.25), "the neighbour answers {neighbour:?}");
    Ok(claimed)
}

fn print(args: &Args, seed: u64, tally: &Tally) {
    println!("{:<14} {:>6}", "killed in", "times");
    for (stage, count) in &tally.by_stage {
        println!("{stage:<14} {count:>6}");
    }
    tally.torn.iter().for_each(|line| println!("torn: {line}"));
    tally.lost.iter().for_each(|line| println!("lost: {line}"));
    println!(
        "{} kills: {} of the deployments were live afterwards, {} torn, {} acknowledged and lost",
        args.kills,
        tally.went_live,
        tally.torn.len(),
        tally.lost.len()
    );
    let result: Value = json!({
        "kills": args.kills, "torn": tally.torn.len(), "lost_acknowledged": tally.lost.len(),
        "by_stage": tally.by_stage, "live_after": tally.went_live, "seed": seed,
    });
    report::print(result, json!({"mortise": report::our_version()}));
}
