//! Which device runs the graphs of this server.

#[cfg(feature = "gpu")]
pub(crate) use mortise_gpu::DeviceChoice;

use anyhow::Result;
use mortise_compute::{CpuDevice, CpuOptions, Device};
use std::path::Path;
use std::sync::Arc;

/// Where what was tuned for an adapter is kept, in the store.
#[cfg(feature = "gpu")]
const TUNING_FILE: &str = "gpu-tuning";

/// Opens what was asked for, and says in the log what was chosen and why. What
/// is tuned for a GPU is kept in `store`, if there is one.
///
/// # Errors
/// When an adapter was named that is not there or cannot run the kernels.
pub(crate) fn open(
    choice: DeviceChoice,
    threads: usize,
    store: Option<&Path>,
) -> Result<Arc<dyn Device>> {
    let cpu = CpuDevice::new(CpuOptions { threads: threads.max(1) });
    let (device, name, reason) = chosen(choice, cpu, store)?;
    tracing::info!(device = %name, %reason, "the device that runs graphs");
    Ok(device)
}

type Chosen = (Arc<dyn Device>, String, String);

#[cfg(feature = "gpu")]
fn chosen(choice: DeviceChoice, cpu: Arc<CpuDevice>, store: Option<&Path>) -> Result<Chosen> {
    let mortise_gpu::Chosen { device, name, reason } =
        mortise_gpu::choose_device(choice, cpu, store.map(|store| store.join(TUNING_FILE)))?;
    Ok((device, name, reason))
}

#[cfg(not(feature = "gpu"))]
fn chosen(_: DeviceChoice, cpu: Arc<CpuDevice>, _: Option<&Path>) -> Result<Chosen> {
    Ok((cpu, "cpu".to_owned(), "this binary has no other device".to_owned()))
}

/// What can be asked of a binary without the `gpu` feature.
#[cfg(not(feature = "gpu"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceChoice;

#[cfg(not(feature = "gpu"))]
impl std::str::FromStr for DeviceChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" | "cpu" => Ok(Self),
            other => anyhow::bail!("device \"{other}\": this binary was built without GPU support"),
        }
    }
}
