use crate::worker::Header;
use crate::{CompileLimits, WorkerCommand};
use mortise_types::{Error, Result};
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Threads of the child. More would not compile a plugin much faster, and each
/// takes address space.
const THREADS: u64 = 4;
/// The most machine code that is accepted, and the most text of errors.
const MAX_ARTIFACT_BYTES: u64 = 1 << 30;
const MAX_MESSAGE_BYTES: u64 = 64 << 10;

/// Compiles in a child process and returns the machine code.
pub(crate) fn compile(
    worker: &WorkerCommand,
    limits: &CompileLimits,
    component: &[u8],
) -> Result<Vec<u8>> {
    let mut child = start(worker).map_err(|error| {
        let program = worker.program.display();
        Error::internal(format!("cannot start the compiler {program}: {error}"))
    })?;
    let outcome = converse(&mut child, limits, component);
    // Also after success: whatever is left of it must be gone.
    let _ = child.kill();
    let status = child.wait();
    match (outcome, status) {
        (Ok(output), Ok(status)) => output.judge(status, limits),
        (Err(error), _) => Err(error),
        (_, Err(error)) => Err(Error::internal(format!("lost the compiler: {error}"))),
    }
}

fn start(worker: &WorkerCommand) -> io::Result<Child> {
    Command::new(&worker.program)
        .args(&worker.args)
        .env_clear()
        .env("RAYON_NUM_THREADS", THREADS.to_string())
        // glibc reserves 64 MiB of address space for each arena.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// What the child said.
struct Output {
    artifact: Vec<u8>,
    message: Vec<u8>,
}

/// Writes the component and reads the answer, each pipe on a thread of its
/// own so that none can block another, until the time is over.
fn converse(child: &mut Child, limits: &CompileLimits, component: &[u8]) -> Result<Output> {
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Error::internal("the compiler has no pipes"));
    };
    let header = Header {
        memory_bytes: limits.memory_bytes,
        cpu_seconds: seconds_up(limits.timeout).saturating_mul(THREADS),
    };
    let (done, finished) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A child that dies early closes the pipe; its status says why.
            let _ = stdin.write_all(&header.encode()).and_then(|()| stdin.write_all(component));
        });
        let message = scope.spawn(move || read(stderr, MAX_MESSAGE_BYTES));
        scope.spawn(move || done.send(read(stdout, MAX_ARTIFACT_BYTES)));
        let artifact = finished.recv_timeout(limits.timeout);
        // The scope ends when all pipes are closed, so the child must be gone.
        if artifact.is_err() {
            let _ = child.kill();
        }
        let artifact = artifact.map_err(|_| over_time(limits))?;
        let message = message.join().unwrap_or_default();
        Ok(Output { artifact, message })
    })
}

fn read(pipe: impl Read, max_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A broken pipe reads as a short answer, which the status explains.
    let _ = pipe.take(max_bytes).read_to_end(&mut bytes);
    bytes
}

fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn over_time(limits: &CompileLimits) -> Error {
    Error::limit(format!(
        "compiling the plugin hit the limit compile.timeout = {} ms",
        limits.timeout.as_millis()
    ))
}

impl Output {
    fn judge(self, status: ExitStatus, limits: &CompileLimits) -> Result<Vec<u8>> {
        if status.success() {
            return Ok(self.artifact);
        }
        let message = String::from_utf8_lossy(&self.message);
        let message = message.trim();
        if status.signal() == Some(libc::SIGXCPU) {
            return Err(over_time(limits));
        }
        if ran_out_of_memory(message) {
            return Err(Error::limit(format!(
                "compiling the plugin hit the limit compile.memory_bytes = {}",
                limits.memory_bytes
            )));
        }
        match status.signal() {
            Some(signal) => Err(Error::internal(format!(
                "the compiler was ended by signal {signal}: {message}"
            ))),
            None => Err(Error::invalid(format!("the component does not compile: {message}"))),
        }
    }
}

/// How the standard library, the system and rayon put it.
fn ran_out_of_memory(message: &str) -> bool {
    ["memory allocation of", "Cannot allocate memory", "Resource temporarily unavailable"]
        .iter()
        .any(|sign| message.contains(sign))
}
