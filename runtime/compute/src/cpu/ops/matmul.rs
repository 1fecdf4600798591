//! Matrix products: `MatMul`, `Gemm` and their fused forms. f32 runs on
//! rten-gemm, with constant right-hand sides packed at compile time, and on a
//! kernel of our own where those are small; halves go through f32; f64 and
//! integers use plain loops.

mod einsum;
mod small;

use super::broadcast::{Broadcast, broadcast_shape, zip_into};
use super::elementwise::{Activation, activate, cast_tensor};
use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use mortise_types::{DType, Error, NodeDef, Result, RunControl, Shape, Tensor, Value};
use number::{Number, by_numeric};
use rayon::prelude::*;
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::{Matrix, NdTensorView};
use small::SmallRight;
use smallvec::smallvec;

use super::elementwise::number;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "MatMul", since: 1, build: MatMul::build },
    Entry { op: "Gemm", since: 1, build: Gemm::build },
    Entry { op: "Einsum", since: 12, build: einsum::build },
];

pub(crate) const MS_ENTRIES: &[Entry] = &[
    Entry { op: "FusedMatMul", since: 1, build: MatMul::build_fused },
    Entry { op: "FusedGemm", since: 1, build: Gemm::build },
];

/// Operators that only the planner's fusions produce.
pub(crate) const FUSED_ENTRIES: &[Entry] =
    &[Entry { op: "MatMulBias", since: 1, build: MatMul::build_fused }];

thread_local! {
    /// The executor is not `Send`, and making one is a box and a few flags.
    pub(crate) static GEMM: GemmExecutor = GemmExecutor::new();
}

/// Multiply-adds between two looks at the clock: some ten milliseconds.
const CHECK_EVERY: usize = 1 << 30;

/// Multiply-adds below which threads cost more than they bring.
const PARALLEL_WORTH: usize = 1 << 20;

/// `activation(alpha · A' · B' + bias)`, with leading dimensions broadcast.
struct MatMul {
    alpha: f32,
    transpose_a: bool,
    transpose_b: bool,
    activation: Option<Activation>,
    right: Option<Right>,
}

impl MatMul {
    fn build(_node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self {
            alpha: 1.0,
            transpose_a: false,
            transpose_b: false,
            activation: None,
            right: None,
        }))
    }

    fn build_fused(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        for name in ["transBatchA", "transBatchB"] {
            if attributes.int_or(name, 0)? != 0 {
                return Err(Error::unsupported(format!("{}: {name} = 1", node.describe())));
            }
        }
        Ok(Box::new(Self {
            alpha: attributes.float_or("alpha", 1.0)?,
            transpose_a: attributes.int_or("transA", 0)? != 0,
            transpose_b: attributes.int_or("transB", 0)? != 0,
            activation: fused_activation(&attributes)?,
            right: None,
        }))
    }
}

/// The activation that a fused node applies to its result.
pub(crate) fn fused_activation(attributes: &Attributes<'_>) -> Result<Option<Activation>> {
    let Some(name) = attributes.text("activation")?.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let alpha = attributes.float("activation_alpha")?;
    let beta = attributes.float("activation_beta")?;
    Ok(Some(match (name, alpha) {
        ("LeakyRelu", Some(alpha)) => Activation::LeakyRelu { alpha },
        ("HardSigmoid", Some(alpha)) => {
            Activation::HardSigmoid { alpha, beta: beta.unwrap_or(0.5) }
        }
        (name, _) => Activation::parse(name, attributes)?,
    }))
}

impl Operator for MatMul {
    fn prepare(&mut self, constants: &[Option<Value>]) -> Result<()> {
        self.right = pack(constants, self.transpose_b);
        Ok(())
    }

    fn packed_bytes(&self) -> usize {
        self.right.as_ref().map_or(0, Right::bytes)
    }

    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let bias = inputs.optional(2)?;
        let shape = ProductShape::new(a, b, (self.transpose_a, self.transpose_b))?;
        let mut output = match a.dtype() {
            DType::F32 => self.single(ctx, &shape, (a, b), bias)?,
            DType::F16 | DType::BF16 => {
                let wide = |tensor: &Tensor| cast_tensor(ctx, tensor, DType::F32);
                let bias = bias.map(wide).transpose()?;
                let output = self.single(ctx, &shape, (&wide(a)?, &wide(b)?), bias.as_ref())?;
                cast_tensor(ctx, &output, a.dtype())?
            }
            _ if bias.is_some() || self.alpha != 1.0 => {
                return Err(Error::unsupported(format!("a fused product of {}", a.dtype())));
            }
            dtype => by_numeric!(dtype, "MatMul", T => plain::<T>(ctx, &shape, a, b))?,
        };
        if let Some(activation) = self.activation {
            activate(activation, &mut output)?;
        }
        Ok(smallvec![output.into()])
    }
}

