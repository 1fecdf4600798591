//! The last line of every benchmark. `cargo xtask bench` adds the machine and the
//! commit.

use serde_json::{Value, json};

/// Prints the object, with the versions of what was measured.
pub(crate) fn print(mut result: Value, versions: Value) {
    result["versions"] = versions;
    println!("{result}");
}

/// The version of our own server, as it tells it.
pub(crate) fn our_version() -> Value {
    let output =
        std::process::Command::new(mortise_tests::paths::mortise()).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    json!(text.unwrap_or_else(|error| error.to_string()))
}
