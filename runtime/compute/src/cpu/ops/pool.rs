//! Pooling over 1 to 3 spatial dimensions.

mod max_rows;

use super::window::{Window, WindowAttributes};
use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use mortise_types::{DType, Element, Error, NodeDef, Result, Tensor, bf16, f16};
use smallvec::smallvec;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "MaxPool", since: 1, build: MaxPool::build },
    Entry { op: "AveragePool", since: 1, build: AveragePool::build },
    Entry { op: "LpPool", since: 2, build: LpPool::build },
    Entry { op: "GlobalMaxPool", since: 1, build: |_| Ok(Box::new(Global(Reduction::Max))) },
    Entry { op: "GlobalAveragePool", since: 1, build: |_| Ok(Box::new(Global(Reduction::Mean))) },
    Entry { op: "GlobalLpPool", since: 2, build: build_global_lp },
];

/// How the elements under a window become one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reduction {
    Max,
    Mean,
    /// `(Σ |x|^p)^(1/p)`
    Lp(f64),
}

impl Reduction {
    fn reduce(self, values: impl Iterator<Item = f64>, divisor: usize) -> f64 {
        match self {
            Self::Max => values.fold(f64::NEG_INFINITY, |max, value| {
                if value > max || value.is_nan() { value } else { max }
            }),
            Self::Mean => values.sum::<f64>() / divisor as f64,
            Self::Lp(p) => values.map(|value| value.abs().powf(p)).sum::<f64>().powf(1.0 / p),
        }
    }
}

/// Conversion through f64, exact for every float type.
trait Wide: Element {
    fn widen(self) -> f64;
    fn narrow(value: f64) -> Self;
}

macro_rules! wide {
    ($($ty:ty: $widen:expr, $narrow:expr;)*) => {
        $(impl Wide for $ty {
            fn widen(self) -> f64 { $widen(self) }
            fn narrow(value: f64) -> Self { $narrow(value) }
        })*
    };
}

wide! {
    f32: f64::from, |value| value as f32;
    f64: |value| value, |value| value;
    f16: f16::to_f64, f16::from_f64;
    bf16: bf16::to_f64, bf16::from_f64;
    i8: f64::from, |value| value as i8;
    u8: f64::from, |value| value as u8;
}

struct MaxPool {
    window: WindowAttributes,
    column_major: bool,
}

impl MaxPool {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let column_major = Attributes(node).int_or("storage_order", 0)? != 0;
        Ok(Box::new(Self { window: WindowAttributes::parse(node)?, column_major }))
    }

    fn typed<T: Element + Copy>(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        window: &Window,
    ) -> Result<Outputs> {
        let shape = pooled_shape(input, window);
        let mut output = ctx.allocate(T::DTYPE, &shape)?;
        if ctx.output_count <= 1 && window.rank() == 2 && max_rows::sees_input(window) {
            max_rows::pool(ctx, input.as_slice::<T>()?, window, output.as_mut_slice::<T>()?)?;
            return Ok(smallvec![output.into()]);
        }
        let mut indices = match ctx.output_count {
            0 | 1 => None,
            _ => Some(ctx.allocate(DType::I64, &shape)?),
        };
        let walk = Walk::new(ctx, input, window);
        let column_major = self.column_major;
        let index_slice = indices.as_mut().map(|t| t.as_mut_slice::<i64>()).transpose()?;
        max_planes(
            &walk,
            input.as_slice::<T>()?,
            output.as_mut_slice::<T>()?,
            index_slice,
            column_major,
        )?;
        Ok(std::iter::once(output).chain(indices).map(Into::into).collect())
    }
}

impl Operator for MaxPool {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let window = self.window.resolve(spatial(input)?, None)?;
        match input.dtype() {
            DType::F32 => self.typed::<f32>(ctx, input, &window),
            DType::F64 => self.typed::<f64>(ctx, input, &window),
            DType::F16 => self.typed::<f16>(ctx, input, &window),
            DType::BF16 => self.typed::<bf16>(ctx, input, &window),
            DType::I8 => self.typed::<i8>(ctx, input, &window),
            DType::U8 => self.typed::<u8>(ctx, input, &window),
            dtype => Err(Error::unsupported(format!("MaxPool of {dtype}"))),
        }
    }
}

/// The largest element under each window, NaN winning, and where it lies in
/// the whole input when `indices` are wanted.
fn max_planes<T: Element + Copy>(
    walk: &Walk<'_>,
    input: &[T],
    output: &mut [T],
    mut indices: Option<&mut [i64]>,
    column_major: bool,
) -> Result<()> {
    walk.for_each(|plane, out, sources| {
        let mut best: Option<(usize, T)> = None;
        for source in sources {
            let value = input[plane * walk.plane_len + source];
            if best.is_none_or(|(_, best)| replaces(value, best)) {
                best = Some((source, value));
            }
        }
        let (source, value) =
            best.ok_or_else(|| Error::invalid("MaxPool: a window lies wholly in the padding"))?;
        output[out] = value;
        if let Some(indices) = &mut indices {
            let at = if column_major { walk.column_major(source) } else { source };
            indices[out] = (plane * walk.plane_len + at) as i64;
        }
        Ok(())
    })
}

