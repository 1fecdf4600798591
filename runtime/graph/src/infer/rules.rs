//! One rule for each family of operators.

use super::{Fact, NodeView, ml, shapes};
use crate::FUSED_DOMAIN;
use mortise_types::{Attribute, DType};

/// Facts of the outputs, or `None` when nothing is known of the operator.
pub(crate) fn infer(view: &NodeView<'_>) -> Option<Vec<Fact>> {
    match &*view.node.domain {
        "ai.onnx.ml" => ml::infer(view),
        "" | "ai.onnx" | "com.microsoft" | FUSED_DOMAIN => standard(view),
        _ => None,
    }
}

fn standard(view: &NodeView<'_>) -> Option<Vec<Fact>> {
    let dtype = view.dtype(0);
    let same = || vec![view.fact(0)];
    Some(match &*view.node.op {
        "Abs"
        | "Acos"
        | "Acosh"
        | "Asin"
        | "Asinh"
        | "Atan"
        | "Atanh"
        | "BiasGelu"
        | "BitwiseNot"
        | "Ceil"
        | "Celu"
        | "Clip"
        | "Cos"
        | "Cosh"
        | "CumSum"
        | "Elu"
        | "Erf"
        | "Exp"
        | "FastGelu"
        | "Floor"
        | "Gelu"
        | "HardSigmoid"
        | "HardSwish"
        | "Hardmax"
        | "Identity"
        | "LRN"
        | "LeakyRelu"
        | "Log"
        | "LogSoftmax"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "Mish"
        | "Neg"
        | "Not"
        | "QuickGelu"
        | "Reciprocal"
        | "Relu"
        | "ReverseSequence"
        | "Round"
        | "ScatterElements"
        | "ScatterND"
        | "Selu"
        | "Shrink"
        | "Sigmoid"
        | "Sign"
        | "Sin"
        | "Sinh"
        | "Softmax"
        | "Softplus"
        | "Softsign"
        | "Sqrt"
        | "Swish"
        | "Tan"
        | "Tanh"
        | "ThresholdedRelu"
        | "Trilu"
        | "PRelu"
        | "BitShift" => same(),
        "BatchNormalization"
        | "InstanceNormalization"
        | "LayerNormalization"
        | "GroupNormalization"
        | "RMSNormalization"
        | "SimplifiedLayerNormalization"
        | "SkipLayerNormalization" => same(),
        "Dropout" => vec![view.fact(0), Fact::new(Some(DType::Bool), view.shape(0))],
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Max" | "Min" | "Sum" | "Mean"
        | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => {
            vec![Fact::new(dtype, broadcast_inputs(view, 0))]
        }
        "Where" => vec![Fact::new(view.dtype(1), broadcast_inputs(view, 0))],
        "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor" => {
            vec![Fact::new(Some(DType::Bool), broadcast_inputs(view, 0))]
        }
        "IsNaN" | "IsInf" => vec![Fact::new(Some(DType::Bool), view.shape(0))],
        "Cast" => vec![Fact::new(cast_target(view), view.shape(0))],
        "CastLike" => vec![Fact::new(view.dtype(1), view.shape(0))],
        "QuantizeLinear" => {
            let zero_point = view.dtype(2).or_else(|| view.input(2).is_none().then_some(DType::U8));
            vec![Fact::new(zero_point, view.shape(0))]
        }
        "DequantizeLinear" => vec![Fact::new(view.dtype(1), view.shape(0))],
        "DynamicQuantizeLinear" => vec![
            Fact::new(Some(DType::U8), view.shape(0)),
            Fact::new(Some(DType::F32), Some(vec![])),
            Fact::new(Some(DType::U8), Some(vec![])),
        ],
        "MatMulInteger" => vec![Fact::new(Some(DType::I32), shapes::matmul(view, 1))],
        "ConvInteger" => vec![Fact::new(Some(DType::I32), shapes::conv(view, 1))],
        "QLinearMatMul" => vec![Fact::new(view.dtype(7), shapes::matmul(view, 3))],
        "QLinearConv" => vec![Fact::new(view.dtype(7), shapes::conv(view, 3))],
        "MatMul" | "FusedMatMul" | "MatMulBias" | "MatMulInt8" | "MatMulHalf" => {
            vec![Fact::new(dtype, shapes::matmul(view, 1))]
        }
        "MatMulNBits" => vec![Fact::new(dtype, shapes::matmul_nbits(view))],
        "Gemm" | "FusedGemm" => vec![Fact::new(dtype, shapes::gemm(view))],
        op if op.starts_with("Reduce") => vec![Fact::new(dtype, shapes::reduce(view))],
        "ArgMax" | "ArgMin" => vec![Fact::new(Some(DType::I64), shapes::arg_reduce(view))],
        "TopK" => {
            let shape = shapes::top_k(view);
            vec![Fact::new(dtype, shape.clone()), Fact::new(Some(DType::I64), shape)]
        }
        "Shape" => vec![Fact::new(Some(DType::I64), Some(vec![shapes::shape_len(view)]))],
        "Size" => vec![Fact::new(Some(DType::I64), Some(vec![]))],
        "Constant" => vec![constant(view)?],
        "ConstantOfShape" => vec![constant_of_shape(view)],
        "Reshape" => vec![Fact::new(dtype, shapes::reshape(view))],
        "Flatten" => vec![Fact::new(dtype, shapes::flatten(view))],
        "Transpose" => vec![Fact::new(dtype, shapes::transpose(view))],
        "Concat" => vec![Fact::new(dtype, shapes::concat(view))],
        "Squeeze" => vec![Fact::new(dtype, shapes::squeeze(view))],
        "Unsqueeze" => vec![Fact::new(dtype, shapes::unsqueeze(view))],
        "Expand" => vec![Fact::new(dtype, shapes::expand(view))],
        "Gather" => vec![Fact::new(dtype, shapes::gather(view))],
        "GatherRows" => vec![Fact::new(Some(DType::F32), shapes::gather(view))],
        "GatherElements" => vec![Fact::new(dtype, view.shape(1))],
        "Slice" | "Pad" | "Tile" | "Upsample" | "Resize" | "CenterCropPad" => {
            vec![Fact::new(dtype, shapes::same_rank(view))]
        }
        "Split" => shapes::split(view),
        "OneHot" => vec![Fact::new(view.dtype(2), shapes::one_hot(view))],
        "NonZero" => {
            vec![Fact::new(Some(DType::I64), view.shape(0).map(|s| vec![s.len() as i64, -1]))]
        }
        "Range" => vec![Fact::new(dtype, Some(vec![-1]))],
        "MultiHeadAttention" => vec![Fact::new(dtype, shapes::attention(view))],
        "Attention" if &*view.node.domain != "com.microsoft" => vec![
            Fact::new(dtype, shapes::attention(view)),
            Fact::new(view.dtype(1), shapes::present(view, 1)),
            Fact::new(view.dtype(2), shapes::present(view, 2)),
        ],
        "Conv" | "FusedConv" => vec![Fact::new(dtype, shapes::conv(view, 1))],
        "ConvTranspose" => vec![Fact::new(dtype, shapes::channels_and_unknown(view))],
        "MaxPool" => {
            let shape = shapes::pool(view);
            vec![Fact::new(dtype, shape.clone()), Fact::new(Some(DType::I64), shape)]
        }
        "AveragePool" | "LpPool" => vec![Fact::new(dtype, shapes::pool(view))],
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
            vec![Fact::new(dtype, shapes::global_pool(view))]
        }
        _ => return None,
    })
}

