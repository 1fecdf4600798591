use crate::fixture::{Fixture, Watch};
use mortise_deploy::{AuditQuery, EndpointState, Stage};
use mortise_types::{Error, ErrorKind};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

#[test]
fn versions_count_and_rollback_walks_back() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    for (version, value) in [(1, 1.0), (2, 2.0), (3, 3.0)] {
        let deployed = fixture.deploy("sum", &format!("model {value}")).unwrap();
        assert_eq!((deployed.version, fixture.ask("sum").unwrap()), (version, value));
        let stages: Vec<Stage> = deployed.stages.iter().map(|timing| timing.stage).collect();
        assert_eq!(stages, Stage::DEPLOYMENT);
    }
    let deployer = &fixture.deployer;
    assert_eq!(deployer.rollback("sum", "me").unwrap().version, Some(2));
    assert_eq!(fixture.ask("sum").unwrap(), 2.0);
    assert_eq!(deployer.rollback("sum", "me").unwrap().version, Some(1));
    assert_eq!(fixture.ask("sum").unwrap(), 1.0);
    assert_eq!(deployer.rollback("sum", "me").unwrap_err().kind(), ErrorKind::Conflict);
    // What was deployed after a rollback goes back to what it replaced.
    assert_eq!(fixture.deploy("sum", "model 4").unwrap().version, 4);
    assert_eq!(deployer.rollback("sum", "me").unwrap().version, Some(1));
}

#[test]
fn explicit_versions_must_be_new() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    let deploy = |version| {
        let mut request = fixture.request("sum", "model 1");
        request.version = Some(version);
        fixture.deployer.deploy(request)
    };
    assert_eq!(deploy(7).unwrap().version, 7);
    assert_eq!(deploy(7).unwrap_err().reason.kind(), ErrorKind::Conflict);
    assert_eq!(deploy(3).unwrap().version, 3);
    assert_eq!(fixture.deploy("sum", "model 1").unwrap().version, 8);
    assert!(deploy(0).is_err());
}

#[test]
fn transforms_and_assets_take_part() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    let mut request = fixture.request("sum", "model 1");
    request.transforms = vec![fixture.transform("transform 10"), fixture.transform("transform 20")];
    request.assets = vec![fixture.named("bias", "100")];
    fixture.deployer.deploy(request).unwrap();
    assert_eq!(fixture.ask("sum").unwrap(), 131.0);
    drop(fixture);
    let again = Fixture::open(dir.path());
    assert_eq!(again.ask("sum").unwrap(), 131.0);
    let revision = &again.deployer.revisions("sum").unwrap()[0];
    assert_eq!(revision.version.transforms.len(), 2);
    let bias = &revision.version.model.assets[0];
    assert_eq!(&again.deployer.blob(&bias.digest).unwrap()[..], b"100");
}

