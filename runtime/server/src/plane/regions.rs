//! System shared memory that clients register, off unless configured.
//!
//! Regions are read and written through their file descriptor and never
//! mapped: a client that shrinks its object makes requests fail, where a
//! mapping would end the server with SIGBUS. Sizes are looked up at each use.

use bytes::Bytes;
use mortise_types::{Error, Result};
use mortise_wire::{RegionSlice, SharedMemory};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

/// Where the system keeps POSIX shared memory.
const SHM_DIR: &str = "/dev/shm";

/// Bytes of a region's name, and of a key, which is a file name.
const MAX_NAME_BYTES: usize = 255;

#[derive(Clone, Debug)]
pub(crate) struct RegionSettings {
    /// What keys must begin with; empty switches shared memory off.
    pub(crate) prefix: String,
    pub(crate) max_regions: usize,
    pub(crate) max_region_bytes: u64,
}

/// The registered regions by name.
pub(crate) struct Regions {
    settings: RegionSettings,
    regions: RwLock<BTreeMap<String, Arc<Region>>>,
}

struct Region {
    key: String,
    offset: u64,
    byte_size: u64,
    file: File,
}

/// What is told about a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionStatus {
    pub(crate) name: String,
    pub(crate) key: String,
    /// From the start of the object to the start of the region.
    pub(crate) offset: u64,
    pub(crate) byte_size: u64,
}

impl Regions {
    pub(crate) fn new(settings: RegionSettings) -> Self {
        Self { settings, regions: RwLock::default() }
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.settings.prefix.is_empty()
    }

    /// All regions, or the one called `name`.
    ///
    /// # Errors
    /// `NotFound` for an unknown name; `Forbidden` when switched off.
    pub(crate) fn status(&self, name: Option<&str>) -> Result<Vec<RegionStatus>> {
        self.check_on()?;
        let regions = self.regions.read();
        let told = |(name, region): (&String, &Arc<Region>)| RegionStatus {
            name: name.clone(),
            key: region.key.clone(),
            offset: region.offset,
            byte_size: region.byte_size,
        };
        match name {
            None => Ok(regions.iter().map(told).collect()),
            Some(wanted) => {
                let found = regions.get_key_value(wanted).map(|entry| vec![told(entry)]);
                found.ok_or_else(|| unknown(wanted))
            }
        }
    }

