//! `cargo xtask test` and `soak`: the steps, their order, and the tally.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::sh::{Command, seconds};
use crate::workspace::Workspace;
use crate::{bench, components, conformance, gpu_driver, peers, python, tidy};

/// How long the open-ended tests go on.
struct Effort {
    fuzz_seconds: u32,
    kills: u32,
    swaps: u32,
    stall_rounds: u32,
    /// Simulated rollouts of a healthy twin at each base error rate.
    simulations: u32,
    rollout_kills: u32,
    /// Interleaved pairs of servers with and without routers and shadows.
    policy_pairs: u32,
}

const QUICK: Effort = Effort {
    fuzz_seconds: 20,
    kills: 20,
    swaps: 100,
    stall_rounds: 1,
    simulations: 20,
    rollout_kills: 5,
    policy_pairs: 1,
};

const SOAK: Effort = Effort {
    fuzz_seconds: 600,
    kills: 200,
    swaps: 1_000,
    stall_rounds: 5,
    simulations: 500,
    rollout_kills: 50,
    policy_pairs: 7,
};

#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Counts {
    const ONE: Self = Self { passed: 1, failed: 0 };

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

struct Plan<'a> {
    workspace: &'a Workspace,
    effort: Effort,
}

type Run = fn(&Plan) -> Result<Counts>;

struct Step {
    name: &'static str,
    /// The steps after this one need what it builds.
    required: bool,
    run: Run,
}

const fn step(name: &'static str, run: Run) -> Step {
    Step { name, required: false, run }
}

const fn required(name: &'static str, run: Run) -> Step {
    Step { name, required: true, run }
}

/// Everything. The order is cheap before dear, and builds before their users.
const TEST: &[Step] = &[
    step("tidy", |plan| tidy::check(plan.workspace)),
    required("plugins", |plan| one(components::build_plugins(plan.workspace))),
    required("guests", |plan| one(components::build_guests(plan.workspace))),
    required("binaries", build_binaries),
    step("clippy", clippy),
    step("gpu driver", |_| one(gpu_driver::ensure())),
    step("rust tests", rust_tests),
    step("conformance", onnx_conformance),
    required("python", |plan| one(python_tests_environment(plan.workspace).map(drop))),
    step("models", |plan| python_script(plan, "tests/clients/models.py")),
    step("clients", clients),
    step("fuzz", fuzz),
    step("crash", crash),
    step("swap", swap),
    step("policies", policies),
    step("rollouts", rollouts),
];

/// The open-ended tests at full length; `test` has passed before.
const LONG: &[Step] = &[
    required("plugins", |plan| one(components::build_plugins(plan.workspace))),
    required("guests", |plan| one(components::build_guests(plan.workspace))),
    required("binaries", build_binaries),
    step("gpu driver", |_| one(gpu_driver::ensure())),
    step("long tests", long_tests),
    step("fuzz", fuzz),
    step("crash", crash),
    step("swap", swap),
    step("policies", policies),
    step("rollouts", rollouts),
];

pub(crate) fn test(workspace: &Workspace, only: Option<&str>) -> Result<()> {
    let chosen: Vec<&Step> =
        TEST.iter().filter(|step| only.is_none_or(|text| step.name.contains(text))).collect();
    if chosen.is_empty() {
        let names: Vec<_> = TEST.iter().map(|step| step.name).collect();
        bail!("no step matches; there are: {}", names.join(", "));
    }
    run_steps(&Plan { workspace, effort: QUICK }, &chosen)
}

pub(crate) fn soak(workspace: &Workspace) -> Result<()> {
    run_steps(&Plan { workspace, effort: SOAK }, &LONG.iter().collect::<Vec<_>>())
}

struct Line {
    name: &'static str,
    counts: Counts,
    time: Duration,
}

fn run_steps(plan: &Plan, steps: &[&Step]) -> Result<()> {
    let wants_python = steps.iter().any(|step| step.name == "python");
    let lines = thread::scope(|scope| {
        // Downloading beside compiling: the network is idle otherwise. The
        // step "python" reports a failure.
        if wants_python {
            scope.spawn(|| python_tests_environment(plan.workspace).map(drop));
        }
        steps_in_order(plan, steps)
    });
    let total = print_table(&lines);
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 { Err(anyhow!("{} failed", total.failed)) } else { Ok(()) }
}

