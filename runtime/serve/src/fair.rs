use std::collections::{HashMap, VecDeque};

/// A queue of work by lane (one lane an endpoint) that takes lanes in turn and
/// lets no lane run more than `max_running` pieces at once. A pure state
/// machine: [`crate::pool::WorkerPool`] drives it.
pub(crate) struct FairQueue<T> {
    lanes: HashMap<u64, Lane<T>>,
    /// Lanes that have waiting work, the one whose turn it is first.
    turns: VecDeque<u64>,
    max_running: usize,
}

struct Lane<T> {
    waiting: VecDeque<T>,
    running: usize,
}

impl<T> FairQueue<T> {
    pub(crate) fn new(max_running: usize) -> Self {
        Self { lanes: HashMap::new(), turns: VecDeque::new(), max_running: max_running.max(1) }
    }

    pub(crate) fn push(&mut self, lane: u64, item: T) {
        let entry =
            self.lanes.entry(lane).or_insert_with(|| Lane { waiting: VecDeque::new(), running: 0 });
        if entry.waiting.is_empty() {
            self.turns.push_back(lane);
        }
        entry.waiting.push_back(item);
    }

    /// The next piece of work whose lane may run one more; the caller must
    /// call [`FairQueue::finished`] with the lane when it is done.
    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        for _ in 0..self.turns.len() {
            let lane = self.turns.pop_front()?;
            if let Some(item) = self.take_from(lane) {
                return Some((lane, item));
            }
        }
        None
    }

    fn take_from(&mut self, lane: u64) -> Option<T> {
        let entry = self.lanes.get_mut(&lane)?;
        if entry.running >= self.max_running {
            self.turns.push_back(lane);
            return None;
        }
        let item = entry.waiting.pop_front()?;
        entry.running += 1;
        if !entry.waiting.is_empty() {
            self.turns.push_back(lane);
        }
        Some(item)
    }

    pub(crate) fn finished(&mut self, lane: u64) {
        let Some(entry) = self.lanes.get_mut(&lane) else { return };
        entry.running -= 1;
        if entry.running == 0 && entry.waiting.is_empty() {
            self.lanes.remove(&lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(max_running: usize, items: &[(u64, &'static str)]) -> FairQueue<&'static str> {
        let mut queue = FairQueue::new(max_running);
        items.iter().for_each(|&(lane, item)| queue.push(lane, item));
        queue
    }

    #[test]
    fn lanes_take_turns() {
        let mut queue = filled(9, &[(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (2, "b2")]);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        assert_eq!(order, ["a1", "b1", "a2", "b2", "a3"]);
    }

    #[test]
    fn a_lane_at_its_bound_waits_and_others_pass_it() {
        let mut queue = filled(1, &[(1, "a1"), (1, "a2"), (2, "b1")]);
        assert_eq!(queue.pop(), Some((1, "a1")));
        assert_eq!(queue.pop(), Some((2, "b1")));
        assert_eq!(queue.pop(), None);
        queue.finished(1);
        assert_eq!(queue.pop(), Some((1, "a2")));
        queue.finished(1);
        queue.finished(2);
        assert!(queue.lanes.is_empty() && queue.turns.is_empty());
    }
}
