//! `cargo xtask onnx-conformance`: ONNX's backend node tests, exported from
//! the `onnx` package and run by `tests/conformance`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::sh::{Command, timed};
use crate::suite::Counts;
use crate::workspace::Workspace;
use crate::{bench, components, python};

const EXPORT: &str = "tests/conformance/export.py";
const REQUIREMENTS: &str = "tests/conformance/requirements.txt";
/// How many tests must pass, and which may fail and why.
const KNOWN: &str = "tests/conformance/known.json";

/// Builds what it takes, runs the tests, and fails where [`check`] does.
pub(crate) fn run(workspace: &Workspace, only: &str) -> Result<()> {
    components::build_plugins(workspace)?;
    workspace.cargo(&["build", "--release", "--workspace", "--bins"]).run()?;
    let result = measure(workspace, only)?;
    if only.is_empty() && check(workspace, &result)?.failed > 0 {
        bail!("fewer tests pass than {KNOWN} says");
    }
    Ok(())
}

/// Runs the built tests, prints what they print, and returns the last line,
/// one JSON object.
pub(crate) fn measure(workspace: &Workspace, only: &str) -> Result<Value> {
    let cases = export(workspace)?;
    let requirements = fs::read_to_string(workspace.path(REQUIREMENTS))?;
    let version = requirements.lines().find_map(|line| line.strip_prefix("onnx=="));
    let version = version.with_context(|| format!("{REQUIREMENTS} pins no onnx"))?;
    let command = Command::new(workspace.binary("mortise-conformance"))
        .args([Path::new("--cases"), &cases])
        .args([Path::new("--plugin"), &workspace.plugins().join("onnx.wasm")])
        .args([Path::new("--cache"), &workspace.target.join("conformance/cache")])
        .args(["--only", only, "--onnx-version", version]);
    bench::last_object(workspace, command)
}

/// One passed check a test; failed are those that fail and are not known to,
/// and one more when fewer pass than before.
pub(crate) fn check(workspace: &Workspace, result: &Value) -> Result<Counts> {
    let known: Value = serde_json::from_str(&fs::read_to_string(workspace.path(KNOWN))?)?;
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    let passed = number(&result["passed"]).context("no passed in the result")?;
    let least = number(&known["least_passed"]).context("no least_passed")?;
    let failures = result["failures"].as_array().context("no failures in the result")?;
    let is_known =
        |name: &&Value| name.as_str().is_some_and(|name| known["fails"][name].is_string());
    let unknown: Vec<_> = failures.iter().filter(|name| !is_known(name)).collect();
    if passed < least {
        eprintln!("{passed} node tests pass, {least} did before");
    }
    if !unknown.is_empty() {
        eprintln!("these node tests fail and are not in {KNOWN}: {unknown:?}");
    }
    Ok(Counts { passed, failed: unknown.len() + usize::from(passed < least) })
}

/// The folder of the exported tests, made again when the script or the pinned
/// package changed.
fn export(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target.join("conformance/cases");
    let stamp = folder.join("stamp");
    let read = |path: &str| fs::read_to_string(workspace.path(path));
    let wanted = read(REQUIREMENTS)? + &read(EXPORT)?;
    if fs::read_to_string(&stamp).ok().as_deref() == Some(&wanted) {
        return Ok(folder);
    }
    let python = python::environment(workspace, "venv-conformance", REQUIREMENTS)?;
    timed("export ONNX's node tests", || {
        Command::new(python).args([&workspace.path(EXPORT), &folder]).run()
    })?;
    fs::write(&stamp, wanted)?;
    Ok(folder)
}
