//! Starting and stopping the servers. Each is found in the folder that
//! `cargo xtask bench peers` prepares; one that is not there is reported.

use std::collections::HashMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mortise_tests::{Deployment, Server, http1, onnx, paths, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{HttpTarget, Model, plain_request, protocol_request};

/// Importing onnxruntime and starting workers takes several seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// A server, and the models that one process of it serves.
pub(crate) struct Start {
    pub(crate) name: &'static str,
    pub(crate) groups: &'static [&'static [Model]],
    pub(crate) start: fn(&[Model]) -> Result<Peer>,
}

const TOGETHER: &[&[Model]] = &[&super::MODELS];
const APART: &[&[Model]] = &[&[Model::AddSub], &[Model::Digits]];

pub(crate) const ALL: &[Start] = &[
    Start { name: "mortise", groups: TOGETHER, start: mortise },
    Start { name: "triton", groups: TOGETHER, start: triton },
    Start { name: "mlserver", groups: TOGETHER, start: mlserver },
    Start { name: "litserve", groups: APART, start: litserve },
    Start { name: "ray", groups: TOGETHER, start: ray },
];

/// A running server. Dropping it ends it.
pub(crate) struct Peer {
    pub(crate) http: SocketAddr,
    /// `None` where it speaks no gRPC of the protocol.
    pub(crate) grpc: Option<SocketAddr>,
    /// Whether it speaks the Open Inference Protocol over HTTP.
    pub(crate) is_protocol: bool,
    pub(crate) target: fn(Model) -> HttpTarget,
    /// Shape that perf_analyzer has to be told, without the batch where the
    /// server adds it.
    pub(crate) tells_batch: bool,
    process: Running,
}

enum Running {
    Ours(Box<Server>),
    Theirs { child: Child, _folder: TempDir },
}

impl Peer {
    fn pid(&self) -> u32 {
        match &self.process {
            Running::Ours(server) => server.pid(),
            Running::Theirs { child, .. } => child.id(),
        }
    }

    /// `kill -9` of the server and its workers.
    pub(crate) fn kill(&mut self) -> Result<()> {
        match &mut self.process {
            Running::Ours(server) => server.kill(),
            Running::Theirs { child, .. } => {
                // SAFETY: sends a signal to a process group that this program made.
                unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
                child.wait()?;
                Ok(())
            }
        }
    }

    /// CPU time that the server and its workers have used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let all = processes()?;
        let mut family = vec![self.pid()];
        let mut ticks = 0;
        while let Some(pid) = family.pop() {
            ticks += all.get(&pid).map_or(0, |process| process.ticks);
            family.extend(all.iter().filter(|(_, p)| p.parent == pid).map(|(pid, _)| *pid));
        }
        // SAFETY: reads a constant of the system.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
        Ok(Duration::from_secs_f64(ticks as f64 / per_second))
    }
}

struct Process {
    parent: u32,
    ticks: u64,
}

/// Every process by its number.
fn processes() -> Result<HashMap<u32, Process>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended since.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name is in parentheses and may hold anything.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok());
        // Parent, then user and system time, counted from the state.
        if let (Some(parent), Some(user), Some(system)) = (number(1), number(11), number(12)) {
            let parent = u32::try_from(parent)?;
            found.insert(pid, Process { parent, ticks: user + system });
        }
    }
    Ok(found)
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self::Theirs { child, .. } = self else { return };
        let group = child.id() as libc::pid_t;
        // SAFETY: sends signals to a process group that this program made.
        unsafe { libc::kill(-group, libc::SIGTERM) };
        let ended = || Ok(child.try_wait()?.is_some());
        if wait::until("the peer to end", Duration::from_secs(10), ended).is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Workers that did not listen go with their group.
        // SAFETY: as above.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// The folder that `cargo xtask bench peers` prepared.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = std::env::var_os("MORTISE_BENCH_PEERS");
    Ok(folder.context("MORTISE_BENCH_PEERS is not set: run `cargo xtask bench peers`")?.into())
}

