//! Virtual environments with pinned packages, made once and kept in `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};

use crate::sh::{Command, timed};
use crate::workspace::Workspace;

/// The interpreter of `target/<name>`, holding what the requirements file
/// (relative to the root) pins. Made when missing or when the file changed.
pub(crate) fn environment(
    workspace: &Workspace,
    name: &str,
    requirements: &str,
) -> Result<PathBuf> {
    environment_of(workspace, "python3".as_ref(), name, requirements)
}

/// The same with an interpreter of one's choice.
pub(crate) fn environment_of(
    workspace: &Workspace,
    interpreter: &Path,
    name: &str,
    requirements: &str,
) -> Result<PathBuf> {
    // `test` prepares one in the background; whoever needs it waits here.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let folder = workspace.target.join(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    let requirements = workspace.path(requirements);
    let wanted =
        fs::read(&requirements).with_context(|| format!("read {}", requirements.display()))?;
    if python.exists() && fs::read(&stamp).ok().as_deref() == Some(&wanted) {
        return Ok(python);
    }
    timed(&format!("install Python packages into target/{name}"), || {
        Command::new(interpreter).args(["-m", "venv", "--clear"]).args([&folder]).run().context(
            "Python 3 with the venv module is needed (Debian: apt install python3-venv)",
        )?;
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .args([&requirements])
            .run()
    })?;
    fs::write(&stamp, wanted)?;
    Ok(python)
}
