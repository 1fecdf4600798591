//! Products of floats with weights of 8 bits: `MatMulInt8`. Each row of the
//! floats is quantised by its own range, so that its answer is the same
//! whatever rows are beside it.

use super::linear::{Span, float_values};
use super::product::{GEMM, gemm, is_exact, sums_of_columns};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::Activation;
use crate::cpu::ops::matmul::fused_activation;
use crate::cpu::wide::{Loop, widest};
use mortise_types::{DType, Error, NodeDef, Result, RunControl, Shape, Value};
use rayon::prelude::*;
use rten_gemm::{GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::NdTensorView;
use smallvec::smallvec;

/// `activation(A · (B · scales) + bias)` of the inputs A `[…, depth]` in f32,
/// B `[depth, columns]` in i8, scales `[columns]`, and bias `[columns]`, which
/// may be absent. With the attribute `range`, two floats, A is quantised by
/// that range instead of each row's own, and what lies outside is cut off.
///
/// A row that holds NaN or infinity gives NaN.
pub(super) struct MatMulInt8 {
    activation: Option<Activation>,
    range: Option<Steps>,
    weights: Option<Weights>,
}

/// B in the layout of the kernels.
struct Weights {
    packed: PackedBMatrix<i8>,
    /// Sum of each column: what one step of a row's zero point adds to it.
    sums: Vec<i32>,
}

/// Rows that are quantised, multiplied and scaled while they are in the cache.
const ROWS: usize = 128;

impl MatMulInt8 {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let range = match attributes.floats("range")? {
            None => None,
            Some(&[low, high]) => Some(Steps::of(low, high)),
            Some(_) => return Err(Error::invalid("range must be two floats")),
        };
        Ok(Box::new(Self { activation: fused_activation(&attributes)?, range, weights: None }))
    }
}

impl Operator for MatMulInt8 {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let a = inputs.tensor(0)?;
        let Some(weights) = &self.weights else {
            return Err(Error::unsupported("MatMulInt8 needs constant weights of INT8"));
        };
        let (depth, columns) = (weights.packed.rows(), weights.packed.cols());
        let scales = float_values(inputs.tensor(2)?)?;
        let bias = inputs.optional(3)?.map(float_values).transpose()?;
        let fits = |len: usize| len == columns;
        let Some((&last, outer)) = a.shape().split_last() else {
            return Err(Error::invalid("cannot multiply a scalar"));
        };
        if last != depth || !fits(scales.len()) || !bias.as_ref().is_none_or(|b| fits(b.len())) {
            return Err(Error::invalid(format!(
                "{a:?} does not fit weights of {depth} x {columns}"
            )));
        }
        let mut shape: Shape = outer.into();
        shape.push(columns);
        let mut output = ctx.allocate(DType::F32, &shape)?;
        let product = Product { op: self, weights, scales: &scales, bias: bias.as_deref() };
        product.run(ctx.control, a.as_slice()?, output.as_mut_slice()?)?;
        Ok(smallvec![output.into()])
    }

    fn prepare(&mut self, constants: &[Option<Value>]) -> Result<()> {
        let Some(Some(Value::Tensor(b))) = constants.get(1) else { return Ok(()) };
        let &[depth, columns] = b.shape() else { return Ok(()) };
        let values = b.as_slice::<i8>()?;
        if !b.is_empty() {
            let view = NdTensorView::from_data([depth, columns], values);
            let sums = sums_of_columns(values, &vec![0; columns]);
            let packed = GEMM.with(|gemm| gemm.prepack_b(view));
            self.weights = Some(Weights { packed, sums });
        }
        Ok(())
    }

    fn holds(&self, input: usize) -> bool {
        input == 1 && self.weights.is_some()
    }

    fn packed_bytes(&self) -> usize {
        let bytes = |weights: &Weights| {
            let (depth, columns) = (weights.packed.rows(), weights.packed.cols());
            (depth + size_of::<i32>()) * columns
        };
        self.weights.as_ref().map_or(0, bytes)
    }
}

