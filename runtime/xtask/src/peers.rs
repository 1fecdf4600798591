//! What `bench peers` compares with: servers and clients, installed once under
//! `target/peers`. What cannot be installed is left out, and the benchmark says
//! so at its points.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::python;
use crate::sh::Command;
use crate::workspace::Workspace;

/// One environment each: their requirements exclude each other.
const ENVIRONMENTS: [&str; 5] = ["triton", "perf", "mlserver", "litserve", "ray"];

/// Files of the system, and the Debian packages that have them.
const TOOLS: [(&str, &str); 6] = [
    ("/usr/bin/wrk", "wrk"),
    ("/usr/bin/h2load", "nghttp2-client"),
    (DEBIAN_PYTHON, "python3.11"),
    ("/usr/lib/python3.11/ensurepip", "python3.11-venv"),
    ("/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", "libpython3.11"),
    LIBB64,
];

/// What perf_analyzer is linked with.
const LIBB64: (&str, &str) = ("/usr/lib/x86_64-linux-gnu/libb64.so.0d", "libb64-0d");

/// Triton's Python backend is linked with the library of Debian's own Python
/// 3.11; another build of the same version does not do.
const DEBIAN_PYTHON: &str = "/usr/bin/python3.11";

/// The folder of the environments.
pub(crate) fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    prepare_only(workspace, &ENVIRONMENTS)
}

/// The same, with only some of them.
pub(crate) fn prepare_only(workspace: &Workspace, names: &[&str]) -> Result<PathBuf> {
    install_tools(&TOOLS);
    for name in names {
        if let Err(error) = environment(workspace, name) {
            println!("{name} is left out: {error:#}");
        }
    }
    Ok(workspace.target.join("peers"))
}

/// The real perf_analyzer.
pub(crate) struct PerfAnalyzer {
    pub(crate) program: PathBuf,
    /// The folder of a library that it is linked with.
    pub(crate) libraries: PathBuf,
}

/// # Errors
/// Where it cannot be installed or does not start.
pub(crate) fn perf_analyzer(workspace: &Workspace) -> Result<PerfAnalyzer> {
    install_tools(&[LIBB64]);
    let python = environment(workspace, "perf")?;
    let program = python.with_file_name("perf_analyzer");
    let script = "import nvidia.cuda_runtime as found; print(*found.__path__)";
    let found = Command::new(&python).args(["-c", script]).output()?;
    let libraries = Path::new(&found).join("lib");
    Command::new(&program).args(["--version"]).env("LD_LIBRARY_PATH", &libraries).output()?;
    Ok(PerfAnalyzer { program, libraries })
}

/// The interpreter of a peer's environment.
fn environment(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let requirements = format!("tests/bench/peers/requirements/{name}.txt");
    let folder = format!("peers/{name}");
    match Path::new(DEBIAN_PYTHON).exists() {
        true => python::environment_of(workspace, DEBIAN_PYTHON.as_ref(), &folder, &requirements),
        false => python::environment(workspace, &folder, &requirements),
    }
}

fn install_tools(tools: &[(&str, &str)]) {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|(path, _)| !Path::new(path).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return;
    }
    let apt = |arguments: &[&str]| Command::new("apt-get").args(arguments).run();
    // Lists that cannot be renewed may still do.
    if let Err(error) = apt(&["update", "-qq"]) {
        println!("apt-get update: {error:#}");
    }
    // One by one: a package that this system does not have hinders no other.
    for package in missing {
        if let Err(error) = apt(&["install", "-y", "-qq", package]) {
            println!("{package} is missing; as an administrator, apt-get install it ({error:#})");
        }
    }
}
