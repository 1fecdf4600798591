// Adds the sums of parts of products, and writes the answers.
//
// Bindings: 0 sums (f32), 2 to 6 as in product.wgsl; 1 bound to anything.
// Shapes: sums [products, SUMMANDS, m, n]; the answers as in product.wgsl.
// Limits: as in product.wgsl.
// include: common.wgsl
// include: product.wgsl

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;
@group(0) @binding(1) var<storage, read_write> unused: array<f32>;

const SUMMANDS: u32 = 2u;
const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let size = p.m * p.n;
    let base = bases(group.z);
    let first = group.z * SUMMANDS * size;
    for (var at = group.x * THREADS + thread; at < size; at += groups.x * THREADS) {
        var sum = 0.0;
        for (var part = 0u; part < SUMMANDS; part += 1u) { sum += sums[first + part * size + at]; }
        store(base.z, at / p.n, at % p.n, sum);
    }
}
