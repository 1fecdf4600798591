//! Several versions of one endpoint at once, over the running server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Beside, Part, Rollout};
use mortise_tests::{Admin, Client, Deployment, Options, Server, infer, onnx, wait};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// A model that answers `x + tag`; its version has the same number.
fn model(tag: u64) -> Deployment {
    Deployment::onnx(onnx::tagged_sum(tag as f32))
}

fn beside(tag: u64, percent: f64) -> Deployment {
    model(tag).beside(Beside { percent, router: None, key: Some("header:user".to_owned()) })
}

/// Versions 1 (stable), 2 and 3.
fn three_versions(admin: &mut Admin) -> Result<()> {
    admin.deploy("sum", &model(1))?;
    let second = admin.deploy("sum", &beside(2, 30.0))?;
    assert_eq!(second["beside_weight_percent"], 30.0, "{second}");
    admin.deploy("sum", &beside(3, 20.0))?;
    Ok(())
}

/// The version that answers this user, which its answer shows.
fn ask(client: &mut Client, user: &str) -> Result<u64> {
    let body = infer::json_fp32("x", 1, &[0.0]);
    let reply = client.send("POST", &infer::path("sum"), &[("user", user)], &body)?.ok()?;
    let header = |name: &str| reply.header(name).map(str::to_owned).context("no header");
    let version: u64 = header("mortise-version")?.parse()?;
    let variant = if version == 1 { "stable".to_owned() } else { format!("version-{version}") };
    assert_eq!(header("mortise-variant")?, variant);
    let answer = reply.json()?;
    assert_eq!(answer["outputs"][0]["data"][0].as_f64(), Some(version as f64), "{answer}");
    Ok(version)
}

/// The version of each of so many users.
fn assigned(server: &Server, users: u32) -> Result<Vec<u64>> {
    let mut client = server.client();
    (0..users).map(|user| ask(&mut client, &format!("user-{user}"))).collect()
}

fn counts(versions: &[u64]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    versions.iter().for_each(|version| *counts.entry(*version).or_default() += 1);
    counts
}

/// Within 99.9 % of what a fair draw gives.
fn assert_share(count: usize, total: usize, share: f64) {
    let (count, total) = (count as f64, total as f64);
    let margin = 3.29 * (total * share * (1.0 - share)).sqrt();
    assert!((count - total * share).abs() <= margin, "{count} of {total}, expected {share}");
}

fn memory(admin: &mut Admin) -> Result<u64> {
    let status = admin.get("/v1/status")?.ok()?.json()?;
    status["store"]["memory_reserved_bytes"].as_u64().context("no memory")
}

#[test]
fn weights_of_three_versions_are_kept_and_users_stay() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    three_versions(&mut admin)?;
    let first = assigned(&server, 2_000)?;
    for (version, share) in [(1, 0.5), (2, 0.3), (3, 0.2)] {
        assert_share(counts(&first)[&version], first.len(), share);
    }
    assert_eq!(assigned(&server, 2_000)?, first, "somebody moved");

    // Nobody leaves a version whose share grows; the stable one, whose share
    // shrinks, is left, and gets nobody.
    admin.set_traffic("sum", None, &json!({"3": 50}))?.ok()?;
    let grown = assigned(&server, 2_000)?;
    assert_share(counts(&grown)[&3], grown.len(), 0.5);
    for (before, after) in first.iter().zip(&grown) {
        let is_right = before == after || *before == 1 || (*before, *after) == (2, 3);
        ensure!(is_right, "{before} became {after}");
    }
    // What does not fit is refused, and nothing changes.
    for (shares, why) in [
        (json!({"3": 80}), "together"),
        (json!({"1": 10}), "stable one"),
        (json!({"9": 10}), "no version 9"),
        (json!({"3": 101}), "0 to 100"),
    ] {
        let refused = admin.set_traffic("sum", None, &shares)?;
        ensure!(refused.status >= 400 && refused.text().contains(why), "{}", refused.text());
    }
    assert_eq!(assigned(&server, 200)?, grown[..200]);
    shown(&server, &mut admin)
}