/// A program of a peer's virtual environment.
pub(crate) fn program(environment: &str, name: &str) -> Result<PathBuf> {
    let path = folder()?.join(environment).join("bin").join(name);
    ensure!(path.exists(), "{environment} is not installed: no {}", path.display());
    Ok(path)
}

fn scripts() -> PathBuf {
    paths::root().join("tests/bench/peers")
}

fn digits() -> PathBuf {
    paths::demo("digits/model.onnx")
}

fn mortise(_: &[Model]) -> Result<Peer> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("digits", &Deployment::onnx(fs::read(digits())?))?;
    admin.deploy("addsub", &Deployment::onnx(onnx::add_sub(16)))?;
    Ok(Peer {
        http: server.http,
        grpc: Some(server.grpc),
        is_protocol: true,
        target: protocol_request,
        tells_batch: true,
        process: Running::Ours(Box::new(server)),
    })
}

pub(crate) fn triton(_: &[Model]) -> Result<Peer> {
    let python = program("triton", "python")?;
    let packages = site_packages(&python)?;
    let work = tempfile::tempdir()?;
    let repository = work.path().join("repository");
    copy_folder(&scripts().join("triton"), &repository)?;
    let root = packages.join("pytriton/tritonserver");
    let backend = work.path().join("backends/python");
    copy_folder(&root.join("backends/python"), &backend)?;
    copy_folder(&root.join("python_backend_stubs/3.11"), &backend)?;
    let ports = free_ports()?;
    let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    let mut command = Command::new(root.join("bin/tritonserver"));
    command
        .env(
            "LD_LIBRARY_PATH",
            packages.parent().unwrap_or(&packages).join("site-packages/nvidia_pytriton.libs"),
        )
        .env("PYTHONPATH", &packages)
        .env("VIRTUAL_ENV", python.parent().and_then(Path::parent).unwrap_or(&python))
        .env("PATH", path_with(&python))
        .env("MORTISE_BENCH_DIGITS", digits())
        .arg(flag("model-repository", &repository.display()))
        .arg(flag("backend-directory", &work.path().join("backends").display()))
        .args(["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"])
        .arg(flag("http-port", &ports[0]))
        .arg(flag("grpc-port", &ports[1]))
        .arg(flag("metrics-port", &ports[2]));
    spawn(command, work, Ports { http: ports[0], grpc: Some(ports[1]) }, protocol_request)
}

fn mlserver(_: &[Model]) -> Result<Peer> {
    let program = program("mlserver", "mlserver")?;
    let work = tempfile::tempdir()?;
    fs::copy(scripts().join("mlserver/models.py"), work.path().join("models.py"))?;
    let ports = free_ports()?;
    let settings = json!({
        "host": "127.0.0.1", "http_port": ports[0], "grpc_port": ports[1],
        "metrics_port": ports[2], "parallel_workers": 0, "debug": false,
        "logging_settings": null, "access_log": false,
    });
    fs::write(work.path().join("settings.json"), settings.to_string())?;
    for (name, class) in [("addsub", "models.AddSub"), ("digits", "models.Digits")] {
        let folder = work.path().join(name);
        fs::create_dir(&folder)?;
        let settings = json!({"name": name, "implementation": class});
        fs::write(folder.join("model-settings.json"), settings.to_string())?;
    }
    let mut command = Command::new(program);
    command
        .arg("start")
        .arg(work.path())
        .current_dir(work.path())
        .env("PYTHONPATH", work.path())
        .env("MORTISE_BENCH_DIGITS", digits());
    spawn(command, work, Ports { http: ports[0], grpc: Some(ports[1]) }, protocol_request)
}

fn litserve(models: &[Model]) -> Result<Peer> {
    let mut command = Command::new(program("litserve", "python")?);
    let [http, ..] = free_ports()?;
    command.arg(scripts().join("litserve_server.py"));
    match models {
        [Model::AddSub] => command.arg("addsub"),
        _ => command.arg(digits()),
    };
    command.arg(http.to_string());
    let target = |model| plain_request(model, "/predict".to_owned());
    spawn(command, tempfile::tempdir()?, Ports { http, grpc: None }, target)
}

