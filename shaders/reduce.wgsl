// Reductions along one axis (or several that lie side by side).
//
// Bindings: 0 x (f32), 1 out (f32).
// Shapes: x [outer, length, inner], out [outer, inner].
// Limits: any length below 2^31. KIND: 0 sum, 1 mean, 2 largest, 3 smallest,
//   4 product, 5 sum of magnitudes, 6 root of the sum of squares, 7 sum of
//   squares. NaN makes the answer NaN.
// include: common.wgsl

struct Params { rows: u32, length: u32, inner: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;

const KIND: u32 = 0u;
const LANES: u32 = 32u;
// include: lanes.wgsl

fn neutral() -> f32 {
    switch KIND {
        case 2u: { return bitcast<f32>(0xff800000u | (p.length & 0u)); }
        case 3u: { return bitcast<f32>(0x7f800000u | (p.length & 0u)); }
        case 4u: { return 1.0; }
        default: { return 0.0; }
    }
}

fn prepared(x: f32) -> f32 {
    switch KIND {
        case 5u: { return abs(x); }
        case 6u, 7u: { return x * x; }
        default: { return x; }
    }
}

fn joined(a: f32, b: f32) -> f32 {
    switch KIND {
        case 2u: { return select(select(max(a, b), b, is_nan(b)), a, is_nan(a)); }
        case 3u: { return select(select(min(a, b), b, is_nan(b)), a, is_nan(a)); }
        case 4u: { return a * b; }
        default: { return a + b; }
    }
}

fn finished(x: f32) -> f32 {
    switch KIND {
        case 1u: { return x / f32(p.length); }
        case 6u: { return sqrt(x); }
        default: { return x; }
    }
}

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
        var sum = neutral();
        for (var at = lane; at < end; at += LANES) {
            sum = joined(sum, prepared(input[start + at * p.inner]));
        }
        shared_lanes[thread] = sum;
        workgroupBarrier();
        for (var step = LANES / 2u; step > 0u; step /= 2u) {
            if lane < step { shared_lanes[thread] = joined(shared_lanes[thread], shared_lanes[thread + step]); }
            workgroupBarrier();
        }
        if lane == 0u && row < p.rows { output[row] = finished(shared_lanes[thread]); }
        workgroupBarrier();
    }
}
