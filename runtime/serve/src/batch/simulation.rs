//! Random schedules on a clock that the simulation moves: requests of random
//! sizes, shapes, priorities and deadlines, clients that leave, several
//! workers, and the same calls in the same order as the real threads make.

use super::*;
use crate::batch::merge;
use fastrand::Rng;
use mortise_types::Tensor;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const SCHEDULES: u64 = 12_000;
const MAX_THREADS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    Waiting,
    Refused,
    Expired,
    Gone,
    Answered,
}

struct Request {
    rows: usize,
    width: usize,
    level: u64,
    deadline: Instant,
    delay_at: Option<Instant>,
    has_left: bool,
    fate: Fate,
    /// Older requests that waited when it came, and batches begun by then.
    ahead: u64,
    begun_before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    Leave(usize),
    Poll,
    Alarm,
    Finish(u64),
}

/// One schedule.
struct World {
    rng: Rng,
    options: BatchOptions,
    queue: BatchQueue<usize>,
    threads: usize,
    requests: Vec<Request>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    event_count: u64,
    coming: usize,
    alarm: Option<Instant>,
    running: Vec<(u64, usize, usize)>,
    last_was_merged: bool,
    begun: u64,
}

#[test]
fn no_request_is_lost_doubled_starved_mixed_up_or_run_late() {
    let mut fates = [0u64; 6];
    let mut merged = 0u64;
    for seed in 0..SCHEDULES {
        let mut world = World::new(seed);
        world.run();
        for request in &world.requests {
            fates[request.fate as usize] += 1;
        }
        merged += u64::from(world.begun > 0 && world.last_was_merged);
    }
    assert_eq!(fates[Fate::Unknown as usize] + fates[Fate::Waiting as usize], 0, "lost");
    // A simulation in which one of these never happens would prove little.
    for fate in [Fate::Refused, Fate::Expired, Fate::Gone, Fate::Answered] {
        assert!(fates[fate as usize] > SCHEDULES / 10, "{fate:?}: {fates:?}");
    }
    assert!(merged > SCHEDULES / 10, "only {merged} schedules ended with a merged run");
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let options = random_options(&mut rng);
        let mut queue = BatchQueue::new(options.clone(), Arc::default());
        let threads = rng.usize(1..=MAX_THREADS);
        queue.set_threads(threads);
        queue.set_merging(rng.u8(0..10) > 0);
        let mut world = Self {
            rng,
            options,
            queue,
            threads,
            requests: Vec::new(),
            events: BinaryHeap::new(),
            event_count: 0,
            coming: 0,
            alarm: None,
            running: Vec::new(),
            last_was_merged: false,
            begun: 0,
        };
        world.plan_arrivals();
        world
    }

    fn plan_arrivals(&mut self) {
        let count = self.rng.usize(1..40);
        let mut now = Instant::now();
        // From a trickle to far more than the device can do.
        let gap_us = [1, 50, 400, 3_000][self.rng.usize(0..4)];
        for id in 0..count {
            now += Duration::from_micros(self.rng.u64(0..=gap_us));
            let patience = Duration::from_micros(self.rng.u64(100..40_000));
            let delays = self.options.level.timeout_action == TimeoutAction::Delay;
            let delay = Duration::from_micros(self.rng.u64(50..5_000));
            self.requests.push(Request {
                rows: self.rng.usize(1..5),
                width: self.rng.usize(1..3),
                level: self.options.level_of(self.rng.u64(0..5)),
                deadline: now + patience,
                delay_at: (delays && self.rng.bool()).then(|| now + delay),
                has_left: false,
                fate: Fate::Unknown,
                ahead: 0,
                begun_before: 0,
            });
            self.schedule(now, Event::Arrive(id));
            if self.rng.u8(0..8) == 0 {
                let after = Duration::from_micros(self.rng.u64(0..3_000));
                self.schedule(now + after, Event::Leave(id));
            }
        }
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((at, self.event_count, event)));
    }

    fn run(&mut self) {
        let mut steps = 0;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            steps += 1;
            assert!(steps < 20_000, "the schedule does not end");
            match event {
                Event::Arrive(id) => self.arrive(now, id),
                Event::Leave(id) => self.requests[id].has_left = true,
                Event::Poll => self.poll(now),
                Event::Alarm => self.alarm(now),
                Event::Finish(id) => self.finish(now, id),
            }
            self.follow_up(now);
            self.check_idle(now);
        }
        assert_eq!(self.queue.waiting_count(), 0, "requests were forgotten");
        assert_eq!((self.queue.waiting_rows, self.queue.waiting_bytes), (0, 0));
        assert!(self.running.is_empty() && self.queue.running.is_empty());
    }

    fn arrive(&mut self, now: Instant, id: usize) {
        let request = &self.requests[id];
        let arrival = Arrival {
            payload: id,
            rows: request.rows,
            bytes: (request.rows * request.width * 4) as u64,
            bucket: (request.width < 3).then(|| smallvec::smallvec![1, request.width]),
            level: request.level,
            deadline: request.deadline,
            delay_at: request.delay_at,
        };
        let ahead = self.queue.waiting_count() as u64;
        let outcome = self.queue.push(now, arrival);
        let begun_before = self.begun;
        let request = &mut self.requests[id];
        assert_eq!(request.fate, Fate::Unknown);
        request.fate = if outcome.is_ok() { Fate::Waiting } else { Fate::Refused };
        (request.ahead, request.begun_before) = (ahead, begun_before);
    }

    /// As `Ticket::run` does.
    fn poll(&mut self, now: Instant) {
        self.coming -= 1;
        let mut dropped = Dropped::default();
        let requests = &self.requests;
        let batch = self.queue.poll(now, |id| requests[*id].has_left, &mut dropped);
        self.settle(now, dropped);
        if let Some(batch) = batch {
            self.begin(now, &batch);
        }
    }

    fn settle(&mut self, now: Instant, dropped: Dropped<usize>) {
        for id in dropped.expired {
            let request = &self.requests[id];
            let bytes = request.rows * request.width * 4;
            let run = self.queue.service_time.predict(bytes).unwrap_or_default();
            assert!(now + run >= request.deadline, "expired although there was time");
            self.end(id, Fate::Expired);
        }
        for id in dropped.gone {
            assert!(self.requests[id].has_left);
            self.end(id, Fate::Gone);
        }
    }

    fn end(&mut self, id: usize, fate: Fate) {
        assert_eq!(self.requests[id].fate, Fate::Waiting, "request {id} ends twice");
        self.requests[id].fate = fate;
    }

    fn begin(&mut self, now: Instant, batch: &Batch<usize>) {
        self.begun += 1;
        self.check_batch(now, batch);
        let rows: usize = batch.members.iter().map(|member| member.rows).sum();
        self.running.push((batch.id, batch.members.len(), rows));
        let took = Duration::from_micros(300 + 40 * rows as u64 + self.rng.u64(0..50));
        let bytes = batch.members.iter().map(|m| m.rows * self.requests[m.payload].width * 4).sum();
        self.queue.service_time.record(bytes, took);
        self.schedule(now + took, Event::Finish(batch.id));
        self.answer(batch);
    }

    fn check_batch(&self, now: Instant, batch: &Batch<usize>) {
        let width = self.requests[batch.members[0].payload].width;
        let rows: usize = batch.members.iter().map(|member| member.rows).sum();
        if batch.members.len() > 1 {
            assert!(rows <= self.options.max_rows(), "{rows} rows");
            assert!(self.queue.can_merge);
        }
        let limit = self.options.instances.map_or(self.threads, |most| most.min(self.threads));
        assert!(self.running.len() < limit, "more than {limit} runs");
        for member in &batch.members {
            let request = &self.requests[member.payload];
            assert!(now < request.deadline, "run after its deadline");
            assert_eq!(request.width, width, "shapes are mixed");
            let waited = self.begun - request.begun_before;
            assert!(waited <= OLDEST_EVERY * (request.ahead + 2), "starved for {waited} batches");
        }
    }

    /// Rows are the number of their request, so that a mix-up shows.
    fn answer(&mut self, batch: &Batch<usize>) {
        let tensor = |member: &Member<usize>| {
            let width = self.requests[member.payload].width;
            let values = vec![member.payload as f32; member.rows * width];
            [Tensor::from_vec(&[member.rows, width], values).unwrap()]
        };
        let inputs: Vec<_> = batch.members.iter().map(tensor).collect();
        let slices: Vec<&[Tensor]> = inputs.iter().map(<[Tensor; 1]>::as_slice).collect();
        let rows: Vec<usize> = batch.members.iter().map(|member| member.rows).collect();
        let parts = merge::split(&merge::join(&slices).unwrap(), &rows).unwrap();
        for (member, part) in batch.members.iter().zip(parts) {
            assert_eq!(part[0].shape()[0], member.rows);
            let own = member.payload as f32;
            assert!(part[0].as_slice::<f32>().unwrap().iter().all(|value| *value == own));
            self.end(member.payload, Fate::Answered);
        }
    }

    /// As `Engine::wake` does.
    fn alarm(&mut self, now: Instant) {
        if self.alarm.is_some_and(|at| at > now) {
            return;
        }
        self.alarm = None;
        let mut dropped = Dropped::default();
        self.queue.expire(now, &mut dropped);
        self.settle(now, dropped);
    }

    fn finish(&mut self, now: Instant, id: u64) {
        let index = self.running.iter().position(|run| run.0 == id).unwrap();
        let (id, members, rows) = self.running.swap_remove(index);
        self.last_was_merged = members > 1;
        self.queue.finished(now, &Finished { id, members, rows });
    }

    /// As `Engine::follow_up` does.
    fn follow_up(&mut self, now: Instant) {
        while self.queue.wants_worker(now, self.coming) {
            self.coming += 1;
            let latency = Duration::from_micros(self.rng.u64(0..30));
            self.schedule(now + latency, Event::Poll);
        }
        if self.coming == 0
            && let Some(at) = self.queue.next_deadline(now)
            && self.alarm.is_none_or(|alarm| at < alarm)
        {
            self.alarm = Some(at);
            self.schedule(at, Event::Alarm);
        }
    }

    /// Nothing waits for an idle device without a reason and an end.
    fn check_idle(&self, now: Instant) {
        let is_idle = self.running.is_empty() && self.coming == 0;
        if !is_idle || self.queue.waiting_count() == 0 {
            return;
        }
        let until = self.queue.next_deadline(now);
        let longest = self.options.max_queue_delay.unwrap_or(MAX_HOLD);
        assert!(until.is_some_and(|until| until <= now + longest), "{until:?}");
        let may_wait = self.last_was_merged || self.options.max_queue_delay.is_some();
        assert!(may_wait, "a request waits for an idle device");
    }
}

fn random_options(rng: &mut Rng) -> BatchOptions {
    let maybe = |rng: &mut Rng, odds: u8| rng.u8(0..odds) == 0;
    let mut options = BatchOptions {
        max_batch_size: maybe(rng, 2).then(|| rng.usize(4..20)),
        max_queue_delay: maybe(rng, 3).then(|| Duration::from_micros(rng.u64(0..2_000))),
        instances: maybe(rng, 3).then(|| rng.usize(1..=MAX_THREADS)),
        priority_levels: rng.u64(0..4),
        ..BatchOptions::default()
    };
    if maybe(rng, 4) {
        options.preferred_batch_sizes = vec![4, 8];
    }
    if maybe(rng, 3) {
        options.max_queue_requests = rng.usize(1..10);
    }
    if maybe(rng, 3) {
        options.level.timeout_action = TimeoutAction::Delay;
    }
    options
}

use crate::options::TimeoutAction;
