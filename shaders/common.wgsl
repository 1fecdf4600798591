// What several kernels need: activations and tests for numbers that are none.
//
// Bindings: none. Kernels include this file with a line of its own.
// Shapes: scalars in, scalars out.
// Limits: erf is within 2e-7 of the true value (Abramowitz and Stegun, 7.1.26).

// A compiler may assume that no float is NaN; bits tell for sure.
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn is_inf(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;
}

fn erf(x: f32) -> f32 {
    let a = abs(x);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let y = 1.0 - poly * exp(-a * a);
    // The formula loses all digits near zero, where the series has them.
    let small = x * (1.1283791671 - x * x * (0.3761263890 - x * x * 0.1128379167));
    let value = select(sign(x) * y, small, a < 0.1);
    return select(value, x, is_nan(x));
}

// The built-in may overflow where the answer is 1.
fn tanh_of(x: f32) -> f32 {
    let value = tanh(clamp(x, -15.0, 15.0));
    return select(value, x, is_nan(x));
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + erf(x * 0.7071067811865476));
}

// By bits, because a comparison may become a maximum, which loses NaN: from
// -0 to minus infinity.
fn relu(x: f32) -> f32 {
    return select(x, 0.0, bitcast<u32>(x) - 0x80000000u <= 0x7f800000u);
}

const NO_ACTIVATION: u32 = 0u;
const RELU: u32 = 1u;
const SIGMOID: u32 = 2u;
const TANH: u32 = 3u;
const GELU: u32 = 4u;
const ERF: u32 = 5u;

fn activate(kind: u32, x: f32) -> f32 {
    switch kind {
        case RELU: { return relu(x); }
        case SIGMOID: { return sigmoid(x); }
        case TANH: { return tanh_of(x); }
        case GELU: { return gelu(x); }
        case ERF: { return erf(x); }
        default: { return x; }
    }
}
