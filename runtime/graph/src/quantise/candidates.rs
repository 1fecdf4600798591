//! Which nodes have weights that can be replaced, and why the others do not.

use super::is_large;
use crate::infer::resolve_axis;
use crate::plan::Draft;
use mortise_types::{Attribute, DType, NodeDef, Tensor, ValueId};

/// A node that can be replaced.
pub(super) enum Candidate {
    Product(Product),
    Table(Table),
}

/// `alpha · x · W + bias`, with `W` a constant matrix.
pub(super) struct Product {
    pub(super) x: ValueId,
    pub(super) weight: ValueId,
    /// Whether `W` is stored as `[columns, depth]`.
    pub(super) transposed: bool,
    pub(super) alpha: f32,
    /// Depth and columns.
    pub(super) size: [usize; 2],
    /// One number for each column.
    pub(super) bias: Option<Tensor>,
}

/// Rows of a constant matrix by their index.
pub(super) struct Table {
    pub(super) weight: ValueId,
    pub(super) indices: ValueId,
    /// Rows and columns.
    pub(super) size: [usize; 2],
}

/// `None` for a node without large float weights; the reason for one whose
/// weights have to stay as they are.
pub(super) fn of(draft: &Draft, node: &NodeDef) -> Option<Result<Candidate, &'static str>> {
    large_weights(draft, node).next()?;
    let standard = matches!(&*node.domain, "" | "ai.onnx");
    Some(match &*node.op {
        "MatMul" if standard => matmul(draft, node).map(Candidate::Product),
        "Gemm" if standard => gemm(draft, node).map(Candidate::Product),
        "Gather" if standard => gather(draft, node).map(Candidate::Table),
        "Conv" | "ConvTranspose" => Err("weights of convolutions stay FP32"),
        _ => Err("weights of this operator stay FP32"),
    })
}

/// The constants that a node reads and that are worth replacing.
pub(super) fn large_weights<'a>(
    draft: &'a Draft,
    node: &'a NodeDef,
) -> impl Iterator<Item = &'a Tensor> {
    let constants = node.inputs.iter().flatten().filter_map(|value| constant(draft, *value));
    constants.filter(|tensor| is_large(tensor))
}

fn matmul(draft: &Draft, node: &NodeDef) -> Result<Product, &'static str> {
    let (x, weight) = operands(draft, node)?;
    let size = matrix(draft, weight)?;
    Ok(Product { x, weight, transposed: false, alpha: 1.0, size, bias: None })
}

fn gemm(draft: &Draft, node: &NodeDef) -> Result<Product, &'static str> {
    let (x, weight) = operands(draft, node)?;
    if int(node, "transA", 0) != 0 {
        return Err("its input is transposed");
    }
    let transposed = int(node, "transB", 0) != 0;
    let mut size = matrix(draft, weight)?;
    if transposed {
        size.reverse();
    }
    let alpha = float(node, "alpha", 1.0);
    let beta = float(node, "beta", 1.0);
    let bias = match node.inputs.get(2).copied().flatten().filter(|_| beta != 0.0) {
        Some(value) => Some(row(draft, value, size[1], beta)?),
        None => None,
    };
    Ok(Product { x, weight, transposed, alpha, size, bias })
}

fn gather(draft: &Draft, node: &NodeDef) -> Result<Table, &'static str> {
    let [Some(weight), Some(indices)] = node.inputs[..] else {
        return Err("it lacks an input");
    };
    let size = matrix(draft, weight)?;
    if resolve_axis(int(node, "axis", 0), 2) != Some(0) {
        return Err("it picks columns");
    }
    Ok(Table { weight, indices, size })
}

/// The activations and the weight of a product.
fn operands(draft: &Draft, node: &NodeDef) -> Result<(ValueId, ValueId), &'static str> {
    let [Some(x), Some(weight), ..] = node.inputs[..] else {
        return Err("it lacks an input");
    };
    let is_f32 = draft.facts.get(x.index()).is_some_and(|fact| fact.dtype == Some(DType::F32));
    match constant(draft, weight) {
        Some(_) if constant(draft, x).is_none() && is_f32 => Ok((x, weight)),
        _ => Err("its weight is the left operand"),
    }
}

fn matrix(draft: &Draft, value: ValueId) -> Result<[usize; 2], &'static str> {
    let tensor = constant(draft, value).ok_or("its weight is no constant")?;
    let finite = tensor.as_slice::<f32>().is_ok_and(|values| values.iter().all(|x| x.is_finite()));
    match *tensor.shape() {
        _ if !finite => Err("its weight holds NaN or infinity"),
        [rows, columns] if rows * columns > 0 => Ok([rows, columns]),
        _ => Err("its weight is no matrix"),
    }
}

/// `beta · c` as one number for each column.
fn row(draft: &Draft, value: ValueId, columns: usize, beta: f32) -> Result<Tensor, &'static str> {
    const NO_ROW: &str = "what is added is no constant row";
    let tensor = constant(draft, value).ok_or(NO_ROW)?;
    let values = tensor.as_slice::<f32>().map_err(|_| NO_ROW)?;
    let scaled: Vec<f32> = match (tensor.shape(), values) {
        ([] | [1] | [1, 1], [only]) => vec![only * beta; columns],
        ([size] | [1, size], _) if *size == columns => values.iter().map(|c| c * beta).collect(),
        _ => return Err(NO_ROW),
    };
    Tensor::from_vec(&[columns], scaled).map_err(|_| NO_ROW)
}

fn constant(draft: &Draft, value: ValueId) -> Option<&Tensor> {
    draft.constants.get(value.index())?.as_ref()?.tensor().ok()
}

fn int(node: &NodeDef, name: &str, default: i64) -> i64 {
    match node.attribute(name) {
        Some(Attribute::Int(value)) => *value,
        _ => default,
    }
}

fn float(node: &NodeDef, name: &str, default: f32) -> f32 {
    match node.attribute(name) {
        Some(Attribute::Float(value)) => *value,
        _ => default,
    }
}
