//! Rollouts against the running server, with real traffic.

use std::sync::Arc;
use std::time::Duration;

use crate::hooks::HookService;
use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::load::{Load, Running, Verdict};
use mortise_tests::{Admin, Deployment, Options, Server, http1, infer, onnx, paths, wait};
use serde_json::{Value, json};

pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Quick steps, for tests.
fn canary() -> Rollout {
    let strategy = Part::builtin("canary")
        .set("interval", "1.5s")
        .set("check", "150ms")
        .set("min_samples", 20)
        .set("steps", json!([5, 25, 50, 100]))
        // The machine is shared: what is slower by chance is no fault.
        .set("latency_tolerance", 4);
    Rollout { key: Some("header:user".to_owned()), ..Rollout::of(strategy) }
}

pub(crate) fn manual(percent: f64) -> Rollout {
    Rollout::of(Part::builtin("manual").set("weight", percent))
}

/// A model that answers `x + tag`, of which a share of the requests fails, and
/// which does some arithmetic first.
pub(crate) fn model(tag: f32, error_rate: f64, work: u64) -> Deployment {
    let faults = Part::builtin("faults")
        .set("input", json!({"name": "x", "datatype": "FP32", "shape": [-1, 1]}))
        .set("error_rate", error_rate)
        .set("work", work);
    Deployment::onnx(onnx::tagged_sum(tag)).transform(faults)
}

/// Requests of many users; failures of the versions are theirs to make.
pub(crate) fn traffic(server: &Server) -> Running {
    let request = |user: u32| {
        let body = infer::json_fp32("x", 1, &[user as f32]);
        let user = format!("user-{user}");
        http1::request("POST", &infer::path("sum"), &[("user", &user)], &body)
    };
    let check = Arc::new(|_: usize, status: u16, _: &[u8]| match status {
        200 => Verdict::Right,
        500 => Verdict::Failed,
        _ => Verdict::Wrong,
    });
    let requests = Arc::new((0..500).map(request).collect());
    Load { address: server.http, connections: 4, requests, check }.start()
}

fn phase(admin: &mut Admin) -> Result<String> {
    Ok(admin.rollout("sum")?["phase"].as_str().context("no phase")?.to_owned())
}

/// Waits for the end of a rollout and returns its last state.
pub(crate) fn ended(admin: &mut Admin) -> Result<Value> {
    wait::until("the rollout to end", LIMIT, || Ok(phase(admin)? != "running"))
        .with_context(|| format!("{:?}", admin.rollout("sum")))?;
    admin.rollout("sum")
}

pub(crate) fn live_version(admin: &mut Admin) -> Result<u64> {
    admin.describe("sum")?["revision"]["version"]["number"].as_u64().context("no version")
}

/// One request, of this user: version and variant of the reply's headers.
pub(crate) fn ask(server: &Server, user: &str, path: &str) -> Result<(String, String)> {
    let body = infer::json_fp32("x", 1, &[0.0]);
    let reply = server.client().send("POST", path, &[("user", user)], &body)?.ok()?;
    let header = |name: &str| reply.header(name).context("a header is missing").map(str::to_owned);
    let (version, variant) = (header("mortise-version")?, header("mortise-variant")?);
    let answer = reply.json()?;
    assert_eq!(answer["parameters"]["version"].to_string(), version);
    assert_eq!(answer["parameters"]["variant"], variant);
    assert_eq!(answer["model_version"], version);
    Ok((version, variant))
}

