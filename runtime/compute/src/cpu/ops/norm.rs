//! Normalisations. Means and variances are summed in f64 for f32 inputs where
//! a row is long enough for it to matter, and always in two passes.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::parallel::{in_parts, part_len};
use crate::cpu::wide::{Loop, widest};
use mortise_types::{DType, Error, NodeDef, Result, Tensor, bf16, f16};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "BatchNormalization", since: 7, build: BatchNorm::build },
    Entry { op: "InstanceNormalization", since: 1, build: InstanceNorm::build },
    Entry { op: "LayerNormalization", since: 1, build: LayerNorm::build },
    Entry { op: "RMSNormalization", since: 23, build: RmsNorm::build },
    Entry { op: "GroupNormalization", since: 18, build: GroupNorm::build },
    Entry { op: "LpNormalization", since: 1, build: LpNorm::build },
    Entry { op: "LRN", since: 1, build: Lrn::build },
    Entry { op: "MeanVarianceNormalization", since: 9, build: MeanVariance::build },
];

pub(crate) const MS_ENTRIES: &[Entry] = &[
    Entry { op: "SkipLayerNormalization", since: 1, build: SkipLayerNorm::build },
    Entry { op: "SimplifiedLayerNormalization", since: 1, build: RmsNorm::build },
    Entry { op: "LayerNormalization", since: 1, build: LayerNorm::build },
];

/// Runs `kernel` on a float tensor in f32 (or f64 for f64), converting f16 and
/// bf16 there and back. `params` are converted alike.
fn in_float(
    ctx: &OpContext<'_>,
    input: &Tensor,
    params: &[&Tensor],
    kernel: &dyn Kernel,
) -> Result<Tensor> {
    if input.dtype() == DType::F64 {
        let mut output = ctx.allocate(DType::F64, input.shape())?;
        let params = params.iter().map(|p| wide(p)).collect::<Result<Vec<_>>>()?;
        kernel.f64(input.as_slice::<f64>()?, &params, output.as_mut_slice::<f64>()?);
        return Ok(output);
    }
    let data = single(input)?;
    let params = params.iter().map(|p| single(p)).collect::<Result<Vec<_>>>()?;
    let mut output = ctx.allocate(DType::F32, input.shape())?;
    kernel.f32(&data, &params, output.as_mut_slice::<f32>()?);
    from_single(output, input.dtype())
}

/// A normalisation in both precisions.
trait Kernel {
    fn f32(&self, input: &[f32], params: &[Floats<'_, f32>], output: &mut [f32]);
    fn f64(&self, input: &[f64], params: &[Floats<'_, f64>], output: &mut [f64]);
}

type Floats<'a, T> = std::borrow::Cow<'a, [T]>;

/// What a kernel needs of a float type, so that it is written once.
trait Real:
    Copy
    + Send
    + Sync
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
{
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
}

macro_rules! both_precisions {
    ($($kernel:ty),*) => {
        $(impl Kernel for $kernel {
            fn f32(&self, input: &[f32], params: &[Floats<'_, f32>], output: &mut [f32]) {
                self.apply(input, params, output);
            }
            fn f64(&self, input: &[f64], params: &[Floats<'_, f64>], output: &mut [f64]) {
                self.apply(input, params, output);
            }
        })*
    };
}

both_precisions!(PerChannel, Rows, Groups);

fn single(tensor: &Tensor) -> Result<Floats<'_, f32>> {
    Ok(match tensor.dtype() {
        DType::F32 => tensor.as_slice::<f32>()?.into(),
        DType::F64 => tensor.as_slice::<f64>()?.iter().map(|&v| v as f32).collect(),
        DType::F16 => tensor.as_slice::<f16>()?.iter().map(|v| v.to_f32()).collect(),
        DType::BF16 => tensor.as_slice::<bf16>()?.iter().map(|v| v.to_f32()).collect(),
        dtype => return Err(Error::unsupported(format!("normalisation of {dtype}"))),
    })
}

fn wide(tensor: &Tensor) -> Result<Floats<'_, f64>> {
    match tensor.dtype() {
        DType::F64 => Ok(tensor.as_slice::<f64>()?.into()),
        _ => Ok(single(tensor)?.iter().map(|&value| f64::from(value)).collect()),
    }
}

fn from_single(tensor: Tensor, dtype: DType) -> Result<Tensor> {
    let values = || tensor.as_slice::<f32>();
    match dtype {
        DType::F16 => {
            let narrow = values()?.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>();
            Tensor::from_vec(tensor.shape(), narrow)
        }
        DType::BF16 => {
            let narrow = values()?.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
            Tensor::from_vec(tensor.shape(), narrow)
        }
        _ => Ok(tensor),
    }
}

/// # Errors
/// When `tensor` does not hold `count` elements.
fn check_len(op: &str, what: &str, tensor: &Tensor, count: usize) -> Result<()> {
    if tensor.len() == count {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{op}: {what} must have {count} elements, got shape {:?}",
        tensor.shape()
    )))
}

fn check_rank(op: &str, tensor: &Tensor, least: usize) -> Result<()> {
    if tensor.rank() >= least {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{op}: the input must have at least {least} dimensions, got {:?}",
        tensor.shape()
    )))
}

