//! Operators that move elements and compute none. Reshapes cost nothing,
//! transposes only where a reader cannot step through them.

use super::{constant_ints, input, int, ints, only_output, resolve};
use crate::lower::{Builder, COPY_RANK, Copy};
use crate::operand::{Operand, broadcast, dense_strides};
use mortise_types::{NodeDef, Result, Shape, ValueId};

/// `Reshape` and its relatives: another shape over the same memory.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn reshape(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, output, shape)) = reshaped(builder, node) else { return Ok(false) };
    let operand = builder.dense(x)?;
    builder.define(output, Operand::dense(operand.place, operand.dtype, &shape));
    Ok(true)
}

fn reshaped(builder: &Builder<'_>, node: &NodeDef) -> Option<(ValueId, ValueId, Shape)> {
    let (x, output) = (input(node, 0)?, only_output(node)?);
    let source = builder.shape(x).filter(|_| builder.is_held(x))?;
    let shape = match &*node.op {
        "Identity" => source.clone(),
        // In training it drops; that is refused elsewhere, and not known here.
        "Dropout" => source.clone(),
        "Flatten" => {
            let axis = int(node, "axis", 1)?;
            let at = if axis == source.len() as i64 {
                source.len()
            } else {
                resolve(axis, source.len())?
            };
            let product = |dims: &[usize]| dims.iter().product::<usize>();
            Shape::from_slice(&[product(&source[..at]), product(&source[at..])])
        }
        "Reshape" => target_shape(builder, node, &source)?,
        "Squeeze" => squeezed(builder, node, &source)?,
        _ => unsqueezed(builder, node, &source)?,
    };
    let same = shape.iter().product::<usize>() == source.iter().product::<usize>();
    let training = &*node.op == "Dropout" && input(node, 2).is_some();
    (same && !training).then_some((x, output, shape))
}

fn target_shape(builder: &Builder<'_>, node: &NodeDef, source: &[usize]) -> Option<Shape> {
    let target = list(builder, node, "shape", 1)?;
    let copies = int(node, "allowzero", 0)? == 0;
    let mut shape = Shape::new();
    for (axis, dim) in target.iter().enumerate() {
        shape.push(match dim {
            0 if copies => *source.get(axis)?,
            -1 => 1,
            other => usize::try_from(*other).ok()?,
        });
    }
    if let Some(at) = target.iter().position(|dim| *dim == -1) {
        let known: usize = shape.iter().product();
        let total: usize = source.iter().product();
        shape[at] = total.checked_div(known).filter(|missing| missing * known == total)?;
    }
    Some(shape)
}

fn squeezed(builder: &Builder<'_>, node: &NodeDef, source: &[usize]) -> Option<Shape> {
    let given = input(node, 1).is_some() || ints(node, "axes").is_some();
    let dropped: Vec<usize> = match given {
        true => axes(&list(builder, node, "axes", 1)?, source.len())?,
        false => (0..source.len()).filter(|axis| source[*axis] == 1).collect(),
    };
    Some((0..source.len()).filter(|axis| !dropped.contains(axis)).map(|a| source[a]).collect())
}

fn unsqueezed(builder: &Builder<'_>, node: &NodeDef, source: &[usize]) -> Option<Shape> {
    let added = list(builder, node, "axes", 1)?;
    let rank = source.len() + added.len();
    let added = axes(&added, rank)?;
    let mut rest = source.iter();
    (0..rank)
        .map(|axis| if added.contains(&axis) { Some(1) } else { rest.next().copied() })
        .collect()
}

fn axes(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    axes.iter().map(|axis| resolve(*axis, rank)).collect()
}

/// An attribute in old opsets, a constant input in new ones.
fn list(builder: &Builder<'_>, node: &NodeDef, name: &str, index: usize) -> Option<Vec<i64>> {
    match input(node, index) {
        Some(value) => constant_ints(builder, value),
        None => ints(node, name).map(<[i64]>::to_vec),
    }
}

