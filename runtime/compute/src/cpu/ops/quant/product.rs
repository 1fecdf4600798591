//! Integer matrix products and convolutions.

use super::linear::{float_values, quantized, whole};
#[cfg(target_arch = "x86_64")]
use super::pairs::Pairs;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{by_dtype, cells, dim, element_count};
use crate::cpu::ops::window::{Window, WindowAttributes};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix, QuantParams};
use rten_tensor::NdTensorView;
use smallvec::smallvec;
use std::borrow::Cow;

thread_local! {
    pub(super) static GEMM: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
}

/// A matrix of bytes and the value in it that means zero: one, or one per row
/// (left) or column (right).
pub(super) struct Side<'a, T: Clone> {
    pub(super) values: Cow<'a, [T]>,
    pub(super) zeros: Vec<T>,
}

/// Flips the top bit: the same number 128 further up, or down.
const FLIP: u8 = 0x80;

/// The left factor as `u8`.
fn left<'a>(values: &'a Tensor, zeros: Option<&Tensor>, rows: usize) -> Result<Side<'a, u8>> {
    let flip = flip_for(values, DType::U8)?;
    Ok(Side {
        values: flipped(cells::<u8>(values)?, flip),
        zeros: zero_bytes(zeros, rows)?.into_iter().map(|zero| zero ^ flip).collect(),
    })
}

/// The right factor as `i8`.
pub(super) fn right<'a>(
    values: &'a Tensor,
    zeros: Option<&Tensor>,
    columns: usize,
) -> Result<Side<'a, i8>> {
    let flip = flip_for(values, DType::I8)?;
    let values = match flipped(cells::<u8>(values)?, flip) {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytemuck::cast_slice(bytes)),
        Cow::Owned(bytes) => Cow::Owned(bytemuck::cast_vec(bytes)),
    };
    let zeros = zero_bytes(zeros, columns)?;
    Ok(Side { values, zeros: zeros.into_iter().map(|zero| (zero ^ flip) as i8).collect() })
}

fn flip_for(values: &Tensor, wanted: DType) -> Result<u8> {
    match values.dtype() {
        dtype if dtype == wanted => Ok(0),
        DType::U8 | DType::I8 => Ok(FLIP),
        other => Err(Error::invalid(format!("expected UINT8 or INT8, got {other}"))),
    }
}

fn flipped(bytes: &[u8], flip: u8) -> Cow<'_, [u8]> {
    match flip {
        0 => Cow::Borrowed(bytes),
        _ => bytes.iter().map(|byte| byte ^ flip).collect(),
    }
}

/// One zero point per row or column.
fn zero_bytes(zeros: Option<&Tensor>, count: usize) -> Result<Vec<u8>> {
    let Some(tensor) = zeros else {
        return Ok(vec![0; count]);
    };
    let bytes = cells::<u8>(tensor)?;
    match bytes {
        _ if tensor.dtype().bits() != 8 => {
            Err(Error::invalid(format!("zero points must be bytes, got {tensor:?}")))
        }
        [only] => Ok(vec![*only; count]),
        _ if bytes.len() == count => Ok(bytes.to_vec()),
        _ => Err(Error::invalid(format!("{tensor:?} zero points for {count} rows or columns"))),
    }
}

/// Whether the library's kernel for this machine never saturates.
pub(super) fn is_exact() -> bool {
    GEMM.with(|gemm| !gemm.may_saturate())
}

/// `[rows, depth] · [depth, columns]`, zero points subtracted.
fn multiply(
    a: (&[u8], &[u8]),
    b: (&[i8], &[i8]),
    [rows, depth, columns]: [usize; 3],
    output: &mut [i32],
) -> Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    if depth == 0 {
        output.fill(0);
        return Ok(());
    }
    if !is_exact() {
        Packed::new(b.0, [depth, columns]).multiply(a.0, output)?;
        take_off_rows(a.1, &sums_of_columns(b.0, &vec![0; columns]), output);
        take_off_zeros(a, b.1, depth, output);
        return Ok(());
    }
    // The library is right about zero points only while all rows share one, and
    // all columns (0.27 mixes them up from row 8 and column 32 on): others are
    // taken off afterwards.
    let (shared_rows, shared) = (is_uniform(a.1), is_uniform(b.1));
    let no_rows = vec![0u8; if shared_rows { 0 } else { rows }];
    let none = vec![0i8; if shared { 0 } else { columns }];
    let own_columns = if shared { b.1 } else { &none };
    let options = GemmOptions {
        a_quant: Some(QuantParams { zero_point: if shared_rows { a.1 } else { &no_rows } }),
        b_quant: Some(QuantParams { zero_point: own_columns }),
        ..GemmOptions::default()
    };
    gemm(
        output,
        GemmInputA::Unpacked(NdTensorView::from_data([rows, depth], a.0)),
        GemmInputB::Unpacked(NdTensorView::from_data([depth, columns], b.0)),
        options,
    )?;
    if !shared_rows {
        take_off_rows(a.1, &sums_of_columns(b.0, own_columns), output);
    }
    if !shared {
        take_off_zeros(a, b.1, depth, output);
    }
    Ok(())
}

