use super::{create_private_dir, io_error, sync_dir};
use memmap2::Mmap;
use mortise_types::{Bytes, Error, Result};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

const DIGEST_PREFIX: &str = "sha256:";

/// Files named by their content, and the uploads that may become some.
pub(crate) struct Blobs {
    root: PathBuf,
    tmp: PathBuf,
    max_artifact_bytes: u64,
    pins: Arc<Pins>,
}

/// Digests that deployments under way are about to name, with how many do.
#[derive(Default)]
pub(super) struct Pins(pub(super) Mutex<HashMap<String, usize>>);

/// Keeps `gc` from removing files between their placement and their commit.
pub(crate) struct Pin {
    pins: Arc<Pins>,
    digests: Vec<String>,
}

/// A file being streamed to disk.
pub struct UploadWriter {
    file: NamedTempFile,
    hasher: Sha256,
    size_bytes: u64,
    max_bytes: u64,
}

/// A complete file that no deployment has taken yet; removed when dropped.
pub struct Upload {
    file: NamedTempFile,
    digest: String,
    size_bytes: u64,
}

impl UploadWriter {
    /// Appends `chunk`.
    ///
    /// # Errors
    /// `TooLarge` above `max_artifact_bytes`; `Overloaded` when the disk is
    /// full. The upload is then useless: drop it.
    pub fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let size_bytes = self.size_bytes.saturating_add(chunk.len() as u64);
        if size_bytes > self.max_bytes {
            return Err(Error::too_large(format!(
                "the file is larger than max_artifact_bytes = {}",
                self.max_bytes
            )));
        }
        let written = self.file.as_file_mut().write_all(chunk);
        written.map_err(|error| io_error("write", self.file.path(), &error))?;
        self.hasher.update(chunk);
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Ends the file. It is made durable when a deployment takes it.
    ///
    /// # Errors
    /// None today; the disk may report late errors here.
    pub fn finish(self) -> Result<Upload> {
        let digest = format!("{DIGEST_PREFIX}{}", hex(&self.hasher.finalize()));
        Ok(Upload { file: self.file, digest, size_bytes: self.size_bytes })
    }
}

impl Upload {
    /// `sha256:` and 64 hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Blobs {
    pub(super) fn open(store: &Path, max_artifact_bytes: u64) -> Result<Self> {
        let root = store.join("blobs").join("sha256");
        let tmp = store.join("tmp");
        if tmp.exists() {
            // Whatever is here was never acknowledged: the process that wrote
            // it is gone, since this one holds the lock.
            fs::remove_dir_all(&tmp).map_err(|error| io_error("clear", &tmp, &error))?;
        }
        create_private_dir(&tmp)?;
        create_fan_out(&root)?;
        Ok(Self { root, tmp, max_artifact_bytes, pins: Arc::default() })
    }

    /// For a file that somebody sends.
    pub(crate) fn upload(&self) -> Result<UploadWriter> {
        self.upload_up_to(self.max_artifact_bytes)
    }

    /// For a file that comes with the program: the operator's limit on uploads
    /// is not about it.
    pub(crate) fn builtin(&self) -> Result<UploadWriter> {
        self.upload_up_to(u64::MAX)
    }

    fn upload_up_to(&self, max_bytes: u64) -> Result<UploadWriter> {
        let file = tempfile::Builder::new()
            .prefix("upload-")
            .tempfile_in(&self.tmp)
            .map_err(|error| io_error("create a file in", &self.tmp, &error))?;
        Ok(UploadWriter { file, hasher: Sha256::new(), size_bytes: 0, max_bytes })
    }

    /// Renames uploads to their place. With each comes whether a committed row
    /// already names its digest: if so, an equal file is durable and this one
    /// is dropped.
    pub(super) fn place(&self, uploads: impl Iterator<Item = (Upload, bool)>) -> Result<()> {
        let mut folders = BTreeSet::new();
        for (upload, known) in uploads {
            let target = self.path(&upload.digest)?;
            if known && has_size(&target, upload.size_bytes) {
                continue;
            }
            self.place_one(upload, &target)?;
            folders.extend(target.parent().map(Path::to_path_buf));
        }
        folders.iter().try_for_each(|folder| sync_dir(folder))
    }

    fn place_one(&self, upload: Upload, target: &Path) -> Result<()> {
        let file = upload.file.as_file();
        // A file must not change once it has a name: it is mapped by models.
        file.set_permissions(Permissions::from_mode(0o400))
            .and_then(|()| file.sync_all())
            .map_err(|error| io_error("sync", upload.file.path(), &error))?;
        upload.file.persist(target).map_err(|error| io_error("create", target, &error.error))?;
        Ok(())
    }

    /// The bytes of a stored file, mapped.
    pub(super) fn map(&self, digest: &str) -> Result<Bytes> {
        let path = self.path(digest)?;
        let file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::not_found(format!("the store has no file {digest}"))
            }
            _ => io_error("open", &path, &error),
        })?;
        let length = file.metadata().map_err(|error| io_error("read", &path, &error))?.len();
        if length == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: files in the store are written once, under a temporary name,
        // then made read-only and never opened for writing again; only `gc`
        // touches them, by unlinking, which leaves mappings intact.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| io_error("map", &path, &error))?;
        Ok(Bytes::from_owner(map))
    }

    pub(crate) fn pin(&self, digests: Vec<String>) -> Pin {
        let mut pins = self.pins.0.lock();
        for digest in &digests {
            *pins.entry(digest.clone()).or_default() += 1;
        }
        drop(pins);
        Pin { pins: self.pins.clone(), digests }
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Where a file of that digest is.
    ///
    /// # Errors
    /// `InvalidInput` when `digest` is no digest, so that nothing a client
    /// sends can name a path.
    pub(super) fn path(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest.strip_prefix(DIGEST_PREFIX).unwrap_or_default();
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != 64 || !hex.bytes().all(lower_hex) {
            return Err(Error::invalid(format!(
                "\"{digest}\" is no digest; expected sha256: and 64 hexadecimal digits"
            )));
        }
        let (folder, _) = hex.split_at(2);
        Ok(self.root.join(folder).join(hex))
    }

    /// Every complete file: digest and size.
    pub(super) fn list(&self) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for folder in read_dir(&self.root)? {
            for file in read_dir(&folder)? {
                let size = fs::metadata(&file).map_err(|error| io_error("read", &file, &error))?;
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                found.push((format!("{DIGEST_PREFIX}{name}"), size.len()));
            }
        }
        Ok(found)
    }

    pub(super) fn remove(&self, digest: &str) -> Result<()> {
        let path = self.path(digest)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io_error("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock();
        for digest in &self.digests {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
    }
}

/// All 256 folders, once, so that placing a file syncs one folder, not two.
fn create_fan_out(root: &Path) -> Result<()> {
    let marker = root.join("ff");
    if marker.is_dir() {
        return Ok(());
    }
    create_private_dir(root)?;
    for byte in 0..=255u8 {
        create_private_dir(&root.join(format!("{byte:02x}")))?;
    }
    sync_dir(root)
}

fn read_dir(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| io_error("list", folder, &error))?;
    entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .map_err(|error| io_error("list", folder, &error))
}

fn has_size(path: &Path, size_bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == size_bytes)
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("{DIGEST_PREFIX}{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
