//! The software Vulkan driver that the GPU tests run on.

use std::path::Path;

use anyhow::{Result, bail};

use crate::sh::Command;

/// Where drivers announce themselves to the loader.
const FOLDERS: &[&str] =
    &["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];

const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// Installs the driver where it is missing and this is a Debian or Ubuntu on
/// which we may.
///
/// # Errors
/// When there is none and it cannot be installed; says what to run.
pub(crate) fn ensure() -> Result<()> {
    if has_driver() {
        return Ok(());
    }
    eprintln!("no Vulkan driver; installing {}", PACKAGES.join(" and "));
    let installed =
        apt(&["update", "-qq"]) && apt(&["install", "-y", "-qq", PACKAGES[0], PACKAGES[1]]);
    if installed && has_driver() {
        return Ok(());
    }
    bail!(
        "the GPU tests need a Vulkan driver, and a software one does: as an administrator run \
         `apt-get install {}`",
        PACKAGES.join(" ")
    )
}

fn has_driver() -> bool {
    let announces = |folder: &&str| {
        let entries = std::fs::read_dir(Path::new(folder)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.path().extension().is_some_and(|ext| ext == "json"))
    };
    FOLDERS.iter().any(announces)
}

fn apt(arguments: &[&str]) -> bool {
    Command::new("apt-get").args(arguments).run().is_ok()
}
