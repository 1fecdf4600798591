//! The queue of one revision, and the threads that serve it. What runs when is
//! decided in [`queue`]; here are locks, threads and answers.

mod check;
mod merge;
mod queue;
mod run;
mod timer;

pub(crate) use run::{Done, run_one};
pub(crate) use timer::Timer;

use crate::admission::Permit;
use crate::infer::late;
use crate::options::{BatchOptions, TimeoutAction};
use crate::pool::{Job, WorkerPool};
use crate::revision::{Revision, byte_len};
use crate::service_time::ServiceTime;
use mortise_types::{Clock, Error, Result, Tensor};
use parking_lot::Mutex;
use queue::{Arrival, Batch, BatchQueue, Dropped, Finished, Refusal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What all batchers share: threads, the timer, the clock.
pub(crate) struct Engine {
    pub(crate) compute: WorkerPool<Ticket>,
    pub(crate) compute_threads: usize,
    pub(crate) plugins: WorkerPool<Ticket>,
    pub(crate) plugin_threads: usize,
    pub(crate) timer: Timer,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) max_loop_iterations: u64,
}

/// The waiting requests of one revision.
pub(crate) struct Batcher {
    options: BatchOptions,
    state: Mutex<State>,
    /// What waits, for a look without the lock.
    waiting_count: AtomicU64,
    waiting_bytes: AtomicU64,
}

struct State {
    queue: BatchQueue<Pending>,
    /// Workers that were called and have not polled yet.
    coming: usize,
    /// When the timer calls.
    alarm: Option<Instant>,
}

/// A request that waits.
pub(crate) struct Pending {
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) permit: Permit,
    pub(crate) reply: oneshot::Sender<Done>,
}

/// A request that has been admitted, with what bounds its waiting.
pub(crate) struct Submission {
    pub(crate) pending: Pending,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    /// The client's own timeout.
    pub(crate) timeout: Option<Duration>,
    pub(crate) priority: u64,
}

/// Calls a worker to a revision: it takes the batch that is due when it comes,
/// not when it was called.
pub(crate) struct Ticket {
    engine: Arc<Engine>,
    revision: Arc<Revision>,
    lane: u64,
}

impl Engine {
    fn pool(&self, revision: &Revision) -> (&WorkerPool<Ticket>, usize) {
        match revision.is_custom() {
            true => (&self.plugins, self.plugin_threads),
            false => (&self.compute, self.compute_threads),
        }
    }

    fn call(self: &Arc<Self>, revision: &Arc<Revision>, lane: u64) {
        let ticket = Ticket { engine: self.clone(), revision: revision.clone(), lane };
        self.pool(revision).0.submit(lane, ticket);
    }

    /// Queues a request, and calls a worker if one should come.
    ///
    /// # Errors
    /// `Overloaded` naming the bound that is hit; `InvalidInput` for a request
    /// larger than the largest batch.
    pub(crate) fn submit(
        self: &Arc<Self>,
        revision: &Arc<Revision>,
        lane: u64,
        submission: Submission,
    ) -> Result<()> {
        let batcher = &revision.batcher;
        let arrival = batcher.arrival(submission);
        let now = self.clock.now();
        let mut state = batcher.state.lock();
        state.queue.set_threads(self.pool(revision).1);
        let pushed = state.queue.push(now, arrival);
        batcher.note(&state);
        let calls = self.follow_up(&mut state, now, revision, lane);
        drop(state);
        (0..calls).for_each(|_| self.call(revision, lane));
        pushed.map_err(|refusal| refused(revision, refusal))
    }

    /// What is to be done after the queue changed: the number of workers to
    /// call, and an alarm where the queue wants to wait.
    fn follow_up(
        self: &Arc<Self>,
        state: &mut State,
        now: Instant,
        revision: &Arc<Revision>,
        lane: u64,
    ) -> usize {
        let mut calls = 0;
        while state.queue.wants_worker(now, state.coming) {
            state.coming += 1;
            calls += 1;
        }
        if state.coming == 0
            && let Some(at) = state.queue.next_deadline(now)
            && state.alarm.is_none_or(|alarm| at < alarm)
        {
            state.alarm = Some(at);
            self.timer.arm(at, self, revision, lane);
        }
        calls
    }

    /// The alarm went off.
    pub(crate) fn wake(self: &Arc<Self>, revision: &Arc<Revision>, lane: u64) {
        let now = self.clock.now();
        let mut dropped = Dropped::default();
        let mut state = revision.batcher.state.lock();
        state.alarm = None;
        state.queue.expire(now, &mut dropped);
        revision.batcher.note(&state);
        let calls = self.follow_up(&mut state, now, revision, lane);
        drop(state);
        (0..calls).for_each(|_| self.call(revision, lane));
        run::answer_dropped(dropped);
    }
}

