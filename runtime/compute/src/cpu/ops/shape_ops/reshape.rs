//! Other shapes for the same elements, and other orders of them.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{
    View, axes, axis, copy_view, dim, element_count, integers, one_integer,
};
use mortise_types::{Error, NodeDef, Result, Shape, Tensor};
use smallvec::{SmallVec, smallvec};

/// A list that is an attribute in old opsets and an input in new ones.
pub(super) fn attribute_or_input(
    attribute: Option<&[i64]>,
    inputs: &Inputs<'_>,
    position: usize,
) -> Result<Option<Vec<i64>>> {
    match (attribute, inputs.optional(position)?) {
        (_, Some(tensor)) => Ok(Some(integers(tensor)?.into_owned())),
        (Some(list), None) => Ok(Some(list.to_vec())),
        (None, None) => Ok(None),
    }
}

pub(super) struct Reshape {
    shape: Option<Vec<i64>>,
    /// A zero means a dimension of zero, not "as before".
    allow_zero: bool,
}

impl Reshape {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            shape: attributes.ints("shape")?.map(<[i64]>::to_vec),
            allow_zero: attributes.int_or("allowzero", 0)? != 0,
        }))
    }

    fn resolve(&self, wanted: &[i64], input: &Tensor) -> Result<Shape> {
        let mut shape = Shape::new();
        let mut inferred = None;
        for (position, &size) in wanted.iter().enumerate() {
            match size {
                -1 if inferred.is_some() => {
                    return Err(Error::invalid(format!("{wanted:?} has more than one -1")));
                }
                -1 => {
                    inferred = Some(position);
                    shape.push(1);
                }
                0 if !self.allow_zero => {
                    shape.push(*input.shape().get(position).ok_or_else(|| {
                        Error::invalid(format!("{wanted:?} copies a dimension that is not there"))
                    })?);
                }
                size => shape.push(dim(size)?),
            }
        }
        if let Some(position) = inferred {
            let known = element_count(&shape)?;
            if known == 0 || !input.len().is_multiple_of(known) {
                return Err(Error::invalid(format!(
                    "cannot reshape {:?} to {wanted:?}",
                    input.shape()
                )));
            }
            shape[position] = input.len() / known;
        }
        Ok(shape)
    }
}

impl Operator for Reshape {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let wanted = attribute_or_input(self.shape.as_deref(), &inputs, 1)?
            .ok_or_else(|| Error::invalid("the shape is missing"))?;
        let input = inputs.take(0)?;
        let shape = self.resolve(&wanted, &input)?;
        Ok(smallvec![input.reshaped(&shape)?.into()])
    }
}

pub(super) struct Flatten(i64);

impl Flatten {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).int_or("axis", 1)?)))
    }
}

impl Operator for Flatten {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.take(0)?;
        let rank = input.rank();
        let at = if self.0 == rank as i64 { rank } else { axis(self.0, rank)? };
        let (rows, columns) = input.shape().split_at(at);
        let shape = [element_count(rows)?, element_count(columns)?];
        Ok(smallvec![input.reshaped(&shape)?.into()])
    }
}

pub(super) struct Squeeze(Option<Vec<i64>>);

impl Squeeze {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).ints("axes")?.map(<[i64]>::to_vec))))
    }
}

impl Operator for Squeeze {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let list = attribute_or_input(self.0.as_deref(), &inputs, 1)?;
        let input = inputs.take(0)?;
        let old = input.shape();
        let shape: Shape = match list.filter(|list| !list.is_empty()) {
            None => old.iter().copied().filter(|&size| size != 1).collect(),
            Some(list) => {
                let removed: SmallVec<[usize; 6]> =
                    list.iter().map(|&item| axis(item, old.len())).collect::<Result<_>>()?;
                if let Some(&wide) = removed.iter().find(|&&item| old[item] != 1) {
                    return Err(Error::invalid(format!(
                        "cannot squeeze axis {wide} of {old:?}: its size is not 1"
                    )));
                }
                let kept = old.iter().enumerate().filter(|(item, _)| !removed.contains(item));
                kept.map(|(_, &size)| size).collect()
            }
        };
        Ok(smallvec![input.reshaped(&shape)?.into()])
    }
}

pub(super) struct Unsqueeze(Option<Vec<i64>>);

impl Unsqueeze {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).ints("axes")?.map(<[i64]>::to_vec))))
    }
}

