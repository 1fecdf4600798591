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

#[test]
fn inspect_shows_what_runs() -> Result<()> {
    let server = Server::start()?;
    let model = paths::demo("breast-cancer/model.onnx");
    let transform = format!("tabular={}", path(&paths::demo("breast-cancer/tabular.json"))?);
    succeed(&server, &["deploy", "cancer", path(&model)?, "--transform", &transform])?;
    let shown: Value = serde_json::from_str(&succeed(&server, &["inspect", "cancer", "--json"])?)?;
    let stages = shown["stages"].as_array().context("no stages")?;
    ensure!(stages.len() == 1, "the transform is not fused with the model: {shown}");
    ensure!(stages[0]["plugins"] == serde_json::json!(["tabular", "onnx"]), "{shown}");
    ensure!(stages[0]["graph"]["arena_bytes"].as_u64() > Some(0), "{shown}");
    ensure!(shown["version"] == 1 && shown["rows_independent"] == true, "{shown}");

    let digits = paths::demo("digits/model.onnx");
    let table = succeed(&server, &["inspect", path(&digits)?, "--device", "cpu"])?;
    for part in ["independent", "MatMul+Add+Relu", "cpu", "FP32[-1, "] {
        ensure!(table.contains(part), "{part} is not in {table}");
    }
    let nothing = mortise(&server, &["inspect", "nothing-here"])?;
    ensure!(!nothing.status.success(), "inspected an endpoint that is not there");
    Ok(())
}

#[test]
fn benchmarks_print_a_table_and_json() -> Result<()> {
    let bench = |args: &[&str]| -> Result<(String, Value)> {
        let output = Command::new(paths::mortise()).arg("bench").args(args).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "mortise bench {}: {errors}", args.join(" "));
        let text = String::from_utf8(output.stdout)?;
        let last = text.lines().last().context("nothing was printed")?;
        Ok((text.clone(), serde_json::from_str(last)?))
    };
    let (table, kernels) =
        bench(&["kernels", "--small", "--device", "cpu", "--threads", "1", "--filter", "conv"])?;
    ensure!(table.contains("conv_depthwise") && table.contains("OF FLOOR"), "{table}");
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    ensure!(kernels["device"] == "cpu", "{kernels}");
    ensure!(["peak_gflops", "bandwidth_gbs"].iter().all(|key| positive(&kernels[key])));
    let rows = kernels["kernels"].as_array().context("no kernels")?;
    ensure!(rows.len() == 3, "{kernels}");
    for row in rows {
        let keys = ["us", "gflops", "gbs", "floor_share"];
        ensure!(keys.iter().all(|key| positive(&row[key])), "{row}");
        ensure!(row["shape"].is_array() && row["dtype"] == "f32", "{row}");
    }
    let digits = paths::demo("digits/model.onnx");
    let (_, model) =
        bench(&["model", path(&digits)?, "--batch", "1,32", "--device", "cpu", "--json"])?;
    let batches: Vec<_> =
        model["models"].as_array().context("no models")?.iter().map(|row| &row["batch"]).collect();
    ensure!(batches == [1, 32], "{model}");
    Ok(())
}
