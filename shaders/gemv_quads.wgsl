// Product of a few rows with an f32 matrix whose columns are neighbours, four
// columns a thread. product.wgsl says what is written.
//
// Bindings: 0 a (f32), 1 b (f32), 2 to 6 as in product.wgsl.
// Shapes: a [m, k] with m = M; b [k, n]; out [m, n]. A workgroup answers
//   1024 / LANES columns, with LANES threads along k for each.
// Limits: as in product.wgsl; M at most 8; n and the strides of b are multiples
//   of 4, and b_col is 1.
// include: common.wgsl
// include: product.wgsl

@group(0) @binding(0) var<storage, read_write> left: array<f32>;
@group(0) @binding(1) var<storage, read_write> right: array<vec4<f32>>;

const M: u32 = 1u;
const LANES: u32 = 32u;

const THREADS: u32 = 256u;
const QUADS: u32 = THREADS / LANES;

// include: columns.wgsl

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let base = bases(group.z);
    let lane = thread / QUADS;
    let slot = thread % QUADS;
    let column = (group.x * QUADS + slot) * 4u;
    // Beyond the last column a thread reads the last one again.
    let origin = (base.y + min(column, p.n - 4u)) / 4u;
    let step = p.b_row / 4u;
    var sums: array<vec4<f32>, M>;
    var k = lane;
    // Eight loads under way at once.
    for (; k + 7u * LANES < p.k; k += 8u * LANES) {
        let w0 = right[origin + (k + 0u * LANES) * step];
        let w1 = right[origin + (k + 1u * LANES) * step];
        let w2 = right[origin + (k + 2u * LANES) * step];
        let w3 = right[origin + (k + 3u * LANES) * step];
        let w4 = right[origin + (k + 4u * LANES) * step];
        let w5 = right[origin + (k + 5u * LANES) * step];
        let w6 = right[origin + (k + 6u * LANES) * step];
        let w7 = right[origin + (k + 7u * LANES) * step];
        for (var row = 0u; row < M; row += 1u) {
            let x = base.x + row * p.a_row + k * p.a_col;
            let next = LANES * p.a_col;
            var sum = sums[row];
            sum = fma(vec4<f32>(left[x + 0u * next]), w0, sum);
            sum = fma(vec4<f32>(left[x + 1u * next]), w1, sum);
            sum = fma(vec4<f32>(left[x + 2u * next]), w2, sum);
            sum = fma(vec4<f32>(left[x + 3u * next]), w3, sum);
            sum = fma(vec4<f32>(left[x + 4u * next]), w4, sum);
            sum = fma(vec4<f32>(left[x + 5u * next]), w5, sum);
            sum = fma(vec4<f32>(left[x + 6u * next]), w6, sum);
            sum = fma(vec4<f32>(left[x + 7u * next]), w7, sum);
            sums[row] = sum;
        }
    }
    for (; k < p.k; k += LANES) {
        let w = right[origin + k * step];
        for (var row = 0u; row < M; row += 1u) {
            sums[row] = fma(vec4<f32>(left[base.x + row * p.a_row + k * p.a_col]), w, sums[row]);
        }
    }
    for (var row = 0u; row < M; row += 1u) {
        finish(base.z, row, column, sums[row], thread, lane, QUADS);
    }
}
