//! From operators to dispatches. Every function here looks at everything that
//! could make a node unfit before it emits anything, and answers whether the
//! device runs the node; the CPU device runs the rest.

pub(crate) mod attention;
pub(crate) mod conv_int8;
pub(crate) mod layout;
pub(crate) mod matmul;
pub(crate) mod pointwise;
pub(crate) mod quant;
pub(crate) mod rows;
pub(crate) mod trees;
pub(crate) mod window;

use crate::lower::Builder;
use mortise_graph::FUSED_DOMAIN;
use mortise_types::{Attribute, NodeDef, Result, ValueId};

type Lower = fn(&mut Builder<'_>, &NodeDef) -> Result<bool>;

/// Operators with a kernel; [`pointwise`] has those that work element by
/// element.
fn kernel(node: &NodeDef) -> Option<Lower> {
    if &*node.domain == "ai.onnx.ml" {
        return trees::knows(&node.op).then_some(trees::ensemble);
    }
    if !matches!(&*node.domain, "" | "ai.onnx" | "com.microsoft" | FUSED_DOMAIN) {
        return None;
    }
    Some(match &*node.op {
        "MatMul" | "MatMulBias" | "FusedMatMul" => matmul::matmul,
        "Gemm" | "FusedGemm" => matmul::gemm,
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Dropout" => layout::reshape,
        "Softmax" | "LogSoftmax" => rows::softmax,
        "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => rows::norm,
        "SkipLayerNormalization" => rows::skip_norm,
        "Attention" | "MultiHeadAttention" => attention::attention,
        "MatMulNBits" => quant::matmul_nbits,
        "MatMulInteger" => quant::matmul_integer,
        "QLinearMatMul" => quant::qlinear_matmul,
        "ConvInteger" => conv_int8::conv_integer,
        "QLinearConv" => conv_int8::qlinear_conv,
        "QuantizeLinear" => quant::quantize,
        "DequantizeLinear" => quant::dequantize,
        "DynamicQuantizeLinear" => quant::dynamic_quantize,
        "Gather" => rows::gather,
        "GlobalAveragePool" | "GlobalMaxPool" => rows::global_pool,
        op if rows::reduction(op).is_some() => rows::reduce,
        "Conv" | "FusedConv" => window::conv,
        "MaxPool" | "AveragePool" => window::pool,
        "BatchNormalization" => window::batch_norm,
        "Transpose" => layout::transpose,
        "Slice" => layout::slice,
        "Concat" => layout::concat,
        "Split" => layout::split,
        "Expand" => layout::expand,
        op if pointwise::knows(op) => pointwise::lower,
        _ => return None,
    })
}

/// Whether the operator has a kernel for some inputs.
pub(crate) fn may_lower(node: &NodeDef) -> bool {
    kernel(node).is_some()
}

/// Runs `node` on the device, if it can.
///
/// # Errors
/// `Overloaded` when weights do not fit the device.
pub(crate) fn lower(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    match kernel(node) {
        Some(lower) => lower(builder, node),
        None => Ok(false),
    }
}

pub(crate) fn input(node: &NodeDef, index: usize) -> Option<ValueId> {
    node.inputs.get(index).copied().flatten()
}

/// The only output of a node, when nothing reads another.
pub(crate) fn only_output(node: &NodeDef) -> Option<ValueId> {
    let rest_unused = node.outputs.iter().skip(1).all(Option::is_none);
    node.outputs.first().copied().flatten().filter(|_| rest_unused)
}

pub(crate) fn int(node: &NodeDef, name: &str, default: i64) -> Option<i64> {
    match node.attribute(name) {
        None => Some(default),
        Some(Attribute::Int(value)) => Some(*value),
        Some(_) => None,
    }
}

pub(crate) fn float(node: &NodeDef, name: &str, default: f32) -> Option<f32> {
    match node.attribute(name) {
        None => Some(default),
        Some(Attribute::Float(value)) => Some(*value),
        Some(_) => None,
    }
}

pub(crate) fn ints<'a>(node: &'a NodeDef, name: &str) -> Option<&'a [i64]> {
    match node.attribute(name) {
        Some(Attribute::Ints(values)) => Some(values),
        _ => None,
    }
}

pub(crate) fn text<'a>(node: &'a NodeDef, name: &str, default: &'a str) -> Option<&'a str> {
    match node.attribute(name) {
        None => Some(default),
        Some(Attribute::String(bytes)) => std::str::from_utf8(bytes).ok(),
        Some(_) => None,
    }
}

/// The integers of a constant input.
pub(crate) fn constant_ints(builder: &Builder<'_>, value: ValueId) -> Option<Vec<i64>> {
    let tensor = builder.constant(value)?;
    match tensor.as_slice::<i64>() {
        Ok(values) => Some(values.to_vec()),
        Err(_) => Some(tensor.as_slice::<i32>().ok()?.iter().map(|v| i64::from(*v)).collect()),
    }
}

/// The number in a constant input of one element.
pub(crate) fn constant_float(builder: &Builder<'_>, value: ValueId) -> Option<f32> {
    let tensor = builder.constant(value).filter(|tensor| tensor.len() == 1)?;
    tensor.as_slice::<f32>().ok()?.first().copied()
}

/// `axis` counted from the front.
pub(crate) fn resolve(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&axis).then_some(axis as usize)
}

/// The code that kernels know an activation by.
pub(crate) fn activation(node: &NodeDef) -> Option<u32> {
    Some(match text(node, "activation", "")? {
        "" => 0,
        "Relu" => 1,
        "Sigmoid" => 2,
        "Tanh" => 3,
        "Gelu" => 4,
        "Erf" => 5,
        _ => return None,
    })
}
