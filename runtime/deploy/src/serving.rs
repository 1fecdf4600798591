//! How a version is served, as it is written in a deployment (`--serving
//! FILE.toml`) and kept in the store.
//!
//! Everything may be left out; the defaults need no tuning.
//!
//! ```toml
//! [batching]
//! enabled = true                   # merge where rows are proven not to mix
//! max_batch_size = 64              # rows; requests with more are then refused
//! preferred_batch_sizes = [8, 16]  # begin at these without waiting for more
//! max_queue_delay_us = 500         # wait that long for others; default: adapts
//! instances = 2                    # runs at once, up to serving.compute_threads; default: adapts
//! max_queue_requests = 100
//! max_queue_bytes = 16_777_216
//! priority_levels = 3              # 1 is the highest
//! default_priority = 2
//! default_timeout_us = 50_000      # for these four, see also [batching.levels.N]
//! allow_timeout_override = true    # whether a request's own timeout counts
//! timeout_action = "reject"        # or "delay": run when nothing in time waits
//! max_level_requests = 50
//!
//! [batching.levels.3]
//! max_level_requests = 10
//! timeout_action = "delay"
//!
//! [cache]
//! max_bytes = 67_108_864
//!
//! [rate_limit]
//! requests_per_second = 1000.0
//! burst = 100
//!
//! [client_rate_limit]              # for each API key; clients without one share one
//! requests_per_second = 10.0
//! burst = 20
//!
//! [sequence]
//! idle_timeout_ms = 60_000
//! max_sequences = 1_024
//!
//! [[sequence.state]]               # an output that the next request takes in
//! input = "hidden"
//! output = "hidden_out"
//! initial_shape = [1, 64]          # zeros; default: as the input declares
//!
//! [warm_up]
//! batch_sizes = [1, 16]            # generated inputs of so many rows
//! runs = 2                         # of each, and of each recorded example
//! ```

use mortise_serve::{
    BatchOptions, CacheOptions, LevelOptions, Rate, RateLimits, SequenceOptions, ServingOptions,
    StateTie, TimeoutAction,
};
use mortise_types::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServingInfo {
    #[serde(skip_serializing_if = "is_default")]
    pub batching: BatchingInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_rate_limit: Option<RateInfo>,
    #[serde(skip_serializing_if = "is_default")]
    pub sequence: SequenceInfo,
    #[serde(skip_serializing_if = "is_default")]
    pub warm_up: WarmUpInfo,
}

/// `[batching]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchingInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_size: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preferred_batch_sizes: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue_delay_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue_requests: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_levels: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_priority: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_timeout_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_timeout_override: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<TimeoutActionInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_level_requests: Option<usize>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub levels: BTreeMap<String, LevelInfo>,
}

/// `[batching.levels.N]`; what is left out is as in `[batching]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LevelInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_level_requests: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_timeout_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_timeout_override: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<TimeoutActionInfo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutActionInfo {
    Reject,
    Delay,
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheInfo {
    pub max_bytes: u64,
}

/// `[rate_limit]`, `[client_rate_limit]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateInfo {
    pub requests_per_second: f64,
    /// Default: what comes in a second, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<f64>,
}

/// `[sequence]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceInfo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub state: Vec<StateInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<usize>,
}

/// `[[sequence.state]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateInfo {
    pub input: String,
    pub output: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_shape: Option<Vec<usize>>,
}

/// `[warm_up]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarmUpInfo {
    /// Rows of generated inputs. Default: 1, unless there are examples.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub batch_sizes: Vec<usize>,
    /// Runs of each. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<usize>,
}

/// Bounds on what a warm-up may ask for.
const MAX_WARM_UP_RUNS: usize = 100;
const MAX_WARM_UP_ROWS: usize = 4_096;

/// Most levels of priority.
const MAX_LEVELS: u64 = 64;

