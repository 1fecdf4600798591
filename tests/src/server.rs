//! A `mortise serve` process on free ports, with a store of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::admin::Admin;
use crate::http1::Client;
use crate::paths;

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// An existing store; a temporary one otherwise.
    pub store: Option<PathBuf>,
    /// Lines for `mortise.toml`. The addresses are set to free loopback ports.
    pub config: String,
    /// Largest file that the process may write, as a stand-in for a full disk.
    pub max_file_bytes: Option<u64>,
    /// Variables of its environment, beside those of this process.
    pub env: Vec<(&'static str, PathBuf)>,
}

/// A running server. Dropping it kills it.
pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub metrics: SocketAddr,
    pub admin: SocketAddr,
    store: PathBuf,
    /// From starting the process to reading its ready line.
    pub ready_after: Duration,
    log: Arc<Mutex<String>>,
    _temporary: TempDir,
}

impl Server {
    /// Starts a server with an empty store and default settings.
    ///
    /// # Errors
    /// As [`Server::start_with`].
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// Starts a server and waits for its ready line.
    ///
    /// # Errors
    /// It cannot be started or ends before it is ready; the error has its log.
    pub fn start_with(options: Options) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("mortise-test-").tempdir()?;
        let store = options.store.clone().unwrap_or_else(|| temporary.path().join("store"));
        if !store.exists() {
            warm::copy_into(&store)?;
        }
        Self::start_in(temporary, store, &options)
    }

    fn start_in(temporary: TempDir, store: PathBuf, options: &Options) -> Result<Self> {
        let config = temporary.path().join("mortise.toml");
        std::fs::write(&config, complete(&options.config))?;
        let start = Instant::now();
        let mut child = command(&config, &store, options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!("start {}: run `cargo xtask build`", paths::mortise().display())
            })?;
        let (log, collector) = collect_log(&mut child)?;
        let ready = match read_ready_line(&mut child) {
            Ok(ready) => ready,
            Err(error) => {
                // What keeps running without getting ready would never be waited for.
                child.kill()?;
                let status = child.wait()?;
                // A panic there would lose the log, and nothing else.
                let _ = collector.join();
                let log = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
                bail!("the server did not get ready ({error}; {status}). Its log:\n{log}");
            }
        };
        let address = |key: &str| -> Result<SocketAddr> {
            let text = ready[key].as_str().with_context(|| format!("no {key} in {ready}"))?;
            text.parse().with_context(|| format!("{key} in {ready}"))
        };
        Ok(Self {
            http: address("http")?,
            grpc: address("grpc")?,
            metrics: address("metrics")?,
            admin: address("admin")?,
            ready_after: start.elapsed(),
            child,
            store,
            log,
            _temporary: temporary,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A new client of the data plane.
    pub fn client(&self) -> Client {
        Client::new(self.http)
    }

    /// A new client of the admin API, with the token from the store.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn admin(&self) -> Result<Admin> {
        let token = std::fs::read_to_string(self.store.join("admin.token"))
            .context("read the admin token")?;
        Ok(Admin::new(self.admin, token.trim()))
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `kill -9`, then waits for the end.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// `kill -TERM`: the server is to finish its requests and end.
    ///
    /// # Errors
    /// The process does not exist any more.
    pub fn terminate(&self) -> Result<()> {
        let pid = libc::pid_t::try_from(self.pid())?;
        // SAFETY: sends a signal to a child that was not waited for yet.
        match unsafe { libc::kill(pid, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }

    /// Stops the process without ending it: its sockets stay open, and nothing
    /// is answered until [`Server::resume`].
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: sends a signal to a child of this process that nobody has
        // waited for.
        unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    /// Its state cannot be read.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn rss_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib =
            line.and_then(|text| text.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        Ok(kib.context("no VmRSS")? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed before; either way it must not stay behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What every server under test is told: to take free ports, and to be patient
/// with the compiler, since several tests share two cores.
const EVERYWHERE: [(&str, &str); 5] = [
    ("http", "address = \"127.0.0.1:0\""),
    ("grpc", "address = \"127.0.0.1:0\""),
    ("metrics", "address = \"127.0.0.1:0\""),
    ("admin", "address = \"127.0.0.1:0\""),
    ("plugins", "compile_timeout_ms = 120000"),
];

/// Adds these lines to the sections they belong to.
fn complete(config: &str) -> String {
    let mut text = config.to_owned();
    for (section, line) in EVERYWHERE {
        let header = format!("[{section}]");
        if !text.contains(&header) {
            text.push_str(&format!("\n{header}\n"));
        }
        text = text.replace(&header, &format!("{header}\n{line}"));
    }
    text
}

/// Compiled plugins for new stores, so that each test does not compile them
/// again.
mod warm {
    use std::sync::OnceLock;

    use super::*;
    use crate::{Deployment, onnx};

    pub(super) fn copy_into(store: &Path) -> Result<()> {
        static CACHE: OnceLock<Result<TempDir, String>> = OnceLock::new();
        let made = CACHE.get_or_init(|| make().map_err(|error| format!("{error:#}")));
        let folder = made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let (from, to) = (folder.path().join("store/cache"), store.join("cache"));
        std::fs::create_dir_all(&to)?;
        for path in [store, &to] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))?;
        }
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn make() -> Result<TempDir> {
        let folder = tempfile::tempdir()?;
        let store = folder.path().join("store");
        let server = Server::start_in(tempfile::tempdir()?, store, &Options::default())?;
        server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(1.0)))?;
        Ok(folder)
    }
}

fn command(config: &Path, store: &Path, options: &Options) -> Command {
    let mut command = Command::new(paths::mortise());
    command.envs(options.env.iter().cloned());
    command.args(["serve", "--config"]).arg(config).arg("--store").arg(store);
    if let Some(bytes) = options.max_file_bytes {
        limit_file_size(&mut command, bytes);
    }
    command
}

fn limit_file_size(command: &mut Command, bytes: u64) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only two async-signal-safe calls are made,
    // on values that were copied in.
    unsafe {
        command.pre_exec(move || {
            // Without this, the first write beyond the limit ends the process.
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// Reads standard error on a thread, so that the server never waits for us.
fn collect_log(child: &mut Child) -> Result<(Arc<Mutex<String>>, JoinHandle<()>)> {
    let stderr = child.stderr.take().context("standard error was asked for")?;
    let log = Arc::new(Mutex::new(String::new()));
    let sink = log.clone();
    let collector = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = sink.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
        }
    });
    Ok((log, collector))
}

fn read_ready_line(child: &mut Child) -> Result<Value> {
    let mut stdout = BufReader::new(child.stdout.take().context("standard output was asked for")?);
    let mut line = String::new();
    while stdout.read_line(&mut line)? > 0 {
        if let Ok(value) = serde_json::from_str::<Value>(&line)
            && value["event"] == "ready"
        {
            std::thread::spawn(move || {
                std::io::copy(&mut stdout.take(u64::MAX), &mut std::io::sink())
            });
            return Ok(value);
        }
        line.clear();
    }
    bail!("standard output ended")
}

#[cfg(test)]
mod tests {
    use super::complete;

    #[test]
    fn addresses_go_into_their_sections() {
        let text = complete("[http]\nmax_body_bytes = 10\n");
        assert!(text.starts_with("[http]\naddress = \"127.0.0.1:0\"\nmax_body_bytes"), "{text}");
        assert_eq!(text.matches("address").count(), 4, "{text}");
        assert!(text.ends_with("[plugins]\ncompile_timeout_ms = 120000\n"), "{text}");
    }
}
