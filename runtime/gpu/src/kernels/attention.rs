//! Attention: scores, softmax and weighted values as one kernel.

use super::matmul::round;
use super::{float, input, int, only_output};
use crate::lower::{Builder, Copy, MAX_GROUPS};
use crate::operand::{Operand, Place, is_float};
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

/// What a mask does to scores, by the code that the kernel knows it by.
#[derive(Clone, Copy)]
enum Masking {
    Added = 1,
    Allowing = 2,
    Flags = 3,
    Lengths = 4,
}

struct Mask {
    value: ValueId,
    masking: Masking,
    /// As seen from `[batch, heads, queries, keys]`.
    strides: [usize; 4],
    /// Keys that it speaks of; those beyond are hidden.
    limit: usize,
}

/// Keys and values of the past, and where they go with the new ones.
struct Cache {
    past: Option<[ValueId; 2]>,
    past_length: usize,
    present: [Option<ValueId>; 2],
}

/// One call, whatever the operator.
struct Call {
    values: [ValueId; 3],
    /// Of queries, and of keys and values with those of the past.
    sizes: [Sizes; 3],
    mask: Option<Mask>,
    /// Keys that count, by batch.
    lengths: Option<ValueId>,
    cache: Option<Cache>,
    output: ValueId,
    shape: Shape,
    scale: f32,
    softcap: f32,
    /// Added to the scores of keys that a mask of integers hides.
    filter: f32,
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
    call.launch(builder)?;
    Ok(true)
}

impl Call {
    fn launch(&self, builder: &mut Builder<'_>) -> Result<()> {
        let [q, k, v] = self.heads(builder)?;
        let mask = self.mask.as_ref().map(|mask| builder.dense(mask.value)).transpose()?;
        let lengths = self.lengths.map(|lengths| builder.dense(lengths)).transpose()?;
        let dtype = builder.dtype(self.values[0]).unwrap_or(DType::F32);
        let target = builder.allocate(dtype, &self.shape);
        let out = Heads::new(&target, self.sizes[0]);
        let constants = [
            ("MASK", self.mask.as_ref().map_or(0, |mask| mask.masking as u32)),
            ("HAS_SOFTCAP", u32::from(self.softcap > 0.0)),
            ("HAS_LENGTHS", u32::from(lengths.is_some())),
            ("CAUSAL", u32::from(self.causal.is_some())),
        ];
        let params = Params::new()
            .sizes(&[q.length, k.length, q.size, q.heads, q.heads / k.heads])
            .float(self.scale)
            .size(self.causal.unwrap_or(0))
            .sizes(&q.strides)
            .sizes(&k.strides)
            .sizes(&v.strides)
            .sizes(&self.mask.as_ref().map_or([0; 4], |mask| mask.strides))
            .sizes(&out.strides)
            .size(self.mask.as_ref().map_or(k.length, |mask| mask.limit))
            .float(self.softcap)
            .float(self.filter);
        let unused = q.place.clone();
        let place = |operand: Option<Operand>| operand.map_or(unused.clone(), |o| o.place);
        let (mask, lengths) = (place(mask), place(lengths));
        let groups = [q.length.div_ceil(QUERIES), 1, q.batch * q.heads];
        let bindings = vec![q.place, k.place, v.place, mask, out.place, lengths];
        builder.launch(Kernel::new(File::Attention, 6, &constants), bindings, params, groups);
        round(builder, self.output, target);
        Ok(())
    }

    fn heads(&self, builder: &mut Builder<'_>) -> Result<[Heads; 3]> {
        let query = self.given(builder, 0)?;
        match &self.cache {
            Some(cache) => {
                Ok([query, self.cached(builder, cache, 1)?, self.cached(builder, cache, 2)?])
            }
            None => Ok([query, self.given(builder, 1)?, self.given(builder, 2)?]),
        }
    }

    fn given(&self, builder: &mut Builder<'_>, at: usize) -> Result<Heads> {
        let operand = builder.operand(self.values[at])?;
        // Any strides do, as long as the values of a head lie side by side.
        let operand = match operand.strides.last() {
            Some(1) => operand,
            _ => builder.dense(self.values[at])?,
        };
        Ok(Heads::new(&operand, self.sizes[at]))
    }