impl ServingInfo {
    /// Reads `--serving FILE.toml`.
    ///
    /// # Errors
    /// `InvalidInput` naming the key that is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let info: Self = toml::from_str(text).map_err(|error| {
            Error::invalid(format!(
                "the serving options are not as documented: {}",
                error.to_string().trim()
            ))
        })?;
        info.resolve()?;
        Ok(info)
    }

    /// The options as the server uses them.
    ///
    /// # Errors
    /// `InvalidInput` naming the key that is wrong.
    pub fn resolve(&self) -> Result<ServingOptions> {
        self.warm_up.check()?;
        let rate = |info: &Option<RateInfo>, key| info.as_ref().map(|info| info.rate(key));
        Ok(ServingOptions {
            batching: self.batching.resolve()?,
            cache: self.cache.as_ref().map(|cache| CacheOptions { max_bytes: cache.max_bytes }),
            rate_limits: RateLimits {
                endpoint: rate(&self.rate_limit, "rate_limit").transpose()?,
                client: rate(&self.client_rate_limit, "client_rate_limit").transpose()?,
            },
            sequence: self.sequence.resolve()?,
        })
    }
}

impl BatchingInfo {
    fn resolve(&self) -> Result<BatchOptions> {
        let defaults = BatchOptions::default();
        self.check()?;
        let level = self.level(&LevelInfo::default(), &LevelOptions::default());
        let levels = self.levels.iter().map(|(number, info)| {
            let known = number.parse().ok().filter(|&n| (1..=self.levels_count()).contains(&n));
            let number = known.ok_or_else(|| {
                Error::invalid(format!(
                    "batching.levels.{number} is none of the priorities 1 to {}, which is \
                     priority_levels",
                    self.levels_count()
                ))
            })?;
            Ok((number, self.level(info, &level)))
        });
        Ok(BatchOptions {
            merge: self.enabled.unwrap_or(true),
            max_batch_size: self.max_batch_size,
            preferred_batch_sizes: self.preferred_batch_sizes.clone(),
            max_queue_delay: self.max_queue_delay_us.map(Duration::from_micros),
            instances: self.instances,
            max_queue_requests: self.max_queue_requests.unwrap_or(defaults.max_queue_requests),
            max_queue_bytes: self.max_queue_bytes.unwrap_or(defaults.max_queue_bytes),
            priority_levels: self.levels_count(),
            default_priority: self.default_priority,
            levels: levels.collect::<Result<_>>()?,
            level,
        })
    }

    fn levels_count(&self) -> u64 {
        self.priority_levels.unwrap_or(0)
    }

    fn level(&self, info: &LevelInfo, base: &LevelOptions) -> LevelOptions {
        let requests = info.max_level_requests.or(self.max_level_requests);
        let timeout = info.default_timeout_us.or(self.default_timeout_us);
        let overrides = info.allow_timeout_override.or(self.allow_timeout_override);
        let action = match info.timeout_action.or(self.timeout_action) {
            Some(TimeoutActionInfo::Reject) => TimeoutAction::Reject,
            Some(TimeoutActionInfo::Delay) => TimeoutAction::Delay,
            None => base.timeout_action,
        };
        LevelOptions {
            max_queue_requests: requests.unwrap_or(base.max_queue_requests),
            default_timeout: timeout.map(Duration::from_micros).or(base.default_timeout),
            allow_timeout_override: overrides.unwrap_or(base.allow_timeout_override),
            timeout_action: action,
        }
    }

    fn check(&self) -> Result<()> {
        let bounds = [
            ("max_batch_size", self.max_batch_size),
            ("instances", self.instances),
            ("max_queue_requests", self.max_queue_requests),
            ("max_level_requests", self.max_level_requests),
        ];
        if let Some((key, _)) = bounds.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::invalid(format!("batching.{key} must be at least 1")));
        }
        let sizes = &self.preferred_batch_sizes;
        let max = self.max_batch_size.unwrap_or(BatchOptions::DEFAULT_ROWS);
        if sizes.iter().any(|&size| size == 0 || size > max) {
            return Err(Error::invalid(format!(
                "batching.preferred_batch_sizes must be between 1 and max_batch_size = {max}, got \
                 {sizes:?}"
            )));
        }
        if self.levels_count() > MAX_LEVELS {
            return Err(Error::invalid(format!(
                "batching.priority_levels is at most {MAX_LEVELS}"
            )));
        }
        let default = self.default_priority;
        if default.is_some_and(|level| !(1..=self.levels_count()).contains(&level)) {
            return Err(Error::invalid(
                "batching.default_priority must be between 1 and batching.priority_levels",
            ));
        }
        Ok(())
    }
}

