//! Attention: scores, softmax and weighted values as one kernel.

use super::{float, input, int, only_output};
use crate::lower::{Builder, MAX_GROUPS};
use crate::operand::{Operand, Place};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use mortise_types::{DType, NodeDef, Result, Shape, ValueId};

/// Values of one head that the kernel takes at most.
const MAX_SIZE: usize = 128;

/// Queries that one workgroup answers.
const QUERIES: usize = 16;

/// Bytes of workgroup memory that the kernel takes.
const SHARED_BYTES: usize = (QUERIES + 8 + 8) * MAX_SIZE * 4 + QUERIES * 8 * 4;

/// Queries, keys or values as `[batch, heads, length, size]`.
#[derive(Clone)]
struct Heads {
    place: Place,
    batch: usize,
    heads: usize,
    length: usize,
    size: usize,
    /// Of batch, head and position, in elements.
    strides: [usize; 3],
}

/// Sizes of [`Heads`] before there is memory behind them.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    length: usize,
    size: usize,
}

impl Sizes {
    /// Rank 3 is `[batch, length, heads · size]`.
    fn of(shape: &[usize], heads: Option<usize>) -> Option<Self> {
        match (shape, heads) {
            (&[batch, length, width], Some(heads)) if heads > 0 && width % heads == 0 => {
                Some(Self { batch, heads, length, size: width / heads })
            }
            (&[batch, heads, length, size], _) => Some(Self { batch, heads, length, size }),
            _ => None,
        }
    }
}

/// One call, whatever the operator.
struct Call {
    values: [ValueId; 3],
    sizes: [Sizes; 3],
    mask: Option<(ValueId, [usize; 4])>,
    output: ValueId,
    shape: Shape,
    scale: f32,
    /// Keys in front of the first query that it may see.
    causal: Option<usize>,
}

/// `MultiHeadAttention` of `com.microsoft` and `Attention` of ONNX.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn attention(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let call = match (&*node.domain, &*node.op) {
        ("com.microsoft", "MultiHeadAttention") => multi_head(builder, node),
        ("" | "ai.onnx", "Attention") => onnx(builder, node),
        _ => None,
    };
    let shared = builder.context.limits.max_compute_workgroup_storage_size as usize;
    let Some(call) = call.filter(|_| shared >= SHARED_BYTES) else { return Ok(false) };
    let [q, k, v] = call.heads(builder)?;
    let mask = call.mask.map(|(mask, _)| builder.dense(mask)).transpose()?;
    let target = builder.allocate(DType::F32, &call.shape);
    let out = Heads::new(&target, call.sizes[0]);
    let constants =
        [("HAS_MASK", u32::from(mask.is_some())), ("CAUSAL", u32::from(call.causal.is_some()))];
    let mask_strides = call.mask.map_or([0; 4], |(_, strides)| strides);
    let params = Params::new()
        .sizes(&[q.length, k.length, q.size, q.heads, q.heads / k.heads])
        .float(call.scale)
        .size(call.causal.unwrap_or(0))
        .sizes(&q.strides)
        .sizes(&k.strides)
        .sizes(&v.strides)
        .sizes(&mask_strides)
        .sizes(&out.strides);
    let unused = q.place.clone();
    let mask = mask.map_or(unused.clone(), |mask| mask.place);
    let groups = [q.length.div_ceil(QUERIES), 1, q.batch * q.heads];
    let bindings = vec![q.place, k.place, v.place, mask, out.place, unused];
    builder.launch(Kernel::new(File::Attention, 6, &constants), bindings, params, groups);
    builder.define(call.output, target);
    Ok(true)
}

impl Call {
    fn heads(&self, builder: &mut Builder<'_>) -> Result<[Heads; 3]> {
        let mut heads = |at: usize| {
            let operand = builder.operand(self.values[at])?;
            // Any strides do, as long as the values of a head lie side by side.
            let operand = match operand.strides.last() {
                Some(1) => operand,
                _ => builder.dense(self.values[at])?,
            };
            Ok(Heads::new(&operand, self.sizes[at]))
        };
        Ok([heads(0)?, heads(1)?, heads(2)?])
    }

    fn fits(&self, builder: &Builder<'_>) -> bool {
        let [q, k, v] = &self.sizes;
        self.values
            .iter()
            .all(|value| builder.is_held(*value) && builder.dtype(*value) == Some(DType::F32))
            && q.size <= MAX_SIZE
            && [k.size, v.size] == [q.size; 2]
            && k.length == v.length
            && [k.batch, v.batch] == [q.batch; 2]
            && k.heads == v.heads
            && q.heads.is_multiple_of(k.heads)
            && q.batch * q.heads <= MAX_GROUPS
    }
}

