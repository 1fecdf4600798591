//! Running sums and products.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::number::{Add, Arithmetic, Mul, Number, by_numeric};
use crate::cpu::ops::layout::{axis, element_count, one_integer};
use mortise_types::{NodeDef, Result};
use smallvec::smallvec;
use std::marker::PhantomData;

pub(super) fn build_sum(node: &NodeDef) -> Result<Box<dyn Operator>> {
    Cumulate::<Add>::build(node, 0.0)
}

pub(super) fn build_product(node: &NodeDef) -> Result<Box<dyn Operator>> {
    Cumulate::<Mul>::build(node, 1.0)
}

/// Along an axis, everything up to each element put together.
struct Cumulate<A> {
    /// What nothing comes to.
    neutral: f64,
    /// An element's own value does not count.
    exclusive: bool,
    reverse: bool,
    operation: PhantomData<fn() -> A>,
}

impl<A: Arithmetic> Cumulate<A> {
    fn build(node: &NodeDef, neutral: f64) -> Result<Box<dyn Operator>> {
        let flag = |name: &str| Ok(Attributes(node).int_or(name, 0)? != 0);
        let (exclusive, reverse) = (flag("exclusive")?, flag("reverse")?);
        Ok(Box::new(Self { neutral, exclusive, reverse, operation: PhantomData }))
    }

    /// One line of `size` elements that lie `step` apart from `start` on.
    fn line<T: Number>(&self, source: &[T], target: &mut [T], (start, size, step): Line) {
        let mut sum = T::from_f64(self.neutral);
        for item in 0..size {
            let item = if self.reverse { size - 1 - item } else { item };
            let at = start + item * step;
            let next = A::apply(sum, source[at]);
            target[at] = if self.exclusive { sum } else { next };
            sum = next;
        }
    }
}

type Line = (usize, usize, usize);

impl<A: Arithmetic> Operator for Cumulate<A> {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let along = axis(one_integer(inputs.tensor(1)?)?, input.rank())?;
        let size = input.shape()[along];
        let inner = element_count(&input.shape()[along + 1..])?;
        let mut output = ctx.allocate(input.dtype(), input.shape())?;
        let lines = input.len().checked_div(size).unwrap_or(0);
        by_numeric!(input.dtype(), "a running sum or product", T => {
            let (source, target) = (input.as_slice::<T>()?, output.as_mut_slice::<T>()?);
            for line in 0..lines {
                let start = line / inner * size * inner + line % inner;
                self.line(source, target, (start, size, inner));
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}
