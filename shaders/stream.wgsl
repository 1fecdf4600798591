// Copies a buffer, as fast as the device can: its bandwidth.
//
// Bindings: 0 in, 1 out, sixteen bytes an element.
// Shapes: one dimension of workgroups, any number of them.
// Limits: `count` elements, in both buffers.

struct Params { count: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> output: array<vec4<u32>>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let step = groups.x * THREADS;
    var at = group.x * THREADS + thread;
    for (; at + 3u * step < p.count; at += 4u * step) {
        let a = input[at];
        let b = input[at + step];
        let c = input[at + 2u * step];
        let d = input[at + 3u * step];
        output[at] = a;
        output[at + step] = b;
        output[at + 2u * step] = c;
        output[at + 3u * step] = d;
    }
    for (; at < p.count; at += step) { output[at] = input[at]; }
}
