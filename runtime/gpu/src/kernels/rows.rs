//! Operators that look at a whole row: softmax, normalisation, reductions,
//! and gathering rows by index.

use super::matmul::round;
use super::pointwise::Chain;
use super::{constant_ints, float, input, int, ints, only_output, resolve};
use crate::lower::{Builder, THREADS};
use crate::operand::{Operand, Place};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use mortise_types::{DType, NodeDef, Result, ValueId};

/// Threads along a row: few for short rows, so that a workgroup has many.
pub(crate) fn lanes(length: usize) -> usize {
    (length / 4).clamp(4, THREADS).next_power_of_two().min(THREADS)
}

pub(crate) fn row_groups(rows: usize, lanes: usize) -> [usize; 3] {
    [rows.div_ceil(THREADS / lanes), 1, 1]
}

/// A tensor as `[outer, length, inner]`.
struct Axis {
    outer: usize,
    length: usize,
    inner: usize,
}

impl Axis {
    /// `None` when axis `first` to `last` are not there.
    fn new(shape: &[usize], first: usize, last: usize) -> Self {
        let product = |dims: &[usize]| dims.iter().product();
        Self {
            outer: product(&shape[..first]),
            length: product(&shape[first..last]),
            inner: product(&shape[last..]),
        }
    }

    fn rows(&self) -> usize {
        self.outer * self.inner
    }
}

/// `Softmax` and `LogSoftmax`, of one axis or, before opset 13, of all from one on.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn softmax(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, output)) = float_in_out(builder, node) else { return Ok(false) };
    let Some(shape) = builder.shape(x) else { return Ok(false) };
    let old = node.opset < 13;
    let axis = int(node, "axis", if old { 1 } else { -1 });
    let Some(axis) = axis.and_then(|axis| resolve(axis, shape.len())) else { return Ok(false) };
    let last = if old { shape.len() } else { axis + 1 };
    let view = Axis::new(&shape, axis, last);
    let source = builder.dense(x)?;
    let target = builder.allocate(source.dtype, &shape);
    let lanes = lanes(view.length);
    let logarithm = u32::from(&*node.op == "LogSoftmax");
    let constants = [("LANES", lanes as u32), ("LOGARITHM", logarithm)];
    let params = Params::new().size(view.rows()).size(view.length).size(view.inner);
    let bindings = vec![source.place, target.place.clone()];
    let groups = row_groups(view.rows(), lanes);
    builder.launch(Kernel::new(File::Softmax, 2, &constants), bindings, params, groups);
    round(builder, output, target);
    Ok(true)
}

fn float_in_out(builder: &Builder<'_>, node: &NodeDef) -> Option<(ValueId, ValueId)> {
    let x = input(node, 0).filter(|x| builder.is_float(*x))?;
    Some((x, only_output(node)?))
}

/// What a normalisation of the last dimensions needs.
struct Norm {
    scale: ValueId,
    bias: Option<ValueId>,
    length: usize,
    centred: bool,
    epsilon: f32,
}

/// `LayerNormalization` and its root-mean-square forms.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn norm(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, output)) = float_in_out(builder, node) else { return Ok(false) };
    let Some(norm) = norm_of(builder, node, x) else { return Ok(false) };
    let source = builder.dense(x)?;
    normalise(builder, source, output, &norm)?;
    Ok(true)
}

fn norm_of(builder: &Builder<'_>, node: &NodeDef, x: ValueId) -> Option<Norm> {
    let shape = builder.shape(x)?;
    let axis = resolve(int(node, "axis", -1)?, shape.len())?;
    let length = shape[axis..].iter().product();
    // Rounding in between, which half precision would want, is not done here.
    let single = int(node, "stash_type", 1)? == 1;
    let norm = Norm {
        scale: input(node, 1)?,
        bias: input(node, 2),
        length,
        centred: &*node.op == "LayerNormalization",
        epsilon: float(node, "epsilon", 1e-5)?,
    };
    (single && fits(builder, &norm)).then_some(norm)
}

fn fits(builder: &Builder<'_>, norm: &Norm) -> bool {
    let row = |value: ValueId| {
        builder.is_float(value)
            && builder.shape(value).is_some_and(|s| s.iter().product::<usize>() == norm.length)
    };
    row(norm.scale) && norm.bias.is_none_or(row)
}

