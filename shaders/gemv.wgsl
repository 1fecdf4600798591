// Product of a few rows with a matrix, where reading the matrix is all the
// work: out = activation(alpha * a . b + beta * bias) + residual.
//
// Bindings: 0 a (f32), 1 b (words of B_FORMAT), 2 out (f32), 3 bias, 4 residual,
//   5 scales of b, 6 zero points of b, as in matmul.wgsl.
// Shapes: a [m, k], m at most 8; b [k, n]; out [m, n]; parameters and B_FORMAT
//   as in matmul.wgsl. A workgroup answers 256 / LANES columns, with LANES
//   threads along k for each.
// Limits: as in matmul.wgsl; blocks are multiples of 8 values.
// include: common.wgsl

struct Params {
    m: u32, n: u32, k: u32, batch1: u32,
    a_row: u32, a_col: u32, a_b0: u32, a_b1: u32,
    b_row: u32, b_col: u32, b_b0: u32, b_b1: u32,
    out_row: u32, out_b0: u32, out_b1: u32, block: u32,
    bias_row: u32, bias_col: u32, alpha: f32, beta: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> left: array<f32>;
@group(0) @binding(1) var<storage, read_write> right: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> scales: array<f32>;
@group(0) @binding(6) var<storage, read_write> zeros: array<f32>;

const B_FORMAT: u32 = 0u;
const ACTIVATION: u32 = 0u;
const HAS_BIAS: u32 = 0u;
const HAS_RESIDUAL: u32 = 0u;
const LANES: u32 = 8u;
// Whether neighbouring threads read along k (1) or along n (0).
const B_ALONG_K: u32 = 0u;

const THREADS: u32 = 256u;
const COLUMNS: u32 = THREADS / LANES;
const MAX_ROWS: u32 = 8u;

var<workgroup> partial: array<f32, THREADS>;
var<private> sums: array<f32, MAX_ROWS>;

fn add(base_a: u32, k: u32, weight: f32) {
    for (var row = 0u; row < p.m; row += 1u) {
        sums[row] = fma(left[base_a + row * p.a_row + k * p.a_col], weight, sums[row]);
    }
}

// Values of b that one word holds.
fn per_word() -> u32 {
    switch B_FORMAT {
        case 1u: { return 2u; }
        case 2u: { return 4u; }
        case 3u: { return 8u; }
        default: { return 1u; }
    }
}

fn add_word(base_a: u32, base_b: u32, word_index: u32, column: u32) {
    let first = word_index * per_word();
    if B_FORMAT == 0u {
        add(base_a, first, bitcast<f32>(right[base_b + first * p.b_row + column * p.b_col]));
        return;
    }
    let word = right[base_b + column * p.b_col + word_index];
    let count = min(per_word(), p.k - first);
    if B_FORMAT == 1u {
        let pair = unpack2x16float(word);
        add(base_a, first, pair.x);
        if count > 1u { add(base_a, first + 1u, pair.y); }
    } else {
        let block = column * ((p.k + p.block - 1u) / p.block) + first / p.block;
        let bits = 32u / per_word();
        for (var at = 0u; at < count; at += 1u) {
            let value = f32(extractBits(word, at * bits, bits)) - zeros[block];
            add(base_a, first + at, value * scales[block]);
        }
    }
}

fn store(base: u32, row: u32, column: u32, sum: f32) {
    var value = p.alpha * sum;
    if HAS_BIAS == 1u { value += p.beta * bias[row * p.bias_row + column * p.bias_col]; }
    value = activate(ACTIVATION, value);
    let at = base + row * p.out_row + column;
    if HAS_RESIDUAL == 1u { value += residual[at]; }
    output[at] = value;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let b0 = group.z / p.batch1;
    let b1 = group.z % p.batch1;
    let base_a = b0 * p.a_b0 + b1 * p.a_b1;
    let base_b = b0 * p.b_b0 + b1 * p.b_b1;
    var lane = thread / COLUMNS;
    var slot = thread % COLUMNS;
    if B_ALONG_K == 1u {
        lane = thread % LANES;
        slot = thread / LANES;
    }
    let column = group.x * COLUMNS + slot;
    for (var row = 0u; row < MAX_ROWS; row += 1u) { sums[row] = 0.0; }
    let words = (p.k + per_word() - 1u) / per_word();
    if column < p.n {
        for (var word = lane; word < words; word += LANES) {
            add_word(base_a, base_b, word, column);
        }
    }
    let base = b0 * p.out_b0 + b1 * p.out_b1;
    for (var row = 0u; row < p.m; row += 1u) {
        partial[lane * COLUMNS + slot] = sums[row];
        workgroupBarrier();
        if lane == 0u && column < p.n {
            var sum = 0.0;
            for (var other = 0u; other < LANES; other += 1u) {
                sum += partial[other * COLUMNS + slot];
            }
            store(base, row, column, sum);
        }
        workgroupBarrier();
    }
}
