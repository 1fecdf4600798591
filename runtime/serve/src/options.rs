use std::collections::BTreeMap;
use std::time::Duration;

/// How one version wants to be served. Part of the version: immutable, and
/// swapped with it. The defaults need no tuning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServingOptions {
    pub batching: BatchOptions,
    /// Answers kept by the digest of their inputs; `None` keeps none.
    pub cache: Option<CacheOptions>,
    pub rate_limits: RateLimits,
    /// Tensors that the host keeps between the requests of a sequence.
    pub sequence: SequenceOptions,
}

/// How requests wait, and which of them run together.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchOptions {
    /// Whether requests may be merged where that is proven to be safe. Default:
    /// yes.
    pub merge: bool,
    /// Most rows of a merged run. `None`: [`BatchOptions::DEFAULT_ROWS`], or
    /// fewer where more were measured not to pay. When given, requests of more
    /// rows are refused.
    pub max_batch_size: Option<usize>,
    /// Row counts at which a run begins without waiting for more; ascending.
    /// Default: none.
    pub preferred_batch_sizes: Vec<usize>,
    /// How long the oldest request may be kept waiting for others although the
    /// device is free. `None`: not at all while requests come one by one, and
    /// for a fraction of the measured time of a run right after a merged one.
    pub max_queue_delay: Option<Duration>,
    /// Runs under way at once, at most as many as there are threads. `None`: one
    /// where merging pays, as many as there are threads where it does not.
    pub instances: Option<usize>,
    /// Requests that may wait. Default: the bound of the endpoint alone.
    pub max_queue_requests: usize,
    /// Bytes of inputs that may wait. Default: the bound of the server alone.
    pub max_queue_bytes: u64,
    /// Levels of priority, 1 the highest; 0 treats all requests alike.
    pub priority_levels: u64,
    /// The level of requests that name none. Default: the middle one.
    pub default_priority: Option<u64>,
    /// For every level without an entry of its own.
    pub level: LevelOptions,
    pub levels: BTreeMap<u64, LevelOptions>,
}

/// The waiting requests of one level of priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelOptions {
    /// Requests of the level that may wait. Default: no bound of its own.
    pub max_queue_requests: usize,
    /// How long a request may wait when it names no timeout. Default: until
    /// its deadline.
    pub default_timeout: Option<Duration>,
    /// Whether a request's own timeout counts. Default: yes.
    pub allow_timeout_override: bool,
    pub timeout_action: TimeoutAction,
}

/// What becomes of a request whose timeout passes while it waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeoutAction {
    /// It is answered with an error.
    #[default]
    Reject,
    /// It runs when nothing that is in time waits.
    Delay,
}

/// The response cache of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of inputs' digests and outputs that are kept.
    pub max_bytes: u64,
}

/// What may arrive; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateLimits {
    /// All requests together.
    pub endpoint: Option<Rate>,
    /// The requests of one client key; those without a key count as one client.
    pub client: Option<Rate>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub requests_per_second: f64,
    /// Requests that may come at once after a pause; at least 1.
    pub burst: f64,
}

/// State of models that have some.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceOptions {
    /// Empty for a model without state.
    pub state: Vec<StateTie>,
    /// A sequence that is silent for longer ends. Default: 60 s.
    pub idle_timeout: Duration,
    /// Sequences open at once. Default: 1,024.
    pub max_sequences: usize,
}

/// An output that becomes an input of the next request of the same sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTie {
    pub input: String,
    pub output: String,
    /// The zeros that a sequence begins with. `None`: the shape that the input
    /// declares, with as many rows as the request has.
    pub initial_shape: Option<Vec<usize>>,
}

impl BatchOptions {
    /// Most rows of a merged run when nothing is said.
    pub const DEFAULT_ROWS: usize = 64;

    pub(crate) fn max_rows(&self) -> usize {
        self.max_batch_size.unwrap_or(Self::DEFAULT_ROWS).max(1)
    }

    /// The level of a request that asks for `priority`.
    pub(crate) fn level_of(&self, priority: u64) -> u64 {
        match priority {
            _ if self.priority_levels == 0 => 0,
            1.. if priority <= self.priority_levels => priority,
            _ => self.default_priority.unwrap_or(self.priority_levels.div_ceil(2)),
        }
    }

    pub(crate) fn level_options(&self, level: u64) -> &LevelOptions {
        self.levels.get(&level).unwrap_or(&self.level)
    }
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            merge: true,
            max_batch_size: None,
            preferred_batch_sizes: Vec::new(),
            max_queue_delay: None,
            instances: None,
            max_queue_requests: usize::MAX,
            max_queue_bytes: u64::MAX,
            priority_levels: 0,
            default_priority: None,
            level: LevelOptions::default(),
            levels: BTreeMap::new(),
        }
    }
}

impl Default for LevelOptions {
    fn default() -> Self {
        Self {
            max_queue_requests: usize::MAX,
            default_timeout: None,
            allow_timeout_override: true,
            timeout_action: TimeoutAction::Reject,
        }
    }
}

impl Default for SequenceOptions {
    fn default() -> Self {
        Self { state: Vec::new(), idle_timeout: Duration::from_secs(60), max_sequences: 1_024 }
    }
}
