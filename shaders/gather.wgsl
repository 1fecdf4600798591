// Slices of a tensor by index: embeddings and the like.
//
// Bindings: 0 data (words), 1 indices (i32), 2 out (words), 3 status.
// Shapes: data [outer, size, inner], indices [count], out [outer, count, inner].
// Limits: indices from -size to size - 1; any other sets the status word, which
//   fails the request, and reads within bounds all the same.

struct Params { total: u32, size: u32, count: u32, inner: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> data: array<u32>;
@group(0) @binding(1) var<storage, read_write> indices: array<i32>;
@group(0) @binding(2) var<storage, read_write> output: array<u32>;
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.total; at += groups.x * THREADS) {
        let column = at % p.inner;
        let slice = (at / p.inner) % p.count;
        let outer = at / (p.inner * p.count);
        var index = indices[slice];
        let size = i32(p.size);
        if index < 0i { index += size; }
        if index < 0i || index >= size {
            atomicStore(&status[0], 1u);
            index = clamp(index, 0i, size - 1i);
        }
        output[at] = data[(outer * p.size + u32(index)) * p.inner + column];
    }
}