// ---- BatchNormalization -------------------------------------------------

struct BatchNorm {
    epsilon: f64,
    /// How much of the running statistics a batch keeps, in training.
    training: Option<f64>,
}

/// `y = (x - mean) * scale / sqrt(var + ε) + bias` with one of each a channel.
struct PerChannel {
    channels: usize,
    plane: usize,
    epsilon: f64,
}

impl PerChannel {
    /// Mean and variance of each channel.
    fn statistics(&self, input: &[f64]) -> [Vec<f64>; 2] {
        let count = (input.len() / self.channels.max(1)) as f64;
        let sums = |term: &dyn Fn(usize, f64) -> f64| {
            let mut sums = vec![0.0; self.channels];
            for (index, plane) in input.chunks_exact(self.plane.max(1)).enumerate() {
                let channel = index % self.channels;
                sums[channel] += plane.iter().map(|&x| term(channel, x)).sum::<f64>();
            }
            sums.iter().map(|sum| sum / count).collect::<Vec<f64>>()
        };
        let means = sums(&|_, x| x);
        let variances = sums(&|channel, x| (x - means[channel]).powi(2));
        [means, variances]
    }

    fn apply<T: Real>(&self, input: &[T], params: &[Floats<'_, T>], output: &mut [T]) {
        let [scale, bias, mean, var] = params else { return };
        if self.plane == 0 {
            return;
        }
        let planes = input.chunks_exact(self.plane).zip(output.chunks_exact_mut(self.plane));
        for (index, (input, output)) in planes.enumerate() {
            let c = index % self.channels;
            let factor = scale[c].to_f64() / (var[c].to_f64() + self.epsilon).sqrt();
            let shift = T::from_f64(bias[c].to_f64() - mean[c].to_f64() * factor);
            let factor = T::from_f64(factor);
            output.iter_mut().zip(input).for_each(|(out, &x)| *out = x * factor + shift);
        }
    }
}

impl BatchNorm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let training = attributes.int_or("training_mode", 0)? != 0;
        let momentum = f64::from(attributes.float_or("momentum", 0.9)?);
        if attributes.int_or("spatial", 1)? != 1 {
            return Err(Error::unsupported(format!("{}: spatial = 0", node.describe())));
        }
        let epsilon = f64::from(attributes.float_or("epsilon", 1e-5)?);
        Ok(Box::new(Self { epsilon, training: training.then_some(momentum) }))
    }

    /// Normalises by the statistics of the batch, and moves the running ones
    /// towards them.
    fn train(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        params: &[&Tensor],
        kernel: &PerChannel,
        momentum: f64,
    ) -> Result<Outputs> {
        let [scale, bias, mean, variance] = params else {
            return Err(Error::internal("batch normalisation takes four parameters"));
        };
        let batch = kernel.statistics(&wide(input)?);
        let own = |of: usize| Tensor::from_vec(&[kernel.channels], batch[of].clone());
        let (own_mean, own_variance) = (own(0)?, own(1)?);
        let params = [*scale, *bias, &own_mean, &own_variance];
        let output = in_float(ctx, input, &params, kernel)?;
        let moved = |running: &Tensor, batch: &[f64]| -> Result<Tensor> {
            let mix = |(old, new): (&f64, &f64)| old * momentum + new * (1.0 - momentum);
            let values = wide(running)?.iter().zip(batch).map(mix).collect();
            cast_tensor(ctx, &Tensor::from_vec(running.shape(), values)?, running.dtype())
        };
        let (mean, variance) = (moved(mean, &batch[0])?, moved(variance, &batch[1])?);
        Ok([output, mean, variance].into_iter().map(Into::into).collect())
    }
}

