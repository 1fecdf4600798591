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
mod grpc;
mod hooks;
mod http;
mod metrics;
mod net;
mod plane;
mod reload;
mod serve;
mod status;
mod trace;
mod upstream;

use anyhow::Result;
use clap::Parser;
use cli::args::{Cli, Command, ListenArgs, ServeArgs};
use config::{Overrides, Raw, Resolved};
use mortise_types::Error;
use plane::logging::LogControl;
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
    let logging = start_logging(&config.log);
    serve::run(config, logging, |running| async move {
        eprintln!(
            "serving on http://{} and grpc://{}, metrics on http://{}/metrics",
            running.http, running.grpc, running.metrics
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
        grpc_port: listen.grpc_port,
        metrics_port: listen.metrics_port,
        admin_port: listen.admin_port,
        device: listen.device.clone(),
    };
    overrides.apply(&mut raw);
    Ok(raw)
}

/// Logs go to stderr; stdout belongs to the ready line. `MORTISE_LOG` wins
/// over the configuration. What is logged can be changed through what returns.
fn start_logging(default: &str) -> LogControl {
    let given = std::env::var("MORTISE_LOG").ok();
    let given = given.filter(|text| EnvFilter::try_new(text).is_ok());
    let filter = given.as_deref().unwrap_or(default);
    let builder = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::new(filter))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    let apply = move |filter: &str| {
        let failed = |error| Error::internal(format!("cannot change the log: {error}"));
        handle.reload(EnvFilter::new(filter)).map_err(failed)
    };
    LogControl::new(filter, Box::new(apply))
}
