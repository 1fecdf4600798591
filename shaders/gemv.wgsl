// Product of a few rows with a matrix, where reading the matrix is all the
// work; operands by any strides. product.wgsl says what is written.
//
// Bindings: 0 a (f32), 1 b (words of B_FORMAT), 2 to 6 as in product.wgsl.
// Shapes: a [m, k] with m = M; b [k, n]; out [m, n]; B_FORMAT as in matmul.wgsl.
//   A workgroup answers 256 / LANES columns, with LANES threads along k for
//   each.
// Limits: as in product.wgsl; M at most 8; blocks are multiples of 8 values.
// include: common.wgsl
// include: product.wgsl

@group(0) @binding(0) var<storage, read_write> left: array<f32>;
@group(0) @binding(1) var<storage, read_write> right: array<u32>;

const M: u32 = 1u;
const B_FORMAT: u32 = 0u;
const LANES: u32 = 8u;
// Whether neighbouring threads read along k (1) or along n (0).
const B_ALONG_K: u32 = 0u;

const THREADS: u32 = 256u;
const COLUMNS: u32 = THREADS / LANES;

var<workgroup> partial: array<f32, THREADS>;
var<private> sums: array<f32, M>;

fn add(base_a: u32, k: u32, weight: f32) {
    for (var row = 0u; row < M; row += 1u) {
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

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let base = bases(group.z);
    var lane = thread / COLUMNS;
    var slot = thread % COLUMNS;
    if B_ALONG_K == 1u {
        lane = thread % LANES;
        slot = thread / LANES;
    }
    let column = group.x * COLUMNS + slot;
    let words = (p.k + per_word() - 1u) / per_word();
    if column < p.n {
        for (var word = lane; word < words; word += LANES) {
            add_word(base.x, base.y, word, column);
        }
    }
    for (var row = 0u; row < M; row += 1u) {
        partial[lane * COLUMNS + slot] = sums[row];
        workgroupBarrier();
        if lane == 0u && column < p.n {
            var sum = 0.0;
            for (var other = 0u; other < LANES; other += 1u) {
                sum += partial[other * COLUMNS + slot];
            }
            store(base.z, row, column, sum);
        }
        workgroupBarrier();
    }
}
