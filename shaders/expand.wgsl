// Weights as f16 pairs in words, for the matrix units.
//
// Bindings: 0 in (words of BITS), 1 scales, 2 zero points (f32), 3 out (words).
// Shapes: in [n, pitch] words along k: BITS 4 or 8 with scales and zero points for
//   blocks of `block` values, [n, blocks], or 16 for f16; out [panels, n, 16]
//   words, a panel for each 32 values; what is behind the last k is zeros.
// Limits: out below 2^31 words; blocks are multiples of 8 values; numbers beyond
//   f16's become infinite; f16 behind the last k are zeros up to a multiple of 8.

struct Params { n: u32, k: u32, pitch: u32, panels: u32, block: u32, }

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
    const STEP: u32 = BITS % 16u;
    let mask = (1u << STEP) - 1u;
    return (vec4<u32>(word) >> vec4<u32>(0u, STEP, 2u * STEP, 3u * STEP)) & vec4<u32>(mask);
}

fn within(quad: vec4<f32>, k: u32) -> vec4<f32> {
    return select(vec4<f32>(), quad, vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.k));
}

fn scaled_words(origin: u32, block: u32, k: u32) -> vec4<u32> {
    let first = input[origin];
    var second = first >> 16u;
    if BITS == 8u { second = input[origin + 1u]; }
    let low = within(scaled(values(first), zeros[block], scales[block]), k);
    let high = within(scaled(values(second), zeros[block], scales[block]), k + 4u);
    return vec4<u32>(
        pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let blocks = (p.k + p.block - 1u) / p.block;
    let count = p.panels * p.n * 4u;
    for (var at = group.x * THREADS + thread; at < count; at += groups.x * THREADS) {
        let column = at / 4u % p.n;
        let k = (at / (p.n * 4u) * 4u + at % 4u) * 8u;
        var words = vec4<u32>();
        if k < p.k {
            let origin = column * p.pitch + k * BITS / 32u;
            if BITS == 16u {
                words = vec4<u32>(input[origin], input[origin + 1u], input[origin + 2u], input[origin + 3u]);
            } else {
                words = scaled_words(origin, column * blocks + k / p.block, k);
            }
        }
        output[at] = words;
    }
}
