//! The GPU device, and the only crate that knows wgpu. Graphs become dispatches
//! of the shaders in `shaders/`; operators without one run on the CPU device
//! within the same plan.

mod autotune;
mod choice;
mod context;
mod device;
mod executable;
mod heap;
mod kernels;
mod lower;
mod measure;
mod operand;
mod pack;
mod params;
mod peaks;
mod program;
mod ranges;
mod shaders;
mod slots;
#[cfg(test)]
mod tests;
mod tune;
mod units;
mod weights;

pub use choice::{AdapterSummary, DeviceChoice, adapters};
pub use device::{Chosen, GpuDevice, choose_device};
pub use measure::{Bench, DispatchTime, RecordTimes, Weights};
