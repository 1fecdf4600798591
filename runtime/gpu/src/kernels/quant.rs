//! Integers for numbers: quantising, products of 8-bit values, and products
//! with weights of few bits.

use super::matmul::{Packing, Product};
use super::pointwise::Chain;
use super::rows::{lanes, row_groups};
use super::{input, int, ints, only_output, resolve};
use crate::lower::{Builder, MAX_GROUPS};
use crate::operand::{Operand, Place};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use crate::weights::{Format, column_words, packed_columns};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor, ValueId};

/// Terms of an integer product whose sums stay exact everywhere.
pub(super) const MAX_TERMS: usize = 1 << 16;

/// Columns and rows of a tile of the integer product.
const TILE: usize = 64;

/// A matrix of few bits: `MatMulNBits` of `com.microsoft`.
struct NBits {
    x: ValueId,
    weights: Tensor,
    scales: ValueId,
    zeros: Option<Tensor>,
    bias: Option<ValueId>,
    output: ValueId,
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
    /// Whether the rows are `FP16`, or may be rounded to it.
    allows_half: bool,
}

/// # Errors
/// As [`Builder::operand`].
pub(crate) fn matmul_nbits(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = NBits::of(builder, node) else { return Ok(false) };
    let x = builder.dense(call.x)?;
    let m = x.len() / call.k;
    let blocks = call.k.div_ceil(call.block);
    let zeros = builder.derived((call.output, 0), || call.zero_points(blocks))?;
    let zeros = Place::Weight(builder.weight(&zeros, Format::Words)?);
    let scales = builder.dense(call.scales)?.place;
    let right = Place::Weight(builder.weight(&call.weights, Format::Bytes)?);
    let bias = match call.bias {
        Some(bias) => Some(super::matmul::Bias {
            place: builder.dense(bias)?.place,
            row: 0,
            column: 1,
            beta: 1.0,
        }),
        None => None,
    };
    let product = Product {
        m,
        n: call.n,
        k: call.k,
        a: [call.k, 1, 0, 0],
        b: [0, blocks * call.block * call.bits / 32, 0, 0],
        out: [call.n, 0, 0],
        bias,
        allows_half: call.allows_half,
        rounds: x.dtype == DType::F16,
        weights: Packing::Blocks { bits: call.bits, block: call.block, scales, zeros },
        ..Product::default()
    };
    if !product.fits() {
        return Ok(false);
    }
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = call.n;
    }
    let out = builder.allocate(x.dtype, &shape);
    product.launch(builder, x.place, right, out.place.clone());
    builder.define(call.output, out);
    Ok(true)
}

impl NBits {
    fn of(builder: &Builder<'_>, node: &NodeDef) -> Option<Self> {
        let size = |name: &str, default: i64| {
            usize::try_from(int(node, name, default)?).ok().filter(|size| *size > 0)
        };
        let (k, n) = (size("K", 0)?, size("N", 0)?);
        let (bits, block) = (size("bits", 4)?, size("block_size", 0)?);
        let (x, scales) = (input(node, 0)?, input(node, 2)?);
        let weights = builder.constant(input(node, 1)?)?.clone();
        let zeros = match input(node, 3) {
            Some(zeros) => Some(builder.constant(zeros)?.clone()),
            None => None,
        };
        let bias = input(node, 5);
        let dtype = builder.dtype(x)?;
        let same = |value: ValueId| builder.is_float(value) && builder.dtype(value) == Some(dtype);
        let blocks = k.div_ceil(block);
        // The levels from 2 on are FP16, BF16 and INT8.
        let allows_half = dtype == DType::F16 || int(node, "accuracy_level", 0)? >= 2;
        let fits = matches!(bits, 4 | 8)
            && block.is_power_of_two()
            && block >= 16
            && same(x)
            && same(scales)
            && bias.is_none_or(same)
            && input(node, 4).is_none()
            && builder.shape(x)?.last() == Some(&k)
            && weights.dtype() == DType::U8
            && weights.len() == n * blocks * block * bits / 8
            && builder.shape(scales)?.iter().product::<usize>() == n * blocks;
        let output = only_output(node)?;
        fits.then_some(Self {
            x,
            weights,
            scales,
            zeros,
            bias,
            output,
            k,
            n,
            bits,
            block,
            allows_half,
        })
    }

