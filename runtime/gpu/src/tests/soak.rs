//! Memory that must not grow, over batches of changing sizes, deployments and
//! removals.

use super::check::Random;
use super::faults::{compile, mlp, run};
use crate::GpuDevice;
use mortise_compute::{Device, Executable};

/// Most rows of a batch.
const ROWS: usize = 200;

/// A model that stays, others that come and go, and batches of all sizes to
/// both.
fn soak(deployments: usize, batches: usize, mut each: impl FnMut(usize)) {
    let device = super::open();
    let mut random = Random::new();
    let served = compile(&*device, &mlp(&mut random, 64));
    run(&*served, &random.floats(&[ROWS, 16])).unwrap();
    let mut settled = None;
    for deployment in 0..deployments {
        let hidden = 8 + random.usize(200);
        let other = compile(&*device, &mlp(&mut random, hidden));
        for batch in 0..batches {
            let rows = 1 + random.usize(ROWS);
            let input = random.floats(&[rows, 16]);
            let model: &dyn Executable = if batch % 2 == 0 { &*served } else { &*other };
            let got = run(model, &input).unwrap();
            assert_eq!(got[0].shape(), [rows, 4]);
        }
        run(&*other, &random.floats(&[ROWS, 16])).unwrap();
        drop(other);
        each(deployment);
        if deployment + 1 >= deployments / 2 {
            assert_eq!(*settled.get_or_insert(device.memory()), device.memory(), "{deployment}");
        }
    }
    assert_eq!(device.counters(), Default::default());
    drop(served);
    empty(&device);
}

/// Everything comes back with the last model, except what idle slots keep.
fn empty(device: &GpuDevice) {
    let (weights, chunks, _) = device.memory();
    assert_eq!((weights, chunks), (0, 0));
}

/// Bytes of memory of this process, those of a software adapter included.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A few batches, or with `MORTISE_SOAK` set 100,000 over 200 deployments. The
/// long version looks at the memory of the whole process, too.
#[test]
fn memory_stays_flat() {
    let long = std::env::var_os("MORTISE_SOAK").is_some();
    let (deployments, batches) = if long { (200, 500) } else { (20, 20) };
    let mut resident = Vec::new();
    soak(deployments, batches, |_| resident.push(resident_bytes()));
    let (first, last) = (resident[deployments / 4], resident[deployments - 1]);
    println!("{} batches: {first} bytes resident, then {last}", deployments * batches);
    assert!(!long || last < first + (16 << 20), "{first} bytes became {last}");
}
