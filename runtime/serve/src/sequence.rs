use crate::infer::SequenceId;
use crate::revision::Revision;
use mortise_types::{Error, Result, Tensor};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The open sequences of one endpoint.
#[derive(Default)]
pub(crate) struct SequenceTable(Mutex<HashMap<SequenceId, Entry>>);

struct Entry {
    sequence: Arc<Sequence>,
    last_used: Instant,
}

/// A sequence: the revision it began with, and the state between its requests.
pub(crate) struct Sequence {
    pub(crate) revision: Arc<Revision>,
    /// In the order of the revision's ties; empty before the first answer.
    /// Held while a request of the sequence runs, so that they run one by one
    /// in the order in which they came.
    pub(crate) state: tokio::sync::Mutex<Vec<Tensor>>,
    is_over: AtomicBool,
}

impl Sequence {
    /// The sequence ended while a request waited for its turn.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

impl SequenceTable {
    /// Begins a sequence; one of the same id that is open ends.
    ///
    /// # Errors
    /// `Overloaded` when too many are open.
    pub(crate) fn begin(
        &self,
        id: &SequenceId,
        revision: &Arc<Revision>,
        now: Instant,
    ) -> Result<Arc<Sequence>> {
        let options = &revision.options().sequence;
        let mut table = self.0.lock();
        if let Some(old) = table.remove(id) {
            old.sequence.is_over.store(true, Ordering::Relaxed);
        }
        if table.len() >= options.max_sequences {
            table.retain(|_, entry| !entry.is_idle(now));
        }
        if table.len() >= options.max_sequences {
            return Err(Error::overloaded(format!(
                "model \"{}\" has {} open sequences, which is sequence.max_sequences; end some \
                 with sequence_end",
                revision.endpoint(),
                table.len()
            )));
        }
        let sequence = Arc::new(Sequence {
            revision: revision.clone(),
            state: tokio::sync::Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        table.insert(id.clone(), Entry { sequence: sequence.clone(), last_used: now });
        Ok(sequence)
    }

    /// The open sequence of this id.
    pub(crate) fn find(&self, id: &SequenceId, now: Instant) -> Option<Arc<Sequence>> {
        let mut table = self.0.lock();
        let entry = table.get_mut(id).filter(|entry| !entry.is_idle(now))?;
        entry.last_used = now;
        Some(entry.sequence.clone())
    }

    pub(crate) fn end(&self, id: &SequenceId, sequence: &Arc<Sequence>) {
        let mut table = self.0.lock();
        sequence.is_over.store(true, Ordering::Relaxed);
        if table.get(id).is_some_and(|entry| Arc::ptr_eq(&entry.sequence, sequence)) {
            table.remove(id);
        }
    }

    /// Ends the sequences that have been silent too long, and those of
    /// revisions for which `is_due` holds.
    pub(crate) fn sweep(&self, now: Instant, is_due: impl Fn(&Revision) -> bool) {
        let ended = self.take_where(|entry| entry.is_idle(now) || is_due(&entry.sequence.revision));
        // State and revisions are freed without the lock.
        drop(ended);
    }

    /// Ends all.
    pub(crate) fn clear(&self) {
        drop(self.take_where(|_| true));
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    fn take_where(&self, holds: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let mut table = self.0.lock();
        let ended: Vec<Entry> =
            table.extract_if(|_, entry| holds(entry)).map(|(_, entry)| entry).collect();
        for entry in &ended {
            entry.sequence.is_over.store(true, Ordering::Relaxed);
        }
        ended
    }
}

impl Entry {
    /// A request under way is no silence.
    fn is_idle(&self, now: Instant) -> bool {
        let timeout = self.sequence.revision.options().sequence.idle_timeout;
        now.saturating_duration_since(self.last_used) >= timeout
            && Arc::strong_count(&self.sequence) == 1
    }
}
