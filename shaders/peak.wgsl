// Multiplies and adds in registers, as fast as the device can: its peak in f32.
//
// Bindings: 0 one word for each invocation, written.
// Shapes: one dimension of workgroups; each invocation does ROUNDS times eight
//   vectors of four multiplications with additions.
// Limits: at most as many invocations as the output has words.

struct Params { factor: f32, term: f32 }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> output: array<f32>;

const THREADS: u32 = 256u;
const ROUNDS: u32 = 2048u;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let factor = vec4<f32>(p.factor);
    let term = vec4<f32>(p.term);
    var a = vec4<f32>(f32(id.x));
    var b = a + 1.0;
    var c = a + 2.0;
    var d = a + 3.0;
    var e = a + 4.0;
    var f = a + 5.0;
    var g = a + 6.0;
    var h = a + 7.0;
    for (var round = 0u; round < ROUNDS; round += 1u) {
        a = fma(a, factor, term);
        b = fma(b, factor, term);
        c = fma(c, factor, term);
        d = fma(d, factor, term);
        e = fma(e, factor, term);
        f = fma(f, factor, term);
        g = fma(g, factor, term);
        h = fma(h, factor, term);
    }
    let sum = a + b + c + d + e + f + g + h;
    if (id.x < arrayLength(&output)) {
        output[id.x] = sum.x + sum.y + sum.z + sum.w;
    }
}