    /// Keys (1) or values (2) of the past and then the new ones, which also are
    /// an output of the node.
    fn cached(&self, builder: &mut Builder<'_>, cache: &Cache, at: usize) -> Result<Heads> {
        let Sizes { batch, heads, length, size } = self.sizes[at];
        let new = self.given(builder, at)?;
        let dtype = builder.dtype(self.values[at]).unwrap_or(DType::F32);
        let present = builder.allocate(dtype, &[batch, heads, length, size]);
        let copy = Copy {
            source_offset: 0,
            target_offset: cache.past_length * size,
            target_strides: &present.strides,
        };
        let strides = [new.strides[0], new.strides[1], new.strides[2], 1];
        let shape = [batch, heads, length - cache.past_length, size];
        builder.copy(&new.place, &strides, &present.place, &shape, copy);
        if let Some(past) = cache.past {
            let past = builder.operand(past[at - 1])?;
            let target_strides = &present.strides;
            let copy = Copy { source_offset: 0, target_offset: 0, target_strides };
            builder.copy(&past.place, &past.strides, &present.place, &past.shape, copy);
        }
        if let Some(output) = cache.present[at - 1] {
            builder.define(output, present.clone());
        }
        Ok(Heads::new(&present, self.sizes[at]))
    }

    fn fits(&self, builder: &Builder<'_>) -> bool {
        let [q, k, v] = &self.sizes;
        let dtype = builder.dtype(self.values[0]);
        self.values.iter().all(|x| builder.is_float(*x) && builder.dtype(*x) == dtype)
            && q.size <= MAX_SIZE
            && [k.size, v.size] == [q.size; 2]
            && k.length == v.length
            && [k.batch, v.batch] == [q.batch; 2]
            && k.heads == v.heads
            && q.heads.is_multiple_of(k.heads)
            && q.batch * q.heads <= MAX_GROUPS
            && self.past_fits(builder)
    }

