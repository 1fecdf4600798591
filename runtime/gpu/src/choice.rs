//! Which device serves: what was asked for against what the machine has.

use crate::context::{Context, instance};
use mortise_types::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What the operator asked for with `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A hardware adapter when there is one, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// Any adapter, hardware first; software adapters count here.
    Gpu,
    /// The adapter with this index in [`adapters`].
    Index(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let index = |digits: &str| digits.parse().ok().map(Self::Index);
        let known = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "gpu" => Some(Self::Gpu),
            other => other.strip_prefix("gpu:").and_then(index),
        };
        known.ok_or_else(|| {
            Error::invalid(format!("device \"{text}\" is unknown: use auto, cpu, gpu or gpu:N"))
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu => f.write_str("gpu"),
            Self::Index(index) => write!(f, "gpu:{index}"),
        }
    }
}

/// One adapter of the machine, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    pub index: usize,
    pub name: String,
    pub driver: String,
    /// Whether it computes on the CPU; such adapters serve only when named.
    pub is_software: bool,
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_software { ", software" } else { "" };
        write!(f, "gpu:{} {} ({}{kind})", self.index, self.name, self.driver)
    }
}

/// Every adapter that could run shaders, in the order that `gpu:N` counts.
pub fn adapters() -> Vec<AdapterSummary> {
    let found = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
    found.iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect()
}

/// What Linux shows of a GPU: of any kernel driver, of NVIDIA's, of WSL's, and
/// of Adreno's and Mali's.
#[cfg(target_os = "linux")]
const DEVICE_NODES: [&str; 5] =
    ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kgsl-3d0", "/dev/mali0"];

/// The adapters that `choice` may take. Where there can be no hardware, the
/// drivers are not asked for it: loaded, they keep tens of megabytes.
pub(crate) fn candidates(choice: DeviceChoice) -> Vec<AdapterSummary> {
    match choice {
        DeviceChoice::Cpu => Vec::new(),
        DeviceChoice::Auto if !may_have_hardware() => Vec::new(),
        _ => adapters(),
    }
}

#[cfg(target_os = "linux")]
fn may_have_hardware() -> bool {
    DEVICE_NODES.iter().any(|node| std::path::Path::new(node).exists())
}

#[cfg(not(target_os = "linux"))]
fn may_have_hardware() -> bool {
    true
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    AdapterSummary {
        index,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        is_software: info.device_type == wgpu::DeviceType::Cpu,
        name: info.name,
    }
}

/// The chosen adapter's index and why, or why the CPU device serves.
///
/// # Errors
/// `InvalidInput` when an adapter was named that is not there.
pub(crate) fn choose(choice: DeviceChoice, found: &[AdapterSummary]) -> Result<Decision> {
    let hardware = found.iter().find(|adapter| !adapter.is_software);
    let listed = || match found {
        [] => "none was found".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    Ok(match (choice, hardware) {
        (DeviceChoice::Cpu, _) => Decision::cpu("it was named"),
        (DeviceChoice::Auto, Some(adapter)) => Decision::gpu(adapter, "the first hardware adapter"),
        (DeviceChoice::Auto, None) => Decision::cpu(&format!("no hardware adapter: {}", listed())),
        (DeviceChoice::Gpu, Some(adapter)) => {
            Decision::gpu(adapter, "a GPU was named; the first hardware adapter")
        }
        (DeviceChoice::Gpu, None) => match found.first() {
            Some(adapter) => {
                Decision::gpu(adapter, "a GPU was named; only software adapters are here")
            }
            None => {
                return Err(Error::invalid(
                    "no GPU adapter was found: install a Vulkan driver, or use --device cpu",
                ));
            }
        },
        (DeviceChoice::Index(index), _) => match found.get(index) {
            Some(adapter) => Decision::gpu(adapter, "it was named"),
            None => {
                let message = format!("there is no adapter gpu:{index}; there are: {}", listed());
                return Err(Error::invalid(message));
            }
        },
    })
}

/// Outcome of [`choose`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// `None` for the CPU.
    pub(crate) index: Option<usize>,
    pub(crate) device: String,
    pub(crate) reason: String,
}

impl Decision {
    fn cpu(reason: &str) -> Self {
        Self { index: None, device: "cpu".to_owned(), reason: reason.to_owned() }
    }

    fn gpu(adapter: &AdapterSummary, reason: &str) -> Self {
        let device = adapter.to_string();
        Self { index: Some(adapter.index), device, reason: reason.to_owned() }
    }
}

/// Opens adapter number `index`, with `matrix_units` to use those it has.
///
/// # Errors
/// `NotFound` when it has gone, `Unsupported` when it lacks what every kernel needs.
pub(crate) fn open(index: usize, matrix_units: bool) -> Result<Context> {
    let found = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
    let adapter = found.into_iter().nth(index);
    let adapter =
        adapter.ok_or_else(|| Error::not_found(format!("adapter gpu:{index} is not there")))?;
    Context::open(&adapter, matrix_units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, is_software: bool) -> AdapterSummary {
        AdapterSummary { index, name: format!("a{index}"), driver: "d".into(), is_software }
    }

    #[test]
    fn software_adapters_serve_only_when_named() {
        let software = [adapter(0, true)];
        let both = [adapter(0, true), adapter(1, false)];
        let index = |choice, found: &[AdapterSummary]| choose(choice, found).unwrap().index;
        assert_eq!(index(DeviceChoice::Auto, &software), None);
        assert_eq!(index(DeviceChoice::Auto, &both), Some(1));
        assert_eq!(index(DeviceChoice::Auto, &[]), None);
        assert_eq!(index(DeviceChoice::Gpu, &software), Some(0));
        assert_eq!(index(DeviceChoice::Gpu, &both), Some(1));
        assert_eq!(index(DeviceChoice::Index(0), &both), Some(0));
        assert_eq!(index(DeviceChoice::Cpu, &both), None);
        assert!(choose(DeviceChoice::Gpu, &[]).is_err());
        let error = choose(DeviceChoice::Index(2), &both).unwrap_err();
        assert!(error.message().contains("gpu:1 a1 (d)"), "{error}");
    }

    #[test]
    fn choices_parse_and_print() {
        for text in ["auto", "cpu", "gpu", "gpu:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "GPU", "gpu:", "gpu:x", "gpu:-1"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
