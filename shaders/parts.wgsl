// How workgroups share a product's work: several may take a part of the terms
// each, and neighbouring ones take tiles that share operands.
//
// Bindings: none.
// Shapes: workgroups [tiles along n, tiles along m, products * PARTS].
// Limits: with more than one part, sums are written as they are, [products,
//   PARTS, m, n], and combine.wgsl adds them.

const PARTS: u32 = 1u;
// Rows of tiles that are worked on side by side, so that they find one another's
// operands in the cache.
const BAND: u32 = 8u;

// The first term of a part, and the one behind its last.
fn terms_of(part: u32, terms: u32, depth: u32) -> vec2<u32> {
    if PARTS == 1u { return vec2<u32>(0u, terms); }
    let tiles = (terms + depth - 1u) / depth;
    let length = (tiles + PARTS - 1u) / PARTS * depth;
    return vec2<u32>(part * length, min(part * length + length, terms));
}

// Row and column of a workgroup's tile: BAND rows of tiles, column by column.
fn tile_of(group: vec3<u32>, groups: vec3<u32>) -> vec2<u32> {
    let at = group.y * groups.x + group.x;
    let first = at / (BAND * groups.x) * BAND;
    let height = min(BAND, groups.y - first);
    let rest = at % (BAND * groups.x);
    return vec2<u32>(first + rest % height, rest / height);
}
