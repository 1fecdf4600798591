// From the totals of the parts of a forest to the scores of each row, and to its
// class where there are classes.
//
// Bindings: 0 totals (bits of f32), 1 base values (f32), 2 labels (i32), 3 scores
//   (f32), 4 chosen labels (i32). 1, 2 and 4 are bound to anything when unused.
// Shapes: totals [parts, targets, rows], overwritten; base values [BASES]; labels
//   [targets]; scores [rows, targets]; chosen labels [rows].
// Limits: LANES threads share a row, a power of two up to 256. TRANSFORM: 0 none,
//   1 logistic, 2 softmax, 3 softmax that keeps zeros, 4 probit.
// include: common.wgsl
// include: leaves.wgsl

struct Params { rows: u32, targets: u32, parts: u32, trees: u32, }

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> totals: array<u32>;
@group(0) @binding(1) var<storage, read_write> base: array<f32>;
@group(0) @binding(2) var<storage, read_write> labels: array<i32>;
@group(0) @binding(3) var<storage, read_write> scores: array<f32>;
@group(0) @binding(4) var<storage, read_write> chosen: array<i32>;

const CLASSIFIES: u32 = 0u;
const TRANSFORM: u32 = 0u;
const BASES: u32 = 0u;
const IS_AVERAGE: u32 = 0u;
// Two classes, and leaves speak of one of them only.
const ONE_SIDED: u32 = 0u;
const ALL_POSITIVE: u32 = 0u;
const LANES: u32 = 1u;
const THREADS: u32 = 256u;
const GROUP_ROWS: u32 = THREADS / LANES;

const LOGISTIC: u32 = 1u;
const SOFTMAX: u32 = 2u;
const SOFTMAX_ZERO: u32 = 3u;
const PROBIT: u32 = 4u;

// How the score of one class gives those of two.
const STAYS: u32 = 0u;
const COMPLEMENT: u32 = 1u;
const OPPOSITE: u32 = 2u;

const LOWEST: f32 = -3.4028234663852886e38;

var<workgroup> shared_totals: array<u32, THREADS>;

// The total over all parts, for the first of a row's threads.
fn gather_total(thread: u32, row: u32, aim: u32) -> u32 {
    var mine = UNSEEN;
    if row < p.rows {
        for (var part = thread % LANES; part < p.parts; part += LANES) {
            mine = merged(mine, totals[(part * p.targets + aim) * p.rows + row]);
        }
    }
    if LANES == 1u { return mine; }
    shared_totals[thread] = mine;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if thread % LANES < step {
            shared_totals[thread] = merged(shared_totals[thread], shared_totals[thread + step]);
        }
        workgroupBarrier();
    }
    let total = shared_totals[thread];
    workgroupBarrier();
    return total;
}

fn is_seen(row: u32, aim: u32) -> bool {
    return totals[aim * p.rows + row] != UNSEEN;
}

fn total_of(row: u32, aim: u32) -> f32 {
    return select(0.0, bitcast<f32>(totals[aim * p.rows + row]), is_seen(row, aim));
}

fn put(row: u32, aim: u32, value: f32) {
    scores[row * p.targets + aim] = value;
}

fn logistic(x: f32) -> f32 {
    let upper = 1.0 / (1.0 + exp(-abs(x)));
    return select(upper, 1.0 - upper, x < 0.0);
}

// The normal distribution's quantile by Winitzki's approximation.
fn probit(value: f32) -> f32 {
    let x = 2.0 * value - 1.0;
    let side = select(1.0, -1.0, x < 0.0);
    let inside = (1.0 - x) * (1.0 + x);
    // Bits that depend on the data, because constants must not be NaN.
    if is_nan(inside) || inside < 0.0 { return bitcast<f32>(0x7fc00000u | (p.rows & 0u)); }
    if inside == 0.0 { return side * bitcast<f32>(0x7f800000u | (p.rows & 0u)); }
    let rest = log(inside);
    let half = 2.0 / (3.14159 * 0.147) + 0.5 * rest;
    let square = -rest / 0.147;
    let root = sqrt(half * half + square);
    // The difference of near numbers has no digits left.
    let difference = select(root - half, square / (root + half), half > 0.0);
    return 1.4142135623730951 * side * sqrt(difference);
}

fn transform(row: u32) {
    let first = row * p.targets;
    let end = first + p.targets;
    if TRANSFORM == LOGISTIC {
        for (var at = first; at < end; at += 1u) { scores[at] = logistic(scores[at]); }
    } else if TRANSFORM == PROBIT {
        for (var at = first; at < end; at += 1u) { scores[at] = probit(scores[at]); }
    } else if TRANSFORM == SOFTMAX || TRANSFORM == SOFTMAX_ZERO {
        softmax(first, end);
    }
}