/// Status, metadata, statistics and metrics name all three.
fn shown(server: &Server, admin: &mut Admin) -> Result<()> {
    let traffic = admin.traffic("sum")?;
    let shares: Vec<_> = traffic["versions"].as_array().context("no versions")?.iter().collect();
    let weights: Vec<_> = shares.iter().map(|it| it["weight_percent"].as_f64()).collect();
    assert_eq!(weights, [Some(20.0), Some(30.0), Some(50.0)], "{traffic}");
    let requests: u64 = shares.iter().filter_map(|it| it["totals"]["requests"].as_u64()).sum();
    assert_eq!(requests, 6_200, "{traffic}");
    let status = admin.describe("sum")?;
    assert_eq!(status["versions"].as_array().map(Vec::len), Some(3), "{status}");
    ensure!(status["versions"][2]["memory_bytes"].as_u64() > Some(0), "{status}");
    let mut client = server.client();
    let metadata = client.get("/v2/models/sum")?.ok()?.json()?;
    assert_eq!(metadata["versions"], json!(["1", "2", "3"]), "{metadata}");
    let third = client.get("/v2/models/sum/versions/3")?.ok()?.json()?;
    assert_eq!(third["versions"], json!(["3"]), "{third}");
    let metrics = Client::new(server.metrics).get("/metrics")?.ok()?.text_whole();
    let weight = "mortise_variant_weight{endpoint=\"sum\",version=\"3\",variant=\"version-3\"} 0.5";
    ensure!(metrics.contains(weight), "{metrics}");
    Ok(())
}

#[test]
fn three_groups_of_an_experiment_are_compared_with_the_stable_version() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    three_versions(&mut admin)?;
    let group = |version: u64, share: f64| json!({"version": version, "share": share});
    let ab = Part::builtin("ab").set("experiment", "tags").set(
        "groups",
        json!({"control": group(1, 0.4), "blue": group(2, 0.3), "green": group(3, 0.3)}),
    );
    admin.set_traffic("sum", Some(&ab), &json!({}))?.ok()?;
    let first = assigned(&server, 1_500)?;
    for (version, share) in [(1, 0.4), (2, 0.3), (3, 0.3)] {
        assert_share(counts(&first)[&version], first.len(), share);
    }
    assert_eq!(assigned(&server, 1_500)?, first, "somebody moved");
    let output = std::process::Command::new(mortise_tests::paths::mortise())
        .args(["experiment", "report", "sum", "--json", "--store"])
        .arg(server.store())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reports: Value = serde_json::from_slice(&output.stdout)?;
    for (report, version) in reports.as_array().context("no reports")?.iter().zip([2, 3]) {
        assert_eq!(report["treatment"]["version"], version, "{reports}");
        assert_eq!(report["control"]["version"], 1, "{reports}");
        assert_eq!(report["sample_ratio_mismatch"], false, "{reports}");
    }
    // A group of a version that goes would have nobody to answer it.
    let refused = admin.post("/v1/endpoints/sum/traffic/retire/3")?;
    ensure!(refused.status == 400 && refused.text().contains("traffic set"), "{}", refused.text());
    assert_eq!(assigned(&server, 100)?, first[..100]);
    Ok(())
}

#[test]
fn headers_choose_among_three_versions() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    three_versions(&mut admin)?;
    let rule = |user: &str, version: u64| json!({"when": "header:user", "equals": user, "version": version});
    let header = Part::builtin("header").set("rules", json!([rule("ann", 2), rule("bob", 3)]));
    admin.set_traffic("sum", Some(&header), &json!({}))?.ok()?;
    let mut client = server.client();
    for (user, version) in [("ann", 2), ("bob", 3), ("eve", 1)] {
        assert_eq!(ask(&mut client, user)?, version);
    }
    Ok(())
}

/// Rewards of 200 answers of each version: the third one's are the best.
fn rewards() -> Value {
    let reward = |at: u64| {
        let (version, is_good) = (1 + at % 3, at / 3 % 10 < [2, 4, 9][(at % 3) as usize]);
        json!({"version": version, "metric": "reward", "value": f64::from(u8::from(is_good))})
    };
    (0..600).map(reward).collect()
}

