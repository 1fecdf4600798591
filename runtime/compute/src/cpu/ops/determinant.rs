//! Determinants.

use crate::cpu::op::{Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use mortise_types::{DType, Error, Result};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] =
    &[Entry { op: "Det", since: 11, build: |_| Ok(Box::new(Det)) }];

/// Of each square matrix in the last two dimensions.
struct Det;

impl Operator for Det {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let [outer @ .., rows, columns] = input.shape() else {
            return Err(Error::invalid(format!("Det takes matrices, got {input:?}")));
        };
        if rows != columns {
            return Err(Error::invalid(format!("Det takes square matrices, got {input:?}")));
        }
        let wide = cast_tensor(ctx, input, DType::F64)?;
        let values = wide.as_slice::<f64>()?;
        let mut output = ctx.allocate(DType::F64, outer)?;
        for (at, out) in output.as_mut_slice::<f64>()?.iter_mut().enumerate() {
            let mut matrix = values[at * rows * rows..(at + 1) * rows * rows].to_vec();
            ctx.control.check()?;
            *out = determinant(&mut matrix, *rows);
        }
        Ok(smallvec![cast_tensor(ctx, &output, input.dtype())?.into()])
    }
}

/// By elimination with the largest pivot of each column; destroys the matrix.
fn determinant(matrix: &mut [f64], size: usize) -> f64 {
    let mut product = 1.0;
    for column in 0..size {
        let magnitude = |row: &usize| matrix[row * size + column].abs();
        let pivot = (column..size).max_by(|a, b| magnitude(a).total_cmp(&magnitude(b)));
        let pivot = pivot.unwrap_or(column);
        if pivot != column {
            (0..size).for_each(|at| matrix.swap(pivot * size + at, column * size + at));
            product = -product;
        }
        let head = matrix[column * size + column];
        product *= head;
        if head == 0.0 {
            return product;
        }
        for row in column + 1..size {
            let factor = matrix[row * size + column] / head;
            for at in column..size {
                matrix[row * size + at] -= factor * matrix[column * size + at];
            }
        }
    }
    product
}
