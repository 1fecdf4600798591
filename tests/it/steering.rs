//! What operators and clients do to rollouts, and what is refused or warned of.

use crate::rollouts::{LIMIT, ask, ended, live_version, manual, model, traffic};
use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Beside, Part, Rollout};
use mortise_tests::{Admin, Client, Server, infer, paths, wait};
use serde_json::{Value, json};

fn begun(server: &Server, rollout: Rollout) -> Result<Admin> {
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
    Ok(admin)
}

fn swap(admin: &mut Admin, strategy: &str, config: Value) -> Result<Value> {
    let body = json!({"strategy": {"name": strategy}, "config": config});
    admin.steer_rollout("sum", "strategy", &body)
}

fn by_user(rollout: Rollout) -> Rollout {
    Rollout { key: Some("header:user".to_owned()), ..rollout }
}

fn metrics(server: &Server) -> Result<String> {
    Ok(Client::new(server.metrics).get("/metrics")?.ok()?.text_whole())
}

#[test]
fn any_strategy_takes_over_from_any_other() -> Result<()> {
    let server = Server::start()?;
    let mut admin = begun(&server, manual(25.0))?;
    let slow = json!({"interval": "1h", "check": "100ms"});
    let steps: [(&str, Value); 5] = [
        ("canary", slow.clone()),
        ("blue-green", json!({"preview": "1h"})),
        ("manual", json!({})),
        ("canary", slow),
        // It keeps what it was told before.
        ("canary", json!({"min_samples": 7})),
    ];
    for (strategy, config) in steps {
        let swapped = swap(&mut admin, strategy, config)?;
        assert_eq!(swapped["strategy"]["plugin"], strategy);
        assert_eq!(swapped["weight_percent"], 25.0, "traffic moved: {swapped}");
        let tick = swapped["tick"].as_u64().context("no tick")?;
        wait::until("an evaluation", LIMIT, || {
            let status = admin.rollout("sum")?;
            ensure!(status["error"].is_null(), "{status}");
            Ok(status["tick"].as_u64() > Some(tick))
        })?;
    }
    let want = json!({"interval": "1h", "check": "100ms", "min_samples": 7});
    assert_eq!(admin.rollout("sum")?["strategy"]["config"], want);
    let body =
        json!({"strategy": {"name": "canary"}, "config": {"interval": "2h"}, "defaults": true});
    let swapped = admin.steer_rollout("sum", "strategy", &body)?;
    assert_eq!(swapped["strategy"]["config"], json!({"interval": "2h"}));
    let refused = swap(&mut admin, "manual", json!({"weight": 10})).unwrap_err();
    ensure!(format!("{refused:#}").contains("mortise rollout weight"), "{refused:#}");
    // The canary climbs on from where an operator left it.
    admin.steer_rollout("sum", "weight", &json!({"percent": 40}))?;
    let quick =
        json!({"interval": "0.2s", "check": "100ms", "min_samples": 5, "latency_tolerance": 1_000});
    swap(&mut admin, "canary", quick)?;
    let load = traffic(&server);
    let end = ended(&mut admin)?;
    load.finish()?;
    assert_eq!(end["phase"], "promoted", "{end}");
    let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?.to_string();
    ensure!(audit.contains("40 % to 50 %") && !audit.contains("40 % to 5 %"), "{audit}");
    Ok(())
}

#[test]
fn routers_that_heed_no_weights_are_refused_for_strategies_that_set_them() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let rules = json!([{"when": "header:user", "equals": "tester"}]);
    let routers = [
        Part::builtin("shadow"),
        Part::builtin("ab").set("experiment", "e"),
        Part::builtin("header").set("rules", rules),
        Part::builtin("bandit"),
    ];
    for router in routers {
        for strategy in ["canary", "blue-green"] {
            let rollout =
                Rollout { router: Some(router.clone()), ..Rollout::of(Part::builtin(strategy)) };
            let refused = admin.deploy_refused("sum", &model(2.0, 0.0, 0).rollout(rollout))?;
            ensure!(refused.message.contains("use --router weighted"), "{refused}");
        }
    }
    let ab = Rollout { router: Some(Part::builtin("ab").set("experiment", "e")), ..manual(0.0) };
    let deployed = admin.deploy("sum", &model(2.0, 0.0, 0).rollout(ab))?;
    ensure!(deployed["warnings"][0].as_str().is_some_and(|it| it.contains("--key")), "{deployed}");
    assert_eq!(deployed["divided_by"], "ab", "{deployed}");
    let refused = swap(&mut admin, "canary", json!({})).unwrap_err();
    ensure!(format!("{refused:#}").contains("use --router weighted"), "{refused:#}");
    let refused = admin.steer_rollout("sum", "weight", &json!({"percent": 40})).unwrap_err();
    ensure!(format!("{refused:#}").contains("weights change nothing"), "{refused:#}");
    admin.steer_rollout("sum", "abort", &Value::Null)?;
    let nowhere = Rollout { key: Some("input:nope".to_owned()), ..manual(0.0) };
    let refused = admin.deploy_refused("sum", &model(2.0, 0.0, 0).rollout(nowhere))?;
    ensure!(refused.message.contains("does not have; it has x"), "{refused}");
    let shadow = Part::builtin("shadow");
    let beside = Beside { percent: 30.0, router: Some(shadow), key: None };
    admin.deploy("sum", &model(2.0, 0.0, 0).beside(beside))?;
    assert_eq!(admin.traffic("sum")?["router_follows_weights"], false);
    let error = admin.steer_rollout("none", "pause", &Value::Null).unwrap_err();
    ensure!(format!("{error:#}").contains("there is no endpoint"), "{error:#}");
    ensure!(!format!("{error:#}").contains("rollout canary"), "{error:#}");
    Ok(())
}