/// The library's product.
pub(super) fn gemm(
    output: &mut [i32],
    a: GemmInputA<'_, u8>,
    b: GemmInputB<'_, i8>,
    options: GemmOptions<'_, u8, i8, i32>,
) -> Result<()> {
    GEMM.with(|gemm| gemm.gemm(output, a, b, options))
        .map_err(|error| Error::internal(format!("integer product failed: {error}")))
}

/// A right factor `[depth, columns]` in the layout of the kernel that is exact on
/// this machine: the library's (0.27) are all exact but the one for AVX2.
pub(super) enum Packed {
    Library(PackedBMatrix<i8>),
    #[cfg(target_arch = "x86_64")]
    Pairs(Pairs),
}

impl Packed {
    pub(super) fn new(values: &[i8], [depth, columns]: [usize; 2]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if !is_exact() && Pairs::are_possible() {
            return Self::Pairs(Pairs::pack(values, depth, columns));
        }
        let view = NdTensorView::from_data([depth, columns], values);
        Self::Library(GEMM.with(|gemm| gemm.prepack_b(view)))
    }

    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Library(matrix) => matrix.rows(),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(pairs) => pairs.depth(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Library(matrix) => matrix.rows() * matrix.cols(),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(pairs) => pairs.bytes(),
        }
    }

    /// `[rows, depth] · [depth, columns]` without zero points, exact on every
    /// machine.
    pub(super) fn multiply(&self, a: &[u8], output: &mut [i32]) -> Result<()> {
        match self {
            Self::Library(matrix) => {
                let shape = [a.len() / matrix.rows(), matrix.rows()];
                let a = GemmInputA::Unpacked(NdTensorView::from_data(shape, a));
                gemm(output, a, GemmInputB::Packed(matrix), GemmOptions::default())
            }
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(pairs) => {
                pairs.multiply(a, output);
                Ok(())
            }
        }
    }
}

fn is_uniform<T: PartialEq>(values: &[T]) -> bool {
    values.windows(2).all(|pair| pair[0] == pair[1])
}

/// The sum of each column, the column's zero point taken off each value.
pub(super) fn sums_of_columns(values: &[i8], zeros: &[i8]) -> Vec<i32> {
    let mut sums = vec![0i32; zeros.len()];
    for line in values.chunks_exact(zeros.len()) {
        for ((sum, value), zero) in sums.iter_mut().zip(line).zip(zeros) {
            *sum = sum.wrapping_add(i32::from(*value) - i32::from(*zero));
        }
    }
    sums
}

/// Takes the rows' zero points off products that were made without them, given
/// the sums of the right factor's columns.
pub(super) fn take_off_rows(zeros: &[u8], sums: &[i32], output: &mut [i32]) {
    let lines = output.chunks_exact_mut(sums.len()).zip(zeros);
    for (line, zero) in lines.filter(|(_, zero)| **zero != 0) {
        for (value, sum) in line.iter_mut().zip(sums) {
            *value = value.wrapping_sub(sum.wrapping_mul(i32::from(*zero)));
        }
    }
}

/// Takes the columns' zero points off sums that were made without them.
fn take_off_zeros(a: (&[u8], &[u8]), zeros: &[i8], depth: usize, output: &mut [i32]) {
    if zeros.iter().all(|zero| *zero == 0) {
        return;
    }
    let lines = output.chunks_exact_mut(zeros.len());
    for ((line, row), a_zero) in lines.zip(a.0.chunks_exact(depth)).zip(a.1) {
        let sum: i32 = row.iter().map(|value| i32::from(*value) - i32::from(*a_zero)).sum();
        for (value, zero) in line.iter_mut().zip(zeros) {
            *value = value.wrapping_sub(sum.wrapping_mul(i32::from(*zero)));
        }
    }
}

/// Most matrix products of one operator.
const MAX_PRODUCTS: usize = 1 << 22;

/// Stacks of matrices that broadcast against each other.
pub(super) struct Stack {
    pub(super) shape: Shape,
    /// Offsets of the matrices of each product, in matrices.
    pairs: Vec<(usize, usize)>,
    /// Rows, depth and columns of one product.
    pub(super) size: [usize; 3],
}

