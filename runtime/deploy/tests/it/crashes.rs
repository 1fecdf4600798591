//! A crash can come at any point: whatever the store directory holds at each
//! stage of a deployment must open as the old deployment or the new one.

use crate::fixture::{Fixture, Watch};
use mortise_deploy::Stage;
use parking_lot::Mutex;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What `kill -9` would leave: a copy of the directory as it is now.
fn snapshot(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            snapshot(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A deployment of version 2 over version 1, with a copy of the store at every
/// stage and one after the end.
fn snapshots(store: &Path, copies: &Path) -> Vec<(String, PathBuf)> {
    let taken: Arc<Mutex<Vec<(String, PathBuf)>>> = Arc::default();
    let armed = Arc::new(Mutex::new(false));
    let (from, to) = (store.to_path_buf(), copies.to_path_buf());
    let (record, is_armed) = (taken.clone(), armed.clone());
    let fixture = Fixture::open_with(store, |config| {
        config.observer = Arc::new(Watch(move |_: &str, stage: Stage| {
            if *is_armed.lock() && Stage::DEPLOYMENT.contains(&stage) {
                let target = to.join(stage.name());
                snapshot(&from, &target);
                record.lock().push((stage.name().to_string(), target));
            }
            Ok(())
        }));
    });
    fixture.deploy("sum", "model 1").unwrap();
    *armed.lock() = true;
    fixture.deploy("sum", "model 2").unwrap();
    let after = copies.join("after");
    snapshot(store, &after);
    let mut taken = taken.lock().clone();
    taken.push(("after".to_string(), after));
    taken
}

#[test]
fn every_stage_leaves_the_old_or_the_new_deployment() {
    let (store, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let taken = snapshots(store.path(), copies.path());
    assert_eq!(taken.len(), Stage::DEPLOYMENT.len() + 1);
    for (stage, dir) in taken {
        let expected = if stage == "after" { 2.0 } else { 1.0 };
        let fixture = Fixture::open(&dir);
        assert_eq!(fixture.ask("sum").unwrap(), expected, "killed in {stage}");
        let left = fs::read_dir(dir.join("tmp")).unwrap().count();
        assert_eq!(left, 0, "unfinished uploads are removed");
        // Life goes on: the next version, and nothing is left behind by gc.
        assert_eq!(fixture.deploy("sum", "model 3").unwrap().version, expected as u64 + 1);
        fixture.deployer.gc("me").unwrap();
        assert_eq!(fixture.ask("sum").unwrap(), 3.0);
        fixture.deployer.rollback("sum", "me").unwrap();
        assert_eq!(fixture.ask("sum").unwrap(), expected);
    }
}

#[test]
fn a_torn_write_ahead_log_is_cut_at_the_last_commit() {
    use std::io::Write;
    let (store, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fixture = Fixture::open(store.path());
    fixture.deploy("sum", "model 1").unwrap();
    snapshot(store.path(), copy.path());
    let log = copy.path().join("mortise.db-wal");
    fs::OpenOptions::new().append(true).open(log).unwrap().write_all(&[0x5a; 5000]).unwrap();
    assert_eq!(Fixture::open(copy.path()).ask("sum").unwrap(), 1.0);
}

#[test]
fn an_endpoint_that_cannot_be_restored_does_not_keep_the_others() {
    let store = tempfile::tempdir().unwrap();
    let digest = {
        let fixture = Fixture::open(store.path());
        fixture.deploy("broken", "model 1").unwrap();
        fixture.deploy("good", "model 2").unwrap();
        let status = fixture.deployer.describe("broken").unwrap();
        status.revision.version.model.plugin_digest
    };
    let hex = digest.strip_prefix("sha256:").unwrap();
    fs::remove_file(store.path().join("blobs/sha256").join(&hex[..2]).join(hex)).unwrap();
    let fixture = Fixture::open(store.path());
    assert_eq!(fixture.ask("good").unwrap(), 2.0);
    let error = fixture.ask("broken").unwrap_err();
    assert!(error.message().contains("could not be restored"), "{error}");
    // A deployment of the same bytes puts the file back.
    fixture.deploy("broken", "model 1").unwrap();
    assert_eq!(fixture.ask("broken").unwrap(), 1.0);
}
