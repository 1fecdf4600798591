use mortise_plugin_sdk::{Context, Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// All traffic.
pub(crate) const WHOLE: u32 = 10_000;

const MAX_STEPS: usize = 100;
const MAX_METRICS: usize = 16;
/// Between evaluations, at most, unless `check` says otherwise.
const LONGEST_CHECK_MS: u64 = 5_000;
const SHORTEST_CHECK_MS: u64 = 100;

/// The configuration, checked and in the units that are used.
pub(crate) struct Config {
    /// In parts of [`WHOLE`], ascending; at least one.
    pub(crate) steps: Vec<u32>,
    pub(crate) interval_ms: u64,
    pub(crate) check_ms: u64,
    pub(crate) min_samples: u64,
    pub(crate) alpha: f64,
    pub(crate) latency_tolerance: f64,
    pub(crate) metrics: BTreeMap<String, Good>,
}

/// Which direction of a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Good {
    Higher,
    Lower,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    steps: Vec<f64>,
    interval: Time,
    check: Option<Time>,
    min_samples: u64,
    alpha: f64,
    latency_tolerance: f64,
    metrics: BTreeMap<String, Good>,
}

/// `"60s"`, `"1.5m"`, `"500ms"`, or a number of seconds.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            steps: vec![1.0, 5.0, 25.0, 50.0, 100.0],
            interval: Time::Seconds(60.0),
            check: None,
            min_samples: 100,
            alpha: 0.05,
            latency_tolerance: 1.5,
            metrics: BTreeMap::new(),
        }
    }
}

impl Config {
    pub(crate) fn read(ctx: &Context) -> Result<Self> {
        let raw: Raw = ctx.config()?;
        let interval_ms = raw.interval.ms("interval")?;
        let usual = (interval_ms / 10).clamp(SHORTEST_CHECK_MS, LONGEST_CHECK_MS);
        let check_ms = raw.check.map_or(Ok(usual), |check| check.ms("check"))?;
        if !(raw.alpha > 0.0 && raw.alpha < 1.0) {
            return Err(Error::invalid("alpha must lie between 0 and 1"));
        }
        if !(raw.latency_tolerance >= 1.0 && raw.latency_tolerance <= 1_000.0) {
            return Err(Error::invalid("latency_tolerance must be a factor from 1 to 1000"));
        }
        if raw.metrics.len() > MAX_METRICS {
            return Err(Error::invalid(format!("at most {MAX_METRICS} metrics are tested")));
        }
        Ok(Self {
            steps: steps(&raw.steps)?,
            interval_ms,
            check_ms: check_ms.max(1),
            min_samples: raw.min_samples,
            alpha: raw.alpha,
            latency_tolerance: raw.latency_tolerance,
            metrics: raw.metrics,
        })
    }
}

fn steps(percents: &[f64]) -> Result<Vec<u32>> {
    let is_share = |percent: &f64| *percent > 0.0 && *percent <= 100.0;
    if percents.is_empty() || percents.len() > MAX_STEPS || !percents.iter().all(is_share) {
        return Err(Error::invalid(format!(
            "steps must be 1 to {MAX_STEPS} shares above 0 and up to 100 percent, such as [1, 5, \
             25, 50, 100]"
        )));
    }
    if !percents.is_sorted() {
        return Err(Error::invalid("steps must rise"));
    }
    Ok(percents.iter().map(|percent| ((percent * 100.0).round() as u32).max(1)).collect())
}

impl Time {
    fn ms(&self, key: &str) -> Result<u64> {
        let seconds = match self {
            Self::Seconds(seconds) => Some(*seconds),
            Self::Text(text) => parse_seconds(text),
        };
        let is_time = |seconds: &f64| *seconds >= 0.0 && *seconds <= 1e9;
        seconds.filter(is_time).map(|seconds| (seconds * 1e3).round() as u64).ok_or_else(|| {
            Error::invalid(format!("{key} must be a time such as 60s, 500ms, 5m or 1h"))
        })
    }
}

fn parse_seconds(text: &str) -> Option<f64> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    number.trim().parse::<f64>().ok().map(|number| number * factor)
}
