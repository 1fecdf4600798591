//! `mortise traffic …`: several versions of an endpoint at once.

use super::CliError;
use super::args::{TrafficArgs, TrafficCommand, TrafficSetArgs};
use super::client::{AdminClient, segment};
use super::deploy::{Component, config, split_pair};
use super::rollout::{percent, routing_notes, text, variant_line, variant_notes};
use super::show::{live_versions, print_json};
use anyhow::Result;
use serde_json::{Map, Value, json};

/// # Errors
/// When the endpoint has one version alone, or the server cannot be reached.
pub(super) fn run(args: &TrafficArgs) -> Result<()> {
    let (name, admin) = match &args.command {
        TrafficCommand::Status(args) => (&args.name, &args.admin),
        TrafficCommand::Set(args) => (&args.name, &args.admin),
        TrafficCommand::Promote(args) | TrafficCommand::Retire(args) => (&args.name, &args.admin),
    };
    let client = AdminClient::connect(admin)?;
    let path = format!("/v1/endpoints/{}/traffic", segment(name));
    let answer = match &args.command {
        TrafficCommand::Status(_) => client.get(&path)?,
        TrafficCommand::Set(args) => client.post_json(&path, &change(&client, args)?)?,
        TrafficCommand::Promote(args) => {
            client.post(&format!("{path}/promote/{}", args.version))?
        }
        TrafficCommand::Retire(args) => client.post(&format!("{path}/retire/{}", args.version))?,
    };
    match (admin.json, answer.is_array()) {
        (true, _) => return print_json(&answer),
        (false, true) => println!("{name}: {}", live_versions(&answer)),
        (false, false) => print!("{}", view(&answer)),
    }
    Ok(())
}

fn change(client: &AdminClient, args: &TrafficSetArgs) -> Result<Value> {
    let router = args.router.as_deref().map(|name| Component::parse(name).upload(client));
    Ok(json!({
        "router": router.transpose()?,
        "router_config": config(&args.router_set)?,
        "key": args.key,
        "shares": shares(&args.share)?,
    }))
}

/// `VERSION=PERCENT`
fn shares(pairs: &[String]) -> Result<Map<String, Value>> {
    let share = |pair: &String| {
        let (version, share) = split_pair(pair, "--share")?;
        let version: u64 = version.trim().parse().map_err(|_| {
            let message = format!("\"{version}\" is no version");
            CliError::new(message, "write --share VERSION=PERCENT, such as 2=30%")
        })?;
        Ok((version.to_string(), percent(share)?.into()))
    };
    pairs.iter().map(share).collect()
}

fn view(traffic: &Value) -> String {
    let key = traffic["key"].as_str().map(|key| format!(", users by {key}")).unwrap_or_default();
    let mut lines = vec![
        format!("{}: {}{key}", text(&traffic["endpoint"]), text(&traffic["router"]["plugin"])),
        format!(
            "  {:<18} {:>10} {:>8} {:>8} {:>10} {:>10}",
            "", "requests", "errors", "rate", "p50", "p99"
        ),
    ];
    // Some routers divide the traffic by rules of their own.
    let has_shares = traffic["router_follows_weights"] != false;
    let mut notes = Vec::new();
    for version in traffic["versions"].as_array().into_iter().flatten() {
        let (number, totals) = (&version["version"], &version["totals"]);
        let stable = if version["variant"] == "stable" { " stable" } else { "" };
        let share = version["weight_percent"].as_f64().filter(|_| has_shares);
        let share = share.map(|share| format!(" {share} %")).unwrap_or_default();
        lines.push(variant_line(&format!("{:<18}", format!("{number}{stable}{share}")), totals));
        notes.extend(variant_notes(&format!("version {number}"), totals));
        let error = totals["last_error"].as_str();
        notes.extend(error.map(|error| format!("newest failure of version {number}: {error}")));
    }
    notes.extend(routing_notes(traffic));
    notes.extend(traffic["error"].as_str().map(|error| format!("ERROR: {error}")));
    lines.extend(notes.into_iter().map(|note| format!("  {note}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_versions_with_percentages() {
        let read = |pair: &str| shares(&[pair.to_owned()]);
        assert_eq!(json!(read("2=30%").unwrap()), json!({"2": 30.0}));
        for (pair, want) in [("2", "no \"=\""), ("x=30", "no version"), ("2=much", "no share")] {
            let error = read(pair).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_view_shows_versions_shares_and_failures() {
        let version = |number: u64, variant: &str, percent: f64| {
            json!({"version": number, "variant": variant, "weight_percent": percent,
                "totals": {"requests": 10, "errors": number, "last_error": "it broke"}})
        };
        let text = view(&json!({
            "endpoint": "m", "router": {"plugin": "bandit"}, "key": "header:user",
            "versions": [version(1, "stable", 50.0), version(3, "version-3", 50.0)],
            "keyless_requests": 7, "undecided_requests": 9, "router_failure": "it trapped",
            "error": null, "warnings": [],
        }));
        for want in [
            "m: bandit, users by header:user",
            "1 stable 50 %",
            "3 50 %",
            "30.00 %",
            "newest failure of version 3: it broke",
            "7 requests without header:user",
            "ROUTER FAILED for 9 requests, which went to stable: it trapped",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
    }
}
