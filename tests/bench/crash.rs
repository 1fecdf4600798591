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
/// long as the stage takes; see [`Aim`]. A stage is reported when its work
/// begins, and the moments that were hit least come first.
const MOMENTS: [(&str, Duration); 8] = [
    ("uploading", Duration::from_millis(3)),
    ("uploaded", Duration::from_millis(2)),
    ("verified", Duration::from_millis(6)),
    ("compiled", Duration::from_millis(60)),
    ("self_tested", Duration::from_millis(100)),
    ("warmed", Duration::from_millis(15)),
    ("live", Duration::ZERO),
    ("acknowledged", Duration::from_millis(1)),
];

/// Products in the model: long enough for its tests and its warm-up, of one run
/// each and more, to be hit.
const PRODUCTS: usize = 60;

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

impl Tally {
    /// The moment that the fewest kills were in, chosen at random among equals
    /// and, one time in four, among all: a stage too short to be hit must not
    /// take every kill.
    fn least_hit(&self, random: &mut fastrand::Rng) -> &'static str {
        let hits = |stage: &str| self.by_stage.get(stage).copied().unwrap_or(0);
        let fewest = MOMENTS.iter().map(|(stage, _)| hits(stage)).min().unwrap_or(0);
        let any = random.u8(..4) == 0;
        let open = MOMENTS.iter().filter(|(stage, _)| any || hits(stage) == fewest);
        let open: Vec<&str> = open.map(|(stage, _)| *stage).collect();
        open[random.usize(..open.len())]
    }
}

/// How long to wait before a kill. A kill that came too late shortens the wait
/// of its moment: how long a stage takes depends on the machine.
struct Aim([Duration; MOMENTS.len()]);

impl Default for Aim {
    fn default() -> Self {
        Self(MOMENTS.map(|(_, longest)| longest))
    }
}

impl Aim {
    fn delay(&self, moment: &str, random: &mut fastrand::Rng) -> Duration {
        position(moment).map_or(Duration::ZERO, |at| self.0[at].mul_f64(random.f64()))
    }

    fn correct(&mut self, moment: &str, hit: &str) {
        if let (Some(wanted), Some(found)) = (position(moment), position(hit))
            && found > wanted
        {
            self.0[wanted] = self.0[wanted].mul_f64(0.7);
        }
    }
}

fn position(stage: &str) -> Option<usize> {
    MOMENTS.iter().position(|(name, _)| *name == stage)
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
    let (mut tally, mut aim, mut live) = (Tally::default(), Aim::default(), 1);
    for kill in 0..args.kills {
        let moment = tally.least_hit(&mut random);
        let delay = aim.delay(moment, &mut random);
        let next = next_version(&server)?;
        let attempt = deploy_and_kill(&mut server, next, moment, delay)?;
        aim.correct(moment, &attempt.stage);
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
    let model = onnx::slow_tagged_sum(version as f32, PRODUCTS);
    Deployment::onnx(model).version(version).tests(&tests)
}

/// The same with a plugin that the server has not seen before and has to verify
/// and compile: our own, with a custom section of its own, long enough for its
/// upload and its verification to be hit.
fn with_new_plugin(mut deployment: Deployment, version: u64) -> Result<Deployment> {
    const PADDING_BYTES: usize = 4 << 20;
    let mut component = std::fs::read(paths::plugin("onnx"))?;
    let name = format!("v{version}");
    let mut section = vec![u8::try_from(name.len()).context("a short name")?];
    section.extend_from_slice(name.as_bytes());
    section.resize(section.len() + PADDING_BYTES, 0);
    component.push(0);
    component.extend_from_slice(&leb128(section.len()));
    component.extend_from_slice(&section);
    let uploaded = Part::uploaded("onnx-again", component);
    deployment.plugin = Part { assets: deployment.plugin.assets, ..uploaded };
    Ok(deployment)
}

fn leb128(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
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
    if matches!(moment, "uploading" | "uploaded" | "verified" | "compiled") {
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
    let count = |stage: &str| tally.by_stage.get(stage).copied().unwrap_or(0);
    for (stage, _) in MOMENTS {
        println!("{stage:<14} {:>6}", count(stage));
    }
    let fewest = MOMENTS.iter().map(|(stage, _)| count(stage)).min();
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
        "by_stage": tally.by_stage, "fewest_in_a_stage": fewest, "live_after": tally.went_live, "seed": seed,
    });
    report::print(result, json!({"mortise": report::our_version()}));
}
