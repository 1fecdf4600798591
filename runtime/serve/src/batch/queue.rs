//! Which requests run next, and together. A pure state machine: time is an
//! argument, and nothing here waits, locks or runs a model.

use crate::options::BatchOptions;
use crate::service_time::ServiceTime;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Each time this many batches have begun, the next begins with the request
/// that has waited longest, whatever its priority: none starves.
const OLDEST_EVERY: u64 = 8;

/// A run that follows a merged one may be held back by this share of the time
/// that the merged one took, while as many requests as then come back.
const HOLD_SHARE: u32 = 4;

/// Requests are taken when this many times their predicted time is left to
/// them: what is taken should be answered, also where a prediction is off.
const SAFETY: f64 = 1.4;

/// The longest that requests are held back without being told to.
const MAX_HOLD: Duration = Duration::from_millis(4);

/// Requests of one revision that wait, and runs under way.
pub(crate) struct BatchQueue<T> {
    options: BatchOptions,
    /// Whether requests may be merged at all.
    can_merge: bool,
    /// Runs that may be under way where merging does not pay.
    threads: usize,
    service_time: Arc<ServiceTime>,
    /// What runs cost: their time, shared among those that ran at once.
    cost: ServiceTime,
    /// By priority, 1 first; in order of arrival.
    levels: BTreeMap<u64, VecDeque<Waiting<T>>>,
    /// Timed out with [`crate::options::TimeoutAction::Delay`].
    delayed: VecDeque<Waiting<T>>,
    waiting_count: usize,
    waiting_rows: usize,
    waiting_bytes: u64,
    /// No request expires or is delayed before this.
    next_expiry: Option<Instant>,
    next_number: u64,
    running: Vec<Running>,
    begun_count: u64,
    hold: Option<Hold>,
}

/// A request as it comes.
pub(crate) struct Arrival<T> {
    pub(crate) payload: T,
    pub(crate) rows: usize,
    pub(crate) bytes: u64,
    /// Requests of equal keys may be merged; `None` runs alone.
    pub(crate) bucket: Option<Bucket>,
    /// See [`BatchOptions::level_of`].
    pub(crate) level: u64,
    /// Never begun at or after this.
    pub(crate) deadline: Instant,
    /// When it goes behind all that are in time.
    pub(crate) delay_at: Option<Instant>,
}

/// The dimensions of a request's inputs, the first of each left out.
pub(crate) type Bucket = smallvec::SmallVec<[usize; 8]>;

struct Waiting<T> {
    arrival: Arrival<T>,
    since: Instant,
    /// In order of arrival.
    number: u64,
}

struct Running {
    id: u64,
    bytes: usize,
    started: Instant,
    expected: Duration,
    /// Runs under way when it began, itself included.
    beside: usize,
}

/// Waiting for the clients of a merged run to come back.
#[derive(Clone, Copy)]
struct Hold {
    until: Instant,
    rows: usize,
}

/// Requests to run together.
pub(crate) struct Batch<T> {
    /// For [`BatchQueue::finished`].
    pub(crate) id: u64,
    pub(crate) members: Vec<Member<T>>,
}

pub(crate) struct Member<T> {
    pub(crate) payload: T,
    pub(crate) rows: usize,
    pub(crate) deadline: Instant,
    /// When it began to wait.
    pub(crate) since: Instant,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    QueueFull {
        limit: usize,
    },
    LevelFull {
        level: u64,
        limit: usize,
    },
    BytesFull {
        limit: u64,
    },
    TooManyRows {
        limit: usize,
    },
    /// Its deadline has passed.
    Expired,
    /// Its answer is predicted to take this long, which is past its deadline.
    TooLate {
        predicted: Duration,
    },
}

/// A run that ended.
pub(crate) struct Finished {
    pub(crate) id: u64,
    pub(crate) members: usize,
    pub(crate) rows: usize,
}

impl<T> BatchQueue<T> {
    /// One thread, and no merging until [`BatchQueue::set_merging`].
    pub(crate) fn new(options: BatchOptions, service_time: Arc<ServiceTime>) -> Self {
        Self {
            can_merge: false,
            options,
            threads: 1,
            service_time,
            cost: ServiceTime::default(),
            levels: BTreeMap::new(),
            delayed: VecDeque::new(),
            waiting_count: 0,
            waiting_rows: 0,
            waiting_bytes: 0,
            next_expiry: None,
            next_number: 0,
            running: Vec::new(),
            begun_count: 0,
            hold: None,
        }
    }

