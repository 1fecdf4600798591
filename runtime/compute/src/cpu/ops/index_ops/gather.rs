//! Elements by index.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{axis, copy_blocks, dim, element_count, index, integers, strides};
use mortise_types::{Error, NodeDef, Result, Shape};
use smallvec::smallvec;

pub(super) struct Gather(i64);

impl Gather {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).int_or("axis", 0)?)))
    }
}

impl Operator for Gather {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (data, wanted) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let along = axis(self.0, data.rank())?;
        let indices = integers(wanted)?;
        let size = data.shape()[along];
        let block = element_count(&data.shape()[along + 1..])?;
        let mut shape: Shape = data.shape()[..along].into();
        shape.extend_from_slice(wanted.shape());
        shape.extend_from_slice(&data.shape()[along + 1..]);
        let output = copy_blocks(ctx, data, &shape, block, |run| {
            let picked = index(indices[run % indices.len()], size)?;
            Ok((run / indices.len() * size + picked) * block)
        })?;
        Ok(smallvec![output.into()])
    }
}

pub(super) struct GatherElements(i64);

impl GatherElements {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).int_or("axis", 0)?)))
    }
}

impl Operator for GatherElements {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (data, wanted) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let along = axis(self.0, data.rank())?;
        let places = Places::new(data.shape(), wanted.shape(), along)?;
        let indices = integers(wanted)?;
        let size = data.shape()[along];
        let output = copy_blocks(ctx, data, wanted.shape(), 1, |element| {
            Ok(places.of(element, index(indices[element], size)?))
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Where an element of an index tensor points to in a larger tensor, its own
/// coordinates holding for every axis but one.
pub(super) struct Places {
    outer: Shape,
    steps: Shape,
    data_steps: Shape,
    along: usize,
}

impl Places {
    /// # Errors
    /// When ranks differ, or the index tensor is larger off the axis.
    pub(super) fn new(data: &[usize], indices: &[usize], along: usize) -> Result<Self> {
        let fits = data.len() == indices.len()
            && (0..data.len()).all(|item| item == along || indices[item] <= data[item]);
        if !fits {
            return Err(Error::invalid(format!("indices {indices:?} do not fit data {data:?}")));
        }
        Ok(Self {
            outer: indices.into(),
            steps: strides(indices).into_iter().collect(),
            data_steps: strides(data).into_iter().collect(),
            along,
        })
    }

    /// Offset in the data, with `picked` along the axis.
    pub(super) fn of(&self, element: usize, picked: usize) -> usize {
        let mut offset = picked * self.data_steps[self.along];
        for item in (0..self.outer.len()).filter(|&item| item != self.along) {
            let coordinate = element / self.steps[item].max(1) % self.outer[item].max(1);
            offset += coordinate * self.data_steps[item];
        }
        offset
    }
}

pub(super) struct GatherNd(usize);

impl GatherNd {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(dim(Attributes(node).int_or("batch_dims", 0)?)?)))
    }
}

impl Operator for GatherNd {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (data, wanted) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let Some((&depth, outer)) = wanted.shape().split_last() else {
            return Err(Error::invalid("the indices are a scalar"));
        };
        let batch = self.0;
        let end = batch.saturating_add(depth);
        let fits =
            end <= data.rank() && batch <= outer.len() && outer[..batch] == data.shape()[..batch];
        if !fits {
            return Err(Error::invalid(format!(
                "indices {:?} with batch_dims {batch} do not fit data {:?}",
                wanted.shape(),
                data.shape()
            )));
        }
        let indices = integers(wanted)?;
        let block = element_count(&data.shape()[end..])?;
        let inner = element_count(&data.shape()[batch..])?;
        let per_batch = element_count(&outer[batch..])?;
        let sizes = &data.shape()[batch..end];
        let mut shape: Shape = outer.into();
        shape.extend_from_slice(&data.shape()[end..]);
        let output = copy_blocks(ctx, data, &shape, block, |run| {
            let tuple = &indices[run * depth..(run + 1) * depth];
            let start = run.checked_div(per_batch).unwrap_or(0) * inner;
            Ok(start + offset(tuple, sizes)? * block)
        })?;
        Ok(smallvec![output.into()])
    }
}

/// The row-major position of a tuple of indices.
pub(super) fn offset(tuple: &[i64], sizes: &[usize]) -> Result<usize> {
    tuple
        .iter()
        .zip(sizes)
        .try_fold(0, |offset, (&item, &size)| Ok(offset * size + index(item, size)?))
}
