//! `mortise rollout …`: a look at a rollout, and a hand on it.

use super::CliError;
use super::args::{RolloutArgs, RolloutCommand, RolloutStatusArgs};
use super::client::{AdminClient, segment};
use super::deploy::Component;
use super::show::{odds as odds_text, print_json};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

/// How often the live view is drawn.
const REDRAW_EVERY: Duration = Duration::from_millis(500);

/// # Errors
/// When there is no such rollout, or the server cannot be reached.
pub(super) fn run(args: &RolloutArgs) -> Result<()> {
    let (name, admin) = match &args.command {
        RolloutCommand::Status(args) => return status(args),
        RolloutCommand::Pause(args) | RolloutCommand::Resume(args) => (&args.name, &args.admin),
        RolloutCommand::Abort(args) => (&args.name, &args.admin),
        RolloutCommand::Promote(args) => (&args.name, &args.admin),
        RolloutCommand::Weight(args) => (&args.name, &args.admin),
        RolloutCommand::Swap(args) => (&args.name, &args.admin),
    };
    let client = AdminClient::connect(admin)?;
    let path = format!("/v1/endpoints/{}/rollout", segment(name));
    let answer = match &args.command {
        RolloutCommand::Status(_) => client.get(&path)?,
        RolloutCommand::Pause(_) => client.post(&format!("{path}/pause"))?,
        RolloutCommand::Resume(_) => client.post(&format!("{path}/resume"))?,
        RolloutCommand::Promote(args) => {
            client.post_json(&format!("{path}/promote"), &json!({"force": args.force}))?
        }
        RolloutCommand::Abort(_) => client.post(&format!("{path}/abort"))?,
        RolloutCommand::Weight(args) => {
            let body = json!({"percent": percent(&args.percent)?, "force": args.force});
            client.post_json(&format!("{path}/weight"), &body)?
        }
        RolloutCommand::Swap(args) => {
            let strategy = Component::parse(&args.strategy).upload(&client)?;
            let config = super::deploy::config(&args.set)?;
            let body = json!({
                "strategy": strategy, "config": config, "defaults": args.defaults,
            });
            client.post_json(&format!("{path}/strategy"), &body)?
        }
    };
    match admin.json {
        true => print_json(&answer),
        false => {
            print!("{}", view(&answer));
            Ok(())
        }
    }
}

/// `25`, `25%` or `25 %`
pub(super) fn percent(text: &str) -> Result<f64> {
    let number = text.trim().trim_end_matches('%').trim().parse();
    number.map_err(|_| {
        CliError::new(format!("\"{text}\" is no share"), "write a percentage such as 25%").into()
    })
}

/// Shows a rollout once, or with `--watch` until it ends.
fn status(args: &RolloutStatusArgs) -> Result<()> {
    let client = AdminClient::connect(&args.admin)?;
    let path = format!("/v1/endpoints/{}/rollout", segment(&args.name));
    let mut drawn_lines = 0;
    loop {
        let answer = client.get(&path)?;
        let is_active = matches!(answer["phase"].as_str(), Some("running" | "paused"));
        if args.admin.json {
            print_json(&answer)?;
        } else {
            let text = view(&answer);
            match args.watch && is_active && std::io::stdout().is_terminal() {
                true => redraw(&text, drawn_lines)?,
                false => print!("{}{text}", back(drawn_lines)),
            }
            drawn_lines = text.lines().count();
        }
        if !args.watch || !is_active {
            return end(&answer, args.watch);
        }
        std::thread::sleep(REDRAW_EVERY);
    }
}

/// Up to the first line of the last picture, and clear from there.
fn back(drawn_lines: usize) -> String {
    match drawn_lines > 0 && std::io::stdout().is_terminal() {
        true => format!("\x1b[{drawn_lines}A\x1b[J"),
        false => String::new(),
    }
}