impl Operator for BatchNorm {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        check_rank("BatchNormalization", input, 1)?;
        let channels = input.shape().get(1).copied().unwrap_or(1);
        let params = (1..5).map(|index| inputs.tensor(index)).collect::<Result<Vec<_>>>()?;
        for (param, what) in params.iter().zip(["scale", "bias", "mean", "variance"]) {
            check_len("BatchNormalization", what, param, channels)?;
        }
        let plane = input.shape().iter().skip(2).product();
        let kernel = PerChannel { channels, plane, epsilon: self.epsilon };
        if let Some(momentum) = self.training {
            return self.train(ctx, input, &params, &kernel, momentum);
        }
        Ok(smallvec![in_float(ctx, input, &params, &kernel)?.into()])
    }
}

// ---- Row-wise: LayerNormalization, RMSNormalization, Skip… ----------------

/// Normalises rows of `len` elements: subtracts the mean unless `rms`, divides
/// by the root of the mean square plus ε, then applies scale and bias of the
/// same length as a row.
struct Rows {
    len: usize,
    epsilon: f64,
    rms: bool,
}

/// [`Rows`] at work.
struct ApplyRows<'a, T: Real> {
    rows: &'a Rows,
    input: &'a [T],
    params: &'a [Floats<'a, T>],
    output: &'a mut [T],
}

impl<T: Real> Loop for ApplyRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.rows.apply_plainly(self.input, self.params, self.output);
    }
}

impl Rows {
    fn apply<T: Real>(&self, input: &[T], params: &[Floats<'_, T>], output: &mut [T]) {
        let part = |output: &mut [T], input: &[T]| {
            widest(ApplyRows { rows: self, input, params, output });
        };
        match part_len(output.len(), self.len) {
            Some(len) => in_parts(len, output, input, &part),
            None if self.len > 0 => part(output, input),
            None => {}
        }
    }

    #[inline(always)]
    fn apply_plainly<T: Real>(&self, input: &[T], params: &[Floats<'_, T>], output: &mut [T]) {
        let rows = input.chunks_exact(self.len).zip(output.chunks_exact_mut(self.len));
        for (input, output) in rows {
            let (mean, inverse) = self.moments(input);
            let (mean, inverse) = (T::from_f64(mean), T::from_f64(inverse));
            match params {
                [scale, bias] => {
                    let affine = scale.iter().zip(bias.iter());
                    for ((out, &x), (&s, &b)) in output.iter_mut().zip(input).zip(affine) {
                        *out = (x - mean) * inverse * s + b;
                    }
                }
                [scale] => {
                    for ((out, &x), &s) in output.iter_mut().zip(input).zip(scale.iter()) {
                        *out = (x - mean) * inverse * s;
                    }
                }
                _ => output.iter_mut().zip(input).for_each(|(o, &x)| *o = (x - mean) * inverse),
            }
        }
    }

    /// Mean (0 for RMS) and reciprocal deviation of one row.
    #[inline(always)]
    fn moments<T: Real>(&self, row: &[T]) -> (f64, f64) {
        let count = row.len() as f64;
        let mean = if self.rms { 0.0 } else { sum(row, |x| x) / count };
        let square = sum(row, |x| (x - mean) * (x - mean)) / count;
        (mean, 1.0 / (square + self.epsilon).sqrt())
    }
}

/// Sum in f64 over many lanes, which the compiler vectorises.
#[inline(always)]
fn sum<T: Real>(values: &[T], map: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0f64; 32];
    let chunks = values.chunks_exact(32);
    let tail: f64 = chunks.remainder().iter().map(|&value| map(value.to_f64())).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += map(value.to_f64()));
    }
    lanes.iter().sum::<f64>() + tail
}

