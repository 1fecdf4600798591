//! What came of the requests.

use anyhow::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Latencies that are kept for the percentiles.
const MAX_LATENCIES: usize = 1_000_000;

/// Different reasons that are counted one by one: messages may name anything,
/// and a list of all of them would have no bound.
const MAX_REASONS: usize = 8;

/// Reasons that are printed; `--json` has all that are kept.
const SHOWN_REASONS: usize = 3;

#[derive(Default)]
pub(super) struct Tally {
    answered: u64,
    failed: u64,
    /// Requests that were meant to be refused, and count as neither.
    spoilt: u64,
    /// Requests that were due while all connections waited for answers.
    pub(super) late: u64,
    by_version: BTreeMap<String, u64>,
    latencies_us: Vec<u32>,
    reasons: BTreeMap<String, u64>,
    other_reasons: u64,
}

impl Tally {
    pub(super) fn count(&mut self, spoilt: bool, answer: &Result<Value>, took: Duration) {
        match answer {
            _ if spoilt => self.spoilt += 1,
            Ok(answer) => self.succeeded(answer, took),
            Err(error) => self.went_wrong(error),
        }
    }

    fn succeeded(&mut self, answer: &Value, took: Duration) {
        self.answered += 1;
        let version = answer["model_version"].as_str().unwrap_or("?");
        *self.by_version.entry(version.to_string()).or_default() += 1;
        if self.latencies_us.len() < MAX_LATENCIES {
            self.latencies_us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }

    fn went_wrong(&mut self, error: &Error) {
        self.failed += 1;
        let reason = format!("{error:#}");
        let has_room = self.reasons.len() < MAX_REASONS;
        match self.reasons.get_mut(&reason) {
            Some(count) => *count += 1,
            None if has_room => drop(self.reasons.insert(reason, 1)),
            None => self.other_reasons += 1,
        }
    }

    /// `90 answered, 2 failed, 8 spoilt on purpose; v1: 60, v2: 30`
    pub(super) fn line(&self) -> String {
        let mut line = format!("{} answered, {} failed", self.answered, self.failed);
        if self.spoilt > 0 {
            line.push_str(&format!(", {} spoilt on purpose", self.spoilt));
        }
        let shares: Vec<String> =
            self.by_version.iter().map(|(version, count)| format!("v{version}: {count}")).collect();
        if !shares.is_empty() {
            line.push_str(&format!("; {}", shares.join(", ")));
        }
        line
    }

    pub(super) fn summary(&mut self, took: Duration) -> String {
        let mut lines = vec![format!("{} in {:.1} s", self.line(), took.as_secs_f64())];
        if let (Some(p50), Some(p99)) = (self.latency_us(0.5), self.latency_us(0.99)) {
            lines.push(format!("p50 {p50} µs, p99 {p99} µs"));
        }
        if self.late > 0 {
            let late = self.late;
            lines.push(format!(
                "{late} requests were sent late: the server or this client is too slow"
            ));
        }
        let shown = self.failures().into_iter().take(SHOWN_REASONS);
        lines.extend(shown.map(|(reason, count)| format!("{count} failed: {reason}")));
        lines.join("\n")
    }

    pub(super) fn json(&mut self, took: Duration) -> Value {
        let (p50_us, p99_us) = (self.latency_us(0.5), self.latency_us(0.99));
        let failures = self.failures().into_iter();
        let failures = failures.map(|(reason, count)| json!({"reason": reason, "count": count}));
        json!({
            "answered": self.answered,
            "failed": self.failed,
            "spoilt": self.spoilt,
            "late": self.late,
            "by_version": self.by_version,
            "p50_us": p50_us,
            "p99_us": p99_us,
            "seconds": took.as_secs_f64(),
            "failures": failures.collect::<Vec<_>>(),
        })
    }

    /// `None` when nothing was answered.
    fn latency_us(&mut self, share: f64) -> Option<u32> {
        let rank = (self.latencies_us.len() as f64 * share) as usize;
        (rank < self.latencies_us.len()).then(|| *self.latencies_us.select_nth_unstable(rank).1)
    }

    /// Why requests failed, the commonest reason first.
    fn failures(&self) -> Vec<(&str, u64)> {
        let mut failures: Vec<(&str, u64)> =
            self.reasons.iter().map(|(reason, &count)| (reason.as_str(), count)).collect();
        failures.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        if self.other_reasons > 0 {
            failures.push(("for other reasons", self.other_reasons));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(outcomes: &[(bool, Result<&str, &str>)]) -> Tally {
        let mut tally = Tally::default();
        for (index, (spoilt, outcome)) in outcomes.iter().enumerate() {
            let answer = outcome
                .map(|version| json!({"model_version": version}))
                .map_err(|reason| Error::msg(reason.to_string()));
            tally.count(*spoilt, &answer, Duration::from_micros(index as u64));
        }
        tally
    }

    #[test]
    fn failures_have_reasons_and_spoilt_requests_are_apart() {
        let mut tally = tally(&[
            (false, Ok("1")),
            (false, Ok("2")),
            (false, Err("rare")),
            (false, Err("often")),
            (true, Err("as it was meant to be")),
            (false, Err("often")),
        ]);
        let took = Duration::from_secs(2);
        assert_eq!(
            tally.summary(took),
            "2 answered, 3 failed, 1 spoilt on purpose; v1: 1, v2: 1 in 2.0 s\n\
             p50 1 µs, p99 1 µs\n2 failed: often\n1 failed: rare"
        );
        assert_eq!(
            tally.json(took),
            json!({
                "answered": 2, "failed": 3, "spoilt": 1, "late": 0,
                "by_version": {"1": 1, "2": 1}, "p50_us": 1, "p99_us": 1, "seconds": 2.0,
                "failures": [{"reason": "often", "count": 2}, {"reason": "rare", "count": 1}],
            })
        );
    }

    #[test]
    fn reasons_are_bounded_and_silence_has_no_latency() {
        let reasons: Vec<String> = (0..20).map(|number| format!("reason {number}")).collect();
        let outcomes: Vec<_> = reasons.iter().map(|reason| (false, Err(reason.as_str()))).collect();
        let mut tally = tally(&outcomes);
        let failures = tally.failures();
        assert_eq!(failures.len(), MAX_REASONS + 1);
        assert_eq!(failures.last(), Some(&("for other reasons", 12)));
        assert_eq!(tally.json(Duration::ZERO)["p50_us"], Value::Null);
        assert!(!tally.summary(Duration::ZERO).contains("p50"));
    }
}
