// The tiles that matrix products and convolutions share: operands come tile by
// tile into workgroup memory, fetched while the tile before is multiplied, and
// each thread keeps a block of the answer in registers.
//
// Bindings: none of its own. Whoever includes this has store, parts.wgsl, sizes (m, n, k),
//   bases (of a, b and the answer, by workgroup z), and for both operands
//   fetch_a(base, first_row, first_k, at), which loads slot `at` of a tile, four
//   values, and put_a(stage, at, quad), which writes it to workgroup memory.
// Shapes: tiles of ROWS * THREADS_M by COLUMNS * THREADS_N, TILE_K deep, in
//   quads along m and n for each k.
// Limits: ROWS and COLUMNS are 4 or 8; THREADS_M * THREADS_N at most 256; a
//   thread fetches at most 4 slots of a and 8 of b; elements outside m, n and k
//   are for fetch_* to answer 0 for.

// Rows and columns of the answer that a thread holds.
const ROWS: u32 = 4u;
const COLUMNS: u32 = 4u;
const THREADS_M: u32 = 16u;
const THREADS_N: u32 = 16u;
const TILE_K: u32 = 16u;
// Tiles in workgroup memory: with 2, one is written while another is read.
const STAGES: u32 = 1u;

const THREADS: u32 = THREADS_M * THREADS_N;
const TILE_M: u32 = ROWS * THREADS_M;
const TILE_N: u32 = COLUMNS * THREADS_N;
const QUADS_M: u32 = TILE_M / 4u;
const QUADS_N: u32 = TILE_N / 4u;
// One more than needed, so that columns do not fall on one memory bank.
const PITCH_M: u32 = QUADS_M + 1u;
const PITCH_N: u32 = QUADS_N + 1u;
const STAGE_A: u32 = TILE_K * PITCH_M;
const STAGE_B: u32 = TILE_K * PITCH_N;
const SLOTS_A: u32 = TILE_K * QUADS_M;
const SLOTS_B: u32 = TILE_K * QUADS_N;

var<workgroup> tile_a: array<vec4<f32>, STAGES * STAGE_A>;
var<workgroup> tile_b: array<vec4<f32>, STAGES * STAGE_B>;

struct FetchedA { q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32>, }

struct FetchedB {
    q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32>,
    q4: vec4<f32>, q5: vec4<f32>, q6: vec4<f32>, q7: vec4<f32>,
}

// Whether a thread has an `index`-th slot of `count`.
fn has(index: u32, thread: u32, count: u32) -> bool {
    return index * THREADS < count && ((index + 1u) * THREADS <= count || thread + index * THREADS < count);
}

fn fetch_tile_a(base: u32, row: u32, k: u32, thread: u32) -> FetchedA {
    var f: FetchedA;
    if has(0u, thread, SLOTS_A) { f.q0 = fetch_a(base, row, k, thread + 0u * THREADS); }
    if has(1u, thread, SLOTS_A) { f.q1 = fetch_a(base, row, k, thread + 1u * THREADS); }
    if has(2u, thread, SLOTS_A) { f.q2 = fetch_a(base, row, k, thread + 2u * THREADS); }
    if has(3u, thread, SLOTS_A) { f.q3 = fetch_a(base, row, k, thread + 3u * THREADS); }
    return f;
}

fn fetch_tile_b(base: u32, column: u32, k: u32, thread: u32) -> FetchedB {
    var f: FetchedB;
    if has(0u, thread, SLOTS_B) { f.q0 = fetch_b(base, column, k, thread + 0u * THREADS); }
    if has(1u, thread, SLOTS_B) { f.q1 = fetch_b(base, column, k, thread + 1u * THREADS); }
    if has(2u, thread, SLOTS_B) { f.q2 = fetch_b(base, column, k, thread + 2u * THREADS); }
    if has(3u, thread, SLOTS_B) { f.q3 = fetch_b(base, column, k, thread + 3u * THREADS); }
    if has(4u, thread, SLOTS_B) { f.q4 = fetch_b(base, column, k, thread + 4u * THREADS); }
    if has(5u, thread, SLOTS_B) { f.q5 = fetch_b(base, column, k, thread + 5u * THREADS); }
    if has(6u, thread, SLOTS_B) { f.q6 = fetch_b(base, column, k, thread + 6u * THREADS); }
    if has(7u, thread, SLOTS_B) { f.q7 = fetch_b(base, column, k, thread + 7u * THREADS); }
    return f;
}

fn put_tiles(stage: u32, a: FetchedA, b: FetchedB, thread: u32) {
    if has(0u, thread, SLOTS_A) { put_a(stage, thread + 0u * THREADS, a.q0); }
    if has(1u, thread, SLOTS_A) { put_a(stage, thread + 1u * THREADS, a.q1); }
    if has(2u, thread, SLOTS_A) { put_a(stage, thread + 2u * THREADS, a.q2); }
    if has(3u, thread, SLOTS_A) { put_a(stage, thread + 3u * THREADS, a.q3); }
    if has(0u, thread, SLOTS_B) { put_b(stage, thread + 0u * THREADS, b.q0); }
    if has(1u, thread, SLOTS_B) { put_b(stage, thread + 1u * THREADS, b.q1); }
    if has(2u, thread, SLOTS_B) { put_b(stage, thread + 2u * THREADS, b.q2); }
    if has(3u, thread, SLOTS_B) { put_b(stage, thread + 3u * THREADS, b.q3); }
    if has(4u, thread, SLOTS_B) { put_b(stage, thread + 4u * THREADS, b.q4); }
    if has(5u, thread, SLOTS_B) { put_b(stage, thread + 5u * THREADS, b.q5); }
    if has(6u, thread, SLOTS_B) { put_b(stage, thread + 6u * THREADS, b.q6); }
    if has(7u, thread, SLOTS_B) { put_b(stage, thread + 7u * THREADS, b.q7); }
}

