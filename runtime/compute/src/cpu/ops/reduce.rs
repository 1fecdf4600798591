//! `Reduce*`: along some axes, in one pass over the input. Floats accumulate
//! in f64, integers in their own type with wrap-around.

use super::elementwise::cast_tensor;
use super::elementwise::number::Number;
use super::layout;
use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use mortise_types::{DType, Element, Error, NodeDef, Result, Shape, Tensor, bf16, f16};
use smallvec::{SmallVec, smallvec};

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "ReduceL1", since: 1, build },
    Entry { op: "ReduceL2", since: 1, build },
    Entry { op: "ReduceLogSum", since: 1, build },
    Entry { op: "ReduceLogSumExp", since: 1, build },
    Entry { op: "ReduceMax", since: 1, build },
    Entry { op: "ReduceMean", since: 1, build },
    Entry { op: "ReduceMin", since: 1, build },
    Entry { op: "ReduceProd", since: 1, build },
    Entry { op: "ReduceSum", since: 1, build },
    Entry { op: "ReduceSumSquare", since: 1, build },
];

/// The axes are an attribute in old opsets and an input in new ones; whichever
/// is there counts.
struct Reduce {
    function: Function,
    axes: Option<Vec<i64>>,
    keep_dims: bool,
    noop_without_axes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    L1,
    L2,
    LogSum,
    LogSumExp,
    Max,
    Mean,
    Min,
    Prod,
    Sum,
    SumSquare,
}

fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let attributes = Attributes(node);
    let function = match &*node.op {
        "ReduceL1" => Function::L1,
        "ReduceL2" => Function::L2,
        "ReduceLogSum" => Function::LogSum,
        "ReduceLogSumExp" => Function::LogSumExp,
        "ReduceMax" => Function::Max,
        "ReduceMean" => Function::Mean,
        "ReduceMin" => Function::Min,
        "ReduceProd" => Function::Prod,
        "ReduceSum" => Function::Sum,
        _ => Function::SumSquare,
    };
    Ok(Box::new(Reduce {
        function,
        axes: attributes.ints("axes")?.map(<[i64]>::to_vec),
        keep_dims: attributes.int_or("keepdims", 1)? != 0,
        noop_without_axes: attributes.int_or("noop_with_empty_axes", 0)? != 0,
    }))
}

impl Operator for Reduce {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let axes = match inputs.optional(1)? {
            Some(tensor) => layout::integers(tensor)?.to_vec(),
            None => self.axes.clone().unwrap_or_default(),
        };
        let input = inputs.tensor(0)?;
        // Over no axes nothing is summed, but squares and logarithms are taken.
        let plan = if axes.is_empty() && self.noop_without_axes {
            Walk::over(input.shape(), SmallVec::from_elem(false, input.rank()))
        } else {
            Walk::new(input.shape(), &axes)?
        };
        let output = self.by_dtype(ctx, input, &plan)?;
        let shape = plan.output_shape(input.shape(), self.keep_dims);
        Ok(smallvec![output.reshaped(&shape)?.into()])
    }
}

impl Reduce {
    fn by_dtype(&self, ctx: &OpContext<'_>, input: &Tensor, walk: &Walk) -> Result<Tensor> {
        let irrational =
            matches!(self.function, Function::L2 | Function::LogSum | Function::LogSumExp);
        match input.dtype() {
            DType::F32 => self.floats::<f32>(ctx, input, walk),
            DType::F64 => self.floats::<f64>(ctx, input, walk),
            DType::F16 => self.floats::<f16>(ctx, input, walk),
            DType::BF16 => self.floats::<bf16>(ctx, input, walk),
            dtype if dtype.is_int() && irrational => {
                let wide = cast_tensor(ctx, input, DType::F64)?;
                cast_tensor(ctx, &self.floats::<f64>(ctx, &wide, walk)?, dtype)
            }
            DType::I64 => self.integers::<i64>(ctx, input, walk, i64::MIN, i64::MAX),
            DType::I32 => self.integers::<i32>(ctx, input, walk, i32::MIN, i32::MAX),
            DType::I16 => self.integers::<i16>(ctx, input, walk, i16::MIN, i16::MAX),
            DType::I8 => self.integers::<i8>(ctx, input, walk, i8::MIN, i8::MAX),
            DType::U64 => self.integers::<u64>(ctx, input, walk, u64::MIN, u64::MAX),
            DType::U32 => self.integers::<u32>(ctx, input, walk, u32::MIN, u32::MAX),
            DType::U16 => self.integers::<u16>(ctx, input, walk, u16::MIN, u16::MAX),
            DType::U8 => self.integers::<u8>(ctx, input, walk, u8::MIN, u8::MAX),
            DType::Bool if matches!(self.function, Function::Max | Function::Min) => {
                let bytes = cast_tensor(ctx, input, DType::U8)?;
                let output = self.integers::<u8>(ctx, &bytes, walk, 0, 1)?;
                cast_tensor(ctx, &output, DType::Bool)
            }
            other => Err(Error::unsupported(format!("Reduce{:?} of {other}", self.function))),
        }
    }