fn normalise(
    builder: &mut Builder<'_>,
    source: Operand,
    output: ValueId,
    norm: &Norm,
) -> Result<()> {
    let target = builder.allocate(source.dtype, &source.shape);
    let scale = builder.dense(norm.scale)?.place;
    let bias = norm.bias.map(|bias| builder.dense(bias)).transpose()?;
    let lanes = lanes(norm.length);
    let rows = source.len() / norm.length;
    let constants = [
        ("LANES", lanes as u32),
        ("HAS_BIAS", u32::from(bias.is_some())),
        ("CENTRED", u32::from(norm.centred)),
    ];
    let params = Params::new().size(rows).size(norm.length).float(norm.epsilon);
    let bias = bias.map_or_else(|| scale.clone(), |bias| bias.place);
    let bindings = vec![source.place, scale, bias, target.place.clone()];
    let groups = row_groups(rows, lanes);
    builder.launch(Kernel::new(File::Norm, 4, &constants), bindings, params, groups);
    round(builder, output, target);
    Ok(())
}

/// `SkipLayerNormalization`: a sum, and then a normalisation of its rows.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn skip_norm(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, skip, norm)) = skipped(builder, node) else { return Ok(false) };
    let Some(output) = node.outputs.first().copied().flatten() else { return Ok(false) };
    let mut parts = vec![builder.operand(x)?, builder.operand(skip)?];
    if let Some(bias) = input(node, 4) {
        parts.push(builder.operand(bias)?);
    }
    let template = if parts.len() == 2 { "$0 + $1" } else { "$0 + $1 + $2" };
    let shape = parts[0].shape.clone();
    let Some(chain) = Chain::of(template, DType::F32, &shape, parts) else { return Ok(false) };
    let sum = chain.launch(builder)?;
    if let Some(Some(kept)) = node.outputs.get(3) {
        builder.define(*kept, sum.clone());
    }
    normalise(builder, sum, output, &norm)?;
    Ok(true)
}

fn skipped(builder: &Builder<'_>, node: &NodeDef) -> Option<(ValueId, ValueId, Norm)> {
    let (x, skip) = (input(node, 0)?, input(node, 1)?);
    let shape = builder.shape(x)?;
    let statistics = node.outputs.iter().take(3).skip(1).any(Option::is_some);
    let plain = builder.dtype(x) == Some(DType::F32)
        && builder.dtype(skip) == Some(DType::F32)
        && builder.shape(skip).as_ref() == Some(&shape)
        && !shape.contains(&0)
        && !statistics;
    let norm = Norm {
        scale: input(node, 2)?,
        bias: input(node, 3),
        length: *shape.last()?,
        centred: true,
        epsilon: float(node, "epsilon", 1e-12)?,
    };
    let bias = input(node, 4).is_none_or(|bias| {
        builder.is_float(bias) && builder.shape(bias).as_deref() == Some(&[norm.length])
    });
    (plain && bias && fits(builder, &norm)).then_some((x, skip, norm))
}

/// The kernel's code for a reduction.
pub(crate) fn reduction(op: &str) -> Option<u32> {
    Some(match op {
        "ReduceSum" => 0,
        "ReduceMean" => 1,
        "ReduceMax" => 2,
        "ReduceMin" => 3,
        "ReduceProd" => 4,
        "ReduceL1" => 5,
        "ReduceL2" => 6,
        "ReduceSumSquare" => 7,
        _ => return None,
    })
}

/// Reductions over axes that lie side by side.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn reduce(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, output)) = float_in_out(builder, node) else { return Ok(false) };
    let Some((first, last)) = reduced_axes(builder, node, x) else { return Ok(false) };
    let Some(kind) = reduction(&node.op) else { return Ok(false) };
    let keep = int(node, "keepdims", 1) != Some(0);
    reduce_axes(builder, Reduction { x, output, first, last, keep, kind })
}

