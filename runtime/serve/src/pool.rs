use crate::fair::FairQueue;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// One piece of work for a [`WorkerPool`].
pub(crate) trait Job: Send + 'static {
    /// Must not unwind.
    fn run(self);
}

/// A fixed number of threads that take work fairly from endpoints.
pub(crate) struct WorkerPool<J> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    work: Condvar,
}

struct State<J> {
    queue: FairQueue<J>,
    closed: bool,
}

/// The size of a [`WorkerPool`] and the share of it that one endpoint may hold.
pub(crate) struct PoolSize {
    pub(crate) name: &'static str,
    pub(crate) threads: usize,
    pub(crate) max_per_endpoint: usize,
}

impl<J: Job> WorkerPool<J> {
    /// # Errors
    /// When the operating system refuses a thread.
    pub(crate) fn new(size: &PoolSize) -> std::io::Result<Self> {
        let state = State { queue: FairQueue::new(size.max_per_endpoint), closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new() });
        for index in 0..size.threads {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("{}-{index}", size.name))
                .spawn(move || shared.work_until_closed())?;
        }
        Ok(Self { shared })
    }

    /// Queues `job`. How much may wait is bounded by admission, not here.
    pub(crate) fn submit(&self, lane: u64, job: J) {
        self.shared.state.lock().queue.push(lane, job);
        self.shared.work.notify_one();
    }
}

impl<J: Job> Shared<J> {
    fn work_until_closed(&self) {
        while let Some((lane, job)) = self.next() {
            job.run();
            self.state.lock().queue.finished(lane);
            // The lane may have been held back by its bound, not by a lack of
            // threads: another thread can take its next piece.
            self.work.notify_one();
        }
    }

    fn next(&self) -> Option<(u64, J)> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(found) = state.queue.pop() {
                return Some(found);
            }
            self.work.wait(&mut state);
        }
    }
}

impl<J> Drop for WorkerPool<J> {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_all();
    }
}