fn steps_in_order(plan: &Plan, steps: &[&Step]) -> Vec<Line> {
    let mut lines = Vec::new();
    for step in steps {
        eprintln!("\n=== {} ===", step.name);
        let start = Instant::now();
        let counts = (step.run)(plan).unwrap_or_else(|error| {
            eprintln!("{}: {error:#}", step.name);
            Counts { passed: 0, failed: 1 }
        });
        lines.push(Line { name: step.name, counts, time: start.elapsed() });
        if step.required && counts.failed > 0 {
            eprintln!("the steps after {} need it; stopping", step.name);
            break;
        }
    }
    lines
}

fn print_table(lines: &[Line]) -> Counts {
    let mut total = Counts::default();
    println!("\n{:<12} {:>7} {:>7} {:>10}", "step", "passed", "failed", "time");
    for Line { name, counts, time } in lines {
        println!("{name:<12} {:>7} {:>7} {:>10}", counts.passed, counts.failed, seconds(*time));
        total.add(*counts);
    }
    total
}

fn one(result: Result<()>) -> Result<Counts> {
    result.map(|()| Counts::ONE)
}

/// One selection of packages for all builds and tests: another one would mean
/// other features, and wasmtime compiled twice.
fn build_binaries(plan: &Plan) -> Result<Counts> {
    one(plan.workspace.cargo(&["build", "--release", "--workspace", "--bins"]).run())
}

fn clippy(plan: &Plan) -> Result<Counts> {
    // In release, so that build scripts and macros are those of the build.
    const ARGS: &[&str] =
        &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    one(plan.workspace.cargo(ARGS).run())
}

fn rust_tests(plan: &Plan) -> Result<Counts> {
    counted(plan.workspace.cargo(&["test", "--release", "--workspace", "--no-fail-fast"]))
}

/// Tests beside the code that go on for longer when they are told to.
fn long_tests(plan: &Plan) -> Result<Counts> {
    const ARGS: &[&str] =
        &["test", "--release", "--workspace", "--lib", "--", "memory_stays_flat", "--nocapture"];
    counted(plan.workspace.cargo(ARGS).env("MORTISE_SOAK", "1"))
}

fn onnx_conformance(plan: &Plan) -> Result<Counts> {
    conformance::check(plan.workspace, &conformance::measure(plan.workspace, "")?)
}

fn python_tests_environment(workspace: &Workspace) -> Result<PathBuf> {
    python::environment(workspace, "venv", "tests/requirements.txt")
}

fn python_script(plan: &Plan, script: &str) -> Result<Counts> {
    counted(python_command(plan, script)?)
}

fn python_command(plan: &Plan, script: &str) -> Result<Command> {
    let workspace = plan.workspace;
    let python = python_tests_environment(workspace)?;
    Ok(Command::new(python)
        .args([workspace.path(script)])
        .current_dir(&workspace.root)
        .envs(workspace.environment()))
}

/// The clients that users have, as they are.
fn clients(plan: &Plan) -> Result<Counts> {
    let mut counts = python_script(plan, "tests/clients/demo.py")?;
    counts.add(python_script(plan, "tests/clients/over_grpc.py")?);
    match peers::perf_analyzer(plan.workspace) {
        Ok(perf) => {
            let command = python_command(plan, "tests/clients/perf.py")?;
            counts.add(counted(command.args([perf.program, perf.libraries]))?);
        }
        Err(error) => println!("perf_analyzer is skipped: {error:#}"),
    }
    Ok(counts)
}

fn fuzz(plan: &Plan) -> Result<Counts> {
    let seconds = plan.effort.fuzz_seconds.to_string();
    let command = Command::new(plan.workspace.binary("mortise-fuzz"));
    counted(command.args(["--seconds", &seconds]).envs(plan.workspace.environment()))
}

fn crash(plan: &Plan) -> Result<Counts> {
    let kills = plan.effort.kills.to_string();
    let result = bench::measure(plan.workspace, bench::Bench::Crash, &["--kills", &kills])?;
    expect_zero(&result, &["torn", "lost_acknowledged"])
}

