//! Quantisation, integer products with zero points, and products with weights
//! of few bits.

mod general;
mod half;
mod linear;
mod n_bits;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod product;
mod rows;
mod scaled;
mod table;

use crate::cpu::op::Entry;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "ConvInteger", since: 10, build: product::ConvInteger::build },
    Entry { op: "DequantizeLinear", since: 10, build: linear::Dequantize::build },
    Entry { op: "DynamicQuantizeLinear", since: 11, build: |_| Ok(Box::new(linear::Dynamic)) },
    Entry { op: "MatMulInteger", since: 10, build: |_| Ok(Box::new(product::MatMulInteger)) },
    Entry { op: "QLinearConv", since: 10, build: product::QLinearConv::build },
    Entry { op: "QLinearMatMul", since: 10, build: |_| Ok(Box::new(product::QLinearMatMul)) },
    Entry { op: "QuantizeLinear", since: 10, build: linear::Quantize::build },
];

pub(crate) const MS_ENTRIES: &[Entry] = &[
    Entry { op: "DequantizeLinear", since: 1, build: linear::Dequantize::build },
    Entry { op: "MatMulNBits", since: 1, build: n_bits::MatMulNBits::build },
    Entry { op: "QuantizeLinear", since: 1, build: linear::Quantize::build },
];

/// Operators of `com.microsoft` that the planner writes, too.
pub(crate) const FUSED_ENTRIES: &[Entry] =
    &[Entry { op: "MatMulIntegerToFloat", since: 1, build: scaled::MatMulIntegerToFloat::build }];

/// Operators that only the planner writes, for models that are quantised when
/// they are deployed.
pub(crate) const WEIGHT_ENTRIES: &[Entry] = &[
    Entry { op: "GatherRows", since: 1, build: |_| Ok(Box::new(table::GatherRows)) },
    Entry { op: "MatMulHalf", since: 1, build: half::MatMulHalf::build },
    Entry { op: "MatMulInt8", since: 1, build: rows::MatMulInt8::build },
];