#[test]
fn a_good_version_is_promoted_and_bad_ones_are_rolled_back() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.005, 0))?;
    let load = traffic(&server);

    let begun = admin.deploy("sum", &model(2.0, 0.005, 0).rollout(canary()))?;
    assert_eq!(begun["rollout_weight_percent"], 5.0, "{begun}");
    let refused = admin.deploy_refused("sum", &model(9.0, 0.0, 0))?;
    assert_eq!(refused.status, 409, "{refused}");
    ensure!(refused.message.contains("rollout"), "{refused}");
    let end = ended(&mut admin)?;
    assert_eq!((end["phase"].as_str(), live_version(&mut admin)?), (Some("promoted"), 2), "{end}");
    // Some of its requests fail, as they are to.
    let answer = (0..20).find_map(|_| ask(&server, "any", &infer::path("sum")).ok());
    assert_eq!(answer, Some(("2".to_owned(), "stable".to_owned())));

    admin.deploy("sum", &model(3.0, 0.3, 0).rollout(canary()))?;
    let end = ended(&mut admin)?;
    assert_eq!(end["phase"], "rolled_back", "{end}");
    ensure!(end["reason"].as_str().unwrap_or_default().contains("failed"), "{end}");
    assert_eq!(live_version(&mut admin)?, 2);

    admin.deploy("sum", &model(4.0, 0.005, 30_000_000).rollout(canary()))?;
    let end = ended(&mut admin)?;
    assert_eq!(end["phase"], "rolled_back", "{end}");
    ensure!(end["reason"].as_str().unwrap_or_default().contains("median"), "{end}");
    assert_eq!(live_version(&mut admin)?, 2);

    let outcome = load.finish()?;
    assert_eq!(outcome.wrong, 0, "only the versions' own failures may be seen");
    let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?.to_string();
    for action in ["\"rollout\"", "rollout_step", "rollout_promote", "rollout_rollback"] {
        ensure!(audit.contains(action), "{action} is not in the audit log: {audit}");
    }
    // The way back of a promotion is a rollback.
    admin.rollback("sum")?;
    assert_eq!(live_version(&mut admin)?, 1);
    Ok(())
}

#[test]
fn users_stay_where_they_are_and_named_versions_are_no_evidence() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let rollout = Rollout { key: Some("header:user".to_owned()), ..manual(50.0) };
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
    let users: Vec<String> = (0..40).map(|user| format!("user-{user}")).collect();
    let all = |server: &Server| -> Result<Vec<String>> {
        users.iter().map(|user| Ok(ask(server, user, &infer::path("sum"))?.1)).collect()
    };
    let first = all(&server)?;
    ensure!(first.contains(&"stable".to_owned()) && first.contains(&"candidate".to_owned()));
    assert_eq!(all(&server)?, first);
    let before = admin.rollout("sum")?;
    assert_eq!(
        before["candidate"]["requests"].as_u64(),
        Some(2 * first.iter().filter(|variant| *variant == "candidate").count() as u64)
    );
    for version in ["1", "2"] {
        let path = format!("/v2/models/sum/versions/{version}/infer");
        assert_eq!(ask(&server, "user-1", &path)?.0, version);
    }
    assert_eq!(server.client().post("/v2/models/sum/versions/3/infer", b"{}")?.status, 400);
    let after = admin.rollout("sum")?;
    for variant in ["stable", "candidate"] {
        assert_eq!(after[variant]["requests"], before[variant]["requests"]);
    }
    admin.steer_rollout("sum", "weight", &json!({"percent": 80}))?;
    let grown = all(&server)?;
    let left = first.iter().zip(&grown).any(|(a, b)| a == "candidate" && b == "stable");
    ensure!(!left, "a user went back: {first:?} {grown:?}");
    assert_eq!(admin.steer_rollout("sum", "pause", &Value::Null)?["phase"], "paused");
    assert_eq!(admin.steer_rollout("sum", "resume", &Value::Null)?["phase"], "running");
    assert_eq!(admin.steer_rollout("sum", "abort", &Value::Null)?["phase"], "aborted");
    assert_eq!(live_version(&mut admin)?, 1);
    assert_eq!(admin.get("/v1/endpoints/none/rollout")?.status, 404);
    Ok(())
}

