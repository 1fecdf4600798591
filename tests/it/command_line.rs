//! The command line against a running server.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use mortise_tests::{Server, onnx, paths};
use serde_json::Value;

fn mortise(server: &Server, args: &[&str]) -> Result<Output> {
    Command::new(paths::mortise())
        .args(args)
        .arg("--store")
        .arg(server.store())
        .output()
        .context("run mortise")
}

fn succeed(server: &Server, args: &[&str]) -> Result<String> {
    let output = mortise(server, args)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mortise {}: {errors}", args.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

fn path(file: &Path) -> Result<&str> {
    file.to_str().context("temporary paths are text")
}

#[test]
fn deploy_predict_roll_back_and_undeploy() -> Result<()> {
    let server = Server::start()?;
    let folder = tempfile::tempdir()?;
    for (file, tag) in [("one.onnx", 1.0), ("two.onnx", 2.0)] {
        let file = folder.path().join(file);
        std::fs::write(&file, onnx::tagged_sum(tag))?;
        succeed(&server, &["deploy", "sum", path(&file)?])?;
    }
    let predicted = succeed(&server, &["predict", "sum", "--row", "x=0.5"])?;
    ensure!(predicted.contains("2.5"), "{predicted}");
    succeed(&server, &["rollback", "sum"])?;
    let status: Value = serde_json::from_str(&succeed(&server, &["status", "--json"])?)?;
    ensure!(status.to_string().contains("\"sum\""), "{status}");

    let rows = folder.path().join("rows.csv");
    let predictions = folder.path().join("predictions.csv");
    std::fs::write(&rows, "x\n0.5\n10\n-3\n")?;
    let args = ["predict", "sum", "--csv", path(&rows)?, "--output", path(&predictions)?];
    succeed(&server, &args)?;
    let text = std::fs::read_to_string(&predictions)?;
    for value in ["1.5", "11", "-2"] {
        ensure!(text.contains(value), "{value} is not in {text}");
    }
    succeed(&server, &["undeploy", "sum"])?;
    let gone = mortise(&server, &["predict", "sum", "--row", "x=0.5"])?;
    ensure!(!gone.status.success(), "predicted by an endpoint that is gone");
    Ok(())
}

#[test]
fn failures_say_what_to_do() -> Result<()> {
    let server = Server::start()?;
    let folder = tempfile::tempdir()?;
    let garbage = folder.path().join("garbage.onnx");
    std::fs::write(&garbage, "garbage")?;
    let cases: [&[&str]; 4] = [
        &["deploy", "bad", path(&garbage)?],
        &["deploy", "bad", "does-not-exist.onnx"],
        &["undeploy", "nothing-here"],
        &["rollback", "nothing-here"],
    ];
    for args in cases {
        let output = mortise(&server, args)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "mortise {} succeeded", args.join(" "));
        ensure!(errors.contains("error"), "mortise {}: {errors}", args.join(" "));
    }
    Ok(())
}