    /// One number a block, however the file has them.
    fn zero_points(&self, blocks: usize) -> Result<Tensor> {
        let count = self.n * blocks;
        let Some(given) = &self.zeros else {
            let middle = (1 << (self.bits - 1)) as f32;
            return Tensor::from_vec(&[count], vec![middle; count]);
        };
        if given.dtype() == DType::F32 {
            return given.clone().reshaped(&[count]);
        }
        let bytes = given.as_slice::<u8>()?;
        let pitch = (blocks * self.bits).div_ceil(8);
        if bytes.len() != self.n * pitch {
            return Err(Error::invalid("zero points do not fit the number of blocks"));
        }
        let value = |at: usize| {
            let (column, block) = (at / blocks, at % blocks);
            match self.bits {
                8 => f32::from(bytes[at]),
                _ => f32::from(bytes[column * pitch + block / 2] >> (4 * (block % 2)) & 15),
            }
        };
        Tensor::from_vec(&[count], (0..count).map(value).collect())
    }
}

/// What packing takes off a value of 8 bits.
pub(super) fn shift(dtype: DType) -> i32 {
    if dtype == DType::U8 { 128 } else { 0 }
}

/// An integer product whose right side is constant.
struct Integers {
    a: ValueId,
    b: ValueId,
    a_zero: Option<ValueId>,
    b_zero: Option<ValueId>,
    output: ValueId,
    shape: Shape,
    k: usize,
}

/// `MatMulInteger`.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn matmul_integer(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let call = Integers::of(builder, node, [0, 1], [2, 3]);
    let Some(call) = call else { return Ok(false) };
    let sums = call.launch(builder)?;
    builder.define(call.output, sums);
    Ok(true)
}

/// `QLinearMatMul`: the integer product, and then back to 8 bits.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn qlinear_matmul(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = Integers::of(builder, node, [0, 3], [2, 5]) else { return Ok(false) };
    let (Some(a_scale), Some(b_scale)) = (input(node, 1), input(node, 4)) else { return Ok(false) };
    let (Some(y_scale), Some(y_zero)) = (input(node, 6), input(node, 7)) else { return Ok(false) };
    let Some(dtype) = builder.dtype(y_zero) else { return Ok(false) };
    let Some(template) = requantise(dtype) else { return Ok(false) };
    let columns = call.shape[call.shape.len() - 1];
    let one = |value: ValueId| scale_len(builder, value) == Some(1);
    let row = scale_len(builder, b_scale).is_some_and(|len| len == 1 || len == columns);
    if !(row && one(a_scale) && one(y_scale) && scale_len_any(builder, y_zero) == Some(1)) {
        return Ok(false);
    }
    let sums = call.launch(builder)?;
    let mut inputs = vec![sums];
    for value in [a_scale, b_scale, y_scale, y_zero] {
        inputs.push(flat(builder.dense(value)?));
    }
    match Chain::of(template, dtype, &call.shape, inputs) {
        Some(chain) => builder.defer(call.output, chain),
        None => return Ok(false),
    }
    Ok(true)
}

fn requantise(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::U8 => Some("clamp(i32(round(f32($0) * ($1 * $2 / $3))) + $4, 0i, 255i)"),
        DType::I8 => Some("clamp(i32(round(f32($0) * ($1 * $2 / $3))) + $4, -128i, 127i)"),
        _ => None,
    }
}

pub(super) fn scale_len(builder: &Builder<'_>, value: ValueId) -> Option<usize> {
    scale_len_any(builder, value).filter(|_| builder.dtype(value) == Some(DType::F32))
}

pub(super) fn scale_len_any(builder: &Builder<'_>, value: ValueId) -> Option<usize> {
    let shape = builder.shape(value).filter(|shape| builder.is_held(value) && shape.len() <= 1)?;
    Some(shape.iter().product())
}

/// A dense operand as one row; a single value broadcasts to any shape.
fn flat(operand: Operand) -> Operand {
    Operand::dense(operand.place.clone(), operand.dtype, &[operand.len()])
}

