//! ONNX's backend node tests, through the real plugin: each model is handed to
//! the ONNX component in the plugin host, and the graph that it builds runs on
//! the CPU device. No server is between, because the wire has no words for
//! ONNX's narrow types. `export.py` writes the cases.
//!
//! Prints what failed and what is unsupported, the counts by operator, and as
//! its last line one JSON object.

mod cases;
mod compare;
mod model;
mod report;

use crate::cases::{Case, Cases};
use crate::model::Models;
use crate::report::{Outcome, Report};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[derive(Parser)]
struct Args {
    /// The folder that `export.py` wrote.
    #[arg(long)]
    cases: PathBuf,
    /// The ONNX plugin, a component.
    #[arg(long)]
    plugin: PathBuf,
    /// Where machine code is kept from one run to the next.
    #[arg(long)]
    cache: PathBuf,
    /// Runs only the tests whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Version of the tests, for the result.
    #[arg(long)]
    onnx_version: String,
}

fn main() -> Result<ExitCode> {
    // The plugin host compiles in a child process, which is this program.
    if std::env::args().nth(1).as_deref() == Some(model::COMPILE_ARGUMENT) {
        return Ok(mortise_host::compile_worker_main());
    }
    let args = Args::parse();
    let mut cases = Cases::read(&args.cases)?;
    cases.keep(&args.only);
    ensure!(!cases.list.is_empty(), "no test has \"{}\" in its name", args.only);
    let models = Models::new(&args.plugin, &args.cache)?;
    let report = run_all(&models, &cases)?;
    report.print(&args.onnx_version);
    Ok(ExitCode::SUCCESS)
}

/// Runs the cases on as many threads as there are cores.
fn run_all(models: &Models, cases: &Cases) -> Result<Report> {
    let (next, report) = (AtomicUsize::new(0), Mutex::new(Report::default()));
    let work = || {
        while let Some(case) = cases.list.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = run(models, cases, case);
            report.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).add(case, outcome);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    report.into_inner().ok().context("a thread panicked")
}

fn run(models: &Models, cases: &Cases, case: &Case) -> Outcome {
    let outputs = match cases.inputs(case).and_then(|inputs| models.run(cases, case, inputs)) {
        Ok(outputs) => outputs,
        Err(error) => return Outcome::of_error(&error),
    };
    if outputs.len() != case.outputs.len() {
        let (got, want) = (outputs.len(), case.outputs.len());
        return Outcome::Failed(format!("{got} outputs, expected {want}"));
    }
    for (got, want) in outputs.iter().zip(&case.outputs) {
        let difference = match cases.tensor(want) {
            Ok(expected) => compare::difference(got, &expected, case.tolerance()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(difference) = difference {
            return Outcome::Failed(format!("{}: {difference}", want.name));
        }
    }
    Outcome::Passed
}
