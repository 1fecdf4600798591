//! `mortise plugin replay`: recorded requests through a router, or recorded
//! windows through a strategy, without a server.

mod requests;
mod windows;

use super::CliError;
use super::args::ReplayArgs;
use super::deploy::config;
use super::local::LocalPlugin;
use anyhow::{Context, Result, bail};
use mortise_host::{Compiled, Host, PluginLimits, PolicyRequest, World};
use serde_json::Value;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::sync::Arc;
use tempfile::TempDir;

/// Policies need 1 MiB of stack.
const STACK_BYTES: usize = 4 << 20;

/// Prints every decision.
///
/// # Errors
/// When the policy or the recording cannot be read, or the policy fails.
pub(super) fn run(args: &ReplayArgs) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let work = move || replay(args);
        match thread.spawn_scoped(scope, work).context("cannot start a thread")?.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn replay(args: &ReplayArgs) -> Result<()> {
    let policy = Policy::load(args)?;
    let records = records(args)?;
    let mut out = std::io::stdout().lock();
    match policy.compiled.world() {
        World::Strategy => windows::replay(&policy, records, args.json, &mut out),
        World::Router => requests::replay(&policy, records, args, &mut out),
        other => bail!("plugin \"{}\" is a {other}; routers and strategies decide", args.plugin),
    }
}

/// A compiled policy and the host that runs it.
struct Policy {
    host: Arc<Host>,
    compiled: Compiled,
    name: String,
    config_json: String,
    _scratch: TempDir,
}

impl Policy {
    fn load(args: &ReplayArgs) -> Result<Self> {
        let policies = [World::Router, World::Strategy];
        let LocalPlugin { host, compiled, scratch } =
            LocalPlugin::compile(&args.plugin, &policies)?;
        Ok(Self {
            host,
            compiled,
            name: args.plugin.clone(),
            config_json: Value::Object(config(&args.set)?).to_string(),
            _scratch: scratch,
        })
    }

    fn request(&self) -> PolicyRequest {
        PolicyRequest {
            plugin: self.name.clone(),
            endpoint: "replay".to_string(),
            config_json: self.config_json.clone(),
            limits: PluginLimits::default(),
        }
    }
}

type Records = Box<dyn Iterator<Item = serde_json::Result<Value>>>;

/// JSON values one after the other, with or without line breaks inside.
fn records(args: &ReplayArgs) -> Result<Records> {
    let path = &args.recording;
    let reader: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()));
            Box::new(BufReader::new(file?))
        }
    };
    Ok(Box::new(serde_json::Deserializer::from_reader(reader).into_iter()))
}

/// What a record is about, and a policy decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Requests,
    Windows,
}

impl Subject {
    /// `None` for what is neither.
    fn of(record: &Value) -> Option<Self> {
        let has = |name: &&str| record.get(name).is_some();
        if ["stable", "candidate"].iter().all(has) {
            return Some(Self::Windows);
        }
        let is_request = ["headers", "parameters", "inputs"].iter().any(has);
        is_request.then_some(Self::Requests)
    }

    fn how_to_record(self) -> &'static str {
        match self {
            Self::Requests => {
                "a router replays requests, JSON objects such as \
                 {\"headers\": {\"user\": \"a\"}, \"parameters\": {}, \"inputs\": []}"
            }
            Self::Windows => {
                "a strategy replays windows, which `mortise rollout status NAME --watch --json > \
                 windows.json` records"
            }
        }
    }
}

/// # Errors
/// When the record is about something else than the policy decides about: read
/// as what it is not, it would be an empty one.
fn read<T: serde::de::DeserializeOwned>(record: Value, number: u64, wanted: Subject) -> Result<T> {
    let about = match Subject::of(&record) {
        Some(about) if about == wanted => {
            let record = serde_json::from_value(record);
            return record.with_context(|| format!("record {number} is not as documented"));
        }
        Some(Subject::Requests) => "a request, and not a window of a rollout",
        Some(Subject::Windows) => "a window of a rollout, and not a request",
        None => "neither a request nor a window of a rollout",
    };
    Err(CliError::new(format!("record {number} is {about}"), wanted.how_to_record()).into())
}

/// A reader that went away is no error: `| head`.
fn print(out: &mut impl Write, line: &str) -> Result<bool> {
    match writeln!(out, "{line}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        outcome => Ok(outcome.map(|()| true)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn records_of_another_kind_are_refused() {
        let request = json!({"headers": {"user": "a"}});
        let window = json!({"elapsed_ms": 1, "stable": {}, "candidate": {}});
        for (record, wanted, hint) in [
            (&request, Subject::Windows, "rollout status NAME --watch --json"),
            (&window, Subject::Requests, "headers"),
            (&json!({"id": 1}), Subject::Requests, "headers"),
            (&json!([1]), Subject::Windows, "rollout status NAME --watch --json"),
        ] {
            let error = read::<Value>(record.clone(), 1, wanted).unwrap_err();
            let error = error.downcast_ref::<CliError>().unwrap();
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{error:?}");
        }
        assert_eq!(read::<Value>(request.clone(), 1, Subject::Requests).unwrap(), request);
        assert_eq!(read::<Value>(window.clone(), 1, Subject::Windows).unwrap(), window);
    }
}