struct LayerNorm {
    axis: i64,
    epsilon: f64,
}

impl LayerNorm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            axis: attributes.int_or("axis", -1)?,
            epsilon: f64::from(attributes.float_or("epsilon", 1e-5)?),
        }))
    }
}

fn resolve_axis(op: &str, axis: i64, rank: usize) -> Result<usize> {
    let resolved = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(resolved).ok().filter(|&axis| axis < rank).ok_or_else(|| {
        Error::invalid(format!("{op}: axis {axis} is out of range for {rank} dimensions"))
    })
}

/// Scale or bias of a row-wise norm. It usually has exactly the normalised
/// shape; ONNX lets it broadcast to it, so it is expanded to a whole row.
fn row_param(op: &str, param: &Tensor, normalised: &[usize]) -> Result<Tensor> {
    let row: usize = normalised.iter().product();
    if param.len() == row {
        return Ok(param.clone());
    }
    if param.len() == 1 {
        let value = wide(param)?[0];
        return Tensor::from_vec(&[row], vec![value; row]);
    }
    let last = normalised.last().copied().unwrap_or(1);
    if param.len() == last && param.shape().last() == Some(&last) {
        let values = wide(param)?;
        return Tensor::from_vec(&[row], values.iter().copied().cycle().take(row).collect());
    }
    Err(Error::unsupported(format!(
        "{op}: scale or bias of shape {:?} for rows of {normalised:?}",
        param.shape()
    )))
}

impl Operator for LayerNorm {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        const OP: &str = "LayerNormalization";
        let input = inputs.tensor(0)?;
        let axis = resolve_axis(OP, self.axis, input.rank())?;
        let normalised = &input.shape()[axis..];
        let scale = row_param(OP, inputs.tensor(1)?, normalised)?;
        let bias = inputs.optional(2)?.map(|bias| row_param(OP, bias, normalised)).transpose()?;
        let params: Vec<&Tensor> = std::iter::once(&scale).chain(&bias).collect();
        let len = normalised.iter().product();
        let rows = Rows { len, epsilon: self.epsilon, rms: false };
        let mut outputs: Outputs = smallvec![in_float(ctx, input, &params, &rows)?.into()];
        if ctx.output_count > 1 {
            let (mean, inverse) = statistics(input, &rows, axis)?;
            outputs.push(mean.into());
            outputs.push(inverse.into());
        }
        Ok(outputs)
    }
}

/// The optional outputs of LayerNormalization: mean and reciprocal deviation.
fn statistics(input: &Tensor, rows: &Rows, axis: usize) -> Result<(Tensor, Tensor)> {
    let data = wide(input)?;
    let moments: Vec<(f64, f64)> =
        data.chunks_exact(rows.len.max(1)).map(|row| rows.moments(row)).collect();
    let mut shape = input.shape().to_vec();
    shape[axis..].fill(1);
    let column = |values: Vec<f64>| -> Result<Tensor> {
        if input.dtype() == DType::F64 {
            return Tensor::from_vec(&shape, values);
        }
        Tensor::from_vec(&shape, values.iter().map(|&value| value as f32).collect())
    };
    let (means, inverses) = moments.into_iter().unzip();
    Ok((column(means)?, column(inverses)?))
}

struct RmsNorm {
    axis: i64,
    epsilon: f64,
}

impl RmsNorm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            axis: attributes.int_or("axis", -1)?,
            epsilon: f64::from(attributes.float_or("epsilon", 1e-5)?),
        }))
    }
}

