use super::io_error;
use mortise_types::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Held while this process owns the store. The operating system lets it go when
/// the process ends, however it ends.
pub(super) struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// # Errors
    /// `Conflict` when another process holds it; the message names it.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(|error| io_error("open", &path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held_by_another(dir, &mut file)),
            Err(TryLockError::Error(error)) => return Err(io_error("lock", &path, &error)),
        }
        write_pid(&mut file).map_err(|error| io_error("write", &path, &error))?;
        Ok(Self { _file: file })
    }
}

/// The number is for people; only the lock itself decides who owns the store.
fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn held_by_another(dir: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    let holder = match file.take(32).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!("process {}", text.trim()),
        _ => "another process".to_string(),
    };
    Error::conflict(format!(
        "the store {} is in use by {holder}: stop it first, or start this server with another \
         --store",
        dir.display()
    ))
}
