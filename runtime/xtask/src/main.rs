//! The project's tasks: build, serve, check, test, measure. Run as `cargo xtask <task>`.

mod bench;
mod components;
mod conformance;
mod gpu_driver;
mod peers;
mod python;
mod sh;
mod suite;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Tasks of the Mortise workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the plugins as components, then the `mortise` binary that carries them.
    Build,
    /// Build the `mortise` binary for production, optimised as a whole. Takes twenty minutes.
    Dist,
    /// Build everything and serve the demo endpoints. Example: cargo xtask serve -- --http 0.0.0.0:8000
    Serve {
        /// Passed on to `mortise demo`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Check the house rules: layering, dependency owners, lints, forbidden texts, formatting.
    Tidy,
    /// Run every check and test at the counts that suit each change.
    Test {
        /// Run only the steps whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Run the long versions: 1,000 swaps, 200 kills, ten minutes of fuzzing, 100,000 batches on
    /// the GPU.
    Soak,
    /// Run ONNX's backend node tests; the last line printed is one JSON object.
    OnnxConformance {
        /// Run only the tests whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Measure; the last line printed is one JSON object.
    Bench {
        #[arg(value_enum)]
        what: bench::Bench,
        /// Measure the binary that `cargo xtask dist` builds.
        #[arg(long)]
        dist: bool,
        /// Passed on to the benchmark.
        #[arg(last = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    let workspace = Workspace::discover()?;
    match task {
        Task::Build => components::build_all(&workspace),
        Task::Dist => components::build_dist(&workspace),
        Task::Serve { args } => components::serve(&workspace, &args),
        Task::Tidy => tidy::run(&workspace),
        Task::Test { only } => suite::test(&workspace, only.as_deref()),
        Task::Soak => suite::soak(&workspace),
        Task::OnnxConformance { only } => conformance::run(&workspace, &only),
        Task::Bench { what, dist, args } => bench::run(&workspace, what, dist, &args),
    }
}
