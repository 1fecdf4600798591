use crate::background::lower_priority;
use crate::memory::Reservation;
use crate::stage::{Stage, StageObserver};
use mortise_serve::Drain;
use mortise_types::{Error, Result};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often a draining revision is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Follows replaced revisions until their last request has left, and only then
/// gives their memory back to the budget.
pub(crate) struct Retirement {
    // The thread ends when this is dropped.
    inbox: Sender<Leaving>,
    observer: Arc<dyn StageObserver>,
}

struct Leaving {
    endpoint: String,
    drain: Drain,
    _reservation: Reservation,
    since: Instant,
    is_reported: bool,
}

impl Retirement {
    /// # Errors
    /// When the operating system refuses the thread.
    pub(crate) fn start(observer: Arc<dyn StageObserver>, drain_timeout: Duration) -> Result<Self> {
        let (inbox, outbox) = channel();
        let told = observer.clone();
        std::thread::Builder::new()
            .name("mortise-retire".to_string())
            .spawn(move || {
                lower_priority();
                follow(&outbox, &*told, drain_timeout);
            })
            .map_err(|error| Error::internal(format!("cannot start a thread: {error}")))?;
        Ok(Self { inbox, observer })
    }

    pub(crate) fn retire(&self, endpoint: &str, drain: Drain, reservation: Reservation) {
        // Documented to be ignored: the revision is out of service already.
        let _ = self.observer.entered(endpoint, Stage::Draining);
        let leaving = Leaving {
            endpoint: endpoint.to_string(),
            drain,
            _reservation: reservation,
            since: Instant::now(),
            is_reported: false,
        };
        // The thread lives as long as this sender.
        let _ = self.inbox.send(leaving);
    }
}

fn follow(outbox: &Receiver<Leaving>, observer: &dyn StageObserver, drain_timeout: Duration) {
    let mut leaving: Vec<Leaving> = Vec::new();
    loop {
        let next = match leaving.is_empty() {
            true => outbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => outbox.recv_timeout(LOOK_EVERY),
        };
        match next {
            Ok(revision) => leaving.push(revision),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        leaving.retain_mut(|revision| {
            revision.report_if_stuck(drain_timeout);
            let is_done = revision.drain.is_done();
            if is_done {
                // As for draining.
                let _ = observer.entered(&revision.endpoint, Stage::Retired);
            }
            !is_done
        });
    }
}

impl Leaving {
    fn report_if_stuck(&mut self, drain_timeout: Duration) {
        if self.is_reported || self.since.elapsed() < drain_timeout {
            return;
        }
        self.is_reported = true;
        tracing::warn!(
            endpoint = self.endpoint,
            seconds = drain_timeout.as_secs(),
            "a replaced revision still has requests; its memory stays reserved"
        );
    }
}
