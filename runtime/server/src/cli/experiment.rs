//! `mortise experiment …`: what an experiment has shown so far, and what came of its
//! answers.

use super::CliError;
use super::args::{ExperimentArgs, ExperimentCommand, ExperimentRecordArgs, NameArgs};
use super::client::{AdminClient, segment};
use super::deploy::split_pair;
use super::rollout::{routing_notes, variant_notes};
use super::show::print_json;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Two-sided 95 % of the normal distribution.
const SCORE: f64 = 1.96;

/// A mismatch of samples that is less likely than this by chance is told.
const MISMATCH: f64 = 0.001;

/// # Errors
/// When the endpoint has no rollout, or the server cannot be reached.
pub(super) fn run(args: &ExperimentArgs) -> Result<()> {
    match &args.command {
        ExperimentCommand::Report(args) => show_report(args),
        ExperimentCommand::Record(args) => record(args),
    }
}

fn record(args: &ExperimentRecordArgs) -> Result<()> {
    let client = AdminClient::connect(&args.admin)?;
    let reports = match &args.file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the reports {}", path.display()))?;
            serde_json::from_str(&text)
                .with_context(|| format!("{} is not JSON", path.display()))?
        }
        None => reports(args.version.unwrap_or_default(), &args.values)?,
    };
    let path = format!("/v1/endpoints/{}/metrics", segment(&args.name));
    let answer = client.post_json(&path, &reports)?;
    match args.admin.json {
        true => print_json(&answer),
        false => {
            println!("{}: {} values taken in", args.name, answer["accepted"]);
            Ok(())
        }
    }
}

/// `METRIC=VALUE`
fn reports(version: u64, values: &[String]) -> Result<Value> {
    let report = |pair: &String| {
        let (metric, value) = split_pair(pair, "METRIC=VALUE").map_err(|_| {
            CliError::new(
                format!("\"{pair}\" has no \"=\""),
                "write METRIC=VALUE, such as revenue=12.5",
            )
        })?;
        let value: f64 = value.trim().parse().map_err(|_| {
            CliError::new(
                format!("\"{value}\" is no number"),
                "write METRIC=VALUE, such as revenue=12.5",
            )
        })?;
        Ok(json!({"version": version, "metric": metric, "value": value}))
    };
    values.iter().map(report).collect()
}

fn show_report(args: &NameArgs) -> Result<()> {
    let client = AdminClient::connect(&args.admin)?;
    let endpoint = client.get(&format!("/v1/endpoints/{}", segment(&args.name)))?;
    let path = |what: &str| format!("/v1/endpoints/{}/{what}", segment(&args.name));
    // Two versions of a rollout, or several outside of one.
    let is_shared = endpoint["versions"].as_array().is_some_and(|it| it.len() > 1);
    let reports = match is_shared && endpoint["rollout"].is_null() {
        true => treatments(&client.get(&path("traffic"))?).iter().map(report).collect(),
        false => report(&client.get(&path("rollout"))?).map(|report| vec![report]),
    };
    let reports: Vec<Value> = reports?;
    match (args.admin.json, reports.as_slice()) {
        (true, [only]) => print_json(only),
        (true, _) => print_json(&reports.into()),
        (false, _) => {
            print!("{}", reports.iter().map(text).collect::<String>());
            Ok(())
        }
    }
}

/// Each version beside the stable one, with it, in the form of a rollout.
fn treatments(traffic: &Value) -> Vec<Value> {
    let versions = traffic["versions"].as_array().map_or(&[][..], Vec::as_slice);
    let Some((stable, sides)) = versions.split_first() else { return Vec::new() };
    let others = |side: &Value| -> Vec<Value> {
        let others = sides.iter().filter(|other| other["version"] != side["version"]);
        others
            .map(|other| {
                json!({"version": other["version"], "weight_percent": other["weight_percent"]})
            })
            .collect()
    };
    let treatment = |side: &Value| {
        json!({
            "endpoint": traffic["endpoint"],
            "router": traffic["router"],
            "weight_percent": side["weight_percent"],
            "key": traffic["key"],
            "keyless_requests": traffic["keyless_requests"],
            "undecided_requests": traffic["undecided_requests"],
            "outside_requests": traffic["outside_requests"],
            "router_failure": traffic["router_failure"],
            "warnings": traffic["warnings"],
            "stable_version": stable["version"],
            "candidate_version": side["version"],
            "stable": stable["totals"],
            "candidate": side["totals"],
            "sampled_keys": {
                "stable": stable["sampled_users"], "candidate": side["sampled_users"],
            },
            "others": others(side),
        })
    };
    sides.iter().map(treatment).collect()
}

