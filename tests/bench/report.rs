//! The last line of every benchmark.

use std::fs;

use serde_json::{Value, json};

/// Adds what every object carries, and prints it.
pub(crate) fn print(mut result: Value, versions: Value) {
    result["machine"] = machine();
    result["commit"] = std::env::var("MORTISE_COMMIT").unwrap_or_else(|_| "unknown".into()).into();
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

fn machine() -> Value {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = model.map_or("unknown", |text| text.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({"cpu": cpu, "cores": cores})
}
