use mortise_types::Error;
use std::fmt;
use std::time::Duration;

/// What one plugin may take. An error that a limit causes names the field and
/// its value. Limits without "per endpoint" hold for each instance alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginLimits {
    /// Time of one `predict` or `apply` spent inside the plugin. Time that the
    /// host spends running graphs for it does not count; the request's own
    /// deadline bounds both.
    pub call_timeout: Duration,
    /// Time that the host spends running graphs for one `load`, `predict` or
    /// `apply`.
    pub graph_timeout: Duration,
    /// Time of `load`, with the compiling of the graphs it builds.
    pub load_timeout: Duration,
    /// Linear memory in bytes, over all memories of an instance.
    pub memory_bytes: usize,
    /// Elements over all function tables of an instance.
    pub table_elements: usize,
    /// Tensors, graphs and builders that an instance holds at once.
    pub max_handles: usize,
    /// Graph builders and graphs that an instance holds at once.
    pub max_graphs: usize,
    /// Calls from the plugin into the host during one `predict` or `apply`.
    pub max_host_calls_per_call: u64,
    /// Calls from the plugin into the host during `load`.
    pub max_host_calls_per_load: u64,
    /// Bytes of tensors that a plugin made or received and still holds.
    pub max_tensor_bytes: usize,
    /// Bytes of one list that crosses the boundary in either direction.
    pub max_list_bytes: usize,
    /// Warm instances, per endpoint; as many calls run at once.
    pub instances: usize,
    /// Calls that wait for an instance, per endpoint; further ones are refused.
    pub max_waiting_calls: usize,
    /// Bytes of one log line; the rest is cut off.
    pub log_line_bytes: usize,
    /// Log lines per second, per endpoint, after a burst of as many; the rest
    /// are dropped and counted.
    pub log_lines_per_second: u32,
    /// Nodes of one graph, subgraphs included.
    pub max_graph_nodes: usize,
    /// Values of one graph, subgraphs included.
    pub max_graph_values: usize,
    /// Depth of subgraphs inside subgraphs.
    pub max_graph_nesting: usize,
    /// Bytes of names and attributes, other than tensors, of one graph.
    pub max_graph_attribute_bytes: usize,
    /// Bytes of constants and tensor attributes of one graph. Weights that lie
    /// in assets do not count.
    pub max_graph_constant_bytes: usize,
    /// Bytes that one graph takes of a device with memory of its own: weights,
    /// and the values of one run. Several runs at once do not count.
    pub max_graph_device_bytes: u64,
    /// Dispatches of one run of a graph on such a device.
    pub max_graph_dispatches: u64,
    /// Consecutive traps, timeouts or limits hit that put the plugin in
    /// quarantine.
    pub quarantine_after: u32,
    /// Length of the first quarantine; doubles each time in a row.
    pub quarantine_backoff: Duration,
    /// Longest quarantine.
    pub quarantine_backoff_max: Duration,
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(1),
            graph_timeout: Duration::from_secs(30),
            load_timeout: Duration::from_secs(60),
            memory_bytes: 256 << 20,
            table_elements: 100_000,
            max_handles: 10_000,
            max_graphs: 16,
            max_host_calls_per_call: 1_000_000,
            max_host_calls_per_load: 10_000_000,
            max_tensor_bytes: 1 << 30,
            max_list_bytes: 64 << 20,
            instances: 4,
            max_waiting_calls: 256,
            log_line_bytes: 4096,
            log_lines_per_second: 100,
            max_graph_nodes: 100_000,
            max_graph_values: 500_000,
            max_graph_nesting: 16,
            max_graph_attribute_bytes: 64 << 20,
            max_graph_constant_bytes: 256 << 20,
            max_graph_device_bytes: 8 << 30,
            max_graph_dispatches: 100_000,
            quarantine_after: 3,
            quarantine_backoff: Duration::from_secs(1),
            quarantine_backoff_max: Duration::from_secs(60),
        }
    }
}

/// A field of [`PluginLimits`] that was hit.
#[derive(Clone, Debug)]
pub(crate) struct LimitHit {
    pub name: &'static str,
    value: String,
}

impl LimitHit {
    pub(crate) fn count(name: &'static str, limit: impl fmt::Display) -> Self {
        Self { name, value: limit.to_string() }
    }

    pub(crate) fn time(name: &'static str, limit: Duration) -> Self {
        Self { name, value: format!("{} ms", limit.as_millis()) }
    }
}

impl fmt::Display for LimitHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the limit {} = {} was hit", self.name, self.value)
    }
}

/// Why the host does not do what a plugin asks for.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    Limit(LimitHit),
    Other(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<LimitHit> for Refusal {
    fn from(hit: LimitHit) -> Self {
        Self::Limit(hit)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Limit(hit) => Error::limit(hit.to_string()),
            Refusal::Other(error) => error,
        }
    }
}