    fn floats<T: Float>(&self, ctx: &OpContext<'_>, input: &Tensor, walk: &Walk) -> Result<Tensor> {
        let values = input.as_slice::<T>()?;
        let mut sums = ctx.allocate(DType::F64, &[walk.output_count])?;
        let sums = sums.as_mut_slice::<f64>()?;
        let count = walk.reduced_count as f64;
        match self.function {
            Function::Sum => walk.fold(values, sums, 0.0, |sum, x| sum + x.wide()),
            Function::LogSum => walk.fold(values, sums, 0.0, |sum, x| sum + x.wide()),
            Function::Mean => walk.fold(values, sums, 0.0, |sum, x| sum + x.wide()),
            Function::L1 => walk.fold(values, sums, 0.0, |sum, x| sum + x.wide().abs()),
            Function::L2 | Function::SumSquare => {
                walk.fold(values, sums, 0.0, |sum, x| sum + x.wide() * x.wide());
            }
            Function::Prod => walk.fold(values, sums, 1.0, |product, x| product * x.wide()),
            Function::Max => {
                walk.fold(values, sums, f64::NEG_INFINITY, |m, x| Number::max(m, x.wide()));
            }
            Function::Min => {
                walk.fold(values, sums, f64::INFINITY, |m, x| Number::min(m, x.wide()));
            }
            Function::LogSumExp => {
                let mut largest = ctx.allocate(DType::F64, &[walk.output_count])?;
                log_sum_exp(walk, values, sums, largest.as_mut_slice::<f64>()?);
            }
        }
        let mut output = ctx.allocate(T::DTYPE, &[walk.output_count])?;
        let target = output.as_mut_slice::<T>()?;
        let finish: fn(f64, f64) -> f64 = match self.function {
            Function::Mean => |sum, count| sum / count,
            Function::L2 => |sum, _| sum.sqrt(),
            Function::LogSum => |sum, _| sum.ln(),
            _ => |sum, _| sum,
        };
        target.iter_mut().zip(sums).for_each(|(out, sum)| *out = T::narrow(finish(*sum, count)));
        Ok(output)
    }

    fn integers<T: Number>(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        walk: &Walk,
        lowest: T,
        highest: T,
    ) -> Result<Tensor> {
        let values = input.as_slice::<T>()?;
        let mut output = ctx.allocate(T::DTYPE, &[walk.output_count])?;
        let out = output.as_mut_slice::<T>()?;
        match self.function {
            Function::Prod => walk.fold(values, out, T::from_f64(1.0), |p, x| p.mul(x)),
            Function::Max => walk.fold(values, out, lowest, |m, x| m.max(x)),
            Function::Min => walk.fold(values, out, highest, |m, x| m.min(x)),
            Function::L1 => walk.fold(values, out, T::zero(), |sum, x| sum.add(x.abs())),
            Function::SumSquare => {
                walk.fold(values, out, T::zero(), |sum, x| sum.add(x.mul(x)));
            }
            _ => walk.fold(values, out, T::zero(), |sum, x| sum.add(x)),
        }
        if self.function == Function::Mean {
            let count = T::from_f64(walk.reduced_count as f64);
            out.iter_mut().for_each(|sum| *sum = sum.div(count));
        }
        Ok(output)
    }
}

/// `m + ln Σ exp(x - m)` with `m` the largest element, so that nothing
/// overflows; where `m` is infinite the answer is `m`.
fn log_sum_exp<T: Float>(walk: &Walk, values: &[T], sums: &mut [f64], largest: &mut [f64]) {
    walk.fold(values, largest, f64::NEG_INFINITY, |m, x| Number::max(m, x.wide()));
    sums.fill(0.0);
    walk.for_each(|index, out, steps| {
        for (offset, x) in values[index].iter().enumerate() {
            let at = out + offset * steps;
            sums[at] += (x.wide() - largest[at]).exp();
        }
    });
    for (sum, largest) in sums.iter_mut().zip(largest) {
        *sum = if largest.is_finite() { *largest + sum.ln() } else { *largest };
    }
}

/// A float that sums in f64.
trait Float: Element {
    fn wide(self) -> f64;
    fn narrow(value: f64) -> Self;
}

macro_rules! floats {
    ($($ty:ty, $wide:expr, $narrow:expr;)*) => {$(
        impl Float for $ty {
            #[inline(always)]
            fn wide(self) -> f64 { ($wide)(self) }
            #[inline(always)]
            fn narrow(value: f64) -> Self { ($narrow)(value) }
        }
    )*};
}

floats! {
    f32, f64::from, |x| x as f32;
    f64, |x| x, |x| x;
    f16, f16::to_f64, f16::from_f64;
    bf16, bf16::to_f64, bf16::from_f64;
}

/// The input in memory order as runs, each of which goes to one output element
/// (its last dimension is reduced) or to as many as it has.
struct Walk {
    /// Dimensions outside the runs: size, and step in the output.
    outer: SmallVec<[(usize, usize); 4]>,
    run: usize,
    /// 0 where runs are reduced, else 1.
    run_step: usize,
    reduced: SmallVec<[bool; 6]>,
    output_count: usize,
    reduced_count: usize,
}