/// One side of an experiment.
struct Side {
    version: u64,
    /// What the router calls its users, where it names groups.
    group: Option<String>,
    requests: f64,
    errors: f64,
    /// Users in the server's sample since weights last changed.
    sampled: f64,
}

impl Side {
    fn of(rollout: &Value, name: &str) -> Self {
        let number = |key: &str| rollout[name][key].as_f64().unwrap_or(0.0);
        let version = rollout[format!("{name}_version")].as_u64().unwrap_or(0);
        Self {
            group: group_of(&rollout["router"], version),
            version,
            requests: number("requests"),
            errors: number("errors"),
            sampled: rollout["sampled_keys"][name].as_f64().unwrap_or(0.0),
        }
    }

    fn describe(&self) -> Value {
        json!({
            "version": self.version,
            "group": self.group,
            "requests": self.requests as u64,
            "sampled_users": self.sampled as u64,
        })
    }
}

/// The names of the groups that get a version, where a router has some.
fn group_of(router: &Value, version: u64) -> Option<String> {
    let groups = router["config"]["groups"].as_object()?;
    let is_its = |(_, group): &(&String, &Value)| group["version"].as_u64() == Some(version);
    let names: Vec<&str> = groups.iter().filter(is_its).map(|(name, _)| name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(" and "))
}

fn report(rollout: &Value) -> Result<Value> {
    let (stable, candidate) = (Side::of(rollout, "stable"), Side::of(rollout, "candidate"));
    let total = stable.requests + candidate.requests;
    if total == 0.0 {
        bail!("no request has been answered in this experiment yet");
    }
    let mut metrics = vec![compare(
        "errors",
        &Sample::of_rate(stable.errors, stable.requests),
        &Sample::of_rate(candidate.errors, candidate.requests),
    )];
    metrics.extend(reported(rollout).into_iter().map(|name| {
        let of = |side: &str| Sample::of_sums(&rollout[side]["metrics"][name]);
        compare(name, &of("stable"), &of("candidate"))
    }));
    let expected = expected_share(rollout, candidate.version);
    let mut report = json!({
        "endpoint": rollout["endpoint"],
        "router": rollout["router"]["plugin"],
        "control": stable.describe(),
        "treatment": candidate.describe(),
        "metrics": metrics,
        "expected_share": expected,
        "request_share": candidate.requests / total,
        "notes": report_notes(rollout),
    });
    let users = stable.sampled + candidate.sampled;
    if users == 0.0 {
        return Ok(report);
    }
    report["user_share"] = (candidate.sampled / users).into();
    if let Some(share) = expected.filter(|share| *share > 0.0 && *share < 1.0) {
        let p = mismatch(candidate.sampled, users, share);
        report["sample_ratio_p"] = p.into();
        report["sample_ratio_mismatch"] = (p < MISMATCH).into();
    }
    Ok(report)
}

/// Metrics that were reported of either version.
fn reported(rollout: &Value) -> BTreeSet<&str> {
    let of = |side: &str| rollout[side]["metrics"].as_object().into_iter().flatten();
    of("stable").chain(of("candidate")).map(|(name, _)| name.as_str()).collect()
}

/// What is not in the comparison.
fn report_notes(rollout: &Value) -> Vec<String> {
    let mut notes = variant_notes("the treatment", &rollout["candidate"]);
    notes.extend(routing_notes(rollout));
    notes
}