#[test]
fn failures_name_the_stage_and_leave_the_old_version() {
    let cases = [
        ("nonsense", Stage::Verified, "a plugin was refused: plugin \"line\": it fits no world"),
        ("transform 1", Stage::Verified, "is a transform, and is used as a model"),
        ("model broken", Stage::Compiled, "it could not be built: plugin \"line\": load: broken"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    fixture.deploy("sum", "model 1").unwrap();
    for (component, stage, words) in cases {
        let failure = fixture.deploy("sum", component).unwrap_err();
        assert_eq!(failure.stage, Some(stage), "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
        assert_eq!(fixture.ask("sum").unwrap(), 1.0);
        let status = fixture.deployer.describe("sum").unwrap();
        assert!(status.last_failure.is_some_and(|reason| reason.contains(words)));
        assert_eq!(status.state, EndpointState::Ready);
    }
    assert_eq!(fixture.deploy("sum", "model 2").unwrap().version, 2);
    assert!(fixture.deployer.describe("sum").unwrap().last_failure.is_none());
    assert!(fixture.deploy("new", "nonsense").is_err());
    assert_eq!(fixture.deployer.describe("new").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_failing_test_keeps_a_version_from_going_live() {
    const TESTS: &str = "[[example]]\nname = \"zero\"\ninputs = { x = [0] }\noutputs = { y = [1] }";
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    let deploy = |component: &str| {
        let mut request = fixture.request("sum", component);
        request.tests = fixture.tests(TESTS);
        fixture.deployer.deploy(request)
    };
    assert_eq!(deploy("model 1").unwrap().tests.unwrap().examples, 1);
    let failure = deploy("model 2").unwrap_err();
    assert_eq!(failure.stage, Some(Stage::SelfTested));
    let text = failure.to_string();
    assert!(text.starts_with("\"sum\" was not deployed: the self-tests failed: "), "{text}");
    assert!(text.contains("is 2, expected 1"), "{text}");
    assert_eq!(fixture.ask("sum").unwrap(), 1.0);
}

#[test]
fn an_observer_can_fail_any_stage() {
    let dir = tempfile::tempdir().unwrap();
    let fail_in = Arc::new(Mutex::new(None));
    let told = fail_in.clone();
    let fixture = Fixture::open_with(dir.path(), |config| {
        config.observer = Arc::new(Watch(move |_: &str, stage| match *told.lock() {
            Some(wanted) if wanted == stage => Err(Error::internal("injected")),
            _ => Ok(()),
        }));
    });
    fixture.deploy("sum", "model 1").unwrap();
    for stage in Stage::DEPLOYMENT {
        *fail_in.lock() = Some(stage);
        assert_eq!(fixture.deploy("sum", "model 2").unwrap_err().stage, Some(stage));
        assert_eq!(fixture.ask("sum").unwrap(), 1.0);
    }
    *fail_in.lock() = None;
    assert_eq!(fixture.deploy("sum", "model 2").unwrap().version, 2);
}

#[test]
fn unload_lasts_and_load_brings_back() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    fixture.deploy("sum", "model 1").unwrap();
    fixture.deployer.unload("sum", "me").unwrap();
    assert_eq!(fixture.ask("sum").unwrap_err().kind(), ErrorKind::NotReady);
    assert_eq!(fixture.deployer.describe("sum").unwrap().state, EndpointState::Unloaded);
    drop(fixture);
    let fixture = Fixture::open(dir.path());
    assert_eq!(fixture.ask("sum").unwrap_err().kind(), ErrorKind::NotReady);
    assert_eq!(fixture.deployer.load("sum", "me").unwrap().version, Some(1));
    assert_eq!(fixture.ask("sum").unwrap(), 1.0);
    assert_eq!(fixture.deployer.load("sum", "me").unwrap().revision, Some(1));
}

#[test]
fn undeploy_forgets_the_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    fixture.deploy("sum", "model 1").unwrap();
    fixture.deployer.undeploy("sum", "me").unwrap();
    assert_eq!(fixture.ask("sum").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(fixture.deployer.status().unwrap().is_empty());
    for absent in [
        fixture.deployer.undeploy("sum", "me"),
        fixture.deployer.rollback("sum", "me"),
        fixture.deployer.unload("sum", "me"),
        fixture.deployer.load("sum", "me"),
    ] {
        assert_eq!(absent.unwrap_err().kind(), ErrorKind::NotFound);
    }
    drop(fixture);
    assert_eq!(Fixture::open(dir.path()).ask("sum").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn one_deployment_an_endpoint_and_a_bound_on_all() {
    let dir = tempfile::tempdir().unwrap();
    let (reached, wait_reached) = sync_channel(0);
    let (go_on, wait_go_on) = sync_channel::<()>(0);
    let wait_go_on = Mutex::new(wait_go_on);
    let fixture = Fixture::open_with(dir.path(), |config| {
        config.limits.max_concurrent_deployments = 1;
        config.observer = Arc::new(Watch(move |name: &str, stage| {
            if name == "slow" && stage == Stage::Compiled {
                reached.send(()).unwrap();
                wait_go_on.lock().recv().unwrap();
            }
            Ok(())
        }));
    });
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| fixture.deploy("slow", "model 1"));
        wait_reached.recv().unwrap();
        let same = fixture.deploy("slow", "model 2").unwrap_err();
        assert_eq!((same.stage, same.reason.kind()), (None, ErrorKind::Conflict));
        assert!(same.to_string().contains("a tester"), "{same}");
        let newest = &fixture.deployer.audit(&AuditQuery::default()).unwrap()[0];
        assert_eq!((newest.endpoint.as_deref(), newest.version), (Some("slow"), None));
        assert!(!newest.ok && newest.detail.contains("a tester"), "{newest:?}");
        let other = fixture.deploy("other", "model 2").unwrap_err();
        assert_eq!(other.reason.kind(), ErrorKind::Overloaded);
        go_on.send(()).unwrap();
        slow.join().unwrap().unwrap();
    });
    assert!(fixture.deployer.describe("slow").unwrap().last_failure.is_none());
    fixture.deploy("other", "model 2").unwrap();
}

#[test]
fn memory_is_reserved_for_both_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open_with(dir.path(), |config| {
        config.limits.max_model_memory_bytes = 24 << 20;
        config.plugin_limits.instances = 4;
    });
    fixture.deploy("sum", "model 1").unwrap();
    let failure = fixture.deploy("sum", "model 2").unwrap_err();
    assert_eq!(failure.stage, Some(Stage::Compiled));
    assert_eq!(failure.reason.kind(), ErrorKind::Overloaded);
    assert!(failure.to_string().contains("max_model_memory_bytes is 24.0 MiB"), "{failure}");
    assert_eq!(fixture.ask("sum").unwrap(), 1.0);
    fixture.deployer.undeploy("sum", "me").unwrap();
    let reserved = || fixture.deployer.store_status().unwrap().memory_reserved_bytes;
    while reserved() > 0 {
        std::thread::yield_now();
    }
    fixture.deploy("sum", "model 2").unwrap();
}

#[test]
fn names_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    for name in ["", "-a", "a b", "a/b", "../a", &"a".repeat(129)] {
        let failure = fixture.deploy(name, "model 1").unwrap_err();
        assert_eq!(failure.reason.kind(), ErrorKind::InvalidInput, "{name}");
        assert_eq!(fixture.deployer.audit(&AuditQuery::default()).unwrap()[0].endpoint, None);
    }
    let mut request = fixture.request("sum", "model 1");
    request.assets = vec![fixture.named("a", "1"), fixture.named("a", "2")];
    assert!(fixture.deployer.deploy(request).unwrap_err().to_string().contains("twice"));
}

#[test]
fn the_audit_log_tells_who_did_what() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    fixture.deploy("sum", "model 1").unwrap();
    fixture.deploy("sum", "model 2").unwrap();
    fixture.deploy("sum", "nonsense").unwrap_err();
    fixture.deployer.rollback("sum", "me").unwrap();
    fixture.deployer.unload("sum", "me").unwrap();
    fixture.deployer.load("sum", "me").unwrap();
    fixture.deployer.undeploy("sum", "me").unwrap();
    fixture.deployer.gc("me").unwrap();
    let entries = fixture.deployer.audit(&AuditQuery::default()).unwrap();
    let told: Vec<_> = entries.iter().map(|e| (e.action.as_str(), e.ok, e.who.as_str())).collect();
    let expected = [
        ("gc", true, "me"),
        ("undeploy", true, "me"),
        ("load", true, "me"),
        ("unload", true, "me"),
        ("rollback", true, "me"),
        ("deploy", false, "a tester"),
        ("deploy", true, "a tester"),
        ("deploy", true, "a tester"),
    ];
    assert_eq!(told, expected);
    assert!(entries.iter().filter(|entry| entry.action == "deploy" && entry.ok).all(|entry| {
        entry.digests.iter().all(|digest| digest.starts_with("sha256:"))
            && !entry.digests.is_empty()
    }));
    let older = AuditQuery { before_id: Some(entries[6].id), limit: 10, ..AuditQuery::default() };
    assert_eq!(fixture.deployer.audit(&older).unwrap().len(), 1);
}

#[test]
fn replaced_revisions_drain_and_retire() {
    let dir = tempfile::tempdir().unwrap();
    let (retired, wait_retired) = sync_channel(8);
    let fixture = Fixture::open_with(dir.path(), |config| {
        config.observer = Arc::new(Watch(move |_: &str, stage| {
            if matches!(stage, Stage::Draining | Stage::Retired) {
                retired.send(stage).unwrap();
            }
            Ok(())
        }));
    });
    fixture.deploy("sum", "model 1").unwrap();
    let held = fixture.registry.endpoint("sum").unwrap().live().unwrap();
    fixture.deploy("sum", "model 2").unwrap();
    assert_eq!(wait_retired.recv().unwrap(), Stage::Draining);
    let both = fixture.deployer.store_status().unwrap().memory_reserved_bytes;
    drop(held);
    assert_eq!(wait_retired.recv().unwrap(), Stage::Retired);
    while fixture.deployer.store_status().unwrap().memory_reserved_bytes >= both {
        std::thread::yield_now();
    }
}