impl Integers {
    fn of(
        builder: &Builder<'_>,
        node: &NodeDef,
        [a, b]: [usize; 2],
        [a_zero, b_zero]: [usize; 2],
    ) -> Option<Self> {
        let (a, b) = (input(node, a)?, input(node, b)?);
        let (a_zero, b_zero) = (input(node, a_zero), input(node, b_zero));
        let small = |value: ValueId| matches!(builder.dtype(value), Some(DType::U8 | DType::I8));
        let mut shape = builder.shape(a).filter(|shape| builder.is_held(a) && shape.len() >= 2)?;
        let weights = builder.constant(b)?.shape().to_vec();
        let [k, n] = *weights else { return None };
        let zero = |zero: Option<ValueId>, of: ValueId, lens: [usize; 2]| {
            zero.is_none_or(|zero| {
                let len = scale_len_any(builder, zero);
                builder.dtype(zero) == builder.dtype(of) && len.is_some_and(|l| lens.contains(&l))
            })
        };
        let fits = small(a)
            && small(b)
            && shape.last() == Some(&k)
            && (1..=MAX_TERMS).contains(&k)
            && zero(a_zero, a, [1, 1])
            && zero(b_zero, b, [1, n]);
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        let m = shape[..shape.len() - 1].iter().product::<usize>();
        let small = m.div_ceil(TILE) <= MAX_GROUPS && n.div_ceil(TILE) <= MAX_GROUPS;
        let output = only_output(node)?;
        (fits && small).then_some(Self { a, b, a_zero, b_zero, output, shape, k })
    }

    /// Emits the product and answers where its sums are.
    fn launch(&self, builder: &mut Builder<'_>) -> Result<Operand> {
        let a = builder.dense(self.a)?;
        let Some(weights) = builder.constant(self.b).cloned() else {
            return Err(Error::internal("the right side of an integer product is constant"));
        };
        let (m, n) = (a.len() / self.k, weights.shape()[1]);
        let words = column_words(self.k, 4);
        let (shift_a, shift_b) = (shift(a.dtype), shift(weights.dtype()));
        let packed = builder.allocate(DType::I32, &[m, words]);
        let row_sums = builder.allocate(DType::I32, &[m]);
        let lanes = lanes(words);
        let params = Params::new().sizes(&[m, self.k, words]);
        let bindings = vec![a.place, packed.place.clone(), row_sums.place.clone()];
        let constants = [("SHIFT", shift_a as u32), ("LANES", lanes as u32)];
        let kernel = Kernel::new(File::Pack, 3, &constants);
        builder.launch(kernel, bindings, params, row_groups(m, lanes));

        let both = || packed_columns(&weights, shift_b);
        let right = builder.derived((self.output, 0), || Ok(both()?.0))?;
        let column_sums = builder.derived((self.output, 1), || Ok(both()?.1))?;
        let right = Place::Weight(builder.weight(&right, Format::Words)?);
        let column_sums = Place::Weight(builder.weight(&column_sums, Format::Words)?);
        let a_zero = self.zero(builder, self.a_zero, 2)?;
        let b_zero = self.zero(builder, self.b_zero, 3)?;
        let step = usize::from(b_zero.len() > 1);
        let sums = builder.allocate(DType::I32, &self.shape);
        let params = Params::new().sizes(&[m, n, self.k, words, step]);
        let constants = [("SHIFT_A", shift_a as u32), ("SHIFT_B", shift_b as u32)];
        let bindings = vec![
            packed.place,
            right,
            sums.place.clone(),
            row_sums.place,
            column_sums,
            a_zero.place,
            b_zero.place,
        ];
        let groups = [n.div_ceil(TILE), m.div_ceil(TILE), 1];
        builder.launch(Kernel::new(File::MatmulInt8, 7, &constants), bindings, params, groups);
        Ok(sums)
    }

    /// A zero point, or zeros where there is none.
    fn zero(&self, builder: &mut Builder<'_>, zero: Option<ValueId>, at: u32) -> Result<Operand> {
        match zero {
            Some(zero) => builder.dense(zero),
            None => {
                let none = || Tensor::from_vec(&[1], vec![0i32]);
                let tensor = builder.derived((self.output, at), none)?;
                let place = Place::Weight(builder.weight(&tensor, Format::Words)?);
                Ok(Operand::dense(place, DType::I32, &[1]))
            }
        }
    }
}

/// Scale and zero point of `QuantizeLinear` and `DequantizeLinear`, ready to
/// broadcast along their axis.
struct Scaling {
    x: ValueId,
    scale: ValueId,
    zero: ValueId,
    output: ValueId,
    /// Dimensions of the parameters from their axis on.
    shape: Shape,
}

