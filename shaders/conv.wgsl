// Convolution as a matrix product with patches that are never written out:
// out[image] = activation(weights . patches(image) + bias + residual).
//
// Bindings: 0 weights (f32), 1 image (f32), 2 out (f32), 3 bias, 4 residual
//   (both f32; bound to anything when unused).
// Shapes: weights [groups * m, channels, kernel_y, kernel_x]; image [batch,
//   groups * channels, height, width]; out [batch, groups * m, out_height,
//   out_width]. m is output channels, n output positions and k channels times
//   taps, all of one group; workgroup z counts images and groups.
// Limits: every size below 2^31; padding is zeros.
// include: common.wgsl

struct Params {
    m: u32, n: u32, k: u32, groups: u32,
    height: u32, width: u32, out_width: u32, channels: u32,
    stride_y: u32, stride_x: u32,
    dilation_y: u32, dilation_x: u32, pad_y: u32, pad_x: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> image: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<f32>;

const ACTIVATION: u32 = 0u;
const HAS_BIAS: u32 = 0u;
const HAS_RESIDUAL: u32 = 0u;
// Of the window; known beforehand, because every load divides by them.
const KERNEL_Y: u32 = 1u;
const KERNEL_X: u32 = 1u;
// include: parts.wgsl
// include: tiles.wgsl

fn sizes() -> vec3<u32> {
    return vec3<u32>(p.m, p.n, p.k);
}

// Of weights, of image lines, and of answers.
fn bases(z: u32) -> vec3<u32> {
    let group = z % p.groups;
    return vec3<u32>(group * p.m * p.k, z * p.channels * p.height, z * p.m * p.n);
}

fn weight(base: u32, row: u32, k: u32) -> f32 {
    if row >= p.m || k >= p.k { return 0.0; }
    return weights[base + row * p.k + k];
}

// Weights of four rows; neighbouring threads load along k.
fn fetch_a(base: u32, first_row: u32, first_k: u32, at: u32) -> vec4<f32> {
    let k = first_k + at % TILE_K;
    let row = first_row + at / TILE_K * 4u;
    return vec4<f32>(
        weight(base, row, k), weight(base, row + 1u, k), weight(base, row + 2u, k), weight(base, row + 3u, k));
}

fn put_a(stage: u32, at: u32, quad: vec4<f32>) {
    tile_a[stage * STAGE_A + at % TILE_K * PITCH_M + at / TILE_K] = quad;
}

fn pixel(line: u32, y: u32, x: u32) -> f32 {
    // Left of the image is a large number after wrapping, and so outside it.
    if y >= p.height || x >= p.width { return 0.0; }
    return image[(line + y) * p.width + x];
}

// What one tap sees at four neighbouring positions.
fn fetch_b(base: u32, first_position: u32, first_k: u32, at: u32) -> vec4<f32> {
    let k = first_k + at / QUADS_N;
    let position = first_position + at % QUADS_N * 4u;
    if k >= p.k { return vec4<f32>(); }
    let tap = k % (KERNEL_Y * KERNEL_X);
    let line = base + k / (KERNEL_Y * KERNEL_X) * p.height;
    let down = tap / KERNEL_X * p.dilation_y - p.pad_y;
    let along = tap % KERNEL_X * p.dilation_x - p.pad_x;
    var row = position / p.out_width;
    var column = position % p.out_width;
    var quad: vec4<f32>;
    quad.x = pixel(line, row * p.stride_y + down, column * p.stride_x + along);
    column += 1u;
    if column == p.out_width { column = 0u; row += 1u; }
    quad.y = pixel(line, row * p.stride_y + down, column * p.stride_x + along);
    column += 1u;
    if column == p.out_width { column = 0u; row += 1u; }
    quad.z = pixel(line, row * p.stride_y + down, column * p.stride_x + along);
    column += 1u;
    if column == p.out_width { column = 0u; row += 1u; }
    quad.w = pixel(line, row * p.stride_y + down, column * p.stride_x + along);
    return quad;
}

fn put_b(stage: u32, at: u32, quad: vec4<f32>) {
    tile_b[stage * STAGE_B + at / QUADS_N * PITCH_N + at % QUADS_N] = quad;
}

fn store(base: u32, row: u32, column: u32, sum: f32) {
    if row >= p.m || column >= p.n { return; }
    let at = base + row * p.n + column;
    if PARTS > 1u {
        output[at] = sum;
        return;
    }
    var value = sum;
    // The channel among those of all groups.
    if HAS_BIAS == 1u { value += bias[(base / (p.m * p.n)) % p.groups * p.m + row]; }
    if HAS_RESIDUAL == 1u { value += residual[at]; }
    output[at] = activate(ACTIVATION, value);
}
