use mortise_host::PluginHealth;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Failures in a row, of requests or of checks, after which nothing is sent
/// until a check succeeds.
const MAX_FAILURES: u32 = 3;

/// Whether another server is worth asking.
pub(super) struct Health {
    state: Mutex<State>,
    check_every: Duration,
}

struct State {
    failures: u32,
    /// What the newest failure said.
    reason: String,
    /// When the next check is due.
    next_check: Instant,
}

impl Health {
    pub(super) fn new(check_every: Duration, now: Instant) -> Self {
        let state = State { failures: 0, reason: String::new(), next_check: now + check_every };
        Self { state: Mutex::new(state), check_every }
    }

    pub(super) fn succeeded(&self) {
        self.state.lock().failures = 0;
    }

    /// `true` when this failure is the one that takes it out of service.
    pub(super) fn failed(&self, reason: &str) -> bool {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.reason = reason.to_string();
        state.failures == MAX_FAILURES
    }

    /// A check begins now.
    pub(super) fn checking(&self, now: Instant) {
        self.state.lock().next_check = now + self.check_every;
    }

    pub(super) fn now(&self, now: Instant) -> PluginHealth {
        let state = self.state.lock();
        if state.failures < MAX_FAILURES {
            return PluginHealth::Ready;
        }
        // Only a check brings it back, so that it is never due here.
        let left = state.next_check.saturating_duration_since(now);
        let retry_in = left.max(Duration::from_millis(1));
        PluginHealth::Quarantined { reason: state.reason.clone(), retry_in }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_take_it_out_until_a_success() {
        let now = Instant::now();
        let health = Health::new(Duration::from_secs(1), now);
        assert!(!health.failed("once") && !health.failed("twice"));
        health.succeeded();
        assert!(!health.failed("once") && !health.failed("twice"));
        assert_eq!(health.now(now), PluginHealth::Ready);
        assert!(health.failed("down") && !health.failed("still"));
        let (reason, retry_in) = ("still".to_string(), Duration::from_secs(1));
        assert_eq!(health.now(now), PluginHealth::Quarantined { reason, retry_in });
        health.succeeded();
        assert_eq!(health.now(now), PluginHealth::Ready);
    }
}
