//! `Softmax`, `LogSoftmax` and `Hardmax` along one axis, or, before opset 13,
//! along all axes from one on.

use super::elementwise::{cast_tensor, writable};
use super::layout;
use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::parallel::part_len;
use crate::cpu::wide::{Loop, widest};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use rayon::prelude::*;
use rten_simd::{SimdOp, SimdUnaryOp};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "Softmax", since: 1, build: build_flattened },
    Entry { op: "Softmax", since: 13, build },
    Entry { op: "LogSoftmax", since: 1, build: build_flattened },
    Entry { op: "LogSoftmax", since: 13, build },
    Entry { op: "Hardmax", since: 1, build: build_flattened },
    Entry { op: "Hardmax", since: 13, build },
];

struct Softmax {
    function: Function,
    axis: i64,
    /// Before opset 13: all axes from `axis` on are one.
    flatten: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Function {
    Softmax,
    LogSoftmax,
    Hardmax,
}

fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
    make(node, -1, false)
}

fn build_flattened(node: &NodeDef) -> Result<Box<dyn Operator>> {
    make(node, 1, true)
}

fn make(node: &NodeDef, default_axis: i64, flatten: bool) -> Result<Box<dyn Operator>> {
    let function = match &*node.op {
        "Softmax" => Function::Softmax,
        "LogSoftmax" => Function::LogSoftmax,
        _ => Function::Hardmax,
    };
    let axis = Attributes(node).int_or("axis", default_axis)?;
    Ok(Box::new(Softmax { function, axis, flatten }))
}

impl Operator for Softmax {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.take(0)?;
        let dtype = input.dtype();
        if !dtype.is_float() {
            return Err(Error::unsupported(format!("softmax of {dtype}")));
        }
        if dtype == DType::F64 {
            let mut output = writable(ctx, input)?;
            self.apply_f64(&mut output)?;
            return Ok(smallvec![output.into()]);
        }
        let single =
            if dtype == DType::F32 { input } else { cast_tensor(ctx, &input, DType::F32)? };
        let mut output = writable(ctx, single)?;
        self.apply_f32(&mut output)?;
        Ok(smallvec![cast_tensor(ctx, &output, dtype)?.into()])
    }
}

impl Softmax {
    /// Length of the normalised axis, and the step between its elements.
    fn size_and_step(&self, shape: &[usize]) -> Result<(usize, usize)> {
        if shape.is_empty() {
            return Ok((1, 1));
        }
        // The axis may stand behind the last one where all of the rest is one.
        if self.flatten && self.axis == shape.len() as i64 {
            return Ok((1, 1));
        }
        let axis = layout::axis(self.axis, shape.len())?;
        if self.flatten {
            return Ok((shape[axis..].iter().product(), 1));
        }
        Ok((shape[axis], shape[axis + 1..].iter().product()))
    }

    fn apply_f32(&self, tensor: &mut Tensor) -> Result<()> {
        let (size, step) = self.size_and_step(tensor.shape())?;
        let values = tensor.as_mut_slice::<f32>()?;
        if size == 0 || step == 0 {
            return Ok(());
        }
        if step == 1 && self.function == Function::Softmax {
            softmax_rows(values, size);
            return Ok(());
        }
        if step == 1 {
            values.chunks_mut(size).for_each(|row| self.function.row_f32(row));
            return Ok(());
        }
        let mut row = vec![0.0; size];
        lanes(values, size, step, &mut row, |row| self.function.row_f32(row));
        Ok(())
    }

    fn apply_f64(&self, tensor: &mut Tensor) -> Result<()> {
        let (size, step) = self.size_and_step(tensor.shape())?;
        let values = tensor.as_mut_slice::<f64>()?;
        if size == 0 || step == 0 {
            return Ok(());
        }
        let mut row = vec![0.0; size];
        lanes(values, size, step, &mut row, |row| self.function.row_f64(row));
        Ok(())
    }
}

/// Softmax of each row of `size` elements, which must not be 0. Rows are taken
/// together, so that short ones fill the vectors, too.
pub(crate) fn softmax_rows(values: &mut [f32], size: usize) {
    match part_len(values.len(), size) {
        Some(len) => values.par_chunks_mut(len).for_each(|part| softmax_part(part, size)),
        None => softmax_part(values, size),
    }
}

fn softmax_part(values: &mut [f32], size: usize) {
    /// Elements that stay in the nearest cache between the passes.
    const BLOCK: usize = 4096;
    for block in values.chunks_mut((BLOCK / size).max(1) * size) {
        widest(TakeMaximum(block, size));
        rten_vecmath::Exp {}.map_mut(block);
        widest(DivideBySum(block, size));
    }
}

/// Takes the largest element of each row off all of the row.
struct TakeMaximum<'a>(&'a mut [f32], usize);

impl Loop for TakeMaximum<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for row in self.0.chunks_exact_mut(self.1) {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            for chunk in row.chunks(LANES) {
                for (lane, &x) in lanes.iter_mut().zip(chunk) {
                    *lane = if x > *lane { x } else { *lane };
                }
            }
            let most = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x -= most);
        }
    }
}

/// Divides each row by the sum of its elements.
struct DivideBySum<'a>(&'a mut [f32], usize);

impl Loop for DivideBySum<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for row in self.0.chunks_exact_mut(self.1) {
            let mut lanes = [0.0f32; LANES];
            for chunk in row.chunks(LANES) {
                lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
            }
            let factor = 1.0 / lanes.into_iter().sum::<f32>();
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// Partial results of a reduction, for the compiler to keep in vectors.
const LANES: usize = 16;

/// Gathers each lane into `row`, applies `f`, and puts it back.
fn lanes<T: Copy>(values: &mut [T], size: usize, step: usize, row: &mut [T], f: impl Fn(&mut [T])) {
    for block in values.chunks_mut(size * step) {
        for start in 0..step {
            let lane = block[start..].iter().step_by(step);
            row.iter_mut().zip(lane).for_each(|(row, value)| *row = *value);
            f(row);
            let lane = block[start..].iter_mut().step_by(step);
            row.iter().zip(lane).for_each(|(row, value)| *value = *row);
        }
    }
}

impl Function {
    fn row_f32(self, row: &mut [f32]) {
        match self {
            Self::Softmax => {
                rten_vecmath::Softmax::new_mut(row).dispatch();
            }
            Self::LogSoftmax => {
                rten_vecmath::LogSoftmax::new_mut(row).dispatch();
            }
            Self::Hardmax => hardmax(row, 0.0, 1.0),
        }
    }

    fn row_f64(self, row: &mut [f64]) {
        if self == Self::Hardmax {
            return hardmax(row, 0.0, 1.0);
        }
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        if self == Self::Softmax {
            row.iter_mut().for_each(|x| *x = (*x - max).exp() / sum);
        } else {
            row.iter_mut().for_each(|x| *x = *x - max - sum.ln());
        }
    }
}

/// One at the first of the largest elements, zero elsewhere.
fn hardmax<T: PartialOrd + Copy>(row: &mut [T], zero: T, one: T) {
    let mut best = 0;
    for index in 1..row.len() {
        if row[index] > row[best] {
            best = index;
        }
    }
    row.fill(zero);
    row[best] = one;
}
