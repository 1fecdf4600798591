//! Puts the first-party plugins and the demo's files into the binary.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

const PLUGINS: [&str; 12] = [
    "onnx",
    "mlp",
    "tabular",
    "faults",
    // Routers.
    "weighted",
    "ab",
    "header",
    "shadow",
    "bandit",
    // Strategies.
    "canary",
    "blue-green",
    "manual",
];

fn main() {
    let root =
        PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets this")).join("../..");
    let plugins = env::var_os("MORTISE_PLUGINS_DIR")
        .map_or_else(|| root.join("target/plugins"), PathBuf::from);
    println!("cargo::rerun-if-env-changed=MORTISE_PLUGINS_DIR");
    let mut code = String::new();
    write_plugins(&mut code, &plugins);
    write_demos(&mut code, &root.join("plugins/demo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets this"));
    fs::write(out.join("embedded.rs"), code).expect("the output folder is writable");
}

fn write_plugins(code: &mut String, folder: &Path) {
    let missing: Vec<&str> =
        PLUGINS.into_iter().filter(|name| !component(folder, name).is_file()).collect();
    for name in PLUGINS {
        println!("cargo::rerun-if-changed={}", component(folder, name).display());
    }
    if !missing.is_empty() {
        let folder = folder.display();
        println!("cargo::error=no {missing:?} components in {folder}: run `cargo xtask build`");
        return;
    }
    code.push_str("pub(crate) const PLUGINS: &[File] = &[\n");
    for name in PLUGINS {
        write_file(code, name, &component(folder, name));
    }
    code.push_str("];\n");
}

fn component(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.wasm"))
}

/// One folder of `plugins/demo` for each endpoint.
fn write_demos(code: &mut String, folder: &Path) {
    println!("cargo::rerun-if-changed={}", folder.display());
    code.push_str("pub(crate) const DEMOS: &[Demo] = &[\n");
    for endpoint in children(folder).into_iter().filter(|path| path.is_dir()) {
        let _ = writeln!(code, "Demo {{ name: {:?}, files: &[", file_name(&endpoint));
        for file in children(&endpoint).into_iter().filter(|path| path.is_file()) {
            println!("cargo::rerun-if-changed={}", file.display());
            write_file(code, &file_name(&file), &file);
        }
        code.push_str("] },\n");
    }
    code.push_str("];\n");
}

fn write_file(code: &mut String, name: &str, path: &Path) {
    let path = path.canonicalize().expect("the file was just seen");
    let _ = writeln!(code, "File {{ name: {name:?}, bytes: include_bytes!({path:?}) }},");
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
