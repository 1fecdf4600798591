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
    kernel_y: u32, kernel_x: u32, stride_y: u32, stride_x: u32,
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
// include: tiles.wgsl

fn sizes() -> vec3<u32> {
    return vec3<u32>(p.m, p.n, p.k);
}

fn bases(z: u32) -> vec3<u32> {
    let group = z % p.groups;
    return vec3<u32>(group * p.m * p.k, z * p.channels * p.height * p.width, z * p.m * p.n);
}

fn load_a(base: u32, row: u32, k: u32) -> f32 {
    if row >= p.m || k >= p.k { return 0.0; }
    return weights[base + row * p.k + k];
}

fn load_b(base: u32, k: u32, position: u32) -> f32 {
    if position >= p.n || k >= p.k { return 0.0; }
    let taps = p.kernel_y * p.kernel_x;
    let tap = k % taps;
    // Left of the image is a large number after wrapping, and so outside it.
    let y = (position / p.out_width) * p.stride_y + (tap / p.kernel_x) * p.dilation_y - p.pad_y;
    let x = (position % p.out_width) * p.stride_x + (tap % p.kernel_x) * p.dilation_x - p.pad_x;
    if y >= p.height || x >= p.width { return 0.0; }
    return image[base + ((k / taps) * p.height + y) * p.width + x];
}

fn store(base: u32, row: u32, column: u32, sum: f32) {
    if row >= p.m || column >= p.n { return; }
    let at = base + row * p.n + column;
    var value = sum;
    // The channel among those of all groups.
    if HAS_BIAS == 1u { value += bias[(base / (p.m * p.n)) % p.groups * p.m + row]; }
    if HAS_RESIDUAL == 1u { value += residual[at]; }
    output[at] = activate(ACTIVATION, value);
}