#[test]
fn keys_stand_in_headers_parameters_and_inputs_and_missing_ones_are_counted() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    // Where the key stands, and a request of this user, or of nobody.
    type Request = fn(&Server, Option<u32>) -> Result<String>;
    let sources: [(&str, Request); 3] = [
        ("header:user", |server, user| {
            let user = user.map(|user| user.to_string());
            let headers: Vec<_> = user.iter().map(|user| ("user", user.as_str())).collect();
            variant_of(server, &headers, &json!({"inputs": [x_of(0.0)]}))
        }),
        ("parameter:user", |server, user| {
            let parameters = user.map_or(json!({}), |user| json!({"user": user}));
            variant_of(server, &[], &json!({"inputs": [x_of(0.0)], "parameters": parameters}))
        }),
        // A request always has this input.
        ("input:x", |server, user| {
            variant_of(server, &[], &json!({"inputs": [x_of(user.unwrap_or(0) as f32)]}))
        }),
    ];
    for (key, request) in sources {
        let rollout = Rollout { key: Some(key.to_owned()), ..manual(50.0) };
        admin.deploy("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
        let all = || (0..40).map(|user| request(&server, Some(user))).collect::<Result<Vec<_>>>();
        let first = all()?;
        for variant in ["stable", "candidate"] {
            ensure!(first.iter().any(|it| it == variant), "{key}: nobody is on {variant}");
        }
        assert_eq!(all()?, first, "{key}: somebody moved");
        assert_eq!(admin.rollout("sum")?["keyless_requests"], 0, "{key}");
        if key != "input:x" {
            let nobody = (0..60).map(|_| request(&server, None)).collect::<Result<Vec<_>>>()?;
            for variant in ["stable", "candidate"] {
                ensure!(nobody.iter().any(|it| it == variant), "{key}: {nobody:?}");
            }
            assert_eq!(admin.rollout("sum")?["keyless_requests"], 60, "{key}");
        }
        admin.steer_rollout("sum", "abort", &Value::Null)?;
    }
    let wrong = Rollout { key: Some("cookie:user".to_owned()), ..manual(50.0) };
    let refused = admin.deploy_refused("sum", &model(2.0, 0.0, 0).rollout(wrong))?;
    ensure!(refused.message.contains("header:NAME, parameter:NAME or input:NAME"), "{refused}");
    Ok(())
}

