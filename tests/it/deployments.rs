//! Deployments: what goes live, what is refused and why, and what stays.

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::{Deployment, Options, Server, infer, onnx};
use serde_json::{Value, json};

/// The version and value that `sum` answers for 0.
fn answer(server: &Server) -> Result<(String, f64)> {
    let request = infer::json_fp32("x", 1, &[0.0]);
    let answer = server.client().post(&infer::path("sum"), &request)?.ok()?.json()?;
    let version = answer["model_version"].as_str().context("no version")?.to_owned();
    let data = infer::output(&answer, "y").and_then(|data| data[0].as_f64());
    Ok((version, data.context("no data")?))
}

fn sum(tag: f32) -> Deployment {
    Deployment::onnx(onnx::tagged_sum(tag))
}

#[test]
fn versions_and_rollback() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    assert_eq!(admin.deploy("sum", &sum(1.0))?["version"], 1);
    assert_eq!(admin.deploy("sum", &sum(2.0))?["version"], 2);
    assert_eq!(admin.deploy("sum", &sum(9.0).version(9))?["version"], 9);
    assert_eq!(answer(&server)?, ("9".to_owned(), 9.0));
    admin.rollback("sum")?;
    assert_eq!(answer(&server)?, ("2".to_owned(), 2.0));
    let refused = admin.deploy_refused("sum", &sum(9.0).version(9))?;
    ensure!(refused.message.contains('9'), "{refused}");
    admin.deploy("sum", &sum(10.0))?;
    assert_eq!(answer(&server)?, ("10".to_owned(), 10.0));
    admin.undeploy("sum")?;
    assert_eq!(server.client().get("/v2/models/sum")?.status, 404);
    Ok(())
}

#[test]
fn unload_and_load() -> Result<()> {
    let config = "[http]\nrepository_control = true\n".to_owned();
    let server = Server::start_with(Options { config, ..Options::default() })?;
    server.admin()?.deploy("sum", &sum(1.0))?;
    let mut client = server.client();
    client.post("/v2/repository/models/sum/unload", b"{}")?.ok()?;
    let request = infer::json_fp32("x", 1, &[0.0]);
    let refused = client.post(&infer::path("sum"), &request)?;
    ensure!(matches!(refused.status, 404 | 503), "{} {}", refused.status, refused.text());
    assert_eq!(client.get("/v2/health/ready")?.status, 200, "the server stays ready");
    client.post("/v2/repository/models/sum/load", b"{}")?.ok()?;
    assert_eq!(answer(&server)?, ("1".to_owned(), 1.0));
    Ok(())
}

/// Every deployment that must not go live, with words of the reason.
fn refusals() -> Vec<(&'static str, Deployment, &'static [&'static str])> {
    let good = onnx::tagged_sum(2.0);
    let unknown_operator = onnx::Graph::default().input("x", &[-1, 1]).output("y", &[-1, 1]).node(
        "Frobnicate",
        &["x"],
        &["y"],
    );
    let tabular = mortise_tests::paths::plugin("tabular");
    let tabular = std::fs::read(tabular).unwrap_or_default();
    let component = |bytes: &[u8]| {
        Deployment::of(Part::uploaded("mine", bytes.to_vec()).asset("model.onnx", good.clone()))
    };
    let half = &tabular[..tabular.len() / 2];
    let mut flipped = tabular.clone();
    let middle = flipped.len() / 2;
    flipped.iter_mut().skip(middle).step_by(997).for_each(|byte| *byte ^= 0x55);
    let failing = "[[example]]\ninputs = { x = [[1.0]] }\noutputs = { y = [[4.0]] }\n";
    let unknown_key = "[[exmaple]]\ninputs = { x = [[1.0]] }\n";
    vec![
        ("empty model", Deployment::onnx(b"".to_vec()), &[]),
        ("garbage model", Deployment::onnx(b"not an onnx file".to_vec()), &[]),
        ("half a model", Deployment::onnx(good[..good.len() / 2].to_vec()), &[]),
        ("unknown operator", Deployment::onnx(unknown_operator.model()), &["Frobnicate", "17"]),
        ("opset of the future", Deployment::onnx(unknown_operator.model_of_opset(999)), &["999"]),
        ("no model file", Deployment::of(Part::builtin("onnx")), &[]),
        ("unknown plugin", Deployment::of(Part::builtin("onix")), &["onix"]),
        ("a transform as a model", component(&tabular), &["transform"]),
        ("half a component", component(half), &[]),
        ("a corrupted component", component(&flipped), &[]),
        ("a core module", component(b"\0asm\x01\0\0\0"), &["component"]),
        ("not wasm", component(b"hello"), &[]),
        ("a failing self-test", sum(2.0).tests(failing), &["y"]),
        ("a misspelt self-test", sum(2.0).tests(unknown_key), &["exmaple"]),
    ]
}

#[test]
fn refused_deployments_leave_the_old_version() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &sum(1.0))?;
    let mut findings = Vec::new();
    for (name, deployment, words) in refusals() {
        match admin.deploy_refused("sum", &deployment) {
            Ok(refusal) => {
                let missing = words.iter().find(|word| !refusal.message.contains(**word));
                if missing.is_some() || refusal.message.is_empty() || refusal.status >= 500 {
                    findings.push(format!("{name}: {refusal}, without {missing:?}"));
                }
            }
            Err(error) => findings.push(format!("{name}: {error:#}")),
        }
        assert_eq!(answer(&server)?, ("1".to_owned(), 1.0), "after {name}");
        assert_eq!(server.client().get("/v2/health/ready")?.status, 200, "after {name}");
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    Ok(())
}

