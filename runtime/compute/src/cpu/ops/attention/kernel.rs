//! `softmax(scale · Q · Kᵀ + mask) · V`, one product a batch and head, on
//! views of the tensors as they lie.

use crate::cpu::op::OpContext;
use crate::cpu::ops::broadcast::{broadcast_shape, zip_into};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::matmul::GEMM;
use mortise_types::{DType, Error, Result, Tensor};
use rten_gemm::{GemmInputA, GemmInputB, GemmOptions};
use rten_simd::SimdOp;
use rten_tensor::{Matrix, NdTensorView};

/// Queries, keys or values: `[batch, heads, length, size]` in any order, with
/// the last dimension contiguous.
pub(crate) struct Heads<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) start: usize,
    /// Of batch, head and position.
    pub(crate) strides: [usize; 3],
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) length: usize,
    pub(crate) size: usize,
}

impl<'a> Heads<'a> {
    /// `[batch, length, heads · size]`
    pub(crate) fn of_rows(tensor: &'a Tensor, heads: usize) -> Result<Self> {
        match *tensor.shape() {
            [batch, length, width] if heads > 0 && width % heads == 0 => {
                let size = width / heads;
                let strides = [length * width, size, width];
                let data = tensor.as_slice::<f32>()?;
                Ok(Self { data, start: 0, strides, batch, heads, length, size })
            }
            _ => {
                let shape = tensor.shape();
                Err(Error::invalid(format!("{shape:?} is not [batch, length, {heads} · size]")))
            }
        }
    }

    /// `[batch, heads, length, size]`, or rows when `heads` is given.
    pub(crate) fn of(tensor: &'a Tensor, heads: Option<usize>) -> Result<Self> {
        match (tensor.shape(), heads) {
            ([_, _, _], Some(heads)) => Self::of_rows(tensor, heads),
            (&[batch, heads, length, size], _) => {
                let strides = [heads * length * size, length * size, size];
                let data = tensor.as_slice::<f32>()?;
                Ok(Self { data, start: 0, strides, batch, heads, length, size })
            }
            _ => Err(Error::invalid("attention takes rank 4, or rank 3 and numbers of heads")),
        }
    }

    /// `[batch, length, heads, size]`
    pub(crate) fn of_positions(tensor: &'a Tensor) -> Result<Self> {
        let &[batch, length, heads, size] = tensor.shape() else {
            return Err(Error::invalid(format!("{tensor:?} is not [batch, length, heads, size]")));
        };
        let strides = [length * heads * size, size, heads * size];
        let data = tensor.as_slice::<f32>()?;
        Ok(Self { data, start: 0, strides, batch, heads, length, size })
    }

    /// The matrix of a head where a batch or a head alone stands for all.
    pub(crate) fn broadcast_matrix(&self, batch: usize, head: usize) -> Result<Matrix<'a, f32>> {
        let at = |size: usize, index: usize| if size == 1 { 0 } else { index };
        self.matrix(at(self.batch, batch), at(self.heads, head))
    }

    fn matrix(&self, batch: usize, head: usize) -> Result<Matrix<'a, f32>> {
        let [by_batch, by_head, by_row] = self.strides;
        let start = self.start + batch * by_batch + head * by_head;
        let shape = [self.length, self.size];
        let data = self.data.get(start..).unwrap_or_default();
        NdTensorView::from_slice_with_strides(shape, data, [by_row, 1])
            .map_err(|_| Error::internal("a head lies outside of its tensor"))
    }
}

/// What is added to the scores.
pub(crate) enum Mask {
    None,
    /// Broadcast to `[batch, heads, queries, keys]`.
    Added(Tensor),
    /// By batch: how many keys count; `filter` is added to the others. Then a
    /// bias, if there is one.
    Keys {
        lengths: Vec<usize>,
        filter: f32,
        bias: Option<Tensor>,
    },
    /// `[batch, keys]` or `[batch, queries, keys]` of 0 and 1.
    Flags {
        flags: Tensor,
        filter: f32,
        bias: Option<Tensor>,
    },
}

/// Whether a key is hidden: `(batch, query, key)`.
type Masked<'a> = Box<dyn Fn(usize, usize, usize) -> bool + 'a>;

