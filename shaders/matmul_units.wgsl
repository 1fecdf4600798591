// Matrix product of f16 on matrix units, sums in f32. product.wgsl says what is
// written.
//
// Bindings: 0 a (f16 pairs), 1 b (f16 pairs), 2 to 6 as in product.wgsl.
// Shapes: a [panels, m, 16] and b [panels, n, 16] words, each panel 32 values
//   along k, as pack_half.wgsl and expand.wgsl write them, so that a tile is one
//   piece of memory; out [m, n]. A warp of 32 threads answers FRAGMENTS * 16 by
//   64.
// Limits: as in product.wgsl; no batch; what is behind the last k is zeros.
//   Subgroups have 32 threads. WARPS_M * WARPS_N at most 8, TILE_K 32 or 64; a
//   thread fetches at most 8 slots of each operand.
enable f16;
enable wgpu_cooperative_matrix;
// include: common.wgsl
// include: product.wgsl

@group(0) @binding(0) var<storage, read_write> left: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> right: array<vec4<u32>>;

const WARPS_M: u32 = 2u;
const WARPS_N: u32 = 2u;
// Fragments of 16 rows that a warp answers: 2 or 4.
const FRAGMENTS: u32 = 4u;
const TILE_K: u32 = 32u;
// Tiles in workgroup memory: with 2, one is written while another is read.
const STAGES: u32 = 1u;

const THREADS: u32 = 32u * WARPS_M * WARPS_N;
const WARP_M: u32 = 16u * FRAGMENTS;
const TILE_M: u32 = WARP_M * WARPS_M;
const TILE_N: u32 = 64u * WARPS_N;
// Four words of f16 in a row of a tile. In workgroup memory they are two quads,
// and a row has two more against bank conflicts.
const UNITS: u32 = TILE_K / 8u;
const PITCH: u32 = UNITS * 2u + 2u;
// Units of a row in one panel.
const PANEL: u32 = 4u;
const STAGE_A: u32 = TILE_M * PITCH;
const STAGE_B: u32 = TILE_N * PITCH;
const SLOTS_A: u32 = TILE_M * UNITS;
const SLOTS_B: u32 = TILE_N * UNITS;
const PATCH_PITCH: u32 = 20u;
const PATCH: u32 = 16u * PATCH_PITCH;

var<workgroup> tile_a: array<vec4<f16>, STAGES * STAGE_A>;
var<workgroup> tile_b: array<vec4<f16>, STAGES * STAGE_B>;
var<workgroup> patches: array<f32, WARPS_M * WARPS_N * PATCH>;

struct Slots { q0: vec4<u32>, q1: vec4<u32>, q2: vec4<u32>, q3: vec4<u32>, q4: vec4<u32>, q5: vec4<u32>, q6: vec4<u32>, q7: vec4<u32>, }

struct Fetched { a: Slots, b: Slots, }

// Whether a thread has an `index`-th slot of `count`.
fn has(index: u32, thread: u32, count: u32) -> bool {
    return index * THREADS < count && ((index + 1u) * THREADS <= count || thread + index * THREADS < count);
}

// Panel, row and unit of a tile's slot, of a tile `rows` high.
fn slot_of(at: u32, rows: u32) -> vec3<u32> {
    return vec3<u32>(at / (rows * PANEL), at / PANEL % rows, at % PANEL);
}

// Loads have no branch, so that they overlap. Rows and columns beyond the answer
// are those at its edge again, and not stored; neither is what was fetched behind
// the last tile used. Only the second panel of a tile may have to be zeros.
fn within(unit: vec4<u32>, panel: u32) -> vec4<u32> {
    if TILE_K == 32u { return unit; }
    return select(vec4<u32>(), unit, panel * 32u < p.k);
}

fn panel_at(panel: u32) -> u32 {
    return min(panel, (p.k - 1u) / 32u);
}

