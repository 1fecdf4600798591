//! When work that treats elements or rows alike is worth several threads.

use rayon::prelude::*;

/// Elements that a thread gets at least: a hop to another thread costs some
/// microseconds, in which one goes over about this many.
const LEAST: usize = 32 * 1024;

/// Elements, a multiple of `unit`, that each thread of the pool around this
/// run should take of `count`; `None` where one thread does it all.
pub(crate) fn part_len(count: usize, unit: usize) -> Option<usize> {
    let parts = rayon::current_num_threads().min(count / LEAST);
    (parts > 1 && unit > 0).then(|| (count / unit).div_ceil(parts) * unit)
}

/// Calls `visit` with each `len` elements of `target` and what `other` has in
/// their place, on the threads of the pool.
pub(crate) fn in_parts<T: Send + Sync>(
    len: usize,
    target: &mut [T],
    other: &[T],
    visit: &(dyn Fn(&mut [T], &[T]) + Sync),
) {
    let parts = target.par_chunks_mut(len).zip(other.par_chunks(len));
    parts.for_each(|(target, other)| visit(target, other));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_rows_and_cover_everything() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (count, unit, want) in [
            (LEAST, 1, None),
            (2 * LEAST, 1, Some(LEAST)),
            (30 * LEAST, LEAST, Some(10 * LEAST)),
            (10 * LEAST, 5 * LEAST, Some(5 * LEAST)),
            (0, 0, None),
        ] {
            assert_eq!(pool.install(|| part_len(count, unit)), want, "{count} by {unit}");
        }
    }
}