fn x_of(value: f32) -> Value {
    json!({"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]})
}

fn variant_of(server: &Server, headers: &[(&str, &str)], body: &Value) -> Result<String> {
    let body = body.to_string();
    let reply = server.client().send("POST", &infer::path("sum"), headers, body.as_bytes())?;
    Ok(reply.ok()?.header("mortise-variant").context("no variant")?.to_owned())
}

/// Step and evidence of a rollout, as far as they are committed.
fn committed(admin: &mut Admin) -> Result<(f64, u64, u64)> {
    let rollout = admin.rollout("sum")?;
    let number = |value: &Value| value.as_f64().context("no number");
    Ok((
        number(&rollout["weight_percent"])?,
        rollout["tick"].as_u64().context("no tick")?,
        rollout["elapsed_ms"].as_u64().context("no time")?,
    ))
}

#[test]
fn kill_9_in_the_middle_of_a_rollout_loses_no_committed_tick() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    server.admin()?.deploy("sum", &model(1.0, 0.0, 0))?;
    let slow = Rollout::of(
        Part::builtin("canary")
            .set("interval", "20s")
            .set("check", "100ms")
            .set("steps", json!([25, 100])),
    );
    server.admin()?.deploy("sum", &model(2.0, 0.0, 0).rollout(slow))?;
    for _ in 0..3 {
        let load = traffic(&server);
        let mut admin = server.admin()?;
        let (_, start, _) = committed(&mut admin)?;
        wait::until("some ticks", LIMIT, || Ok(committed(&mut admin)?.1 > start + 3))?;
        load.finish()?;
        let before = committed(&mut admin)?;
        server.kill()?;
        server = Server::start_with(options.clone())?;
        let after = committed(&mut server.admin()?)?;
        assert_eq!(after.0, before.0, "it went on at another step");
        ensure!(
            after.1 >= before.1 && after.2 >= before.2,
            "ticks were lost: {before:?} {after:?}"
        );
        let rollout = server.admin()?.rollout("sum")?;
        ensure!(
            rollout["candidate"]["requests"].as_u64() > Some(0),
            "evidence was lost: {rollout}"
        );
        assert_eq!(ask(&server, "u", "/v2/models/sum/versions/2/infer")?.1, "candidate");
    }
    Ok(())
}

#[test]
fn a_strategy_is_swapped_in_the_middle_and_keeps_the_state() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let strategy = Part::builtin("canary")
        .set("interval", "1h")
        .set("check", "100ms")
        .set("steps", json!([25, 100]));
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(Rollout::of(strategy)))?;
    let load = traffic(&server);
    wait::until("some ticks", LIMIT, || Ok(committed(&mut admin)?.1 > 3))?;
    let before = committed(&mut admin)?;
    let samples = |admin: &mut Admin| -> Result<Option<u64>> {
        Ok(admin.rollout("sum")?["candidate"]["requests"].as_u64())
    };
    let sampled = samples(&mut admin)?;
    let manual = json!({"strategy": {"name": "manual"}, "config": {}});
    let swapped = admin.steer_rollout("sum", "strategy", &manual)?;
    assert_eq!(swapped["strategy"]["plugin"], "manual");
    assert_eq!(swapped["weight_percent"].as_f64(), Some(before.0), "traffic moved");
    ensure!(samples(&mut admin)? >= sampled, "evidence was lost");
    // The canary finds what it left, and its new interval is long over.
    let quick = json!({"interval": "0.1s", "check": "100ms", "steps": [25, 100], "min_samples": 1, "latency_tolerance": 4});
    admin.steer_rollout(
        "sum",
        "strategy",
        &json!({"strategy": {"name": "canary"}, "config": quick}),
    )?;
    let end = ended(&mut admin)?;
    load.finish()?;
    assert_eq!(end["phase"], "promoted", "{end}");
    ensure!(end["tick"].as_u64() > Some(before.1), "{end}");
    Ok(())
}

#[test]
fn a_router_that_fails_is_told_about_and_stable_answers() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let component = std::fs::read(paths::guest("bad-router"))?;
    let cases = [("trap", "trap"), ("loop", "route_timeout"), ("nowhere", "chose variant 99 of 2")];
    for (behave, why) in cases {
        let hook = HookService::start()?;
        let router = Part::uploaded("bad-router", component.clone()).set("behave", behave);
        let told = Some(json!({"url": hook.url}));
        let rollout = Rollout { router: Some(router), hook: told, ..manual(50.0) };
        admin.deploy("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
        for _ in 0..20 {
            assert_eq!(ask(&server, "u", &infer::path("sum"))?.1, "stable");
        }
        let status = admin.rollout("sum")?;
        assert_eq!(status["undecided_requests"], 20, "{behave}: {status}");
        ensure!(status["router_failure"].as_str().unwrap_or_default().contains(why), "{status}");
        assert_eq!(status["candidate"]["requests"], 0, "{behave}: {status}");
        wait::until("the alert", LIMIT, || Ok(!hook.events("alert").is_empty()))?;
        let alert = hook.events("alert").pop().context("no alert")?;
        assert_eq!(alert["action"], "router_failed", "{alert}");
        let metrics =
            mortise_tests::Client::new(server.metrics).get("/metrics")?.ok()?.text_whole();
        ensure!(
            metrics.contains("mortise_router_undecided_total{endpoint=\"sum\"} 20"),
            "{metrics}"
        );
        admin.steer_rollout("sum", "abort", &Value::Null)?;
    }
    let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?.to_string();
    ensure!(audit.contains("rollout_router") && audit.contains("variant 99"), "{audit}");
    Ok(())
}

