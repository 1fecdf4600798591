//! Where things are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::sh::Command;

/// The triple that plugins are compiled for: no WASI imports by construction.
pub(crate) const PLUGIN_TARGET: &str = "wasm32-unknown-unknown";

pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) metadata: Metadata,
}

impl Workspace {
    pub(crate) fn discover() -> Result<Self> {
        let metadata = MetadataCommand::new()
            .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .no_deps()
            .exec()
            .context("`cargo metadata` failed")?;
        Ok(Self {
            root: metadata.workspace_root.clone().into(),
            target: metadata.target_directory.clone().into(),
            metadata,
        })
    }

    /// The folder of the first-party components that the server embeds.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.target.join("plugins")
    }

    /// The folder of the hostile components that the tests deploy.
    pub(crate) fn guests(&self) -> PathBuf {
        self.target.join("guests")
    }

    /// A release binary of this workspace.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// `cargo` in the root, told where the embedded components and the test
    /// inputs are.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        Command::new("cargo").args(args).current_dir(&self.root).envs(self.environment())
    }

    /// What the server's build, the tests and the benchmarks read. The plugin
    /// folder is only named when it is not the default one, so that a plain
    /// `cargo build` afterwards does not start again.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let show = |path: PathBuf| path.display().to_string();
        let mut variables = vec![
            ("MORTISE_BIN".into(), show(self.binary("mortise"))),
            ("MORTISE_GUESTS_DIR".into(), show(self.guests())),
            ("MORTISE_ROOT".into(), show(self.root.clone())),
        ];
        if self.target != self.root.join("target") {
            variables.push(("MORTISE_PLUGINS_DIR".into(), show(self.plugins())));
        }
        variables
    }

    /// The names of the crates below a folder of the root, in order.
    pub(crate) fn packages_under(&self, folder: &str) -> Vec<String> {
        let folder = self.root.join(folder);
        let mut names: Vec<_> = self
            .metadata
            .workspace_packages()
            .into_iter()
            .filter(|package| package.manifest_path.as_std_path().starts_with(&folder))
            .map(|package| package.name.to_string())
            .collect();
        names.sort();
        names
    }
}