fn store_quad(base: u32, row: u32, column: u32, sums: vec4<f32>) {
    store(base, row, column, sums.x);
    store(base, row, column + 1u, sums.y);
    store(base, row, column + 2u, sums.z);
    store(base, row, column + 3u, sums.w);
}

fn store_rows(base: u32, row: u32, column: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) {
    store_quad(base, row, column, a);
    store_quad(base, row + 1u, column, b);
    store_quad(base, row + 2u, column, c);
    store_quad(base, row + 3u, column, d);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    var base = bases(group.z / PARTS);
    if PARTS > 1u { base.z = group.z * sizes().x * sizes().y; }
    let terms = terms_of(group.z % PARTS, sizes().z, TILE_K);
    let tile = tile_of(group, groups);
    let first_row = tile.x * TILE_M;
    let first_column = tile.y * TILE_N;
    // A thread's quads of rows and columns, spread evenly over the tile.
    let ty = thread / THREADS_N;
    let tx = thread % THREADS_N;
    var c0 = vec4<f32>(); var c1 = vec4<f32>(); var c2 = vec4<f32>(); var c3 = vec4<f32>();
    var d0 = vec4<f32>(); var d1 = vec4<f32>(); var d2 = vec4<f32>(); var d3 = vec4<f32>();
    var c4 = vec4<f32>(); var c5 = vec4<f32>(); var c6 = vec4<f32>(); var c7 = vec4<f32>();
    var d4 = vec4<f32>(); var d5 = vec4<f32>(); var d6 = vec4<f32>(); var d7 = vec4<f32>();
    var stage = 0u;
    put_tiles(stage, fetch_tile_a(base.x, first_row, terms.x, thread), fetch_tile_b(base.y, first_column, terms.x, thread), thread);
    workgroupBarrier();
    for (var first_k = terms.x; first_k < terms.y; first_k += TILE_K) {
        // What is fetched last is not used.
        let next_a = fetch_tile_a(base.x, first_row, first_k + TILE_K, thread);
        let next_b = fetch_tile_b(base.y, first_column, first_k + TILE_K, thread);
        for (var k = 0u; k < TILE_K; k += 1u) {
            let from_a = stage * STAGE_A + k * PITCH_M + ty;
            let from_b = stage * STAGE_B + k * PITCH_N + tx;
            let y = tile_b[from_b];
            var z = vec4<f32>();
            if COLUMNS == 8u { z = tile_b[from_b + THREADS_N]; }
            {
                let x = tile_a[from_a];
                c0 = fma(vec4<f32>(x.x), y, c0);
                c1 = fma(vec4<f32>(x.y), y, c1);
                c2 = fma(vec4<f32>(x.z), y, c2);
                c3 = fma(vec4<f32>(x.w), y, c3);
                if COLUMNS == 8u {
                    d0 = fma(vec4<f32>(x.x), z, d0);
                    d1 = fma(vec4<f32>(x.y), z, d1);
                    d2 = fma(vec4<f32>(x.z), z, d2);
                    d3 = fma(vec4<f32>(x.w), z, d3);
                }
            }
            if ROWS == 8u {
                let x = tile_a[from_a + 1u * THREADS_M];
                c4 = fma(vec4<f32>(x.x), y, c4);
                c5 = fma(vec4<f32>(x.y), y, c5);
                c6 = fma(vec4<f32>(x.z), y, c6);
                c7 = fma(vec4<f32>(x.w), y, c7);
                if COLUMNS == 8u {
                    d4 = fma(vec4<f32>(x.x), z, d4);
                    d5 = fma(vec4<f32>(x.y), z, d5);
                    d6 = fma(vec4<f32>(x.z), z, d6);
                    d7 = fma(vec4<f32>(x.w), z, d7);
                }
            }
        }
        if STAGES == 1u { workgroupBarrier(); } else { stage = 1u - stage; }
        put_tiles(stage, next_a, next_b, thread);
        workgroupBarrier();
    }
    let row = first_row + ty * 4u;
    let column = first_column + tx * 4u;
    store_rows(base.z, row, column, c0, c1, c2, c3);
    if ROWS == 8u { store_rows(base.z, row + THREADS_M * 4u, column, c4, c5, c6, c7); }
    if COLUMNS == 8u {
        let beside = column + THREADS_N * 4u;
        store_rows(base.z, row, beside, d0, d1, d2, d3);
        if ROWS == 8u { store_rows(base.z, row + THREADS_M * 4u, beside, d4, d5, d6, d7); }
    }
}