#[test]
fn a_strategy_that_traps_leaves_traffic_where_it_was_and_says_so() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let hook = HookService::start()?;
    let strategy = Part::uploaded("trap-strategy", std::fs::read(paths::guest("trap-strategy"))?);
    let told = Some(json!({"url": hook.url}));
    let rollout = Rollout { hook: told, ..Rollout::of(strategy) };
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
    wait::until("the failure to be told", LIMIT, || {
        Ok(admin.rollout("sum")?["error"].as_str().is_some_and(|error| error.contains("trap")))
    })?;
    let status = admin.rollout("sum")?;
    assert_eq!((&status["weight_percent"], &status["phase"]), (&json!(30.0), &json!("running")));
    wait::until("the alert", LIMIT, || Ok(!hook.events("alert").is_empty()))?;
    let alert = hook.events("alert").pop().context("no alert")?;
    assert_eq!(alert["action"], "strategy_failed", "{alert}");
    assert_eq!(ask(&server, "u", "/v2/models/sum/versions/2/infer")?.1, "candidate");
    assert_eq!(admin.steer_rollout("sum", "promote", &Value::Null)?["phase"], "promoted");
    assert_eq!(live_version(&mut admin)?, 2);
    Ok(())
}

#[test]
fn copies_are_compared_and_replies_are_untouched() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let router = Part::builtin("shadow").set("share", 1.0);
    let rollout = Rollout { router: Some(router), ..manual(0.0) };
    // One at a time, since merged rows may differ in their last digit anyway.
    let replies = |server: &Server| -> Result<Vec<Vec<u8>>> {
        let mut client = server.client();
        let mut replies = Vec::new();
        for x in 0..50 {
            let x = [0.1 * x as f32];
            let json = infer::json_fp32("x", 1, &x);
            replies.push(client.post(&infer::path("sum"), &json)?.ok()?.body);
            let (binary, head) = infer::binary_fp32("x", 1, &x);
            let length = [("inference-header-content-length", &*head.to_string())];
            replies.push(client.send("POST", &infer::path("sum"), &length, &binary)?.ok()?.body);
        }
        Ok(replies)
    };
    let alone = replies(&server)?;
    admin.deploy("sum", &model(3.0, 0.0, 0).rollout(rollout))?;
    assert_eq!(replies(&server)?, alone, "a copy changed a reply");
    wait::until("the copies to run", LIMIT, || {
        let candidate = admin.rollout("sum")?["candidate"].take();
        let count = |key: &str| candidate[key].as_u64().unwrap_or(0);
        Ok(count("shadow_compared") + count("shadow_dropped") == 100)
    })?;
    let candidate = admin.rollout("sum")?["candidate"].take();
    assert_eq!(candidate["shadow_differing"], candidate["shadow_compared"], "{candidate}");
    let gap = candidate["shadow_max_difference"].as_f64().context("no difference")?;
    ensure!((gap - 2.0).abs() < 1e-5, "{candidate}");
    assert_eq!(candidate["requests"], 0, "copies are no evidence");
    Ok(())
}

#[test]
fn headers_decide_and_rewards_are_learned() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let rules = json!([{"when": "header:user", "equals": "tester"}]);
    let router = Part::builtin("header").set("rules", rules);
    let rollout = Rollout { router: Some(router), ..manual(0.0) };
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
    assert_eq!(ask(&server, "tester", &infer::path("sum"))?.1, "candidate");
    assert_eq!(ask(&server, "other", &infer::path("sum"))?.1, "stable");
    admin.steer_rollout("sum", "abort", &Value::Null)?;

    let rollout = Rollout { router: Some(Part::builtin("bandit")), ..manual(50.0) };
    admin.deploy("sum", &model(3.0, 0.0, 0).rollout(rollout))?;
    let reports: Vec<Value> = (0..400)
        .map(|at| json!({"version": 1 + 2 * (at % 2), "metric": "reward", "value": at % 2}))
        .collect();
    let body = Value::from(reports).to_string();
    let path = "/v1/endpoints/sum/metrics";
    let token = std::fs::read_to_string(server.store().join("admin.token"))?;
    let token = format!("Bearer {}", token.trim());
    let mut client = mortise_tests::Client::new(server.admin).with_header("authorization", &token);
    assert_eq!(client.post(path, body.as_bytes())?.ok()?.json()?["accepted"], 400);
    for _ in 0..20 {
        assert_eq!(ask(&server, "u", &infer::path("sum"))?.1, "candidate");
    }
    let metrics = admin.rollout("sum")?["candidate"]["metrics"]["reward"].take();
    assert_eq!((&metrics["count"], &metrics["sum"]), (&json!(200), &json!(200.0)));
    Ok(())
}

