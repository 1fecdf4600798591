use hmac::{Hmac, KeyInit, Mac};
use mortise_types::{Error, Result};
use sha2::Sha256;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

const KEY_FILE: &str = "key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;
const EXTENSION: &str = "cwasm";

/// Machine code on disk. The engine runs what it loads without checking it, so
/// every file carries a tag made with a key that only this folder's owner can
/// read, over the file's name and its content.
pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    max_bytes: u64,
    writes: AtomicU64,
}

impl Cache {
    /// Opens the folder, making it and its key when they do not exist.
    ///
    /// # Errors
    /// `Internal` when the folder cannot be made private.
    pub(crate) fn open(dir: &Path, max_bytes: u64) -> Result<Self> {
        let open = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
            remove_leftovers(dir)?;
            let key = read_or_make_key(dir)?;
            io::Result::Ok(Self { dir: dir.into(), key, max_bytes, writes: AtomicU64::new(0) })
        };
        open().map_err(|error| {
            let dir = dir.display();
            Error::internal(format!("cannot use {dir} as the artifact cache: {error}"))
        })
    }

    /// The artifact of that name. A file that was not written by this cache,
    /// or was damaged since, is reported, removed, and not returned.
    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.path(name);
        let mut bytes = fs::read(&path).ok()?;
        if !self.is_authentic(name, &bytes) {
            tracing::error!(
                path = %path.display(),
                "a cached artifact was forged or damaged; it is removed and compiled again"
            );
            let _ = fs::remove_file(&path);
            return None;
        }
        // The time of use decides what is removed first; failing to note it
        // only makes this file look older.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        bytes.drain(..TAG_BYTES);
        Some(bytes)
    }

    /// Stores an artifact whole or not at all, and makes room for it. Failing
    /// to store costs a compilation later, so it is only reported.
    pub(crate) fn put(&self, name: &str, artifact: &[u8]) {
        if let Err(error) = self.write(name, artifact).and_then(|()| self.prune()) {
            let dir = self.dir.display();
            tracing::warn!("cannot store a compiled artifact in {dir}: {error}");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{EXTENSION}"))
    }

    fn mac(&self, name: &str, artifact: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(&(name.len() as u64).to_le_bytes());
        mac.update(name.as_bytes());
        mac.update(artifact);
        Some(mac)
    }

    fn is_authentic(&self, name: &str, file: &[u8]) -> bool {
        let Some((tag, artifact)) = file.split_at_checked(TAG_BYTES) else { return false };
        self.mac(name, artifact).is_some_and(|mac| mac.verify_slice(tag).is_ok())
    }

    /// Does not wait for the disk: what a power cut leaves of a file has no
    /// valid tag, and is then compiled again.
    fn write(&self, name: &str, artifact: &[u8]) -> io::Result<()> {
        let mac = self.mac(name, artifact).ok_or(io::ErrorKind::InvalidInput)?;
        let serial = self.writes.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!("{}-{serial}.tmp", std::process::id()));
        let written = (|| {
            let mut file = private_file(&temporary)?;
            file.write_all(&mac.finalize().into_bytes())?;
            file.write_all(artifact)?;
            fs::rename(&temporary, self.path(name))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Removes the least recently used artifacts over `max_bytes`.
    fn prune(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                let meta = fs::metadata(&path)?;
                files.push((meta.modified()?, meta.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total <= self.max_bytes {
                break;
            }
            fs::remove_file(path)?;
            total -= len;
        }
        Ok(())
    }
}

/// Removes what a write left behind when the process was killed.
fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A new file that only its owner can read.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Two processes that start at once agree on one key: linking fails for the
/// second one, which then reads the first one's.
fn read_or_make_key(dir: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = dir.join(KEY_FILE);
    if !path.exists() {
        let temporary = dir.join(format!("{KEY_FILE}-{}.tmp", std::process::id()));
        let mut key = [0; KEY_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let mut file = private_file(&temporary)?;
        file.write_all(&key)?;
        file.sync_all()?;
        let linked = fs::hard_link(&temporary, &path);
        fs::remove_file(&temporary)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => File::open(dir)?.sync_all()?,
        }
    }
    let mode = fs::metadata(&path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    }
    let length = || {
        let message = format!("{} is not a key of {KEY_BYTES} bytes; remove it", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    fs::read(&path)?.try_into().map_err(|_| length())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn artifacts_survive_a_reopening_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        Cache::open(&path, 1000).unwrap().put("a", b"code");
        assert_eq!(Cache::open(&path, 1000).unwrap().get("a").unwrap(), b"code");
        assert_eq!((mode(&path), mode(&path.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(mode(&path.join("a.cwasm")), 0o600);
    }

    #[test]
    fn forged_artifacts_are_not_returned() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1000).unwrap();
        let forge: [fn(&mut Vec<u8>); 5] = [
            |file| file[TAG_BYTES] ^= 1,
            |file| file[0] ^= 1,
            |file| file.truncate(10),
            |file| file.clear(),
            |file| file.push(0),
        ];
        for change in forge {
            cache.put("a", b"code");
            let mut file = fs::read(cache.path("a")).unwrap();
            change(&mut file);
            fs::write(cache.path("a"), file).unwrap();
            assert_eq!(cache.get("a"), None);
            assert!(!cache.path("a").exists());
        }
        cache.put("a", b"code");
        fs::copy(cache.path("a"), cache.path("b")).unwrap();
        assert_eq!(cache.get("b"), None, "one artifact stood in for another");
        let other = tempfile::tempdir().unwrap();
        fs::copy(cache.path("a"), other.path().join("a.cwasm")).unwrap();
        assert_eq!(Cache::open(other.path(), 1000).unwrap().get("a"), None, "another key");
    }

    #[test]
    fn the_least_recently_used_artifact_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 3 * (TAG_BYTES as u64 + 4)).unwrap();
        let age = |name: &str, seconds: u64| {
            let time = SystemTime::now() - std::time::Duration::from_secs(seconds);
            File::open(cache.path(name)).unwrap().set_modified(time).unwrap();
        };
        for (name, seconds) in [("a", 300), ("b", 200), ("c", 100)] {
            cache.put(name, b"code");
            age(name, seconds);
        }
        cache.get("a").unwrap();
        cache.put("d", b"code");
        let kept = ["a", "b", "c", "d"].map(|name| cache.path(name).exists());
        assert_eq!(kept, [true, false, true, true]);
    }
}
