use super::args::{AuditArgs, GcArgs, StatusArgs};
use super::client::{AdminClient, segment};
use anyhow::Result;
use serde_json::Value;

/// All endpoints in a table, or one with its details.
///
/// # Errors
/// When the server cannot be reached or does not know the endpoint.
pub(super) fn status(args: &StatusArgs) -> Result<()> {
    let client = AdminClient::connect(&args.admin)?;
    let answer = match &args.name {
        Some(name) => client.get(&format!("/v1/endpoints/{}", segment(name)))?,
        None => client.get("/v1/endpoints")?,
    };
    if args.admin.json {
        return print_json(&answer);
    }
    match answer.as_array() {
        Some(endpoints) => print_endpoints(endpoints),
        None => print_endpoint(&answer),
    }
    Ok(())
}

fn print_endpoints(endpoints: &[Value]) {
    if endpoints.is_empty() {
        println!("nothing is deployed; `mortise deploy NAME PATH` changes that");
        return;
    }
    let mut table = vec![row(["NAME", "STATE", "VERSION", "REVISION", "PLUGIN", "MEMORY", "NOTE"])];
    for endpoint in endpoints {
        let revision = &endpoint["revision"];
        table.push(vec![
            text(&endpoint["name"]),
            text(&endpoint["state"]),
            text(&revision["version"]["number"]),
            text(&revision["number"]),
            plugins(&revision["version"]),
            bytes(endpoint["memory_bytes"].as_u64().unwrap_or(0)),
            note(endpoint),
        ]);
    }
    print_table(&table);
}

fn print_endpoint(endpoint: &Value) {
    let revision = &endpoint["revision"];
    let version = &revision["version"];
    println!("{}: {}", text(&endpoint["name"]), text(&endpoint["state"]));
    let lines = [
        ("note", note(endpoint)),
        ("version", format!("{} by {}", text(&version["number"]), text(&version["who"]))),
        ("revision", text(&revision["number"])),
        ("rollback to", text(&endpoint["rollback_revision"])),
        ("rollout", text(&endpoint["rollout"])),
        ("versions", several(&endpoint["versions"])),
        ("plugins", plugins(version)),
        ("quantized", quantized(&version["quantize"])),
        ("memory", bytes(endpoint["memory_bytes"].as_u64().unwrap_or(0))),
        ("inputs", tensors(&endpoint["signature"]["inputs"])),
        ("outputs", tensors(&endpoint["signature"]["outputs"])),
    ];
    for (key, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        println!("  {key:<12} {value}");
    }
}

fn note(endpoint: &Value) -> String {
    if let Some(stage) = endpoint["in_progress"]["stage"].as_str() {
        return format!("a deployment is under way: {stage}");
    }
    if let Some(rollout) = endpoint["rollout"].as_str() {
        return rollout.to_string();
    }
    let reason = endpoint["reason"].as_str().or(endpoint["last_failure"].as_str());
    reason.map_or_else(|| several(&endpoint["versions"]), str::to_string)
}

/// Nothing for a version that is alone, which needs no share.
fn several(versions: &Value) -> String {
    let is_alone = versions.as_array().is_none_or(|versions| versions.len() < 2);
    if is_alone { String::new() } else { live_versions(versions) }
}

/// `version 1 (stable) gets 80 %, version 2 gets 20 %`
pub(super) fn live_versions(versions: &Value) -> String {
    let version = |version: &Value| {
        let stable = if version["variant"] == "stable" { " (stable)" } else { "" };
        format!("version {}{stable} gets {} %", version["version"], version["weight_percent"])
    };
    versions.as_array().into_iter().flatten().map(version).collect::<Vec<_>>().join(", ")
}

/// `tabular > onnx`
fn plugins(version: &Value) -> String {
    let transforms = version["transforms"].as_array().into_iter().flatten();
    let parts = transforms.chain([&version["model"]]);
    parts.map(|part| text(&part["plugin"])).collect::<Vec<_>>().join(" > ")
}

