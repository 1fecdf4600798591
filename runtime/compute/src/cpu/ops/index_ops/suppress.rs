//! `NonMaxSuppression`: the best boxes that do not overlap better ones.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{floats, one_integer};
use mortise_types::{DType, Error, NodeDef, Result};
use smallvec::smallvec;

pub(super) struct NonMaxSuppression {
    /// Boxes are centre and size, not two corners.
    centred: bool,
}

/// Corners in order, and the area.
#[derive(Clone, Copy)]
struct Rectangle {
    low: [f32; 2],
    high: [f32; 2],
    area: f32,
}

impl Rectangle {
    fn new(values: &[f32], centred: bool) -> Self {
        let [a, b, c, d] = [values[0], values[1], values[2], values[3]];
        let (low, high) = if centred {
            ([a - c / 2.0, b - d / 2.0], [a + c / 2.0, b + d / 2.0])
        } else {
            ([a.min(c), b.min(d)], [a.max(c), b.max(d)])
        };
        Self { low, high, area: (high[0] - low[0]) * (high[1] - low[1]) }
    }

    /// Whether the shared part of two boxes is more than `limit` of both.
    fn overlaps(&self, other: &Self, limit: f32) -> bool {
        let side = |at: usize| {
            (self.high[at].min(other.high[at]) - self.low[at].max(other.low[at])).max(0.0)
        };
        let shared = side(0) * side(1);
        if self.area <= 0.0 || other.area <= 0.0 {
            return false;
        }
        shared / (self.area + other.area - shared) > limit
    }
}

impl NonMaxSuppression {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self { centred: Attributes(node).int_or("center_point_box", 0)? != 0 }))
    }
}

fn optional_float(inputs: &Inputs<'_>, position: usize) -> Result<Option<f32>> {
    match inputs.optional(position)? {
        Some(tensor) => Ok(floats(tensor)?.first().copied()),
        None => Ok(None),
    }
}

impl Operator for NonMaxSuppression {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (boxes, scores) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let (&[batches, count, 4], &[also, classes, same]) = (boxes.shape(), scores.shape()) else {
            return Err(Error::invalid(format!(
                "expected boxes [n, b, 4] and scores [n, c, b], got {boxes:?} and {scores:?}"
            )));
        };
        if also != batches || same != count {
            return Err(Error::invalid(format!("boxes {boxes:?} do not fit scores {scores:?}")));
        }
        let most = match inputs.optional(2)? {
            Some(tensor) => usize::try_from(one_integer(tensor)?).unwrap_or(0),
            None => 0,
        };
        let overlap = optional_float(&inputs, 3)?.unwrap_or(0.0);
        let threshold = optional_float(&inputs, 4)?;
        let (boxes, scores) = (boxes.as_slice::<f32>()?, scores.as_slice::<f32>()?);
        let mut found: Vec<[i64; 3]> = Vec::new();
        for (line, scores) in scores.chunks_exact(count.max(1)).enumerate() {
            let (batch, class) = (line / classes, line % classes);
            let corners = &boxes[batch * count * 4..(batch + 1) * count * 4];
            let mut order: Vec<usize> = (0..count)
                .filter(|&at| threshold.is_none_or(|threshold| scores[at] > threshold))
                .collect();
            order.sort_by(|&a, &b| {
                scores[b].partial_cmp(&scores[a]).unwrap_or(std::cmp::Ordering::Equal)
            });
            let mut kept: Vec<Rectangle> = Vec::new();
            for at in order {
                if kept.len() >= most {
                    break;
                }
                ctx.control.check()?;
                let candidate = Rectangle::new(&corners[at * 4..at * 4 + 4], self.centred);
                if !kept.iter().any(|better| better.overlaps(&candidate, overlap)) {
                    kept.push(candidate);
                    found.push([batch as i64, class as i64, at as i64]);
                }
            }
        }
        let mut output = ctx.allocate(DType::I64, &[found.len(), 3])?;
        output.as_mut_slice::<i64>()?.copy_from_slice(found.as_flattened());
        Ok(smallvec![output.into()])
    }
}