fn fetch_a(first_row: u32, first_k: u32, at: u32) -> vec4<u32> {
    let slot = slot_of(at, TILE_M);
    let panel = first_k / 32u + slot.x;
    let row = min(first_row + slot.y, p.m - 1u);
    return within(left[(panel_at(panel) * p.m + row) * PANEL + slot.z], panel);
}

fn fetch_b(first_column: u32, first_k: u32, at: u32) -> vec4<u32> {
    let slot = slot_of(at, TILE_N);
    let panel = first_k / 32u + slot.x;
    let column = min(first_column + slot.y, p.n - 1u);
    return within(right[(panel_at(panel) * p.n + column) * PANEL + slot.z], panel);
}

fn fetch_tile_a(row: u32, k: u32, thread: u32) -> Slots {
    var f: Slots;
    if has(0u, thread, SLOTS_A) { f.q0 = fetch_a(row, k, thread + 0u * THREADS); }
    if has(1u, thread, SLOTS_A) { f.q1 = fetch_a(row, k, thread + 1u * THREADS); }
    if has(2u, thread, SLOTS_A) { f.q2 = fetch_a(row, k, thread + 2u * THREADS); }
    if has(3u, thread, SLOTS_A) { f.q3 = fetch_a(row, k, thread + 3u * THREADS); }
    if has(4u, thread, SLOTS_A) { f.q4 = fetch_a(row, k, thread + 4u * THREADS); }
    if has(5u, thread, SLOTS_A) { f.q5 = fetch_a(row, k, thread + 5u * THREADS); }
    if has(6u, thread, SLOTS_A) { f.q6 = fetch_a(row, k, thread + 6u * THREADS); }
    if has(7u, thread, SLOTS_A) { f.q7 = fetch_a(row, k, thread + 7u * THREADS); }
    return f;
}

fn fetch_tile_b(column: u32, k: u32, thread: u32) -> Slots {
    var f: Slots;
    if has(0u, thread, SLOTS_B) { f.q0 = fetch_b(column, k, thread + 0u * THREADS); }
    if has(1u, thread, SLOTS_B) { f.q1 = fetch_b(column, k, thread + 1u * THREADS); }
    if has(2u, thread, SLOTS_B) { f.q2 = fetch_b(column, k, thread + 2u * THREADS); }
    if has(3u, thread, SLOTS_B) { f.q3 = fetch_b(column, k, thread + 3u * THREADS); }
    if has(4u, thread, SLOTS_B) { f.q4 = fetch_b(column, k, thread + 4u * THREADS); }
    if has(5u, thread, SLOTS_B) { f.q5 = fetch_b(column, k, thread + 5u * THREADS); }
    if has(6u, thread, SLOTS_B) { f.q6 = fetch_b(column, k, thread + 6u * THREADS); }
    if has(7u, thread, SLOTS_B) { f.q7 = fetch_b(column, k, thread + 7u * THREADS); }
    return f;
}

fn fetch(row: u32, column: u32, k: u32, thread: u32) -> Fetched {
    return Fetched(fetch_tile_a(row, k, thread), fetch_tile_b(column, k, thread));
}

fn quad_of(words: vec2<u32>) -> vec4<f16> {
    return vec4<f16>(vec2<f16>(unpack2x16float(words.x)), vec2<f16>(unpack2x16float(words.y)));
}

fn put_a(stage: u32, at: u32, unit: vec4<u32>) {
    let slot = slot_of(at, TILE_M);
    let to = stage * STAGE_A + slot.y * PITCH + (slot.x * PANEL + slot.z) * 2u;
    tile_a[to] = quad_of(unit.xy);
    tile_a[to + 1u] = quad_of(unit.zw);
}

fn put_b(stage: u32, at: u32, unit: vec4<u32>) {
    let slot = slot_of(at, TILE_N);
    let to = stage * STAGE_B + slot.y * PITCH + (slot.x * PANEL + slot.z) * 2u;
    tile_b[to] = quad_of(unit.xy);
    tile_b[to + 1u] = quad_of(unit.zw);
}

