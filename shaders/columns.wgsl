// The end of kernels in which LANES threads sum terms of the same four columns.
//
// Bindings: none of its own. Whoever includes this sets THREADS and LANES, and has
//   store.
// Shapes: a sum of four columns from each thread; threads of the same columns are
//   `apart` from one another.
// Limits: LANES is a power of two. Every thread of the workgroup has to call it.

var<workgroup> partial: array<vec4<f32>, THREADS>;

fn finish(base: u32, row: u32, column: u32, sums: vec4<f32>, thread: u32, lane: u32, apart: u32) {
    partial[thread] = sums;
    workgroupBarrier();
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        if lane < reach { partial[thread] += partial[thread + reach * apart]; }
        workgroupBarrier();
    }
    if lane == 0u {
        let sum = partial[thread];
        store(base, row, column, sum.x);
        store(base, row, column + 1u, sum.y);
        store(base, row, column + 2u, sum.z);
        store(base, row, column + 3u, sum.w);
    }
    workgroupBarrier();
}
