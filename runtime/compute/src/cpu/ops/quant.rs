//! Quantisation, and integer products with zero points.

mod general;
mod linear;
mod product;
mod scaled;

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
    Entry { op: "QuantizeLinear", since: 1, build: linear::Quantize::build },
];

/// Operators of `com.microsoft` that the planner writes, too.
pub(crate) const FUSED_ENTRIES: &[Entry] =
    &[Entry { op: "MatMulIntegerToFloat", since: 1, build: scaled::MatMulIntegerToFloat::build }];
