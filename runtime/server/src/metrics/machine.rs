//! What the machine and this process use, from `/proc`.

use super::Page;
use parking_lot::Mutex;
use std::fs;

/// Remembers the machine's CPU time at the last scrape: utilisation is between
/// two of them.
#[derive(Default)]
pub(crate) struct Machine {
    last: Mutex<CpuTimes>,
}

/// Clock ticks since the machine started, over all cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTimes {
    total: u64,
    idle: u64,
}

impl Machine {
    pub(super) fn render(&self, page: &mut Page) {
        self.cpu(page);
        memory(page);
        process(page);
    }

    fn cpu(&self, page: &mut Page) {
        let Some(now) = CpuTimes::parse(&read("/proc/stat")) else { return };
        let before = std::mem::replace(&mut *self.last.lock(), now);
        page.family("nv_cpu_utilization", "gauge", "share of the CPU in use, 0 to 1");
        page.line("nv_cpu_utilization", "", now.utilization_since(before));
    }
}

impl CpuTimes {
    /// From the first line of `/proc/stat`: user, nice, system, idle, I/O wait,
    /// interrupts, stolen; guests are part of user.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let times: Vec<u64> =
            line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let idle = times.get(3)? + times.get(4)?;
        Some(Self { total: times.iter().sum(), idle })
    }

    fn utilization_since(self, before: Self) -> f64 {
        let total = self.total.saturating_sub(before.total);
        let idle = self.idle.saturating_sub(before.idle).min(total);
        if total == 0 { 0.0 } else { (total - idle) as f64 / total as f64 }
    }
}

fn memory(page: &mut Page) {
    let text = read("/proc/meminfo");
    let (Some(total), Some(available)) = (kib(&text, "MemTotal:"), kib(&text, "MemAvailable:"))
    else {
        return;
    };
    page.family("nv_cpu_memory_total_bytes", "gauge", "memory of the machine");
    page.line("nv_cpu_memory_total_bytes", "", total);
    page.family("nv_cpu_memory_used_bytes", "gauge", "memory of the machine in use");
    page.line("nv_cpu_memory_used_bytes", "", total.saturating_sub(available));
}

fn process(page: &mut Page) {
    if let Some(bytes) = kib(&read("/proc/self/status"), "VmRSS:") {
        page.family("process_resident_memory_bytes", "gauge", "memory that the server holds");
        page.line("process_resident_memory_bytes", "", bytes);
    }
    if let Some(seconds) = cpu_seconds(&read("/proc/self/stat")) {
        page.family("process_cpu_seconds_total", "counter", "CPU time of the server");
        page.line("process_cpu_seconds_total", "", seconds);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.family("process_open_fds", "gauge", "open file descriptors");
        page.line("process_open_fds", "", open.count());
    }
}

/// What is missing is left out of the page.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of a line such as `MemTotal: 5 kB`, in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

/// User and system time from `/proc/self/stat`. The name in parentheses may
/// hold anything.
fn cpu_seconds(text: &str) -> Option<f64> {
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    // SAFETY: reads a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1);
    Some(ticks as f64 / per_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        let times = |text| CpuTimes::parse(text).unwrap();
        let before = times("cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 1 1\n");
        assert_eq!(before, CpuTimes { total: 100, idle: 80 });
        let after = times("cpu  60 0 10 110 20 0 0 0 5 0\n");
        assert_eq!(after.utilization_since(before), 0.5);
        assert_eq!(before.utilization_since(before), 0.0);
        assert_eq!(CpuTimes::parse("intr 5"), None);
        assert_eq!(kib("MemFree: 1 kB\nMemTotal:   12 kB\n", "MemTotal:"), Some(12 * 1024));
        // The state and ten more fields come before the two times.
        let stat = format!("1 (a) b) S {}150 50 0", "0 ".repeat(10));
        assert!(cpu_seconds(&stat).is_some_and(|seconds| seconds > 0.0));
        assert_eq!(cpu_seconds("1 (a) S 0"), None);
        assert!(cpu_seconds(&read("/proc/self/stat")).is_some());
    }
}