impl Operator for RmsNorm {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        const OP: &str = "RMSNormalization";
        let input = inputs.tensor(0)?;
        let axis = resolve_axis(OP, self.axis, input.rank())?;
        let normalised = &input.shape()[axis..];
        let scale = row_param(OP, inputs.tensor(1)?, normalised)?;
        let rows = Rows { len: normalised.iter().product(), epsilon: self.epsilon, rms: true };
        Ok(smallvec![in_float(ctx, input, &[&scale], &rows)?.into()])
    }
}

/// `LayerNormalization(input + skip + bias)`, as BERT exports fuse it.
struct SkipLayerNorm {
    epsilon: f64,
}

impl SkipLayerNorm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let epsilon = Attributes(node).float_or("epsilon", 1e-12)?;
        Ok(Box::new(Self { epsilon: f64::from(epsilon) }))
    }

    fn sum(&self, ctx: &OpContext<'_>, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (input, skip) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let hidden = input.shape().last().copied().unwrap_or(0);
        check_len("SkipLayerNormalization", "skip", skip, input.len())?;
        let mut total = ctx.allocate(DType::F32, input.shape())?;
        let (x, s) = (single(input)?, single(skip)?);
        let out = total.as_mut_slice::<f32>()?;
        out.iter_mut().zip(x.iter().zip(s.iter())).for_each(|(out, (x, s))| *out = x + s);
        if let Some(bias) = inputs.optional(4)? {
            check_len("SkipLayerNormalization", "bias", bias, hidden)?;
            let bias = single(bias)?;
            for row in out.chunks_exact_mut(hidden.max(1)) {
                row.iter_mut().zip(bias.iter()).for_each(|(out, bias)| *out += bias);
            }
        }
        Ok(total)
    }
}

impl Operator for SkipLayerNorm {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        const OP: &str = "SkipLayerNormalization";
        let dtype = inputs.tensor(0)?.dtype();
        let total = self.sum(ctx, &inputs)?;
        let hidden = total.shape().last().copied().unwrap_or(0);
        let (gamma, beta) = (inputs.tensor(2)?, inputs.optional(3)?);
        check_len(OP, "gamma", gamma, hidden)?;
        beta.map(|beta| check_len(OP, "beta", beta, hidden)).transpose()?;
        let params: Vec<&Tensor> = std::iter::once(gamma).chain(beta).collect();
        let rows = Rows { len: hidden, epsilon: self.epsilon, rms: false };
        let normalised = from_single(in_float(ctx, &total, &params, &rows)?, dtype)?;
        if ctx.output_count < 4 {
            return Ok(smallvec![normalised.into()]);
        }
        let (mean, inverse) = statistics(&total, &rows, total.rank() - 1)?;
        let sum = from_single(total, dtype)?;
        Ok(smallvec![normalised.into(), mean.into(), inverse.into(), sum.into()])
    }
}

// ---- Group-wise: InstanceNormalization, GroupNormalization ----------------

/// Normalises each group of channels of each image, then scales and shifts by
/// channel.
struct Groups {
    channels: usize,
    per_group: usize,
    plane: usize,
    epsilon: f64,
}

impl Groups {
    fn apply<T: Real>(&self, input: &[T], params: &[Floats<'_, T>], output: &mut [T]) {
        let [scale, bias] = params else { return };
        let len = self.per_group * self.plane;
        if len == 0 {
            return;
        }
        let rows = Rows { len, epsilon: self.epsilon, rms: false };
        let groups = input.chunks_exact(len).zip(output.chunks_exact_mut(len));
        for (index, (input, output)) in groups.enumerate() {
            let (mean, inverse) = rows.moments(input);
            let first = index * self.per_group % self.channels;
            let planes = input.chunks_exact(self.plane).zip(output.chunks_exact_mut(self.plane));
            for (offset, (input, output)) in planes.enumerate() {
                let c = first + offset;
                let factor = scale[c].to_f64() * inverse;
                let shift = T::from_f64(bias[c].to_f64() - mean * factor);
                let factor = T::from_f64(factor);
                output.iter_mut().zip(input).for_each(|(out, &x)| *out = x * factor + shift);
            }
        }
    }
}

struct InstanceNorm {
    epsilon: f64,
}

impl InstanceNorm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let epsilon = f64::from(Attributes(node).float_or("epsilon", 1e-5)?);
        Ok(Box::new(Self { epsilon }))
    }
}

