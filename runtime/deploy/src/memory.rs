use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Accounts for the memory of every revision that is loaded or being built.
pub(crate) struct Ledger {
    max_bytes: u64,
    used_bytes: Mutex<u64>,
}

/// Memory set aside for one revision; given back when dropped.
pub(crate) struct Reservation {
    ledger: Arc<Ledger>,
    bytes: u64,
}

/// The memory of the revisions that serve, by endpoint and number.
#[derive(Default)]
pub(crate) struct Loaded(Mutex<HashMap<(String, u64), Reservation>>);

impl Loaded {
    pub(crate) fn insert(&self, endpoint: &str, number: u64, reservation: Reservation) {
        self.0.lock().insert((endpoint.to_string(), number), reservation);
    }

    pub(crate) fn take(&self, endpoint: &str, number: u64) -> Option<Reservation> {
        self.0.lock().remove(&(endpoint.to_string(), number))
    }

    /// Of one revision; 0 when it is not loaded.
    pub(crate) fn bytes_of(&self, endpoint: &str, number: u64) -> u64 {
        self.0.lock().get(&(endpoint.to_string(), number)).map_or(0, Reservation::bytes)
    }

    /// Of all revisions of an endpoint.
    pub(crate) fn bytes(&self, endpoint: &str) -> u64 {
        let loaded = self.0.lock();
        let own = loaded.iter().filter(|((name, _), _)| name == endpoint);
        own.map(|(_, reservation)| reservation.bytes()).sum()
    }
}

impl Ledger {
    pub(crate) fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { max_bytes, used_bytes: Mutex::new(0) })
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        *self.used_bytes.lock()
    }

    /// # Errors
    /// `Overloaded`, with the figures, when `bytes` do not fit beside what is
    /// reserved already.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        let mut reservation = Reservation { ledger: self.clone(), bytes: 0 };
        reservation.resize(bytes)?;
        Ok(reservation)
    }
}

impl Reservation {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// # Errors
    /// As [`Ledger::reserve`]; the reservation then stays as it was.
    pub(crate) fn resize(&mut self, bytes: u64) -> Result<()> {
        let mut used = self.ledger.used_bytes.lock();
        let others = used.saturating_sub(self.bytes);
        let wanted = others.saturating_add(bytes);
        if bytes > self.bytes && wanted > self.ledger.max_bytes {
            return Err(no_room(bytes, others, self.ledger.max_bytes));
        }
        *used = wanted;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.ledger.used_bytes.lock();
        *used = used.saturating_sub(self.bytes);
    }
}

fn no_room(bytes: u64, others: u64, max: u64) -> Error {
    Error::overloaded(format!(
        "not enough memory: the new revision takes about {}, loaded revisions hold {} (the one it \
         would replace included, since both run during the swap), and max_model_memory_bytes is {}; \
         unload an endpoint or raise max_model_memory_bytes",
        human(bytes),
        human(others),
        human(max)
    ))
}

/// `1536 bytes`, `1.5 MiB`
fn human(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    match bytes {
        0..1_048_576 => format!("{bytes} bytes"),
        _ => format!("{:.1} MiB", bytes as f64 / MIB),
    }
}

/// Memory that this process may use: of its cgroup or of the machine, whichever
/// is less.
pub fn machine_memory_bytes() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text));
    let limits = cgroup_limit_files().into_iter().filter_map(|path| read_limit(&path));
    // Without either figure there is nothing to go by but a small machine.
    limits.chain(total).min().unwrap_or(1 << 30)
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The limit files of the process's cgroup and of those above it, for both
/// versions of the interface.
fn cgroup_limit_files() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut files = vec![root.join("memory/memory.limit_in_bytes")];
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    for ancestor in Path::new(own).ancestors() {
        files.push(root.join(ancestor).join("memory.max"));
    }
    files
}

/// `None` for `max` and for the value by which version 1 says "no limit".
fn read_limit(path: &Path) -> Option<u64> {
    let bytes: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_revisions_must_fit() {
        let ledger = Ledger::new(100);
        let live = ledger.reserve(60).unwrap();
        let error = ledger.reserve(41).err().unwrap();
        assert!(error.message().contains("41 bytes"), "{error}");
        assert!(error.message().contains("60 bytes"), "{error}");
        let mut next = ledger.reserve(40).unwrap();
        assert!(next.resize(41).is_err());
        assert_eq!(ledger.used_bytes(), 100);
        drop(live);
        next.resize(90).unwrap();
        drop(next);
        assert_eq!(ledger.used_bytes(), 0);
    }

    #[test]
    fn shrinking_is_allowed_above_the_limit() {
        let ledger = Ledger::new(100);
        let mut first = ledger.reserve(80).unwrap();
        first.resize(10).unwrap();
        assert_eq!(ledger.used_bytes(), 10);
    }

    #[test]
    fn memory_is_read_from_proc() {
        assert_eq!(total_memory("MemTotal:       2 kB\nMemFree: 1 kB"), Some(2048));
        assert_eq!(total_memory("nothing"), None);
        assert!(machine_memory_bytes() > 1 << 20);
    }
}