/// Draws over the last picture. Lines are cut at the edge of the terminal, not
/// wrapped: wrapped ones would take more rows than are counted.
fn redraw(text: &str, drawn_lines: usize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{}\x1b[?7l{text}\x1b[?7h", back(drawn_lines))?;
    Ok(out.flush()?)
}

/// A watched rollout that did not end in a promotion is a failure, for scripts.
fn end(answer: &Value, watched: bool) -> Result<()> {
    match answer["phase"].as_str() {
        Some("rolled_back" | "aborted") if watched => {
            bail!("the rollout did not succeed; its last lines say why")
        }
        _ => Ok(()),
    }
}

fn view(rollout: &Value) -> String {
    let mut out = String::new();
    let elapsed_s = rollout["elapsed_ms"].as_f64().unwrap_or(0.0) / 1e3;
    // Writing into a string cannot fail.
    let _ = writeln!(
        out,
        "{}: {} with {}, version {} beside version {}, after {elapsed_s:.0} s",
        text(&rollout["endpoint"]),
        text(&rollout["phase"]).replace('_', " "),
        text(&rollout["strategy"]["plugin"]),
        rollout["candidate_version"],
        rollout["stable_version"],
    );
    let weight = rollout["weight_percent"].as_f64().unwrap_or(0.0);
    let is_active = matches!(rollout["phase"].as_str(), Some("running" | "paused"));
    let _ = match rollout["router_follows_weights"] == false && is_active {
        true => writeln!(out, "  divided by {}", text(&rollout["router"]["plugin"])),
        false => writeln!(out, "  {} {weight} %", bar(weight / 100.0, 40)),
    };
    let _ = writeln!(
        out,
        "  {:<10} {:>10} {:>8} {:>8} {:>10} {:>10}",
        "", "requests", "errors", "rate", "p50", "p99"
    );
    for variant in ["stable", "candidate"] {
        let _ = writeln!(out, "{}", variant_line(variant, &rollout[variant]));
    }
    for evidence in rollout["evidence"].as_array().into_iter().flatten() {
        let (odds, limit) = (number(&evidence["odds"]), number(&evidence["limit"]));
        let share = odds.max(1.0).ln() / limit.max(2.0).ln();
        let _ = writeln!(
            out,
            "  against it by {:<10} {} odds {} of {}",
            text(&evidence["test"]),
            bar(share.clamp(0.0, 1.0), 20),
            odds_text(odds),
            odds_text(limit)
        );
    }
    out.extend(notes(rollout).into_iter().map(|line| format!("  {line}\n")));
    out
}

/// What else is to be said about a rollout, a line each.
fn notes(rollout: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for variant in ["stable", "candidate"] {
        lines.extend(variant_notes(variant, &rollout[variant]));
    }
    let reason = text(&rollout["reason"]);
    if !reason.is_empty() {
        lines.push(format!("why: {reason}"));
    }
    lines.extend(rollout["error"].as_str().map(|error| format!("ERROR: {error}")));
    for variant in ["stable", "candidate"] {
        let error = rollout[variant]["last_error"].as_str();
        // The reason may have said so.
        let error = error.filter(|error| !reason.contains(*error));
        lines.extend(error.map(|error| format!("newest failure of {variant}: {error}")));
    }
    let failure = rollout["hook_failure"].as_str();
    lines.extend(failure.map(|failure| format!("HOOK FAILED: {failure}")));
    lines.extend(routing_notes(rollout));
    lines
}

/// What is in no variant's line, of a rollout or of traffic that versions share.
pub(super) fn routing_notes(status: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let count = |key: &str| status[key].as_u64().unwrap_or(0);
    let (keyless, outside) = (count("keyless_requests"), count("outside_requests"));
    if keyless > 0 {
        let key = text(&status["key"]);
        lines.push(format!("{keyless} requests without {key}, each assigned on its own"));
    }
    if outside > 0 {
        lines.push(format!("{outside} requests that take no part in the experiment"));
    }
    if let Some(failure) = status["router_failure"].as_str() {
        let count = count("undecided_requests");
        lines.push(format!("ROUTER FAILED for {count} requests, which went to stable: {failure}"));
    }
    for (label, list) in [("NOT READY: ", "obstacles"), ("warning: ", "warnings")] {
        let texts = status[list].as_array().into_iter().flatten().filter_map(Value::as_str);
        lines.extend(texts.map(|text| format!("{label}{text}")));
    }
    lines
}

/// What a version did besides answering the requests that it was sent.
pub(super) fn variant_notes(name: &str, totals: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let count = |key: &str| totals[key].as_u64().unwrap_or(0);
    let copies = ["compared", "failed", "dropped"].map(|kind| count(&format!("shadow_{kind}")));
    let [compared, failed, dropped] = copies;
    if copies != [0; 3] {
        let differing = match count("shadow_differing") {
            0 => "none differ".to_string(),
            differing => {
                let by = number(&totals["shadow_max_difference"]);
                format!("{differing} differ, by up to {by:.3e}")
            }
        };
        lines.push(format!(
            "copies to {name}: {compared} compared, {differing}; {failed} failed, {dropped} not run"
        ));
    }
    let (named, errors) = (count("named_requests"), count("named_errors"));
    if named > 0 {
        lines.push(format!("requests that named {name}: {named}, of which {errors} failed"));
    }
    let fallbacks = count("fallbacks");
    if fallbacks > 0 {
        lines.push(format!("{fallbacks} requests to {name} were answered by the other version"));
    }
    lines
}

pub(super) fn variant_line(name: &str, totals: &Value) -> String {
    let (requests, errors) = (number(&totals["requests"]), number(&totals["errors"]));
    let latency: Vec<u64> =
        totals["latency"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    format!(
        "  {name:<10} {requests:>10} {errors:>8} {:>6.2} % {:>10} {:>10}",
        100.0 * errors / requests.max(1.0),
        quantile(&latency, 0.5),
        quantile(&latency, 0.99)
    )
}

/// The upper bound of the bucket in which this share of the requests ends.
fn quantile(latency: &[u64], share: f64) -> String {
    let total: u64 = latency.iter().sum();
    let mut so_far = 0;
    let bucket = latency.iter().position(|count| {
        so_far += count;
        total > 0 && so_far as f64 >= share * total as f64
    });
    match bucket.map(|index| 10.0 * (index as f64 / 4.0).exp2()) {
        None => "-".to_string(),
        Some(us) if us < 1e3 => format!("{us:.0} µs"),
        Some(us) => format!("{:.1} ms", us / 1e3),
    }
}

fn bar(share: f64, width: usize) -> String {
    let full = (share * width as f64).round() as usize;
    format!("[{}{}]", "█".repeat(full), "·".repeat(width.saturating_sub(full)))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_with_and_without_their_sign() {
        for text in ["25", "25%", " 25 %"] {
            assert_eq!(percent(text).unwrap(), 25.0);
        }
        assert!(percent("much").is_err());
    }

    #[test]
    fn the_view_shows_weight_errors_and_reason() {
        let mut latency = vec![0; 90];
        latency[12] = 100;
        let rollout = json!({
            "endpoint": "digits", "phase": "rolled_back", "strategy": {"plugin": "canary"},
            "candidate_version": 2, "stable_version": 1, "elapsed_ms": 3000, "weight_percent": 5.0,
            "stable": {"requests": 100, "errors": 1, "latency": latency},
            "candidate": {
                "requests": 10, "errors": 5, "latency": [], "last_error": "it broke",
                "named_requests": 4, "named_errors": 1, "fallbacks": 2, "shadow_compared": 9,
                "shadow_differing": 2, "shadow_max_difference": 0.5, "shadow_failed": 1,
            },
            "evidence": [{"test": "errors", "odds": 40.0, "limit": 40.0}],
            "reason": "it fails", "error": null, "key": "header:user", "keyless_requests": 7,
            "outside_requests": 3, "hook_failure": "no answer", "warnings": ["no key"],
            "obstacles": ["version 2: it is gone"],
        });
        let text = view(&rollout);
        for want in [
            "rolled back with canary",
            "5 %",
            "50.00 %",
            "80 µs",
            "why: it fails",
            "it broke",
            "7 requests without header:user",
            "3 requests that take no part",
            "requests that named candidate: 4, of which 1 failed",
            "copies to candidate: 9 compared, 2 differ, by up to 5.000e-1; 1 failed, 0 not run",
            "2 requests to candidate were answered by the other version",
            "HOOK FAILED: no answer",
            "warning: no key",
            "NOT READY: version 2: it is gone",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
    }
}
