//! `mortise`: the server and its command line.

mod admin;
mod app;
mod auth;
mod cli;
mod config;
mod control;
mod demo;
mod device;
mod embedded;
mod hooks;
mod http;
mod metrics;
mod net;
mod reload;
mod serve;
mod status;

use anyhow::Result;
use clap::Parser;
use cli::args::{Cli, Command, ListenArgs, ServeArgs};
use config::{Overrides, Raw, Resolved};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::CompilePlugin => return mortise_host::compile_worker_main(),
        Command::Serve(args) => run_server(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Keys(args) => cli::keys::run(&args),
        command => cli::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error);
            cli::exit_code(&error)
        }
    }
}

fn run_server(args: &ServeArgs) -> Result<()> {
    let raw = settings(args.config.as_deref(), &args.listen)?;
    if args.print_config {
        print!("{}", raw.to_documented_toml());
        return Ok(());
    }
    let store = match &args.store {
        Some(dir) => dir.clone(),
        None => cli::client::default_store_dir()?,
    };
    let config = Resolved::new(&raw, store)?;
    start_logging(&config.log);
    serve::run(config, |running| async move {
        eprintln!(
            "serving on http://{}, metrics on http://{}/metrics",
            running.http, running.metrics
        );
        eprintln!("admin API on http://{}, store in {}", running.admin, running.store.display());
        eprintln!(
            "deploy a model: mortise deploy NAME model.onnx --store {}",
            running.store.display()
        );
    })
}

/// The file's settings with the command line's over them.
fn settings(file: Option<&Path>, listen: &ListenArgs) -> Result<Raw> {
    let mut raw = config::load(file)?;
    let overrides = Overrides {
        host: listen.host.clone(),
        http_port: listen.http_port,
        metrics_port: listen.metrics_port,
        admin_port: listen.admin_port,
        device: listen.device.clone(),
    };
    overrides.apply(&mut raw);
    Ok(raw)
}

/// Logs go to stderr; stdout belongs to the ready line. `MORTISE_LOG` wins
/// over the configuration.
fn start_logging(default: &str) {
    let filter = EnvFilter::try_from_env("MORTISE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