    /// Threads that there are for runs.
    pub(crate) fn set_threads(&mut self, threads: usize) {
        self.threads = threads.max(1);
    }

    /// Queues a request.
    ///
    /// # Errors
    /// The bound that is hit. The request is dropped; its sender is told.
    pub(crate) fn push(&mut self, now: Instant, arrival: Arrival<T>) -> Result<(), Refusal> {
        if let Some(refusal) = self.refusal(now, &arrival) {
            return Err(refusal);
        }
        self.waiting_count += 1;
        self.waiting_rows += arrival.rows;
        self.waiting_bytes += arrival.bytes;
        let expiry = arrival.expiry(now);
        self.next_expiry = Some(self.next_expiry.map_or(expiry, |next| next.min(expiry)));
        let level = arrival.level;
        let waiting = Waiting { arrival, since: now, number: self.next_number };
        self.next_number += 1;
        self.levels.entry(level).or_default().push_back(waiting);
        Ok(())
    }

    fn refusal(&self, now: Instant, arrival: &Arrival<T>) -> Option<Refusal> {
        let options = &self.options;
        if now >= arrival.deadline {
            return Some(Refusal::Expired);
        }
        if options.max_batch_size.is_some_and(|limit| arrival.rows > limit) {
            return Some(Refusal::TooManyRows { limit: options.max_rows() });
        }
        if self.waiting_count >= options.max_queue_requests {
            return Some(Refusal::QueueFull { limit: options.max_queue_requests });
        }
        let limit = options.level_options(arrival.level).max_queue_requests;
        if self.levels.get(&arrival.level).map_or(0, VecDeque::len) >= limit {
            return Some(Refusal::LevelFull { level: arrival.level, limit });
        }
        // One alone is always taken: its size has bounds elsewhere.
        let limit = options.max_queue_bytes;
        if self.waiting_count > 0 && self.waiting_bytes.saturating_add(arrival.bytes) > limit {
            return Some(Refusal::BytesFull { limit });
        }
        let predicted = self.predicted(now, arrival);
        let end = now.checked_add(predicted.mul_f64(SAFETY));
        let is_late = end.is_some_and(|end| end > arrival.deadline);
        is_late.then_some(Refusal::TooLate { predicted })
    }

    /// How long the answer to `arrival` is expected to take: what runs, what
    /// stands before it, and itself. Zero when nothing runs or waits, so that
    /// a wrong prediction cannot keep an idle model from being measured anew.
    fn predicted(&self, now: Instant, arrival: &Arrival<T>) -> Duration {
        if self.running.is_empty() && self.waiting_count == 0 {
            return Duration::ZERO;
        }
        let row_bytes = arrival.row_bytes();
        let cap = self.cap_rows(row_bytes).max(arrival.rows);
        let run = |rows: usize| self.predicted_run(rows, row_bytes);
        let ahead: usize =
            self.levels.range(..=arrival.level).map(|(_, level)| rows_of(level)).sum();
        let slots = self.slots(row_bytes);
        let free_after = match self.running.len() >= slots {
            true => self.running.iter().map(|run| run.left(now)).min().unwrap_or_default(),
            false => Duration::ZERO,
        };
        let batches_ahead = u32::try_from(ahead / cap.max(1)).unwrap_or(u32::MAX);
        let queue = run(cap).saturating_mul(batches_ahead) / u32::try_from(slots).unwrap_or(1);
        let own = run(arrival.rows.saturating_add(ahead % cap.max(1)).min(cap));
        free_after.saturating_add(queue).saturating_add(own)
    }