#[test]
fn a_bandit_with_three_arms_moves_to_the_best_and_survives_a_kill() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    let mut admin = server.admin()?;
    three_versions(&mut admin)?;
    admin.set_traffic("sum", Some(&Part::builtin("bandit")), &json!({}))?.ok()?;
    let first = counts(&assigned(&server, 600)?);
    for version in 1..=3 {
        assert_share(first[&version], 600, 1.0 / 3.0);
    }
    assert_eq!(admin.report("sum", &rewards())?["accepted"], 600);
    ensure!(counts(&assigned(&server, 300)?)[&3] > 290);
    let stored = |admin: &mut Admin| -> Result<(u64, u64)> {
        let third = admin.traffic("sum")?["versions"][2]["totals"].take();
        let count = |value: &Value| value.as_f64().map(|it| it as u64).context("no count");
        Ok((count(&third["requests"])?, count(&third["metrics"]["reward"]["count"])?))
    };
    let before = stored(&mut admin)?;
    // Counts are stored every second.
    wait::pass(Duration::from_millis(1_500));
    server.kill()?;

    server = Server::start_with(options)?;
    let mut admin = server.admin()?;
    let after = counts(&assigned(&server, 300)?);
    ensure!(after[&3] > 290, "what was learned is lost: {after:?}");
    let later = stored(&mut admin)?;
    assert_eq!((later.0, later.1), (before.0 + after[&3] as u64, before.1), "counts are lost");
    let versions = admin.describe("sum")?["versions"].take();
    assert_eq!(versions.as_array().map(Vec::len), Some(3), "{versions}");
    let unknown = json!([{"version": 9, "metric": "reward", "value": 1}]);
    ensure!(admin.report("sum", &unknown).is_err());
    Ok(())
}

#[test]
fn a_retired_version_gets_no_more_traffic_and_frees_its_memory() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1))?;
    admin.deploy("sum", &beside(2, 50.0))?;
    let two = memory(&mut admin)?;
    admin.deploy("sum", &beside(3, 40.0))?;
    let three = memory(&mut admin)?;
    ensure!(three > two, "{three} bytes with three versions, {two} with two");
    let before = assigned(&server, 500)?;
    ensure!(before.contains(&3));
    admin.post("/v1/endpoints/sum/traffic/retire/3")?.ok()?;
    let after = assigned(&server, 500)?;
    ensure!(!after.contains(&3), "a retired version answers");
    for (old, new) in before.iter().zip(&after).filter(|(old, _)| **old != 3) {
        ensure!(old == new || (*old, *new) == (2, 1) || (*old, *new) == (1, 2));
    }
    wait::until("its memory to be free", LIMIT, || Ok(memory(&mut admin)? == two))?;
    assert_eq!(server.client().post("/v2/models/sum/versions/3/infer", b"{}")?.status, 400);
    assert_eq!(admin.post("/v1/endpoints/sum/traffic/retire/3")?.status, 404);
    // Without versions beside it the stable one is alone again, without a router.
    admin.post("/v1/endpoints/sum/traffic/retire/2")?.ok()?;
    assert_eq!(counts(&assigned(&server, 100)?), BTreeMap::from([(1, 100)]));
    assert_eq!(admin.get("/v1/endpoints/sum/traffic")?.status, 404);
    let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?.to_string();
    for action in ["deploy_beside", "traffic_retire"] {
        ensure!(audit.contains(action), "{action} is not in the audit log: {audit}");
    }
    Ok(())
}

#[test]
fn every_version_is_listed_and_measured() -> Result<()> {
    let server = Server::start()?;
    three_versions(&mut server.admin()?)?;
    assigned(&server, 100)?;
    let index = server.client().post("/v2/repository/index", b"{}")?.ok()?.json()?;
    let listed = index.as_array().context("no list")?.iter();
    let listed: Vec<_> =
        listed.map(|row| (row["version"].as_str(), row["state"].as_str())).collect();
    let ready = |version| (Some(version), Some("READY"));
    assert_eq!(listed, [ready("1"), ready("2"), ready("3")], "{index}");

    let page = Client::new(server.metrics).get("/metrics")?.ok()?.text_whole();
    for version in 1..=3 {
        let line = format!("mortise_model_memory_bytes{{endpoint=\"sum\",version=\"{version}\"}} ");
        let bytes = page.lines().find_map(|row| row.strip_prefix(&line)).context(line.clone())?;
        ensure!(bytes.parse::<u64>()? > 0, "{line}{bytes}");
    }
    Ok(())
}

