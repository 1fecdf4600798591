//! Rows of tables in few bits: `GatherRows`.

use super::linear::float_values;
use crate::cpu::op::{Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{index, integers};
use mortise_types::{DType, Error, Result, Shape, f16};
use smallvec::smallvec;

/// Rows of the table `[rows, columns]`, in i8 or f16, as floats, by the
/// integers of the second input. The third has a factor for each row of a table
/// in i8.
pub(super) struct GatherRows;

impl Operator for GatherRows {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (table, wanted) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let &[rows, columns] = table.shape() else {
            return Err(Error::invalid(format!("{table:?} is no table")));
        };
        let scales = inputs.optional(2)?.map(float_values).transpose()?;
        let mut shape: Shape = wanted.shape().into();
        shape.push(columns);
        let mut output = ctx.allocate(DType::F32, &shape)?;
        let lines = output.as_mut_slice::<f32>()?.chunks_exact_mut(columns.max(1));
        let wanted = integers(wanted)?;
        let picked = wanted.iter().map(|&value| index(value, rows));
        match (table.dtype(), scales) {
            (DType::I8, Some(scales)) if scales.len() == rows => {
                let bytes = table.as_slice::<i8>()?;
                for (line, row) in lines.zip(picked) {
                    let row = row?;
                    let (bytes, scale) = (&bytes[row * columns..], scales[row]);
                    line.iter_mut().zip(bytes).for_each(|(x, q)| *x = f32::from(*q) * scale);
                }
            }
            (DType::F16, None) => {
                let halves = table.as_slice::<f16>()?;
                for (line, row) in lines.zip(picked) {
                    let halves = &halves[row? * columns..];
                    line.iter_mut().zip(halves).for_each(|(x, half)| *x = half.to_f32());
                }
            }
            _ => return Err(Error::invalid(format!("{table:?} and its factors do not fit"))),
        }
        Ok(smallvec![output.into()])
    }
}
