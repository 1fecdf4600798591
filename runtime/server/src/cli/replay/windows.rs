//! Windows through a strategy. A record is what `mortise rollout status NAME
//! --watch --json` prints, whose counts are sums: a window is what two records
//! differ by.

use super::{Policy, Records, Subject, print, read};
use crate::cli::show::odds;
use anyhow::{Context, Result};
use mortise_host::{Action, Moments, Observation, StrategyPlugin, Verdict, Window};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;

/// A rollout's status, as far as a strategy sees it.
#[derive(Clone, Default, Deserialize)]
struct Record {
    elapsed_ms: u64,
    stable: Totals,
    candidate: Totals,
}

#[derive(Clone, Default, Deserialize)]
struct Totals {
    requests: u64,
    errors: u64,
    #[serde(default)]
    latency: Vec<u64>,
    #[serde(default)]
    metrics: BTreeMap<String, Sums>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Sums {
    count: u64,
    sum: f64,
    sum_of_squares: f64,
}

/// Follows the strategy's decisions, not those of the recording, until it ends
/// the rollout.
pub(super) fn replay(
    policy: &Policy,
    records: Records,
    as_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let strategy = StrategyPlugin::load(&policy.host, &policy.compiled, policy.request())?;
    let plan = strategy.begin(None)?;
    let (mut weight, mut state) = (plan.weight, plan.state);
    let mut before = Record::default();
    for (record, number) in records.zip(1u64..) {
        let record = record.with_context(|| format!("record {number} is no JSON"))?;
        let now: Record = read(record, number, Subject::Windows)?;
        if now.elapsed_ms == before.elapsed_ms && number > 1 {
            // The strategy was not asked in between.
            continue;
        }
        let observed = observation(&before, &now, weight);
        let verdict = strategy.evaluate(&observed, &state)?;
        let line = match as_json {
            true => decision_json(number, weight, &observed, &verdict).to_string(),
            false => decision_text(number, weight, &observed, &verdict),
        };
        if !print(out, &line)? {
            return Ok(());
        }
        match verdict.action {
            Action::Hold => {}
            Action::SetWeight(next) => weight = next,
            Action::Promote | Action::Rollback => return Ok(()),
        }
        (state, before) = (verdict.state, now);
    }
    Ok(())
}

fn observation(before: &Record, now: &Record, weight: u32) -> Observation {
    Observation {
        elapsed_ms: now.elapsed_ms,
        weight,
        stable: window(&before.stable, &now.stable),
        candidate: window(&before.candidate, &now.candidate),
        findings: Vec::new(),
    }
}

fn window(before: &Totals, now: &Totals) -> Window {
    let earlier = before.latency.iter().copied().chain(std::iter::repeat(0));
    let moments = |(name, now): (&String, &Sums)| {
        let before = before.metrics.get(name).copied().unwrap_or_default();
        Moments {
            name: name.clone(),
            count: now.count.saturating_sub(before.count),
            sum: now.sum - before.sum,
            sum_of_squares: now.sum_of_squares - before.sum_of_squares,
        }
    };
    Window {
        requests: now.requests.saturating_sub(before.requests),
        errors: now.errors.saturating_sub(before.errors),
        latency: now
            .latency
            .iter()
            .zip(earlier)
            .map(|(now, was)| now.saturating_sub(was))
            .collect(),
        metrics: now.metrics.iter().map(moments).collect(),
    }
}

fn action(verdict: &Verdict) -> String {
    match verdict.action {
        Action::Hold => "hold".to_string(),
        Action::SetWeight(weight) => format!("set_weight {} %", f64::from(weight) / 100.0),
        Action::Promote => "promote".to_string(),
        Action::Rollback => "rollback".to_string(),
    }
}

fn decision_text(number: u64, weight: u32, observed: &Observation, verdict: &Verdict) -> String {
    let evidence: Vec<String> = verdict
        .evidence
        .iter()
        .map(|it| format!("{} {}/{}", it.test, odds(it.odds), odds(it.limit)))
        .collect();
    let failed = |window: &Window| format!("{}/{}", window.errors, window.requests);
    format!(
        "{number:>5} {:>8.1} s {:>6} % stable {} candidate {} [{}] {}: {}",
        observed.elapsed_ms as f64 / 1e3,
        f64::from(weight) / 100.0,
        failed(&observed.stable),
        failed(&observed.candidate),
        evidence.join(", "),
        action(verdict),
        verdict.reason
    )
}

fn decision_json(number: u64, weight: u32, observed: &Observation, verdict: &Verdict) -> Value {
    let evidence = verdict
        .evidence
        .iter()
        .map(|it| json!({"test": it.test, "odds": it.odds, "limit": it.limit}));
    json!({
        "record": number,
        "elapsed_ms": observed.elapsed_ms,
        "weight_percent": f64::from(weight) / 100.0,
        "action": action(verdict),
        "reason": verdict.reason,
        "evidence": evidence.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_what_two_records_differ_by() {
        let record = |text: &str| serde_json::from_str::<Record>(text).unwrap();
        let before = record(
            r#"{"elapsed_ms": 100, "tick": 1, "stable": {"requests": 10, "errors": 1},
                "candidate": {"requests": 4, "errors": 0, "latency": [1, 3],
                    "metrics": {"m": {"count": 1, "sum": 2.0, "sum_of_squares": 4.0}}}}"#,
        );
        let now = record(
            r#"{"elapsed_ms": 200, "tick": 2, "stable": {"requests": 15, "errors": 1},
                "candidate": {"requests": 9, "errors": 2, "latency": [2, 6, 1],
                    "metrics": {"m": {"count": 3, "sum": 5.0, "sum_of_squares": 9.0}}}}"#,
        );
        let observed = observation(&before, &now, 500);
        assert_eq!((observed.stable.requests, observed.stable.errors), (5, 0));
        assert_eq!((observed.candidate.requests, observed.candidate.errors), (5, 2));
        assert_eq!(observed.candidate.latency, [1, 3, 1]);
        let moments = &observed.candidate.metrics[0];
        assert_eq!((moments.count, moments.sum, moments.sum_of_squares), (2, 3.0, 5.0));
    }
}
