use crate::bindings::log::{Host, Level};
use crate::state::State;
use parking_lot::Mutex;
use std::time::Instant;

/// Longest part of an error line that is kept for the message of a trap.
const KEPT_BYTES: usize = 512;

/// Lets log lines of one endpoint through at a limited rate.
pub(crate) struct LogGate(Mutex<Bucket>);

impl LogGate {
    pub(crate) fn new(lines_per_second: u32) -> Self {
        Self(Mutex::new(Bucket::new(lines_per_second, Instant::now())))
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }
}

/// A token bucket of one second's worth of lines. Pure: it is told the time.
struct Bucket {
    lines_per_second: f64,
    tokens: f64,
    filled_at: Instant,
    dropped: u64,
}

impl Bucket {
    fn new(lines_per_second: u32, now: Instant) -> Self {
        let lines_per_second = f64::from(lines_per_second);
        Self { lines_per_second, tokens: lines_per_second, filled_at: now, dropped: 0 }
    }

    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.lines_per_second).min(self.lines_per_second);
        self.filled_at = now;
        if self.tokens < 1.0 {
            self.dropped += 1;
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

impl Host for State {
    fn write(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        self.enter_host()?;
        self.log_line(level, &message);
        Ok(())
    }
}

impl State {
    fn log_line(&mut self, level: Level, message: &str) {
        let line = one_line(message, self.shared.limits.log_line_bytes);
        if self.shared.log.0.lock().take(Instant::now()) {
            emit(level, &self.shared.plugin, &self.shared.endpoint, &line);
        }
        if level == Level::Error {
            self.last_error_line = Some(one_line(&line, KEPT_BYTES));
        }
    }

    /// Logs what a plugin writes to a standard stream, piece by piece. All of
    /// it is kept for the message of a trap: what a runtime says of a panic
    /// comes in several pieces.
    pub(crate) fn log_text(&mut self, level: Level, text: &str) {
        let before = self.last_error_line.take().filter(|_| level == Level::Error);
        text.lines().filter(|line| !line.is_empty()).for_each(|line| self.log_line(level, line));
        if let (Some(before), Level::Error) = (before, level) {
            self.last_error_line = Some(one_line(&format!("{before} {text}"), KEPT_BYTES));
        }
    }
}

fn emit(level: Level, plugin: &str, endpoint: &str, line: &str) {
    match level {
        Level::Error => tracing::error!(target: "plugin", plugin, endpoint, "{line}"),
        Level::Warn => tracing::warn!(target: "plugin", plugin, endpoint, "{line}"),
        Level::Info => tracing::info!(target: "plugin", plugin, endpoint, "{line}"),
        Level::Debug => tracing::debug!(target: "plugin", plugin, endpoint, "{line}"),
    }
}

/// Cuts a message to `max_bytes` and replaces control characters, so that a
/// plugin cannot forge lines or drive a terminal.
fn one_line(message: &str, max_bytes: usize) -> String {
    let end = message.floor_char_boundary(max_bytes);
    let cut = if end < message.len() { "…" } else { "" };
    let clean = |char: char| if char.is_control() { ' ' } else { char };
    message[..end].chars().map(clean).chain(cut.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn lines_are_cut_at_a_character_and_cleaned() {
        for (message, max_bytes, want) in [
            ("short", 5, "short"),
            ("longer", 5, "longe…"),
            ("aé", 2, "a…"),
            ("a\nERROR forged\u{1b}[31m", 99, "a ERROR forged [31m"),
        ] {
            assert_eq!(one_line(message, max_bytes), want);
        }
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let now = Instant::now();
        let mut bucket = Bucket::new(2, now);
        let burst = [0, 0, 0, 500, 500].map(|ms| bucket.take(now + Duration::from_millis(ms)));
        assert_eq!(burst, [true, true, false, true, false]);
        assert_eq!(bucket.dropped, 2);
    }
}
