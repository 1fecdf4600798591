// Reductions among the LANES threads that share a row. Every thread of the
// workgroup has to call them.
//
// Bindings: none of its own; whoever includes this sets LANES.
// Shapes: a workgroup has GROUP_ROWS rows of LANES threads.
// Limits: LANES is a power of two up to 256.

const THREADS: u32 = 256u;
const GROUP_ROWS: u32 = THREADS / LANES;
const LOWEST: f32 = -3.4028234663852886e38;

var<workgroup> shared_lanes: array<f32, THREADS>;

fn lanes_sum(thread: u32, value: f32) -> f32 {
    shared_lanes[thread] = value;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if thread % LANES < step { shared_lanes[thread] += shared_lanes[thread + step]; }
        workgroupBarrier();
    }
    let sum = shared_lanes[thread - thread % LANES];
    workgroupBarrier();
    return sum;
}

fn lanes_max(thread: u32, value: f32) -> f32 {
    shared_lanes[thread] = value;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if thread % LANES < step {
            shared_lanes[thread] = max(shared_lanes[thread], shared_lanes[thread + step]);
        }
        workgroupBarrier();
    }
    let largest = shared_lanes[thread - thread % LANES];
    workgroupBarrier();
    return largest;
}