impl Stack {
    pub(super) fn new(a: &[usize], b: &[usize]) -> Result<Self> {
        let (&[ref outer_a @ .., rows, depth], &[ref outer_b @ .., other, columns]) = (a, b) else {
            return Err(Error::unsupported(format!("integer product of {a:?} and {b:?}")));
        };
        if depth != other {
            return Err(Error::invalid(format!("cannot multiply {a:?} and {b:?}")));
        }
        let rank = outer_a.len().max(outer_b.len());
        let size = |outer: &[usize], at: usize| {
            (at + outer.len()).checked_sub(rank).map_or(1, |at| outer[at])
        };
        let mut shape = Shape::new();
        let mut pairs = vec![(0, 0)];
        for at in 0..rank {
            let (x, y) = (size(outer_a, at), size(outer_b, at));
            if x != y && x != 1 && y != 1 {
                return Err(Error::invalid(format!("{a:?} and {b:?} do not broadcast")));
            }
            let both = if x == 1 { y } else { x };
            if pairs.len().saturating_mul(both) > MAX_PRODUCTS {
                return Err(Error::limit(format!(
                    "{a:?} and {b:?} are over {MAX_PRODUCTS} products"
                )));
            }
            shape.push(both);
            let step = |count: usize, index: usize| if count == 1 { 0 } else { index };
            pairs = pairs
                .iter()
                .flat_map(|&(p, q)| {
                    (0..both).map(move |i| (p * x + step(x, i), q * y + step(y, i)))
                })
                .collect();
        }
        shape.extend([rows, columns]);
        Ok(Self { shape, pairs, size: [rows, depth, columns] })
    }

    /// Zero points of the left factor for the rows of all products together.
    pub(super) fn left_zeros(&self, zeros: Option<&Tensor>, rows: usize) -> Result<Vec<u8>> {
        let each = zero_bytes(zeros, self.size[0])?;
        Ok(each.iter().copied().cycle().take(rows).collect())
    }

    /// The products as 32-bit sums.
    pub(super) fn run(
        &self,
        ctx: &OpContext<'_>,
        a: (&Tensor, Option<&Tensor>),
        b: (&Tensor, Option<&Tensor>),
    ) -> Result<Tensor> {
        let [rows, depth, columns] = self.size;
        let mut output = ctx.allocate(DType::I32, &self.shape)?;
        let a = left(a.0, a.1, rows)?;
        let b = right(b.0, b.1, columns)?;
        let blocks = output.as_mut_slice::<i32>()?.chunks_exact_mut((rows * columns).max(1));
        for (block, &(p, q)) in blocks.zip(&self.pairs) {
            ctx.control.check()?;
            let left = &a.values[p * rows * depth..(p + 1) * rows * depth];
            let right = &b.values[q * depth * columns..(q + 1) * depth * columns];
            multiply((left, &a.zeros), (right, &b.zeros), self.size, block)?;
        }
        Ok(output)
    }
}

pub(super) struct MatMulInteger;

impl Operator for MatMulInteger {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let stack = Stack::new(a.shape(), b.shape())?;
        let (a_zero, b_zero) = (inputs.optional(2)?, inputs.optional(3)?);
        Ok(smallvec![stack.run(ctx, (a, a_zero), (b, b_zero))?.into()])
    }
}

pub(super) struct QLinearMatMul;

impl Operator for QLinearMatMul {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(3)?);
        let stack = Stack::new(a.shape(), b.shape())?;
        let zeros = (inputs.tensor(2)?, inputs.tensor(5)?);
        let sums = stack.run(ctx, (a, Some(zeros.0)), (b, Some(zeros.1)))?;
        let [rows, _, columns] = stack.size;
        let scales = Scales::new(&inputs, [1, 4, 6])?;
        let output = requantized(ctx, &sums, inputs.tensor(7)?, |element| {
            scales.of(element / columns % rows, element % columns)
        })?;
        Ok(smallvec![output.into()])
    }
}

/// The factor from sums to the output's steps.
struct Scales {
    left: Vec<f32>,
    right: Vec<f32>,
    output: f32,
}

impl Scales {
    fn new(inputs: &Inputs<'_>, positions: [usize; 3]) -> Result<Self> {
        let read = |at: usize| Ok(float_values(inputs.tensor(positions[at])?)?.into_owned());
        match read(2)?.as_slice() {
            [output] => Ok(Self { left: read(0)?, right: read(1)?, output: *output }),
            _ => Err(Error::invalid("the output's scale must be one number")),
        }
    }

