// Largest or mean of a sliding window.
//
// Bindings: 0 image (f32), 1 out (f32).
// Shapes: image [planes, height, width], out [planes, out_height, out_width].
// Limits: every size below 2^31. KIND: 0 largest, 1 mean of what is inside the
//   image, 2 mean with padding counted. NaN makes the answer NaN.
// include: common.wgsl

struct Params {
    total: u32, out_height: u32, out_width: u32, height: u32,
    width: u32, kernel_y: u32, kernel_x: u32, stride_y: u32,
    stride_x: u32, dilation_y: u32, dilation_x: u32, pad_y: u32, pad_x: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> image: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;

const KIND: u32 = 0u;
const THREADS: u32 = 256u;

fn answer(at: u32) -> f32 {
    let x = at % p.out_width;
    let y = (at / p.out_width) % p.out_height;
    let source = (at / (p.out_width * p.out_height)) * p.height * p.width;
    var sum = 0.0;
    var largest = bitcast<f32>(0xff800000u | (p.height & 0u));
    var count = 0u;
    for (var ky = 0u; ky < p.kernel_y; ky += 1u) {
        let row = y * p.stride_y + ky * p.dilation_y - p.pad_y;
        if row >= p.height { continue; }
        for (var kx = 0u; kx < p.kernel_x; kx += 1u) {
            let column = x * p.stride_x + kx * p.dilation_x - p.pad_x;
            if column >= p.width { continue; }
            let value = image[source + row * p.width + column];
            sum += value;
            if is_nan(value) || value > largest { largest = select(value, largest, is_nan(largest)); }
            count += 1u;
        }
    }
    if KIND == 0u { return largest; }
    if KIND == 2u { count = p.kernel_y * p.kernel_x; }
    return sum / f32(count);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.total; at += groups.x * THREADS) {
        output[at] = answer(at);
    }
}
