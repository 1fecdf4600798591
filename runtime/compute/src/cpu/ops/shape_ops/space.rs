//! Blocks of space as depth and back, and sequences backwards.

use super::reshape::permuted;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{axis, copy_blocks, dim, integers, strides};
use mortise_types::{Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

fn block_size(node: &NodeDef) -> Result<usize> {
    match dim(Attributes(node).int_or("blocksize", 0)?)? {
        0 => Err(Error::invalid("blocksize must be positive")),
        size => Ok(size),
    }
}

fn image(input: &Tensor) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(input.shape())
        .map_err(|_| Error::invalid(format!("expected [n, c, h, w], got {:?}", input.shape())))
}

pub(super) struct DepthToSpace {
    block: usize,
    /// Depth varies before the block's rows and columns do.
    column_row_depth: bool,
}

impl DepthToSpace {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let column_row_depth = match Attributes(node).text("mode")?.unwrap_or("DCR") {
            "DCR" => false,
            "CRD" => true,
            other => return Err(Error::unsupported(format!("mode \"{other}\""))),
        };
        Ok(Box::new(Self { block: block_size(node)?, column_row_depth }))
    }
}

impl Operator for DepthToSpace {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let ([n, c, h, w], b) = (image(input)?, self.block);
        let area = b.checked_mul(b).filter(|area| c.is_multiple_of(*area));
        let Some(depth) = area.map(|area| c / area) else {
            return Err(Error::invalid(format!("{c} channels do not fit blocks of {b} by {b}")));
        };
        let (shape, order) = if self.column_row_depth {
            ([n, depth, b, b, h, w], [0, 1, 4, 2, 5, 3])
        } else {
            ([n, b, b, depth, h, w], [0, 3, 4, 1, 5, 2])
        };
        let output = permuted(ctx, &input.clone().reshaped(&shape)?, &order)?;
        Ok(smallvec![output.reshaped(&[n, depth, h * b, w * b])?.into()])
    }
}

pub(super) struct SpaceToDepth(usize);

impl SpaceToDepth {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(block_size(node)?)))
    }
}

impl Operator for SpaceToDepth {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let ([n, c, h, w], b) = (image(input)?, self.0);
        if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
            return Err(Error::invalid(format!("{h} by {w} does not divide into blocks of {b}")));
        }
        let split = input.clone().reshaped(&[n, c, h / b, b, w / b, b])?;
        let output = permuted(ctx, &split, &[0, 3, 5, 1, 2, 4])?;
        Ok(smallvec![output.reshaped(&[n, c * b * b, h / b, w / b])?.into()])
    }
}

pub(super) struct ReverseSequence {
    batch_axis: i64,
    time_axis: i64,
}

impl ReverseSequence {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            batch_axis: attributes.int_or("batch_axis", 1)?,
            time_axis: attributes.int_or("time_axis", 0)?,
        }))
    }
}

impl Operator for ReverseSequence {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let lengths = integers(inputs.tensor(1)?)?;
        let shape = input.shape();
        let batch = axis(self.batch_axis, shape.len())?;
        let time = axis(self.time_axis, shape.len())?;
        if batch == time || batch > 1 || time > 1 {
            return Err(Error::invalid("batch_axis and time_axis must be 0 and 1 or 1 and 0"));
        }
        if lengths.len() != shape[batch]
            || lengths.iter().any(|&length| length < 0 || length > shape[time] as i64)
        {
            return Err(Error::invalid(format!(
                "lengths {lengths:?} do not fit {shape:?}: one from 0 to {} per batch",
                shape[time]
            )));
        }
        let steps = strides(shape);
        let block = steps[1];
        let output = copy_blocks(ctx, input, shape, block, |run| {
            let index = [run / shape[1], run % shape[1]];
            let (row, at) = (index[batch], index[time]);
            let length = lengths[row] as usize;
            let from = if at < length { length - 1 - at } else { at };
            Ok(row * steps[batch] + from * steps[time])
        })?;
        Ok(smallvec![output.into()])
    }
}