impl Operator for InstanceNorm {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        const OP: &str = "InstanceNormalization";
        let input = inputs.tensor(0)?;
        check_rank(OP, input, 2)?;
        let channels = input.shape()[1];
        let (scale, bias) = (inputs.tensor(1)?, inputs.tensor(2)?);
        check_len(OP, "scale", scale, channels)?;
        check_len(OP, "bias", bias, channels)?;
        let plane = input.shape()[2..].iter().product();
        let kernel = Groups { channels, per_group: 1, plane, epsilon: self.epsilon };
        Ok(smallvec![in_float(ctx, input, &[scale, bias], &kernel)?.into()])
    }
}

struct GroupNorm {
    groups: usize,
    epsilon: f64,
    /// Before opset 21 scale and bias were given per group.
    per_group_params: bool,
}

impl GroupNorm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let groups = attributes.int_or("num_groups", 0)?;
        let groups =
            usize::try_from(groups).ok().filter(|&groups| groups > 0).ok_or_else(|| {
                Error::invalid(format!("{}: num_groups must be positive", node.describe()))
            })?;
        Ok(Box::new(Self {
            groups,
            epsilon: f64::from(attributes.float_or("epsilon", 1e-5)?),
            per_group_params: node.opset < 21,
        }))
    }

    fn param(&self, what: &str, param: &Tensor, channels: usize) -> Result<Tensor> {
        if !self.per_group_params || param.len() == channels {
            check_len("GroupNormalization", what, param, channels)?;
            return Ok(param.clone());
        }
        check_len("GroupNormalization", what, param, self.groups)?;
        let repeat = channels / self.groups;
        let values =
            wide(param)?.iter().flat_map(|&value| std::iter::repeat_n(value, repeat)).collect();
        Tensor::from_vec(&[channels], values)
    }
}

impl Operator for GroupNorm {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        check_rank("GroupNormalization", input, 2)?;
        let channels = input.shape()[1];
        if !channels.is_multiple_of(self.groups) {
            return Err(Error::invalid(format!(
                "GroupNormalization: {channels} channels do not divide into {} groups",
                self.groups
            )));
        }
        let scale = self.param("scale", inputs.tensor(1)?, channels)?;
        let bias = self.param("bias", inputs.tensor(2)?, channels)?;
        let plane = input.shape()[2..].iter().product();
        let per_group = channels / self.groups;
        let kernel = Groups { channels, per_group, plane, epsilon: self.epsilon };
        Ok(smallvec![in_float(ctx, input, &[&scale, &bias], &kernel)?.into()])
    }
}

// ---- The rest ---------------------------------------------------------------

struct LpNorm {
    axis: i64,
    p: i64,
}

impl LpNorm {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let p = attributes.int_or("p", 2)?;
        if !(1..=2).contains(&p) {
            return Err(Error::unsupported(format!("{}: p = {p}", node.describe())));
        }
        Ok(Box::new(Self { axis: attributes.int_or("axis", -1)?, p }))
    }

    fn normalise(&self, values: &mut [f64], len: usize, stride: usize) {
        let norm = |row: &mut dyn Iterator<Item = f64>| match self.p {
            1 => row.map(f64::abs).sum::<f64>(),
            _ => row.map(|x| x * x).sum::<f64>().sqrt(),
        };
        for outer in values.chunks_exact_mut((len * stride).max(1)) {
            for inner in 0..stride {
                let total = norm(&mut outer[inner..].iter().step_by(stride).copied());
                if total == 0.0 {
                    continue;
                }
                outer[inner..].iter_mut().step_by(stride).for_each(|value| *value /= total);
            }
        }
    }
}

impl Operator for LpNorm {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let axis = resolve_axis("LpNormalization", self.axis, input.rank())?;
        let stride = input.shape()[axis + 1..].iter().product();
        let mut values = wide(input)?.into_owned();
        self.normalise(&mut values, input.shape()[axis], stride);
        Ok(smallvec![from_wide(input.shape(), values, input.dtype())?.into()])
    }
}

