// Softmax and its logarithm along one axis.
//
// Bindings: 0 x (f32), 1 out (f32).
// Shapes: [outer, length, inner], row-major; the axis is the middle one.
// Limits: any length below 2^31; a row with NaN or +infinity is NaN throughout.
// include: common.wgsl

struct Params { rows: u32, length: u32, inner: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;

// Threads along a row; a power of two up to 256.
const LANES: u32 = 32u;
const LOGARITHM: u32 = 0u;
// include: lanes.wgsl

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % LANES;
    for (var first = group.x * GROUP_ROWS; first < p.rows; first += groups.x * GROUP_ROWS) {
        let row = first + thread / LANES;
        let start = (row / p.inner) * p.length * p.inner + row % p.inner;
        let end = select(0u, p.length, row < p.rows);
        var largest = LOWEST;
        for (var at = lane; at < end; at += LANES) { largest = max(largest, input[start + at * p.inner]); }
        largest = lanes_max(thread, largest);
        var sum = 0.0;
        for (var at = lane; at < end; at += LANES) { sum += exp(input[start + at * p.inner] - largest); }
        sum = lanes_sum(thread, sum);
        for (var at = lane; at < end; at += LANES) {
            let value = input[start + at * p.inner] - largest;
            if LOGARITHM == 1u {
                output[start + at * p.inner] = value - log(sum);
            } else {
                output[start + at * p.inner] = exp(value) / sum;
            }
        }
    }
}