impl MatMul {
    fn single(
        &self,
        ctx: &OpContext<'_>,
        shape: &ProductShape,
        (a, b): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut output = ctx.allocate(DType::F32, &shape.output)?;
        let product = Product {
            control: ctx.control,
            rows: shape.rows,
            depth: shape.depth,
            columns: shape.columns,
            transpose: (self.transpose_a, self.transpose_b),
            alpha: self.alpha,
            bias: bias.map(|bias| bias.as_slice::<f32>()).transpose()?,
            right: self.right.as_ref(),
        };
        let (a, b) = (a.as_slice::<f32>()?, b.as_slice::<f32>()?);
        product.batched(shape, a, b, output.as_mut_slice::<f32>()?)?;
        Ok(output)
    }
}

/// `a · b + bias` with a row for a bias, as `MatMul` and `Add` would give it.
///
/// # Errors
/// When the shapes do not fit or the dtype is not f32.
pub(crate) fn affine(
    ctx: &OpContext<'_>,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let plain = MatMul {
        alpha: 1.0,
        transpose_a: false,
        transpose_b: false,
        activation: None,
        right: None,
    };
    plain.single(ctx, &ProductShape::new(a, b, (false, false))?, (a, b), bias)
}

/// Sizes of a product under NumPy's rules for `matmul`.
struct ProductShape {
    /// Leading dimensions of each side and of the result.
    batch: [Shape; 3],
    rows: usize,
    depth: usize,
    columns: usize,
    output: Shape,
}

impl ProductShape {
    fn new(a: &Tensor, b: &Tensor, transpose: (bool, bool)) -> Result<Self> {
        let mismatch = || {
            let (a, b) = (a.shape(), b.shape());
            Error::invalid(format!("matrices of shapes {a:?} and {b:?} cannot be multiplied"))
        };
        if a.dtype() != b.dtype() {
            let (a, b) = (a.dtype(), b.dtype());
            return Err(Error::invalid(format!("operands are {a} and {b}; cast one of them")));
        }
        let (batch_a, rows, depth) = split(a.shape(), transpose.0, true).ok_or_else(mismatch)?;
        let (batch_b, other, columns) =
            split(b.shape(), transpose.1, false).ok_or_else(mismatch)?;
        if depth != other {
            return Err(mismatch());
        }
        let batch = broadcast_shape(&[batch_a, batch_b]).map_err(|_| mismatch())?;
        let mut output = batch.clone();
        output.extend((a.rank() > 1).then_some(rows));
        output.extend((b.rank() > 1).then_some(columns));
        let mut shape =
            Self { batch: [batch_a.into(), batch_b.into(), batch], rows, depth, columns, output };
        if b.rank() <= 2 && !transpose.0 {
            shape.fold_batch_into_rows(a.len());
        }
        Ok(shape)
    }

    /// One right-hand side for all of the batch makes one tall product.
    fn fold_batch_into_rows(&mut self, elements: usize) {
        if let Some(rows) = elements.checked_div(self.depth) {
            self.rows = rows;
            self.batch = Default::default();
        }
    }
}

/// Leading dimensions and the two sizes of the matrices, transposed if asked.
/// A vector is a row on the left and a column on the right.
fn split(shape: &[usize], transpose: bool, left: bool) -> Option<(&[usize], usize, usize)> {
    match shape {
        [] => None,
        [size] if left => Some((&[], 1, *size)),
        [size] => Some((&[], *size, 1)),
        [batch @ .., rows, columns] if transpose => Some((batch, *columns, *rows)),
        [batch @ .., rows, columns] => Some((batch, *rows, *columns)),
    }
}