/// The share that the treatment should have of the users of treatment and
/// control, where the router's configuration says so.
fn expected_share(rollout: &Value, version: u64) -> Option<f64> {
    let others = rollout["others"].as_array().map_or(&[][..], Vec::as_slice);
    let versions = others.len() + 2;
    // While the users were sampled, which may be over.
    let sampled_at = &rollout["sampled_keys"]["weight_percent"];
    let percent = if sampled_at.is_null() { &rollout["weight_percent"] } else { sampled_at };
    let own = share_of(rollout, versions, version, percent)?;
    let control = match stable_share(rollout, versions) {
        Some(share) => share,
        // The control's is what the others leave.
        None => {
            let mut rest = 0.0;
            for other in others {
                let version = other["version"].as_u64()?;
                rest += share_of(rollout, versions, version, &other["weight_percent"])?;
            }
            1.0 - rest - own
        }
    };
    Some(own / (own + control)).filter(|share| share.is_finite())
}

/// The share of a version beside the stable one of the users that take part.
fn share_of(rollout: &Value, versions: usize, version: u64, percent: &Value) -> Option<f64> {
    let router = &rollout["router"];
    match router["plugin"].as_str()? {
        "weighted" => Some(percent.as_f64()? / 100.0),
        "ab" => Some(group_share(&router["config"], version).unwrap_or(1.0 / versions as f64)),
        _ => None,
    }
}

/// That of the stable version, where a group of its own is named.
fn stable_share(rollout: &Value, versions: usize) -> Option<f64> {
    let (router, version) = (&rollout["router"], rollout["stable_version"].as_u64()?);
    if router["plugin"] != "ab" {
        return None;
    }
    let Some(share) = group_share(&router["config"], version) else {
        return Some(1.0 / versions as f64);
    };
    (share > 0.0).then_some(share)
}

/// `None` without groups.
fn group_share(config: &Value, version: u64) -> Option<f64> {
    let groups = config["groups"].as_object().filter(|groups| !groups.is_empty())?;
    let is_its = |group: &&Value| group["version"].as_u64() == Some(version);
    Some(groups.values().filter(is_its).filter_map(|it| it["share"].as_f64()).sum())
}

/// Count, mean and variance of one side.
struct Sample {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Sample {
    fn of_rate(events: f64, requests: f64) -> Self {
        let mean = events / requests.max(1.0);
        Self { count: requests, mean, variance: mean * (1.0 - mean) }
    }

    fn of_sums(sums: &Value) -> Self {
        let number = |key: &str| sums[key].as_f64().unwrap_or(0.0);
        let count = number("count");
        let mean = number("sum") / count.max(1.0);
        let variance = (number("sum_of_squares") / count.max(1.0) - mean * mean).max(0.0);
        Self { count, mean, variance }
    }
}

/// The lift of the treatment over the control, with its 95 % interval by the
/// delta method.
fn compare(name: &str, control: &Sample, treatment: &Sample) -> Value {
    let error = |sample: &Sample| sample.variance / sample.count.max(1.0);
    let difference = treatment.mean - control.mean;
    let margin = SCORE * (error(control) + error(treatment)).sqrt();
    let mut value = json!({
        "metric": name,
        "control": {"count": control.count, "mean": control.mean},
        "treatment": {"count": treatment.count, "mean": treatment.mean},
        "difference": difference,
        "interval": [difference - margin, difference + margin],
    });
    if control.mean != 0.0 {
        let ratio = treatment.mean / control.mean;
        let spread = (error(treatment) + ratio * ratio * error(control)).sqrt();
        let margin = SCORE * spread / control.mean.abs();
        value["lift"] = (ratio - 1.0).into();
        value["lift_interval"] = json!([ratio - 1.0 - margin, ratio - 1.0 + margin]);
    }
    value
}

/// Of users, not of requests, since those of one user are no independent draws:
/// how likely a share at least so far from the expected one is by chance: the
/// chi-square test with one degree of freedom.
fn mismatch(count: f64, total: f64, share: f64) -> f64 {
    let expected = total * share;
    let variance = total * share * (1.0 - share);
    let score = (count - expected).abs() / variance.sqrt();
    erfc(score / std::f64::consts::SQRT_2)
}

/// Abramowitz and Stegun 7.1.26, to seven digits.
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let sum = series.iter().rev().fold(0.0, |sum, factor| (sum + factor) * t);
    sum * (-x * x).exp()
}

