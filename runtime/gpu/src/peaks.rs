//! What an opened device can do at most: arithmetic in registers, and copies
//! from memory to memory.

use crate::context::Context;
use crate::measure::{WARM_UP, finish};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use mortise_compute::measure::Peaks;
use mortise_types::Result;
use std::time::Instant;
use wgpu::BufferUsages as Usage;

/// Work of the shader `peak.wgsl`, as it says.
const OPERATIONS_AN_INVOCATION: f64 = 2048.0 * 8.0 * 4.0 * 2.0;
const THREADS: u32 = 256;

/// Bytes that are copied: more than caches of devices hold.
const COPIED_BYTES: u64 = 256 << 20;

/// # Errors
/// `Overloaded` without memory for the copies, `NotReady` when the device is
/// lost.
pub(crate) fn peaks(context: &Context) -> Result<Peaks> {
    let (groups, bytes) =
        if context.is_software { (8, COPIED_BYTES / 8) } else { (16_384, COPIED_BYTES) };
    Ok(Peaks {
        f32_per_second: f32_per_second(context, groups)?,
        int8_per_second: None,
        f16_per_second: None,
        bytes_per_second: bytes_per_second(context, bytes)?,
    })
}

fn f32_per_second(context: &Context, groups: u32) -> Result<f64> {
    let bytes = u64::from(groups * THREADS) * 4;
    let output = context.buffer("peak", bytes, Usage::STORAGE, false)?;
    let pipeline = context.pipeline(&Kernel::new(File::Peak, 1, &[]))?;
    let bindings = context.bind(&[output.as_entire_buffer_binding()]);
    let params = Params::new().float(0.5).float(1.0);
    let run = || {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        pass.set_immediates(0, params.bytes());
        pass.dispatch_workgroups(groups, 1, 1);
        drop(pass);
        finish(context, encoder.finish())
    };
    let operations = f64::from(groups * THREADS) * OPERATIONS_AN_INVOCATION;
    Ok(operations / best_seconds(run)?)
}

/// Bytes read and written a second when copying `bytes` on the device.
///
/// # Errors
/// As [`peaks`].
pub(crate) fn bytes_per_second(context: &Context, bytes: u64) -> Result<f64> {
    const REPEATS: u32 = 10;
    const GROUPS: u32 = 4_096;
    let from = context.buffer("source", bytes, Usage::STORAGE, false)?;
    let to = context.buffer("target", bytes, Usage::STORAGE, false)?;
    let pipeline = context.pipeline(&Kernel::new(File::Stream, 2, &[]))?;
    let bindings = context.bind(&[from.as_entire_buffer_binding(), to.as_entire_buffer_binding()]);
    let params = Params::new().word((bytes / 16) as u32);
    let copies = || {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        pass.set_immediates(0, params.bytes());
        (0..REPEATS).for_each(|_| pass.dispatch_workgroups(GROUPS, 1, 1));
        drop(pass);
        finish(context, encoder.finish())
    };
    Ok(2.0 * bytes as f64 * f64::from(REPEATS) / best_seconds(copies)?)
}

/// The shortest of a few runs after a warm-up.
fn best_seconds(run: impl Fn() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    run()?;
    while start.elapsed() < WARM_UP {
        run()?;
    }
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