fn put(stage: u32, f: Fetched, thread: u32) {
    if has(0u, thread, SLOTS_A) { put_a(stage, thread + 0u * THREADS, f.a.q0); }
    if has(1u, thread, SLOTS_A) { put_a(stage, thread + 1u * THREADS, f.a.q1); }
    if has(2u, thread, SLOTS_A) { put_a(stage, thread + 2u * THREADS, f.a.q2); }
    if has(3u, thread, SLOTS_A) { put_a(stage, thread + 3u * THREADS, f.a.q3); }
    if has(4u, thread, SLOTS_A) { put_a(stage, thread + 4u * THREADS, f.a.q4); }
    if has(5u, thread, SLOTS_A) { put_a(stage, thread + 5u * THREADS, f.a.q5); }
    if has(6u, thread, SLOTS_A) { put_a(stage, thread + 6u * THREADS, f.a.q6); }
    if has(7u, thread, SLOTS_A) { put_a(stage, thread + 7u * THREADS, f.a.q7); }
    if has(0u, thread, SLOTS_B) { put_b(stage, thread + 0u * THREADS, f.b.q0); }
    if has(1u, thread, SLOTS_B) { put_b(stage, thread + 1u * THREADS, f.b.q1); }
    if has(2u, thread, SLOTS_B) { put_b(stage, thread + 2u * THREADS, f.b.q2); }
    if has(3u, thread, SLOTS_B) { put_b(stage, thread + 3u * THREADS, f.b.q3); }
    if has(4u, thread, SLOTS_B) { put_b(stage, thread + 4u * THREADS, f.b.q4); }
    if has(5u, thread, SLOTS_B) { put_b(stage, thread + 5u * THREADS, f.b.q5); }
    if has(6u, thread, SLOTS_B) { put_b(stage, thread + 6u * THREADS, f.b.q6); }
    if has(7u, thread, SLOTS_B) { put_b(stage, thread + 7u * THREADS, f.b.q7); }
}