impl Scaling {
    fn of(builder: &Builder<'_>, node: &NodeDef) -> Option<Self> {
        let (x, scale, zero) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
        let shape = builder.shape(x).filter(|_| builder.is_held(x))?;
        let count = scale_len(builder, scale)?;
        let blocked = int(node, "block_size", 0)? != 0 || ints(node, "block_size").is_some();
        let same = scale_len_any(builder, zero) == Some(count);
        let mut params = Shape::from_slice(&[count]);
        if count > 1 {
            let axis = resolve(int(node, "axis", 1)?, shape.len())?;
            if shape[axis] != count {
                return None;
            }
            params.resize(shape.len() - axis, 1);
        }
        let output = only_output(node)?;
        (same && !blocked).then_some(Self { x, scale, zero, output, shape: params })
    }

    fn defer(
        &self,
        builder: &mut Builder<'_>,
        template: &'static str,
        dtype: DType,
    ) -> Result<bool> {
        let x = builder.operand(self.x)?;
        let mut inputs = vec![x.clone()];
        for value in [self.scale, self.zero] {
            let dense = builder.dense(value)?;
            inputs.push(Operand::dense(dense.place, dense.dtype, &self.shape));
        }
        let chain = Chain::of(template, dtype, &x.shape, inputs);
        Ok(match chain {
            Some(chain) => {
                builder.defer(self.output, chain);
                true
            }
            None => false,
        })
    }
}

fn quantised(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::U8 => Some("clamp(i32(clamp(round($0 / $1), -1e6, 1e6)) + $2, 0i, 255i)"),
        DType::I8 => Some("clamp(i32(clamp(round($0 / $1), -1e6, 1e6)) + $2, -128i, 127i)"),
        _ => None,
    }
}

/// `QuantizeLinear` to 8 bits, with a zero point.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn quantize(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = Scaling::of(builder, node) else { return Ok(false) };
    let Some(dtype) = builder.dtype(call.zero) else { return Ok(false) };
    let single = builder.dtype(call.x) == Some(DType::F32);
    match quantised(dtype).filter(|_| single) {
        Some(template) => call.defer(builder, template, dtype),
        None => Ok(false),
    }
}

/// `DequantizeLinear` from integers, with a zero point.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn dequantize(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = Scaling::of(builder, node) else { return Ok(false) };
    let dtype = builder.dtype(call.x);
    let integers = matches!(dtype, Some(DType::U8 | DType::I8 | DType::I32));
    if !integers || dtype != builder.dtype(call.zero) {
        return Ok(false);
    }
    call.defer(builder, "f32($0 - $2) * $1", DType::F32)
}

/// `DynamicQuantizeLinear`: one scale and zero point for the whole tensor.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn dynamic_quantize(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(x) = input(node, 0).filter(|x| builder.dtype(*x) == Some(DType::F32)) else {
        return Ok(false);
    };
    if !builder.is_held(x) {
        return Ok(false);
    }
    let source = builder.dense(x)?;
    let (least, most) = (extreme(builder, &source, 3), extreme(builder, &source, 2));
    let chain = |template, dtype, shape: &[usize], inputs| {
        Chain::of(template, dtype, shape, inputs)
            .ok_or_else(|| Error::internal("quantising is one kernel"))
    };
    const SCALE: &str = "(max($1, 0.0) - min($0, 0.0)) / 255.0";
    let scale = chain(SCALE, DType::F32, &[], vec![least.clone(), most])?.launch(builder)?;
    const ZERO: &str = "i32(clamp(round(-min($0, 0.0) / max($1, 1e-37)), 0.0, 255.0))";
    let zero = chain(ZERO, DType::U8, &[], vec![least, scale.clone()])?.launch(builder)?;
    const VALUES: &str = "clamp(i32(clamp(round($0 / max($1, 1e-37)), -1e6, 1e6)) + $2, 0i, 255i)";
    let inputs = vec![source.clone(), scale.clone(), zero.clone()];
    let values = chain(VALUES, DType::U8, &source.shape, inputs)?.launch(builder)?;
    for (output, operand) in node.outputs.iter().zip([values, scale, zero]) {
        if let Some(output) = output {
            builder.define(*output, operand);
        }
    }
    Ok(true)
}

/// The smallest (3) or largest (2) element, as a scalar.
fn extreme(builder: &mut Builder<'_>, source: &Operand, kind: u32) -> Operand {
    let target = builder.allocate(DType::F32, &[]);
    let constants = [("LANES", 256), ("KIND", kind)];
    let params = Params::new().size(1).size(source.len()).size(1);
    let bindings = vec![source.place.clone(), target.place.clone()];
    builder.launch(Kernel::new(File::Reduce, 2, &constants), bindings, params, [1, 1, 1]);
    target
}
