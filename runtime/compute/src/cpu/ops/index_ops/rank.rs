//! Largest and smallest elements along an axis.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{axis, by_number, dim, element_count, one_integer};
use mortise_types::{DType, Element, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;
use std::cmp::Ordering;

/// One dimension of a tensor with what lies outside and inside of it.
#[derive(Clone, Copy)]
struct Lines {
    outer: usize,
    size: usize,
    inner: usize,
}

impl Lines {
    fn new(shape: &[usize], along: usize) -> Result<Self> {
        Ok(Self {
            outer: element_count(&shape[..along])?,
            size: shape[along],
            inner: element_count(&shape[along + 1..])?,
        })
    }

    fn count(&self) -> usize {
        self.outer * self.inner
    }

    /// Offset of the first element of line `line` in a tensor whose axis has
    /// `size` elements; the next is `inner` further.
    fn start(&self, line: usize, size: usize) -> usize {
        line / self.inner * size * self.inner + line % self.inner
    }
}

/// `ArgMax` and `ArgMin`.
pub(super) struct ArgExtreme {
    axis: i64,
    keep: bool,
    last: bool,
    /// What an element compared with the best so far must be to beat it.
    wanted: Ordering,
}

impl ArgExtreme {
    pub(super) fn build_max(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Self::build(node, Ordering::Greater)
    }

    pub(super) fn build_min(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Self::build(node, Ordering::Less)
    }

    fn build(node: &NodeDef, wanted: Ordering) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            axis: attributes.int_or("axis", 0)?,
            keep: attributes.int_or("keepdims", 1)? != 0,
            last: attributes.int_or("select_last_index", 0)? != 0,
            wanted,
        }))
    }

    fn fill<T: Element>(&self, values: &[T], lines: &Lines, cells: &mut [i64]) {
        match (self.wanted, self.last) {
            (Ordering::Less, false) => fill_best(values, lines, cells, |new, old| new < old),
            (Ordering::Less, true) => fill_best(values, lines, cells, |new, old| new <= old),
            (_, false) => fill_best(values, lines, cells, |new, old| new > old),
            (_, true) => fill_best(values, lines, cells, |new, old| new >= old),
        }
    }
}

impl Operator for ArgExtreme {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let along = axis(self.axis, input.rank())?;
        let lines = Lines::new(input.shape(), along)?;
        let mut shape: Shape = input.shape().into();
        if self.keep {
            shape[along] = 1;
        } else {
            shape.remove(along);
        }
        if lines.size == 0 && lines.count() > 0 {
            return Err(Error::invalid(format!("axis {along} of {:?} is empty", input.shape())));
        }
        let mut output = ctx.allocate(DType::I64, &shape)?;
        let cells = output.as_mut_slice::<i64>()?;
        by_number!(input.dtype(), T => {
            self.fill::<T>(input.as_slice()?, &lines, cells);
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

/// The position in each line of the first element that no later one `beats`.
fn fill_best<T: Element>(
    values: &[T],
    lines: &Lines,
    cells: &mut [i64],
    beats: impl Fn(&T, &T) -> bool,
) {
    for (line, cell) in cells.iter_mut().enumerate() {
        let start = lines.start(line, lines.size);
        *cell = if lines.inner == 1 {
            best_of(values[start..start + lines.size].iter(), &beats)
        } else {
            best_of(values[start..].iter().step_by(lines.inner).take(lines.size), &beats)
        };
    }
}

fn best_of<'a, T: Element>(
    values: impl Iterator<Item = &'a T>,
    beats: &impl Fn(&T, &T) -> bool,
) -> i64 {
    let mut values = values.zip(0i64..);
    let Some(first) = values.next() else { return 0 };
    let choose =
        |best: (&'a T, i64), new: (&'a T, i64)| if beats(new.0, best.0) { new } else { best };
    values.fold(first, choose).1
}

pub(super) struct TopK {
    axis: i64,
    largest: bool,
    /// An attribute before opset 10.
    count: Option<i64>,
}

impl TopK {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            axis: attributes.int_or("axis", -1)?,
            largest: attributes.int_or("largest", 1)? != 0,
            count: attributes.int("k")?,
        }))
    }

    /// The first `count` positions of a line in order; equal elements keep
    /// theirs, so the answer is always sorted.
    fn select<T: Element>(&self, line: &mut Vec<(T, usize)>, count: usize) {
        let order = |a: &(T, usize), b: &(T, usize)| {
            let by_value = if self.largest { total(&b.0, &a.0) } else { total(&a.0, &b.0) };
            by_value.then(a.1.cmp(&b.1))
        };
        if count < line.len() && count > 0 {
            line.select_nth_unstable_by(count - 1, order);
        }
        line.truncate(count);
        line.sort_unstable_by(order);
    }

    fn run_typed<T: Element>(
        &self,
        input: &Tensor,
        lines: Lines,
        values: &mut Tensor,
        indices: &mut Tensor,
    ) -> Result<()> {
        let count = indices.len() / lines.count().max(1);
        let source = input.as_slice::<T>()?;
        let (values, indices) = (values.as_mut_slice::<T>()?, indices.as_mut_slice::<i64>()?);
        let mut line: Vec<(T, usize)> = Vec::with_capacity(lines.size);
        for at in 0..lines.count() {
            let start = lines.start(at, lines.size);
            let items = source[start..].iter().step_by(lines.inner).take(lines.size);
            line.clear();
            line.extend(items.enumerate().map(|(index, &value)| (value, index)));
            self.select(&mut line, count);
            let target = lines.start(at, count);
            for (item, &(value, index)) in line.iter().enumerate() {
                values[target + item * lines.inner] = value;
                indices[target + item * lines.inner] = index as i64;
            }
        }
        Ok(())
    }
}

/// NaN counts as the largest.
fn total<T: Element>(a: &T, b: &T) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| {
        #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
        let (a_is_nan, b_is_nan) = (a != a, b != b);
        a_is_nan.cmp(&b_is_nan)
    })
}

impl Operator for TopK {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let count = match self.count {
            Some(count) => count,
            None => one_integer(inputs.tensor(1)?)?,
        };
        let along = axis(self.axis, input.rank())?;
        let mut shape: Shape = input.shape().into();
        let count = dim(count)?;
        if count > shape[along] {
            return Err(Error::invalid(format!("k = {count} is more than {shape:?} has")));
        }
        let lines = Lines::new(&shape, along)?;
        shape[along] = count;
        let mut values = ctx.allocate(input.dtype(), &shape)?;
        let mut indices = ctx.allocate(DType::I64, &shape)?;
        if count > 0 {
            by_number!(input.dtype(), T => {
                self.run_typed::<T>(input, lines, &mut values, &mut indices)
            })?;
        }
        Ok(smallvec![values.into(), indices.into()])
    }
}