fn softmax(first: u32, end: u32) {
    var largest = LOWEST;
    for (var at = first; at < end; at += 1u) { largest = max(largest, scores[at]); }
    let shrink = exp(-largest);
    var sum = 0.0;
    for (var at = first; at < end; at += 1u) {
        let score = scores[at];
        var value = exp(score - largest);
        if TRANSFORM == SOFTMAX_ZERO && abs(score) <= 1e-7 { value = score * shrink; }
        scores[at] = value;
        sum += value;
    }
    for (var at = first; at < end; at += 1u) { scores[at] /= sum; }
}

fn regress(row: u32) {
    for (var aim = 0u; aim < p.targets; aim += 1u) {
        var value = total_of(row, aim);
        if IS_AVERAGE == 1u { value /= f32(p.trees); }
        if BASES == p.targets { value += base[aim]; }
        // What no leaf spoke of goes into a transform as zero.
        if TRANSFORM != 0u && p.targets > 1u && !is_seen(row, aim) { value = 0.0; }
        put(row, aim, value);
    }
    if p.targets > 1u {
        transform(row);
    } else if TRANSFORM == PROBIT {
        put(row, 0u, probit(scores[row]));
    }
}

fn classify(row: u32) {
    switch p.targets {
        case 1u: { chosen[row] = classify_one(row); }
        case 2u: { chosen[row] = classify_pair(row); }
        default: { chosen[row] = classify_many(row); }
    }
}

fn classify_many(row: u32) -> i32 {
    var best = 0u;
    var highest = 0.0;
    var is_any = false;
    for (var aim = 0u; aim < p.targets; aim += 1u) {
        var value = total_of(row, aim);
        let has_base = aim < BASES;
        if has_base { value += base[aim]; }
        if (has_base || is_seen(row, aim)) && (!is_any || value > highest) {
            best = aim;
            highest = value;
            is_any = true;
        }
        put(row, aim, value);
    }
    transform(row);
    return labels[best];
}

// Without a side that leaves speak of, labels are 0 and 1 whatever they are.
fn decide(score: f32) -> i32 {
    if ONE_SIDED == 0u { return select(0i, 1i, score > 0.0); }
    let limit = select(0.0, 0.5, ALL_POSITIVE == 1u);
    return labels[select(0u, 1u, score > limit)];
}

fn classify_one(row: u32) -> i32 {
    var score = total_of(row, 0u);
    if BASES == 1u { score += base[0]; }
    put(row, 0u, score);
    if TRANSFORM == PROBIT { put(row, 0u, probit(score)); }
    return decide(score);
}

fn classify_pair(row: u32) -> i32 {
    var low = total_of(row, 0u);
    var high = total_of(row, 1u);
    let has_low = is_seen(row, 0u);
    let has_high = is_seen(row, 1u);
    if BASES == 2u && has_high {
        high = base[1] + low;
        low = -high;
    } else if BASES == 1u || BASES == 2u {
        low += base[0];
    }
    if !has_low { low = 0.0; }
    let label = decide(select(low, high, has_high));
    if !has_high && BASES < 2u {
        spread(row, low);
    } else {
        put(row, 0u, low);
        put(row, 1u, high);
        transform(row);
    }
    return label;
}

fn spread(row: u32, score: f32) {
    var how = select(STAYS, OPPOSITE, BASES == 0u || ONE_SIDED == 1u);
    if ONE_SIDED == 1u && ALL_POSITIVE == 1u { how = COMPLEMENT; }
    var pair = vec2<f32>(score, 0.0);
    if TRANSFORM == PROBIT {
        pair.x = probit(score);
    } else if how != STAYS {
        pair = vec2<f32>(select(-score, 1.0 - score, how == COMPLEMENT), score);
        if TRANSFORM == LOGISTIC { pair = vec2<f32>(logistic(-score), logistic(score)); }
    }
    put(row, 0u, pair.x);
    put(row, 1u, pair.y);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    for (var first = group.x * GROUP_ROWS; first < p.rows; first += groups.x * GROUP_ROWS) {
        let row = first + thread / LANES;
        let answers = row < p.rows && thread % LANES == 0u;
        for (var aim = 0u; aim < p.targets; aim += 1u) {
            let total = gather_total(thread, row, aim);
            if answers { totals[aim * p.rows + row] = total; }
        }
        if answers {
            if CLASSIFIES == 1u { classify(row); } else { regress(row); }
        }
    }
}
