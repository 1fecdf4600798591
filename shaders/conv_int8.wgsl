// Convolution of 8-bit integers as a matrix product with patches that are never
// written out, four channels at a time:
// out = sum of (weight - w_zero) * (pixel - x_zero) + bias.
//
// Bindings: 0 weights (packed words), 1 image (packed words), 2 out (i32), 3
//   filters (pairs of i32), 4 x_zero, 5 bias (i32; bound to anything when unused).
// Shapes: weights [groups * m, words], words = quads * taps, and image [batch *
//   groups, quads, height, width], packed along channels as pack_channels.wgsl
//   does, with its shift; out [batch, groups * m, out_height, out_width]; filters
//   [groups * m], the sum of the weights as packed and their w_zero, less what
//   packing took off; x_zero one value; bias [groups * m]. Workgroup z counts
//   images and groups.
// Limits: the sum of all products has to fit 32 bits, as in ONNX. SHIFT_X is what
//   packing took off the image. HAS_ZEROS is 0 when the filters' zeros are all 0.
//   Padding is x_zero.

struct Params {
    m: u32, n: u32, words: u32, groups: u32,
    height: u32, width: u32, out_width: u32, channels: u32,
    stride_y: u32, stride_x: u32,
    dilation_y: u32, dilation_x: u32, pad_y: u32, pad_x: u32,
    terms: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> weights: array<u32>;
@group(0) @binding(1) var<storage, read_write> image: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<i32>;
@group(0) @binding(3) var<storage, read_write> filters: array<vec2<i32>>;
@group(0) @binding(4) var<storage, read_write> image_zero: array<i32>;
@group(0) @binding(5) var<storage, read_write> bias: array<i32>;

const SHIFT_X: u32 = 0u;
const HAS_ZEROS: u32 = 0u;
const HAS_BIAS: u32 = 0u;
// Of the window; known beforehand, because every load divides by them.
const KERNEL_Y: u32 = 1u;
const KERNEL_X: u32 = 1u;
// A thread answers 4 by 4 elements of a tile.
const SIDE: u32 = 16u;
const TILE: u32 = SIDE * 4u;
const THREADS: u32 = SIDE * SIDE;
const DEPTH: u32 = 8u;
const PITCH: u32 = TILE + 1u;
const ONES: u32 = 0x01010101u;

var<workgroup> tile_w: array<u32, DEPTH * PITCH>;
var<workgroup> tile_x: array<u32, DEPTH * PITCH>;

fn load_weights(group: u32, row: u32, word: u32) -> u32 {
    if row >= p.m || word >= p.words { return 0u; }
    return weights[(group * p.m + row) * p.words + word];
}

// What an output at `corner` (the window's first row and column) sees.
fn load_image(z: u32, corner: vec2<u32>, word: u32) -> u32 {
    let quad = word / (KERNEL_Y * KERNEL_X);
    let tap = word % (KERNEL_Y * KERNEL_X);
    // Outside on either side is a large number after wrapping.
    let y = corner.x + tap / KERNEL_X * p.dilation_y;
    let x = corner.y + tap % KERNEL_X * p.dilation_x;
    if y < p.height && x < p.width {
        let plane = z * ((p.channels + 3u) / 4u) + quad;
        return image[(plane * p.height + y) * p.width + x];
    }
    let padding = (bitcast<u32>(image_zero[0] - i32(SHIFT_X)) & 0xffu) * ONES;
    // Channels that are not there are zero, in padding as well.
    let there = min(p.channels - quad * 4u, 4u);
    return padding & (0xffffffffu >> (32u - there * 8u));
}

fn dots(w: u32, x: vec4<u32>, sums: vec4<i32>) -> vec4<i32> {
    return sums + vec4<i32>(
        dot4I8Packed(w, x.x), dot4I8Packed(w, x.y), dot4I8Packed(w, x.z), dot4I8Packed(w, x.w));
}

// The sums of one row with zero points taken off.
fn settled(z: u32, row: u32, sums: vec4<i32>, pixels: vec4<i32>) -> vec4<i32> {
    let channel = z % p.groups * p.m + min(row, p.m - 1u);
    let own = filters[channel];
    let x_zero = image_zero[0] - i32(SHIFT_X);
    var value = sums - vec4<i32>(x_zero * own.x);
    if HAS_ZEROS == 1u { value += own.y * (vec4<i32>(i32(p.terms) * x_zero) - pixels); }
    if HAS_BIAS == 1u { value += vec4<i32>(bias[channel]); }
    return value;
}

fn store(z: u32, row: u32, column: u32, value: i32) {
    if row < p.m && column < p.n { output[(z * p.m + row) * p.n + column] = value; }
}

fn store_row(z: u32, row: u32, column: u32, sums: vec4<i32>, pixels: vec4<i32>) {
    let values = settled(z, row, sums, pixels);
    store(z, row, column, values.x);
    store(z, row, column + SIDE, values.y);
    store(z, row, column + 2u * SIDE, values.z);
    store(z, row, column + 3u * SIDE, values.w);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * TILE;
    let first_column = group.x * TILE;
    let ty = thread / SIDE;
    let tx = thread % SIDE;
    // A thread loads pixels for one position only.
    let position = min(first_column + thread % TILE, p.n - 1u);
    let corner = vec2<u32>(
        position / p.out_width * p.stride_y - p.pad_y, position % p.out_width * p.stride_x - p.pad_x);
    var c0 = vec4<i32>(); var c1 = vec4<i32>(); var c2 = vec4<i32>(); var c3 = vec4<i32>();
    var pixels = vec4<i32>();
    for (var first = 0u; first < p.words; first += DEPTH) {
        for (var at = thread; at < DEPTH * TILE; at += THREADS) {
            let row = at / DEPTH;
            tile_w[at % DEPTH * PITCH + row] = load_weights(group.z % p.groups, first_row + row, first + at % DEPTH);
            let word = at / TILE;
            var seen = 0u;
            if first + word < p.words { seen = load_image(group.z, corner, first + word); }
            tile_x[word * PITCH + at % TILE] = seen;
        }
        workgroupBarrier();
        for (var word = 0u; word < DEPTH; word += 1u) {
            let base = word * PITCH;
            let x = vec4<u32>(
                tile_x[base + tx], tile_x[base + tx + SIDE], tile_x[base + tx + 2u * SIDE],
                tile_x[base + tx + 3u * SIDE]);
            c0 = dots(tile_w[base + ty], x, c0);
            c1 = dots(tile_w[base + ty + SIDE], x, c1);
            c2 = dots(tile_w[base + ty + 2u * SIDE], x, c2);
            c3 = dots(tile_w[base + ty + 3u * SIDE], x, c3);
            if HAS_ZEROS == 1u { pixels = dots(ONES, x, pixels); }
        }
        workgroupBarrier();
    }
    let row = first_row + ty;
    let column = first_column + tx;
    store_row(group.z, row, column, c0, pixels);
    store_row(group.z, row + SIDE, column, c1, pixels);
    store_row(group.z, row + 2u * SIDE, column, c2, pixels);
    store_row(group.z, row + 3u * SIDE, column, c3, pixels);
}
