// Attention with the softmax taken as keys go by, so that no matrix of scores
// is ever stored: out = softmax(scale * q . k + mask) . v, by batch and head.
//
// Bindings: 0 q, 1 k, 2 v (all f32), 3 mask (words), 4 out (f32), 5 lengths (i32:
//   keys that count, by batch). Mask and lengths are bound to anything when
//   unused.
// Shapes: by strides in elements: q and out [batch, heads, queries, size],
//   k and v [batch, heads, keys, size]; mask [batch, heads, queries, keys],
//   strides of 0 where it repeats. A workgroup answers 16 queries of one head.
// Limits: size at most 128. Lengths are clamped to the keys there are, and so is
//   `limit`, the keys that count in any batch; a query without any key is answered
//   with zeros. MASK: 0 none, 1 floats added to scores, 2 booleans that allow, 3
//   integers with `filter` added where they are 0, 4 integers with `filter` added
//   to the scores of keys from there on.
// include: common.wgsl

struct Params {
    queries: u32, keys: u32, size: u32, heads: u32, kv_group: u32, scale: f32, past: u32,
    q_b: u32, q_h: u32, q_s: u32,
    k_b: u32, k_h: u32, k_s: u32,
    v_b: u32, v_h: u32, v_s: u32,
    m_b: u32, m_h: u32, m_q: u32, m_k: u32,
    o_b: u32, o_h: u32, o_s: u32,
    limit: u32, softcap: f32, filter_value: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> query: array<f32>;
@group(0) @binding(1) var<storage, read_write> key: array<f32>;
@group(0) @binding(2) var<storage, read_write> value: array<f32>;
@group(0) @binding(3) var<storage, read_write> mask: array<u32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;
@group(0) @binding(5) var<storage, read_write> lengths: array<i32>;

const MASK: u32 = 0u;
const HAS_SOFTCAP: u32 = 0u;
const HAS_LENGTHS: u32 = 0u;
const CAUSAL: u32 = 0u;

const QUERIES: u32 = 16u;
const LANES: u32 = 8u;
const KEYS: u32 = 8u;
const MAX_SIZE: u32 = 128u;
const THREADS: u32 = QUERIES * LANES;
const PER_LANE: u32 = MAX_SIZE / LANES;
const LOWEST: f32 = -3.4028234663852886e38;

var<workgroup> tile_q: array<f32, QUERIES * MAX_SIZE>;
var<workgroup> tile_k: array<f32, KEYS * MAX_SIZE>;
var<workgroup> tile_v: array<f32, KEYS * MAX_SIZE>;
var<workgroup> scores: array<f32, QUERIES * KEYS>;
var<private> sums: array<f32, PER_LANE>;

fn score(batch: u32, head: u32, slot: u32, row: u32, at: u32, column: u32) -> f32 {
    var dot = 0.0;
    for (var d = 0u; d < p.size; d += 1u) {
        dot = fma(tile_q[slot * MAX_SIZE + d], tile_k[at * MAX_SIZE + d], dot);
    }
    dot *= p.scale;
    if HAS_SOFTCAP == 1u { dot = p.softcap * tanh_of(dot / p.softcap); }
    if MASK == 0u { return dot; }
    return masked(dot, mask[batch * p.m_b + head * p.m_h + row * p.m_q + column * p.m_k], column);
}

fn masked(score: f32, word: u32, column: u32) -> f32 {
    if MASK == 1u { return score + bitcast<f32>(word); }
    // Bits that depend on the data, because constants must not be infinite.
    if MASK == 2u { return select(score, bitcast<f32>(0xff800000u | (p.keys & 0u)), word == 0u); }
    let is_hidden = select(i32(column) >= bitcast<i32>(word), word == 0u, MASK == 3u);
    return select(score, score + p.filter_value, is_hidden);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let batch = group.z / p.heads;
    let head = group.z % p.heads;
    let kv_head = head / p.kv_group;
    let slot = thread / LANES;
    let lane = thread % LANES;
    let row = group.x * QUERIES + slot;
    for (var at = thread; at < QUERIES * p.size; at += THREADS) {
        let r = group.x * QUERIES + at / p.size;
        let d = at % p.size;
        var loaded = 0.0;
        if r < p.queries { loaded = query[batch * p.q_b + head * p.q_h + r * p.q_s + d]; }
        tile_q[(at / p.size) * MAX_SIZE + d] = loaded;
    }
    var end = min(p.limit, p.keys);
    if HAS_LENGTHS == 1u { end = min(end, u32(max(lengths[batch], 0i))); }
    for (var at = 0u; at < PER_LANE; at += 1u) { sums[at] = 0.0; }
    var largest = LOWEST;
    var total = 0.0;
    // Every key, so that all threads of the workgroup meet at the barriers.
    for (var first = 0u; first < p.keys; first += KEYS) {
        for (var at = thread; at < KEYS * p.size; at += THREADS) {
            let column = first + at / p.size;
            let d = at % p.size;
            var k = 0.0;
            var v = 0.0;
            if column < end {
                k = key[batch * p.k_b + kv_head * p.k_h + column * p.k_s + d];
                v = value[batch * p.v_b + kv_head * p.v_h + column * p.v_s + d];
            }
            tile_k[(at / p.size) * MAX_SIZE + d] = k;
            tile_v[(at / p.size) * MAX_SIZE + d] = v;
        }
        workgroupBarrier();
        let column = first + lane;
        let visible = CAUSAL == 0u || column <= row + p.past;
        if row < p.queries && column < end && visible {
            scores[slot * KEYS + lane] = score(batch, head, slot, row, lane, column);
        }
        workgroupBarrier();
        if row < p.queries {
            for (var at = 0u; at < KEYS; at += 1u) {
                let other = first + at;
                let counts = other < end && (CAUSAL == 0u || other <= row + p.past);
                if !counts { continue; }
                let s = scores[slot * KEYS + at];
                let next = max(largest, s);
                let kept = exp(largest - next);
                let weight = exp(s - next);
                total = total * kept + weight;
                largest = next;
                for (var d = 0u; d < PER_LANE; d += 1u) {
                    sums[d] = sums[d] * kept + weight * tile_v[at * MAX_SIZE + d * LANES + lane];
                }
            }
        }
        workgroupBarrier();
    }
    if row >= p.queries { return; }
    for (var at = 0u; at < PER_LANE; at += 1u) {
        let d = at * LANES + lane;
        if d < p.size {
            let value = select(sums[at] / total, 0.0, total == 0.0);
            output[batch * p.o_b + head * p.o_h + row * p.o_s + d] = value;
        }
    }
}