/// Whether `value` is larger than `best`, a NaN being larger than anything.
fn replaces<T: Element>(value: T, best: T) -> bool {
    match value.partial_cmp(&best) {
        Some(order) => order.is_gt(),
        // One of them is NaN: if it is the best already, it stays.
        None => best.partial_cmp(&best).is_some(),
    }
}

struct AveragePool {
    window: WindowAttributes,
    include_pad: bool,
}

impl AveragePool {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let include_pad = Attributes(node).int_or("count_include_pad", 0)? != 0;
        Ok(Box::new(Self { window: WindowAttributes::parse(node)?, include_pad }))
    }
}

impl Operator for AveragePool {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let window = self.window.resolve(spatial(input)?, None)?;
        reduce_windows(ctx, input, &window, Reduction::Mean, self.include_pad)
    }
}

struct LpPool {
    window: WindowAttributes,
    p: f64,
}

impl LpPool {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self { window: WindowAttributes::parse(node)?, p: parse_p(node)? }))
    }
}

impl Operator for LpPool {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let window = self.window.resolve(spatial(input)?, None)?;
        reduce_windows(ctx, input, &window, Reduction::Lp(self.p), false)
    }
}

fn parse_p(node: &NodeDef) -> Result<f64> {
    let p = Attributes(node).int_or("p", 2)?;
    if p < 1 {
        return Err(Error::invalid(format!("{}: p must be at least 1", node.describe())));
    }
    Ok(p as f64)
}

fn build_global_lp(node: &NodeDef) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Global(Reduction::Lp(parse_p(node)?))))
}

fn reduce_windows(
    ctx: &OpContext<'_>,
    input: &Tensor,
    window: &Window,
    reduction: Reduction,
    include_pad: bool,
) -> Result<Outputs> {
    let output = match input.dtype() {
        DType::F32 => windows_of::<f32>(ctx, input, window, reduction, include_pad)?,
        DType::F64 => windows_of::<f64>(ctx, input, window, reduction, include_pad)?,
        DType::F16 => windows_of::<f16>(ctx, input, window, reduction, include_pad)?,
        DType::BF16 => windows_of::<bf16>(ctx, input, window, reduction, include_pad)?,
        dtype => return Err(Error::unsupported(format!("pooling of {dtype}"))),
    };
    Ok(smallvec![output.into()])
}

fn windows_of<T: Wide>(
    ctx: &OpContext<'_>,
    input: &Tensor,
    window: &Window,
    reduction: Reduction,
    include_pad: bool,
) -> Result<Tensor> {
    let mut output = ctx.allocate(T::DTYPE, &pooled_shape(input, window))?;
    let data = input.as_slice::<T>()?;
    let out_data = output.as_mut_slice::<T>()?;
    let walk = Walk::new(ctx, input, window);
    walk.for_each(|plane, out, sources| {
        let divisor = if include_pad {
            walk.padded_count(out % walk.positions)
        } else {
            sources.clone().count()
        };
        let values = sources.map(|source| data[plane * walk.plane_len + source].widen());
        out_data[out] = T::narrow(reduction.reduce(values, divisor));
        Ok(())
    })?;
    Ok(output)
}

/// Reduces all spatial dimensions to size 1.
struct Global(Reduction);

impl Operator for Global {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let output = match input.dtype() {
            DType::F32 => global_of::<f32>(ctx, input, self.0)?,
            DType::F64 => global_of::<f64>(ctx, input, self.0)?,
            DType::F16 => global_of::<f16>(ctx, input, self.0)?,
            DType::BF16 => global_of::<bf16>(ctx, input, self.0)?,
            dtype => return Err(Error::unsupported(format!("global pooling of {dtype}"))),
        };
        Ok(smallvec![output.into()])
    }
}

fn global_of<T: Wide>(ctx: &OpContext<'_>, input: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let plane: usize = spatial(input)?.iter().product();
    let mut shape = input.shape().to_vec();
    shape[2..].fill(1);
    let mut output = ctx.allocate(T::DTYPE, &shape)?;
    if plane == 0 {
        return Err(Error::invalid("global pooling of an empty image"));
    }
    let data = input.as_slice::<T>()?;
    for (out, plane) in output.as_mut_slice::<T>()?.iter_mut().zip(data.chunks_exact(plane)) {
        let values = plane.iter().map(|value| value.widen());
        *out = T::narrow(reduction.reduce(values, plane.len()));
    }
    Ok(output)
}

