// Walks of decision trees: for every row and every part of the trees, the totals
// of the leaves that the row comes to.
//
// Bindings: 0 nodes (four words), 1 roots (u32), 2 weights (pairs of target and
//   bits of a float), 3 rows (f32, or i32 with INTEGERS), 4 totals (bits of f32).
// Shapes: rows [rows, columns]; totals [parts, targets, rows]. A branch is the
//   key of its threshold, its feature with flags, and its two children; a leaf is
//   the bits of its weight, its target with a flag, how many weights it has, and
//   where they are when they are several.
// Limits: fewer than 2^29 columns and targets. Every index is held in its range,
//   and a walk ends after `depth` steps, whatever the nodes say.
// include: leaves.wgsl

struct Params {
    rows: u32, columns: u32, trees: u32, parts: u32,
    targets: u32, depth: u32, last_node: u32, last_weight: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> nodes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> roots: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> input: array<u32>;
@group(0) @binding(4) var<storage, read_write> totals: array<u32>;

const INTEGERS: u32 = 0u;
const ONE_TARGET: u32 = 1u;
const THREADS: u32 = 256u;

// The test is for equality, not for at most.
const IS_EQUAL: u32 = 0x80000000u;
// NaN takes the first child.
const NAN_IS_FIRST: u32 = 0x40000000u;
const IS_LEAF: u32 = 0x20000000u;
const INDEX: u32 = 0x1fffffffu;

var<private> lone: u32;

// Integers in the order of the floats, so that neither NaN nor what a device
// makes of tiny numbers matters; both zeros are 0.
fn key_of(bits: u32) -> i32 {
    let magnitude = i32(bits & 0x7fffffffu);
    return select(magnitude, -magnitude, bits >= 0x80000000u);
}

fn feature(row: u32, column: u32) -> u32 {
    let word = input[row * p.columns + min(column, p.columns - 1u)];
    if INTEGERS == 1u { return bitcast<u32>(f32(bitcast<i32>(word))); }
    return word;
}

// The leaf that a row comes to.
fn walk(root: u32, row: u32) -> vec4<u32> {
    var node = nodes[min(root, p.last_node)];
    for (var step = 0u; step < p.depth; step += 1u) {
        if (node.y & IS_LEAF) != 0u { break; }
        let bits = feature(row, node.y & INDEX);
        let key = key_of(bits);
        let threshold = bitcast<i32>(node.x);
        var is_first = select(key <= threshold, key == threshold, (node.y & IS_EQUAL) != 0u);
        if (bits & 0x7fffffffu) > 0x7f800000u { is_first = (node.y & NAN_IS_FIRST) != 0u; }
        node = nodes[min(select(node.w, node.z, is_first), p.last_node)];
    }
    return node;
}

fn add(first_slot: u32, aim: u32, weight: u32) {
    if ONE_TARGET == 1u {
        lone = merged(lone, weight);
        return;
    }
    let at = first_slot + min(aim, p.targets - 1u) * p.rows;
    totals[at] = merged(totals[at], weight);
}

fn add_leaf(first_slot: u32, leaf: vec4<u32>) {
    if (leaf.y & IS_LEAF) == 0u || leaf.z == 0u { return; }
    if leaf.z == 1u {
        add(first_slot, leaf.y & INDEX, leaf.x);
        return;
    }
    let first = min(leaf.w, p.last_weight);
    let count = min(leaf.z, p.last_weight + 1u - first);
    for (var at = 0u; at < count; at += 1u) {
        let weight = weights[first + at];
        add(first_slot, weight.x, weight.y);
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = id.x; at < p.rows * p.parts; at += groups.x * THREADS) {
        let row = at % p.rows;
        let part = at / p.rows;
        let first_slot = part * p.targets * p.rows + row;
        lone = UNSEEN;
        if ONE_TARGET == 0u {
            for (var aim = 0u; aim < p.targets; aim += 1u) { totals[first_slot + aim * p.rows] = UNSEEN; }
        }
        for (var tree = part; tree < p.trees; tree += p.parts) {
            add_leaf(first_slot, walk(roots[tree], row));
        }
        if ONE_TARGET == 1u { totals[first_slot] = lone; }
    }
}
