//! How requests wait, merge and are limited, from outside.

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::Part;
use mortise_tests::load::Load;
use mortise_tests::{Deployment, Response, Server, http1, infer, onnx};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn ask(server: &Server, endpoint: &str, value: f64, parameters: Value) -> Result<Response> {
    let tensor = json!({"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]});
    let body = json!({"inputs": [tensor], "parameters": parameters});
    server.client().post(&infer::path(endpoint), body.to_string().as_bytes())
}

fn number(response: &Response) -> Result<f64> {
    let answer = response.json()?;
    let data = infer::output(&answer, "y").with_context(|| format!("no y in {answer}"))?;
    data[0].as_f64().context("not a number")
}

#[test]
fn concurrent_requests_are_merged_and_answered_right() -> Result<()> {
    let server = Server::start()?;
    let deployed = server.admin()?.deploy("net", &Deployment::onnx(onnx::perceptron(3, 512)))?;
    ensure!(deployed["merging"]["state"] == "on", "{}", deployed["merging"]);
    let rows: Vec<Vec<f32>> = (0..8).map(|row| vec![row as f32 / 8.0; 512]).collect();
    let bodies: Vec<Vec<u8>> = rows.iter().map(|row| infer::json_fp32("x", 512, row)).collect();
    let mut client = server.client();
    let mut alone = Vec::new();
    for body in &bodies {
        let answer = client.post(&infer::path("net"), body)?.ok()?.json()?;
        alone.push(infer::output(&answer, "y").context("no y")?[0].as_f64().context("no number")?);
    }
    let requests = bodies.iter().map(|body| http1::request("POST", &infer::path("net"), &[], body));
    let check: mortise_tests::load::Check = Arc::new(move |request, status, body| {
        let value = serde_json::from_slice::<Value>(body)
            .ok()
            .and_then(|answer| infer::output(&answer, "y")?.first()?.as_f64());
        match (status, value) {
            (200, Some(value)) if (value - alone[request]).abs() < 1e-3 => {
                mortise_tests::load::Verdict::Right
            }
            (200, _) => mortise_tests::load::Verdict::Wrong,
            _ => mortise_tests::load::Verdict::Failed,
        }
    });
    let requests = Arc::new(requests.collect());
    let load = Load { address: server.http, connections: 32, requests, check };
    let outcome = load.run(Duration::from_secs(2))?;
    ensure!(
        outcome.failed + outcome.wrong == 0,
        "{} wrong, {} failed",
        outcome.wrong,
        outcome.failed
    );
    ensure!(!outcome.samples.is_empty());
    Ok(())
}

#[test]
fn a_sequence_keeps_its_state_between_requests() -> Result<()> {
    let server = Server::start()?;
    let state = json!([{"input": "h", "output": "h_out"}]);
    let serving = json!({"sequence": {"state": state}});
    let deployment = Deployment::onnx(onnx::running_sum()).serving(serving);
    server.admin()?.deploy("sum", &deployment)?;
    let metadata = server.client().get("/v2/models/sum")?.ok()?.json()?;
    ensure!(metadata["inputs"].as_array().map(Vec::len) == Some(1), "{metadata}");
    let step = |id: Value, value: f64, start: bool, end: bool| {
        let parameters = json!({"sequence_id": id, "sequence_start": start, "sequence_end": end});
        ask(&server, "sum", value, parameters)
    };
    ensure!(number(&step(json!(7), 1.0, true, false)?)? == 1.0);
    ensure!(number(&step(json!("other"), 50.0, true, false)?)? == 50.0);
    ensure!(number(&step(json!(7), 2.0, false, false)?)? == 3.0);
    ensure!(number(&step(json!(7), 3.0, false, true)?)? == 6.0);
    let ended = step(json!(7), 1.0, false, false)?;
    ensure!(ended.status == 400 && ended.text().contains("no open sequence 7"), "{}", ended.text());
    let without = ask(&server, "sum", 1.0, json!({}))?;
    ensure!(without.status == 400 && without.text().contains("sequence_id"), "{}", without.text());
    Ok(())
}

#[test]
fn a_rate_limit_answers_429_and_says_when_to_come_back() -> Result<()> {
    let server = Server::start()?;
    let serving = json!({"rate_limit": {"requests_per_second": 0.2, "burst": 2}});
    server.admin()?.deploy("m", &Deployment::onnx(onnx::tagged_sum(1.0)).serving(serving))?;
    for _ in 0..2 {
        ensure!(number(&ask(&server, "m", 1.0, json!({}))?)? == 2.0);
    }
    let refused = ask(&server, "m", 1.0, json!({}))?;
    ensure!(refused.status == 429, "{}", refused.text());
    ensure!(refused.header("retry-after").is_some_and(|seconds| seconds != "0"));
    Ok(())
}

#[test]
fn an_ensemble_runs_deployed_models_in_a_row_and_survives_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let options = mortise_tests::Options { store: Some(store), ..Default::default() };
    let mut server = Server::start_with(options.clone())?;
    let mut admin = server.admin()?;
    admin.deploy("one", &Deployment::onnx(onnx::tagged_sum(1.0)))?;
    admin.deploy("ten", &Deployment::onnx(onnx::tagged_sum(10.0)))?;
    let steps = "
        [[step]]
        model = \"one\"
        outputs = { y = \"middle\" }
        [[step]]
        model = \"ten\"
        inputs = { x = \"middle\" }
    ";
    // Named so that it would be restored before its steps.
    let ensemble = Deployment::of(Part::uploaded("ensemble", steps.into()));
    admin.deploy("an-ensemble", &ensemble)?;
    ensure!(number(&ask(&server, "an-ensemble", 0.5, json!({}))?)? == 11.5);
    let wrong = steps.replace("\"ten\"", "\"none\"");
    let refused =
        admin.deploy_refused("b", &Deployment::of(Part::uploaded("ensemble", wrong.into())))?;
    ensure!(refused.message.contains("model \"none\" is not deployed"), "{refused}");
    server.kill()?;
    let server = Server::start_with(options)?;
    ensure!(number(&ask(&server, "an-ensemble", 0.5, json!({}))?)? == 11.5);
    Ok(())
}

#[test]
fn options_that_make_no_sense_are_refused() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let cases = [
        (json!({"batching": {"max_batch_size": 0}}), "max_batch_size must be at least 1"),
        (json!({"batching": {"max_batch": 3}}), "max_batch"),
        (json!({"sequence": {"state": [{"input": "q", "output": "y"}]}}), "names no input"),
    ];
    for (serving, want) in cases {
        let deployment = Deployment::onnx(onnx::tagged_sum(1.0)).serving(serving);
        let refused = admin.deploy_refused("m", &deployment)?;
        ensure!(refused.message.contains(want), "{refused}");
    }
    Ok(())
}
