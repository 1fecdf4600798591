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

/// Programs and libraries of the system, and the Debian packages that have them.
const TOOLS: [(&str, &str); 3] = [
    ("/usr/bin/wrk", "wrk"),
    ("/usr/bin/h2load", "nghttp2-client"),
    ("/usr/lib/x86_64-linux-gnu/libb64.so.0d", "libb64-0d"),
];

/// Triton's Python backend is linked with the library of Debian's own Python
/// 3.11; another build of the same version does not do.
const DEBIAN_PYTHON: &str = "/usr/bin/python3.11";

/// The folder of the environments.
pub(crate) fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    install_tools();
    for name in ENVIRONMENTS {
        let requirements = format!("tests/bench/peers/requirements/{name}.txt");
        let folder = format!("peers/{name}");
        let installed = match Path::new(DEBIAN_PYTHON).exists() {
            true => {
                python::environment_of(workspace, DEBIAN_PYTHON.as_ref(), &folder, &requirements)
            }
            false => python::environment(workspace, &folder, &requirements),
        };
        if let Err(error) = installed {
            println!("{name} is left out: {error:#}");
        }
    }
    Ok(workspace.target.join("peers"))
}

fn install_tools() {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(path, _)| !Path::new(path).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return;
    }
    let install = Command::new("apt-get").args(["install", "-y", "-qq"]).args(&missing).run();
    if let Err(error) = install {
        println!("{} are missing; apt-get install them ({error:#})", missing.join(", "));
    }
}
