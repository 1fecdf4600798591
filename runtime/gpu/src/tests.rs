//! Kernels against the CPU device and float64, on whatever adapter is here;
//! software ones do. `MORTISE_TEST_GPU` chooses another by index.

mod attention;
mod check;
mod conv_int8;
mod elements;
mod faults;
mod panels;
mod peaks;
mod poison;
mod products;
mod quant;
mod replay;
mod rows;
mod soak;
mod trees;
mod windows;

use crate::{GpuDevice, adapters};
use mortise_compute::{CpuDevice, CpuOptions};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// One device for all tests, so that drivers are loaded once.
fn device() -> Arc<GpuDevice> {
    static DEVICE: OnceLock<Arc<GpuDevice>> = OnceLock::new();
    DEVICE.get_or_init(open).clone()
}

/// A device of a test's own.
///
/// # Panics
/// When there is no adapter: these tests then prove nothing.
fn open() -> Arc<GpuDevice> {
    open_retrying(Duration::ZERO)
}

/// As [`open`], with the time that the CPU serves after a fault.
///
/// # Panics
/// As [`open`].
fn open_retrying(retry: Duration) -> Arc<GpuDevice> {
    let cpu = CpuDevice::new(CpuOptions { threads: 1 });
    let device = GpuDevice::open_retrying(adapter_index(), cpu, None, retry);
    device.expect("the adapter runs the kernels")
}

/// # Panics
/// When there is no adapter.
pub(crate) fn adapter_index() -> usize {
    let found = adapters();
    assert!(
        !found.is_empty(),
        "no Vulkan adapter: install one in software with `apt-get install mesa-vulkan-drivers libvulkan1`"
    );
    let software = || found.iter().find(|adapter| adapter.is_software).map(|a| a.index);
    let named = std::env::var("MORTISE_TEST_GPU").ok().and_then(|index| index.parse().ok());
    named.or_else(software).unwrap_or(0)
}
