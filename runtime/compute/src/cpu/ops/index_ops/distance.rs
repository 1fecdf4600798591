//! `CDist`: distances between all rows of two matrices.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::by_dtype;
use mortise_types::{Error, NodeDef, Result};
use smallvec::smallvec;

pub(super) struct CDist {
    /// Euclidean, not its square.
    root: bool,
}

impl CDist {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        match Attributes(node).text("metric")?.unwrap_or("sqeuclidean") {
            "euclidean" => Ok(Box::new(Self { root: true })),
            "sqeuclidean" => Ok(Box::new(Self { root: false })),
            other => Err(Error::unsupported(format!("metric \"{other}\""))),
        }
    }
}

impl Operator for CDist {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let (&[rows, width], &[columns, other]) = (a.shape(), b.shape()) else {
            return Err(Error::invalid(format!("CDist takes two matrices, got {a:?} and {b:?}")));
        };
        if width != other {
            return Err(Error::invalid(format!("CDist rows have {width} and {other} elements")));
        }
        let mut output = ctx.allocate(a.dtype(), &[rows, columns])?;
        by_dtype!(a.dtype(), [F32: f32, F64: f64], T => {
            let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
            let cells = output.as_mut_slice::<T>()?;
            for (row, line) in cells.chunks_exact_mut(columns.max(1)).enumerate() {
                ctx.control.check()?;
                let left = &a[row * width..(row + 1) * width];
                for (column, cell) in line.iter_mut().enumerate() {
                    let right = &b[column * width..(column + 1) * width];
                    let square: T = left.iter().zip(right).map(|(x, y)| (x - y) * (x - y)).sum();
                    *cell = if self.root { square.sqrt() } else { square };
                }
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}