/// One run, with everything that all rows share.
struct Product<'a> {
    op: &'a MatMulInt8,
    weights: &'a Weights,
    scales: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Product<'_> {
    fn run(&self, control: &RunControl, a: &[f32], output: &mut [f32]) -> Result<()> {
        let (depth, columns) = (self.weights.packed.rows(), self.weights.packed.cols());
        let block = |(a, output): (&[f32], &mut [f32])| {
            control.check()?;
            self.block(a, output)
        };
        if rayon::current_num_threads() > 1 && a.len() > ROWS * depth {
            let blocks = a.par_chunks(ROWS * depth);
            return blocks.zip(output.par_chunks_mut(ROWS * columns)).try_for_each(block);
        }
        a.chunks(ROWS * depth).zip(output.chunks_mut(ROWS * columns)).try_for_each(block)
    }

    fn block(&self, a: &[f32], output: &mut [f32]) -> Result<()> {
        let (depth, columns) = (self.weights.packed.rows(), self.weights.packed.cols());
        let rows = a.len() / depth;
        let mut bytes = vec![0u8; a.len()];
        let mut steps = Vec::with_capacity(rows);
        for (row, bytes) in a.chunks_exact(depth).zip(bytes.chunks_exact_mut(depth)) {
            steps.push(self.quantise(row, bytes));
        }
        let mut sums = vec![0i32; rows * columns];
        let left = GemmInputA::Unpacked(NdTensorView::from_data([rows, depth], &*bytes));
        let right = GemmInputB::Packed(&self.weights.packed);
        // Zero points are taken off below: the library (0.27) mixes up those of
        // rows that differ.
        gemm(&mut sums, left, right, GemmOptions::default())?;
        widest(Scale { product: self, sums: &sums, steps: &steps, floats: &mut *output });
        if let Some(activation) = self.op.activation {
            activation.map_f32(output);
        }
        Ok(())
    }

    fn quantise(&self, values: &[f32], bytes: &mut [u8]) -> Steps {
        let steps = self.op.range.unwrap_or_else(|| {
            let (low, high) = widest(Span(values));
            Steps::of(low, high)
        });
        match widest(ToBytes { values, steps, bytes }) {
            true => steps,
            false => Steps { scale: f32::NAN, ..steps },
        }
    }
}

/// What a byte stands for: `(byte - zero) · scale`.
#[derive(Clone, Copy)]
struct Steps {
    scale: f32,
    zero: f32,
    /// The largest byte.
    top: f32,
}

impl Steps {
    /// Steps whose range just holds both numbers and zero. One that is too
    /// narrow for normal floats is taken for zeros.
    fn of(low: f32, high: f32) -> Self {
        // Kernels that add pairs of products in 16 bits hold those of 7 bits.
        let top = if is_exact() { 255.0 } else { 127.0 };
        let (low, high) = (low.min(0.0), high.max(0.0));
        // Each divided, since their difference may overflow.
        let scale = high / top - low / top;
        if scale < f32::MIN_POSITIVE {
            return Self { scale: 0.0, zero: 0.0, top };
        }
        Self { scale, zero: (-low / scale).clamp(0.0, top).round_ties_even(), top }
    }
}

/// Numbers looked at together.
const LANES: usize = 64;

/// Numbers as bytes, rounded half to even. `false` when one is NaN or
/// infinite.
struct ToBytes<'a> {
    values: &'a [f32],
    steps: Steps,
    bytes: &'a mut [u8],
}

impl Loop for ToBytes<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Steps { scale, zero, top } = self.steps;
        let factor = if scale > 0.0 { scale.recip() } else { 0.0 };
        // Zero as long as all numbers are finite, NaN from then on.
        let mut spoilt = [0.0f32; LANES];
        for (bytes, values) in self.bytes.chunks_mut(LANES).zip(self.values.chunks(LANES)) {
            for ((byte, &value), spoilt) in bytes.iter_mut().zip(values).zip(&mut spoilt) {
                *spoilt += value * 0.0;
                let at = (value * factor).round_ties_even() + zero;
                // Comparisons with NaN fail: it becomes 0.
                let at = if at > 0.0 { at } else { 0.0 };
                let at = if at < top { at } else { top };
                *byte = at as i32 as u8;
            }
        }
        spoilt.iter().all(|lane| *lane == 0.0)
    }
}

/// `(sum - zero · sum of the column) · column's scale · row's scale + bias`.
struct Scale<'a> {
    product: &'a Product<'a>,
    sums: &'a [i32],
    steps: &'a [Steps],
    floats: &'a mut [f32],
}

impl Loop for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Product { weights, scales, bias, .. } = *self.product;
        let columns = scales.len();
        let rows = self.floats.chunks_exact_mut(columns).zip(self.sums.chunks_exact(columns));
        for ((floats, sums), steps) in rows.zip(self.steps) {
            let (zero, factor) = (steps.zero as i32, steps.scale);
            let cells = floats.iter_mut().zip(sums).zip(&weights.sums).zip(scales);
            let scaled = |sum: i32, column: i32, scale: f32| {
                sum.wrapping_sub(zero.wrapping_mul(column)) as f32 * scale * factor
            };
            match bias {
                Some(bias) => {
                    for ((((float, sum), column), scale), bias) in cells.zip(bias) {
                        *float = scaled(*sum, *column, *scale) + bias;
                    }
                }
                None => {
                    for (((float, sum), column), scale) in cells {
                        *float = scaled(*sum, *column, *scale);
                    }
                }
            }
        }
    }
}
