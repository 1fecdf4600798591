//! First-fit allocation of byte ranges, for the weight heap and the arena.

/// Alignment of every range, in bytes; what any adapter binds buffers at.
pub(crate) const ALIGN: u64 = 256;

pub(crate) fn aligned(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGN)
}

/// The free ranges of a space of fixed or growing size, in order, never
/// touching one another.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    free: Vec<(u64, u64)>,
    end: u64,
}

impl Ranges {
    pub(crate) fn fixed(bytes: u64) -> Self {
        Self { free: vec![(0, bytes)], end: bytes }
    }

    /// The start of a free range of `bytes`, which is taken.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = aligned(bytes);
        let at = self.free.iter().position(|(start, end)| end - start >= bytes)?;
        let (start, end) = self.free[at];
        if start + bytes == end {
            self.free.remove(at);
        } else {
            self.free[at].0 = start + bytes;
        }
        Some(start)
    }

    /// As [`Ranges::take`], growing the space where nothing fits.
    pub(crate) fn take_or_grow(&mut self, bytes: u64) -> u64 {
        if let Some(start) = self.take(bytes) {
            return start;
        }
        let bytes = aligned(bytes);
        let start = match self.free.last() {
            Some(&(start, end)) if end == self.end => {
                self.free.pop();
                start
            }
            _ => self.end,
        };
        self.end = start + bytes;
        start
    }

    /// Gives back what `take` gave for the same `bytes`.
    pub(crate) fn give(&mut self, start: u64, bytes: u64) {
        let end = start + aligned(bytes);
        let at = self.free.partition_point(|range| range.0 < start);
        self.free.insert(at, (start, end));
        self.merge(at);
        if at > 0 {
            self.merge(at - 1);
        }
    }

    fn merge(&mut self, at: usize) {
        if let (Some(&(start, middle)), Some(&(next, end))) =
            (self.free.get(at), self.free.get(at + 1))
            && middle == next
        {
            self.free[at] = (start, end);
            self.free.remove(at + 1);
        }
    }

    /// Bytes from the start to the end of everything ever taken.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.free.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_all_come_back() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut ranges = Ranges::fixed(1 << 20);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for _ in 0..10_000 {
            if random.bool() || taken.is_empty() {
                let bytes = random.u64(1..9_000);
                if let Some(start) = ranges.take(bytes) {
                    let end = start + aligned(bytes);
                    assert!(taken.iter().all(|(s, b)| end <= *s || s + aligned(*b) <= start));
                    taken.push((start, bytes));
                }
            } else {
                let (start, bytes) = taken.swap_remove(random.usize(..taken.len()));
                ranges.give(start, bytes);
            }
        }
        taken.into_iter().for_each(|(start, bytes)| ranges.give(start, bytes));
        assert_eq!(ranges.free, [(0, 1 << 20)]);
    }

    #[test]
    fn a_growing_space_reuses_what_was_given_back() {
        let mut ranges = Ranges::default();
        let a = ranges.take_or_grow(1000);
        let b = ranges.take_or_grow(1000);
        ranges.give(a, 1000);
        assert_eq!((b, ranges.take_or_grow(900)), (1024, 0));
        ranges.give(b, 1000);
        assert_eq!(ranges.take_or_grow(5000), 1024, "the free end is grown, not skipped");
        assert_eq!(ranges.end(), 1024 + 5120);
    }
}
