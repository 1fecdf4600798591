use mortise_types::CutShort;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long requests stay away from the threads that receive them after one
/// took too long there; doubles each time.
const FIRST_REST: Duration = Duration::from_secs(1);

/// Doublings of [`FIRST_REST`] at most.
const MAX_DOUBLINGS: u32 = 6;

/// Whether the requests of a revision may run on the threads that receive them.
/// A plugin whose time cannot be trusted is tried there ever more rarely: what
/// it can hold of such a thread is a moment in each rest.
pub(crate) struct InPlace {
    is_possible: bool,
    started: Instant,
    /// Microseconds from `started` until the rest is over.
    rest_until: AtomicU64,
    times_too_long: AtomicU32,
}

impl InPlace {
    pub(crate) fn new(is_possible: bool) -> Self {
        let (rest_until, times_too_long) = (AtomicU64::new(0), AtomicU32::new(0));
        Self { is_possible, started: Instant::now(), rest_until, times_too_long }
    }

    /// `now` is asked only after a run took too long.
    pub(crate) fn is_allowed(&self, now: impl FnOnce() -> Instant) -> bool {
        self.is_possible
            && match self.rest_until.load(Ordering::Relaxed) {
                0 => true,
                until => self.since_start(now()) >= until,
            }
    }

    /// A run was stopped.
    pub(crate) fn was_cut_short(&self, why: CutShort, now: Instant) {
        if why == CutShort::Busy {
            return;
        }
        let doublings = self.times_too_long.fetch_add(1, Ordering::Relaxed).min(MAX_DOUBLINGS);
        let until = self.since_start(now + FIRST_REST * 2u32.pow(doublings));
        self.rest_until.fetch_max(until, Ordering::Relaxed);
    }

    fn since_start(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_with_each_run_that_takes_too_long_and_are_bounded() {
        let in_place = InPlace::new(true);
        let mut now = in_place.started;
        assert!(in_place.is_allowed(|| now));
        in_place.was_cut_short(CutShort::Busy, now);
        assert!(in_place.is_allowed(|| now), "that others were faster says nothing of its time");
        for seconds in [1, 2, 4, 8, 16, 32, 64, 64] {
            in_place.was_cut_short(CutShort::TooLong, now);
            now += Duration::from_secs(seconds);
            assert!(!in_place.is_allowed(|| now - Duration::from_millis(1)), "{seconds}");
            assert!(in_place.is_allowed(|| now), "{seconds}");
        }
    }

    #[test]
    fn a_stage_that_cannot_be_stopped_is_never_tried() {
        assert!(!InPlace::new(false).is_allowed(Instant::now));
    }
}