/// The file in the store that this version has and no other one, by the audit
/// log.
fn own_file(store: &Path, admin: &mut Admin, version: u64) -> Result<PathBuf> {
    let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?;
    let rows = audit.as_array().context("no entries")?;
    let digests = |row: &Value| -> BTreeSet<String> {
        let all = row["digests"].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (mine, others): (Vec<&Value>, Vec<&Value>) =
        rows.iter().partition(|row| row["version"].as_u64() == Some(version));
    let others: BTreeSet<String> = others.into_iter().flat_map(digests).collect();
    let own = mine.into_iter().flat_map(digests).find(|digest| !others.contains(digest));
    let own = own.with_context(|| format!("no file of its own: {audit}"))?;
    let hex = own.trim_start_matches("sha256:");
    Ok(store.join("blobs/sha256").join(&hex[..2]).join(hex))
}

#[test]
fn a_version_that_cannot_be_restored_leaves_its_users_to_the_stable_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let options = Options { store: Some(store.clone()), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    let mut admin = server.admin()?;
    three_versions(&mut admin)?;
    let before = assigned(&server, 300)?;
    let file = own_file(&store, &mut admin, 3)?;
    let aside = folder.path().join("aside");
    server.kill()?;
    fs::rename(&file, &aside)?;

    let server = Server::start_with(options)?;
    let mut admin = server.admin()?;
    assert_eq!(counts(&assigned(&server, 300)?), BTreeMap::from([(1, 300)]));
    let log = server.log();
    ensure!(log.contains("versions beside stable are not restored"), "{log}");
    let gone = admin.post("/v1/endpoints/sum/traffic/promote/3")?;
    assert_eq!(gone.status, 503, "{}", gone.text_whole());

    // Nothing of it is lost: once the file is back, so is everybody's version.
    fs::rename(&aside, &file)?;
    admin.post("/v1/endpoints/sum/unload")?.ok()?;
    admin.post("/v1/endpoints/sum/load")?.ok()?;
    assert_eq!(assigned(&server, 300)?, before);
    Ok(())
}

#[test]
fn versions_stay_beside_whatever_becomes_stable() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let lonely = admin.deploy_refused("sum", &beside(1, 10.0))?;
    ensure!(lonely.message.contains("deploy it once without --beside"), "{lonely}");
    three_versions(&mut admin)?;
    // A rollout is between two versions alone, and nothing is deployed during one.
    let manual = Rollout::of(Part::builtin("manual").set("weight", 10));
    let refused = admin.deploy_refused("sum", &model(4).rollout(manual.clone()))?;
    assert_eq!(refused.status, 409, "{refused}");
    ensure!(refused.message.contains("mortise traffic retire sum"), "{refused}");
    let live = |admin: &mut Admin| -> Result<Vec<Value>> {
        let versions = admin.describe("sum")?["versions"].take();
        let versions = versions.as_array().context("no versions")?;
        Ok(versions.iter().map(|it| it["version"].clone()).collect())
    };
    admin.deploy("sum", &model(4))?;
    assert_eq!(live(&mut admin)?, [4, 2, 3]);
    admin.rollback("sum")?;
    assert_eq!(live(&mut admin)?, [1, 2, 3]);
    admin.post("/v1/endpoints/sum/unload")?.ok()?;
    assert_eq!(live(&mut admin)?, Vec::<Value>::new());
    admin.post("/v1/endpoints/sum/load")?.ok()?;
    assert_eq!(live(&mut admin)?, [1, 2, 3]);
    // Removing what nobody needs keeps what serves.
    admin.post("/v1/gc")?.ok()?;
    let before = assigned(&server, 500)?;
    admin.post("/v1/endpoints/sum/traffic/promote/3")?.ok()?;
    assert_eq!(live(&mut admin)?, [3, 2]);
    assert_eq!(admin.describe("sum")?["revision"]["version"]["number"], 3);
    ensure!(before.contains(&1));
    admin.rollback("sum")?;
    assert_eq!(live(&mut admin)?, [1, 2]);
    admin.post("/v1/endpoints/sum/traffic/retire/2")?.ok()?;
    admin.deploy("sum", &model(5).rollout(manual))?;
    let refused = admin.deploy_refused("sum", &beside(6, 10.0))?;
    assert_eq!(refused.status, 409, "{refused}");
    admin.steer_rollout("sum", "abort", &Value::Null)?;
    assert_eq!(live(&mut admin)?, [1]);
    Ok(())
}
