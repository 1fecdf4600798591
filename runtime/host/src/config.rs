use std::path::PathBuf;
use std::time::Duration;

/// Settings of a [`crate::Host`].
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Folder of compiled artifacts and of the key that authenticates them.
    /// Made with owner-only rights when it does not exist.
    pub cache_dir: PathBuf,
    /// How to start the process that compiles.
    pub worker: WorkerCommand,
    pub compile: CompileLimits,
    /// Plugin instances that can live at once on the pooling allocator. Each
    /// reserves 4 GiB of address space and no memory; instances beyond it, or
    /// too large for it, are allocated one by one, which is slower.
    pub max_instances: u32,
    /// Bytes of compiled artifacts kept in `cache_dir`. The least recently
    /// used go first.
    pub max_cache_bytes: u64,
    /// Size in bytes of a component that is accepted for verification.
    pub max_component_bytes: usize,
}

impl HostConfig {
    /// The defaults: 256 pooled instances, 1 GiB of artifacts, components of
    /// up to 64 MiB, and [`CompileLimits::default`].
    pub fn new(cache_dir: impl Into<PathBuf>, worker: WorkerCommand) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            worker,
            compile: CompileLimits::default(),
            max_instances: 256,
            max_cache_bytes: 1 << 30,
            max_component_bytes: 64 << 20,
        }
    }
}

/// A program that calls [`crate::compile_worker_main`], with its arguments.
/// Normally the server's own binary and a hidden subcommand.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    pub program: PathBuf,
    pub args: Vec<String>,
}

/// What compiling one component may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// Wall-clock time; also the processor time in whole seconds, rounded up,
    /// per core that compiles.
    pub timeout: Duration,
    /// Address space of the child process in bytes.
    pub memory_bytes: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), memory_bytes: 1 << 30 }
    }
}
