// Packs four channels of an image to a word for dot4I8Packed.
//
// Bindings: 0 image (i32, values of 8 bits), 1 packed (words).
// Shapes: image [planes, channels, plane]; packed [planes, quads, plane], quads =
//   ceil(channels / 4), channels that are not there 0.
// Limits: SHIFT is taken off each value: 128 where they are unsigned.

struct Params { total: u32, plane: u32, channels: u32, quads: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> image: array<i32>;
@group(0) @binding(1) var<storage, read_write> output: array<u32>;

const SHIFT: u32 = 0u;
const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.total; at += groups.x * THREADS) {
        let pixel = at % p.plane;
        let first = at / p.plane % p.quads * 4u;
        let base = at / (p.plane * p.quads) * p.channels;
        var packed = 0u;
        for (var lane = 0u; lane < 4u; lane += 1u) {
            let channel = first + lane;
            if channel < p.channels {
                let value = image[(base + channel) * p.plane + pixel] - i32(SHIFT);
                packed |= (bitcast<u32>(value) & 0xffu) << (lane * 8u);
            }
        }
        output[at] = packed;
    }
}