impl Mask {
    /// The masks of `com.microsoft`: lengths, or flags of keys.
    pub(crate) fn of_keys(
        mask: Option<&Tensor>,
        bias: Option<&Tensor>,
        filter: f32,
    ) -> Result<Self> {
        let bias = bias.cloned();
        let Some(mask) = mask else {
            return Ok(bias.map_or(Self::None, Self::Added));
        };
        let values = mask.as_slice::<i32>()?;
        match mask.rank() {
            1 => {
                let lengths = values.iter().map(|&length| usize::try_from(length).unwrap_or(0));
                Ok(Self::Keys { lengths: lengths.collect(), filter, bias })
            }
            2 | 3 => Ok(Self::Flags { flags: mask.clone(), filter, bias }),
            rank => Err(Error::unsupported(format!("an attention mask of rank {rank}"))),
        }
    }

    /// ONNX's mask: booleans that allow, or floats that are added.
    pub(crate) fn of_scores(ctx: &OpContext<'_>, mask: Option<&Tensor>) -> Result<Self> {
        let Some(mask) = mask else { return Ok(Self::None) };
        if mask.dtype() != DType::Bool {
            return Ok(Self::Added(cast_tensor(ctx, mask, DType::F32)?));
        }
        let allow = |flag: &u8| if *flag == 0 { f32::NEG_INFINITY } else { 0.0 };
        let values = mask.bool_bytes()?.iter().map(allow).collect();
        Ok(Self::Added(Tensor::from_vec(mask.shape(), values)?))
    }

    /// The mask as one tensor of floats for scores of shape `shape`.
    fn added(&self, ctx: &OpContext<'_>, shape: [usize; 4]) -> Result<Option<Tensor>> {
        let (bias, filter) = match self {
            Self::None => return Ok(None),
            Self::Added(tensor) => return spread(ctx, tensor, &shape).map(Some),
            Self::Keys { filter, bias, .. } | Self::Flags { filter, bias, .. } => (bias, *filter),
        };
        let mut sum = match bias {
            Some(bias) => spread(ctx, bias, &shape)?,
            None => {
                let mut zeros = ctx.allocate(DType::F32, &shape)?;
                zeros.as_mut_slice::<f32>()?.fill(0.0);
                zeros
            }
        };
        let [batch, heads, queries, keys] = shape;
        let masked = self.masked(batch, queries, keys)?;
        if keys > 0 {
            for (row, scores) in sum.as_mut_slice::<f32>()?.chunks_mut(keys).enumerate() {
                let (query, batch) = (row % queries, row / queries / heads);
                for (key, score) in scores.iter_mut().enumerate() {
                    *score += if masked(batch, query, key) { filter } else { 0.0 };
                }
            }
        }
        Ok(Some(sum))
    }

    /// Whether a key is masked for a query.
    fn masked(&self, batch: usize, queries: usize, keys: usize) -> Result<Masked<'_>> {
        let wrong = || Error::invalid("the attention mask does not fit the scores");
        match self {
            Self::Keys { lengths, .. } if lengths.len() == batch => {
                Ok(Box::new(move |batch, _, key| key >= lengths[batch]))
            }
            Self::Flags { flags, .. } => {
                let values = flags.as_slice::<i32>()?;
                match *flags.shape() {
                    [b, k] if b == batch && k == keys => {
                        Ok(Box::new(move |batch, _, key| values[batch * keys + key] == 0))
                    }
                    [b, q, k] if b == batch && q == queries && k == keys => {
                        Ok(Box::new(move |batch, query, key| {
                            values[(batch * queries + query) * keys + key] == 0
                        }))
                    }
                    _ => Err(wrong()),
                }
            }
            _ => Err(wrong()),
        }
    }
}

fn spread(ctx: &OpContext<'_>, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let fits =
        broadcast_shape(&[tensor.shape(), shape]).is_ok_and(|joint| joint.as_slice() == shape);
    if !fits {
        let mask = tensor.shape();
        return Err(Error::invalid(format!("a mask of {mask:?} does not fit scores of {shape:?}")));
    }
    let mut output = ctx.allocate(DType::F32, shape)?;
    let target = output.as_mut_slice::<f32>()?;
    zip_into((tensor.shape(), &[], shape), (tensor.as_slice::<f32>()?, &[()]), target, |x, ()| x);
    Ok(output)
}

/// How scores are made and weighed.
pub(crate) struct Scaled {
    pub(crate) scale: f32,
    /// Query `i` sees keys up to `i` plus this.
    pub(crate) causal: Option<usize>,
    /// Scores are bent to stay under this; 0 for no bending.
    pub(crate) softcap: f32,
    pub(crate) mask: Mask,
}

