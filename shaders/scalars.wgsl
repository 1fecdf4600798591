// Loads of the tiles' operands one element at a time.
//
// Bindings: none of its own. Whoever includes this has load_a(base, row, k) and
//   load_b(base, k, column), which answer 0 outside the operand.
// Shapes: four rows, or columns, of one k at a time.
// Limits: none.

// Which index of an operand neighbouring threads load: 1 for k, 0 for m or n.
const A_ALONG_K: u32 = 1u;
const B_ALONG_K: u32 = 0u;

fn fetch_a(base: u32, first_row: u32, first_k: u32, at: u32) -> vec4<f32> {
    let slot = slot_of(at, QUADS_M, A_ALONG_K);
    let k = first_k + slot.x;
    let row = first_row + slot.y * 4u;
    return vec4<f32>(
        load_a(base, row, k), load_a(base, row + 1u, k), load_a(base, row + 2u, k), load_a(base, row + 3u, k));
}

fn fetch_b(base: u32, first_column: u32, first_k: u32, at: u32) -> vec4<f32> {
    let slot = slot_of(at, QUADS_N, B_ALONG_K);
    let k = first_k + slot.x;
    let column = first_column + slot.y * 4u;
    return vec4<f32>(
        load_b(base, k, column), load_b(base, k, column + 1u), load_b(base, k, column + 2u), load_b(base, k, column + 3u));
}

fn put_a(stage: u32, at: u32, quad: vec4<f32>) {
    let slot = slot_of(at, QUADS_M, A_ALONG_K);
    tile_a[stage * STAGE_A + slot.x * PITCH_M + slot.y] = quad;
}

fn put_b(stage: u32, at: u32, quad: vec4<f32>) {
    let slot = slot_of(at, QUADS_N, B_ALONG_K);
    tile_b[stage * STAGE_B + slot.x * PITCH_N + slot.y] = quad;
}

// Which k and which quad a thread loads, of a tile `quads` wide.
fn slot_of(at: u32, quads: u32, along_k: u32) -> vec2<u32> {
    if along_k == 1u { return vec2<u32>(at % TILE_K, at / TILE_K); }
    return vec2<u32>(at / quads, at % quads);
}
