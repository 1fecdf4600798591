//! Arithmetic on shapes whose dimensions may be unknown (`-1`).

use super::{Fact, NodeView, resolve_axis};

type Dims = Vec<i64>;

/// The joint shape; `None` when the two cannot be broadcast. An unknown size
/// against one that is over 1 must be that size.
pub(crate) fn broadcast(a: &[i64], b: &[i64]) -> Option<Dims> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[i64], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at])
    };
    (0..rank)
        .map(|axis| match (dim(a, axis), dim(b, axis)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            (-1, y) => Some(y),
            (x, -1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Of input 0 and input `right`.
pub(crate) fn matmul(view: &NodeView<'_>, right: usize) -> Option<Dims> {
    let (mut a, mut b) = (view.shape(0)?, view.shape(right)?);
    let flag = |name: &str| view.int(name).unwrap_or(0) != 0;
    let (vector_a, vector_b) = (a.len() == 1, b.len() == 1);
    if vector_a {
        a.insert(0, 1);
    }
    if vector_b {
        b.push(1);
    }
    let (rank_a, rank_b) = (a.len(), b.len());
    if rank_a < 2 || rank_b < 2 {
        return None;
    }
    if flag("transA") && !vector_a {
        a.swap(rank_a - 1, rank_a - 2);
    }
    if flag("transB") && !vector_b {
        b.swap(rank_b - 1, rank_b - 2);
    }
    let mut output = broadcast(&a[..rank_a - 2], &b[..rank_b - 2])?;
    output.extend((!vector_a).then_some(a[rank_a - 2]));
    output.extend((!vector_b).then_some(b[rank_b - 1]));
    Some(output)
}

/// As the left operand, with as many columns as attribute `N` says.
pub(crate) fn matmul_nbits(view: &NodeView<'_>) -> Option<Dims> {
    let mut shape = view.shape(0)?;
    *shape.last_mut()? = view.int("N")?;
    Some(shape)
}

pub(crate) fn gemm(view: &NodeView<'_>) -> Option<Dims> {
    let flag = |name: &str| usize::from(view.int(name).unwrap_or(0) != 0);
    let rows = *view.shape(0)?.get(flag("transA"))?;
    let columns = *view.shape(1)?.get(1 - flag("transB"))?;
    Some(vec![rows, columns])
}

pub(crate) fn reduce(view: &NodeView<'_>) -> Option<Dims> {
    let shape = view.shape(0)?;
    let keep = view.int("keepdims").unwrap_or(1) != 0;
    let axes = match view.input(1) {
        Some(_) => view.constant_ints(1),
        None => Some(view.ints("axes").unwrap_or_default().to_vec()),
    };
    let Some(axes) = axes else { return keep.then(|| vec![-1; shape.len()]) };
    if axes.is_empty() && view.int("noop_with_empty_axes").unwrap_or(0) != 0 {
        return Some(shape);
    }
    let reduced: Vec<usize> = if axes.is_empty() {
        (0..shape.len()).collect()
    } else {
        axes.iter().map(|axis| resolve_axis(*axis, shape.len())).collect::<Option<_>>()?
    };
    Some(without(&shape, &reduced, keep))
}

fn without(shape: &[i64], axes: &[usize], keep: bool) -> Dims {
    let sizes = shape.iter().enumerate();
    sizes
        .filter_map(|(axis, dim)| match axes.contains(&axis) {
            false => Some(*dim),
            true => keep.then_some(1),
        })
        .collect()
}

pub(crate) fn arg_reduce(view: &NodeView<'_>) -> Option<Dims> {
    let shape = view.shape(0)?;
    let axis = resolve_axis(view.int("axis").unwrap_or(0), shape.len())?;
    Some(without(&shape, &[axis], view.int("keepdims").unwrap_or(1) != 0))
}

pub(crate) fn top_k(view: &NodeView<'_>) -> Option<Dims> {
    let mut shape = view.shape(0)?;
    let axis = resolve_axis(view.int("axis").unwrap_or(-1), shape.len())?;
    let k = view.int("k").or_else(|| view.constant_ints(1)?.first().copied());
    shape[axis] = k.unwrap_or(-1);
    Some(shape)
}

pub(crate) fn shape_len(view: &NodeView<'_>) -> i64 {
    let plain = view.int("start").is_none() && view.int("end").is_none();
    view.shape(0).filter(|_| plain).map_or(-1, |shape| shape.len() as i64)
}

pub(crate) fn reshape(view: &NodeView<'_>) -> Option<Dims> {
    let Some(target) = view.ints_or_input("shape", 1) else {
        let rank = *view.shape(1)?.first()?;
        return (0..64).contains(&rank).then(|| vec![-1; rank as usize]);
    };
    let source = view.shape(0);
    let copies = view.int("allowzero").unwrap_or(0) == 0;
    let mut output = Vec::with_capacity(target.len());
    for (axis, &dim) in target.iter().enumerate() {
        output.push(match dim {
            0 if copies => source.as_ref().and_then(|s| s.get(axis).copied()).unwrap_or(-1),
            other => other.max(-1),
        });
    }
    solve_unknown(&target, source.as_deref(), &mut output);
    Some(output)
}

/// Works out the `-1` of a target shape where everything else is known, with
/// an unknown leading size that is copied cancelling out.
fn solve_unknown(target: &[i64], source: Option<&[i64]>, output: &mut [i64]) {
    let Some(source) = source else { return };
    let Some(at) = target.iter().position(|&dim| dim == -1) else { return };
    let copied = |axis: usize| target.get(axis) == Some(&0) && source.get(axis) == Some(&-1);
    let product = |dims: &[i64], skip: &dyn Fn(usize) -> bool| {
        let kept = dims.iter().enumerate().filter(|(axis, _)| !skip(*axis));
        kept.map(|(_, &dim)| dim).try_fold(1i64, |p, dim| p.checked_mul((dim >= 0).then_some(dim)?))
    };
    let total = product(source, &copied);
    let rest = product(output, &|axis| axis == at || copied(axis));
    if let (Some(total), Some(rest)) = (total, rest)
        && rest > 0
        && total % rest == 0
    {
        output[at] = total / rest;
    }
}

pub(crate) fn flatten(view: &NodeView<'_>) -> Option<Dims> {
    let shape = view.shape(0)?;
    let axis = view.int("axis").unwrap_or(1);
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let (front, back) = shape.split_at_checked(usize::try_from(axis).ok()?)?;
    Some(vec![count(front), count(back)])
}

fn count(dims: &[i64]) -> i64 {
    let known = |product: i64, dim: &i64| product.checked_mul((*dim >= 0).then_some(*dim)?);
    match dims {
        [dim] => *dim,
        dims => dims.iter().try_fold(1, known).unwrap_or(-1),
    }
}

pub(crate) fn transpose(view: &NodeView<'_>) -> Option<Dims> {
    let shape = view.shape(0)?;
    let Some(order) = view.ints("perm") else { return Some(shape.into_iter().rev().collect()) };
    order.iter().map(|axis| shape.get(usize::try_from(*axis).ok()?).copied()).collect()
}

pub(crate) fn concat(view: &NodeView<'_>) -> Option<Dims> {
    let mut joint = view.shape(0)?;
    let axis = resolve_axis(view.int("axis").unwrap_or(1), joint.len())?;
    for index in 1..view.node.inputs.len() {
        let shape = view.shape(index).filter(|shape| shape.len() == joint.len())?;
        for (at, (dim, other)) in joint.iter_mut().zip(shape).enumerate() {
            *dim = match (at == axis, *dim, other) {
                (true, a, b) if a >= 0 && b >= 0 => a.saturating_add(b),
                (true, ..) => -1,
                (false, -1, other) => other,
                (false, dim, _) => dim,
            };
        }
    }
    Some(joint)
}

pub(crate) fn squeeze(view: &NodeView<'_>) -> Option<Dims> {
    let shape = view.shape(0)?;
    let axes = match (view.input(1), view.ints("axes")) {
        (Some(_), _) => view.constant_ints(1)?,
        (None, Some(axes)) => axes.to_vec(),
        (None, None) => {
            let all_known = shape.iter().all(|dim| *dim >= 0);
            return all_known.then(|| shape.into_iter().filter(|dim| *dim != 1).collect());
        }
    };
    let axes: Option<Vec<usize>> = axes.iter().map(|a| resolve_axis(*a, shape.len())).collect();
    Some(without(&shape, &axes?, false))
}

pub(crate) fn unsqueeze(view: &NodeView<'_>) -> Option<Dims> {
    let shape = view.shape(0)?;
    let axes = view.ints_or_input("axes", 1)?;
    let rank = shape.len() + axes.len();
    let axes: Vec<usize> =
        axes.iter().map(|axis| resolve_axis(*axis, rank)).collect::<Option<_>>()?;
    let mut rest = shape.into_iter();
    (0..rank).map(|axis| if axes.contains(&axis) { Some(1) } else { rest.next() }).collect()
}

pub(crate) fn expand(view: &NodeView<'_>) -> Option<Dims> {
    match view.constant_ints(1) {
        Some(target) => broadcast(&view.shape(0)?, &target),
        None => {
            let rank = view.shape(0)?.len().max(usize::try_from(*view.shape(1)?.first()?).ok()?);
            (rank < 64).then(|| vec![-1; rank])
        }
    }
}

pub(crate) fn gather(view: &NodeView<'_>) -> Option<Dims> {
    let (data, indices) = (view.shape(0)?, view.shape(1)?);
    let axis = resolve_axis(view.int("axis").unwrap_or(0), data.len())?;
    Some([&data[..axis], &indices, &data[axis + 1..]].concat())
}

pub(crate) fn same_rank(view: &NodeView<'_>) -> Option<Dims> {
    let mut shape = view.shape(0)?;
    if &*view.node.op == "Slice"
        && let Some(axes) = slice_axes(view, shape.len())
    {
        axes.iter().for_each(|axis| shape[*axis] = -1);
        return Some(shape);
    }
    Some(vec![-1; shape.len()])
}

/// The axes that a `Slice` changes.
pub(crate) fn slice_axes(view: &NodeView<'_>, rank: usize) -> Option<Vec<usize>> {
    let starts = view.ints_or_input("starts", 1)?;
    let axes = match (view.input(3), view.ints("axes")) {
        (Some(_), _) => view.constant_ints(3)?,
        (None, Some(axes)) => axes.to_vec(),
        (None, None) => (0..starts.len() as i64).collect(),
    };
    axes.iter().map(|axis| resolve_axis(*axis, rank)).collect()
}

pub(crate) fn split(view: &NodeView<'_>) -> Vec<Fact> {
    let count = view.node.outputs.len();
    let shape = |index: usize| {
        let mut shape = view.shape(0)?;
        let axis = resolve_axis(view.int("axis").unwrap_or(0), shape.len())?;
        let sizes = view.ints_or_input("split", 1);
        shape[axis] = match sizes {
            Some(sizes) => sizes.get(index).copied().unwrap_or(-1),
            None if view.input(1).is_none() && shape[axis] >= 0 => {
                let each = (shape[axis] as usize).div_ceil(count);
                each.min((shape[axis] as usize).saturating_sub(each * index)) as i64
            }
            None => -1,
        };
        Some(shape)
    };
    (0..count).map(|index| Fact::new(view.dtype(0), shape(index))).collect()
}

pub(crate) fn one_hot(view: &NodeView<'_>) -> Option<Dims> {
    let mut shape = view.shape(0)?;
    let axis = resolve_axis(view.int("axis").unwrap_or(-1), shape.len() + 1)?;
    let depth = view.constant_ints(1).and_then(|depth| depth.first().copied()).unwrap_or(-1);
    shape.insert(axis, depth);
    Some(shape)
}

pub(crate) fn channels_and_unknown(view: &NodeView<'_>) -> Option<Dims> {
    let (input, weights) = (view.shape(0)?, view.shape(1)?);
    let per_group = *weights.get(1)?;
    let channels =
        if per_group < 0 { -1 } else { per_group.checked_mul(view.int("group").unwrap_or(1))? };
    let mut output = vec![-1; input.len()];
    *output.first_mut()? = *input.first()?;
    *output.get_mut(1)? = channels;
    Some(output)
}

/// Of input 0 and the filters in input `filters`.
pub(crate) fn conv(view: &NodeView<'_>, filters: usize) -> Option<Dims> {
    let weights = view.shape(filters)?;
    let kernel = weights.get(2..)?;
    let mut output = windowed(view, kernel)?;
    *output.get_mut(1)? = *weights.first()?;
    Some(output)
}

/// The answer of attention: as the queries, with the values' size.
pub(crate) fn attention(view: &NodeView<'_>) -> Option<Dims> {
    let (mut shape, values) = (view.shape(0)?, view.shape(2)?);
    let width = *values.last().filter(|_| values.len() == shape.len())?;
    *shape.last_mut()? = match (shape.len(), view.int("kv_num_heads")) {
        (3, Some(heads)) if heads > 0 && width >= 0 => {
            (width / heads).checked_mul(view.int("q_num_heads")?)?
        }
        _ => width,
    };
    Some(shape)
}

/// Keys or values, input `at`, behind those of the past.
pub(crate) fn present(view: &NodeView<'_>, at: usize) -> Option<Dims> {
    let mut shape = match (view.shape(at)?.as_slice(), view.int("kv_num_heads")) {
        (&[batch, length, width], Some(heads)) if heads > 0 => {
            vec![batch, heads, length, if width < 0 { -1 } else { width / heads }]
        }
        (shape @ [_, _, _, _], _) => shape.to_vec(),
        _ => return None,
    };
    if view.input(at + 3).is_some() {
        let past = view.shape(at + 3).and_then(|past| past.get(2).copied()).unwrap_or(-1);
        shape[2] = if past < 0 || shape[2] < 0 { -1 } else { shape[2].checked_add(past)? };
    }
    Some(shape)
}

pub(crate) fn pool(view: &NodeView<'_>) -> Option<Dims> {
    windowed(view, view.ints("kernel_shape")?)
}

/// Sizes after sliding a window; unknown where padding depends on the input.
fn windowed(view: &NodeView<'_>, kernel: &[i64]) -> Option<Dims> {
    let mut shape = view.shape(0).filter(|shape| shape.len() == kernel.len() + 2)?;
    let explicit = view.node.attribute("auto_pad").is_none();
    let list = |name: &str, axis: usize, default: i64| {
        view.ints(name).and_then(|values| values.get(axis).copied()).unwrap_or(default)
    };
    for (axis, size) in kernel.iter().enumerate() {
        let known = explicit && shape[axis + 2] >= 0 && *size > 0;
        let pads = list("pads", axis, 0).checked_add(list("pads", axis + kernel.len(), 0))?;
        let (stride, dilation) = (list("strides", axis, 1), list("dilations", axis, 1));
        let extent = dilation.checked_mul(size - 1)?.checked_add(1)?;
        let free = shape[axis + 2].checked_add(pads)?.checked_sub(extent)?;
        shape[axis + 2] = match view.int("ceil_mode").unwrap_or(0) {
            0 if known && free >= 0 && stride > 0 => free / stride + 1,
            _ => -1,
        };
    }
    Some(shape)
}

pub(crate) fn global_pool(view: &NodeView<'_>) -> Option<Dims> {
    let shape = view.shape(0)?;
    Some(shape.iter().enumerate().map(|(axis, dim)| if axis < 2 { *dim } else { 1 }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_sizes_broadcast() {
        let cases: [(&[i64], &[i64], Option<Dims>); 5] = [
            (&[-1, 3], &[3], Some(vec![-1, 3])),
            (&[-1, 3], &[-1, 1], Some(vec![-1, 3])),
            (&[-1], &[4], Some(vec![4])),
            (&[-1, 1], &[1, -1], Some(vec![-1, -1])),
            (&[2], &[3], None),
        ];
        for (a, b, want) in cases {
            assert_eq!(broadcast(a, b), want, "{a:?} {b:?}");
        }
    }

    #[test]
    fn the_missing_size_of_a_reshape_is_solved() {
        let cases: [(&[i64], &[i64], &[i64]); 4] = [
            (&[0, -1], &[-1, 8, 8], &[-1, 64]),
            (&[-1, 64], &[2, 8, 8], &[2, 64]),
            (&[-1, 64], &[-1, 8, 8], &[-1, 64]),
            (&[0, 0, 4, -1], &[-1, -1, 12], &[-1, -1, 4, 3]),
        ];
        for (target, source, want) in cases {
            let mut output: Dims = target
                .iter()
                .enumerate()
                .map(|(axis, dim)| if *dim == 0 { source[axis] } else { *dim })
                .collect();
            solve_unknown(target, Some(source), &mut output);
            assert_eq!(output, want, "{target:?} of {source:?}");
        }
    }
}
