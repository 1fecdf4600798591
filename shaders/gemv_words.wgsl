// Product of a few rows with a matrix whose columns lie along k, four words of
// four columns a thread, twice before it uses them. product.wgsl says what is written.
//
// Bindings: 0 a (f32), 1 b (words of B_FORMAT), 2 to 6 as in product.wgsl.
// Shapes: a [m, k] with m = M; b [k, n], one column b_col words after another;
//   out [m, n]. A workgroup answers 32 columns, with 32 threads along k for each.
// Limits: as in product.wgsl; M at most 8; k, b_col and the strides of a are
//   multiples of 4, and a_col is 1. B_FORMAT as in matmul.wgsl; blocks are
//   multiples of 16 values of 8 bits, or of 32 of 4; halves behind the last k
//   are zeros.
// include: common.wgsl
// include: product.wgsl

@group(0) @binding(0) var<storage, read_write> left: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> right: array<vec4<u32>>;

const M: u32 = 1u;
const B_FORMAT: u32 = 0u;

const THREADS: u32 = 256u;
const LANES: u32 = 32u;
const COLUMNS: u32 = 4u;
// Quads of values in four words.
const QUADS: u32 = select(1u << B_FORMAT, 1u, B_FORMAT == 0u);

// Words of a column that a thread reads before it uses them.
const STEPS: u32 = select(1u, 2u, M <= 4u);
// Quads of a that STEPS times LANES words are multiplied with; one more for each
// word, so that threads read from different memory banks.
const WORDS: u32 = STEPS * LANES;
const PITCH: u32 = QUADS + select(1u, 0u, QUADS == 1u);

var<workgroup> terms: array<vec4<f32>, M * WORDS * PITCH>;
// include: columns.wgsl

// Has the rows' values for WORDS words from `first` on where all threads read
// them; zeros behind the last.
fn stage(base: u32, first: u32, thread: u32) {
    for (var at = thread; at < M * WORDS * QUADS; at += THREADS) {
        let row = at / (WORDS * QUADS);
        let word = at / QUADS % WORDS;
        let quad = (first + word) * QUADS + at % QUADS;
        var value = vec4<f32>();
        if quad < p.k / 4u { value = left[(base + row * p.a_row) / 4u + quad]; }
        terms[(row * WORDS + word) * PITCH + at % QUADS] = value;
    }
}

// 2^23 and a small integer in the last bits is their sum.
fn exact(bits: u32) -> f32 {
    return bitcast<f32>(0x4b000000u | bits) - 8388608.0;
}

fn bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(exact(word & 0xffu), exact((word >> 8u) & 0xffu), exact((word >> 16u) & 0xffu), exact(word >> 24u));
}

fn nibbles(word: u32) -> vec4<f32> {
    return vec4<f32>(exact(word & 15u), exact((word >> 4u) & 15u), exact((word >> 8u) & 15u), exact((word >> 12u) & 15u));
}

// Four words of a column, without scale and zero point, times the terms at `t`.
fn product(w: vec4<u32>, t: u32) -> f32 {
    switch B_FORMAT {
        case 1u: {
            return dot(terms[t], vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)))
                + dot(terms[t + 1u], vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)));
        }
        case 2u: {
            return dot(terms[t], bytes(w.x)) + dot(terms[t + 1u], bytes(w.y))
                + dot(terms[t + 2u], bytes(w.z)) + dot(terms[t + 3u], bytes(w.w));
        }
        case 3u: {
            return dot(terms[t], nibbles(w.x)) + dot(terms[t + 1u], nibbles(w.x >> 16u))
                + dot(terms[t + 2u], nibbles(w.y)) + dot(terms[t + 3u], nibbles(w.y >> 16u))
                + dot(terms[t + 4u], nibbles(w.z)) + dot(terms[t + 5u], nibbles(w.z >> 16u))
                + dot(terms[t + 6u], nibbles(w.w)) + dot(terms[t + 7u], nibbles(w.w >> 16u));
        }
        default: {
            return dot(terms[t], bitcast<vec4<f32>>(w));
        }
    }
}

fn sum_of(t: u32) -> f32 {
    var sum = vec4<f32>();
    for (var quad = 0u; quad < QUADS; quad += 1u) { sum += terms[t + quad]; }
    return dot(sum, vec4<f32>(1.0));
}

// Four words of four columns, and their scales and zero points.
struct Block { w0: vec4<u32>, w1: vec4<u32>, w2: vec4<u32>, w3: vec4<u32>, scale: vec4<f32>, zero: vec4<f32>, }

// `at` beyond the last words reads those again; the terms there are zeros.
fn block_at(base: u32, columns: vec4<u32>, at: u32, words: u32) -> Block {
    let origin = vec4<u32>(base / 4u + min(at, words - 1u)) + columns * (p.b_col / 4u);
    var b: Block;
    b.w0 = right[origin.x];
    b.w1 = right[origin.y];
    b.w2 = right[origin.z];
    b.w3 = right[origin.w];
    b.scale = vec4<f32>(1.0);
    if B_FORMAT >= 2u {
        let blocks = (p.k + p.block - 1u) / p.block;
        let block = columns * blocks + vec4<u32>(min(at, words - 1u) * QUADS * 4u / p.block);
        b.scale = vec4<f32>(scales[block.x], scales[block.y], scales[block.z], scales[block.w]);
        b.zero = vec4<f32>(zeros[block.x], zeros[block.y], zeros[block.z], zeros[block.w]);
    }
    return b;
}

fn multiplied(b: Block, t: u32) -> vec4<f32> {
    let products = vec4<f32>(product(b.w0, t), product(b.w1, t), product(b.w2, t), product(b.w3, t));
    if B_FORMAT < 2u { return products; }
    return (products - b.zero * sum_of(t)) * b.scale;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let base = bases(group.z);
    let lane = thread % LANES;
    let column = (group.x * (THREADS / LANES) + thread / LANES) * COLUMNS;
    // Beyond the last column a thread reads the last one again.
    let columns = min(vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u));
    let words = (p.k / 4u + QUADS - 1u) / QUADS;
    var sums: array<vec4<f32>, M>;
    for (var first = 0u; first < words; first += WORDS) {
        let near = block_at(base.y, columns, first + lane, words);
        var far: Block;
        if STEPS == 2u { far = block_at(base.y, columns, first + LANES + lane, words); }
        stage(base.x, first, thread);
        workgroupBarrier();
        for (var row = 0u; row < M; row += 1u) {
            let t = (row * WORDS + lane) * PITCH;
            sums[row] += multiplied(near, t);
            if STEPS == 2u { sums[row] += multiplied(far, t + LANES * PITCH); }
        }
        workgroupBarrier();
    }
    for (var row = 0u; row < M; row += 1u) {
        finish(base.z, row, column, sums[row], thread, lane, 1u);
    }
}
