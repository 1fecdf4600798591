//! The clock that the time of plugins is counted on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

/// Ticks of the plugin clock since it was started, each [`TICK`] or a little
/// longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick(pub u64);

/// How often deadlines are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Ticks that the clock goes on for after the last one that anybody asked for,
/// so that plugins that are called now and then do not stop and start it.
const AFTERGLOW: u64 = 100;

/// The plugin clock: read at every entry, so it costs a load or two from memory.
/// It rests while no plugin runs: time that nobody counts needs no ticks, and an
/// idle server need not wake a core for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct TickClock(Arc<Ticking>);

#[derive(Debug, Default)]
struct Ticking {
    tick: AtomicU64,
    /// The last tick that somebody waits for.
    needed_until: AtomicU64,
    is_resting: AtomicBool,
    /// Advances the clock.
    ticker: OnceLock<Thread>,
}

impl TickClock {
    pub(crate) fn now(&self) -> Tick {
        Tick(self.0.tick.load(Ordering::Relaxed))
    }

    /// Has the clock go on for so many ticks more.
    pub(crate) fn need(&self, ticks: u64) {
        let until = self.now().0.saturating_add(ticks);
        if self.0.needed_until.load(Ordering::Relaxed) >= until {
            return;
        }
        // Either this sees that the ticker rests, or that sees what is needed.
        self.0.needed_until.fetch_max(until.saturating_add(AFTERGLOW), Ordering::SeqCst);
        if self.0.is_resting.load(Ordering::SeqCst)
            && let Some(ticker) = self.0.ticker.get()
        {
            ticker.unpark();
        }
    }

    /// On the ticker's thread.
    pub(crate) fn advance(&self) {
        self.0.tick.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns at once while somebody needs the clock; otherwise when somebody
    /// does, or after `longest`. On the thread that advances it, and no other.
    pub(crate) fn rest(&self, longest: Duration) {
        self.0.ticker.get_or_init(std::thread::current);
        self.0.is_resting.store(true, Ordering::SeqCst);
        if self.now().0 >= self.0.needed_until.load(Ordering::SeqCst) {
            std::thread::park_timeout(longest);
        }
        self.0.is_resting.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Woken again and again just as it goes to rest, the clock never misses
    /// that it is needed.
    #[test]
    fn the_clock_rests_and_is_woken() {
        let clock = TickClock::default();
        let ticker = clock.clone();
        let is_over = Arc::new(AtomicBool::new(false));
        let told = is_over.clone();
        let ticking = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                // Longer than the test may take: only being woken helps.
                ticker.rest(Duration::from_secs(30));
                ticker.advance();
            }
        });
        let started = Instant::now();
        for round in 0..2_000 {
            let tick = clock.now();
            clock.need(1 + round % 3);
            while clock.now() == tick {
                assert!(started.elapsed() < Duration::from_secs(20), "asleep in round {round}");
                std::thread::yield_now();
            }
            if round % 100 == 0 {
                // Until it has nothing to do any more.
                while clock.now().0 < clock.0.needed_until.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(2));
                let rested = clock.now();
                std::thread::sleep(Duration::from_millis(5));
                assert_eq!(clock.now(), rested, "it goes on though nobody needs it");
            }
        }
        is_over.store(true, Ordering::SeqCst);
        clock.need(1_000);
        ticking.join().unwrap();
    }
}
