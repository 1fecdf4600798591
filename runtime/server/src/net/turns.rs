//! How long a thread that serves keeps its core from others that want it.
//!
//! On a core with more than one busy thread, Linux lets each run for a slice
//! before the next: some milliseconds for threads that never sleep. Whoever waits
//! for a reply from such a core, or is to send the next request from it, waits
//! for a slice, and the tail of all replies is as long as one.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The slice that is asked for: the shortest that Linux grants.
#[cfg(target_os = "linux")]
const SLICE: Duration = Duration::from_micros(100);

/// How long the calling thread serves before others may run. Less, and replies
/// are taken in smaller groups, which costs more switches.
const TURN: Duration = Duration::from_micros(100);

thread_local! {
    /// When the turn of this thread began; `None` on threads that take none.
    static TURN_BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has the calling thread take short turns from now on, where the system knows
/// of slices (Linux 6.12 and later). It gets no less time for that.
pub(super) fn take_short_turns() {
    if take_short_slices() {
        TURN_BEGAN.set(Some(Instant::now()));
    }
}

/// The calling thread has slept: its turn begins now.
pub(super) fn begin_turn() {
    if TURN_BEGAN.get().is_some() {
        TURN_BEGAN.set(Some(Instant::now()));
    }
}

/// Lets others of this core run if the thread's turn is over. Costs nothing
/// where there are none.
#[inline]
pub(super) fn offer_turn() {
    let Some(began) = TURN_BEGAN.get() else { return };
    if began.elapsed() >= TURN {
        std::thread::yield_now();
        TURN_BEGAN.set(Some(Instant::now()));
    }
}

/// Whether the kernel has granted the slice. Without it, to yield once would be
/// to give up milliseconds.
#[cfg(target_os = "linux")]
fn take_short_slices() -> bool {
    let Some(mut attributes) = attributes() else { return false };
    if attributes.sched_policy != libc::SCHED_OTHER.unsigned_abs() {
        return false;
    }
    let slice = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    attributes.sched_runtime = slice;
    // SAFETY: 0 is the calling thread; the attributes outlive the call and say
    // how large they are.
    let failed = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attributes, 0) } != 0;
    // Older kernels take the call and forget the slice.
    !failed && self::attributes().is_some_and(|attributes| attributes.sched_runtime == slice)
}

#[cfg(not(target_os = "linux"))]
fn take_short_slices() -> bool {
    false
}

/// How the calling thread is scheduled.
#[cfg(target_os = "linux")]
fn attributes() -> Option<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).ok()?;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: 0 is the calling thread; the kernel writes `size` bytes at most.
    let failed =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &mut attributes, size, 0) } != 0;
    (!failed).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn slices_are_short_where_the_kernel_knows_them_and_nothing_else_changes() {
        let schedule = || {
            let before = attributes().unwrap();
            let is_granted = take_short_slices();
            (before, is_granted, attributes().unwrap())
        };
        let (before, is_granted, after) = std::thread::spawn(schedule).join().unwrap();
        let kept = |attributes: libc::sched_attr| (attributes.sched_policy, attributes.sched_nice);
        assert_eq!(kept(before), kept(after));
        // Kernels that tell of a slice grant one.
        assert_eq!(is_granted, before.sched_runtime > 0);
        let want = if is_granted { 100_000 } else { before.sched_runtime };
        assert_eq!(after.sched_runtime, want);
    }

    #[test]
    fn a_turn_ends_when_it_is_over() {
        let turns = || {
            offer_turn();
            begin_turn();
            assert_eq!(TURN_BEGAN.get(), None, "this thread takes none");
            let began = Instant::now();
            TURN_BEGAN.set(Some(began));
            std::thread::sleep(2 * TURN);
            offer_turn();
            assert!(TURN_BEGAN.get().unwrap() > began);
            TURN_BEGAN.set(Some(began));
            begin_turn();
            assert!(TURN_BEGAN.get().unwrap() > began, "it slept");
        };
        std::thread::spawn(turns).join().unwrap();
    }
}
