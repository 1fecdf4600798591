// Layer normalisation and its root-mean-square form over the last axis.
//
// Bindings: 0 x (f32), 1 scale (f32), 2 bias (f32, bound to anything without
//   one), 3 out (f32).
// Shapes: x and out [rows, length]; scale and bias [length].
// Limits: any length below 2^31. The mean is taken before the variance, so that
//   large means cost no digits.

struct Params { rows: u32, length: u32, epsilon: f32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> scale: array<f32>;
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

const LANES: u32 = 32u;
const HAS_BIAS: u32 = 1u;
// Whether the mean is taken off.
const CENTRED: u32 = 1u;
// include: lanes.wgsl

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % LANES;
    for (var first = group.x * GROUP_ROWS; first < p.rows; first += groups.x * GROUP_ROWS) {
        let row = first + thread / LANES;
        let start = row * p.length;
        let end = select(0u, p.length, row < p.rows);
        var mean = 0.0;
        if CENTRED == 1u {
            for (var at = lane; at < end; at += LANES) { mean += input[start + at]; }
            mean = lanes_sum(thread, mean) / f32(p.length);
        }
        var squares = 0.0;
        for (var at = lane; at < end; at += LANES) {
            let value = input[start + at] - mean;
            squares += value * value;
        }
        let variance = lanes_sum(thread, squares) / f32(p.length);
        let factor = 1.0 / sqrt(variance + p.epsilon);
        for (var at = lane; at < end; at += LANES) {
            var value = (input[start + at] - mean) * factor * scale[at];
            if HAS_BIAS == 1u { value += bias[at]; }
            output[start + at] = value;
        }
    }
}