/// `Transpose`: other strides over the same memory.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn transpose(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let (Some(x), Some(output)) = (input(node, 0), only_output(node)) else { return Ok(false) };
    let Some(rank) = builder.shape(x).map(|s| s.len()).filter(|_| builder.is_held(x)) else {
        return Ok(false);
    };
    let order: Option<Vec<usize>> = match node.attribute("perm") {
        None => Some((0..rank).rev().collect()),
        Some(_) => ints(node, "perm").and_then(|perm| axes(perm, rank)),
    };
    let is_order = |order: &Vec<usize>| (0..rank).all(|axis| order.contains(&axis));
    let Some(order) = order.filter(|order| order.len() == rank && is_order(order)) else {
        return Ok(false);
    };
    let operand = builder.operand(x)?;
    let pick = |values: &Shape| order.iter().map(|axis| values[*axis]).collect();
    let turned =
        Operand { shape: pick(&operand.shape), strides: pick(&operand.strides), ..operand };
    if rank > COPY_RANK {
        return Ok(false);
    }
    builder.define(output, turned);
    Ok(true)
}

/// `Expand`: stride zero along what is repeated.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn expand(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let (Some(x), Some(output)) = (input(node, 0), only_output(node)) else { return Ok(false) };
    let target = input(node, 1).and_then(|value| constant_ints(builder, value));
    let target: Option<Shape> =
        target.and_then(|dims| dims.iter().map(|dim| usize::try_from(*dim).ok()).collect());
    let joint = target.and_then(|target| broadcast(&builder.shape(x)?, &target));
    let fits =
        |shape: &Shape| shape.len() <= COPY_RANK && shape.iter().product::<usize>() < 1 << 29;
    let Some(shape) = joint.filter(|shape| builder.is_held(x) && fits(shape)) else {
        return Ok(false);
    };
    if shape.contains(&0) {
        return Ok(false);
    }
    let operand = builder.operand(x)?;
    let strides = operand.broadcast_strides(&shape);
    builder.define(output, Operand { shape, strides, ..operand });
    Ok(true)
}

/// `Slice` by constants.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn slice(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(x) = input(node, 0).filter(|x| builder.is_held(*x)) else { return Ok(false) };
    let Some((output, cuts)) = only_output(node).zip(cuts(builder, node, x)) else {
        return Ok(false);
    };
    if cuts.len() > COPY_RANK || cuts.iter().any(|cut| cut.len == 0) {
        return Ok(false);
    }
    let source = builder.operand(x)?;
    let shape: Shape = cuts.iter().map(|cut| cut.len).collect();
    let signed = cuts.iter().zip(&source.strides);
    let strides: Shape = signed.clone().map(|(c, s)| (*s as i64 * c.step) as usize).collect();
    let source_offset = signed.map(|(cut, stride)| cut.start * stride).sum();
    let target = builder.allocate(source.dtype, &shape);
    let dense = dense_strides(&shape);
    let copy = Copy { source_offset, target_offset: 0, target_strides: &dense };
    builder.copy(&source.place, &strides, &target.place, &shape, copy);
    builder.define(output, target);
    Ok(true)
}

/// What is taken along one axis.
#[derive(Clone, Copy)]
struct Cut {
    start: usize,
    len: usize,
    step: i64,
}

fn cuts(builder: &Builder<'_>, node: &NodeDef, x: ValueId) -> Option<Vec<Cut>> {
    let shape = builder.shape(x)?;
    let starts = list(builder, node, "starts", 1)?;
    let ends = list(builder, node, "ends", 2)?;
    let cut_axes = match (input(node, 3), ints(node, "axes")) {
        (None, None) => (0..starts.len() as i64).collect(),
        _ => list(builder, node, "axes", 3)?,
    };
    let steps = match input(node, 4) {
        Some(value) => constant_ints(builder, value)?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), cut_axes.len(), steps.len()].iter().any(|len| *len != starts.len()) {
        return None;
    }
    let mut cuts: Vec<Cut> = shape.iter().map(|len| Cut { start: 0, len: *len, step: 1 }).collect();
    for (at, axis) in cut_axes.iter().enumerate() {
        let axis = resolve(*axis, shape.len())?;
        cuts[axis] = cut(shape[axis] as i64, starts[at], ends[at], steps[at])?;
    }
    Some(cuts)
}

