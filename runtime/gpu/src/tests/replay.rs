//! What replaying a plan costs on our side: neither memory nor a look-up for
//! an operator. Allocations of the thread that runs are counted, wgpu's among
//! them; what wgpu takes for the same dispatches alone is counted beside them.
//! What a driver takes from C's allocator is not seen. Look-ups are those of
//! pipelines, bind groups and buffers.

use crate::measure::{Rebinding, chain};
use mortise_types::{RunControl, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::Ordering;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends frees memory after its counter is gone.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What one run of a chain costs that ran before.
struct Costs {
    allocations: u64,
    lookups: u64,
    /// Allocations of wgpu for the same dispatches alone.
    bare_allocations: u64,
}

fn costs(count: usize) -> Costs {
    let device = super::open();
    let generation = device.generation();
    let chain = chain(&generation, count).unwrap();
    let input = Tensor::from_vec(&[1, 8], vec![0.5f32; 8]).unwrap();
    let run = || chain.run(&generation, vec![input.clone()], &RunControl::unbounded()).unwrap();
    (0..3).for_each(|_| drop(run()));
    let lookups = || generation.context.probe.lookups.load(Ordering::Relaxed);
    let (allocations, known) = (ALLOCATIONS.get(), lookups());
    drop(run());
    let (allocations, lookups) = (ALLOCATIONS.get() - allocations, lookups() - known);
    let bare = chain.bare(&generation).unwrap();
    bare.record(&generation.context, Rebinding::Each);
    let before = ALLOCATIONS.get();
    bare.record(&generation.context, Rebinding::Each);
    Costs { allocations, lookups, bare_allocations: ALLOCATIONS.get() - before }
}

#[test]
fn operators_cost_a_replay_no_memory_and_no_lookup() {
    let (few, many) = (costs(16), costs(1_016));
    assert_eq!((few.lookups, many.lookups), (0, 0), "all is settled before");
    let bare = many.bare_allocations - few.bare_allocations;
    let ours = many.allocations - few.allocations;
    println!("1,000 operators more: {ours} allocations more, {bare} in wgpu alone");
    // Lists double a few times, at different lengths; one allocation for each
    // operator would be 1,000.
    assert!(ours <= bare + 50, "{ours} allocations for 1,000 operators, {bare} of them in wgpu");
}
