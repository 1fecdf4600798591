// Matrix product in tiles, each thread holding a block of the answer in
// registers: out = activation(alpha * a . b + beta * bias) + residual.
//
// Bindings: 0 a (f32), 1 b (words of B_FORMAT), 2 out (f32), 3 bias, 4 residual,
//   5 scales of b, 6 zero points of b (all f32; bound to anything when unused).
// Shapes: a [m, k] and b [k, n] by strides in elements, so that transposed
//   operands need no copy; out [m, n]. Two batch dimensions: z = b0 * batch1 + b1.
// Limits: m, n, k and every stride below 2^31; k may be any number. B_FORMAT:
//   0 f32 by strides; packed along k in words, one row a column of b, b_col
//   words apart: 1 f16; with scales and zero points for blocks of `block`
//   values along k, 2 of 8 bits and 3 of 4 bits.
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
// include: tiles.wgsl

fn sizes() -> vec3<u32> {
    return vec3<u32>(p.m, p.n, p.k);
}

fn bases(z: u32) -> vec3<u32> {
    let b0 = z / p.batch1;
    let b1 = z % p.batch1;
    return vec3<u32>(b0 * p.a_b0 + b1 * p.a_b1, b0 * p.b_b0 + b1 * p.b_b1, b0 * p.out_b0 + b1 * p.out_b1);
}

fn load_a(base: u32, row: u32, k: u32) -> f32 {
    if row >= p.m || k >= p.k { return 0.0; }
    return left[base + row * p.a_row + k * p.a_col];
}

fn load_b(base: u32, k: u32, column: u32) -> f32 {
    if column >= p.n || k >= p.k { return 0.0; }
    switch B_FORMAT {
        case 1u: {
            return unpack2x16float(right[base + column * p.b_col + (k >> 1u)])[k & 1u];
        }
        case 2u: {
            let word = right[base + column * p.b_col + (k >> 2u)];
            let at = column * ((p.k + p.block - 1u) / p.block) + k / p.block;
            return (f32(extractBits(word, (k & 3u) * 8u, 8u)) - zeros[at]) * scales[at];
        }
        case 3u: {
            let word = right[base + column * p.b_col + (k >> 3u)];
            let at = column * ((p.k + p.block - 1u) / p.block) + k / p.block;
            return (f32(extractBits(word, (k & 7u) * 4u, 4u)) - zeros[at]) * scales[at];
        }
        default: {
            return bitcast<f32>(right[base + k * p.b_row + column * p.b_col]);
        }
    }
}

fn store(base: u32, row: u32, column: u32, sum: f32) {
    if row >= p.m || column >= p.n { return; }
    var value = p.alpha * sum;
    if HAS_BIAS == 1u { value += p.beta * bias[row * p.bias_row + column * p.bias_col]; }
    value = activate(ACTIVATION, value);
    let at = base + row * p.out_row + column;
    if HAS_RESIDUAL == 1u { value += residual[at]; }
    output[at] = value;
}
