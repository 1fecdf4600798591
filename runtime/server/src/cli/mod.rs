//! The command line. Commands that change or show deployments are clients of
//! the admin API of a running server; only `serve` and `demo` open the store.

pub(crate) mod args;
mod bench;
pub(crate) mod client;
pub(crate) mod deploy;
mod error;
mod experiment;
mod inspect;
pub(crate) mod keys;
mod load;
mod local;
mod predict;
mod replay;
mod rollout;
mod show;
mod traffic;

pub(crate) use error::{CliError, exit_code, print_error};

use anyhow::Result;
use args::{Command, NameArgs, PluginCommand};
use client::AdminClient;

/// Runs a command that talks to a server.
///
/// # Errors
/// What the server answered, or that it cannot be reached.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Deploy(args) => deploy::run(&args),
        Command::Undeploy(args) => change(&args, Change::Undeploy),
        Command::Rollback(args) => change(&args, Change::Rollback),
        Command::Load(args) => match args.rps {
            Some(rps) => load::run(&args, rps),
            None => change(&NameArgs { name: args.name, admin: args.admin }, Change::Load),
        },
        Command::Unload(args) => change(&args, Change::Unload),
        Command::Rollout(args) => rollout::run(&args),
        Command::Traffic(args) => traffic::run(&args),
        Command::Experiment(args) => experiment::run(&args),
        Command::Plugin(args) => match args.command {
            PluginCommand::Replay(args) => replay::run(&args),
        },
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Status(args) => show::status(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Gc(args) => show::gc(&args),
        Command::Audit(args) => show::audit(&args),
        // `main` runs these without a client.
        Command::Serve(_) | Command::Demo(_) | Command::Keys(_) | Command::CompilePlugin => Ok(()),
    }
}

#[derive(Clone, Copy)]
enum Change {
    Undeploy,
    Rollback,
    Load,
    Unload,
}

fn change(args: &NameArgs, change: Change) -> Result<()> {
    let client = AdminClient::connect(&args.admin)?;
    let endpoint = format!("/v1/endpoints/{}", client::segment(&args.name));
    let answer = match change {
        Change::Undeploy => client.delete(&endpoint)?,
        Change::Rollback => client.post(&format!("{endpoint}/rollback"))?,
        Change::Load => client.post(&format!("{endpoint}/load"))?,
        Change::Unload => client.post(&format!("{endpoint}/unload"))?,
    };
    if args.admin.json {
        return show::print_json(&answer);
    }
    let name = &args.name;
    match (change, answer["version"].as_u64(), answer["revision"].as_u64()) {
        (Change::Undeploy, ..) => println!("{name} is no longer deployed"),
        (Change::Unload, ..) => {
            println!("{name} is unloaded; `mortise load {name}` brings it back")
        }
        (_, Some(version), Some(revision)) => {
            println!("{name} serves version {version} (revision {revision})");
        }
        _ => println!("{name}: done"),
    }
    Ok(())
}