    fn of(&self, row: usize, column: usize) -> f32 {
        let pick = |list: &[f32], at: usize| match list {
            [only] => *only,
            list => list.get(at).copied().unwrap_or(f32::NAN),
        };
        pick(&self.left, row) * pick(&self.right, column) / self.output
    }
}

/// Sums as bytes of the output's scale and zero point.
fn requantized(
    ctx: &OpContext<'_>,
    sums: &Tensor,
    zero: &Tensor,
    factor: impl Fn(usize) -> f32,
) -> Result<Tensor> {
    let &[offset] = whole(zero)?.as_slice() else {
        return Err(Error::invalid("the output's zero point must be one number"));
    };
    let mut output = ctx.allocate(zero.dtype(), sums.shape())?;
    by_dtype!(zero.dtype(), [U8: u8, I8: i8], T => {
        let cells = output.as_mut_slice::<T>()?.iter_mut();
        for (element, (cell, &sum)) in cells.zip(sums.as_slice::<i32>()?).enumerate() {
            let value = quantized(sum as f32 * factor(element), offset);
            *cell = value.clamp(i32::from(T::MIN), i32::from(T::MAX)) as T;
        }
        Ok(())
    })?;
    Ok(output)
}

/// What the two integer convolutions share.
struct Convolution {
    window: WindowAttributes,
    groups: usize,
}

/// A convolution's operands; weights are `[outputs, inputs / groups, ...]`.
struct Operands<'a> {
    image: &'a Tensor,
    weights: &'a Tensor,
    image_zero: Option<&'a Tensor>,
    weight_zeros: Option<&'a Tensor>,
}

impl Convolution {
    fn of(node: &NodeDef) -> Result<Self> {
        let groups = dim(Attributes(node).int_or("group", 1)?)?.max(1);
        Ok(Self { window: WindowAttributes::parse(node)?, groups })
    }

    /// Sums `[batch, outputs, ...]`.
    fn run(&self, ctx: &OpContext<'_>, operands: &Operands<'_>) -> Result<Tensor> {
        let (image, weights) = (operands.image, operands.weights);
        let (&[batch, channels, ref space @ ..], &[outputs, inner, ref kernel @ ..]) =
            (image.shape(), weights.shape())
        else {
            return Err(Error::invalid(format!("cannot convolve {image:?} with {weights:?}")));
        };
        let fits = inner.checked_mul(self.groups) == Some(channels)
            && outputs.is_multiple_of(self.groups)
            && image.dtype().bits() == 8;
        if !fits {
            return Err(Error::invalid(format!(
                "{image:?} and {weights:?} do not fit {} groups",
                self.groups
            )));
        }
        let window = self.window.resolve(space, Some(kernel))?;
        let mut shape: Shape = smallvec![batch, outputs];
        shape.extend(window.output.iter().copied());
        let mut output = ctx.allocate(DType::I32, &shape)?;
        let positions = element_count(&window.output)?;
        let depth = inner * element_count(kernel)?;
        let rows = outputs / self.groups;
        let left = left(weights, operands.weight_zeros, outputs)?;
        let flip = flip_for(image, DType::I8)?;
        let zero = zero_bytes(operands.image_zero, 1)?[0];
        let zeros = vec![(zero ^ flip) as i8; positions];
        let mut columns = ctx.allocate(DType::I8, &[depth, positions])?;
        let columns = columns.as_mut_slice::<i8>()?;
        let plane = inner * element_count(space)?;
        let source = cells::<u8>(image)?;
        let blocks = output.as_mut_slice::<i32>()?.chunks_exact_mut((rows * positions).max(1));
        for (at, block) in blocks.enumerate() {
            ctx.control.check()?;
            let group = at % self.groups;
            unroll(&source[at * plane..(at + 1) * plane], &window, zero, flip, columns);
            let part = &left.values[group * rows * depth..(group + 1) * rows * depth];
            let part_zeros = &left.zeros[group * rows..(group + 1) * rows];
            multiply((part, part_zeros), (columns, &zeros), [rows, depth, positions], block)?;
        }
        Ok(output)
    }
}

/// A column per output position with what its window sees; `zero` in the
/// padding.
fn unroll(image: &[u8], window: &Window, zero: u8, flip: u8, columns: &mut [i8]) {
    let window = window.lifted(3);
    let size: usize = window.input.iter().product();
    let (kernel, output) = (&window.kernel, &window.output);
    let mut cells = columns.iter_mut();
    for channel in image.chunks_exact(size.max(1)) {
        for tap in 0..kernel.iter().product() {
            let taps =
                [tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1], tap % kernel[2]];
            for out in 0..output.iter().product() {
                let outs =
                    [out / (output[1] * output[2]), out / output[2] % output[1], out % output[2]];
                let from = (0..3).try_fold(0, |offset, axis| {
                    let at = window.source(axis, outs[axis], taps[axis])?;
                    Some(offset * window.input[axis] + at)
                });
                let byte = from.map_or(zero, |at| channel[at]);
                if let Some(cell) = cells.next() {
                    *cell = (byte ^ flip) as i8;
                }
            }
        }
    }
}

