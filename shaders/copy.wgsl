// Copies elements from one strided layout to another: transposition, slices,
// broadcasts, concatenation and splitting.
//
// Bindings: 0 source words, 1 destination words.
// Shapes: up to six dimensions, outermost first; leading ones may be 1.
// Limits: count, strides and offsets below 2^31; a stride may be negative (as a
//   wrapped number) or zero. Offsets and strides come from shapes that the host
//   checked, never from data.

struct Params {
    count: u32, source_offset: u32, target_offset: u32, pad: u32,
    dims: array<u32, 6>,
    source: array<u32, 6>,
    target_strides: array<u32, 6>,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<u32>;
@group(0) @binding(1) var<storage, read_write> output: array<u32>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.count; at += groups.x * THREADS) {
        var rest = at;
        var from_at = p.source_offset;
        var to_at = p.target_offset;
        let i5 = rest % p.dims[5]; rest /= p.dims[5];
        let i4 = rest % p.dims[4]; rest /= p.dims[4];
        let i3 = rest % p.dims[3]; rest /= p.dims[3];
        let i2 = rest % p.dims[2]; rest /= p.dims[2];
        let i1 = rest % p.dims[1]; rest /= p.dims[1];
        from_at += rest * p.source[0] + i1 * p.source[1] + i2 * p.source[2] + i3 * p.source[3]
            + i4 * p.source[4] + i5 * p.source[5];
        to_at += rest * p.target_strides[0] + i1 * p.target_strides[1] + i2 * p.target_strides[2]
            + i3 * p.target_strides[3] + i4 * p.target_strides[4] + i5 * p.target_strides[5];
        output[to_at] = input[from_at];
    }
}
