//! `mortise-bench`: what `cargo xtask bench` runs. Each benchmark prints a
//! table and, as its last line, one JSON object.

mod batching;
mod crash;
mod floor;
mod footprint;
mod models;
mod overload;
mod peers;
mod policies;
mod quantize;
mod report;
mod rollouts;
mod serve;
mod swap;
mod upstream;
mod versus;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Version swaps under load, and the stall of a slow deployment.
    Swap(swap::Args),
    /// Requests per second beside peers and a floor.
    Serve(serve::Args),
    /// This server beside Triton, MLServer, LitServe and Ray Serve.
    Peers(versus::Args),
    /// Idle memory, start-up time, size of the binary.
    Footprint,
    /// `kill -9` during deployments.
    Crash(crash::Args),
    /// Merged requests beside single ones, on a perceptron.
    Batching(batching::Args),
    /// Three times the capacity, offered open-loop.
    Overload(overload::Args),
    /// What routers and shadows cost.
    Policies(policies::Args),
    /// Canaries that climb and that are taken back, and `kill -9` between.
    Rollouts(rollouts::Args),
    /// Whole models on the CPU device, beside onnxruntime.
    Models(models::Args),
    /// Models with weights in fewer bits: size, speed and what it does to answers.
    Quantize(quantize::Args),
    /// A canary with a model of the real Triton, which is killed in the middle.
    Upstream(upstream::Args),
    /// The floor itself: a bare hyper server, on a port that it prints.
    #[command(hide = true)]
    Floor,
}

fn main() -> Result<()> {
    match Cli::parse().bench {
        Bench::Swap(args) => swap::run(&args),
        Bench::Serve(args) => serve::run(&args),
        Bench::Peers(args) => versus::run(&args),
        Bench::Footprint => footprint::run(),
        Bench::Crash(args) => crash::run(&args),
        Bench::Batching(args) => batching::run(&args),
        Bench::Overload(args) => overload::run(&args),
        Bench::Policies(args) => policies::run(&args),
        Bench::Rollouts(args) => rollouts::run(&args),
        Bench::Models(args) => models::run(&args),
        Bench::Quantize(args) => quantize::run(&args),
        Bench::Upstream(args) => upstream::run(&args),
        Bench::Floor => floor::run(),
    }
}
