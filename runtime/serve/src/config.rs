use mortise_compute::Device;
use mortise_graph::GraphLimits;
use mortise_types::{Clock, RunControl, SystemClock};
use std::sync::Arc;
use std::time::Duration;

/// What bounds serving. Every field has a default that suits one machine.
#[derive(Clone)]
pub struct ServeConfig {
    /// Threads that run graphs too large to run where they arrive. Default:
    /// the number of cores.
    pub compute_threads: usize,
    /// Threads that run custom plugins. One endpoint holds at most all but one
    /// of them. Default: the number of cores, at least 2.
    pub plugin_threads: usize,
    /// Requests that one endpoint may have running and waiting. Default: 512.
    pub max_endpoint_requests: usize,
    /// Bytes of input tensors that all admitted requests may hold together.
    /// Default: 512 MiB.
    pub max_admitted_bytes: u64,
    /// Runs predicted to be shorter than this stay on the thread that received
    /// the request. Default: 200 µs.
    pub in_place_below: Duration,
    /// How long a request may take, from its arrival, when it names no
    /// deadline itself. Default: 30 s.
    pub default_timeout: Duration,
    /// Iterations of ONNX loops in one request. Default: 1,000,000.
    pub max_loop_iterations: u64,
    /// How long a replaced revision is kept for its open sequences. Default:
    /// 60 s.
    pub sequence_drain_timeout: Duration,
    /// Bounds on the graphs that plugins build.
    pub graph_limits: GraphLimits,
    /// What runs the graphs. Default: the CPU, on `compute_threads` threads.
    pub device: Option<Arc<dyn Device>>,
    pub clock: Arc<dyn Clock>,
    /// Runs first on the thread that drops old revisions, to lower its
    /// priority.
    pub on_background_thread: fn(),
    /// Runs first on threads whose work may wait for as long as there is any
    /// other.
    pub on_idle_thread: fn(),
}

impl Default for ServeConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            compute_threads: cores,
            plugin_threads: cores.max(2),
            max_endpoint_requests: 512,
            max_admitted_bytes: 512 << 20,
            in_place_below: Duration::from_micros(200),
            default_timeout: Duration::from_secs(30),
            max_loop_iterations: RunControl::DEFAULT_LOOP_ITERATIONS,
            sequence_drain_timeout: Duration::from_secs(60),
            graph_limits: GraphLimits::default(),
            device: None,
            clock: Arc::new(SystemClock),
            on_background_thread: || {},
            on_idle_thread: || {},
        }
    }
}
