use crate::revision::Revision;
use parking_lot::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often the thread looks whether the last request has left a revision.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Lets old revisions go on a thread of its own, since freeing a large model
/// takes milliseconds that no request should pay.
pub(crate) struct Reaper {
    retired: Sender<Arc<Revision>>,
    draining: Arc<Mutex<Vec<Weak<Revision>>>>,
}

/// Follows a revision that no longer takes requests.
#[derive(Clone)]
pub struct Drain {
    revision: Weak<Revision>,
    number: u64,
}

impl Drain {
    /// The last request has left, and the revision's memory is freed or about
    /// to be.
    pub fn is_done(&self) -> bool {
        self.revision.strong_count() == 0
    }

    /// The revision's number.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// A revision that is waiting for its last requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draining {
    pub endpoint: String,
    pub number: u64,
    pub version: u64,
    /// Holders besides the drain itself: requests under way.
    pub request_count: usize,
}

impl Reaper {
    /// # Errors
    /// When the operating system refuses the thread.
    pub(crate) fn new(on_start: fn()) -> std::io::Result<Self> {
        let (retired, inbox) = channel();
        let draining: Arc<Mutex<Vec<Weak<Revision>>>> = Arc::default();
        let watched = draining.clone();
        std::thread::Builder::new().name("mortise-drain".to_string()).spawn(move || {
            on_start();
            drop_when_unused(&inbox, &watched);
        })?;
        Ok(Self { retired, draining })
    }

    pub(crate) fn retire(&self, revision: Arc<Revision>) -> Drain {
        revision.retire(Instant::now());
        let drain = Drain { revision: Arc::downgrade(&revision), number: revision.number() };
        self.draining.lock().push(drain.revision.clone());
        // The thread lives as long as this sender.
        let _ = self.retired.send(revision);
        drain
    }

    pub(crate) fn draining(&self) -> Vec<Draining> {
        let draining = self.draining.lock().clone();
        draining.iter().filter_map(describe).collect()
    }
}

fn describe(revision: &Weak<Revision>) -> Option<Draining> {
    let revision = revision.upgrade()?;
    Some(Draining {
        endpoint: revision.endpoint().to_string(),
        number: revision.number(),
        version: revision.version(),
        request_count: Arc::strong_count(&revision).saturating_sub(2),
    })
}

fn drop_when_unused(inbox: &Receiver<Arc<Revision>>, draining: &Mutex<Vec<Weak<Revision>>>) {
    let mut waiting: Vec<Arc<Revision>> = Vec::new();
    loop {
        let next = match waiting.is_empty() {
            true => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => inbox.recv_timeout(LOOK_EVERY),
        };
        match next {
            Ok(revision) => waiting.push(revision),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        waiting.retain(|revision| Arc::strong_count(revision) > 1);
        draining.lock().retain(|revision| revision.strong_count() > 0);
    }
}
