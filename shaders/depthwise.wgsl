// Depthwise convolution: one input channel for each output channel.
//
// Bindings: 0 weights (f32), 1 image (f32), 2 out (f32), 3 bias (f32, bound to
//   anything when unused).
// Shapes: weights [channels * multiplier, 1, kernel_y, kernel_x]; image [batch,
//   channels, height, width]; out [batch, channels * multiplier, out_height,
//   out_width].
// Limits: every size below 2^31; padding is zeros.
// include: common.wgsl

struct Params {
    total: u32, channels: u32, multiplier: u32, out_height: u32,
    height: u32, width: u32, out_width: u32, pad: u32,
    kernel_y: u32, kernel_x: u32, stride_y: u32, stride_x: u32,
    dilation_y: u32, dilation_x: u32, pad_y: u32, pad_x: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> image: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;

const ACTIVATION: u32 = 0u;
const HAS_BIAS: u32 = 0u;
const THREADS: u32 = 256u;

fn answer(at: u32) -> f32 {
    let x = at % p.out_width;
    let y = (at / p.out_width) % p.out_height;
    let plane = at / (p.out_width * p.out_height);
    let filter_index = plane % (p.channels * p.multiplier);
    let source = (plane / p.multiplier) * p.height * p.width;
    let taps = filter_index * p.kernel_y * p.kernel_x;
    var sum = 0.0;
    for (var ky = 0u; ky < p.kernel_y; ky += 1u) {
        // Outside on either side is a large number after wrapping.
        let row = y * p.stride_y + ky * p.dilation_y - p.pad_y;
        if row >= p.height { continue; }
        for (var kx = 0u; kx < p.kernel_x; kx += 1u) {
            let column = x * p.stride_x + kx * p.dilation_x - p.pad_x;
            if column >= p.width { continue; }
            sum = fma(image[source + row * p.width + column], weights[taps + ky * p.kernel_x + kx], sum);
        }
    }
    if HAS_BIAS == 1u { sum += bias[filter_index]; }
    return activate(ACTIVATION, sum);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.total; at += groups.x * THREADS) {
        output[at] = answer(at);
    }
}
