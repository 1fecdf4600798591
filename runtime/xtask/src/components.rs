//! `cargo xtask build` and `serve`: plugins to components, then the binary.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use wit_component::ComponentEncoder;

use crate::sh::{Command, timed};
use crate::workspace::{PLUGIN_TARGET, Workspace};

/// Components of the first-party plugins, then the release binary.
pub(crate) fn build_all(workspace: &Workspace) -> Result<()> {
    build_plugins(workspace)?;
    timed("build the mortise binary", || {
        workspace.cargo(&["build", "--release", "-p", "mortise-server"]).run()
    })?;
    eprintln!("    {}", workspace.binary("mortise").display());
    Ok(())
}

/// Components of the first-party plugins, then the binary, optimised as a whole.
pub(crate) fn build_dist(workspace: &Workspace) -> Result<()> {
    build_plugins(workspace)?;
    timed("build the mortise binary for production", || {
        workspace.cargo(&["build", "--profile", "dist", "-p", "mortise-server"]).run()
    })?;
    eprintln!("    {}", workspace.dist_binary().display());
    Ok(())
}

/// Builds all and runs the demo endpoints in the foreground.
pub(crate) fn serve(workspace: &Workspace, args: &[String]) -> Result<()> {
    build_all(workspace)?;
    Command::new(workspace.binary("mortise")).args(["demo"]).args(args).run()
}

/// `plugins/*` to `target/plugins/*.wasm`.
pub(crate) fn build_plugins(workspace: &Workspace) -> Result<()> {
    ensure_target()?;
    let crates = workspace.packages_under("plugins");
    let mut args = vec!["build".to_owned(), "--profile".into(), "plugin".into()];
    args.extend(crates.iter().flat_map(|name| ["-p".to_owned(), name.clone()]));
    let output = timed("build the plugins", || compile(workspace, &workspace.root, &args))?;
    let modules = crates.iter().map(|name| {
        let short = name.strip_prefix("plugin-").unwrap_or(name).to_owned();
        (output.join(format!("{}.wasm", name.replace('-', "_"))), short)
    });
    timed("encode the plugins as components", || encode_all(modules, &workspace.plugins()))
}

/// `tests/guests` to `target/guests/*.wasm`.
pub(crate) fn build_guests(workspace: &Workspace) -> Result<()> {
    ensure_target()?;
    let folder = workspace.path("tests/guests");
    let args = ["build".to_owned(), "--release".into(), "--workspace".into()];
    let output = timed("build the hostile guests", || compile(workspace, &folder, &args))?;
    let mut modules = Vec::new();
    for entry in fs::read_dir(&output)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            let stem = path.file_stem().context("a built module has a name")?;
            let name = stem.to_string_lossy().replace('_', "-");
            modules.push((path, name));
        }
    }
    encode_all(modules.into_iter(), &workspace.guests())
}

/// Runs cargo for the plugin target and returns the folder of the modules.
fn compile(workspace: &Workspace, folder: &Path, args: &[String]) -> Result<PathBuf> {
    // A folder of its own: the other flags would make cargo rebuild shared
    // build scripts and macros back and forth.
    let target = workspace.target.join("plugin-build");
    Command::new("cargo")
        .args(args)
        .args(["--target", PLUGIN_TARGET, "--target-dir"])
        .args([&target])
        .current_dir(folder)
        .env("RUSTFLAGS", "-C target-feature=+simd128")
        .run()?;
    let profile = if args.iter().any(|arg| arg == "plugin") { "plugin" } else { "release" };
    Ok(target.join(PLUGIN_TARGET).join(profile))
}

fn ensure_target() -> Result<()> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output()?;
    let library = Path::new(&sysroot).join("lib/rustlib").join(PLUGIN_TARGET);
    if library.exists() {
        return Ok(());
    }
    timed(&format!("rustup target add {PLUGIN_TARGET}"), || {
        Command::new("rustup").args(["target", "add", PLUGIN_TARGET]).run().context(format!(
            "the Rust standard library for {PLUGIN_TARGET} is missing. Install it with \
             `rustup target add {PLUGIN_TARGET}`; without rustup, install your \
             distribution's package for that target (Debian: libstd-rust-dev-wasm32)"
        ))
    })
}

fn encode_all(modules: impl Iterator<Item = (PathBuf, String)>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (module, name) in modules {
        let bytes = fs::read(&module).with_context(|| format!("read {}", module.display()))?;
        let component = encode(&bytes).with_context(|| format!("encode {name}"))?;
        let path = folder.join(format!("{name}.wasm"));
        // An unchanged file keeps its time stamp, so the server is not rebuilt.
        if fs::read(&path).ok().as_deref() != Some(&component) {
            fs::write(&path, &component)?;
        }
        eprintln!("    {name}: {} KiB", component.len() / 1024);
    }
    Ok(())
}

fn encode(module: &[u8]) -> Result<Vec<u8>> {
    let module = strip_debug_sections(module)?;
    ComponentEncoder::default().validate(true).module(&module)?.encode()
}

/// Drops the `.debug_*` sections, which the standard library brings along and
/// which are most of a module; function names stay, for readable traps.
fn strip_debug_sections(module: &[u8]) -> Result<Vec<u8>> {
    const HEADER: usize = 8;
    const CUSTOM: u8 = 0;
    let Some((header, mut rest)) = module.split_at_checked(HEADER) else {
        bail!("not a wasm module");
    };
    let mut kept = header.to_vec();
    while let Some((&id, after_id)) = rest.split_first() {
        let (size, after_size) = leb128(after_id)?;
        let Some((body, next)) = after_size.split_at_checked(size) else {
            bail!("a section of the module is cut off");
        };
        let is_debug = id == CUSTOM && {
            let (length, name) = leb128(body)?;
            name.get(..length).is_some_and(|name| name.starts_with(b".debug_"))
        };
        if !is_debug {
            kept.extend_from_slice(&rest[..rest.len() - next.len()]);
        }
        rest = next;
    }
    Ok(kept)
}

fn leb128(bytes: &[u8]) -> Result<(usize, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, &bytes[index + 1..]));
        }
    }
    bail!("a number in the module is cut off")
}
