use super::{dims, percent, print_peaks, report};
use crate::cli::args::BenchKernelsArgs;
use crate::cli::local;
use crate::cli::show::{print_table, row};
use anyhow::{Result, bail, ensure};
use mortise_compute::measure::{Kernel, KernelSizes, Peaks, Timing, kernels, time_graph};
use mortise_types::{Assets, ErrorKind};
use serde_json::{Value, json};

/// Times every kernel whose name fits, and prints a table and JSON.
///
/// # Errors
/// When the device cannot be used, or no name fits.
pub(super) fn run(args: &BenchKernelsArgs) -> Result<()> {
    let device = local::open(&args.device)?;
    let sizes = if args.small { KernelSizes::Small } else { KernelSizes::Full };
    let mut chosen = kernels(sizes)?;
    chosen.retain(|kernel| kernel.name.contains(&args.filter));
    ensure!(!chosen.is_empty(), "no kernel has \"{}\" in its name", args.filter);
    let peaks = device.peaks()?;
    let mut table = vec![row(["KERNEL", "SHAPE", "DTYPE", "US", "GFLOP/S", "GB/S", "OF FLOOR"])];
    let mut measured = Vec::new();
    for kernel in chosen {
        match time_graph(&*device, &kernel.def, &Assets::default(), &kernel.inputs) {
            Ok(timing) => {
                table.push(cells(&kernel, &timing, &peaks));
                measured.push(entry(&kernel, &timing, &peaks));
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                let (name, shape, dtype) = (kernel.name, &kernel.shape, kernel.dtype);
                table.push(vec![name.into(), dims(shape), dtype.into(), "unsupported".into()]);
                let reason = error.message();
                measured.push(json!({
                    "name": name, "shape": shape, "dtype": dtype, "us": null, "reason": reason,
                }));
            }
            Err(error) => bail!("{} {} {:?}: {error}", kernel.name, kernel.dtype, kernel.shape),
        }
    }
    if !args.json {
        print_peaks(&*device, &peaks);
        print_table(&table);
    }
    let mut report = report(&*device, &peaks);
    report["kernels"] = measured.into();
    println!("{report}");
    Ok(())
}

fn cells(kernel: &Kernel, timing: &Timing, peaks: &Peaks) -> Vec<String> {
    vec![
        kernel.name.to_owned(),
        dims(&kernel.shape),
        kernel.dtype.to_owned(),
        format!("{:.1}", timing.time.as_secs_f64() * 1e6),
        format!("{:.1}", timing.gflops()),
        format!("{:.1}", timing.gbs()),
        percent(timing.floor_share(peaks, kernel.arithmetic)),
    ]
}

fn entry(kernel: &Kernel, timing: &Timing, peaks: &Peaks) -> Value {
    json!({
        "name": kernel.name,
        "shape": kernel.shape,
        "dtype": kernel.dtype,
        "us": timing.time.as_secs_f64() * 1e6,
        "gflops": timing.gflops(),
        "gbs": timing.gbs(),
        "floor_share": timing.floor_share(peaks, kernel.arithmetic),
    })
}