    /// Opens the object called `key` and names a range of it.
    ///
    /// # Errors
    /// `Forbidden` outside the prefix or when switched off, `NotFound` without
    /// such an object, `Conflict` for a name in use, `Overloaded` beyond the
    /// number of regions, and `InvalidInput` when the object is too short.
    pub(crate) fn register(&self, wanted: RegionStatus) -> Result<()> {
        self.check_on()?;
        let RegionStatus { name, key, offset, byte_size } = wanted;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(Error::invalid("a region's name must have 1 to 255 bytes"));
        }
        let region = Arc::new(self.open(&key, offset, byte_size)?);
        let mut regions = self.regions.write();
        if regions.contains_key(&name) {
            return Err(Error::conflict(format!(
                "shared memory region \"{name}\" is registered already; unregister it first"
            )));
        }
        if regions.len() >= self.settings.max_regions {
            return Err(Error::overloaded(format!(
                "there are shared_memory.max_regions = {} regions already",
                self.settings.max_regions
            )));
        }
        regions.insert(name, region);
        Ok(())
    }

    /// Forgets one region, or all with `None`. Forgetting what is not there is
    /// no error.
    ///
    /// # Errors
    /// `Forbidden` when switched off.
    pub(crate) fn unregister(&self, name: Option<&str>) -> Result<()> {
        self.check_on()?;
        let mut regions = self.regions.write();
        match name {
            None => regions.clear(),
            Some(name) => drop(regions.remove(name)),
        }
        Ok(())
    }

    fn check_on(&self) -> Result<()> {
        match self.is_on() {
            true => Ok(()),
            false => Err(Error::forbidden(
                "shared memory is switched off; set shared_memory.prefix to what the keys of \
                 clients begin with",
            )),
        }
    }

    fn open(&self, key: &str, offset: u64, byte_size: u64) -> Result<Region> {
        let path = self.path(key)?;
        if byte_size == 0 || byte_size > self.settings.max_region_bytes {
            return Err(Error::invalid(format!(
                "a region must have 1 to shared_memory.max_region_bytes = {} bytes, got {byte_size}",
                self.settings.max_region_bytes
            )));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            // Not through a link, and never waiting for a pipe's other end.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(|error| cannot_open(key, &error))?;
        let region = Region { key: key.to_owned(), offset, byte_size, file };
        region.check(0, byte_size)?;
        Ok(region)
    }

    /// The file of a key, which is a plain name that begins with the prefix.
    fn path(&self, key: &str) -> Result<PathBuf> {
        let plain = |text: &str| text.strip_prefix('/').unwrap_or(text).to_owned();
        let (name, prefix) = (plain(key), plain(&self.settings.prefix));
        if !name.starts_with(&prefix) {
            return Err(Error::forbidden(format!(
                "shared memory key {key:?} does not begin with shared_memory.prefix = {:?}",
                self.settings.prefix
            )));
        }
        let is_file_name = name.len() <= MAX_NAME_BYTES
            && !matches!(name.as_str(), "" | "." | "..")
            && !name.contains(['/', '\0']);
        if !is_file_name {
            return Err(Error::invalid(format!("shared memory key {key:?} is not a plain name")));
        }
        Ok(PathBuf::from(SHM_DIR).join(name))
    }

    fn find(&self, name: &str) -> Result<Arc<Region>> {
        self.check_on()?;
        self.regions.read().get(name).cloned().ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("shared memory region \"{name}\" is not registered"))
}

fn cannot_open(key: &str, error: &std::io::Error) -> Error {
    let message = format!("cannot open shared memory {key:?}: {error}");
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(message),
        _ => Error::invalid(message),
    }
}

impl Region {
    /// The position in the object of a range of the region that is there now.
    fn check(&self, offset: u64, length: u64) -> Result<u64> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.byte_size) {
            return Err(Error::invalid(format!(
                "{length} bytes at {offset} are beyond the region's {} bytes",
                self.byte_size
            )));
        }
        let metadata = self.file.metadata().map_err(failed)?;
        let position = self.offset.checked_add(offset);
        let end = position.and_then(|position| position.checked_add(length));
        match (position, end) {
            (Some(position), Some(end)) if metadata.is_file() && end <= metadata.len() => {
                Ok(position)
            }
            _ => Err(Error::invalid(format!(
                "shared memory {:?} has only {} bytes",
                self.key,
                metadata.len()
            ))),
        }
    }
}

impl SharedMemory for Regions {
    fn read(&self, slice: &RegionSlice) -> Result<Bytes> {
        let region = self.find(&slice.region)?;
        let position = region.check(slice.offset, slice.byte_size)?;
        // The size was checked against the object and against the bound.
        let mut bytes = vec![0; usize::try_from(slice.byte_size).unwrap_or(0)];
        region.file.read_exact_at(&mut bytes, position).map_err(failed)?;
        Ok(bytes.into())
    }

