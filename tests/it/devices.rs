//! The same answers whichever device serves.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use mortise_tests::{Deployment, Options, Server, infer, onnx, paths};
use serde_json::Value;

/// Models of the demo that are plain ONNX files, with a request on real data.
const DEMOS: [&str; 2] = ["digits", "wine"];

/// Answers of a server on `device` to the demo's own requests, by output.
fn answers(device: &str) -> Result<BTreeMap<String, Vec<f64>>> {
    let config = format!("[serving]\ndevice = \"{device}\"\n");
    let server = Server::start_with(Options { config, ..Options::default() })?;
    let mut answers = BTreeMap::new();
    for demo in DEMOS {
        let model = std::fs::read(paths::demo(&format!("{demo}/model.onnx")))?;
        let request = std::fs::read(paths::demo(&format!("{demo}/request.json")))?;
        server.admin()?.deploy(demo, &Deployment::onnx(model))?;
        let answer = server.client().post(&infer::path(demo), &request)?.ok()?.json()?;
        for output in answer["outputs"].as_array().context("no outputs")? {
            let data = output["data"].as_array().context("no data")?;
            let numbers = data.iter().filter_map(Value::as_f64).collect();
            answers.insert(format!("{demo}/{}", output["name"]), numbers);
        }
    }
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(7.0)))?;
    let request = infer::json_fp32("x", 1, &[1.0, 2.5, -3.0]);
    let answer = server.client().post(&infer::path("sum"), &request)?.ok()?.json()?;
    let sums = infer::output(&answer, "y").context("no y")?.iter().filter_map(Value::as_f64);
    answers.insert("sum".to_owned(), sums.collect());
    let chosen = if device == "gpu" { "gpu:" } else { "cpu" };
    let log = server.log();
    let line = log.lines().find(|line| line.contains("the device that runs graphs"));
    let line = line.context("the log does not say which device serves")?;
    ensure!(line.contains(chosen), "{line}");
    Ok(answers)
}

#[test]
fn the_demo_answers_alike_on_both_devices() -> Result<()> {
    let (cpu, gpu) = (answers("cpu")?, answers("gpu")?);
    ensure!(cpu.keys().eq(gpu.keys()), "{:?} and {:?}", cpu.keys(), gpu.keys());
    for (name, want) in &cpu {
        let got = &gpu[name];
        ensure!(got.len() == want.len() && !want.is_empty(), "{name}: {got:?} for {want:?}");
        let close = |(got, want): (&f64, &f64)| (got - want).abs() <= 1e-4 * want.abs().max(1.0);
        ensure!(got.iter().zip(want).all(close), "{name}: {got:?} for {want:?}");
    }
    Ok(())
}

#[test]
fn an_adapter_that_is_not_there_is_named() -> Result<()> {
    let config = "[serving]\ndevice = \"gpu:99\"\n".to_owned();
    let started = Server::start_with(Options { config, ..Options::default() });
    let error = started.err().context("the server started without its device")?;
    let message = format!("{error:#}");
    ensure!(message.contains("gpu:99"), "{message}");
    Ok(())
}

/// What a plugin may take of the device is its own, and the message says what
/// to raise.
#[test]
fn a_plugin_over_its_budget_of_the_device_is_told() -> Result<()> {
    let config = "[serving]\ndevice = \"gpu\"\n[plugin.onnx]\nmax_graph_device_bytes = 1000\n";
    let server = Server::start_with(Options { config: config.to_owned(), ..Options::default() })?;
    let model = std::fs::read(paths::demo("digits/model.onnx"))?;
    let refused = server.admin()?.deploy("digits", &Deployment::onnx(model));
    let message = format!("{:#}", refused.err().context("the model was deployed")?);
    ensure!(message.contains("the limit max_graph_device_bytes = 1000 was hit"), "{message}");
    let log = server.log();
    ensure!(log.contains("gpu:"), "{log}");
    Ok(())
}
