//! First-party policies through the components that ship, with scripted
//! requests and statistics: the program of `bench policies` counts, and here it
//! is said what is right.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mortise_tests::paths;
use serde_json::{Value, json};

fn counted(arguments: &[&str]) -> Result<Value> {
    let program = paths::mortise().with_file_name("mortise-bench-policies");
    let components = paths::plugin("weighted");
    let components = components.parent().context("components lie in a folder")?;
    let [command, count] = arguments else { anyhow::bail!("{arguments:?}") };
    let output = Command::new(&program)
        .args([command.as_ref(), components.as_os_str(), count.as_ref()])
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_million_keys_stay_on_the_new_version_and_layers_are_independent() -> Result<()> {
    let counts = counted(&["sticky", "1000000"])?;
    for key in ["sticky_left", "sticky_shares_outside", "layers_dependent", "layer_shared"] {
        assert_eq!(counts[key], 0, "{key}: {counts}");
    }
    assert_eq!(counts["sticky_keys"], 1_000_000);
    Ok(())
}

#[test]
fn healthy_twins_are_promoted_and_worse_versions_are_caught() -> Result<()> {
    let simulated = counted(&["canary", "20"])?;
    // The test allows one in twenty; more than three of sixty is bad luck once
    // in two thousand runs of other numbers, and these are always the same.
    ensure!(simulated["aa_false_rollbacks"].as_u64() <= Some(3), "{simulated}");
    let rates = simulated["simulations"].as_array().context("no simulations")?;
    assert_eq!(rates.len(), 3);
    for rate in rates {
        for key in ["errors_caught", "latency_caught"] {
            assert_eq!(rate[key], json!(20), "{key}: {rate}");
        }
        ensure!(rate["aa_promoted"].as_u64() >= Some(17), "{rate}");
    }
    Ok(())
}