fn swap(plan: &Plan) -> Result<Counts> {
    let swaps = plan.effort.swaps.to_string();
    let rounds = plan.effort.stall_rounds.to_string();
    let args = ["--swaps", &swaps, "--rounds", &rounds];
    let result = bench::measure(plan.workspace, bench::Bench::Swap, &args)?;
    expect_zero(&result, &["failed", "mixed_versions"])
}

/// Times are not checked here: this machine is shared. `bench policies` fails
/// by itself when a request fails or a copy differs.
fn policies(plan: &Plan) -> Result<Counts> {
    let pairs = plan.effort.policy_pairs.to_string();
    let result = bench::measure(plan.workspace, bench::Bench::Policies, &["--pairs", &pairs])?;
    let keys = ["sticky_left", "sticky_shares_outside", "layers_dependent", "layer_shared"];
    expect_zero(&result, &keys)
}

fn rollouts(plan: &Plan) -> Result<Counts> {
    let simulations = plan.effort.simulations.to_string();
    let kills = plan.effort.rollout_kills.to_string();
    let args = ["--simulations", &simulations, "--kills", &kills];
    let result = bench::measure(plan.workspace, bench::Bench::Rollouts, &args)?;
    let mut counts = expect_zero(&result, &["failed_by_the_machinery"])?;
    let number = |key: &str| result[key].as_u64().unwrap_or(u64::MAX);
    let false_share = number("aa_false_rollbacks") as f64 / number("aa_rollouts") as f64;
    counts.add(expect("promoted", number("promoted") == 1));
    counts.add(expect("rolled_back", number("rolled_back") == 2));
    counts.add(expect("aa_false_rollbacks", false_share <= 0.05));
    counts.add(expect("resumed", number("resumed") == number("kills")));
    Ok(counts)
}

fn expect(what: &str, is_right: bool) -> Counts {
    if !is_right {
        eprintln!("{what} is not as it must be");
    }
    Counts { passed: usize::from(is_right), failed: usize::from(!is_right) }
}

/// Each key is one check: the number behind it is 0.
fn expect_zero(result: &serde_json::Value, keys: &[&str]) -> Result<Counts> {
    let mut counts = Counts::default();
    for key in keys {
        let value = result[key].as_u64().with_context(|| format!("no {key} in the result"))?;
        if value > 0 {
            eprintln!("{key} is {value}, expected 0");
        }
        counts.passed += usize::from(value == 0);
        counts.failed += usize::from(value != 0);
    }
    Ok(counts)
}

/// Runs a program that prints its tally, as `cargo test` does for each binary
/// ("… 3 passed; 0 failed; …") or as our scripts do ("3 passed, 0 failed").
fn counted(command: Command) -> Result<Counts> {
    let mut counts = Counts::default();
    let success = command.stream(|line| {
        println!("{line}");
        counts.add(tally(line).unwrap_or_default());
    })?;
    match counts {
        Counts { failed: 0, .. } if !success => bail!("failed before it could count"),
        Counts { passed: 0, failed: 0 } => bail!("ran no test"),
        counts => Ok(counts),
    }
}

fn tally(line: &str) -> Option<Counts> {
    let number_before = |word: &str| {
        let head = line.split_once(word)?.0;
        head.rsplit([' ', ',', ';']).find(|part| !part.is_empty())?.parse().ok()
    };
    let is_tally = line.starts_with("test result:") || line.ends_with(" failed");
    is_tally
        .then_some(Counts { passed: number_before(" passed")?, failed: number_before(" failed")? })
}

#[cfg(test)]
mod tests {
    use super::tally;

    #[test]
    fn tallies_are_read_from_both_forms() {
        let cases = [
            ("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured", Some((12, 0))),
            ("test result: FAILED. 3 passed; 2 failed; 0 ignored", Some((3, 2))),
            ("62 passed, 1 failed", Some((62, 1))),
            ("running 3 tests", None),
            ("the deployment failed", None),
        ];
        for (line, expected) in cases {
            let counts = tally(line).map(|counts| (counts.passed, counts.failed));
            assert_eq!(counts, expected, "{line}");
        }
    }
}
