//! `--quantize`: sizes and differences are told, kept and bounded.

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Quantize};
use mortise_tests::{Deployment, Options, Server, infer, onnx, paths};
use serde_json::Value;

const WIDTH: usize = 64;

fn mode(mode: &str) -> Quantize {
    Quantize { mode: mode.to_owned(), ..Quantize::default() }
}

fn perceptron(quantize: Option<Quantize>) -> Deployment {
    Deployment { quantize, ..Deployment::onnx(onnx::perceptron(2, WIDTH)) }
}

/// Rows that all lie between -1 and 1.
fn rows() -> String {
    let header: Vec<String> = (0..WIDTH).map(|at| format!("x{at}")).collect();
    let row = |row: usize| {
        let number = |at: usize| ((row * 31 + at * 17) % 41) as f32 / 20.0 - 1.0;
        (0..WIDTH).map(|at| number(at).to_string()).collect::<Vec<_>>().join(",")
    };
    let rows = (0..70).map(row).collect::<Vec<_>>().join("\n");
    format!("{}\n{rows}\n", header.join(","))
}

fn with_rows(mode: &str) -> Quantize {
    let samples = Some(("rows.csv".to_owned(), rows().into_bytes()));
    Quantize { mode: mode.to_owned(), samples, max_error: None }
}

fn ask(server: &Server, endpoint: &str) -> Result<Vec<f64>> {
    let row: Vec<f32> = (0..WIDTH).map(|at| (at % 9) as f32 / 4.5 - 1.0).collect();
    let request = infer::json_fp32("x", WIDTH, &row);
    let answer = server.client().post(&infer::path(endpoint), &request)?.ok()?.json()?;
    let data = answer["outputs"][0]["data"].as_array().context("no data")?;
    data.iter().map(|number| number.as_f64().context("no number")).collect()
}

#[test]
fn every_mode_serves_smaller_weights_and_close_answers() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("plain", &perceptron(None))?;
    let want = ask(&server, "plain")?;
    let size = want.iter().fold(0.0f64, |top, y| top.max(y.abs()));
    let cases =
        [("int8", 3.0, 0.05), ("int8-static", 3.0, 0.05), ("int4", 5.0, 0.4), ("f16", 1.9, 0.01)];
    for (name, ratio, share) in cases {
        let deployed = admin.deploy(name, &perceptron(Some(with_rows(name))))?;
        let report = &deployed["quantize"];
        let bytes = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
        ensure!(report["products"].as_u64() > Some(0), "{report}");
        for kind in ["weight", "device"] {
            let got =
                bytes(&format!("{kind}_bytes_before")) / bytes(&format!("{kind}_bytes_after"));
            ensure!(got >= ratio, "{name}: {kind} bytes {got} times smaller");
        }
        let error = report["difference"]["max_abs_error"].as_f64().context("no error")?;
        ensure!(error > 0.0 && error <= share * size, "{name}: {error} of {size}");
        assert_eq!(report["generated"], false);
        assert_eq!(report["difference"]["samples"], 2, "70 rows in two requests");
        assert_eq!(deployed["merging"]["state"], "on", "{deployed}");
        let got = ask(&server, name)?;
        let apart = want.iter().zip(&got).fold(0.0f64, |top, (a, b)| top.max((a - b).abs()));
        ensure!(apart > 0.0 && apart <= share * size, "{name}: {apart} of {size}");
    }
    Ok(())
}

#[test]
fn quantised_versions_survive_kill_9() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    let mut admin = server.admin()?;
    admin.deploy("a", &perceptron(None))?;
    admin.deploy("a", &perceptron(Some(with_rows("int8-static"))))?;
    admin.deploy("b", &perceptron(Some(mode("int8"))))?;
    let before = [ask(&server, "a")?, ask(&server, "b")?];
    server.kill()?;
    let server = Server::start_with(options)?;
    let mut admin = server.admin()?;
    assert_eq!([ask(&server, "a")?, ask(&server, "b")?], before);
    let kept = |state: &Value| state["revision"]["version"]["quantize"].clone();
    let (a, b) = (kept(&admin.describe("a")?), kept(&admin.describe("b")?));
    assert_eq!([&a["mode"], &b["mode"]], ["int8-static", "int8"]);
    assert_eq!(a["samples"]["name"], "rows.csv");
    assert_eq!(b["report"]["generated"], true);
    let audit = admin.get("/v1/audit?limit=10")?.ok()?.text_whole();
    ensure!(audit.contains("quantized to int8-static ("), "{audit}");
    admin.rollback("a")?;
    ensure!(kept(&admin.describe("a")?).is_null(), "the version before was not quantised");
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let small = Quantize { max_error: Some(1e-9), ..mode("int8") };
    let text = |bytes: &str| Some(("rows.csv".to_owned(), bytes.as_bytes().to_vec()));
    let sum = |quantize| Deployment { quantize, ..Deployment::onnx(onnx::tagged_sum(1.0)) };
    let cases: [(&str, Deployment, &[&str]); 6] = [
        (
            "small",
            perceptron(Some(small)),
            &["--max-quantize-error 0.000000001", "differ by up to", "use f16"],
        ),
        ("static", perceptron(Some(mode("int8-static"))), &["--calibrate", "--quantize int8"]),
        ("few", sum(Some(mode("int8"))), &["nothing can be quantized", "256"]),
        (
            "columns",
            perceptron(Some(Quantize { samples: text("a,b\n1,2\n"), ..mode("int8") })),
            &["rows.csv", "2 columns"],
        ),
        (
            "limit",
            perceptron(Some(Quantize { max_error: Some(-1.0), ..mode("f16") })),
            &["0 or more"],
        ),
        ("mode", perceptron(Some(mode("int3"))), &["int3", "int8-static"]),
    ];
    for (name, deployment, words) in cases {
        let refused = admin.deploy_refused(name, &deployment)?;
        for word in words {
            ensure!(refused.message.contains(word), "{name}: {refused} lacks {word}");
        }
        assert_eq!(server.client().get(&format!("/v2/models/{name}"))?.status, 404, "{name}");
    }
    Ok(())
}

#[test]
fn a_plugin_without_a_graph_has_nothing_to_quantise() -> Result<()> {
    let server = Server::start()?;
    let component = std::fs::read(paths::guest("measure"))?;
    let part = Part::uploaded("measure", component);
    let deployment = Deployment { quantize: Some(mode("int8")), ..Deployment::of(part) };
    let refused = server.admin()?.deploy_refused("own", &deployment)?;
    ensure!(refused.message.contains("builds no graph"), "{refused}");
    Ok(())
}
