//! Operators that treat every element alike.

mod binary;
mod cast;
pub(crate) mod narrow;
pub(crate) mod number;
mod select;
mod unary;

pub(crate) use binary::arithmetic;
pub(crate) use cast::cast_tensor;
pub(crate) use select::writable;
pub(crate) use unary::{Activation, activate};

use crate::cpu::op::Entry;

pub(crate) const ENTRIES: &[Entry] = &[
    // Arithmetic.
    Entry { op: "Add", since: 1, build: binary::build::<number::Add> },
    Entry { op: "Sub", since: 1, build: binary::build::<number::Sub> },
    Entry { op: "Mul", since: 1, build: binary::build::<number::Mul> },
    Entry { op: "Div", since: 1, build: binary::build::<number::Div> },
    Entry { op: "Mod", since: 10, build: binary::build_mod },
    Entry { op: "Pow", since: 1, build: binary::build_pow },
    Entry { op: "PRelu", since: 1, build: binary::build::<number::PRelu> },
    Entry { op: "Max", since: 1, build: binary::build_variadic::<number::Max> },
    Entry { op: "Min", since: 1, build: binary::build_variadic::<number::Min> },
    Entry { op: "Sum", since: 1, build: binary::build_variadic::<number::Add> },
    Entry { op: "Mean", since: 1, build: binary::build_mean },
    Entry { op: "BitShift", since: 11, build: binary::build_shift },
    Entry { op: "BitwiseAnd", since: 18, build: binary::build_bits::<number::BitAnd> },
    Entry { op: "BitwiseOr", since: 18, build: binary::build_bits::<number::BitOr> },
    Entry { op: "BitwiseXor", since: 18, build: binary::build_bits::<number::BitXor> },
    // Comparison and logic.
    Entry { op: "Equal", since: 1, build: binary::build_compare::<number::Equal> },
    Entry { op: "Greater", since: 1, build: binary::build_compare::<number::Greater> },
    Entry { op: "GreaterOrEqual", since: 12, build: binary::build_compare::<number::GreaterEqual> },
    Entry { op: "Less", since: 1, build: binary::build_compare::<number::Less> },
    Entry { op: "LessOrEqual", since: 12, build: binary::build_compare::<number::LessEqual> },
    Entry { op: "And", since: 1, build: binary::build_logic::<number::BitAnd> },
    Entry { op: "Or", since: 1, build: binary::build_logic::<number::BitOr> },
    Entry { op: "Xor", since: 1, build: binary::build_logic::<number::BitXor> },
    // Choice and conversion.
    Entry { op: "Where", since: 9, build: select::build_where },
    Entry { op: "Clip", since: 1, build: select::build_clip_attributes },
    Entry { op: "Clip", since: 11, build: select::build_clip },
    Entry { op: "Cast", since: 1, build: cast::build },
    Entry { op: "CastLike", since: 15, build: cast::build_like },
    // One operand.
    Entry { op: "Abs", since: 1, build: unary::build_signed },
    Entry { op: "Neg", since: 1, build: unary::build_signed },
    Entry { op: "Sign", since: 9, build: unary::build_signed },
    Entry { op: "Relu", since: 1, build: unary::build_signed },
    Entry { op: "Not", since: 1, build: unary::build_not },
    Entry { op: "BitwiseNot", since: 18, build: unary::build_not },
    Entry { op: "IsNaN", since: 9, build: unary::build_predicate },
    Entry { op: "IsInf", since: 10, build: unary::build_predicate },
    Entry { op: "Acos", since: 7, build: unary::build },
    Entry { op: "Acosh", since: 9, build: unary::build },
    Entry { op: "Asin", since: 7, build: unary::build },
    Entry { op: "Asinh", since: 9, build: unary::build },
    Entry { op: "Atan", since: 7, build: unary::build },
    Entry { op: "Atanh", since: 9, build: unary::build },
    Entry { op: "Ceil", since: 1, build: unary::build },
    Entry { op: "Celu", since: 12, build: unary::build },
    Entry { op: "Cos", since: 7, build: unary::build },
    Entry { op: "Cosh", since: 9, build: unary::build },
    Entry { op: "Elu", since: 1, build: unary::build },
    Entry { op: "Erf", since: 9, build: unary::build },
    Entry { op: "Exp", since: 1, build: unary::build },
    Entry { op: "Floor", since: 1, build: unary::build },
    Entry { op: "Gelu", since: 20, build: unary::build },
    Entry { op: "HardSigmoid", since: 1, build: unary::build },
    Entry { op: "HardSwish", since: 14, build: unary::build },
    Entry { op: "LeakyRelu", since: 1, build: unary::build },
    Entry { op: "Log", since: 1, build: unary::build },
    Entry { op: "Mish", since: 18, build: unary::build },
    Entry { op: "Reciprocal", since: 1, build: unary::build },
    Entry { op: "Round", since: 11, build: unary::build },
    Entry { op: "Selu", since: 1, build: unary::build },
    Entry { op: "Shrink", since: 9, build: unary::build },
    Entry { op: "Sigmoid", since: 1, build: unary::build },
    Entry { op: "Sin", since: 7, build: unary::build },
    Entry { op: "Sinh", since: 9, build: unary::build },
    Entry { op: "Softplus", since: 1, build: unary::build },
    Entry { op: "Softsign", since: 1, build: unary::build },
    Entry { op: "Sqrt", since: 1, build: unary::build },
    Entry { op: "Swish", since: 24, build: unary::build },
    Entry { op: "Tan", since: 7, build: unary::build },
    Entry { op: "Tanh", since: 1, build: unary::build },
    Entry { op: "ThresholdedRelu", since: 1, build: unary::build },
];

pub(crate) const MS_ENTRIES: &[Entry] = &[
    Entry { op: "Gelu", since: 1, build: unary::build },
    Entry { op: "QuickGelu", since: 1, build: unary::build },
];