#[test]
fn counts_of_requests_without_a_key_outlive_weights_and_the_rollout() -> Result<()> {
    let server = Server::start()?;
    let mut admin = begun(&server, by_user(manual(50.0)))?;
    let body = infer::json_fp32("x", 1, &[0.0]);
    let nobody = |count: usize| -> Result<()> {
        (0..count).try_for_each(|_| {
            server.client().post(&infer::path("sum"), &body)?.ok()?;
            Ok(())
        })
    };
    nobody(7)?;
    admin.steer_rollout("sum", "weight", &json!({"percent": 60}))?;
    nobody(5)?;
    // A pause takes them from the strategy, and from nobody else.
    admin.steer_rollout("sum", "pause", &Value::Null)?;
    nobody(3)?;
    admin.steer_rollout("sum", "resume", &Value::Null)?;
    let status = admin.rollout("sum")?;
    let requests = |variant: &str| status[variant]["requests"].as_u64().unwrap_or(0);
    assert_eq!(requests("stable") + requests("candidate"), 15, "{status}");
    let shown = metrics(&server)?;
    for line in [
        "mortise_router_keyless_total{endpoint=\"sum\"} 15",
        "mortise_rollout_weight{endpoint=\"sum\",version=\"2\"} 0.6",
        "mortise_rollout_paused{endpoint=\"sum\",version=\"2\"} 0",
    ] {
        ensure!(shown.contains(line), "{line} is not in\n{shown}");
    }
    assert_eq!(admin.rollout("sum")?["keyless_requests"], 15);
    admin.steer_rollout("sum", "promote", &Value::Null)?;
    let end = admin.rollout("sum")?;
    assert_eq!(end["keyless_requests"], 15, "{end}");
    assert_eq!(end["sampled_keys"]["weight_percent"], 60.0, "{end}");
    Ok(())
}

#[test]
fn whoever_takes_no_part_in_an_experiment_is_counted_apart() -> Result<()> {
    let server = Server::start()?;
    let groups = json!({"old": {"version": 1, "share": 0.5}, "new": {"version": 2, "share": 0.5}});
    let router =
        Part::builtin("ab").set("experiment", "e").set("holdout", 0.3).set("groups", groups);
    let mut admin = begun(&server, by_user(Rollout { router: Some(router), ..manual(0.0) }))?;
    let mut counts = [0u64; 3];
    for user in 0..200 {
        let (version, variant) = ask(&server, &format!("user-{user}"), &infer::path("sum"))?;
        let place = ["stable", "candidate", "outside"].iter().position(|name| *name == variant);
        counts[place.context(variant)?] += 1;
        assert_eq!(version == "2", place == Some(1));
    }
    let status = admin.rollout("sum")?;
    let [stable, candidate, outside] = counts;
    ensure!(stable > 40 && candidate > 40 && outside > 30, "{counts:?}");
    assert_eq!(status["stable"]["requests"], stable);
    assert_eq!(status["candidate"]["requests"], candidate);
    assert_eq!(status["outside_requests"], outside);
    let late = json!([{"version": 2, "metric": "revenue", "value": 2.5}]);
    admin.report("sum", &late)?;
    admin.steer_rollout("sum", "promote", &Value::Null)?;
    assert_eq!(live_version(&mut admin)?, 2);
    // What comes of answers may come after the end.
    admin.report("sum", &late)?;
    let revenue = admin.rollout("sum")?["candidate"]["metrics"]["revenue"].take();
    assert_eq!((&revenue["count"], &revenue["sum"]), (&json!(2), &json!(5.0)));
    let own = json!([{"version": 2, "metric": "preview_errors", "value": 0.0}]);
    ensure!(admin.report("sum", &own).is_err(), "a metric of the host's own was taken");
    let output = std::process::Command::new(paths::mortise())
        .args(["experiment", "report", "sum", "--store"])
        .arg(server.store())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    for want in ["version 2 (new, ", "against version 1 (old, ", "expected 50.00 %", "no part in"] {
        ensure!(text.contains(want), "{want} is not in\n{text}");
    }
    Ok(())
}

#[test]
fn what_changes_nothing_leaves_no_line_in_the_audit_log() -> Result<()> {
    let server = Server::start()?;
    let mut admin = begun(&server, manual(50.0))?;
    for action in ["pause", "pause", "resume", "resume", "abort"] {
        admin.steer_rollout("sum", action, &Value::Null)?;
    }
    let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?;
    let actions: Vec<&str> =
        audit.as_array().into_iter().flatten().filter_map(|it| it["action"].as_str()).collect();
    let count = |action: &str| actions.iter().filter(|it| **it == action).count();
    assert_eq!((count("rollout_phase"), count("rollout_abort")), (2, 1), "{actions:?}");
    assert_eq!(count("rollout_rollback"), 0, "{actions:?}");
    Ok(())
}
