//! What survives a crash: a database of endpoints, versions and revisions
//! beside a folder of files named by their content.
//!
//! ```text
//! STORE/lock                  held by the process that owns the store
//! STORE/mortise.db            SQLite, write-ahead log, synchronous = FULL
//! STORE/tmp/                  uploads that no deployment has taken
//! STORE/blobs/sha256/ab/ab…   complete files, read-only
//! ```
//!
//! A file is synced and renamed into `blobs` before the transaction that names
//! it commits, and one transaction makes a deployment live. A crash therefore
//! leaves the old or the new deployment, whole, and perhaps files that nothing
//! names, which `gc` removes.

mod blobs;
mod lock;
mod records;
mod rollouts;
mod schema;
mod sweep;
mod traffic;

pub(crate) use blobs::{Blobs, Pin, digest_of};
pub use blobs::{Upload, UploadWriter};
pub(crate) use records::{AuditRecord, NewRevision, Numbers, StoredEndpoint};
pub(crate) use rollouts::RolloutEnd;
pub(crate) use sweep::Keep;

use lock::StoreLock;
use mortise_types::{Bytes, Error, Result};
use parking_lot::Mutex;
use rusqlite::Connection;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The open store of one process.
pub(crate) struct Store {
    dir: PathBuf,
    db: Mutex<Connection>,
    blobs: Blobs,
    // Last: released when everything else is closed.
    _lock: StoreLock,
}

impl Store {
    /// Creates or opens the store and removes uploads that a crash left.
    ///
    /// # Errors
    /// `Conflict` when another process owns it.
    pub(crate) fn open(dir: &Path, max_artifact_bytes: u64) -> Result<Self> {
        create_private_dir(dir)?;
        let lock = StoreLock::take(dir)?;
        let blobs = Blobs::open(dir, max_artifact_bytes)?;
        let db = schema::open(&dir.join("mortise.db"))?;
        sync_dir(dir)?;
        Ok(Self { dir: dir.to_path_buf(), db: Mutex::new(db), blobs, _lock: lock })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Puts uploads in their place, for good, unless equal files are there.
    ///
    /// # Errors
    /// When the disk is full or read-only.
    pub(crate) fn place(&self, uploads: Vec<Upload>) -> Result<()> {
        let known = {
            let db = self.db.lock();
            let known = |upload: &Upload| records::blob_is_known(&db, upload.digest());
            uploads.iter().map(known).collect::<Result<Vec<bool>>>()?
        };
        self.blobs.place(uploads.into_iter().zip(known))
    }

    /// Whether a committed row names this file, so that it is durable.
    pub(crate) fn knows(&self, digest: &str) -> Result<bool> {
        records::blob_is_known(&self.db.lock(), digest)
    }

    /// The bytes of a stored file, mapped.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub(crate) fn map(&self, digest: &str) -> Result<Bytes> {
        self.blobs.map(digest)
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn create_private_dir(dir: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|error| io_error("create", dir, &error))
}

/// Makes renames and new files in `dir` survive a power cut.
fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|handle| handle.sync_all())
        .map_err(|error| io_error("sync", dir, &error))
}

/// An error of the file system, with what to do about it.
fn io_error(action: &str, path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::overloaded(format!(
            "the store's disk is full (cannot {action} {path}): free space or run `mortise gc`, \
             then deploy again; what is live is not affected"
        )),
        io::ErrorKind::ReadOnlyFilesystem => Error::internal(format!(
            "the store is on a read-only file system (cannot {action} {path}): remount it \
             writable; what is live is not affected"
        )),
        io::ErrorKind::PermissionDenied => Error::internal(format!(
            "no permission to {action} {path}: the store must belong to the user that runs mortise"
        )),
        _ => Error::internal(format!("cannot {action} {path}: {error}")),
    }
}

/// An error of the database, with what to do about it.
fn db_error(error: &rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::overloaded(
            "the store's disk is full: free space or run `mortise gc`, then try again; what is \
             live is not affected",
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) => Error::internal(format!(
            "the store's database cannot be written ({error}): check the rights on the store \
             directory and that its file system is writable"
        )),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::internal(format!(
            "the store's database is damaged ({error}): restore the store directory from a backup"
        )),
        _ => Error::internal(format!("the store's database failed: {error}")),
    }
}
