//! Offsets in the arena of a run.

use crate::lower::{Lowered, STATUS, Step};
use crate::operand::Place;
use crate::ranges::{ALIGN, Ranges, aligned};

/// Where the buffers of a run lie in its arena.
pub(crate) struct Packed {
    /// By buffer.
    pub(crate) offsets: Vec<u64>,
    pub(crate) arena_bytes: u64,
}

impl Packed {
    pub(crate) fn of(lowered: &Lowered) -> Self {
        let (offsets, arena_bytes) = match lowered.shares_memory {
            true => shared(lowered),
            false => apart(&lowered.buffers),
        };
        Self { offsets, arena_bytes }
    }
}

/// Every buffer has memory of its own and a gap behind it, so that a kernel
/// which leaves elements out or writes beyond its end can be seen to.
fn apart(buffers: &[u64]) -> (Vec<u64>, u64) {
    let mut end = 0;
    let place = |bytes: &u64| {
        let offset = end;
        end += aligned(*bytes) + ALIGN;
        offset
    };
    (buffers.iter().map(place).collect(), end)
}

/// Packed by when buffers live.
fn shared(lowered: &Lowered) -> (Vec<u64>, u64) {
    let mut lives = vec![None::<(usize, usize)>; lowered.buffers.len()];
    let spans = spans(&lowered.steps);
    for (at, step) in lowered.steps.iter().enumerate() {
        // A submission uploads before its first dispatch and reads back after
        // its last, wherever the steps stand.
        let (first, last) = match step {
            Step::Upload { .. } => (spans[at].0, at),
            Step::Download { .. } => (at, spans[at].1),
            _ => (at, at),
        };
        for buffer in touched(step) {
            let life = lives[buffer].get_or_insert((first, last));
            *life = (life.0.min(first), life.1.max(last));
        }
    }
    let mut ranges = Ranges::default();
    let mut offsets = vec![0; lives.len()];
    offsets[STATUS] = ranges.take_or_grow(lowered.buffers[STATUS]);
    lives[STATUS] = None;
    for at in 0..lowered.steps.len() {
        let alive = |check: fn((usize, usize)) -> usize| {
            let matching = lives.iter().enumerate();
            matching.filter(move |(_, l)| l.map(check) == Some(at)).map(|(buffer, _)| buffer)
        };
        alive(|life| life.0).for_each(|b| offsets[b] = ranges.take_or_grow(lowered.buffers[b]));
        alive(|life| life.1).for_each(|b| ranges.give(offsets[b], lowered.buffers[b]));
    }
    (offsets, ranges.end())
}

/// For each step, the first and last step of its submission.
fn spans(steps: &[Step]) -> Vec<(usize, usize)> {
    let mut spans = Vec::with_capacity(steps.len());
    let mut first = 0;
    while first < steps.len() {
        let rest = steps[first..].iter().position(|step| matches!(step, Step::Cpu { .. }));
        let last = rest.map_or(steps.len() - 1, |at| first + at);
        spans.extend((first..=last).map(|_| (first, last)));
        first = last + 1;
    }
    spans
}

fn touched(step: &Step) -> Vec<usize> {
    let arena = |place: &Place| match place {
        Place::Arena(buffer) => Some(*buffer),
        Place::Weight(_) => None,
    };
    match step {
        Step::Upload { buffer, .. } => vec![*buffer],
        Step::Launch(launch) => launch.bindings.iter().filter_map(arena).collect(),
        Step::Download { operand, .. } => arena(&operand.place).into_iter().collect(),
        Step::Cpu { .. } => Vec::new(),
    }
}