    fn write(&self, slice: &RegionSlice, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > slice.byte_size {
            return Err(Error::invalid(format!(
                "takes {} bytes, but its shared memory has {}",
                bytes.len(),
                slice.byte_size
            )));
        }
        let region = self.find(&slice.region)?;
        let position = region.check(slice.offset, slice.byte_size)?;
        region.file.write_all_at(bytes, position).map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::invalid(format!("cannot use the shared memory: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::ErrorKind;

    /// An object of the system that is removed at the end.
    struct Object(String);

    impl Object {
        fn new(test: &str, bytes: u64) -> Self {
            let key = format!("/mortise-test-{test}-{}", std::process::id());
            let object = Self(key);
            let file = File::create(object.path()).unwrap();
            file.set_len(bytes).unwrap();
            object
        }

        fn path(&self) -> PathBuf {
            PathBuf::from(format!("{SHM_DIR}{}", self.0))
        }
    }

    impl Drop for Object {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(self.path());
        }
    }

    fn regions(prefix: &str) -> Regions {
        let prefix = prefix.to_owned();
        Regions::new(RegionSettings { prefix, max_regions: 2, max_region_bytes: 1 << 20 })
    }

    fn wanted(name: &str, key: &str, offset: u64, byte_size: u64) -> RegionStatus {
        RegionStatus { name: name.to_owned(), key: key.to_owned(), offset, byte_size }
    }

    fn slice(offset: u64, byte_size: u64) -> RegionSlice {
        RegionSlice { region: "r".to_owned(), offset, byte_size }
    }

    #[test]
    fn what_is_written_is_read() {
        let object = Object::new("read", 64);
        let regions = regions("/mortise-test-");
        regions.register(wanted("r", &object.0, 16, 32)).unwrap();
        regions.write(&slice(8, 8), b"abcd").unwrap();
        assert_eq!(regions.read(&slice(8, 4)).unwrap().as_ref(), b"abcd");
        assert_eq!(&std::fs::read(object.path()).unwrap()[24..28], b"abcd");
        assert_eq!(regions.status(None).unwrap(), [wanted("r", &object.0, 16, 32)]);
        assert_eq!(regions.status(Some("z")).unwrap_err().kind(), ErrorKind::NotFound);
        for (offset, size) in [(0, 33), (32, 1), (u64::MAX, 2)] {
            assert_eq!(
                regions.read(&slice(offset, size)).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
        assert!(regions.write(&slice(0, 2), b"abc").is_err());
        regions.unregister(Some("r")).unwrap();
        assert_eq!(regions.read(&slice(0, 4)).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_region_that_shrank_is_an_error() {
        let object = Object::new("shrink", 4096);
        let regions = regions("mortise-test-");
        regions.register(wanted("r", &object.0, 0, 4096)).unwrap();
        OpenOptions::new().write(true).open(object.path()).unwrap().set_len(8).unwrap();
        let error = regions.read(&slice(0, 4096)).unwrap_err();
        assert!(error.message().ends_with("has only 8 bytes"), "{error}");
        assert!(regions.write(&slice(0, 4096), &[1; 4096]).is_err());
        assert_eq!(std::fs::metadata(object.path()).unwrap().len(), 8);
    }

    #[test]
    fn only_what_is_configured() {
        let object = Object::new("confined", 64);
        let off = regions("");
        let error = off.register(wanted("r", &object.0, 0, 64)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Forbidden);
        let regions = regions("/mortise-test-");
        let link = Object(format!("{}-link", object.0));
        std::os::unix::fs::symlink(object.path(), link.path()).unwrap();
        for (key, size, kind) in [
            ("/other", 64, ErrorKind::Forbidden),
            ("/mortise-test-/../../etc/passwd", 64, ErrorKind::InvalidInput),
            ("/mortise-test-missing", 64, ErrorKind::NotFound),
            (&link.0, 64, ErrorKind::InvalidInput),
            (&object.0, 65, ErrorKind::InvalidInput),
            (&object.0, 0, ErrorKind::InvalidInput),
            (&object.0, 2 << 20, ErrorKind::InvalidInput),
        ] {
            let error = regions.register(wanted("r", key, 0, size)).unwrap_err();
            assert_eq!(error.kind(), kind, "{key} {size}: {error}");
        }
        for name in ["a", "b"] {
            regions.register(wanted(name, &object.0, 0, 64)).unwrap();
        }
        let again = regions.register(wanted("a", &object.0, 0, 64)).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict);
        let third = regions.register(wanted("c", &object.0, 0, 64)).unwrap_err();
        assert_eq!(third.kind(), ErrorKind::Overloaded);
        regions.unregister(None).unwrap();
        assert!(regions.status(None).unwrap().is_empty());
    }
}