impl Scaled {
    /// `[batch, queries, heads, value size]`
    pub(crate) fn run(
        &self,
        ctx: &OpContext<'_>,
        query: &Heads<'_>,
        key: &Heads<'_>,
        value: &Heads<'_>,
    ) -> Result<Tensor> {
        let fits = query.batch == key.batch
            && key.batch == value.batch
            && query.size == key.size
            && key.length == value.length
            && key.heads == value.heads
            && key.heads > 0
            && query.heads.is_multiple_of(key.heads);
        if !fits {
            return Err(Error::invalid("queries, keys and values do not fit each other"));
        }
        let (batch, heads, length) = (query.batch, query.heads, query.length);
        let mut output = ctx.allocate(DType::F32, &[batch, length, heads, value.size])?;
        let mask = self.mask.added(ctx, [batch, heads, length, key.length])?;
        let mask = mask.as_ref().map(|mask| mask.as_slice::<f32>()).transpose()?;
        let mut scores = ctx.allocate(DType::F32, &[length, key.length])?;
        let scores = scores.as_mut_slice::<f32>()?;
        let mut weighed = ctx.allocate(DType::F32, &[length, value.size])?;
        let weighed = weighed.as_mut_slice::<f32>()?;
        let target = output.as_mut_slice::<f32>()?;
        let group = heads / key.heads;
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            ctx.control.check()?;
            let keys = key.matrix(b, h / group)?;
            product(scores, query.matrix(b, h)?, keys.transposed(), self.scale)?;
            let at = (b * heads + h) * scores.len();
            let mask = mask.and_then(|mask| mask.get(at..at + scores.len()));
            self.weigh(scores, key.length, mask);
            let rows = NdTensorView::from_data([length, key.length], &*scores);
            product(weighed, rows, value.matrix(b, h / group)?, 1.0)?;
            scatter(target, weighed, (b * length * heads + h) * value.size, value.size, heads);
        }
        Ok(output)
    }

    /// Scores to weights, row by row.
    fn weigh(&self, scores: &mut [f32], keys: usize, mask: Option<&[f32]>) {
        if keys == 0 {
            return;
        }
        if self.softcap > 0.0 {
            scores.iter_mut().for_each(|x| *x = self.softcap * (*x / self.softcap).tanh());
        }
        if let Some(mask) = mask {
            scores.iter_mut().zip(mask).for_each(|(score, mask)| *score += mask);
        }
        for (query, row) in scores.chunks_mut(keys).enumerate() {
            if let Some(offset) = self.causal {
                let seen = (query + offset + 1).min(keys);
                row[seen..].fill(f32::NEG_INFINITY);
            }
            rten_vecmath::Softmax::new_mut(row).dispatch();
        }
    }
}

/// Puts the rows of one head where they belong among the others.
fn scatter(target: &mut [f32], rows: &[f32], start: usize, size: usize, heads: usize) {
    if size == 0 {
        return;
    }
    for (row, values) in rows.chunks(size).enumerate() {
        let at = start + row * heads * size;
        target[at..at + size].copy_from_slice(values);
    }
}

/// `out = alpha · a · b`
pub(crate) fn product(
    out: &mut [f32],
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    alpha: f32,
) -> Result<()> {
    let options = GemmOptions { alpha, ..GemmOptions::default() };
    let (a, b) = (GemmInputA::Unpacked(a), GemmInputB::Unpacked(b));
    GEMM.with(|gemm| gemm.gemm(out, a, b, options))
        .map_err(|error| Error::invalid(format!("the product failed: {error}")))
}

/// `[batch, length, heads, size]` to `[batch, heads, length, size]`.
pub(crate) fn heads_first(
    ctx: &OpContext<'_>,
    tensor: &Tensor,
    [batch, length, heads, size]: [usize; 4],
) -> Result<Tensor> {
    let mut output = ctx.allocate(DType::F32, &[batch, heads, length, size])?;
    let source = tensor.as_slice::<f32>()?;
    let target = output.as_mut_slice::<f32>()?;
    if size == 0 {
        return Ok(output);
    }
    for (row, values) in target.chunks_mut(size).enumerate() {
        let (position, head, batch) = (row % length, row / length % heads, row / length / heads);
        let at = ((batch * length + position) * heads + head) * size;
        values.copy_from_slice(&source[at..at + size]);
    }
    Ok(output)
}