#[test]
fn an_experiment_is_reported_by_users_and_not_by_requests() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let router = Part::builtin("ab").set("experiment", "tags");
    let key = Some("header:user".to_owned());
    let rollout = Rollout { router: Some(router), key, ..manual(50.0) };
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
    let mut on_candidate = 0;
    for user in 0..300 {
        let user = format!("user-{user}");
        let is_treated = ask(&server, &user, &infer::path("sum"))?.1 == "candidate";
        on_candidate += u64::from(is_treated);
        // Those with the new version come back again and again.
        for _ in 0..5 * u64::from(is_treated) {
            ask(&server, &user, &infer::path("sum"))?;
        }
    }
    let output = std::process::Command::new(paths::mortise())
        .args(["experiment", "report", "sum", "--json", "--store"])
        .arg(server.store())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["expected_share"], 0.5, "{report}");
    assert_eq!(report["treatment"]["requests"].as_f64(), Some(6.0 * on_candidate as f64));
    // A few users share a place in the sample.
    let users = report["treatment"]["sampled_users"].as_f64().context("no sample")?;
    ensure!(users <= on_candidate as f64 && users > 0.9 * on_candidate as f64, "{report}");
    assert_eq!(report["sample_ratio_mismatch"], false, "{report}");
    assert_eq!(report["metrics"][0]["metric"], "errors", "{report}");
    Ok(())
}

#[test]
fn blue_and_green_switch_at_once_after_a_preview() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let strategy = |rate: f64| {
        let part = Part::builtin("blue-green").set("preview", "0.5s").set("keep", "3s");
        let part = part.set("min_samples", 20).set("max_slowdown", 1_000);
        model(2.0, rate, 0).rollout(Rollout::of(part))
    };
    admin.deploy("sum", &strategy(0.0))?;
    assert_eq!(ask(&server, "u", &infer::path("sum"))?.0, "1");
    assert_eq!(ask(&server, "u", "/v2/models/sum/versions/2/infer")?.0, "2");
    let load = traffic(&server);
    wait::until("the switch", LIMIT, || Ok(admin.rollout("sum")?["weight_percent"] == 100.0))?;
    assert_eq!(ask(&server, "u", &infer::path("sum"))?.0, "2");
    assert_eq!(ask(&server, "u", "/v2/models/sum/versions/1/infer")?.0, "1");
    let end = ended(&mut admin)?;
    assert_eq!((end["phase"].as_str(), live_version(&mut admin)?), (Some("promoted"), 2), "{end}");
    // One that fails after the switch is taken back.
    admin.deploy("sum", &strategy(0.5))?;
    let end = ended(&mut admin)?;
    assert_eq!(load.finish()?.wrong, 0);
    assert_eq!(
        (end["phase"].as_str(), live_version(&mut admin)?),
        (Some("rolled_back"), 2),
        "{end}"
    );
    Ok(())
}

#[test]
fn a_preview_that_fails_is_never_switched_to() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let strategy = Part::builtin("blue-green").set("preview", "1h");
    admin.deploy("sum", &model(2.0, 1.0, 0).rollout(Rollout::of(strategy)))?;
    let body = infer::json_fp32("x", 1, &[0.0]);
    let reply = server.client().post("/v2/models/sum/versions/2/infer", &body)?;
    assert_eq!(reply.status, 500);
    let end = ended(&mut admin)?;
    assert_eq!((&end["phase"], &end["candidate"]["requests"]), (&json!("rolled_back"), &json!(0)));
    let reason = end["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("1 of 1 requests to the preview failed; its newest failure"), "{end}");
    Ok(())
}