    /// Begins a batch if one should begin now. What has expired, and what
    /// `is_gone` holds for, goes to `dropped` instead of running.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        is_gone: impl Fn(&T) -> bool,
        dropped: &mut Dropped<T>,
    ) -> Option<Batch<T>> {
        self.expire(now, dropped);
        loop {
            let plan = self.plan(now)?;
            if self.running.len() >= self.slots(plan.row_bytes)
                || self.holds_until(now, &plan).is_some()
            {
                return None;
            }
            if self.is_hopeless(now, &plan) {
                let hopeless = self.take(plan.head)?;
                dropped.expired.push(hopeless.arrival.payload);
                continue;
            }
            let batch = self.begin(now, &plan, &is_gone, dropped);
            if batch.is_some() {
                return batch;
            }
        }
    }

    /// When to poll although nothing comes and no run ends.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let plan = self.plan(now);
        let held = plan.and_then(|plan| match self.running.len() >= self.slots(plan.row_bytes) {
            true => None,
            false => self.holds_until(now, &plan),
        });
        [held, self.next_expiry].into_iter().flatten().min()
    }

    /// Whether one more thread should come and poll, besides `coming`.
    pub(crate) fn wants_worker(&self, now: Instant, coming: usize) -> bool {
        let Some(plan) = self.plan(now) else { return false };
        // A worker takes a whole batch: a second one is for what that leaves.
        let is_left = coming == 0 || self.waiting_count > coming.saturating_mul(plan.count);
        is_left
            && self.running.len() + coming < self.slots(plan.row_bytes)
            && self.holds_until(now, &plan).is_none()
    }

    pub(crate) fn finished(&mut self, now: Instant, finished: &Finished) {
        let Some(index) = self.running.iter().position(|run| run.id == finished.id) else { return };
        let run = self.running.swap_remove(index);
        let took = now.saturating_duration_since(run.started);
        // Those that began later count half: they were there for a part of it.
        let beside = (run.beside + self.running.len() + 1) as f64 / 2.0;
        self.cost.record(run.bytes, took.div_f64(beside));
        self.hold = (finished.members > 1)
            .then(|| Hold { until: now + (took / HOLD_SHARE).min(MAX_HOLD), rows: finished.rows });
    }

    /// Takes out what `is_gone` holds for.
    pub(crate) fn take_gone(&mut self, is_gone: impl Fn(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        for queue in self.levels.values_mut().chain([&mut self.delayed]) {
            let (out, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(queue)
                .into_iter()
                .partition(|waiting| is_gone(&waiting.arrival.payload));
            *queue = kept;
            gone.extend(out);
        }
        gone.iter().for_each(|waiting| self.count_out(waiting));
        gone.into_iter().map(|waiting| waiting.arrival.payload).collect()
    }

    pub(crate) fn set_merging(&mut self, can_merge: bool) {
        self.can_merge = can_merge;
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting_count
    }

    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Takes out what has expired, and moves what has timed out to the end.
    pub(crate) fn expire(&mut self, now: Instant, dropped: &mut Dropped<T>) {
        if self.next_expiry.is_none_or(|at| now < at) {
            return;
        }
        let queues = self.levels.values_mut().chain([&mut self.delayed]);
        let all: Vec<Waiting<T>> = queues.flat_map(std::mem::take).collect();
        self.next_expiry = None;
        for waiting in all {
            let arrival = &waiting.arrival;
            let is_delayed = arrival.delay_at.is_some_and(|at| now >= at);
            if now >= arrival.deadline {
                self.count_out(&waiting);
                dropped.expired.push(waiting.arrival.payload);
                continue;
            }
            let expiry = arrival.expiry(now);
            self.next_expiry = Some(self.next_expiry.map_or(expiry, |next| next.min(expiry)));
            match is_delayed {
                true => self.delayed.push_back(waiting),
                false => self.levels.entry(arrival.level).or_default().push_back(waiting),
            }
        }
    }

    /// Where the request is that the next batch begins with.
    fn head(&self) -> Option<Position> {
        let first = self.queues().find(|(_, queue)| !queue.is_empty()).map(|(at, _)| at)?;
        if !self.begun_count.is_multiple_of(OLDEST_EVERY) {
            return Some(first);
        }
        // In a level the first is the oldest; among the delayed it need not be.
        let oldest = self.queues().flat_map(|(at, queue)| {
            queue
                .iter()
                .enumerate()
                .map(move |(index, waiting)| (waiting.number, Position { index, ..at }))
        });
        oldest.min_by_key(|(number, _)| *number).map(|(_, at)| at).or(Some(first))
    }

    /// Every queue in the order in which it is served.
    fn queues(&self) -> impl Iterator<Item = (Position, &VecDeque<Waiting<T>>)> {
        let levels = self.levels.iter();
        let levels =
            levels.map(|(&level, queue)| (Position { level: Some(level), index: 0 }, queue));
        levels.chain([(Position { level: None, index: 0 }, &self.delayed)])
    }

    fn at(&self, position: Position) -> Option<&Waiting<T>> {
        let queue = match position.level {
            Some(level) => self.levels.get(&level)?,
            None => &self.delayed,
        };
        queue.get(position.index)
    }

    fn take(&mut self, position: Position) -> Option<Waiting<T>> {
        let queue = match position.level {
            Some(level) => self.levels.get_mut(&level)?,
            None => &mut self.delayed,
        };
        let waiting = queue.remove(position.index)?;
        self.count_out(&waiting);
        Some(waiting)
    }

    fn count_out(&mut self, waiting: &Waiting<T>) {
        self.waiting_count -= 1;
        self.waiting_rows -= waiting.arrival.rows;
        self.waiting_bytes -= waiting.arrival.bytes;
    }

    /// The batch that would begin now; `None` when nothing waits.
    fn plan(&self, now: Instant) -> Option<Plan> {
        let head = self.head()?;
        let first = self.at(head)?;
        let row_bytes = first.arrival.row_bytes();
        let mut plan = Plan::of(head, first);
        let Some(bucket) = first.arrival.bucket.as_ref().filter(|_| self.can_merge) else {
            return Some(plan);
        };
        let cap = self.cap_rows(row_bytes);
        let mut preferred = None;
        plan.is_full = plan.rows >= cap;
        for waiting in self.companions(head, bucket) {
            if self.options.preferred_batch_sizes.contains(&plan.rows) {
                preferred = Some(plan);
            }
            let larger = plan.with(waiting);
            plan.is_full = larger.rows > cap || self.is_too_long(now, &larger);
            if plan.is_full {
                break;
            }
            plan = larger;
            plan.is_full = plan.rows >= cap;
        }
        if self.options.preferred_batch_sizes.contains(&plan.rows) {
            preferred = Some(plan);
        }
        Some(preferred.map_or(plan, |plan| Plan { is_full: true, ..plan }))
    }

    /// Waiting requests that may join the one at `head`, in the order in which
    /// they would.
    fn companions<'a>(
        &'a self,
        head: Position,
        bucket: &'a Bucket,
    ) -> impl Iterator<Item = &'a Waiting<T>> {
        let all = self.queues().flat_map(|(at, queue)| {
            queue
                .iter()
                .enumerate()
                .map(move |(index, waiting)| (Position { index, ..at }, waiting))
        });
        all.filter(move |(at, waiting)| {
            *at != head && waiting.arrival.bucket.as_ref() == Some(bucket)
        })
        .map(|(_, waiting)| waiting)
    }

    /// Until when, later than `now`, the planned batch should wait for more.
    fn holds_until(&self, now: Instant, plan: &Plan) -> Option<Instant> {
        if plan.is_full {
            return None;
        }
        let until = match (self.options.max_queue_delay, self.hold) {
            (Some(delay), _) => plan.oldest.checked_add(delay)?,
            (None, Some(hold)) if self.running.is_empty() && plan.rows < hold.rows => hold.until,
            (None, _) => return None,
        };
        // No request waits itself past the time at which it can still be in time.
        let run = self.predicted_run(plan.rows, plan.row_bytes);
        let until = until.min(plan.deadline.checked_sub(run * 2)?);
        (until > now).then_some(until)
    }

    /// Whether a run would end after the deadline of one of its members.
    fn is_too_long(&self, now: Instant, plan: &Plan) -> bool {
        let run = self.predicted_run(plan.rows, plan.row_bytes);
        now.checked_add(run).is_none_or(|end| end > plan.deadline)
    }

    /// Whether the head would run in vain while others could be answered. When
    /// it is all there is, it runs: the prediction may be old.
    fn is_hopeless(&self, now: Instant, plan: &Plan) -> bool {
        let is_alone = self.waiting_count == 1 && self.running.is_empty();
        plan.count == 1 && !is_alone && self.is_too_long(now, plan)
    }

    /// Takes the planned batch out of the queue. `None` when all of it is gone.
    fn begin(
        &mut self,
        now: Instant,
        plan: &Plan,
        is_gone: impl Fn(&T) -> bool,
        dropped: &mut Dropped<T>,
    ) -> Option<Batch<T>> {
        let mut members = Vec::with_capacity(plan.count);
        for waiting in self.take_planned(plan) {
            let Arrival { payload, rows, deadline, .. } = waiting.arrival;
            match is_gone(&payload) {
                true => dropped.gone.push(payload),
                false => members.push(Member { payload, rows, deadline, since: waiting.since }),
            }
        }
        if members.is_empty() {
            return None;
        }
        self.begun_count += 1;
        self.hold = None;
        let expected = self.predicted_run(plan.rows, plan.row_bytes);
        let id = self.begun_count;
        let bytes = bytes_of(plan.rows, plan.row_bytes);
        let beside = self.running.len() + 1;
        self.running.push(Running { id, bytes, started: now, expected, beside });
        Some(Batch { id, members })
    }

    fn take_planned(&mut self, plan: &Plan) -> Vec<Waiting<T>> {
        let Some(first) = self.take(plan.head) else { return Vec::new() };
        let bucket = first.arrival.bucket.clone();
        let mut taken = vec![first];
        let levels: Vec<_> = self.levels.keys().copied().map(Some).chain([None]).collect();
        for level in levels {
            let mut position = Position { level, index: 0 };
            while taken.len() < plan.count {
                let Some(waiting) = self.at(position) else { break };
                match waiting.arrival.bucket == bucket {
                    true => taken.extend(self.take(position)),
                    false => position.index += 1,
                }
            }
        }
        taken
    }

    fn predicted_run(&self, rows: usize, row_bytes: u64) -> Duration {
        self.service_time.predict(bytes_of(rows, row_bytes)).unwrap_or_default()
    }

    /// Most rows of a run for requests of `row_bytes` a row.
    fn cap_rows(&self, row_bytes: u64) -> usize {
        let max = self.options.max_rows();
        if !self.can_merge {
            return 1;
        }
        if self.options.max_batch_size.is_some() || !self.options.preferred_batch_sizes.is_empty() {
            return max;
        }
        let row_bytes = usize::try_from(row_bytes).unwrap_or(usize::MAX).max(1);
        let worthwhile = self.cost.worthwhile_bytes(row_bytes, row_bytes.saturating_mul(max));
        (worthwhile / row_bytes).clamp(1, max)
    }

    /// Runs that may be under way at once.
    fn slots(&self, row_bytes: u64) -> usize {
        if let Some(instances) = self.options.instances {
            return instances.clamp(1, self.threads);
        }
        match self.cap_rows(row_bytes) {
            1 => self.threads,
            // Another one where even then every run is as large as pays.
            cap => (1 + self.waiting_rows / cap).min(self.threads),
        }
    }
}