/// One f32 product, and how its operands lie in memory.
struct Product<'a> {
    control: &'a RunControl,
    rows: usize,
    depth: usize,
    columns: usize,
    transpose: (bool, bool),
    alpha: f32,
    bias: Option<&'a [f32]>,
    right: Option<&'a Right>,
}

impl Product<'_> {
    fn batched(&self, shape: &ProductShape, a: &[f32], b: &[f32], out: &mut [f32]) -> Result<()> {
        let [batch_a, batch_b, batch] = &shape.batch;
        if batch.is_empty() {
            return self.one(a, b, out, 0.0);
        }
        let (size_a, size_b) = (self.rows * self.depth, self.depth * self.columns);
        let size = self.rows * self.columns;
        if size == 0 || out.is_empty() {
            return Ok(());
        }
        let offsets = batch_offsets(batch, [batch_a, batch_b]);
        let each = |(out, [at_a, at_b]): (&mut [f32], [usize; 2])| {
            let a = &a[at_a * size_a..][..size_a];
            let b = &b[at_b * size_b..][..size_b];
            self.one(a, b, out, 0.0)
        };
        let parallel =
            rayon::current_num_threads() > 1 && offsets.len() * size * self.depth > PARALLEL_WORTH;
        if parallel {
            out.par_chunks_mut(size).zip(offsets).try_for_each(each)
        } else {
            out.chunks_mut(size).zip(offsets).try_for_each(each)
        }
    }

    /// `out = alpha · a · b + beta · out + bias`, a block of rows at a time.
    fn one(&self, a: &[f32], b: &[f32], out: &mut [f32], beta: f32) -> Result<()> {
        let row_cost = self.depth.saturating_mul(self.columns).max(1);
        let block = (CHECK_EVERY / row_cost).max(64);
        if self.transpose.0 || self.rows <= block || self.depth == 0 {
            return self.block(self.rows, a, b, out, beta);
        }
        let blocks = a.chunks(block * self.depth).zip(out.chunks_mut(block * self.columns));
        for (a, out) in blocks {
            self.control.check()?;
            self.block(a.len() / self.depth, a, b, out, beta)?;
        }
        Ok(())
    }

    fn block(&self, rows: usize, a: &[f32], b: &[f32], out: &mut [f32], beta: f32) -> Result<()> {
        if let Some(small) = self.small(rows, beta) {
            self.with_small(small, rows, a, out);
            return Ok(());
        }
        let a = matrix(a, (rows, self.depth), self.transpose.0);
        // One row reads all of the weights once: packed ones gain nothing.
        let b = match self.right {
            Some(Right::Packed(packed)) if rows > 1 => GemmInputB::Packed(packed),
            _ => GemmInputB::Unpacked(matrix(b, (self.depth, self.columns), self.transpose.1)),
        };
        let bias = self.bias.map(BiasVector::Row);
        let options = GemmOptions { alpha: self.alpha, beta, bias, ..GemmOptions::default() };
        GEMM.with(|gemm| gemm.gemm(out, GemmInputA::Unpacked(a), b, options))
            .map_err(|error| Error::invalid(format!("the product failed: {error}")))
    }

    /// The right side, if it is small and the rest is as its kernel does it.
    fn small(&self, rows: usize, beta: f32) -> Option<&SmallRight> {
        let Some(Right::Small(small)) = self.right else { return None };
        let is_plain = self.alpha == 1.0 && beta == 0.0 && !self.transpose.0;
        let fits = self.bias.is_none_or(|bias| bias.len() == self.columns);
        (is_plain && fits && rows > 1).then_some(small)
    }

    fn with_small(&self, small: &SmallRight, rows: usize, a: &[f32], out: &mut [f32]) {
        let threads = rayon::current_num_threads();
        let cost = rows.saturating_mul(self.depth).saturating_mul(self.columns);
        if threads == 1 || cost < PARALLEL_WORTH {
            return small.multiply(a, self.bias, out);
        }
        let part = rows.div_ceil(threads).next_multiple_of(small::ROWS);
        let parts = a.par_chunks(part * self.depth).zip(out.par_chunks_mut(part * self.columns));
        parts.for_each(|(a, out)| small.multiply(a, self.bias, out));
    }
}

/// A view of `size` elements; stored with the sizes swapped if `transposed`.
fn matrix(data: &[f32], size: (usize, usize), transposed: bool) -> Matrix<'_, f32> {
    if transposed {
        NdTensorView::from_data([size.1, size.0], data).transposed()
    } else {
        NdTensorView::from_data([size.0, size.1], data)
    }
}