pub(super) struct ConvInteger(Convolution);

impl ConvInteger {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Convolution::of(node)?)))
    }
}

impl Operator for ConvInteger {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let operands = Operands {
            image: inputs.tensor(0)?,
            weights: inputs.tensor(1)?,
            image_zero: inputs.optional(2)?,
            weight_zeros: inputs.optional(3)?,
        };
        Ok(smallvec![self.0.run(ctx, &operands)?.into()])
    }
}

pub(super) struct QLinearConv(Convolution);

impl QLinearConv {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Convolution::of(node)?)))
    }
}

impl Operator for QLinearConv {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let operands = Operands {
            image: inputs.tensor(0)?,
            weights: inputs.tensor(3)?,
            image_zero: Some(inputs.tensor(2)?),
            weight_zeros: Some(inputs.tensor(5)?),
        };
        let mut sums = self.0.run(ctx, &operands)?;
        let positions = element_count(&sums.shape()[2..])?.max(1);
        let outputs = sums.shape()[1].max(1);
        if let Some(bias) = inputs.optional(8)? {
            let bias = bias.as_slice::<i32>()?;
            if bias.len() != outputs {
                return Err(Error::invalid(format!("{} biases for {outputs} outputs", bias.len())));
            }
            for (at, line) in sums.as_mut_slice::<i32>()?.chunks_exact_mut(positions).enumerate() {
                line.iter_mut().for_each(|cell| *cell = cell.wrapping_add(bias[at % outputs]));
            }
        }
        let scales = Scales::new(&inputs, [4, 1, 6])?;
        let output = requantized(ctx, &sums, inputs.tensor(7)?, |element| {
            scales.of(element / positions % outputs, 0)
        })?;
        Ok(smallvec![output.into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One term after the other.
    fn multiply_plainly(
        a: (&[u8], &[u8]),
        b: (&[i8], &[i8]),
        [depth, columns]: [usize; 2],
        output: &mut [i32],
    ) {
        for (row, line) in output.chunks_exact_mut(columns).enumerate() {
            line.fill(0);
            for k in 0..depth {
                let factor = i32::from(a.0[row * depth + k]) - i32::from(a.1[row]);
                let values = &b.0[k * columns..(k + 1) * columns];
                for ((cell, &value), &zero) in line.iter_mut().zip(values).zip(b.1) {
                    *cell = cell.wrapping_add(factor * (i32::from(value) - i32::from(zero)));
                }
            }
        }
    }

    /// Sizes beyond one block of the library, and zero points that differ.
    #[test]
    fn zero_points_of_rows_and_columns_are_taken_off() {
        let mut state = 11u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for [rows, depth, columns] in [[1, 1, 1], [7, 3, 33], [33, 129, 70], [17, 40, 9]] {
            let a: Vec<u8> = (0..rows * depth).map(|_| byte()).collect();
            let b: Vec<i8> = (0..depth * columns).map(|_| byte() as i8).collect();
            let a_zeros: Vec<u8> = (0..rows).map(|_| byte()).collect();
            let b_zeros: Vec<i8> = (0..columns).map(|_| byte() as i8).collect();
            for a_zeros in [a_zeros, vec![3; rows]] {
                for b_zeros in [b_zeros.clone(), vec![-5; columns]] {
                    let mut got = vec![0; rows * columns];
                    let size = [rows, depth, columns];
                    multiply((&a, &a_zeros), (&b, &b_zeros), size, &mut got).unwrap();
                    let mut want = vec![0; rows * columns];
                    let size = [depth, columns];
                    multiply_plainly((&a, &a_zeros), (&b, &b_zeros), size, &mut want);
                    assert_eq!(got, want, "{rows} {depth} {columns}");
                    Packed::new(&b, [depth, columns]).multiply(&a, &mut got).unwrap();
                    take_off_rows(&a_zeros, &sums_of_columns(&b, &vec![0; columns]), &mut got);
                    take_off_zeros((&a, &a_zeros), &b_zeros, depth, &mut got);
                    assert_eq!(got, want, "packed: {rows} {depth} {columns}");
                }
            }
        }
    }
}
