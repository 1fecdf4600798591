//! `mortise experiment report NAME`: what an experiment has shown so far.

use super::args::{ExperimentArgs, ExperimentCommand};
use super::client::{AdminClient, segment};
use super::show::print_json;
use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Two-sided 95 % of the normal distribution.
const SCORE: f64 = 1.96;

/// A mismatch of samples that is less likely than this by chance is told.
const MISMATCH: f64 = 0.001;

/// # Errors
/// When the endpoint has no rollout, or the server cannot be reached.
pub(super) fn run(args: &ExperimentArgs) -> Result<()> {
    let ExperimentCommand::Report(args) = &args.command;
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
    requests: f64,
    errors: f64,
    /// Users in the server's sample since weights last changed.
    sampled: f64,
}

impl Side {
    fn of(rollout: &Value, name: &str) -> Self {
        let number = |key: &str| rollout[name][key].as_f64().unwrap_or(0.0);
        Self {
            version: rollout[format!("{name}_version")].as_u64().unwrap_or(0),
            requests: number("requests"),
            errors: number("errors"),
            sampled: rollout["sampled_keys"][name].as_f64().unwrap_or(0.0),
        }
    }
}

fn report(rollout: &Value) -> Result<Value> {
    let (stable, candidate) = (Side::of(rollout, "stable"), Side::of(rollout, "candidate"));
    let total = stable.requests + candidate.requests;
    if total == 0.0 {
        bail!("no request has been answered in this experiment yet");
    }
    let expected = expected_share(rollout, candidate.version);
    let mut metrics = vec![compare(
        "errors",
        &Sample::of_rate(stable.errors, stable.requests),
        &Sample::of_rate(candidate.errors, candidate.requests),
    )];
    let reported = rollout["stable"]["metrics"].as_object().into_iter().flatten();
    metrics.extend(reported.map(|(name, sums)| {
        let other = &rollout["candidate"]["metrics"][name.as_str()];
        compare(name, &Sample::of_sums(sums), &Sample::of_sums(other))
    }));
    let mut report = json!({
        "endpoint": rollout["endpoint"],
        "router": rollout["router"]["plugin"],
        "control": {
            "version": stable.version, "requests": stable.requests, "sampled_users": stable.sampled,
        },
        "treatment": {
            "version": candidate.version, "requests": candidate.requests,
            "sampled_users": candidate.sampled,
        },
        "metrics": metrics,
        "expected_share": expected,
        "request_share": candidate.requests / total,
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

/// The share that the treatment should have of the users of treatment and
/// control, where the router's configuration says so.
fn expected_share(rollout: &Value, version: u64) -> Option<f64> {
    let others = rollout["others"].as_array().map_or(&[][..], Vec::as_slice);
    let versions = others.len() + 2;
    let own = share_of(rollout, versions, version, &rollout["weight_percent"])?;
    let mut rest = 0.0;
    for other in others {
        let version = other["version"].as_u64()?;
        rest += share_of(rollout, versions, version, &other["weight_percent"])?;
    }
    // What the others leave is the control's and the treatment's.
    Some(own / (1.0 - rest)).filter(|share| share.is_finite())
}

/// The share of all users that a version beside the stable one should have.
fn share_of(rollout: &Value, versions: usize, version: u64, percent: &Value) -> Option<f64> {
    let router = &rollout["router"];
    match router["plugin"].as_str()? {
        "weighted" => Some(percent.as_f64()? / 100.0),
        "ab" => {
            let config = &router["config"];
            let groups = config["groups"].as_object();
            let is_its = |group: &&Value| group["version"].as_u64() == Some(version);
            let share = match groups {
                None => 1.0 / versions as f64,
                Some(groups) => {
                    groups.values().filter(is_its).filter_map(|it| it["share"].as_f64()).sum()
                }
            };
            let bound =
                |index: usize, default: f64| config["slice"][index].as_f64().unwrap_or(default);
            let slice = bound(1, 1.0) - bound(0, 0.0);
            let holdout = config["holdout"].as_f64().unwrap_or(0.0);
            Some(share * slice * (1.0 - holdout))
        }
        _ => None,
    }
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
    let mut lines = vec![format!(
        "{}: version {} ({} requests) against version {} ({} requests), split by {}",
        report["endpoint"].as_str().unwrap_or_default(),
        report["treatment"]["version"],
        report["treatment"]["requests"],
        report["control"]["version"],
        report["control"]["requests"],
        report["router"].as_str().unwrap_or_default()
    )];
    for metric in report["metrics"].as_array().into_iter().flatten() {
        let interval = &metric["lift_interval"];
        let lift = match metric["lift"].as_f64() {
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
        None => lines
            .push(format!("  share of requests {share:.2} %; whether it is right is not known")),
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