/// For each matrix of the result, which matrix of each side it comes from.
fn batch_offsets(batch: &[usize], sides: [&[usize]; 2]) -> Vec<[usize; 2]> {
    let walk = Broadcast::new(batch, sides);
    let mut offsets = Vec::with_capacity(batch.iter().product());
    walk.for_each_run(|[a, b]| {
        let [step_a, step_b] = walk.steps;
        offsets.extend((0..walk.run).map(|i| [a + i * step_a, b + i * step_b]));
    });
    offsets
}

/// A constant right side in the layout of the kernels.
enum Right {
    Small(SmallRight),
    Packed(PackedBMatrix<f32>),
}

impl Right {
    fn bytes(&self) -> usize {
        match self {
            Self::Small(small) => small.bytes(),
            Self::Packed(packed) => packed.rows() * packed.cols() * size_of::<f32>(),
        }
    }
}

fn pack(constants: &[Option<Value>], transposed: bool) -> Option<Right> {
    let Some(Some(Value::Tensor(b))) = constants.get(1) else { return None };
    let &[rows, columns] = b.shape() else { return None };
    let data = b.as_slice::<f32>().ok().filter(|data| !data.is_empty())?;
    let size = if transposed { (columns, rows) } else { (rows, columns) };
    let at = |row: usize, column: usize| match transposed {
        true => data[column * columns + row],
        false => data[row * columns + column],
    };
    if let Some(small) = SmallRight::new(size, at) {
        return Some(Right::Small(small));
    }
    let packed = GEMM.with(|gemm| gemm.prepack_b(matrix(data, size, transposed)));
    Some(Right::Packed(packed))
}

/// Row times column, for element types that have no fast kernel.
fn plain<T: Number>(
    ctx: &OpContext<'_>,
    shape: &ProductShape,
    a: &Tensor,
    b: &Tensor,
) -> Result<Tensor> {
    let mut output = ctx.allocate(T::DTYPE, &shape.output)?;
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let out = output.as_mut_slice::<T>()?;
    out.fill(T::zero());
    let [batch_a, batch_b, batch] = &shape.batch;
    let size = shape.rows * shape.columns;
    if size == 0 || shape.depth == 0 {
        return Ok(output);
    }
    let offsets = batch_offsets(batch, [batch_a, batch_b]);
    for (out, [at_a, at_b]) in out.chunks_mut(size).zip(offsets) {
        let a = &a[at_a * shape.rows * shape.depth..];
        let b = &b[at_b * shape.depth * shape.columns..];
        for (out, a) in out.chunks_mut(shape.columns).zip(a.chunks(shape.depth)) {
            ctx.control.check()?;
            for (a, b) in a.iter().zip(b.chunks(shape.columns)) {
                out.iter_mut().zip(b).for_each(|(out, b)| *out = out.add(a.mul(*b)));
            }
        }
    }
    Ok(output)
}

/// `alpha · A' · B' + beta · C` of matrices, `C` broadcast.
struct Gemm {
    alpha: f32,
    beta: f32,
    transpose_a: bool,
    transpose_b: bool,
    activation: Option<Activation>,
    right: Option<Right>,
}

