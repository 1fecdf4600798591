use crate::engine;
use std::io::{self, Read, Write};
use std::process::ExitCode;

/// Niceness of work that must not take time from serving, and yet must end on
/// a busy machine: about a tenth of a contended core.
pub(crate) const BACKGROUND_NICE: libc::c_int = 10;

/// What the server tells the worker before the component: two numbers, little
/// endian.
pub(crate) struct Header {
    /// Address space in bytes.
    pub memory_bytes: u64,
    /// Processor time in seconds.
    pub cpu_seconds: u64,
}

impl Header {
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.memory_bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.cpu_seconds.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; Self::BYTES]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        Self { memory_bytes: bits as u64, cpu_seconds: (bits >> 64) as u64 }
    }
}

/// Body of the compiling child process: reads limits and a component from
/// standard input, puts itself under the limits, and writes the machine code
/// to standard output, or what is wrong to standard error. Only
/// [`crate::Host::compile`] starts it.
pub fn compile_worker_main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> Result<(), String> {
    let input = |error: io::Error| format!("cannot read the component: {error}");
    let mut header = [0; Header::BYTES];
    io::stdin().read_exact(&mut header).map_err(input)?;
    confine(&Header::decode(header)).map_err(|error| format!("cannot set limits: {error}"))?;
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component).map_err(input)?;
    let artifact = compile(&component).map_err(|error| format!("{error:#}"))?;
    io::stdout().write_all(&artifact).map_err(|error| format!("cannot write: {error}"))
}

fn compile(component: &[u8]) -> wasmtime::Result<Vec<u8>> {
    wasmtime::Engine::new(&engine::config())?.precompile_component(component)
}

/// Limits this process, lowers its priority, and ties its life to its parent's.
fn confine(limits: &Header) -> io::Result<()> {
    limit(libc::RLIMIT_AS, limits.memory_bytes)?;
    limit(libc::RLIMIT_CPU, limits.cpu_seconds)?;
    limit(libc::RLIMIT_CORE, 0)?;
    // SAFETY: both calls only change attributes of this process, and take
    // plain numbers.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND_NICE);
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    Ok(())
}

#[cfg(target_os = "linux")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_os = "linux"))]
type Resource = libc::c_int;

fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` is a valid struct that outlives the call.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_survives_the_pipe() {
        let header = Header { memory_bytes: 1 << 33, cpu_seconds: 7 };
        let back = Header::decode(header.encode());
        assert_eq!((back.memory_bytes, back.cpu_seconds), (1 << 33, 7));
    }
}