    fn past_fits(&self, builder: &Builder<'_>) -> bool {
        let Some(Cache { past, past_length, .. }) = &self.cache else { return true };
        let fits = |(at, past): (usize, &ValueId)| {
            let Sizes { batch, heads, length, size } = self.sizes[at + 1];
            let same = builder.dtype(*past) == builder.dtype(self.values[at + 1]);
            let shape = builder.shape(*past);
            same && builder.is_float(*past)
                && shape.as_deref() == Some(&[batch, heads, *past_length, size])
                && batch * heads * length * size < 1 << 29
        };
        past.iter().flatten().enumerate().all(fits)
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
    // A bias is left to the CPU, and so are a past and two masks at once.
    if input(node, 3).is_some() || node.inputs.len() > 6 {
        return None;
    }
    let heads = usize::try_from(int(node, "num_heads", 0)?).ok()?;
    let rank3 = |value: ValueId| {
        let single = builder.dtype(value) == Some(DType::F32);
        builder.shape(value).filter(|shape| single && shape.len() == 3)
    };
    let sizes = |value: ValueId| Sizes::of(&rank3(value)?, Some(heads));
    let sizes = [sizes(values[0])?, sizes(values[1])?, sizes(values[2])?];
    let [query, key, _] = sizes;
    let given = float(node, "scale", 0.0)?;
    let scale = if given == 0.0 { 1.0 / (query.size as f32).sqrt() } else { given };
    let causal =
        (int(node, "unidirectional", 0)? != 0).then(|| key.length.saturating_sub(query.length));
    let mask = match (input(node, 4), input(node, 5)) {
        (None, None) => None,
        (Some(keys), None) => Some(key_mask(builder, keys, query, key)?),
        (None, Some(bias)) => {
            let single = builder.dtype(bias) == Some(DType::F32);
            let mask = score_mask(builder, bias, query, key).filter(|_| single)?;
            (mask.limit == key.length).then_some(())?;
            Some(mask)
        }
        (Some(_), Some(_)) => return None,
    };
    let call = Call {
        values,
        sizes,
        mask,
        lengths: None,
        cache: None,
        output: only_output(node)?,
        shape: Shape::from_slice(&[query.batch, query.length, query.heads * query.size]),
        scale,
        softcap: 0.0,
        filter: float(node, "mask_filter_value", -10000.0)?,
        causal,
    };
    call.fits(builder).then_some(call)
}

/// `Attention` of opset 23 and 24. The output of scores is left to the CPU, and
/// so are values of another size than the keys.
fn onnx(builder: &Builder<'_>, node: &NodeDef) -> Option<Call> {
    let values = [input(node, 0)?, input(node, 1)?, input(node, 2)?];
    let precision = int(node, "softmax_precision", 1)?;
    let no_scores = node.outputs.get(3).copied().flatten().is_none();
    (precision == 1 && no_scores).then_some(())?;
    let cache = cache(builder, node)?;
    let past_length = cache.as_ref().map_or(0, |cache| cache.past_length);
    let heads = |name: &str| usize::try_from(int(node, name, 0)?).ok().filter(|h| *h > 0);
    let sizes = |at: usize, name: &str| Sizes::of(&builder.shape(values[at])?, heads(name));
    let longer =
        |sizes: Sizes| Some(Sizes { length: sizes.length.checked_add(past_length)?, ..sizes });
    let query = sizes(0, "q_num_heads")?;
    let key = longer(sizes(1, "kv_num_heads")?)?;
    let sizes = [query, key, longer(sizes(2, "kv_num_heads")?)?];
    let mask = match input(node, 3) {
        Some(mask) => Some(score_mask(builder, mask, query, key)?),
        None => None,
    };
    let lengths = input(node, 6);
    let lengths_fit = lengths.is_none_or(|lengths| {
        matches!(builder.dtype(lengths), Some(DType::I32 | DType::I64))
            && builder.shape(lengths).as_deref() == Some(&[query.batch])
    });
    let alone = lengths.is_none() || cache.as_ref().is_none_or(|cache| cache.past.is_none());
    (lengths_fit && alone).then_some(())?;
    let call = Call {
        values,
        sizes,
        mask,
        lengths,
        output: node.outputs.first().copied().flatten()?,
        shape: match builder.shape(values[0])?.len() {
            3 => Shape::from_slice(&[query.batch, query.length, query.heads * query.size]),
            _ => Shape::from_slice(&[query.batch, query.heads, query.length, query.size]),
        },
        scale: float(node, "scale", 1.0 / (query.size as f32).sqrt())?,
        softcap: float(node, "softcap", 0.0)?,
        filter: 0.0,
        causal: (int(node, "is_causal", 0)? != 0).then_some(past_length),
        cache,
    };
    call.fits(builder).then_some(call)
}

/// The past and the present of a call, if it has any; `None` when they are not
/// as they should be.
fn cache(builder: &Builder<'_>, node: &NodeDef) -> Option<Option<Cache>> {
    let output = |at: usize| node.outputs.get(at).copied().flatten();
    let present = [output(1), output(2)];
    let past = match (input(node, 4), input(node, 5)) {
        (Some(key), Some(value)) => Some([key, value]),
        (None, None) => None,
        _ => return None,
    };
    let past_length = match past {
        Some([key, _]) => *builder.shape(key)?.get(2)?,
        None => 0,
    };
    let any = past.is_some() || present.iter().any(Option::is_some);
    // A past without keys has nothing to copy.
    let past = past.filter(|_| past_length > 0);
    Some(any.then_some(Cache { past, past_length, present }))
}

/// A mask of floats or booleans that broadcasts to `[batch, heads, queries,
/// keys]`, or to fewer keys.
fn score_mask(builder: &Builder<'_>, value: ValueId, q: Sizes, k: Sizes) -> Option<Mask> {
    let masking = match builder.dtype(value)? {
        DType::Bool => Masking::Allowing,
        dtype if is_float(dtype) => Masking::Added,
        _ => return None,
    };
    let shape = builder.shape(value).filter(|s| builder.is_held(value) && s.len() <= 4)?;
    let width = *shape.last()?;
    let limit = if width == 1 { k.length } else { width.min(k.length) };
    let full = [q.batch, q.heads, q.length, limit];
    let joint = crate::operand::broadcast(&shape, &full)?;
    if joint.as_slice() != full {
        return None;
    }
    let dense = Operand::dense(Place::Arena(0), DType::F32, &shape);
    let strides = dense.broadcast_strides(&full);
    Some(Mask { value, masking, strides: [strides[0], strides[1], strides[2], strides[3]], limit })
}

/// The masks of `com.microsoft`: how many keys count, or a flag for each key.
fn key_mask(builder: &Builder<'_>, value: ValueId, q: Sizes, k: Sizes) -> Option<Mask> {
    let integers = builder.dtype(value) == Some(DType::I32) && builder.is_held(value);
    let shape = builder.shape(value).filter(|_| integers)?;
    let (masking, strides) = match *shape {
        [batch] if batch == q.batch => (Masking::Lengths, [1, 0, 0, 0]),
        [batch, keys] if [batch, keys] == [q.batch, k.length] => (Masking::Flags, [keys, 0, 0, 1]),
        [batch, queries, keys] if [batch, queries, keys] == [q.batch, q.length, k.length] => {
            (Masking::Flags, [queries * keys, 0, keys, 1])
        }
        _ => return None,
    };
    Some(Mask { value, masking, strides, limit: k.length })
}
