use super::Engine;
use crate::revision::Revision;
use parking_lot::{Condvar, Mutex};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A thread that wakes batchers: tokio's timers are too coarse for delays of
/// some hundred microseconds.
pub(crate) struct Timer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    alarms: BinaryHeap<Alarm>,
    closed: bool,
}

/// Ordered so that the earliest is the greatest. A batcher has one alarm, or a
/// few that are superseded by an earlier one.
struct Alarm {
    at: Instant,
    engine: Weak<Engine>,
    revision: Weak<Revision>,
    lane: u64,
}

impl Timer {
    /// # Errors
    /// When the operating system refuses the thread.
    pub(crate) fn new() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        std::thread::Builder::new().name("mortise-timer".to_string()).spawn(move || own.run())?;
        Ok(Self { shared })
    }

    pub(crate) fn arm(
        &self,
        at: Instant,
        engine: &Arc<Engine>,
        revision: &Arc<Revision>,
        lane: u64,
    ) {
        let (engine, revision) = (Arc::downgrade(engine), Arc::downgrade(revision));
        self.shared.state.lock().alarms.push(Alarm { at, engine, revision, lane });
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        while let Some(alarm) = self.next() {
            if let (Some(engine), Some(revision)) =
                (alarm.engine.upgrade(), alarm.revision.upgrade())
            {
                engine.wake(&revision, alarm.lane);
            }
        }
    }

    /// Waits for the next alarm to be due; `None` when the timer is gone.
    fn next(&self) -> Option<Alarm> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let Some(at) = state.alarms.peek().map(|alarm| alarm.at) else {
                self.changed.wait(&mut state);
                continue;
            };
            if at <= Instant::now() {
                return state.alarms.pop();
            }
            self.changed.wait_until(&mut state, at);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Ord for Alarm {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Alarm {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Alarm {}
