// What kernels of matrix products share: their parameters, what they write, and
// what they do to a sum before they write it:
// out = activation(alpha * sum + beta * bias) + residual, or with HAS_RESIDUAL
// 2 the residual before the activation.
//
// Bindings: 2 out (f32), 3 bias, 4 residual, 5 scales of b, 6 zero points of b
//   (all f32; bound to anything when unused). 0 and 1 are the operands.
// Shapes: out [m, n], bias by strides, residual as out. Strides count elements
//   of a and out, and elements or words of b.
// Limits: every size and stride below 2^31. Two batch dimensions:
//   z = b0 * batch1 + b1.

struct Params {
    m: u32, n: u32, k: u32, batch1: u32,
    a_row: u32, a_col: u32, a_b0: u32, a_b1: u32,
    b_row: u32, b_col: u32, b_b0: u32, b_b1: u32,
    out_row: u32, out_b0: u32, out_b1: u32, block: u32,
    bias_row: u32, bias_col: u32, alpha: f32, beta: f32,
}

var<immediate> p: Params;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> scales: array<f32>;
@group(0) @binding(6) var<storage, read_write> zeros: array<f32>;

const ACTIVATION: u32 = 0u;
const HAS_BIAS: u32 = 0u;
const HAS_RESIDUAL: u32 = 0u;
// Whether the answer is rounded to f16.
const ROUNDS: u32 = 0u;
// include: parts.wgsl

fn sizes() -> vec3<u32> {
    return vec3<u32>(p.m, p.n, p.k);
}

fn bases(z: u32) -> vec3<u32> {
    let b0 = z / p.batch1;
    let b1 = z % p.batch1;
    return vec3<u32>(b0 * p.a_b0 + b1 * p.a_b1, b0 * p.b_b0 + b1 * p.b_b1, b0 * p.out_b0 + b1 * p.out_b1);
}

fn store(base: u32, row: u32, column: u32, sum: f32) {
    if row >= p.m || column >= p.n { return; }
    if PARTS > 1u {
        output[base + row * p.n + column] = sum;
        return;
    }
    var value = p.alpha * sum;
    if HAS_BIAS == 1u { value += p.beta * bias[row * p.bias_row + column * p.bias_col]; }
    let at = base + row * p.out_row + column;
    if HAS_RESIDUAL == 2u { value += residual[at]; }
    value = activate(ACTIVATION, value);
    if HAS_RESIDUAL == 1u { value += residual[at]; }
    if ROUNDS == 1u { value = unpack2x16float(pack2x16float(vec2<f32>(value, 0.0))).x; }
    output[at] = value;
}
