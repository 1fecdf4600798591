//! `mortise plugin replay`: recordings through policies, without a server.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::load::{Load, Verdict};
use mortise_tests::{Deployment, Server, http1, infer, onnx, paths, wait};
use serde_json::{Value, json};

fn replay(recording: &Path, arguments: &[&str]) -> Result<String> {
    let (plugin, rest) = arguments.split_first().unwrap_or((&"", &[]));
    let mut command = Command::new(paths::mortise());
    let output = command.args(["plugin", "replay", plugin]).arg(recording).args(rest).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

#[test]
fn a_rollout_that_was_watched_is_decided_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let faults = |rate: f64| {
        let input = json!({"name": "x", "datatype": "FP32", "shape": [-1, 1]});
        Part::builtin("faults").set("input", input).set("error_rate", rate)
    };
    let model = |rate| Deployment::onnx(onnx::tagged_sum(1.0)).transform(faults(rate));
    admin.deploy("sum", &model(0.0))?;
    let strategy = Part::builtin("canary").set("interval", "1h").set("check", "100ms");
    let rollout = Rollout::of(strategy.set("steps", json!([25, 100])));
    admin.deploy("sum", &model(0.3).rollout(rollout))?;
    let body = infer::json_fp32("x", 1, &[1.0]);
    let requests = Arc::new(vec![http1::request("POST", &infer::path("sum"), &[], &body)]);
    let check = Arc::new(|_: usize, _: u16, _: &[u8]| Verdict::Right);
    let load = Load { address: server.http, connections: 2, requests, check }.start();
    let mut recorded = String::new();
    wait::until("the rollout to end", Duration::from_secs(60), || {
        let status = admin.rollout("sum")?;
        recorded.push_str(&format!("{status:#}\n"));
        Ok(status["phase"] != "running")
    })?;
    load.finish()?;
    ensure!(admin.rollout("sum")?["phase"] == "rolled_back");
    let recording = folder.path().join("windows.json");
    std::fs::write(&recording, recorded)?;
    let settings = ["canary", "--set", "interval=1h", "--set", "check=100ms"];
    let text = replay(&recording, &settings)?;
    let last = text.lines().last().unwrap_or_default();
    ensure!(last.contains("rollback") && last.contains("errors"), "{text}");

    let as_json = replay(&recording, &[&settings[..], &["--json"]].concat())?;
    let last: Value = serde_json::from_str(as_json.lines().last().unwrap_or_default())?;
    assert_eq!(last["action"], "rollback", "{as_json}");
    let error = replay(&recording, &["weighted"]).unwrap_err().to_string();
    ensure!(error.contains("record 1 is a window of a rollout"), "{error}");
    // Another strategy decides otherwise about the same.
    let text = replay(&recording, &["manual", "--set", "weight=10"])?;
    ensure!(!text.contains("rollback"), "{text}");
    Ok(())
}

#[test]
fn requests_go_where_the_router_would_send_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recording = folder.path().join("requests.json");
    let lines: Vec<String> =
        (0..400).map(|user| json!({"headers": {"User": format!("u{user}")}}).to_string()).collect();
    std::fs::write(&recording, lines.join("\n"))?;
    let versions = |variants: &str| -> Result<Vec<u64>> {
        let arguments = ["weighted", "--variants", variants, "--key", "header:user", "--json"];
        let text = replay(&recording, &arguments)?;
        let values = text.lines().map(serde_json::from_str::<Value>);
        let values = values.collect::<serde_json::Result<Vec<_>>>()?;
        let summary = values.last().cloned().unwrap_or_default();
        assert_eq!(summary["keyless"], 0, "{summary}");
        let chosen: Vec<u64> =
            values.iter().filter_map(|value| value["version"].as_u64()).collect();
        let on_second = chosen.iter().filter(|&&version| version == 2).count();
        assert_eq!(summary["requests"]["2"], on_second);
        Ok(chosen)
    };
    let (few, many) = (versions("1=75,2=25")?, versions("1=25,2=75")?);
    assert_eq!((few.len(), versions("1=75,2=25")?), (400, few.clone()));
    ensure!(few.contains(&2) && many.contains(&1), "one version got everything");
    ensure!(few.iter().zip(&many).all(|(few, many)| *few != 2 || *many == 2), "one went back");

    let text = replay(&recording, &["weighted", "--key", "header:none"])?;
    ensure!(text.contains("without a key: 400"), "{text}");
    let error = replay(&recording, &["canary"]).unwrap_err().to_string();
    ensure!(error.contains("record 1 is a request"), "{error}");
    ensure!(error.contains("hint: ") && error.contains("rollout status NAME --watch"), "{error}");
    let error = replay(&recording, &["onnx"]).unwrap_err().to_string();
    ensure!(error.contains("routers and strategies decide"), "{error}");
    Ok(())
}
