/// Bounds on what a graph may cost to plan and to run. Graphs come from
/// plugins, so each of these is reached by somebody's mistake or malice.
#[derive(Clone, Debug)]
pub struct GraphLimits {
    /// Nodes, those in subgraphs included. Default 100,000.
    pub max_nodes: usize,
    /// Depth of subgraphs inside subgraphs. Default 16.
    pub max_nesting: usize,
    /// Bytes that constant folding may produce in all. Default 256 MiB.
    pub max_folded_bytes: usize,
    /// Bytes of intermediate tensors alive at once. Default 1 GiB.
    pub max_arena_bytes: usize,
    /// Bytes of memory of a device with memory of its own: weights, and the
    /// intermediate tensors of one run. Default 8 GiB.
    pub max_device_bytes: u64,
    /// Dispatches of one run on such a device. Default 100,000.
    pub max_dispatches: u64,
    /// Iterations of all loops of one run. Default 1,000,000.
    pub max_loop_iterations: u64,
    /// Bytes of all weights. Default 8 GiB.
    pub max_weight_bytes: u64,
    /// Time that planning may take, constant folding included; a deployment may have little of a busy
    /// machine. Default 60 s.
    pub max_plan_time: std::time::Duration,
}

impl Default for GraphLimits {
    fn default() -> Self {
        Self {
            max_nodes: 100_000,
            max_nesting: 16,
            max_folded_bytes: 256 << 20,
            max_arena_bytes: 1 << 30,
            max_device_bytes: 8 << 30,
            max_dispatches: 100_000,
            max_loop_iterations: 1_000_000,
            max_weight_bytes: 8 << 30,
            max_plan_time: std::time::Duration::from_secs(60),
        }
    }
}