impl Gemm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            alpha: attributes.float_or("alpha", 1.0)?,
            beta: attributes.float_or("beta", 1.0)?,
            transpose_a: attributes.int_or("transA", 0)? != 0,
            transpose_b: attributes.int_or("transB", 0)? != 0,
            activation: fused_activation(&attributes)?,
            right: None,
        }))
    }

    fn single(
        &self,
        ctx: &OpContext<'_>,
        shape: &ProductShape,
        (a, b): (&Tensor, &Tensor),
        c: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut output = ctx.allocate(DType::F32, &[shape.rows, shape.columns])?;
        let out = output.as_mut_slice::<f32>()?;
        let c = c.filter(|_| self.beta != 0.0);
        let row = c.filter(|c| self.beta == 1.0 && is_row(c.shape(), shape.columns));
        let bias = row.map(|c| c.as_slice::<f32>()).transpose()?;
        let beta = match c {
            Some(c) if bias.is_none() => {
                let scale = self.beta;
                fill(out, &[shape.rows, shape.columns], c, |c: f32| scale * c)?;
                1.0
            }
            _ => 0.0,
        };
        let product = Product {
            control: ctx.control,
            rows: shape.rows,
            depth: shape.depth,
            columns: shape.columns,
            transpose: (self.transpose_a, self.transpose_b),
            alpha: self.alpha,
            bias,
            right: self.right.as_ref(),
        };
        product.one(a.as_slice::<f32>()?, b.as_slice::<f32>()?, out, beta)?;
        Ok(output)
    }

    /// In f64, which also holds the integers that this operator is used with.
    fn wide(&self, ctx: &OpContext<'_>, inputs: &Inputs<'_>) -> Result<Tensor> {
        let wide = |tensor: &Tensor| cast_tensor(ctx, tensor, DType::F64);
        let (a, b) = (wide(inputs.tensor(0)?)?, wide(inputs.tensor(1)?)?);
        let a = if self.transpose_a { transposed(ctx, &a)? } else { a };
        let b = if self.transpose_b { transposed(ctx, &b)? } else { b };
        let shape = ProductShape::new(&a, &b, (false, false))?;
        let mut output = plain::<f64>(ctx, &shape, &a, &b)?;
        let alpha = f64::from(self.alpha);
        output.as_mut_slice::<f64>()?.iter_mut().for_each(|value| *value *= alpha);
        if let Some(c) = inputs.optional(2)? {
            let size = [shape.rows, shape.columns];
            let mut scaled = ctx.allocate(DType::F64, &size)?;
            let beta = f64::from(self.beta);
            fill(scaled.as_mut_slice::<f64>()?, &size, &wide(c)?, |c: f64| beta * c)?;
            let (out, scaled) = (output.as_mut_slice::<f64>()?, scaled.as_slice::<f64>()?);
            out.iter_mut().zip(scaled).for_each(|(out, c)| *out += c);
        }
        Ok(output)
    }
}

impl Operator for Gemm {
    fn prepare(&mut self, constants: &[Option<Value>]) -> Result<()> {
        self.right = pack(constants, self.transpose_b);
        Ok(())
    }

    fn packed_bytes(&self) -> usize {
        self.right.as_ref().map_or(0, Right::bytes)
    }

    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        if a.rank() != 2 || b.rank() != 2 {
            let (a, b) = (a.shape(), b.shape());
            return Err(Error::invalid(format!("Gemm takes matrices, got {a:?} and {b:?}")));
        }
        let mut output = if a.dtype() == DType::F32 {
            let transpose = (self.transpose_a, self.transpose_b);
            let shape = ProductShape::new(a, b, transpose)?;
            self.single(ctx, &shape, (a, b), inputs.optional(2)?)?
        } else {
            cast_tensor(ctx, &self.wide(ctx, &inputs)?, a.dtype())?
        };
        if let Some(activation) = self.activation {
            activate(activation, &mut output)?;
        }
        Ok(smallvec![output.into()])
    }
}

fn is_row(shape: &[usize], columns: usize) -> bool {
    match shape {
        [size] | [1, size] => *size == columns,
        _ => false,
    }
}

/// Broadcasts `map(c)` over `out`.
fn fill<T: Number>(out: &mut [T], shape: &[usize], c: &Tensor, map: impl Fn(T) -> T) -> Result<()> {
    let fits = broadcast_shape(&[c.shape(), shape]).is_ok_and(|joint| joint.as_slice() == shape);
    if !fits {
        let c = c.shape();
        return Err(Error::invalid(format!("C of shape {c:?} does not broadcast to {shape:?}")));
    }
    zip_into((c.shape(), &[], shape), (c.as_slice::<T>()?, &[()]), out, |c, ()| map(c));
    Ok(())
}

fn transposed(ctx: &OpContext<'_>, tensor: &Tensor) -> Result<Tensor> {
    let &[rows, columns] = tensor.shape() else {
        return Err(Error::invalid("only matrices are transposed here"));
    };
    let mut output = ctx.allocate(DType::F64, &[columns, rows])?;
    let data = tensor.as_slice::<f64>()?;
    for (index, out) in output.as_mut_slice::<f64>()?.iter_mut().enumerate() {
        *out = data[(index % rows) * columns + index / rows];
    }
    Ok(output)
}
