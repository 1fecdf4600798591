use super::*;
use crate::options::{LevelOptions, TimeoutAction};
use smallvec::smallvec;

const ROW_BYTES: u64 = 1024;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A queue whose time the test moves. Payloads are names.
struct Scene {
    queue: BatchQueue<&'static str>,
    now: Instant,
}

impl Scene {
    fn new(options: BatchOptions) -> Self {
        let mut queue = BatchQueue::new(options, Arc::new(ServiceTime::default()));
        queue.set_merging(true);
        Self { queue, now: Instant::now() }
    }

    fn arrival(&self, name: &'static str, level: u64) -> Arrival<&'static str> {
        Arrival {
            payload: name,
            rows: 1,
            bytes: ROW_BYTES,
            bucket: Some(smallvec![1, 256]),
            level,
            deadline: self.now + ms(1_000),
            delay_at: None,
        }
    }

    fn push(&mut self, names: &[&'static str]) {
        for name in names {
            let arrival = self.arrival(name, 0);
            assert!(self.queue.push(self.now, arrival).is_ok(), "{name}");
        }
    }

    fn poll(&mut self) -> Vec<&'static str> {
        let mut dropped = Dropped::default();
        let batch = self.queue.poll(self.now, |_| false, &mut dropped);
        batch.map_or_else(Vec::new, |batch| batch.members.iter().map(|m| m.payload).collect())
    }

    fn finish(&mut self, id: u64, members: usize) {
        self.queue.finished(self.now, &Finished { id, members, rows: members });
    }
}

fn of_max(max_batch_size: usize) -> BatchOptions {
    BatchOptions {
        max_batch_size: Some(max_batch_size),
        instances: Some(1),
        ..BatchOptions::default()
    }
}

#[test]
fn an_idle_device_takes_the_first_and_a_busy_one_gathers_the_rest() {
    let mut scene = Scene::new(of_max(8));
    scene.push(&["a"]);
    assert_eq!(scene.poll(), ["a"]);
    scene.push(&["b", "c", "d"]);
    assert_eq!(scene.poll(), [""; 0]);
    assert!(!scene.queue.wants_worker(scene.now, 0));
    scene.finish(1, 1);
    assert!(scene.queue.wants_worker(scene.now, 0));
    assert_eq!(scene.poll(), ["b", "c", "d"]);
}

#[test]
fn a_merged_run_is_followed_by_a_short_wait_for_its_clients() {
    let mut scene = Scene::new(BatchOptions { instances: Some(1), ..BatchOptions::default() });
    scene.push(&["a", "b"]);
    assert_eq!(scene.poll(), ["a", "b"]);
    scene.now += ms(8);
    scene.finish(1, 2);
    scene.push(&["a2"]);
    assert_eq!(scene.poll(), [""; 0]);
    assert_eq!(scene.queue.next_deadline(scene.now), Some(scene.now + ms(2)));
    scene.push(&["b2"]);
    assert_eq!(scene.poll(), ["a2", "b2"], "all are back");
    scene.now += ms(8);
    scene.finish(2, 2);
    scene.push(&["a3"]);
    scene.now += ms(2);
    assert_eq!(scene.poll(), ["a3"], "waited long enough");
}

#[test]
fn a_configured_delay_ends_early_when_the_batch_is_full() {
    let mut scene = Scene::new(BatchOptions { max_queue_delay: Some(ms(5)), ..of_max(2) });
    scene.push(&["a"]);
    assert_eq!(scene.poll(), [""; 0]);
    assert_eq!(scene.queue.next_deadline(scene.now), Some(scene.now + ms(5)));
    scene.push(&["b"]);
    assert_eq!(scene.poll(), ["a", "b"]);
    scene.finish(1, 2);
    scene.push(&["c"]);
    scene.now += ms(5);
    assert_eq!(scene.poll(), ["c"]);
}

#[test]
fn preferred_sizes_are_cut_to() {
    let options = BatchOptions { preferred_batch_sizes: vec![2, 4], ..of_max(8) };
    let mut scene = Scene::new(options);
    scene.push(&["a", "b", "c", "d", "e"]);
    assert_eq!(scene.poll(), ["a", "b", "c", "d"]);
    scene.finish(1, 4);
    scene.now += ms(10);
    assert_eq!(scene.poll(), ["e"], "without a delay nothing waits for its like");
}

#[test]
fn requests_of_other_shapes_are_not_merged() {
    let mut scene = Scene::new(of_max(8));
    scene.push(&["a"]);
    let ragged = Arrival { bucket: Some(smallvec![1, 300]), ..scene.arrival("ragged", 0) };
    let alone = Arrival { bucket: None, ..scene.arrival("alone", 0) };
    assert!(scene.queue.push(scene.now, ragged).is_ok());
    assert!(scene.queue.push(scene.now, alone).is_ok());
    scene.push(&["b"]);
    for (id, want) in [&["a", "b"][..], &["ragged"], &["alone"]].into_iter().enumerate() {
        assert_eq!(scene.poll(), want);
        scene.finish(id as u64 + 1, 1);
    }
}

#[test]
fn priorities_go_first_and_nobody_starves() {
    let options = BatchOptions { priority_levels: 2, ..of_max(1) };
    let mut scene = Scene::new(options);
    let low = scene.arrival("low", 2);
    assert!(scene.queue.push(scene.now, low).is_ok());
    let mut order = Vec::new();
    for id in 1..=OLDEST_EVERY * 2 {
        let high = scene.arrival("high", 1);
        assert!(scene.queue.push(scene.now, high).is_ok());
        // The first batch of all takes the oldest: begin with another.
        if id == 1 {
            scene.queue.begun_count = 1;
        }
        order.extend(scene.poll());
        let running = scene.queue.running.first().map(|run| run.id);
        scene.finish(running.unwrap_or_default(), 1);
    }
    assert_eq!(order.iter().position(|name| *name == "low"), Some(OLDEST_EVERY as usize - 1));
}

#[test]
fn bounds_refuse_and_say_which() {
    let level = LevelOptions { max_queue_requests: 2, ..LevelOptions::default() };
    let options = BatchOptions {
        max_queue_requests: 4,
        max_queue_bytes: ROW_BYTES * 3,
        priority_levels: 2,
        levels: BTreeMap::from([(1, level)]),
        ..of_max(2)
    };
    let mut scene = Scene::new(options);
    let mut push = |arrival| scene.queue.push(scene.now, arrival).err();
    let base = Scene { queue: BatchQueue::new(of_max(1), Arc::default()), now: scene.now };
    let huge = Arrival { rows: 3, ..base.arrival("huge", 2) };
    assert_eq!(push(huge), Some(Refusal::TooManyRows { limit: 2 }));
    assert_eq!(push(base.arrival("a", 1)), None);
    assert_eq!(push(base.arrival("b", 1)), None);
    let want = Refusal::LevelFull { level: 1, limit: 2 };
    assert_eq!(push(base.arrival("c", 1)), Some(want));
    assert_eq!(push(base.arrival("c", 2)), None);
    let want = Refusal::BytesFull { limit: ROW_BYTES * 3 };
    assert_eq!(push(base.arrival("d", 2)), Some(want));
    let empty = Arrival { bytes: 0, ..base.arrival("d", 2) };
    assert_eq!(push(empty), None);
    assert_eq!(push(base.arrival("e", 2)), Some(Refusal::QueueFull { limit: 4 }));
}

#[test]
fn what_would_come_too_late_is_refused_unless_the_model_is_idle() {
    let mut scene = Scene::new(of_max(1));
    scene.queue.service_time.record(ROW_BYTES as usize, ms(10));
    let within = |scene: &Scene, deadline| Arrival {
        deadline: scene.now + deadline,
        ..scene.arrival("x", 0)
    };
    let hopeless = within(&scene, ms(5));
    assert!(scene.queue.push(scene.now, hopeless).is_ok(), "it may have become faster");
    assert_eq!(scene.poll(), ["x"]);
    // 10 ms are left of the run, and then it takes 10 ms itself.
    let late = within(&scene, ms(27));
    let refusal = scene.queue.push(scene.now, late).err();
    assert_eq!(refusal, Some(Refusal::TooLate { predicted: ms(20) }));
    let fits = within(&scene, ms(29));
    assert!(scene.queue.push(scene.now, fits).is_ok());
    let behind_it = within(&scene, ms(41));
    assert!(scene.queue.push(scene.now, behind_it).is_err());
    let behind_it = within(&scene, ms(43));
    assert!(scene.queue.push(scene.now, behind_it).is_ok());
    // The run takes longer than predicted: the next would come too late, and
    // makes room for the one after it.
    scene.now += ms(22);
    scene.finish(1, 1);
    let mut dropped = Dropped::default();
    let batch = scene.queue.poll(scene.now, |_| false, &mut dropped);
    assert_eq!((batch.map(|batch| batch.members.len()), dropped.expired.len()), (Some(1), 1));
}

#[test]
fn a_batch_grows_no_larger_than_its_deadlines_allow() {
    let mut scene = Scene::new(of_max(8));
    scene.queue.service_time.record(ROW_BYTES as usize, ms(10));
    for _ in 0..4 {
        let arrival = Arrival { deadline: scene.now + ms(90), ..scene.arrival("x", 0) };
        assert!(scene.queue.push(scene.now, arrival).is_ok());
    }
    scene.now += ms(55);
    assert_eq!(scene.poll().len(), 3, "35 ms are left, and a row takes 10");
}

#[test]
fn timeouts_reject_or_delay() {
    let mut scene = Scene::new(of_max(1));
    let late = Arrival { deadline: scene.now + ms(3), ..scene.arrival("late", 0) };
    let delayed = Arrival { delay_at: Some(scene.now + ms(3)), ..scene.arrival("delayed", 0) };
    assert!(scene.queue.push(scene.now, late).is_ok());
    assert!(scene.queue.push(scene.now, delayed).is_ok());
    scene.push(&["in time"]);
    assert_eq!(scene.queue.next_expiry, Some(scene.now + ms(3)));
    scene.now += ms(3);
    // So that it is not the turn of the oldest.
    scene.queue.begun_count = 1;
    let mut dropped = Dropped::default();
    let batch = scene.queue.poll(scene.now, |_| false, &mut dropped).unwrap();
    assert_eq!((batch.members[0].payload, dropped.expired), ("in time", vec!["late"]));
    scene.finish(batch.id, 1);
    assert_eq!(scene.poll(), ["delayed"]);
    assert_eq!(TimeoutAction::default(), TimeoutAction::Reject);
}

#[test]
fn who_left_is_not_run() {
    let mut scene = Scene::new(of_max(8));
    scene.push(&["a", "b", "c"]);
    assert_eq!(scene.queue.take_gone(|name| *name == "a"), ["a"]);
    let mut dropped = Dropped::default();
    let batch = scene.queue.poll(scene.now, |name| *name == "b", &mut dropped).unwrap();
    assert_eq!((batch.members[0].payload, dropped.gone), ("c", vec!["b"]));
    assert_eq!((scene.queue.waiting_count(), scene.queue.waiting_bytes()), (0, 0));
}