impl Operator for Unsqueeze {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let list = attribute_or_input(self.0.as_deref(), &inputs, 1)?
            .ok_or_else(|| Error::invalid("the axes are missing"))?;
        let input = inputs.take(0)?;
        let rank = input.rank() + list.len();
        let added = axes(&list, rank)?;
        let mut old = input.shape().iter().copied();
        let shape: Shape = (0..rank)
            .map(|item| if added.contains(&item) { 1 } else { old.next().unwrap_or(1) })
            .collect();
        Ok(smallvec![input.reshaped(&shape)?.into()])
    }
}

pub(super) struct Transpose(Option<Vec<i64>>);

impl Transpose {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).ints("perm")?.map(<[i64]>::to_vec))))
    }
}

impl Operator for Transpose {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let rank = input.rank();
        let order: SmallVec<[usize; 6]> = match &self.0 {
            None => (0..rank).rev().collect(),
            Some(list) if list.len() == rank => axes(list, rank)?,
            Some(list) => {
                return Err(Error::invalid(format!(
                    "perm {list:?} does not fit {:?}",
                    input.shape()
                )));
            }
        };
        Ok(smallvec![permuted(ctx, input, &order)?.into()])
    }
}

/// The tensor with its dimensions in another order.
pub(super) fn permuted(ctx: &OpContext<'_>, input: &Tensor, order: &[usize]) -> Result<Tensor> {
    let whole = View::of(input.shape());
    let view = View {
        shape: order.iter().map(|&item| whole.shape[item]).collect(),
        strides: order.iter().map(|&item| whole.strides[item]).collect(),
        offset: 0,
    };
    copy_view(ctx, input, &view, &view.shape)
}

pub(super) struct Expand;

impl Operator for Expand {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let wanted = integers(inputs.tensor(1)?)?;
        let rank = input.rank().max(wanted.len());
        let whole = View::of(input.shape());
        let mut view = View { shape: Shape::new(), strides: SmallVec::new(), offset: 0 };
        for item in 0..rank {
            let from_input = (item + input.rank()).checked_sub(rank);
            let (old, step) =
                from_input.map_or((1, 0), |item| (whole.shape[item], whole.strides[item]));
            let new = match (item + wanted.len()).checked_sub(rank) {
                Some(item) => dim(wanted[item])?,
                None => 1,
            };
            if old != new && old != 1 && new != 1 {
                return Err(Error::invalid(format!(
                    "cannot expand {:?} to {wanted:?}",
                    input.shape()
                )));
            }
            view.shape.push(if old == 1 { new } else { old });
            view.strides.push(if old == 1 { 0 } else { step });
        }
        Ok(smallvec![copy_view(ctx, input, &view, &view.shape)?.into()])
    }
}

/// Repeats along every axis; before opset 6 along one, `tiles` times.
pub(super) struct Tile;

impl Operator for Tile {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let repeats = match inputs.optional(2)? {
            None => integers(inputs.tensor(1)?)?.into_owned(),
            Some(along) => {
                let mut repeats = vec![1; input.rank()];
                repeats[axis(one_integer(along)?, input.rank())?] = one_integer(inputs.tensor(1)?)?;
                repeats
            }
        };
        if repeats.len() != input.rank() {
            return Err(Error::invalid(format!(
                "{repeats:?} repeats do not fit {:?}",
                input.shape()
            )));
        }
        let whole = View::of(input.shape());
        let mut view = View { shape: Shape::new(), strides: SmallVec::new(), offset: 0 };
        let mut shape = Shape::new();
        for (item, &count) in repeats.iter().enumerate() {
            let count = dim(count)?;
            view.shape.extend([count, whole.shape[item]]);
            view.strides.extend([0, whole.strides[item]]);
            shape.push(element_count(&[count, whole.shape[item]])?);
        }
        Ok(smallvec![copy_view(ctx, input, &view, &shape)?.into()])
    }
}

/// The shape as a tensor, or the part of it from `start` to `end`.
pub(super) struct ShapeOf {
    start: i64,
    end: Option<i64>,
}

impl ShapeOf {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let (start, end) = (attributes.int_or("start", 0)?, attributes.int("end")?);
        Ok(Box::new(Self { start, end }))
    }
}

impl Operator for ShapeOf {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let shape = inputs.tensor(0)?.shape();
        let rank = shape.len() as i64;
        let clamp = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank);
        let (start, end) = (clamp(self.start), clamp(self.end.unwrap_or(rank)));
        let part = if start < end { &shape[start as usize..end as usize] } else { &[] };
        let values: Vec<i64> = part.iter().map(|&size| size as i64).collect();
        Ok(smallvec![Tensor::from_vec(&[values.len()], values)?.into()])
    }
}

pub(super) struct Size;

impl Operator for Size {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        Ok(smallvec![Tensor::scalar(inputs.tensor(0)?.len() as i64).into()])
    }
}