/// Requests that a poll took out without running them.
pub(crate) struct Dropped<T> {
    pub(crate) expired: Vec<T>,
    pub(crate) gone: Vec<T>,
}

impl<T> Default for Dropped<T> {
    fn default() -> Self {
        Self { expired: Vec::new(), gone: Vec::new() }
    }
}

/// A place in the queue; `level` is `None` among the delayed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    level: Option<u64>,
    index: usize,
}

#[derive(Clone, Copy)]
struct Plan {
    head: Position,
    count: usize,
    rows: usize,
    row_bytes: u64,
    /// When the first of its members came.
    oldest: Instant,
    /// The earliest of its members.
    deadline: Instant,
    /// Nothing is gained by waiting.
    is_full: bool,
}

impl Plan {
    fn of<T>(head: Position, first: &Waiting<T>) -> Self {
        Self {
            head,
            count: 1,
            rows: first.arrival.rows,
            row_bytes: first.arrival.row_bytes(),
            oldest: first.since,
            deadline: first.arrival.deadline,
            is_full: true,
        }
    }

    fn with<T>(self, waiting: &Waiting<T>) -> Self {
        Self {
            count: self.count + 1,
            rows: self.rows + waiting.arrival.rows,
            oldest: self.oldest.min(waiting.since),
            deadline: self.deadline.min(waiting.arrival.deadline),
            ..self
        }
    }
}

impl<T> Arrival<T> {
    fn row_bytes(&self) -> u64 {
        self.bytes / self.rows.max(1) as u64
    }

    /// When it is next to be looked at although its turn has not come.
    fn expiry(&self, now: Instant) -> Instant {
        self.delay_at.filter(|&at| at > now).map_or(self.deadline, |at| at.min(self.deadline))
    }
}

impl Running {
    fn left(&self, now: Instant) -> Duration {
        self.expected.saturating_sub(now.saturating_duration_since(self.started))
    }
}

fn bytes_of(rows: usize, row_bytes: u64) -> usize {
    usize::try_from(row_bytes).unwrap_or(usize::MAX).saturating_mul(rows)
}

fn rows_of<T>(queue: &VecDeque<Waiting<T>>) -> usize {
    queue.iter().map(|waiting| waiting.arrival.rows).sum()
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "simulation.rs"]
mod simulation;