impl Walk {
    /// No axes means all of them.
    fn new(shape: &[usize], axes: &[i64]) -> Result<Self> {
        let mut reduced: SmallVec<[bool; 6]> = SmallVec::from_elem(axes.is_empty(), shape.len());
        for &axis in axes {
            reduced[layout::axis(axis, shape.len())?] = true;
        }
        Ok(Self::over(shape, reduced))
    }

    fn over(shape: &[usize], reduced: SmallVec<[bool; 6]>) -> Self {
        let steps = output_steps(shape, &reduced);
        let mut dims: SmallVec<[(usize, usize); 4]> = SmallVec::new();
        for (&size, &step) in shape.iter().zip(&steps).filter(|(size, _)| **size != 1) {
            match dims.last_mut() {
                Some((outer, outer_step)) if *outer_step == step * size => {
                    *outer *= size;
                    *outer_step = step;
                }
                _ => dims.push((size, step)),
            }
        }
        let (run, run_step) = dims.pop().unwrap_or((1, 0));
        let count = |kept: bool| {
            let sizes = shape.iter().zip(&reduced).filter(|(_, reduced)| **reduced != kept);
            sizes.map(|(size, _)| size).product()
        };
        let (output_count, reduced_count) = (count(true), count(false));
        Self { outer: dims, run, run_step, reduced, output_count, reduced_count }
    }

    fn output_shape(&self, shape: &[usize], keep_dims: bool) -> Shape {
        let sizes = shape.iter().zip(&self.reduced);
        sizes
            .filter_map(|(&size, &reduced)| match reduced {
                false => Some(size),
                true => keep_dims.then_some(1),
            })
            .collect()
    }

    /// `out[..] = f(f(initial, x0), x1)…` over the elements of each output.
    fn fold<T: Copy, A: Copy>(
        &self,
        values: &[T],
        out: &mut [A],
        initial: A,
        f: impl Fn(A, T) -> A,
    ) {
        out.fill(initial);
        self.for_each(|index, at, step| {
            let run = &values[index];
            if step == 0 {
                out[at] = run.iter().fold(out[at], |acc, x| f(acc, *x));
            } else {
                let out = &mut out[at..at + run.len()];
                out.iter_mut().zip(run).for_each(|(out, x)| *out = f(*out, *x));
            }
        });
    }

    /// Calls `visit` with each run's place in the input, the output it starts
    /// at, and its step there.
    fn for_each(&self, mut visit: impl FnMut(std::ops::Range<usize>, usize, usize)) {
        if self.run == 0 || self.outer.iter().any(|(size, _)| *size == 0) {
            return;
        }
        let mut index: SmallVec<[usize; 4]> = SmallVec::from_elem(0, self.outer.len());
        let (mut start, mut out) = (0, 0);
        loop {
            visit(start..start + self.run, out, self.run_step);
            start += self.run;
            let mut axis = self.outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                let (size, step) = self.outer[axis];
                index[axis] += 1;
                if index[axis] < size {
                    out += step;
                    break;
                }
                index[axis] = 0;
                out -= step * (size - 1);
            }
        }
    }
}

/// How far one step along each axis moves in the output; 0 along reduced ones.
fn output_steps(shape: &[usize], reduced: &[bool]) -> Shape {
    let mut steps = Shape::from_elem(0, shape.len());
    let mut step = 1;
    for axis in (0..shape.len()).rev().filter(|axis| !reduced[*axis]) {
        steps[axis] = step;
        step *= shape[axis];
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_axes_agrees_with_index_arithmetic() {
        let shape = [2, 3, 1, 4];
        let values: Vec<f64> = (0..24).map(|x| f64::from(x) * 0.5 - 3.0).collect();
        for mask in 1u32..16 {
            let axes: Vec<i64> = (0..4).filter(|axis| mask & (1 << axis) != 0).collect();
            let walk = Walk::new(&shape, &axes).unwrap();
            let mut got = vec![0.0; walk.output_count];
            walk.fold(&values, &mut got, 0.0, |sum, x| sum + x);
            let mut want = vec![0.0; walk.output_count];
            let steps = output_steps(&shape, &walk.reduced);
            for (flat, value) in values.iter().enumerate() {
                let (mut rest, mut at) = (flat, 0);
                for axis in (0..4).rev() {
                    at += rest % shape[axis] * steps[axis];
                    rest /= shape[axis];
                }
                want[at] += value;
            }
            assert_eq!(got, want, "axes {axes:?}");
        }
    }

    #[test]
    fn nothing_reduces_to_the_identity() {
        let walk = Walk::new(&[2, 0], &[1]).unwrap();
        let mut sums = vec![9.0; walk.output_count];
        walk.fold(&[] as &[f64], &mut sums, 0.0, |sum, x| sum + x);
        assert_eq!(sums, [0.0, 0.0]);
        assert_eq!(walk.output_shape(&[2, 0], true).as_slice(), &[2, 1]);
        assert!(Walk::new(&[2], &[1]).is_err());
    }
}
