//! What policies cost and how they decide, as one JSON object a run. Takes a
//! command and the folder of the first-party components (`target/plugins`):
//!
//! - `router`: from the decoded request to the chosen variant;
//! - `canary`: rollouts of a healthy twin and of a worse version, with scripted
//!   statistics through the component that ships;
//! - `sticky`: a million keys on a ramp, and in experiments of two layers,
//!   through the components that ship.
//!
//! With `worker` as its only argument it is the compiling child process.

mod canary;
mod router;
mod sticky;

use mortise_host::{
    Host, HostConfig, PluginLimits, PolicyRequest, RouteVariant, RouterPlugin, WorkerCommand,
    compile_worker_main,
};
use mortise_serve::{KeySource, RequestFacts, Routing};
use mortise_types::{Bytes, Error, Result};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "usage: mortise-bench-policies router|canary|sticky FOLDER [ROLLOUTS|KEYS]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["worker"] {
        return compile_worker_main();
    }
    match run(&arguments) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<String> {
    let usage = || Error::invalid(USAGE);
    let [command, folder, rest @ ..] = arguments else { return Err(usage()) };
    let count = match rest {
        [] => None,
        [count] => Some(count.parse().map_err(|_| usage())?),
        _ => return Err(usage()),
    };
    let bench = Bench::new(folder)?;
    match command.as_str() {
        "router" => bench.router(),
        "canary" => bench.canary(count.unwrap_or(500)),
        "sticky" => bench.sticky(count.unwrap_or(1_000_000)),
        _ => Err(usage()),
    }
}

struct Bench {
    host: Arc<Host>,
    components: PathBuf,
    scratch: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// A request with a few headers and no parameters.
struct Headers([(&'static str, Vec<u8>); 4]);

impl Headers {
    fn of_user(user: &str) -> Self {
        Self([
            ("content-type", b"application/json".to_vec()),
            ("host", b"localhost:8000".to_vec()),
            ("user", user.as_bytes().to_vec()),
            ("accept", b"*/*".to_vec()),
        ])
    }
}

impl RequestFacts for Headers {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_slice())
    }

    fn parameter(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
}

impl Bench {
    fn new(components: &str) -> Result<Self> {
        let failed = |error| Error::internal(format!("{error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let scratch = std::env::temp_dir().join(format!("mortise-policies-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).map_err(failed)?;
        let worker = WorkerCommand { program, args: vec!["worker".to_string()] };
        let host = Host::new(HostConfig::new(scratch.join("cache"), worker))?;
        Ok(Self { host, components: components.into(), scratch })
    }

    fn compiled(&self, name: &str) -> Result<mortise_host::Compiled> {
        let path: &Path = &self.components.join(format!("{name}.wasm"));
        let bytes = std::fs::read(path).map_err(|error| {
            Error::not_found(format!("cannot read {}: {error}", path.display()))
        })?;
        let verified = self.host.verify(Bytes::from(bytes))?;
        self.host.compile(&verified)
    }

    fn request(name: &str, config_json: &str) -> PolicyRequest {
        PolicyRequest {
            plugin: name.to_string(),
            endpoint: "bench".to_string(),
            config_json: config_json.to_string(),
            limits: PluginLimits::default(),
        }
    }

    /// A router of two versions; the second, the candidate, has `weight` parts
    /// of 10,000.
    fn routing(&self, name: &str, config: &str, weight: u32) -> Result<Routing> {
        let variant = |version, weight, stable| RouteVariant { version, weight, stable };
        let variants = vec![variant(1, 10_000 - weight, true), variant(2, weight, false)];
        let compiled = self.compiled(name)?;
        let request = Self::request(name, config);
        let router = RouterPlugin::load(&self.host, &compiled, request, variants)?;
        let key = KeySource::parse("header:user")?;
        Ok(Routing::new(Box::new(router), Some(key), Arc::default()))
    }
}