fn ray(_: &[Model]) -> Result<Peer> {
    let mut command = Command::new(program("ray", "python")?);
    let [http, ..] = free_ports()?;
    command.arg(scripts().join("ray_server.py")).arg(digits()).arg(http.to_string());
    let target = |model: Model| plain_request(model, format!("/{}", model.name()));
    spawn(command, tempfile::tempdir()?, Ports { http, grpc: None }, target)
}

struct Ports {
    http: u16,
    grpc: Option<u16>,
}

/// Starts a peer in a process group of its own and waits until it answers both
/// models that it is asked for.
fn spawn(
    mut command: Command,
    folder: TempDir,
    ports: Ports,
    target: fn(Model) -> HttpTarget,
) -> Result<Peer> {
    let log = folder.path().join("log");
    let output = fs::File::create(&log)?;
    command.stdout(output.try_clone()?).stderr(output).stdin(Stdio::null()).process_group(0);
    let child = command.spawn().context("start the peer")?;
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let mut peer = Peer {
        http: local(ports.http),
        grpc: ports.grpc.map(local),
        is_protocol: ports.grpc.is_some(),
        target,
        tells_batch: false,
        process: Running::Theirs { child, _folder: folder },
    };
    let ready = peer.wait_until_it_answers();
    ready.with_context(|| format!("its log ends: {}", tail(&log)))?;
    Ok(peer)
}

impl Peer {
    fn wait_until_it_answers(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let target = (self.target)(Model::AddSub);
            let other = (self.target)(Model::Digits);
            match (self.ask(&target), self.ask(&other)) {
                (Ok(()), Ok(())) => return Ok(()),
                // One that serves each model in a process of its own.
                (Ok(()), _) | (_, Ok(())) if target.path == other.path => return Ok(()),
                (Err(error), _) | (_, Err(error)) if started.elapsed() > START_LIMIT => {
                    return Err(error);
                }
                _ => wait::pass(Duration::from_millis(200)),
            }
            if let Running::Theirs { child, .. } = &mut self.process
                && let Some(status) = child.try_wait()?
            {
                bail!("it ended ({status})");
            }
        }
    }

    fn ask(&self, target: &HttpTarget) -> Result<()> {
        let headers = [("content-type", "application/json")];
        let request = http1::request("POST", &target.path, &headers, &target.body);
        let mut client = mortise_tests::Client::new(self.http).with_timeout(Duration::from_secs(5));
        client.exchange(&request)?.ok().map(drop)
    }
}

/// The end of a log, for the reason that is reported.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> =
        text.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    // All at once, so that they differ.
    let held = [bind()?, bind()?, bind()?];
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    Ok([port(&held[0])?, port(&held[1])?, port(&held[2])?])
}

fn site_packages(python: &Path) -> Result<PathBuf> {
    let script = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
    let output = Command::new(python).args(["-c", script]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

fn path_with(python: &Path) -> std::ffi::OsString {
    let mut path = python.parent().map(|bin| bin.as_os_str().to_owned()).unwrap_or_default();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What is installed, by environment.
pub(crate) fn versions() -> Value {
    let packages = [
        ("triton", "nvidia-pytriton"),
        ("perf", "tritonclient"),
        ("mlserver", "mlserver"),
        ("litserve", "litserve"),
        ("ray", "ray"),
        ("litserve", "onnxruntime"),
    ];
    let version = |environment: &str, package: &str| -> Option<String> {
        let script = format!("import importlib.metadata as m; print(m.version('{package}'))");
        let python = program(environment, "python").ok()?;
        let output = Command::new(python).args(["-c", &script]).output().ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    let mut found = json!({"tritonserver": "2.51.0, as nvidia-pytriton 0.7.0 bundles it"});
    for (environment, package) in packages {
        found[package] = version(environment, package).into();
    }
    found
}