impl Batcher {
    /// Merges nothing until [`Batcher::allow_merging`].
    pub(crate) fn new(options: BatchOptions, service_time: Arc<ServiceTime>) -> Self {
        let queue = BatchQueue::new(options.clone(), service_time);
        Self {
            options,
            state: Mutex::new(State { queue, coming: 0, alarm: None }),
            waiting_count: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
        }
    }

    /// Whether a request may run at once on the thread that received it.
    pub(crate) fn lets_pass(&self) -> bool {
        self.options.instances.is_none()
            && self.options.max_queue_delay.is_none_or(|delay| delay.is_zero())
            && self.waiting_count.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn allow_merging(&self) {
        self.state.lock().queue.set_merging(self.options.merge);
    }

    pub(crate) fn forbid_merging(&self) {
        self.state.lock().queue.set_merging(false);
    }

    /// Drops requests whose clients left, which gives their permits back.
    pub(crate) fn drop_abandoned(&self) {
        let mut state = self.state.lock();
        let gone = state.queue.take_gone(Pending::is_abandoned);
        self.note(&state);
        drop(state);
        drop(gone);
    }

    pub(crate) fn waiting_count(&self) -> u64 {
        self.waiting_count.load(Ordering::Relaxed)
    }

    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    fn note(&self, state: &State) {
        self.waiting_count.store(state.queue.waiting_count() as u64, Ordering::Relaxed);
        self.waiting_bytes.store(state.queue.waiting_bytes(), Ordering::Relaxed);
    }

    fn arrival(&self, submission: Submission) -> Arrival<Pending> {
        let Submission { pending, arrived, deadline, timeout, priority } = submission;
        let level = self.options.level_of(priority);
        let options = self.options.level_options(level);
        let own = timeout.filter(|_| options.allow_timeout_override);
        let timeout = own.or(options.default_timeout);
        let until = timeout.and_then(|timeout| arrived.checked_add(timeout));
        let (deadline, delay_at) = match options.timeout_action {
            TimeoutAction::Reject => (until.map_or(deadline, |until| until.min(deadline)), None),
            TimeoutAction::Delay => (deadline, until),
        };
        let merging = merge::bucket(&pending.inputs);
        let (rows, bucket) = match merging {
            Some((rows, bucket)) => (rows, Some(bucket)),
            None => (1, None),
        };
        let bytes = byte_len(&pending.inputs) as u64;
        Arrival { payload: pending, rows, bytes, bucket, level, deadline, delay_at }
    }

    /// Whether a timeout only puts a request behind the others.
    pub(crate) fn delays_on_timeout(&self, priority: u64) -> bool {
        let options = self.options.level_options(self.options.level_of(priority));
        options.timeout_action == TimeoutAction::Delay
    }
}

impl Pending {
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

impl Job for Ticket {
    fn run(self) {
        let Self { engine, revision, lane } = self;
        let batcher = &revision.batcher;
        let mut dropped = Dropped::default();
        let now = engine.clock.now();
        let mut state = batcher.state.lock();
        state.coming = state.coming.saturating_sub(1);
        let batch = state.queue.poll(now, Pending::is_abandoned, &mut dropped);
        batcher.note(&state);
        let mut calls = engine.follow_up(&mut state, now, &revision, lane);
        drop(state);
        run::answer_dropped(dropped);
        if let Some(batch) = batch {
            (0..calls).for_each(|_| engine.call(&revision, lane));
            let finished = finished_of(&batch);
            run::run(&engine, &revision, batch.members);
            let now = engine.clock.now();
            let mut state = batcher.state.lock();
            state.queue.finished(now, &finished);
            calls = engine.follow_up(&mut state, now, &revision, lane);
        }
        (0..calls).for_each(|_| engine.call(&revision, lane));
    }
}

fn finished_of(batch: &Batch<Pending>) -> Finished {
    Finished {
        id: batch.id,
        members: batch.members.len(),
        rows: batch.members.iter().map(|member| member.rows).sum(),
    }
}

fn refused(revision: &Revision, refusal: Refusal) -> Error {
    let model = revision.endpoint();
    let full =
        |what: String| Error::overloaded(format!("model \"{model}\" has {what}; try again later"));
    match refusal {
        Refusal::QueueFull { limit } => {
            full(format!("{limit} requests waiting, which is max_queue_requests"))
        }
        Refusal::LevelFull { level, limit } => full(format!(
            "{limit} requests of priority {level} waiting, which is that level's max_queue_requests"
        )),
        Refusal::BytesFull { limit } => {
            full(format!("no room for more inputs within max_queue_bytes = {limit}"))
        }
        Refusal::Expired => late(),
        Refusal::TooManyRows { limit } => Error::invalid(format!(
            "model \"{model}\" takes at most max_batch_size = {limit} rows in a request"
        )),
        Refusal::TooLate { predicted } => Error::overloaded(format!(
            "model \"{model}\" would answer in about {} ms, which is past the request's deadline; \
             try again later",
            predicted.as_millis()
        ))
        .with_retry_after(predicted),
    }
}
