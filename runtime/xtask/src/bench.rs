//! `cargo xtask bench …`: builds, then runs a benchmark, which prints a table
//! and, last, one JSON object.

use std::path::Path;
use std::{fs, thread};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::sh::Command;
use crate::workspace::Workspace;
use crate::{components, peers, python};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// 1,000 version swaps under 16 clients, and the stall of a slow deployment.
    Swap,
    /// The cost of crossing into a plugin, and of loading one.
    Plugin,
    /// Requests per second beside LitServe, FastAPI and a bare hyper server.
    Serve,
    /// This server beside Triton, MLServer, LitServe and Ray Serve, with wrk,
    /// h2load and perf_analyzer.
    Peers,
    /// Idle memory, start-up time, size of the binary.
    Footprint,
    /// `kill -9` during deployments.
    Crash,
    /// Merged requests beside single ones, at 1 and 64 connections.
    Batching,
    /// Three times the capacity, offered open-loop.
    Overload,
    /// What routers and shadows cost.
    Policies,
    /// Canaries that climb and that are taken back, and `kill -9` between.
    Rollouts,
    /// Whole models on the CPU device, beside onnxruntime on the same cores.
    Models,
    /// Models with weights in fewer bits: size, speed and what it does to answers.
    Quantize,
    /// A canary with a model of the real Triton, which is killed in the middle.
    Upstream,
}

/// Builds what the benchmark needs, runs it, and prints what it prints.
pub(crate) fn run(workspace: &Workspace, what: Bench, dist: bool, args: &[String]) -> Result<()> {
    components::build_plugins(workspace)?;
    if what == Bench::Plugin {
        components::build_guests(workspace)?;
    }
    workspace.cargo(&["build", "--release", "--workspace", "--bins"]).run()?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if !dist {
        return measure(workspace, what, &args).map(drop);
    }
    components::build_dist(workspace)?;
    measure_server(workspace, &workspace.dist_binary(), what, &args).map(drop)
}

/// Runs a built benchmark, prints what it prints, and returns its last line,
/// one JSON object, to which what every object carries is added.
pub(crate) fn measure(workspace: &Workspace, what: Bench, args: &[&str]) -> Result<Value> {
    measure_server(workspace, &workspace.binary("mortise"), what, args)
}

fn measure_server(
    workspace: &Workspace,
    server: &Path,
    what: Bench,
    args: &[&str],
) -> Result<Value> {
    let mut command = program(workspace, what)?.args(args).envs(workspace.environment());
    command = command.env("MORTISE_BIN", server);
    if what == Bench::Serve {
        let python = python::environment(workspace, "venv-bench", "tests/bench/requirements.txt")?;
        command = command.env("MORTISE_BENCH_PYTHON", python);
    }
    if what == Bench::Peers {
        command = command.env("MORTISE_BENCH_PEERS", peers::prepare(workspace)?);
    }
    if matches!(what, Bench::Models | Bench::Quantize) {
        let python = python::environment(workspace, "venv", "tests/requirements.txt")?;
        command = command.env("MORTISE_BENCH_PYTHON", python);
    }
    if what == Bench::Upstream {
        command = command.env("MORTISE_BENCH_PEERS", peers::prepare_only(workspace, &["triton"])?);
    }
    last_object(workspace, command)
}

/// Runs a program, prints what it prints, and returns its last line, one JSON
/// object, to which machine and commit are added.
pub(crate) fn last_object(workspace: &Workspace, command: Command) -> Result<Value> {
    let mut last = String::new();
    let success = command.stream(|line| {
        if !last.is_empty() {
            println!("{last}");
        }
        last = line.to_owned();
    })?;
    let parsed = serde_json::from_str::<Value>(&last);
    if !success || parsed.is_err() {
        println!("{last}");
    }
    anyhow::ensure!(success, "the benchmark failed");
    let mut result = parsed.context("the last line of a benchmark is one JSON object")?;
    result["machine"] = machine();
    result["commit"] = commit(workspace).into();
    println!("{result}");
    Ok(result)
}

/// The plugin host measures itself in a program of its own; everything else
/// drives the server from outside.
fn program(workspace: &Workspace, what: Bench) -> Result<Command> {
    if what == Bench::Plugin {
        return Ok(Command::new(workspace.binary("mortise-bench-plugin")));
    }
    let name = what.to_possible_value().context("every benchmark has a name")?;
    Ok(Command::new(workspace.binary("mortise-bench")).args([name.get_name()]))
}

fn machine() -> Value {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = model.map_or("unknown", |text| text.trim_start_matches([' ', '\t', ':']));
    let cores = thread::available_parallelism().map_or(0, usize::from);
    json!({"cpu": cpu, "cores": cores})
}

/// The commit measured, marked when the tree differs from it.
fn commit(workspace: &Workspace) -> String {
    let git = |args: &[&str]| Command::new("git").args(args).current_dir(&workspace.root).output();
    let hash = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|_| "unknown".into());
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Ok(changes) if !changes.is_empty() => format!("{hash}-modified"),
        _ => hash,
    }
}
