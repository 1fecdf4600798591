use std::time::{Duration, Instant};

/// Decides when a plugin that keeps failing is left alone. Pure: it is told
/// the time.
#[derive(Debug)]
pub(crate) struct Quarantine {
    after: u32,
    backoff: Duration,
    backoff_max: Duration,
    state: Phase,
}

#[derive(Debug)]
enum Phase {
    Healthy {
        failures_in_row: u32,
    },
    Closed {
        until: Instant,
        round: u32,
        reason: String,
    },
    /// One instance is tried; the next failure closes again, for longer.
    Probing {
        round: u32,
        reason: String,
    },
}

impl Quarantine {
    pub(crate) fn new(after: u32, backoff: Duration, backoff_max: Duration) -> Self {
        let state = Phase::Healthy { failures_in_row: 0 };
        Self { after: after.max(1), backoff, backoff_max, state }
    }

    /// A call was answered.
    pub(crate) fn success(&mut self) {
        if !matches!(self.state, Phase::Closed { .. }) {
            self.state = Phase::Healthy { failures_in_row: 0 };
        }
    }

    /// A call trapped, or ran into a limit. Returns whether this starts a
    /// quarantine.
    pub(crate) fn failure(&mut self, reason: &str, now: Instant) -> bool {
        let round = match &mut self.state {
            Phase::Healthy { failures_in_row } => {
                *failures_in_row += 1;
                if *failures_in_row < self.after {
                    return false;
                }
                0
            }
            Phase::Probing { round, .. } => *round + 1,
            Phase::Closed { .. } => return false,
        };
        self.close(reason, round, now);
        true
    }

    /// A replacement instance could not be made.
    pub(crate) fn load_failed(&mut self, reason: &str, now: Instant) {
        let round = match self.state {
            Phase::Healthy { .. } => 0,
            Phase::Closed { round, .. } | Phase::Probing { round, .. } => round + 1,
        };
        self.close(reason, round, now);
    }

    fn close(&mut self, reason: &str, round: u32, now: Instant) {
        let factor = 2u32.saturating_pow(round);
        let length = self.backoff.saturating_mul(factor).min(self.backoff_max);
        self.state = Phase::Closed { until: now + length, round, reason: reason.to_owned() };
    }

    /// [`Quarantine::closed`] without the time.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, Phase::Closed { .. })
    }

    /// Reason and remaining time, while closed or until the first instance is
    /// made again.
    pub(crate) fn closed(&self, now: Instant) -> Option<(&str, Duration)> {
        match &self.state {
            Phase::Closed { until, reason, .. } => {
                Some((reason, until.saturating_duration_since(now)))
            }
            _ => None,
        }
    }

    /// Leaves a quarantine whose time is over, to probe. Returns the time that
    /// is left otherwise.
    pub(crate) fn reopen(&mut self, now: Instant) -> Option<Duration> {
        let Phase::Closed { until, round, reason } = &self.state else { return None };
        let left = until.saturating_duration_since(now);
        if !left.is_zero() {
            return Some(left);
        }
        self.state = Phase::Probing { round: *round, reason: reason.clone() };
        None
    }

    pub(crate) fn probing(&self) -> Option<&str> {
        match &self.state {
            Phase::Probing { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_consecutive_failures_close() {
        let now = Instant::now();
        let mut state = Quarantine::new(3, SECOND, SECOND * 4);
        assert!(!state.failure("a", now) && !state.failure("a", now));
        state.success();
        assert!(!state.failure("b", now) && !state.failure("b", now));
        assert!(state.failure("c", now));
        assert_eq!(state.closed(now), Some(("c", SECOND)));
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum_and_resets_on_success() {
        let mut now = Instant::now();
        let mut state = Quarantine::new(1, SECOND, SECOND * 4);
        assert!(state.failure("x", now));
        for want in [1, 2, 4, 4] {
            assert_eq!(state.reopen(now), Some(SECOND * want));
            now += SECOND * want;
            assert_eq!(state.reopen(now), None);
            assert_eq!(state.probing(), Some("x"));
            assert!(state.failure("x", now));
        }
        now += SECOND * 4;
        assert_eq!(state.reopen(now), None);
        state.success();
        assert!(state.failure("x", now));
        assert_eq!(state.closed(now), Some(("x", SECOND)));
    }

    #[test]
    fn a_probe_that_cannot_be_made_closes_for_longer() {
        let now = Instant::now();
        let mut state = Quarantine::new(3, SECOND, SECOND * 60);
        state.load_failed("gone", now);
        assert_eq!(state.reopen(now + SECOND), None);
        state.load_failed("gone", now + SECOND);
        assert_eq!(state.closed(now + SECOND), Some(("gone", SECOND * 2)));
    }
}
