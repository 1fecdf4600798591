use crate::{Error, Result};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where time comes from, so that tests can drive it.
pub trait Clock: Send + Sync {
    fn now(&self) -> Instant;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that moves only when told to.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Instant>>);

impl Default for ManualClock {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl ManualClock {
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What bounds one run of a graph: a deadline and a budget of loop iterations.
/// Operators with loops call [`RunControl::check`] and
/// [`RunControl::take_iterations`].
#[derive(Clone, Debug)]
pub struct RunControl {
    deadline: Option<Instant>,
    spent: Arc<Spent>,
    iterations_limit: u64,
    is_brief: bool,
}

/// What copies of a [`RunControl`] share.
#[derive(Debug)]
struct Spent {
    iterations_left: AtomicU64,
    /// 0, or a [`CutShort`].
    cut_short: AtomicU8,
}

/// Why a brief run ended without an answer: it has to be made again where a
/// thread may be held for longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CutShort {
    /// It would have had to wait for another call to end.
    Busy = 1,
    /// It took longer than a moment.
    TooLong = 2,
}

impl RunControl {
    pub const DEFAULT_LOOP_ITERATIONS: u64 = 1_000_000;

    pub fn new(deadline: Option<Instant>, max_loop_iterations: u64) -> Self {
        let iterations_left = AtomicU64::new(max_loop_iterations);
        Self {
            deadline,
            spent: Arc::new(Spent { iterations_left, cut_short: AtomicU8::new(0) }),
            iterations_limit: max_loop_iterations,
            is_brief: false,
        }
    }

    /// No deadline and [`RunControl::DEFAULT_LOOP_ITERATIONS`].
    pub fn unbounded() -> Self {
        Self::new(None, Self::DEFAULT_LOOP_ITERATIONS)
    }

    /// For a run on a thread that others need: a plugin that would have to wait,
    /// or takes longer than a moment, is stopped. [`RunControl::was_cut_short`]
    /// tells; whatever such a run returned is then no answer.
    #[must_use]
    pub fn brief(self) -> Self {
        Self { is_brief: true, ..self }
    }

    pub fn is_brief(&self) -> bool {
        self.is_brief
    }

    /// Notes that a brief run has to be made again; the first reason stays.
    pub fn cut_short(&self, why: CutShort) {
        let order = Ordering::Relaxed;
        let _ = self.spent.cut_short.compare_exchange(0, why as u8, order, order);
    }

    pub fn was_cut_short(&self) -> Option<CutShort> {
        match self.spent.cut_short.load(Ordering::Relaxed) {
            0 => None,
            busy if busy == CutShort::Busy as u8 => Some(CutShort::Busy),
            _ => Some(CutShort::TooLong),
        }
    }

    /// The same deadline, and a budget of at most `max_loop_iterations` more.
    /// The iterations taken count here only.
    #[must_use]
    pub fn capped(&self, max_loop_iterations: u64) -> Self {
        let left = self.spent.iterations_left.load(Ordering::Relaxed);
        Self::new(self.deadline, left.min(max_loop_iterations))
    }

    /// The same budget of iterations, under the earlier of both deadlines.
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Self {
        let deadline = self.deadline.map_or(deadline, |own| own.min(deadline));
        Self { deadline: Some(deadline), ..self.clone() }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// # Errors
    /// [`crate::ErrorKind::Deadline`] when the deadline has passed.
    pub fn check(&self) -> Result<()> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => {
                Err(Error::deadline("the deadline passed while the graph was running"))
            }
            _ => Ok(()),
        }
    }

    /// Takes `count` loop iterations from the budget and checks the deadline.
    ///
    /// # Errors
    /// [`crate::ErrorKind::LimitExceeded`] when the budget is spent.
    pub fn take_iterations(&self, count: u64) -> Result<()> {
        let take = |left: u64| left.checked_sub(count);
        let left = &self.spent.iterations_left;
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return Err(Error::limit(format!(
                "the graph's loops ran more than max_loop_iterations = {}",
                self.iterations_limit
            )));
        }
        self.check()
    }
}
