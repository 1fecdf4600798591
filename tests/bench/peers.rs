//! The servers that a user would pick instead, with onnxruntime inside, started
//! on the same model.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mortise_tests::{Client, http1, paths, wait};
use serde_json::{Value, json};

/// Importing onnxruntime and starting workers takes several seconds.
const START_LIMIT: Duration = Duration::from_secs(90);

pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// One prediction.
    pub(crate) request: Vec<u8>,
    process: Process,
}

/// Both, each with the reason when it could not be started.
pub(crate) fn start_all(model: &Path, row: &[f32]) -> Vec<(&'static str, Result<Peer>)> {
    let start = |name, script| (name, Peer::start(name, script, model, row));
    vec![start("litserve", "litserve_server.py"), start("fastapi", "fastapi_server.py")]
}

impl Peer {
    fn start(name: &'static str, script: &str, model: &Path, row: &[f32]) -> Result<Self> {
        let python = std::env::var_os("MORTISE_BENCH_PYTHON")
            .context("MORTISE_BENCH_PYTHON is not set: run `cargo xtask bench serve`")?;
        let address = free_address()?;
        let child = Command::new(python)
            .arg(paths::root().join("tests/bench/peers").join(script))
            .arg(model)
            .arg(address.port().to_string())
            .stdout(Stdio::null())
            .spawn()?;
        let body = json!({"x": [row]}).to_string();
        let headers = [("content-type", "application/json")];
        let request = http1::request("POST", "/predict", &headers, body.as_bytes());
        let mut peer = Self { name, address, request, process: Process(child) };
        peer.wait_until_it_answers()?;
        Ok(peer)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let mut client = Client::new(self.address).with_timeout(Duration::from_secs(5));
            match client.exchange(&self.request) {
                Ok(response) if response.status == 200 => return Ok(()),
                Ok(response) if start.elapsed() > START_LIMIT => {
                    bail!("answers {}", response.text())
                }
                Err(error) if start.elapsed() > START_LIMIT => return Err(error),
                _ => wait::pass(Duration::from_millis(200)),
            }
            if let Some(status) = self.process.0.try_wait()? {
                bail!("{} ended ({status})", self.name);
            }
        }
    }
}

/// The versions that are installed beside us.
pub(crate) fn versions() -> Value {
    let script = "import importlib.metadata as m, json\n\
                  print(json.dumps({n: m.version(n) for n in \
                  ['litserve', 'fastapi', 'uvicorn', 'onnxruntime']}))";
    let python = std::env::var_os("MORTISE_BENCH_PYTHON").unwrap_or_else(|| "python3".into());
    let output = Command::new(python).args(["-c", script]).output();
    let parsed = output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
    parsed.unwrap_or(Value::Null)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A process with workers of its own. Interrupting it lets it end them.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let pid = self.0.id() as libc::pid_t;
        // SAFETY: sends a signal to a child that was not waited for yet.
        unsafe { libc::kill(pid, libc::SIGINT) };
        let ended = || Ok(self.0.try_wait()?.is_some());
        if wait::until("the peer to end", Duration::from_secs(10), ended).is_err() {
            // It did not listen; nothing more can be done about its workers.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
