// Weights of few bits as f16 pairs in words, for the matrix units.
//
// Bindings: 0 in (words of BITS), 1 scales, 2 zero points (f32), 3 out (words).
// Shapes: in [n, in_pitch] words along k, with scales and zero points for blocks
//   of `block` values, [n, blocks]; out [n, out_pitch] words; what is behind the
//   last k is zeros.
// Limits: n * out_pitch below 2^31; blocks are multiples of 8 values; numbers
//   beyond f16's become infinite.

struct Params { n: u32, k: u32, in_pitch: u32, out_pitch: u32, block: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<u32>;
@group(0) @binding(1) var<storage, read_write> scales: array<f32>;
@group(0) @binding(2) var<storage, read_write> zeros: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<vec4<u32>>;

const BITS: u32 = 8u;
const THREADS: u32 = 256u;

// 2^23 and a small integer in the last bits is their sum.
fn scaled(bits: vec4<u32>, zero: f32, scale: f32) -> vec4<f32> {
    let exact = bitcast<vec4<f32>>(bits | vec4<u32>(0x4b000000u)) - 8388608.0;
    return (exact - zero) * scale;
}

fn values(word: u32) -> vec4<u32> {
    let mask = (1u << BITS) - 1u;
    return (vec4<u32>(word) >> vec4<u32>(0u, BITS, 2u * BITS, 3u * BITS)) & vec4<u32>(mask);
}

fn within(quad: vec4<f32>, k: u32) -> vec4<f32> {
    return select(vec4<f32>(), quad, vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.k));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = p.out_pitch / 4u;
    let blocks = (p.k + p.block - 1u) / p.block;
    for (var at = group.x * THREADS + thread; at < p.n * row; at += groups.x * THREADS) {
        let column = at / row;
        let k = at % row * 8u;
        var words = vec4<u32>();
        if k < p.k {
            let block = column * blocks + k / p.block;
            let origin = column * p.in_pitch + k * BITS / 32u;
            let first = input[origin];
            var second = first >> 16u;
            if BITS == 8u { second = input[origin + 1u]; }
            let low = within(scaled(values(first), zeros[block], scales[block]), k);
            let high = within(scaled(values(second), zeros[block], scales[block]), k + 4u);
            words = vec4<u32>(
                pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
        }
        output[at] = words;
    }
}