impl RateInfo {
    fn rate(&self, key: &str) -> Result<Rate> {
        let burst = self.burst.unwrap_or(self.requests_per_second.max(1.0));
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        if !is_positive(self.requests_per_second) || !burst.is_finite() || burst < 1.0 {
            return Err(Error::invalid(format!(
                "{key} needs a positive requests_per_second and a burst of at least 1"
            )));
        }
        Ok(Rate { requests_per_second: self.requests_per_second, burst })
    }
}

impl SequenceInfo {
    fn resolve(&self) -> Result<SequenceOptions> {
        let defaults = SequenceOptions::default();
        if self.idle_timeout_ms == Some(0) || self.max_sequences == Some(0) {
            return Err(Error::invalid(
                "sequence.idle_timeout_ms and sequence.max_sequences must be at least 1",
            ));
        }
        let tie = |state: &StateInfo| StateTie {
            input: state.input.clone(),
            output: state.output.clone(),
            initial_shape: state.initial_shape.clone(),
        };
        Ok(SequenceOptions {
            state: self.state.iter().map(tie).collect(),
            idle_timeout: self.idle_timeout_ms.map_or(defaults.idle_timeout, Duration::from_millis),
            max_sequences: self.max_sequences.unwrap_or(defaults.max_sequences),
        })
    }
}

impl WarmUpInfo {
    fn check(&self) -> Result<()> {
        let rows_fit = self.batch_sizes.iter().all(|rows| (1..=MAX_WARM_UP_ROWS).contains(rows));
        let runs_fit = self.runs.is_none_or(|runs| (1..=MAX_WARM_UP_RUNS).contains(&runs));
        match rows_fit && runs_fit && self.batch_sizes.len() <= MAX_WARM_UP_RUNS {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "warm_up takes up to {MAX_WARM_UP_RUNS} runs and batch_sizes, and 1 to \
                 {MAX_WARM_UP_ROWS} rows"
            ))),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in the module's documentation.
    fn documented() -> String {
        let source = include_str!("serving.rs");
        let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
        let lines: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        let text = lines.join("\n");
        text.split("```").nth(1).unwrap().strip_prefix("toml\n").unwrap().to_string()
    }

    #[test]
    fn the_documented_file_is_read_and_kept() {
        let info = ServingInfo::parse(&documented()).unwrap();
        let options = info.resolve().unwrap();
        assert_eq!(options.batching.max_queue_delay, Some(Duration::from_micros(500)));
        assert_eq!(options.batching.level.max_queue_requests, 50);
        let third = &options.batching.levels[&3];
        assert_eq!((third.max_queue_requests, third.timeout_action), (10, TimeoutAction::Delay));
        assert_eq!(third.default_timeout, Some(Duration::from_millis(50)));
        assert_eq!(options.sequence.state[0].initial_shape, Some(vec![1, 64]));
        let kept = serde_json::to_string(&info).unwrap();
        assert_eq!(serde_json::from_str::<ServingInfo>(&kept).unwrap(), info);
    }

    #[test]
    fn nothing_written_is_the_default() {
        let info = ServingInfo::parse("").unwrap();
        assert_eq!(info.resolve().unwrap(), ServingOptions::default());
        assert_eq!(serde_json::to_string(&info).unwrap(), "{}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases = [
            ("[batchin]\n", "unknown field `batchin`"),
            ("[batching]\nmax_batch_sise = 3", "unknown field `max_batch_sise`"),
            ("[batching]\nmax_batch_size = 0", "batching.max_batch_size must be at least 1"),
            ("[batching]\npreferred_batch_sizes = [99]", "between 1 and max_batch_size = 64"),
            ("[batching]\ndefault_priority = 1", "batching.default_priority"),
            ("[batching]\n[batching.levels.2]", "none of the priorities 1 to 0"),
            ("[rate_limit]\nrequests_per_second = 0", "positive requests_per_second"),
            ("[sequence]\nidle_timeout_ms = 0", "at least 1"),
            ("[warm_up]\nbatch_sizes = [0]", "warm_up takes"),
        ];
        for (text, want) in cases {
            let error = ServingInfo::parse(text).unwrap_err();
            assert!(error.message().contains(want), "{text}: {error}");
        }
    }
}