/// `GlobalAveragePool` and `GlobalMaxPool`.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn global_pool(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, output)) = float_in_out(builder, node) else { return Ok(false) };
    let Some(rank) = builder.shape(x).map(|shape| shape.len()).filter(|rank| *rank > 2) else {
        return Ok(false);
    };
    let kind = if &*node.op == "GlobalMaxPool" { 2 } else { 1 };
    reduce_axes(builder, Reduction { x, output, first: 2, last: rank, keep: true, kind })
}

struct Reduction {
    x: ValueId,
    output: ValueId,
    first: usize,
    last: usize,
    keep: bool,
    kind: u32,
}

fn reduce_axes(builder: &mut Builder<'_>, call: Reduction) -> Result<bool> {
    let source = builder.dense(call.x)?;
    let view = Axis::new(&source.shape, call.first, call.last);
    let kept = source.shape.iter().enumerate().filter_map(|(axis, dim)| {
        match (call.first..call.last).contains(&axis) {
            true => call.keep.then_some(1),
            false => Some(*dim),
        }
    });
    let shape: Vec<usize> = kept.collect();
    let target = builder.allocate(source.dtype, &shape);
    let lanes = lanes(view.length);
    let constants = [("LANES", lanes as u32), ("KIND", call.kind)];
    let params = Params::new().size(view.rows()).size(view.length).size(view.inner);
    let bindings = vec![source.place, target.place.clone()];
    let groups = row_groups(view.rows(), lanes);
    builder.launch(Kernel::new(File::Reduce, 2, &constants), bindings, params, groups);
    round(builder, call.output, target);
    Ok(true)
}

/// The first axis reduced, and the one after the last.
fn reduced_axes(builder: &Builder<'_>, node: &NodeDef, x: ValueId) -> Option<(usize, usize)> {
    let rank = builder.shape(x)?.len();
    let axes = match (input(node, 1), ints(node, "axes")) {
        (Some(value), _) => constant_ints(builder, value)?,
        (None, Some(axes)) => axes.to_vec(),
        (None, None) => Vec::new(),
    };
    if axes.is_empty() {
        let nothing = int(node, "noop_with_empty_axes", 0)? != 0;
        return (!nothing && rank > 0).then_some((0, rank));
    }
    let mut axes: Vec<usize> =
        axes.iter().map(|axis| resolve(*axis, rank)).collect::<Option<_>>()?;
    axes.sort_unstable();
    let side_by_side = axes.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    side_by_side.then(|| (axes[0], axes[axes.len() - 1] + 1))
}

/// `Gather` along an axis.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn gather(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = gathered(builder, node) else { return Ok(false) };
    let data = builder.dense(call.data)?;
    let indices = builder.dense(call.indices)?;
    let view = Axis::new(&data.shape, call.axis, call.axis + 1);
    let mut shape = data.shape[..call.axis].to_vec();
    shape.extend(&indices.shape);
    shape.extend(&data.shape[call.axis + 1..]);
    let target = builder.allocate(data.dtype, &shape);
    let total = target.len();
    let params = Params::new().size(total).size(view.length).size(indices.len()).size(view.inner);
    let status: Place = builder.status();
    let bindings = vec![data.place, indices.place, target.place.clone(), status];
    let groups = [total.div_ceil(THREADS), 1, 1];
    builder.launch(Kernel::new(File::Gather, 4, &[]), bindings, params, groups);
    builder.define(call.output, target);
    Ok(true)
}

struct Gather {
    data: ValueId,
    indices: ValueId,
    output: ValueId,
    axis: usize,
}

fn gathered(builder: &Builder<'_>, node: &NodeDef) -> Option<Gather> {
    let (data, indices) = (input(node, 0)?, input(node, 1)?);
    let (shape, index_shape) = (builder.shape(data)?, builder.shape(indices)?);
    let axis = resolve(int(node, "axis", 0)?, shape.len())?;
    let integers = matches!(builder.dtype(indices)?, DType::I32 | DType::I64);
    let total = index_shape.iter().chain(&shape).try_fold(1usize, |n, dim| n.checked_mul(*dim))?;
    let fits = integers
        && builder.is_held(data)
        && builder.is_held(indices)
        && total / shape[axis] < 1 << 29;
    let output = only_output(node)?;
    fits.then_some(Gather { data, indices, output, axis })
}