fn text(report: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let side = |side: &Value| {
        let group = side["group"].as_str().map(|name| format!("{name}, ")).unwrap_or_default();
        format!("version {} ({group}{} requests)", side["version"], side["requests"])
    };
    let mut lines = vec![format!(
        "{}: {} against {}, split by {}",
        report["endpoint"].as_str().unwrap_or_default(),
        side(&report["treatment"]),
        side(&report["control"]),
        report["router"].as_str().unwrap_or_default()
    )];
    for metric in report["metrics"].as_array().into_iter().flatten() {
        let interval = &metric["lift_interval"];
        let counts = ["control", "treatment"].map(|side| number(&metric[side]["count"]));
        let lift = match metric["lift"].as_f64() {
            _ if counts.contains(&0.0) => "nothing to compare with yet".to_string(),
            None => format!("difference {:+.5}", number(&metric["difference"])),
            Some(lift) => format!(
                "lift {:+.2} %, 95 % interval {:+.2} to {:+.2} %",
                lift * 100.0,
                number(&interval[0]) * 100.0,
                number(&interval[1]) * 100.0
            ),
        };
        lines.push(format!(
            "  {:<14} {:.5} against {:.5}: {lift}",
            metric["metric"].as_str().unwrap_or_default(),
            number(&metric["treatment"]["mean"]),
            number(&metric["control"]["mean"])
        ));
    }
    let share = number(&report["request_share"]) * 100.0;
    match report["sample_ratio_p"].as_f64() {
        // Which share would be right, only some routers say.
        None => lines.push(format!("  share of requests {share:.2} %")),
        Some(p) => {
            let verdict = match report["sample_ratio_mismatch"] == true {
                true => "SAMPLE RATIO MISMATCH: do not trust the comparison",
                false => "as it should be",
            };
            let expected = number(&report["expected_share"]) * 100.0;
            let share = number(&report["user_share"]) * 100.0;
            lines.push(format!(
                "  share of users {share:.2} %, expected {expected:.2} %, p = {p:.4}: {verdict}"
            ));
        }
    }
    let notes = report["notes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(notes.map(|note| format!("  {note}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(treated_users: u64) -> Value {
        json!({
            "endpoint": "m", "stable_version": 1, "candidate_version": 2, "weight_percent": 0.0,
            "router": {"plugin": "ab", "config": {"experiment": "e"}},
            "stable": {"requests": 10_000, "errors": 100, "metrics": {
                "revenue": {"count": 10_000, "sum": 100_000.0, "sum_of_squares": 1_010_000.0}}},
            "sampled_keys": {"stable": 2_000, "candidate": treated_users},
            "candidate": {"requests": 10_000, "errors": 100, "metrics": {
                "revenue": {"count": 10_000, "sum": 110_000.0, "sum_of_squares": 1_220_000.0}}},
        })
    }

    #[test]
    fn lift_interval_and_sample_ratio_are_told() {
        let report = report(&rollout(2_050)).unwrap();
        let revenue = &report["metrics"][1];
        assert!((revenue["lift"].as_f64().unwrap() - 0.1).abs() < 1e-12);
        let interval = &revenue["lift_interval"];
        let (low, high) = (interval[0].as_f64().unwrap(), interval[1].as_f64().unwrap());
        // sqrt((1 + 1.21) / 10,000) / 10, times 1.96, on each side.
        assert!((high - low - 2.0 * 1.96 * 2.21f64.sqrt() / 1_000.0).abs() < 1e-9, "{low} {high}");
        assert_eq!(report["sample_ratio_mismatch"], false);
        assert!(text(&report).contains("lift +10.00 %"), "{}", text(&report));
    }

    #[test]
    fn several_versions_are_each_compared_with_the_stable_one() {
        let version = |version: u64, share: f64, users: u64| {
            json!({"version": version, "weight_percent": share, "sampled_users": users,
                "totals": {"requests": 1_000 * version, "errors": 10, "metrics": {}}})
        };
        let traffic = |router: Value| {
            json!({"endpoint": "m", "router": router, "versions": [
                version(1, 50.0, 500), version(2, 20.0, 200), version(3, 30.0, 300)]})
        };
        let treatments = treatments(&traffic(json!({"plugin": "weighted"})));
        let reports: Vec<Value> = treatments.iter().map(|it| report(it).unwrap()).collect();
        assert_eq!(reports.len(), 2);
        for (report, version, share) in [(&reports[0], 2, 2.0 / 7.0), (&reports[1], 3, 3.0 / 8.0)] {
            assert_eq!(report["treatment"]["version"], version);
            assert_eq!(report["control"]["version"], 1);
            assert!((report["expected_share"].as_f64().unwrap() - share).abs() < 1e-12, "{report}");
            assert_eq!(report["sample_ratio_mismatch"], false, "{report}");
        }
        // Even groups: of any two, each has half.
        let ab = json!({"plugin": "ab", "config": {"experiment": "e"}});
        let halves = super::treatments(&traffic(ab));
        let share = report(&halves[1]).unwrap()["expected_share"].as_f64().unwrap();
        assert!((share - 0.5).abs() < 1e-12, "{share}");
    }

    #[test]
    fn groups_are_named_and_what_takes_no_part_changes_no_share() {
        let mut rollout = rollout(1_000);
        rollout["outside_requests"] = 500.into();
        rollout["router"]["config"] = json!({
            "experiment": "e", "holdout": 0.1, "slice": [0.5, 1.0],
            "groups": {"old": {"version": 1, "share": 0.4}, "new": {"version": 2, "share": 0.2}},
        });
        let with_control = report(&rollout).unwrap();
        assert!((with_control["expected_share"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
        let text = text(&with_control);
        for want in [
            "version 2 (new, 10000 requests) against version 1 (old, 10000 requests)",
            "share of users 33.33 %, expected 33.33 %",
            "500 requests that take no part in the experiment",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
        // Without a group of its own the control is whoever is in none.
        rollout["router"]["config"]["groups"] = json!({"new": {"version": 2, "share": 0.2}});
        let share = report(&rollout).unwrap()["expected_share"].as_f64().unwrap();
        assert!((share - 0.2).abs() < 1e-12, "{share}");
    }

    #[test]
    fn the_ratio_is_that_of_the_weight_at_which_users_were_sampled() {
        let mut ended = rollout(500);
        ended["weight_percent"] = 100.0.into();
        ended["router"] = json!({"plugin": "weighted", "config": {}});
        ended["sampled_keys"]["weight_percent"] = 20.0.into();
        let report = report(&ended).unwrap();
        assert!((report["expected_share"].as_f64().unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(report["sample_ratio_mismatch"], false, "{report}");
    }

    #[test]
    fn values_are_reported_by_version_and_metric() {
        let pairs = ["revenue=12.5", "clicks=1"].map(String::from);
        let want = json!([
            {"version": 2, "metric": "revenue", "value": 12.5},
            {"version": 2, "metric": "clicks", "value": 1.0},
        ]);
        assert_eq!(reports(2, &pairs).unwrap(), want);
        for wrong in ["revenue", "revenue=much"] {
            assert!(reports(2, &[wrong.to_string()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mismatch_is_shouted() {
        let report = report(&rollout(2_400)).unwrap();
        assert_eq!(report["sample_ratio_mismatch"], true);
        assert!(text(&report).contains("MISMATCH"));
    }

    #[test]
    fn tails_are_those_of_the_table() {
        for (score, want) in [(1.96, 0.05), (3.29, 0.001), (0.0, 1.0)] {
            let p = erfc(score / std::f64::consts::SQRT_2);
            assert!((p - want).abs() < 1e-4, "{score}: {p}");
        }
    }
}
