// Matrix product in tiles, as matmul.wgsl, of f32 operands that can be loaded
// four neighbouring elements at a time.
//
// Bindings: 0 a (f32), 1 b (f32), 2 to 6 as in product.wgsl.
// Shapes: a [m, k] and b [k, n] by strides in elements. A_ALONG_K is 1 where
//   neighbours of a lie along k, 0 where they lie along m; B_ALONG_K likewise
//   for k and n.
// Limits: as in product.wgsl. The stride along the neighbours is 1, all others
//   are multiples of 4, and so is the number of elements along them.
// include: common.wgsl
// include: product.wgsl
// include: tiles.wgsl

@group(0) @binding(0) var<storage, read_write> left: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> right: array<vec4<f32>>;

const A_ALONG_K: u32 = 1u;
const B_ALONG_K: u32 = 0u;
const QUADS_K: u32 = TILE_K / 4u;

// Which k and which row or column a thread loads from, of a tile `quads` wide.
fn slot_of(at: u32, quads: u32, along_k: u32) -> vec2<u32> {
    if along_k == 1u { return vec2<u32>((at % QUADS_K) * 4u, at / QUADS_K); }
    return vec2<u32>(at / quads, (at % quads) * 4u);
}

fn fetch_a(base: u32, first_row: u32, first_k: u32, at: u32) -> vec4<f32> {
    let slot = slot_of(at, QUADS_M, A_ALONG_K);
    let k = first_k + slot.x;
    let row = first_row + slot.y;
    if row >= p.m || k >= p.k { return vec4<f32>(); }
    return left[(base + row * p.a_row + k * p.a_col) / 4u];
}

fn fetch_b(base: u32, first_column: u32, first_k: u32, at: u32) -> vec4<f32> {
    let slot = slot_of(at, QUADS_N, B_ALONG_K);
    let k = first_k + slot.x;
    let column = first_column + slot.y;
    if column >= p.n || k >= p.k { return vec4<f32>(); }
    return right[(base + k * p.b_row + column * p.b_col) / 4u];
}

fn put_a(stage: u32, at: u32, quad: vec4<f32>) {
    let slot = slot_of(at, QUADS_M, A_ALONG_K);
    let first = stage * STAGE_A + slot.x * PITCH_M + slot.y / 4u;
    if A_ALONG_K == 0u {
        tile_a[first] = quad;
    } else {
        let part = slot.y % 4u;
        tile_a[first][part] = quad.x;
        tile_a[first + PITCH_M][part] = quad.y;
        tile_a[first + 2u * PITCH_M][part] = quad.z;
        tile_a[first + 3u * PITCH_M][part] = quad.w;
    }
}

fn put_b(stage: u32, at: u32, quad: vec4<f32>) {
    let slot = slot_of(at, QUADS_N, B_ALONG_K);
    let first = stage * STAGE_B + slot.x * PITCH_N + slot.y / 4u;
    if B_ALONG_K == 0u {
        tile_b[first] = quad;
    } else {
        let part = slot.y % 4u;
        tile_b[first][part] = quad.x;
        tile_b[first + PITCH_N][part] = quad.y;
        tile_b[first + 2u * PITCH_N][part] = quad.z;
        tile_b[first + 3u * PITCH_N][part] = quad.w;
    }
}