// Writes one fragment of the answer, by way of the warp's own patch of workgroup
// memory.
fn finish(sums: coop_mat16x16<f32, C>, base: u32, row: u32, column: u32, thread: u32) {
    let patch_at = thread / 32u * PATCH;
    let fragment = sums;
    subgroupBarrier();
    coopStoreT(fragment, &patches[patch_at], PATCH_PITCH);
    subgroupBarrier();
    for (var at = thread % 32u; at < 256u; at += 32u) {
        store(base, row + at / 16u, column + at % 16u, patches[patch_at + at / 16u * PATCH_PITCH + at % 16u]);
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    var base = bases(group.z / PARTS);
    if PARTS > 1u { base.z = group.z * p.m * p.n; }
    let terms = terms_of(group.z % PARTS, p.k, TILE_K);
    let tile = tile_of(group, groups);
    let first_row = tile.x * TILE_M;
    let first_column = tile.y * TILE_N;
    let warp = thread / 32u;
    let warp_row = warp / WARPS_N * WARP_M;
    let warp_column = warp % WARPS_N * 64u;
    var c00: coop_mat16x16<f32, C>; var c01: coop_mat16x16<f32, C>; var c02: coop_mat16x16<f32, C>; var c03: coop_mat16x16<f32, C>;
    var c10: coop_mat16x16<f32, C>; var c11: coop_mat16x16<f32, C>; var c12: coop_mat16x16<f32, C>; var c13: coop_mat16x16<f32, C>;
    var c20: coop_mat16x16<f32, C>; var c21: coop_mat16x16<f32, C>; var c22: coop_mat16x16<f32, C>; var c23: coop_mat16x16<f32, C>;
    var c30: coop_mat16x16<f32, C>; var c31: coop_mat16x16<f32, C>; var c32: coop_mat16x16<f32, C>; var c33: coop_mat16x16<f32, C>;
    var stage = 0u;
    put(stage, fetch(first_row, first_column, terms.x, thread), thread);
    workgroupBarrier();
    for (var first_k = terms.x; first_k < terms.y; first_k += TILE_K) {
        // What is fetched last is not used.
        let next = fetch(first_row, first_column, first_k + TILE_K, thread);
        for (var unit = 0u; unit < UNITS; unit += 2u) {
            let from_a = stage * STAGE_A + warp_row * PITCH + unit * 2u;
            let from_b = stage * STAGE_B + warp_column * PITCH + unit * 2u;
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&tile_b[from_b + 0u * 16u * PITCH], PITCH);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&tile_b[from_b + 1u * 16u * PITCH], PITCH);
            let b2 = coopLoad<coop_mat16x16<f16, B>>(&tile_b[from_b + 2u * 16u * PITCH], PITCH);
            let b3 = coopLoad<coop_mat16x16<f16, B>>(&tile_b[from_b + 3u * 16u * PITCH], PITCH);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&tile_a[from_a + 0u * 16u * PITCH], PITCH);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c03 = coopMultiplyAdd(a0, b3, c03);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&tile_a[from_a + 1u * 16u * PITCH], PITCH);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c13 = coopMultiplyAdd(a1, b3, c13);
            if FRAGMENTS == 4u {
                let a2 = coopLoadT<coop_mat16x16<f16, A>>(&tile_a[from_a + 2u * 16u * PITCH], PITCH);
                c20 = coopMultiplyAdd(a2, b0, c20);
                c21 = coopMultiplyAdd(a2, b1, c21);
                c22 = coopMultiplyAdd(a2, b2, c22);
                c23 = coopMultiplyAdd(a2, b3, c23);
            }
            if FRAGMENTS == 4u {
                let a3 = coopLoadT<coop_mat16x16<f16, A>>(&tile_a[from_a + 3u * 16u * PITCH], PITCH);
                c30 = coopMultiplyAdd(a3, b0, c30);
                c31 = coopMultiplyAdd(a3, b1, c31);
                c32 = coopMultiplyAdd(a3, b2, c32);
                c33 = coopMultiplyAdd(a3, b3, c33);
            }
        }
        if STAGES == 1u { workgroupBarrier(); } else { stage = 1u - stage; }
        put(stage, next, thread);
        workgroupBarrier();
    }
    let row = first_row + warp_row;
    let column = first_column + warp_column;
    finish(c00, base.z, row + 0u * 16u, column + 0u * 16u, thread);
    finish(c01, base.z, row + 0u * 16u, column + 1u * 16u, thread);
    finish(c02, base.z, row + 0u * 16u, column + 2u * 16u, thread);
    finish(c03, base.z, row + 0u * 16u, column + 3u * 16u, thread);
    finish(c10, base.z, row + 1u * 16u, column + 0u * 16u, thread);
    finish(c11, base.z, row + 1u * 16u, column + 1u * 16u, thread);
    finish(c12, base.z, row + 1u * 16u, column + 2u * 16u, thread);
    finish(c13, base.z, row + 1u * 16u, column + 3u * 16u, thread);
    if FRAGMENTS == 4u {
        finish(c20, base.z, row + 2u * 16u, column + 0u * 16u, thread);
        finish(c21, base.z, row + 2u * 16u, column + 1u * 16u, thread);
        finish(c22, base.z, row + 2u * 16u, column + 2u * 16u, thread);
        finish(c23, base.z, row + 2u * 16u, column + 3u * 16u, thread);
    }
    if FRAGMENTS == 4u {
        finish(c30, base.z, row + 3u * 16u, column + 0u * 16u, thread);
        finish(c31, base.z, row + 3u * 16u, column + 1u * 16u, thread);
        finish(c32, base.z, row + 3u * 16u, column + 2u * 16u, thread);
        finish(c33, base.z, row + 3u * 16u, column + 3u * 16u, thread);
    }
}
