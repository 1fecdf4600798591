//! Where things are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sh::Command;

/// The triple that plugins are compiled for: no WASI imports by construction.
pub(crate) const PLUGIN_TARGET: &str = "wasm32-unknown-unknown";

pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    /// In the order of their names.
    pub(crate) packages: Vec<Package>,
}

pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest: PathBuf,
    /// What it ships with: build dependencies count, development ones do not.
    pub(crate) dependencies: Vec<String>,
}

impl Workspace {
    pub(crate) fn discover() -> Result<Self> {
        // Read as plain JSON: a crate for it would change features of what the
        // server shares with us, and compile wasmtime twice.
        let text = Command::new("cargo")
            .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
            .output()?;
        let metadata: Value = serde_json::from_str(&text)?;
        let packages = metadata["packages"].as_array().context("metadata without packages")?;
        let mut packages = packages.iter().map(Package::parse).collect::<Result<Vec<_>>>()?;
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            root: text_of(&metadata, "workspace_root")?.into(),
            target: text_of(&metadata, "target_directory")?.into(),
            packages,
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

    /// The server as `cargo xtask dist` builds it.
    pub(crate) fn dist_binary(&self) -> PathBuf {
        self.target.join("dist/mortise")
    }

    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// `cargo` in the root, told where the embedded components and the test
    /// inputs are.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        // Told about this program, build scripts that read such variables would
        // run again, and all that needs them be compiled again, whenever builds
        // from here and from a shell take turns.
        Command::new("cargo")
            .without_env("CARGO_PKG_")
            .without_env("CARGO_MANIFEST_")
            .args(args)
            .current_dir(&self.root)
            .envs(self.environment())
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

    /// The names of the crates below a folder of the root.
    pub(crate) fn packages_under(&self, folder: &str) -> Vec<String> {
        let folder = self.root.join(folder);
        let inside = self.packages.iter().filter(|package| package.manifest.starts_with(&folder));
        inside.map(|package| package.name.clone()).collect()
    }
}

impl Package {
    fn parse(package: &Value) -> Result<Self> {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let shipped = dependencies.filter(|dependency| dependency["kind"] != "dev");
        Ok(Self {
            name: text_of(package, "name")?.to_owned(),
            manifest: text_of(package, "manifest_path")?.into(),
            dependencies: shipped
                .map(|dependency| text_of(dependency, "name").map(str::to_owned))
                .collect::<Result<_>>()?,
        })
    }
}

fn text_of<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("metadata without {key}"))
}
