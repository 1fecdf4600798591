// The tiles that matrix products and convolutions share: operands come tile by
// tile into workgroup memory, and each thread keeps a block of the answer in
// registers.
//
// Bindings: none of its own. Whoever includes this has load_a, load_b, store,
//   sizes (m, n, k) and bases (of a, b and the answer, by workgroup z).
// Shapes: tiles of ROWS * THREADS_M by COLUMNS * THREADS_N, TILE_K deep.
// Limits: ROWS and COLUMNS are 4 or 8; THREADS_M * THREADS_N at most 256;
//   elements outside m, n and k are for load_* to answer 0 for.

// Rows and columns of the answer that a thread holds: 4 or 8.
const ROWS: u32 = 4u;
const COLUMNS: u32 = 4u;
const THREADS_M: u32 = 16u;
const THREADS_N: u32 = 16u;
const TILE_K: u32 = 16u;
// Which index of an operand neighbouring threads load: 1 for k, 0 for m or n.
const A_ALONG_K: u32 = 1u;
const B_ALONG_K: u32 = 0u;

const THREADS: u32 = THREADS_M * THREADS_N;
const TILE_M: u32 = ROWS * THREADS_M;
const TILE_N: u32 = COLUMNS * THREADS_N;
const QUADS_M: u32 = TILE_M / 4u;
const QUADS_N: u32 = TILE_N / 4u;
// One more than needed, so that columns do not fall on one memory bank.
const PITCH_M: u32 = QUADS_M + 1u;
const PITCH_N: u32 = QUADS_N + 1u;

var<workgroup> tile_a: array<vec4<f32>, TILE_K * PITCH_M>;
var<workgroup> tile_b: array<vec4<f32>, TILE_K * PITCH_N>;

fn fill_a(base: u32, first_row: u32, first_k: u32, thread: u32) {
    for (var at = thread; at < TILE_K * QUADS_M; at += THREADS) {
        var k = at % TILE_K;
        var quad = at / TILE_K;
        if A_ALONG_K == 0u {
            k = at / QUADS_M;
            quad = at % QUADS_M;
        }
        let row = first_row + quad * 4u;
        tile_a[k * PITCH_M + quad] = vec4<f32>(
            load_a(base, row, first_k + k), load_a(base, row + 1u, first_k + k),
            load_a(base, row + 2u, first_k + k), load_a(base, row + 3u, first_k + k));
    }
}

fn fill_b(base: u32, first_column: u32, first_k: u32, thread: u32) {
    for (var at = thread; at < TILE_K * QUADS_N; at += THREADS) {
        var k = at / QUADS_N;
        var quad = at % QUADS_N;
        if B_ALONG_K == 1u {
            k = at % TILE_K;
            quad = at / TILE_K;
        }
        let column = first_column + quad * 4u;
        tile_b[k * PITCH_N + quad] = vec4<f32>(
            load_b(base, first_k + k, column), load_b(base, first_k + k, column + 1u),
            load_b(base, first_k + k, column + 2u), load_b(base, first_k + k, column + 3u));
    }
}

fn store_quad(base: u32, row: u32, column: u32, sums: vec4<f32>) {
    store(base, row, column, sums.x);
    store(base, row, column + 1u, sums.y);
    store(base, row, column + 2u, sums.z);
    store(base, row, column + 3u, sums.w);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let base = bases(group.z);
    let terms = sizes().z;
    let first_row = group.y * TILE_M;
    let first_column = group.x * TILE_N;
    // A thread's quads of rows and columns: one near, one half a tile away.
    let ty = thread / THREADS_N;
    let tx = thread % THREADS_N;
    var c0 = vec4<f32>(); var c1 = vec4<f32>(); var c2 = vec4<f32>(); var c3 = vec4<f32>();
    var c4 = vec4<f32>(); var c5 = vec4<f32>(); var c6 = vec4<f32>(); var c7 = vec4<f32>();
    var d0 = vec4<f32>(); var d1 = vec4<f32>(); var d2 = vec4<f32>(); var d3 = vec4<f32>();
    var d4 = vec4<f32>(); var d5 = vec4<f32>(); var d6 = vec4<f32>(); var d7 = vec4<f32>();
    for (var first_k = 0u; first_k < terms; first_k += TILE_K) {
        fill_a(base.x, first_row, first_k, thread);
        fill_b(base.y, first_column, first_k, thread);
        workgroupBarrier();
        for (var k = 0u; k < TILE_K; k += 1u) {
            let x = tile_a[k * PITCH_M + ty];
            let y = tile_b[k * PITCH_N + tx];
            c0 = fma(vec4<f32>(x.x), y, c0);
            c1 = fma(vec4<f32>(x.y), y, c1);
            c2 = fma(vec4<f32>(x.z), y, c2);
            c3 = fma(vec4<f32>(x.w), y, c3);
            if COLUMNS == 8u {
                let y2 = tile_b[k * PITCH_N + tx + THREADS_N];
                d0 = fma(vec4<f32>(x.x), y2, d0);
                d1 = fma(vec4<f32>(x.y), y2, d1);
                d2 = fma(vec4<f32>(x.z), y2, d2);
                d3 = fma(vec4<f32>(x.w), y2, d3);
            }
            if ROWS == 8u {
                let x2 = tile_a[k * PITCH_M + ty + THREADS_M];
                c4 = fma(vec4<f32>(x2.x), y, c4);
                c5 = fma(vec4<f32>(x2.y), y, c5);
                c6 = fma(vec4<f32>(x2.z), y, c6);
                c7 = fma(vec4<f32>(x2.w), y, c7);
                if COLUMNS == 8u {
                    let y2 = tile_b[k * PITCH_N + tx + THREADS_N];
                    d4 = fma(vec4<f32>(x2.x), y2, d4);
                    d5 = fma(vec4<f32>(x2.y), y2, d5);
                    d6 = fma(vec4<f32>(x2.z), y2, d6);
                    d7 = fma(vec4<f32>(x2.w), y2, d7);
                }
            }
        }
        workgroupBarrier();
    }
    let row = first_row + ty * 4u;
    let column = first_column + tx * 4u;
    store_quad(base.z, row, column, c0);
    store_quad(base.z, row + 1u, column, c1);
    store_quad(base.z, row + 2u, column, c2);
    store_quad(base.z, row + 3u, column, c3);
    let column2 = column + THREADS_N * 4u;
    if COLUMNS == 8u {
        store_quad(base.z, row, column2, d0);
        store_quad(base.z, row + 1u, column2, d1);
        store_quad(base.z, row + 2u, column2, d2);
        store_quad(base.z, row + 3u, column2, d3);
    }
    if ROWS == 8u {
        let row2 = row + THREADS_M * 4u;
        store_quad(base.z, row2, column, c4);
        store_quad(base.z, row2 + 1u, column, c5);
        store_quad(base.z, row2 + 2u, column, c6);
        store_quad(base.z, row2 + 3u, column, c7);
        if COLUMNS == 8u {
            store_quad(base.z, row2, column2, d4);
            store_quad(base.z, row2 + 1u, column2, d5);
            store_quad(base.z, row2 + 2u, column2, d6);
            store_quad(base.z, row2 + 3u, column2, d7);
        }
    }
}
