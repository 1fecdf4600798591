// Integer matrix product of 8-bit values, four terms an instruction:
// out = (a - a_zero) . (b - b_zero), exact in 32 bits.
//
// Bindings: 0 a (packed words), 1 b (packed words), 2 out (i32), 3 sums of a's
//   rows, 4 sums of b's columns, 5 a_zero, 6 b_zero (all i32).
// Shapes: a [m, words] and b [n, words] packed along k as pack.wgsl does, with
//   its shift; out [m, n]; a_zero one value, b_zero one or n (zero_step 0 or 1).
// Limits: the sum of all products has to fit 32 bits, as in ONNX. SHIFT_A and
//   SHIFT_B are what packing took off.

struct Params { m: u32, n: u32, k: u32, words: u32, zero_step: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> left: array<u32>;
@group(0) @binding(1) var<storage, read_write> right: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<i32>;
@group(0) @binding(3) var<storage, read_write> row_sums: array<i32>;
@group(0) @binding(4) var<storage, read_write> column_sums: array<i32>;
@group(0) @binding(5) var<storage, read_write> left_zero: array<i32>;
@group(0) @binding(6) var<storage, read_write> right_zero: array<i32>;

const SHIFT_A: u32 = 0u;
const SHIFT_B: u32 = 0u;
const TILE: u32 = 64u;
const DEPTH: u32 = 8u;
const THREADS: u32 = 256u;
const PITCH: u32 = TILE + 1u;

var<workgroup> tile_a: array<u32, DEPTH * PITCH>;
var<workgroup> tile_b: array<u32, DEPTH * PITCH>;

fn load_a(row: u32, word: u32) -> u32 {
    if row >= p.m || word >= p.words { return 0u; }
    return left[row * p.words + word];
}

fn load_b(column: u32, word: u32) -> u32 {
    if column >= p.n || word >= p.words { return 0u; }
    return right[column * p.words + word];
}

fn store(row: u32, column: u32, sum: i32) {
    if row >= p.m || column >= p.n { return; }
    let a_zero = left_zero[0] - i32(SHIFT_A);
    let b_zero = right_zero[column * p.zero_step] - i32(SHIFT_B);
    output[row * p.n + column] = sum - a_zero * column_sums[column] - b_zero * row_sums[row]
        + i32(p.k) * a_zero * b_zero;
}

fn dots(x: u32, y: vec4<u32>, sums: vec4<i32>) -> vec4<i32> {
    return sums + vec4<i32>(
        dot4I8Packed(x, y.x), dot4I8Packed(x, y.y), dot4I8Packed(x, y.z), dot4I8Packed(x, y.w));
}

fn store_row(row: u32, column: u32, sums: vec4<i32>) {
    store(row, column, sums.x);
    store(row, column + 16u, sums.y);
    store(row, column + 32u, sums.z);
    store(row, column + 48u, sums.w);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * TILE;
    let first_column = group.x * TILE;
    let ty = thread / 16u;
    let tx = thread % 16u;
    var c0 = vec4<i32>(); var c1 = vec4<i32>(); var c2 = vec4<i32>(); var c3 = vec4<i32>();
    for (var first = 0u; first < p.words; first += DEPTH) {
        for (var at = thread; at < DEPTH * TILE; at += THREADS) {
            let word = at % DEPTH;
            let slot = at / DEPTH;
            tile_a[word * PITCH + slot] = load_a(first_row + slot, first + word);
            tile_b[word * PITCH + slot] = load_b(first_column + slot, first + word);
        }
        workgroupBarrier();
        for (var word = 0u; word < DEPTH; word += 1u) {
            let base = word * PITCH;
            let y = vec4<u32>(tile_b[base + tx], tile_b[base + tx + 16u], tile_b[base + tx + 32u], tile_b[base + tx + 48u]);
            c0 = dots(tile_a[base + ty], y, c0);
            c1 = dots(tile_a[base + ty + 16u], y, c1);
            c2 = dots(tile_a[base + ty + 32u], y, c2);
            c3 = dots(tile_a[base + ty + 48u], y, c3);
        }
        workgroupBarrier();
    }
    let row = first_row + ty;
    let column = first_column + tx;
    store_row(row, column, c0);
    store_row(row + 16u, column, c1);
    store_row(row + 32u, column, c2);
    store_row(row + 48u, column, c3);
}