#[test]
fn bad_names_are_refused() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    for name in ["-a", "a%20b", &"a".repeat(129)] {
        let refused = admin.deploy_refused(name, &sum(1.0))?;
        assert_eq!(refused.status, 400, "{name}: {refused}");
    }
    Ok(())
}

#[test]
fn an_upload_over_the_limit_is_refused() -> Result<()> {
    let config = "[deploy]\nmax_artifact_bytes = 1000000\n".to_owned();
    let server = Server::start_with(Options { config, ..Options::default() })?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &sum(1.0))?;
    let refused = admin.deploy_refused("sum", &Deployment::onnx(vec![0; 3_000_000]))?;
    assert_eq!(refused.status, 413, "{refused}");
    ensure!(refused.message.contains("max_artifact_bytes"), "{refused}");
    assert_eq!(answer(&server)?, ("1".to_owned(), 1.0));
    Ok(())
}

#[test]
fn a_deployment_over_the_memory_budget_is_refused_with_the_figures() -> Result<()> {
    let config = "[deploy]\nmax_model_memory_bytes = 1000\n".to_owned();
    let server = Server::start_with(Options { config, ..Options::default() })?;
    let refused = server.admin()?.deploy_refused("sum", &sum(1.0))?;
    ensure!(refused.message.contains("1000") || refused.message.contains("1,000"), "{refused}");
    assert_eq!(server.client().get("/v2/health/ready")?.status, 200);
    Ok(())
}

/// Files of at most 3 MB stand in for a full disk: a larger upload fails to be
/// written, as it would there.
#[test]
fn a_full_disk_fails_the_deployment_only() -> Result<()> {
    let options = Options { max_file_bytes: Some(3_000_000), ..Options::default() };
    let server = Server::start_with(options)?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &sum(1.0))?;
    let refused = admin.deploy_refused("sum", &Deployment::onnx(vec![0; 5_000_000]))?;
    ensure!(!refused.message.is_empty(), "{refused}");
    assert_eq!(answer(&server)?, ("1".to_owned(), 1.0));
    admin.deploy("sum", &sum(2.0))?;
    assert_eq!(answer(&server)?, ("2".to_owned(), 2.0));
    Ok(())
}

#[test]
fn old_versions_are_collected() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    for tag in 1..=9 {
        admin.deploy("sum", &sum(tag as f32))?;
    }
    let report = admin.post("/v1/gc")?.ok()?.json()?;
    ensure!(report["versions_removed"].as_u64() > Some(0), "{report}");
    let versions = admin.get("/v1/endpoints/sum/versions")?.ok()?.json()?;
    let kept = versions.as_array().map_or(0, Vec::len);
    ensure!((5..=7).contains(&kept), "{kept} versions are kept: {versions}");
    assert_eq!(answer(&server)?, ("9".to_owned(), 9.0));
    admin.rollback("sum")?;
    assert_eq!(answer(&server)?, ("8".to_owned(), 8.0));
    Ok(())
}

#[test]
fn refusals_say_what_there_is_and_what_to_do() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &sum(1.0))?;
    let unknown = sum(2.0).rollout(Rollout::of(Part::builtin("blue")));
    let refused = admin.deploy_refused("sum", &unknown)?.message;
    let want = "there is no strategy \"blue\", only blue-green, canary, manual, or";
    ensure!(refused.contains(want) && refused.contains("did you mean blue-green?"), "{refused}");

    admin.deploy("sum", &sum(2.0).rollout(Rollout::of(Part::builtin("manual"))))?;
    let refused = admin.deploy_refused("sum", &sum(3.0))?;
    assert_eq!(refused.status, 409, "{refused}");
    for want in ["a rollout of version 2 ", "rollout promote sum", "rollout abort sum", "--watch"] {
        ensure!(refused.message.contains(want), "{want} is not in {refused}");
    }
    let entries = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?;
    assert_eq!((&entries[0]["action"], &entries[0]["ok"]), (&json!("deploy"), &json!(false)));
    Ok(())
}

#[test]
fn the_audit_log_names_who_and_what() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &sum(1.0))?;
    admin.deploy_refused("sum", &Deployment::onnx(b"garbage".to_vec()))?;
    admin.undeploy("sum")?;
    let entries = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?;
    let actions: Vec<_> = entries
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| (entry["action"].clone(), entry["ok"].clone()))
        .collect();
    let expected = [("undeploy", true), ("deploy", false), ("deploy", true)];
    assert_eq!(actions, expected.map(|(action, ok)| (json!(action), Value::Bool(ok))));
    Ok(())
}

#[test]
fn the_admin_api_needs_its_token() -> Result<()> {
    let server = Server::start()?;
    let mut without = mortise_tests::Client::new(server.admin);
    assert_eq!(without.get("/v1/endpoints")?.status, 401);
    let mut wrong = mortise_tests::Admin::new(server.admin, "0000");
    assert_eq!(wrong.get("/v1/endpoints")?.status, 401);
    let file = std::fs::metadata(server.store().join("admin.token"))?;
    let mode = std::os::unix::fs::MetadataExt::mode(&file) & 0o777;
    assert_eq!(mode, 0o600, "only the owner may read the token");
    Ok(())
}