fn cut(size: i64, start: i64, end: i64, step: i64) -> Option<Cut> {
    let from_front = |index: i64| if index < 0 { index.saturating_add(size) } else { index };
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let start = from_front(start).clamp(low.max(0), high);
    let end = from_front(end).clamp(low, high);
    let len = match step {
        1.. => (end - start + step - 1) / step,
        ..=-1 => (start - end - step - 1) / -step,
        0 => return None,
    };
    Some(Cut { start: start as usize, len: len.max(0) as usize, step })
}

/// `Concat` along any axis.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn concat(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let parts: Option<Vec<ValueId>> = node.inputs.iter().copied().collect();
    let (Some(parts), Some(output)) = (parts, only_output(node)) else { return Ok(false) };
    let Some((shape, axis)) = joined(builder, node, &parts) else { return Ok(false) };
    let Some(dtype) = builder.dtype(parts[0]) else { return Ok(false) };
    let target = builder.allocate(dtype, &shape);
    let mut position = 0;
    for part in parts {
        let source = builder.operand(part)?;
        let target_offset = position * target.strides[axis];
        position += source.shape[axis];
        let copy = Copy { source_offset: 0, target_offset, target_strides: &target.strides };
        builder.copy(&source.place, &source.strides, &target.place, &source.shape, copy);
    }
    builder.define(output, target);
    Ok(true)
}

fn joined(builder: &Builder<'_>, node: &NodeDef, parts: &[ValueId]) -> Option<(Shape, usize)> {
    let first = *parts.first()?;
    let dtype = builder.dtype(first)?;
    let held = parts.iter().all(|p| builder.is_held(*p) && builder.dtype(*p) == Some(dtype));
    let mut shape = builder.shape(first).filter(|shape| held && shape.len() <= COPY_RANK)?;
    let axis = resolve(int(node, "axis", 1)?, shape.len())?;
    for part in &parts[1..] {
        let other = builder.shape(*part).filter(|other| other.len() == shape.len())?;
        let same = (0..shape.len()).all(|at| at == axis || shape[at] == other[at]);
        same.then(|| shape[axis] += other[axis])?;
    }
    (shape.iter().product::<usize>() < 1 << 29).then_some((shape, axis))
}

/// `Split` into parts of constant sizes.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn split(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(x) = input(node, 0).filter(|x| builder.is_held(*x)) else { return Ok(false) };
    let Some((axis, sizes)) = split_sizes(builder, node, x) else { return Ok(false) };
    let source = builder.operand(x)?;
    let mut position = 0;
    for (output, size) in node.outputs.iter().zip(sizes) {
        let mut shape = source.shape.clone();
        shape[axis] = size;
        let source_offset = position * source.strides[axis];
        position += size;
        let Some(output) = output else { continue };
        let target = builder.allocate(source.dtype, &shape);
        let dense = dense_strides(&shape);
        let copy = Copy { source_offset, target_offset: 0, target_strides: &dense };
        builder.copy(&source.place, &source.strides, &target.place, &shape, copy);
        builder.define(*output, target);
    }
    Ok(true)
}

fn split_sizes(builder: &Builder<'_>, node: &NodeDef, x: ValueId) -> Option<(usize, Vec<usize>)> {
    let shape = builder.shape(x).filter(|shape| shape.len() <= COPY_RANK)?;
    let axis = resolve(int(node, "axis", 0)?, shape.len())?;
    let count = node.outputs.len();
    let given = input(node, 1).is_some() || ints(node, "split").is_some();
    let sizes: Vec<usize> = match given {
        true => {
            let sizes = list(builder, node, "split", 1)?;
            sizes.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<_>>()?
        }
        false => {
            let each = shape[axis].div_ceil(count);
            (0..count).map(|at| each.min(shape[axis].saturating_sub(each * at))).collect()
        }
    };
    let fits = sizes.len() == count
        && sizes.iter().all(|size| *size > 0)
        && sizes.iter().sum::<usize>() == shape[axis];
    fits.then_some((axis, sizes))
}