fn from_wide(shape: &[usize], values: Vec<f64>, dtype: DType) -> Result<Tensor> {
    if dtype == DType::F64 {
        return Tensor::from_vec(shape, values);
    }
    let single = values.iter().map(|&value| value as f32).collect();
    from_single(Tensor::from_vec::<f32>(shape, single)?, dtype)
}

/// Local response normalisation across channels.
struct Lrn {
    size: usize,
    alpha: f64,
    beta: f64,
    bias: f64,
}

impl Lrn {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let size = usize::try_from(attributes.int_or("size", 0)?).ok().filter(|&size| size > 0);
        Ok(Box::new(Self {
            size: size.ok_or_else(|| {
                Error::invalid(format!("{}: size must be positive", node.describe()))
            })?,
            alpha: f64::from(attributes.float_or("alpha", 1e-4)?),
            beta: f64::from(attributes.float_or("beta", 0.75)?),
            bias: f64::from(attributes.float_or("bias", 1.0)?),
        }))
    }

    fn response(&self, squares: f64) -> f64 {
        (self.bias + self.alpha / self.size as f64 * squares).powf(self.beta)
    }
}

impl Operator for Lrn {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        check_rank("LRN", input, 2)?;
        let channels = input.shape()[1];
        let plane: usize = input.shape()[2..].iter().product();
        let data = wide(input)?;
        let mut values = vec![0.0; data.len()];
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        for (index, out) in values.iter_mut().enumerate() {
            let (channel, at) = (index / plane % channels, index % plane);
            let image = index / (plane * channels) * plane * channels;
            let last = channel.saturating_add(after).min(channels - 1);
            let near = channel.saturating_sub(before)..=last;
            let squares: f64 = near.map(|c| data[image + c * plane + at].powi(2)).sum();
            *out = data[index] / self.response(squares);
        }
        ctx.control.check()?;
        Ok(smallvec![from_wide(input.shape(), values, input.dtype())?.into()])
    }
}

/// `(x - mean) / sqrt(var)` over the given axes.
struct MeanVariance {
    axes: Vec<i64>,
}

impl MeanVariance {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let axes = Attributes(node).ints("axes")?.map_or_else(|| vec![0, 2, 3], <[i64]>::to_vec);
        Ok(Box::new(Self { axes }))
    }

    /// For each element, which group of elements it is normalised with.
    fn group_of(&self, shape: &[usize]) -> Result<(Vec<usize>, usize)> {
        let mut reduced = vec![false; shape.len()];
        for &axis in &self.axes {
            reduced[resolve_axis("MeanVarianceNormalization", axis, shape.len())?] = true;
        }
        let mut groups = vec![0usize];
        let mut count = 1;
        for (&dim, &reduced) in shape.iter().zip(&reduced) {
            let scale = if reduced { 1 } else { dim };
            groups = groups
                .iter()
                .flat_map(|&group| {
                    (0..dim).map(move |at| group * scale + if reduced { 0 } else { at })
                })
                .collect();
            count *= scale;
        }
        Ok((groups, count))
    }
}

impl Operator for MeanVariance {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (groups, count) = self.group_of(input.shape())?;
        let mut values = wide(input)?.into_owned();
        let members = (values.len() / count.max(1)) as f64;
        let mean = |values: &[f64]| {
            let mut sums = vec![0.0; count];
            groups.iter().zip(values).for_each(|(&group, value)| sums[group] += value);
            sums.iter_mut().for_each(|sum| *sum /= members);
            sums
        };
        let means = mean(&values);
        values.iter_mut().zip(&groups).for_each(|(value, &group)| *value -= means[group]);
        let squares: Vec<f64> = values.iter().map(|value| value * value).collect();
        let variances = mean(&squares);
        // The standard adds 1e-9 to the deviation so that constants give 0.
        values
            .iter_mut()
            .zip(&groups)
            .for_each(|(value, &group)| *value /= variances[group].sqrt() + 1e-9);
        Ok(smallvec![from_wide(input.shape(), values, input.dtype())?.into()])
    }
}