fn spatial(input: &Tensor) -> Result<&[usize]> {
    input.shape().get(2..).filter(|dims| !dims.is_empty()).ok_or_else(|| {
        Error::invalid(format!("pooling needs [N, C, D...], got {:?}", input.shape()))
    })
}

fn pooled_shape(input: &Tensor, window: &Window) -> Vec<usize> {
    input.shape()[..2].iter().chain(&window.output).copied().collect()
}

/// Visits every output position of every plane with the input elements under
/// its window, as offsets into the plane.
struct Walk<'a> {
    ctx: &'a OpContext<'a>,
    window: Window,
    planes: usize,
    plane_len: usize,
    positions: usize,
}

/// In-bounds coordinates along one axis: `start`, step, count.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    step: usize,
    count: usize,
}

impl<'a> Walk<'a> {
    fn new(ctx: &'a OpContext<'a>, input: &Tensor, window: &Window) -> Self {
        let window = window.lifted(3);
        Self {
            ctx,
            planes: input.shape()[..2].iter().product(),
            plane_len: window.input.iter().product(),
            positions: window.output.iter().product(),
            window,
        }
    }

    fn for_each(
        &self,
        mut visit: impl FnMut(usize, usize, SourceIter) -> Result<()>,
    ) -> Result<()> {
        if self.plane_len == 0 {
            return Err(Error::invalid("pooling of an empty image"));
        }
        let spans: Vec<[Span; 3]> = (0..self.positions).map(|at| self.spans(at)).collect();
        for plane in 0..self.planes {
            self.ctx.control.check()?;
            for (at, span) in spans.iter().enumerate() {
                let sources = SourceIter::new(*span, self.window.input[1], self.window.input[2]);
                visit(plane, plane * self.positions + at, sources)?;
            }
        }
        Ok(())
    }

    fn coordinates(&self, at: usize) -> [usize; 3] {
        let [height, width] = [self.window.output[1], self.window.output[2]];
        [at / (height * width), at / width % height, at % width]
    }

    fn spans(&self, at: usize) -> [Span; 3] {
        let coordinates = self.coordinates(at);
        std::array::from_fn(|axis| self.span(axis, coordinates[axis]))
    }

    fn span(&self, axis: usize, out: usize) -> Span {
        let inside = |tap: &usize| self.window.source(axis, out, *tap).is_some();
        let mut taps = (0..self.window.kernel[axis]).filter(inside);
        let first = taps.next();
        let count = first.map_or(0, |_| 1 + taps.count());
        let start = first.and_then(|tap| self.window.source(axis, out, tap)).unwrap_or(0);
        Span { start, step: self.window.dilations[axis], count }
    }

    /// Elements under the window, padding included but not what overhangs it.
    fn padded_count(&self, at: usize) -> usize {
        let coordinates = self.coordinates(at);
        (0..3).map(|axis| self.padded_along(axis, coordinates[axis])).product()
    }

    fn padded_along(&self, axis: usize, out: usize) -> usize {
        let end = self.window.input[axis] as i64 + self.window.pads.end[axis];
        let start = (out * self.window.strides[axis]) as i64 - self.window.pads.begin[axis];
        (0..self.window.kernel[axis])
            .filter(|tap| start + ((tap * self.window.dilations[axis]) as i64) < end)
            .count()
    }

    /// The offset that `source` has when spatial dimensions are stored in
    /// reverse order, as `storage_order = 1` asks.
    fn column_major(&self, source: usize) -> usize {
        let [depth, height, width] =
            [self.window.input[0], self.window.input[1], self.window.input[2]];
        let (z, y, x) = (source / (height * width), source / width % height, source % width);
        (x * height + y) * depth + z
    }
}

/// Offsets of the in-bounds elements under one window, row-major.
#[derive(Clone)]
struct SourceIter {
    spans: [Span; 3],
    height: usize,
    width: usize,
    next: [usize; 3],
}

impl SourceIter {
    fn new(spans: [Span; 3], height: usize, width: usize) -> Self {
        let empty = spans.iter().any(|span| span.count == 0);
        Self { spans, height, width, next: [if empty { spans[0].count } else { 0 }, 0, 0] }
    }
}

impl Iterator for SourceIter {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next[0] >= self.spans[0].count {
            return None;
        }
        let at = |axis: usize| self.spans[axis].start + self.next[axis] * self.spans[axis].step;
        let offset = (at(0) * self.height + at(1)) * self.width + at(2);
        self.next[2] += 1;
        if self.next[2] == self.spans[2].count {
            self.next[2] = 0;
            self.next[1] += 1;
        }
        if self.next[1] == self.spans[1].count {
            self.next[1] = 0;
            self.next[0] += 1;
        }
        Some(offset)
    }
}
