// Convolution of 8-bit integers where a group has few outputs, as in depthwise
// ones: out = sum of (weight - w_zero) * (pixel - x_zero) + bias.
//
// Bindings: 0 weights, 1 image, 2 out, 3 x_zero, 4 w_zero, 5 bias (all i32; bias
//   bound to anything when unused).
// Shapes: weights [groups * m, channels, kernel_y, kernel_x]; image [batch,
//   groups * channels, height, width]; out [batch, groups * m, out_height,
//   out_width]; x_zero one value; w_zero and bias [groups * m].
// Limits: the sum of all products has to fit 32 bits, as in ONNX. Padding is
//   x_zero.

struct Params {
    total: u32, m: u32, groups: u32, channels: u32,
    height: u32, width: u32, out_height: u32, out_width: u32,
    kernel_y: u32, kernel_x: u32, stride_y: u32, stride_x: u32,
    dilation_y: u32, dilation_x: u32, pad_y: u32, pad_x: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> weights: array<i32>;
@group(0) @binding(1) var<storage, read_write> image: array<i32>;
@group(0) @binding(2) var<storage, read_write> output: array<i32>;
@group(0) @binding(3) var<storage, read_write> image_zero: array<i32>;
@group(0) @binding(4) var<storage, read_write> weight_zeros: array<i32>;
@group(0) @binding(5) var<storage, read_write> bias: array<i32>;

const HAS_BIAS: u32 = 0u;
const THREADS: u32 = 256u;

// Over one channel.
fn channel_sum(line: u32, taps: u32, corner: vec2<u32>, x_zero: i32, w_zero: i32) -> i32 {
    var sum = 0i;
    for (var ky = 0u; ky < p.kernel_y; ky += 1u) {
        // Outside on either side is a large number after wrapping.
        let row = corner.x + ky * p.dilation_y;
        if row >= p.height { continue; }
        for (var kx = 0u; kx < p.kernel_x; kx += 1u) {
            let column = corner.y + kx * p.dilation_x;
            if column >= p.width { continue; }
            let pixel = image[(line + row) * p.width + column] - x_zero;
            sum += pixel * (weights[taps + ky * p.kernel_x + kx] - w_zero);
        }
    }
    return sum;
}

fn answer(at: u32) -> i32 {
    let x = at % p.out_width;
    let y = (at / p.out_width) % p.out_height;
    let plane = at / (p.out_width * p.out_height);
    let filter_index = plane % (p.groups * p.m);
    let corner = vec2<u32>(y * p.stride_y - p.pad_y, x * p.stride_x - p.pad_x);
    let x_zero = image_zero[0];
    let w_zero = weight_zeros[filter_index];
    var sum = 0i;
    for (var channel = 0u; channel < p.channels; channel += 1u) {
        let line = (plane / p.m * p.channels + channel) * p.height;
        let taps = (filter_index * p.channels + channel) * p.kernel_y * p.kernel_x;
        sum += channel_sum(line, taps, corner, x_zero, w_zero);
    }
    if HAS_BIAS == 1u { sum += bias[filter_index]; }
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.total; at += groups.x * THREADS) {
        output[at] = answer(at);
    }
}
