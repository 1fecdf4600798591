use crate::fixture::{Fixture, config};
use mortise_deploy::{BuiltinPlugin, Deployer, PluginRef};
use mortise_types::{Bytes, ErrorKind};
use std::fs;
use std::path::Path;

fn file_count(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { file_count(&path) } else { 1 }).sum()
}

#[test]
fn one_process_owns_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let first = Fixture::open(dir.path());
    let error = Deployer::open(config(dir.path()).0).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let holder = format!("process {}", std::process::id());
    assert!(error.message().contains(&holder), "{error}");
    assert!(error.message().contains("--store"), "{error}");
    drop(first);
    Fixture::open(dir.path());
}

#[test]
fn a_store_of_a_newer_mortise_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Fixture::open(dir.path()));
    let db = rusqlite::Connection::open(dir.path().join("mortise.db")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = Deployer::open(config(dir.path()).0).err().unwrap();
    assert!(error.message().contains("schema 99"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Deployer::open(config(&file.join("store")).0).err().unwrap();
    assert!(error.message().contains("file/store"), "{error}");
}

#[test]
fn what_comes_with_the_program_is_no_upload() {
    let dir = tempfile::tempdir().unwrap();
    let component = Bytes::from_static(b"model 7 longer than any upload may be");
    let fixture = Fixture::open_with(dir.path(), |config| {
        config.limits.max_artifact_bytes = 10;
        config.builtins = vec![BuiltinPlugin { name: "own".into(), component }];
    });
    let mut request = fixture.request("sum", "model 1");
    request.plugin = PluginRef::Builtin("own".into());
    fixture.deployer.deploy(request).unwrap();
    assert_eq!(fixture.ask("sum").unwrap(), 7.0);
}

#[test]
fn uploads_are_bounded_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open_with(dir.path(), |config| config.limits.max_artifact_bytes = 10);
    let mut writer = fixture.deployer.upload().unwrap();
    writer.write(b"0123456789").unwrap();
    let error = writer.write(b"0").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.message().contains("max_artifact_bytes = 10"), "{error}");
    drop(writer);
    drop(fixture.upload("unused"));
    assert_eq!(file_count(&dir.path().join("tmp")), 0);
    let upload = fixture.upload("");
    assert_eq!(
        upload.digest(),
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

#[test]
fn equal_files_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    for name in ["a", "b", "a", "a"] {
        fixture.deploy(name, "model 1").unwrap();
    }
    assert_eq!(fixture.deployer.store_status().unwrap().blob_count, 1);
    assert_eq!(file_count(&dir.path().join("blobs")), 1);
}

#[test]
fn gc_keeps_the_newest_the_live_and_the_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    for version in 1..=9 {
        fixture.deploy("sum", &format!("model {version}")).unwrap();
    }
    // Back to 3: it and 2 are needed, and older than the newest five.
    for _ in 3..9 {
        fixture.deployer.rollback("sum", "me").unwrap();
    }
    let report = fixture.deployer.gc("me").unwrap();
    assert_eq!((report.versions_removed, report.blobs_removed), (2, 2));
    let versions = fixture.deployer.versions("sum").unwrap();
    let numbers: Vec<u64> = versions.iter().map(|version| version.number).collect();
    assert_eq!(numbers, [9, 8, 7, 6, 5, 3, 2]);
    assert_eq!(fixture.ask("sum").unwrap(), 3.0);
    assert_eq!(fixture.deployer.rollback("sum", "me").unwrap().version, Some(2));
    let error = fixture.deployer.rollback("sum", "me").unwrap_err();
    assert!(error.message().contains("gc"), "{error}");
    assert_eq!(fixture.deploy("sum", "model 10").unwrap().version, 10);
    // 5 and 3 now: nothing goes back to 3 any more.
    assert_eq!(fixture.deployer.gc("me").unwrap().versions_removed, 2);
}

#[test]
fn gc_frees_what_undeploy_left() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    fixture.deploy("sum", "model 1").unwrap();
    fixture.deploy("other", "model 2").unwrap();
    fixture.deployer.undeploy("sum", "me").unwrap();
    // A file whose deployment never committed, too.
    fs::write(dir.path().join("blobs/sha256/ab").join(format!("ab{}", "0".repeat(62))), "x")
        .unwrap();
    let report = fixture.deployer.gc("me").unwrap();
    assert_eq!((report.blobs_removed, report.bytes_freed), (2, 8));
    assert_eq!(file_count(&dir.path().join("blobs")), 1);
    assert_eq!(fixture.deployer.gc("me").unwrap().blobs_removed, 0);
}

#[test]
fn only_digests_name_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::open(dir.path());
    let long = format!("sha256:{}", "/".repeat(64));
    for digest in ["", "sha256:", "../../lock", "sha256:AB", &long] {
        let error = fixture.deployer.blob(digest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{digest}");
    }
    let absent = format!("sha256:{}", "0".repeat(64));
    assert_eq!(fixture.deployer.blob(&absent).unwrap_err().kind(), ErrorKind::NotFound);
}
