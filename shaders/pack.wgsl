// Packs rows of small integers four to a word for dot4I8Packed, and adds each
// row up.
//
// Bindings: 0 x (i32, values of 8 bits), 1 packed (words), 2 sums (i32).
// Shapes: x [rows, length]; packed [rows, words], words = ceil(length / 4), the
//   rest of the last word 0; sums [rows], of the values as packed.
// Limits: length at most 65536, so that sums are exact. SHIFT is taken off each
//   value: 128 where they are unsigned.

struct Params { rows: u32, length: u32, words: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<i32>;
@group(0) @binding(1) var<storage, read_write> output: array<u32>;
@group(0) @binding(2) var<storage, read_write> sums: array<i32>;

const SHIFT: u32 = 0u;
const LANES: u32 = 32u;
// include: lanes.wgsl

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % LANES;
    for (var first = group.x * GROUP_ROWS; first < p.rows; first += groups.x * GROUP_ROWS) {
        let row = first + thread / LANES;
        let end = select(0u, p.words, row < p.rows);
        var total = 0i;
        for (var word = lane; word < end; word += LANES) {
            var packed = 0u;
            for (var at = 0u; at < 4u; at += 1u) {
                let column = word * 4u + at;
                if column < p.length {
                    let value = input[row * p.length + column] - i32(SHIFT);
                    total += value;
                    packed |= (bitcast<u32>(value) & 0xffu) << (at * 8u);
                }
            }
            output[row * p.words + word] = packed;
        }
        let sum = lanes_sum(thread, f32(total));
        if lane == 0u && row < p.rows { sums[row] = i32(sum); }
    }
}