fn cast_target(view: &NodeView<'_>) -> Option<DType> {
    DType::from_onnx(i32::try_from(view.int("to")?).ok()?)
}

fn broadcast_inputs(view: &NodeView<'_>, first: usize) -> Option<Vec<i64>> {
    let mut joint = Vec::new();
    for index in first..view.node.inputs.len() {
        joint = shapes::broadcast(&joint, &view.shape(index)?)?;
    }
    Some(joint)
}

fn constant(view: &NodeView<'_>) -> Option<Fact> {
    let list = |dtype, len: usize| Fact::new(Some(dtype), Some(vec![len as i64]));
    let scalar = |dtype| Fact::new(Some(dtype), Some(vec![]));
    let (_, value) = view.node.attributes.first()?;
    Some(match value {
        Attribute::Tensor(tensor) => Fact::of(&tensor.clone().into()),
        Attribute::Int(_) => scalar(DType::I64),
        Attribute::Float(_) => scalar(DType::F32),
        Attribute::String(_) => scalar(DType::String),
        Attribute::Ints(values) => list(DType::I64, values.len()),
        Attribute::Floats(values) => list(DType::F32, values.len()),
        Attribute::Strings(values) => list(DType::String, values.len()),
        _ => return None,
    })
}

fn constant_of_shape(view: &NodeView<'_>) -> Fact {
    let dtype = match view.node.attribute("value") {
        Some(Attribute::Tensor(tensor)) => tensor.dtype(),
        _ => DType::F32,
    };
    let rank = || match view.shape(0)?.as_slice() {
        [rank] if (0..64).contains(rank) => Some(vec![-1; *rank as usize]),
        _ => None,
    };
    Fact::new(Some(dtype), view.constant_ints(0).or_else(rank))
}
