//! Where the things under test are. `cargo xtask` names them in environment
//! variables; without it, the default target folder is assumed.

use std::path::PathBuf;

/// The root of the workspace.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn variable_or(name: &str, default: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| root().join(default), PathBuf::from)
}

/// The server binary.
pub fn mortise() -> PathBuf {
    variable_or("MORTISE_BIN", "target/release/mortise")
}

/// A component made from `tests/guests`.
pub fn guest(name: &str) -> PathBuf {
    variable_or("MORTISE_GUESTS_DIR", "target/guests").join(format!("{name}.wasm"))
}

/// A first-party component.
pub fn plugin(name: &str) -> PathBuf {
    variable_or("MORTISE_PLUGINS_DIR", "target/plugins").join(format!("{name}.wasm"))
}

/// A file of a demo endpoint, such as `digits/model.onnx`.
pub fn demo(file: &str) -> PathBuf {
    root().join("plugins/demo").join(file)
}