/// `int8: weights 417 MiB to 105 MiB, outputs within 1.2e-2`
fn quantized(info: &Value) -> String {
    let Some(mode) = info["mode"].as_str() else { return String::new() };
    let report = &info["report"];
    let size = |key: &str| bytes(report[key].as_u64().unwrap_or(0));
    format!(
        "{mode}: weights {} to {}, outputs within {:.1e}",
        size("weight_bytes_before"),
        size("weight_bytes_after"),
        report["difference"]["max_abs_error"].as_f64().unwrap_or(f64::INFINITY)
    )
}

fn tensors(specs: &Value) -> String {
    let spec = |spec: &Value| {
        format!("{} {}{}", text(&spec["name"]), text(&spec["datatype"]), spec["shape"])
    };
    specs.as_array().into_iter().flatten().map(spec).collect::<Vec<_>>().join(", ")
}

/// # Errors
/// When the server cannot be reached or the store fails.
pub(super) fn gc(args: &GcArgs) -> Result<()> {
    let answer = AdminClient::connect(&args.admin)?.post("/v1/gc")?;
    if args.admin.json {
        return print_json(&answer);
    }
    println!(
        "removed {} versions and {} files, {} freed",
        answer["versions_removed"],
        answer["blobs_removed"],
        bytes(answer["bytes_freed"].as_u64().unwrap_or(0))
    );
    Ok(())
}

/// # Errors
/// When the server cannot be reached.
pub(super) fn audit(args: &AuditArgs) -> Result<()> {
    let client = AdminClient::connect(&args.admin)?;
    let endpoint = args.name.as_ref().map(|name| format!("&endpoint={}", segment(name)));
    let query = format!("/v1/audit?limit={}{}", args.limit, endpoint.unwrap_or_default());
    let answer = client.get(&query)?;
    if args.admin.json {
        return print_json(&answer);
    }
    let mut table = vec![row(["WHEN (UTC)", "WHO", "ACTION", "ENDPOINT", "VERSION", "RESULT"])];
    for entry in answer.as_array().into_iter().flatten() {
        let outcome = if entry["ok"] == true { "ok" } else { "FAILED" };
        table.push(vec![
            utc(entry["at_ms"].as_u64().unwrap_or(0)),
            text(&entry["who"]),
            text(&entry["action"]),
            text(&entry["endpoint"]),
            text(&entry["version"]),
            format!("{outcome} {}", text(&entry["detail"])).trim().to_string(),
        ]);
    }
    print_table(&table);
    Ok(())
}

/// # Errors
/// Never: what came as JSON is written as JSON.
pub(super) fn print_json(value: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(super) fn print_table(table: &[Vec<String>]) {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in table {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    }
}

pub(super) fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// Odds as people read them: evidence multiplies, and soon has hundreds of
/// digits.
pub(super) fn odds(odds: f64) -> String {
    if odds.abs() >= 1e6 {
        // An infinity is "inf" in this form.
        format!("{odds:.1e}")
    } else if odds.fract() == 0.0 {
        format!("{odds:.0}")
    } else {
        format!("{odds:.2}")
    }
}

/// `2026-01-31 12:34:56`, by Howard Hinnant's `civil_from_days`.
fn utc(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (days, time) = ((seconds / 86_400) as i64 + 719_468, seconds % 86_400);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odds_are_short() {
        let cases = [
            (0.0, "0"),
            (1.368, "1.37"),
            (40.0, "40"),
            (999_999.5, "999999.50"),
            (1e6, "1.0e6"),
            (1.04e9, "1.0e9"),
            (3e260, "3.0e260"),
            (f64::INFINITY, "inf"),
        ];
        for (number, want) in cases {
            assert_eq!(odds(number), want);
        }
    }

    #[test]
    fn times_are_utc() {
        let cases = [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_767_225_599_000, "2025-12-31 23:59:59"),
        ];
        for (ms, want) in cases {
            assert_eq!(utc(ms), want);
        }
    }
}
