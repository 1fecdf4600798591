// Matrix product in tiles, each thread holding a block of the answer in
// registers; operands by any strides. product.wgsl says what is written.
//
// Bindings: 0 a (f32), 1 b (words of B_FORMAT), 2 to 6 as in product.wgsl.
// Shapes: a [m, k] and b [k, n] by strides in elements, so that transposed
//   operands need no copy; out [m, n].
// Limits: as in product.wgsl; k may be any number. B_FORMAT:
//   0 f32 by strides; packed along k in words, one row a column of b, b_col
//   words apart: 1 f16; with scales and zero points for blocks of `block`
//   values along k, 2 of 8 bits and 3 of 4 bits.
// include: common.wgsl
// include: product.wgsl
// include: tiles.wgsl
// include: scalars.wgsl

@group(0) @binding(0) var<storage, read_write> left: array<f32>;
@group(0) @binding(1) var<storage, read_write> right: array<u32>;

const B_FORMAT: u32 = 0u;

fn load_a(base: u32, row: u32, k: u32) -> f32 {
    if row >= p.m || k >= p.k { return 0.0; }
    return left[base + row * p.a_row + k * p.a_col];
}

fn load_b(base: u32, k: u32, column: u32) -> f32 {
    if column >= p.n || k >= p.k { return 0.0; }
    switch B_FORMAT {
        case 1u: {
            return unpack2x16float(right[base + column * p.b_col + (k >> 1u)])[k & 1u];
        }
        case 2u: {
            let word = right[base + column * p.b_col + (k >> 2u)];
            let at = column * ((p.k + p.block - 1u) / p.block) + k / p.block;
            return (f32(extractBits(word, (k & 3u) * 8u, 8u)) - zeros[at]) * scales[at];
        }
        case 3u: {
            let word = right[base + column * p.b_col + (k >> 3u)];
            let at = column * ((p.k + p.block - 1u) / p.block) + k / p.block;
            return (f32(extractBits(word, (k & 7u) * 4u, 4u)) - zeros[at]) * scales[at];
        }
        default: {
            return bitcast<f32>(right[base + k * p.b_row + column * p.b_col]);
        }
    }
}
