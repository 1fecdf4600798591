//! Products with weights in blocks of few bits: `MatMulNBits` of
//! `com.microsoft`.

use super::linear::float_values;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::dim;
use crate::cpu::ops::matmul::GEMM;
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use rten_gemm::{GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use smallvec::smallvec;

/// `A · Bᵀ + bias` of A `[…, K]` in f32, B `[N, blocks, bytes]` of 2, 4 or 8 bits,
/// scales `[N, blocks]`, zero points (packed like B, or floats, or absent for the
/// middle of the range) and bias `[N]`.
pub(super) struct MatMulNBits {
    depth: usize,
    columns: usize,
    bits: usize,
    block: usize,
}

/// Columns whose weights are floats at a time: they stay in the cache, and no
/// copy of all of them is ever made.
const ELEMENTS: usize = 64 << 10;

impl MatMulNBits {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let size = |name: &str| {
            let value = attributes
                .int(name)?
                .ok_or_else(|| Error::invalid(format!("{}: {name} is missing", node.describe())))?;
            dim(value).map(|size| size.max(1))
        };
        let bits = dim(attributes.int_or("bits", 4)?)?;
        let block = size("block_size")?;
        if !matches!(bits, 2 | 4 | 8) || !block.is_power_of_two() || block < 16 {
            return Err(Error::unsupported(format!(
                "{}: bits = {bits}, block_size = {block}",
                node.describe()
            )));
        }
        Ok(Box::new(Self { depth: size("K")?, columns: size("N")?, bits, block }))
    }

    fn blocks(&self) -> usize {
        self.depth.div_ceil(self.block)
    }

    /// The zero point of each block.
    fn zeros(&self, given: Option<&Tensor>) -> Result<Vec<f32>> {
        let (blocks, count) = (self.blocks(), self.columns * self.blocks());
        let middle = (1 << (self.bits - 1)) as f32;
        let Some(given) = given else { return Ok(vec![middle; count]) };
        if given.dtype() != DType::U8 {
            let values = float_values(given)?.into_owned();
            return check(values.len() == count, given).map(|()| values);
        }
        let bytes = given.as_slice::<u8>()?;
        let row = (blocks * self.bits).div_ceil(8);
        check(bytes.len() == self.columns * row, given)?;
        let lines = bytes.chunks_exact(row);
        Ok(lines.flat_map(|line| (0..blocks).map(|at| self.number(line, at) as f32)).collect())
    }

    /// The number at a place of packed ones, the low bits of a byte first.
    #[inline]
    fn number(&self, bytes: &[u8], at: usize) -> u8 {
        let bit = at * self.bits;
        bytes[bit / 8] >> (bit % 8) & (0xff >> (8 - self.bits))
    }
}

fn check(fits: bool, tensor: &Tensor) -> Result<()> {
    match fits {
        true => Ok(()),
        false => Err(Error::invalid(format!("MatMulNBits: {tensor:?} does not fit K and N"))),
    }
}

impl Operator for MatMulNBits {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b, scales) = (inputs.tensor(0)?, inputs.tensor(1)?, inputs.tensor(2)?);
        if inputs.optional_value(4).is_some() {
            return Err(Error::unsupported("MatMulNBits: g_idx"));
        }
        let (blocks, bytes) = (self.blocks(), self.block * self.bits / 8);
        check(b.dtype() == DType::U8 && b.len() == self.columns * blocks * bytes, b)?;
        check(scales.len() == self.columns * blocks, scales)?;
        let zeros = self.zeros(inputs.optional(3)?)?;
        let bias = inputs.optional(5)?.map(float_values).transpose()?;
        let Some((&last, outer)) = a.shape().split_last() else {
            return Err(Error::invalid("cannot multiply a scalar"));
        };
        check(last == self.depth, a)?;
        check(bias.as_ref().is_none_or(|bias| bias.len() == self.columns), a)?;
        let mut shape: Shape = outer.into();
        shape.push(self.columns);
        let mut output = ctx.allocate(DType::F32, &shape)?;
        let weights = Weights {
            op: self,
            bytes: b.as_slice()?,
            scales: &float_values(scales)?,
            zeros: &zeros,
        };
        let floats = output.as_mut_slice::<f32>()?;
        if !floats.is_empty() {
            weights.multiply(ctx, float_values(a)?.as_ref(), floats)?;
        }
        if let Some(bias) = bias {
            for line in floats.chunks_exact_mut(self.columns) {
                line.iter_mut().zip(&*bias).for_each(|(x, bias)| *x += bias);
            }
        }
        Ok(smallvec![output.into()])
    }
}

struct Weights<'a> {
    op: &'a MatMulNBits,
    bytes: &'a [u8],
    scales: &'a [f32],
    zeros: &'a [f32],
}

impl Weights<'_> {
    /// Some columns at a time, as floats.
    fn multiply(&self, ctx: &OpContext<'_>, a: &[f32], output: &mut [f32]) -> Result<()> {
        let MatMulNBits { depth, columns, .. } = *self.op;
        let rows = a.len() / depth;
        let step = (ELEMENTS / depth).clamp(1, columns);
        let mut wide = vec![0.0f32; step * depth];
        let mut sums = vec![0.0f32; rows * step];
        for first in (0..columns).step_by(step) {
            ctx.control.check()?;
            let count = step.min(columns - first);
            let (wide, sums) = (&mut wide[..count * depth], &mut sums[..rows * count]);
            for (offset, line) in wide.chunks_exact_mut(depth).enumerate() {
                self.column(first + offset, line);
            }
            let right = NdTensorView::from_data([count, depth], &*wide).transposed();
            let left = NdTensorView::from_data([rows, depth], a);
            let (left, right) = (GemmInputA::Unpacked(left), GemmInputB::Unpacked(right));
            GEMM.with(|gemm| gemm.gemm(sums, left, right, GemmOptions::default()))
                .map_err(|error| Error::internal(format!("the product failed: {error}")))?;
            for (line, sums) in output.chunks_exact_mut(columns).zip(sums.chunks_exact(count)) {
                line[first..first + count].copy_from_slice(sums);
            }
        }
        Ok(())
    }

    /// The weights of one column.
    fn column(&self, column: usize, line: &mut [f32]) {
        let MatMulNBits { bits, block, .. } = *self.op;
        let (blocks, bytes) = (self.op.blocks(), block * bits / 8);
        for (at, line) in line.chunks_mut(block).enumerate() {
            let at = column * blocks + at;
            let packed = &self.bytes[at * bytes..(at + 1) * bytes];
            let (scale, zero) = (self.scales[at], self.zeros[at]);
            match bits {
                4 => {
                    for (two, byte) in line.chunks_mut(2).zip(packed) {
                        let both = [byte & 15, byte >> 4];
                        for (x, q) in two.iter_mut().zip(both) {
                            *x = (f32::from(q) - zero) * scale;
                        }
                    }
                }
                _ => {
                    for (k, x) in line.iter_mut().enumerate() {
                        *x = (f32::from(self.op.number(packed, k)) - zero) * scale;
                    }
                }
            }
        }
    }
}
