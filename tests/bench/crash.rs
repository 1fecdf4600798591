//! `kill -9` at random moments of deployments. After each restart the endpoint
//! serves the old or the new version, whole, and nothing that was acknowledged
//! is missing. Version `n` answers `x + n`, so every answer names its version.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mortise_tests::admin::Part;
use mortise_tests::{Deployment, Options, Server, infer, onnx, paths};
use serde_json::{Value, json};

use crate::report;

const ENDPOINT: &str = "counter";
/// Never touched after its first deployment.
const NEIGHBOUR: &str = "neighbour";

/// When to kill: at most this long after the server reported the stage, after
/// uploading began, or after the deployment was acknowledged. Each is about as
/// long as the stage takes.
const MOMENTS: [(&str, Duration); 8] = [
    ("uploading", Duration::from_millis(3)),
    ("uploaded", Duration::from_micros(200)),
    ("verified", Duration::from_millis(4)),
    ("compiled", Duration::from_millis(200)),
    ("self_tested", Duration::from_millis(5)),
    ("warmed", Duration::from_micros(500)),
    ("live", Duration::ZERO),
    ("acknowledged", Duration::from_millis(1)),
];

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
        let (moment, longest) = MOMENTS[kill % MOMENTS.len()];
        let delay = longest.mul_f64(random.f64());
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

/// Version `version`, with a self-test of several examples.
fn deployment(version: u64) -> Deployment {
    let example = |x: f64| {
        let y = x + version as f64;
        format!("[[example]]\ninputs = {{ x = [[{x:?}]] }}\noutputs = {{ y = [[{y:?}]] }}\n")
    };
    let tests: String = [0.0, 0.25, 0.5, 1.0].map(example).concat();
    let model = onnx::tagged_sum(version as f32);
    Deployment::onnx(model).version(version).tests(&tests)
}

/// The same with a plugin that the server has not seen before and has to verify
/// and compile: our own, with a custom section of its own.
fn with_new_plugin(mut deployment: Deployment, version: u64) -> Result<Deployment> {
    let mut component = std::fs::read(paths::plugin("onnx"))?;
    let name = format!("v{version}");
    let length = u8::try_from(name.len()).context("a short name")?;
    component.extend_from_slice(&[0, length + 1, length]);
    component.extend_from_slice(name.as_bytes());
    let uploaded = Part::uploaded("onnx-again", component);
    deployment.plugin = Part { assets: deployment.plugin.assets, ..uploaded };
    Ok(deployment)
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
    let mut deployment = deployment(version);
    if matches!(moment, "verified" | "compiled") {
        deployment = with_new_plugin(deployment, version)?;
    }
    let mut admin = server.admin()?;
    let killer = Killer { pid: server.pid(), delay };
    let mut stage = "uploading".to_owned();
    let result = std::thread::scope(|scope| {
        if moment == "uploading" {
            scope.spawn(|| killer.kill());
        }
        admin.try_deploy(ENDPOINT, &deployment, &mut |entered| {
            stage = entered.to_owned();
            if stage == moment {
                killer.kill();
            }
        })
    });
    // A failed deployment would make every later check pass for nothing.
    if let Ok(Err(refusal)) = &result {
        anyhow::bail!("version {version} was refused: {refusal}");
    }
    let acknowledged = result.is_ok();
    if acknowledged {
        stage = "acknowledged".to_owned();
        killer.kill();
    }
    server.kill()?;
    Ok(Attempt { stage, acknowledged })
}

struct Killer {
    pid: u32,
    delay: Duration,
}

impl Killer {
    fn kill(&self) {
        let due = Instant::now() + self.delay;
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        // SAFETY: sends a signal; the child is not waited for before this returns.
        unsafe { libc::kill(self.pid as libc::pid_t, libc::SIGKILL) };
    }
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
