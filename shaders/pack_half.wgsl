// Rows of f32 as f16 pairs in words, for the matrix units.
//
// Bindings: 0 in (f32), 1 out (words).
// Shapes: in [rows, length] by strides in elements; out [panels, rows, 16] words,
//   a panel for each 32 values; what is behind the last value is zeros.
// Limits: out below 2^31 words; numbers beyond f16's become infinite.

struct Params { rows: u32, length: u32, panels: u32, row: u32, col: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<u32>;

const THREADS: u32 = 256u;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let count = p.panels * p.rows * 16u;
    for (var at = group.x * THREADS + thread; at < count; at += groups.x * THREADS) {
        let row = at / 16u % p.rows;
        let k = (at / (p.rows * 16u) * 16u + at % 16u) * 2u;
        let origin = row * p.row + k * p.col;
        var pair = vec2<f32>();
        if k < p.length { pair.x = input[origin]; }
        if k + 1u < p.length { pair.y = input[origin + p.col]; }
        output[at] = pack2x16float(pair);
    }
}
