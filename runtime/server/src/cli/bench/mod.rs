//! `mortise bench`: measurements of this machine. What is measured and how is
//! in `mortise_compute::measure`; this prints it.

mod kernels;
mod model;

use super::args::{BenchArgs, BenchCommand};
use anyhow::Result;
use mortise_compute::Device;
use mortise_compute::measure::Peaks;
use serde_json::{Value, json};

/// # Errors
/// When the device or the model cannot be used.
pub(super) fn run(args: &BenchArgs) -> Result<()> {
    match &args.command {
        BenchCommand::Kernels(args) => kernels::run(args),
        BenchCommand::Model(args) => model::run(args),
    }
}

/// What every result says about where it comes from.
fn report(device: &dyn Device, peaks: &Peaks) -> Value {
    let caps = device.caps();
    json!({
        "machine": { "name": machine(), "cores": cores() },
        "device": caps.name,
        "threads": caps.threads,
        "peak_gflops": peaks.f32_per_second / 1e9,
        "peak_int8_gops": peaks.int8_per_second.map(|rate| rate / 1e9),
        "bandwidth_gbs": peaks.bytes_per_second / 1e9,
        "versions": { "mortise": env!("CARGO_PKG_VERSION") },
    })
}

fn print_peaks(device: &dyn Device, peaks: &Peaks) {
    let caps = device.caps();
    println!(
        "{}, {} threads: {:.0} GFLOP/s in f32, {:.1} GB/s",
        caps.name,
        caps.threads,
        peaks.f32_per_second / 1e9,
        peaks.bytes_per_second / 1e9
    );
}

/// The processor's name, as Linux tells it.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `73 %`, or nothing where it is not known.
fn percent(share: Option<f64>) -> String {
    share.map(|share| format!("{:.0} %", share * 100.0)).unwrap_or_default()
}

/// `64x3x224x224`
fn dims(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}