impl Heads {
    fn new(operand: &Operand, sizes: Sizes) -> Self {
        let strides = match *operand.strides {
            [batch, position, _] => [batch, sizes.size, position],
            [batch, head, position, _] => [batch, head, position],
            _ => [0; 3],
        };
        let Sizes { batch, heads, length, size } = sizes;
        Self { place: operand.place.clone(), batch, heads, length, size, strides }
    }
}

fn multi_head(builder: &Builder<'_>, node: &NodeDef) -> Option<Call> {
    let values = [input(node, 0)?, input(node, 1)?, input(node, 2)?];
    // A bias and a mask of keys are left to the CPU, and so is a past.
    if input(node, 3).is_some() || input(node, 4).is_some() || node.inputs.len() > 6 {
        return None;
    }
    let heads = usize::try_from(int(node, "num_heads", 0)?).ok()?;
    let rank3 = |value: ValueId| builder.shape(value).filter(|shape| shape.len() == 3);
    let sizes = |value: ValueId| Sizes::of(&rank3(value)?, Some(heads));
    let sizes = [sizes(values[0])?, sizes(values[1])?, sizes(values[2])?];
    let [query, key, _] = sizes;
    let given = float(node, "scale", 0.0)?;
    let scale = if given == 0.0 { 1.0 / (query.size as f32).sqrt() } else { given };
    let causal =
        (int(node, "unidirectional", 0)? != 0).then(|| key.length.saturating_sub(query.length));
    let mask = mask(builder, input(node, 5), query, key)?;
    let shape = Shape::from_slice(&[query.batch, query.length, query.heads * query.size]);
    let output = only_output(node)?;
    let call = Call { values, sizes, mask, output, shape, scale, causal };
    call.fits(builder).then_some(call)
}

fn onnx(builder: &Builder<'_>, node: &NodeDef) -> Option<Call> {
    let values = [input(node, 0)?, input(node, 1)?, input(node, 2)?];
    let plain = int(node, "softmax_precision", 1)? == 1
        && float(node, "softcap", 0.0)? == 0.0
        && (4..node.inputs.len()).all(|at| input(node, at).is_none());
    plain.then_some(())?;
    let heads = |name: &str| usize::try_from(int(node, name, 0)?).ok().filter(|h| *h > 0);
    let sizes = |at: usize, name: &str| Sizes::of(&builder.shape(values[at])?, heads(name));
    let sizes = [sizes(0, "q_num_heads")?, sizes(1, "kv_num_heads")?, sizes(2, "kv_num_heads")?];
    let [query, key, _] = sizes;
    let rank = builder.shape(values[0])?.len();
    let shape = match rank {
        3 => Shape::from_slice(&[query.batch, query.length, query.heads * query.size]),
        _ => Shape::from_slice(&[query.batch, query.heads, query.length, query.size]),
    };
    let scale = float(node, "scale", 1.0 / (query.size as f32).sqrt())?;
    let causal = (int(node, "is_causal", 0)? != 0).then_some(0);
    let mask = mask(builder, input(node, 3), query, key)?;
    let output = only_output(node)?;
    let call = Call { values, sizes, mask, output, shape, scale, causal };
    call.fits(builder).then_some(call)
}

type Mask = Option<(ValueId, [usize; 4])>;

/// A mask of floats that broadcasts to `[batch, heads, queries, keys]`, with
/// its strides as seen from there; `None` when there is one that does not.
fn mask(builder: &Builder<'_>, mask: Option<ValueId>, q: Sizes, k: Sizes) -> Option<Mask> {
    let Some(mask) = mask else { return Some(None) };
    let fits = builder.is_held(mask) && builder.dtype(mask) == Some(DType::F32);
    let shape = builder.shape(mask).filter(|shape| fits && shape.len() <= 4)?;
    let full = [q.batch, q.heads, q.length, k.length];
    let joint = crate::operand::broadcast(&shape, &full)?;
    if joint.as_slice() != full {
        return None;
    }
    let dense = Operand::dense(Place::Arena(0), DType::F32, &shape);
    let strides = dense.broadcast_strides(&full);
    Some(Some((mask, [strides[0], strides[1], strides[2], strides[3]])))
}
