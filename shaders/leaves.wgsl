// How the leaves of several trees become one number.
//
// Bindings: none of its own.
// Shapes: totals as the bits of floats, UNSEEN where no leaf has spoken.
// Limits: weights are finite. AGGREGATE: 0 sum, 1 smallest, 2 largest.

const AGGREGATE: u32 = 0u;
// A NaN that no sum of numbers has.
const UNSEEN: u32 = 0xffffffffu;

fn merged(a: u32, b: u32) -> u32 {
    if a == UNSEEN { return b; }
    if b == UNSEEN { return a; }
    let x = bitcast<f32>(a);
    let y = bitcast<f32>(b);
    if AGGREGATE == 1u { return bitcast<u32>(min(x, y)); }
    if AGGREGATE == 2u { return bitcast<u32>(max(x, y)); }
    return bitcast<u32>(x + y);
}
