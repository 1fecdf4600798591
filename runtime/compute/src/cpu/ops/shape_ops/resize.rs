//! `Resize` and `Upsample`: samples at other positions.
//!
//! Interpolation is separable: each axis has, for every position of the
//! output, a few positions of the input and their weights.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{
    axes, by_dtype, cells, cells_mut, copy_blocks, dim, element_count, floats, integers, strides,
};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::{SmallVec, smallvec};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// Where a position of the output lies in the input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    TfHalfPixelForNearest,
    AlignCorners,
    Asymmetric,
    CropAndResize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
    /// As before opset 11: up when shrinking, down when growing.
    Simple,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Stretch,
    NotLarger,
    NotSmaller,
}

pub(super) struct Resize {
    mode: Mode,
    coordinates: Coordinates,
    rounding: Rounding,
    cubic_a: f32,
    exclude_outside: bool,
    extrapolation: f32,
    antialias: bool,
    aspect: Aspect,
    axes: Option<Vec<i64>>,
    scales: Option<Vec<f32>>,
    /// Which inputs hold the region, the scales and the sizes.
    positions: [Option<usize>; 3],
}

/// Further outside of the input than any kernel reaches.
const FAR: f32 = (1u32 << 24) as f32;

/// One axis of the way from input to output.
#[derive(Clone, Copy)]
struct Axis {
    old: usize,
    new: usize,
    scale: f32,
    region: [f32; 2],
}

impl Resize {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        if node.opset < 11 {
            return Self::build_simple(&attributes, [None, Some(1), None]);
        }
        Ok(Box::new(Self {
            mode: mode(&attributes)?,
            coordinates: coordinates(&attributes)?,
            rounding: rounding(&attributes)?,
            cubic_a: attributes.float_or("cubic_coeff_a", -0.75)?,
            exclude_outside: attributes.int_or("exclude_outside", 0)? != 0,
            extrapolation: attributes.float_or("extrapolation_value", 0.0)?,
            antialias: attributes.int_or("antialias", 0)? != 0,
            aspect: match attributes.text("keep_aspect_ratio_policy")?.unwrap_or("stretch") {
                "stretch" => Aspect::Stretch,
                "not_larger" => Aspect::NotLarger,
                "not_smaller" => Aspect::NotSmaller,
                other => {
                    return Err(Error::unsupported(format!(
                        "keep_aspect_ratio_policy \"{other}\""
                    )));
                }
            },
            axes: attributes.ints("axes")?.map(<[i64]>::to_vec),
            scales: None,
            positions: [Some(1), Some(2), Some(3)],
        }))
    }

    pub(super) fn build_upsample(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let position = if node.opset < 9 { None } else { Some(1) };
        Self::build_simple(&Attributes(node), [None, position, None])
    }

    fn build_simple(
        attributes: &Attributes<'_>,
        positions: [Option<usize>; 3],
    ) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self {
            mode: mode(attributes)?,
            coordinates: Coordinates::Asymmetric,
            rounding: Rounding::Simple,
            cubic_a: -0.75,
            exclude_outside: false,
            extrapolation: 0.0,
            antialias: false,
            aspect: Aspect::Stretch,
            axes: None,
            scales: attributes.floats("scales")?.map(<[f32]>::to_vec),
            positions,
        }))
    }

    fn input<'a>(&self, inputs: &'a Inputs<'_>, which: usize) -> Result<Option<&'a Tensor>> {
        match self.positions[which] {
            Some(position) => Ok(inputs.optional(position)?.filter(|tensor| !tensor.is_empty())),
            None => Ok(None),
        }
    }

    fn plan(&self, inputs: &Inputs<'_>, shape: &[usize]) -> Result<Vec<Axis>> {
        let named = match &self.axes {
            Some(list) => axes(list, shape.len())?,
            None => (0..shape.len()).collect(),
        };
        let fits = |count: usize, what: &str| {
            if count == named.len() {
                return Ok(());
            }
            Err(Error::invalid(format!("{count} {what} for {} axes", named.len())))
        };
        let mut plan: Vec<Axis> = shape
            .iter()
            .map(|&old| Axis { old, new: old, scale: 1.0, region: [0.0, 1.0] })
            .collect();
        if self.coordinates == Coordinates::CropAndResize
            && let Some(region) = self.input(inputs, 0)?
        {
            let region = floats(region)?;
            fits(region.len() / 2, "regions")?;
            for (item, &along) in named.iter().enumerate() {
                plan[along].region = [region[item], region[item + named.len()]];
            }
        }
        let scales = match (&self.scales, self.input(inputs, 1)?) {
            (Some(list), _) => Some(list.clone()),
            (None, Some(tensor)) => Some(floats(tensor)?.into_owned()),
            (None, None) => None,
        };
        if let Some(scales) = scales {
            fits(scales.len(), "scales")?;
            for (&along, &scale) in named.iter().zip(&scales) {
                plan[along].by_scale(scale)?;
            }
            return Ok(plan);
        }
        let sizes = self.input(inputs, 2)?;
        let sizes = sizes.ok_or_else(|| Error::invalid("neither scales nor sizes are given"))?;
        let sizes = integers(sizes)?;
        fits(sizes.len(), "sizes")?;
        self.by_sizes(&mut plan, &named, &sizes)?;
        Ok(plan)
    }

    fn by_sizes(&self, plan: &mut [Axis], named: &[usize], sizes: &[i64]) -> Result<()> {
        let ratios = named
            .iter()
            .zip(sizes)
            .map(|(&along, &size)| dim(size).map(|size| size as f32 / plan[along].old as f32));
        let ratios: SmallVec<[f32; 6]> = ratios.collect::<Result<_>>()?;
        let common = match self.aspect {
            Aspect::Stretch => None,
            Aspect::NotLarger => Some(ratios.iter().copied().fold(f32::INFINITY, f32::min)),
            Aspect::NotSmaller => Some(ratios.iter().copied().fold(0.0, f32::max)),
        };
        for ((&along, &size), &ratio) in named.iter().zip(sizes).zip(&ratios) {
            let axis = &mut plan[along];
            axis.scale = common.unwrap_or(ratio);
            axis.new = match common {
                Some(scale) => (scale * axis.old as f32).round() as usize,
                None => dim(size)?,
            };
        }
        Ok(())
    }

    /// Where position `x` of the output lies along the input.
    fn original(&self, axis: &Axis, x: usize) -> f32 {
        let (old, new, x, scale) = (axis.old as f32, axis.new as f32, x as f32, axis.scale);
        if scale == 1.0 && self.coordinates != Coordinates::CropAndResize {
            return x;
        }
        match self.coordinates {
            Coordinates::HalfPixel => (x + 0.5) / scale - 0.5,
            Coordinates::HalfPixelSymmetric => {
                let adjustment = new / (scale * old);
                old / 2.0 * (1.0 - adjustment) + (x + 0.5) / scale - 0.5
            }
            Coordinates::PytorchHalfPixel if axis.new <= 1 => 0.0,
            Coordinates::PytorchHalfPixel => (x + 0.5) / scale - 0.5,
            Coordinates::TfHalfPixelForNearest => (x + 0.5) / scale,
            Coordinates::AlignCorners if axis.new <= 1 => 0.0,
            Coordinates::AlignCorners => x * (old - 1.0) / (new - 1.0),
            Coordinates::Asymmetric => x / scale,
            Coordinates::CropAndResize => {
                let [start, end] = axis.region;
                if axis.new > 1 {
                    start * (old - 1.0) + x * (end - start) * (old - 1.0) / (new - 1.0)
                } else {
                    0.5 * (start + end) * (old - 1.0)
                }
            }
        }
    }

    /// The region may reach beyond the input; there the answer is a constant.
    fn is_outside(&self, axis: &Axis, at: f32) -> bool {
        self.coordinates == Coordinates::CropAndResize && (at < 0.0 || at > axis.old as f32 - 1.0)
    }

    fn nearest(&self, axis: &Axis, at: f32) -> usize {
        let rounded = match self.rounding {
            Rounding::PreferFloor if at == at.trunc() + 0.5 => at.floor(),
            Rounding::PreferFloor => at.round(),
            Rounding::PreferCeil => at.round(),
            Rounding::Floor => at.floor(),
            Rounding::Ceil => at.ceil(),
            Rounding::Simple if axis.scale < 1.0 => at.ceil(),
            Rounding::Simple => at.trunc(),
        };
        (rounded.max(0.0) as usize).min(axis.old.saturating_sub(1))
    }

    fn taps(&self, axis: &Axis) -> Taps {
        let mut taps = Taps { starts: vec![0], entries: Vec::new() };
        for x in 0..axis.new {
            // Far outside is as good as anywhere outside.
            let at = self.original(axis, x).clamp(-FAR, axis.old as f32 + FAR);
            if self.antialias && axis.scale < 1.0 {
                self.push_antialiased(&mut taps, axis, at);
            } else if self.mode == Mode::Linear {
                push_linear(&mut taps, axis, at);
            } else {
                self.push_cubic(&mut taps, axis, at);
            }
            taps.starts.push(taps.entries.len());
        }
        taps
    }

    fn push_cubic(&self, taps: &mut Taps, axis: &Axis, at: f32) {
        let first = at.floor();
        let weights: [f32; 4] = std::array::from_fn(|k| self.cubic(at - (first + k as f32 - 1.0)));
        let last = axis.old as i64 - 1;
        let inside = |k: usize| (0..=last).contains(&(first as i64 + k as i64 - 1));
        let total = if self.exclude_outside {
            (0..4).filter(|&k| inside(k)).map(|k| weights[k]).sum()
        } else {
            1.0
        };
        for (k, weight) in weights.iter().enumerate() {
            if inside(k) || !self.exclude_outside {
                let position = (first as i64 + k as i64 - 1).clamp(0, last);
                taps.entries.push((position as usize, weight / total));
            }
        }
    }

    /// Keys' cubic convolution kernel.
    fn cubic(&self, distance: f32) -> f32 {
        let (a, d) = (self.cubic_a, distance.abs());
        if d <= 1.0 {
            ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
        } else if d < 2.0 {
            ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
        } else {
            0.0
        }
    }

    /// The same kernels, widened so that every input counts.
    fn push_antialiased(&self, taps: &mut Taps, axis: &Axis, at: f32) {
        let radius = if self.mode == Mode::Linear { 1.0 } else { 2.0 } / axis.scale;
        let last = axis.old as i64 - 1;
        let (low, high) = ((at - radius).floor() as i64, (at + radius).ceil() as i64);
        let first = taps.entries.len();
        for position in low..=high {
            let distance = (at - position as f32) * axis.scale;
            let weight = match self.mode {
                Mode::Linear => (1.0 - distance.abs()).max(0.0),
                _ => self.cubic(distance),
            };
            if weight != 0.0 && (!self.exclude_outside || (0..=last).contains(&position)) {
                taps.entries.push((position.clamp(0, last) as usize, weight));
            }
        }
        let added = &mut taps.entries[first..];
        let total: f32 = added.iter().map(|entry| entry.1).sum();
        added.iter_mut().for_each(|entry| entry.1 /= total);
    }

    fn run_nearest(
        &self,
        ctx: &OpContext<'_>,
        input: &Tensor,
        plan: &[Axis],
        shape: &[usize],
    ) -> Result<Tensor> {
        let steps = strides(input.shape());
        let sources: Vec<Vec<usize>> = plan
            .iter()
            .zip(&steps)
            .map(|(axis, step)| {
                (0..axis.new).map(|x| self.nearest(axis, self.original(axis, x)) * step).collect()
            })
            .collect();
        let mut index: SmallVec<[usize; 6]> = smallvec![0; shape.len()];
        copy_blocks(ctx, input, shape, 1, |_| {
            let from = index.iter().zip(&sources).map(|(&x, source)| source[x]).sum();
            for item in (0..index.len()).rev() {
                index[item] += 1;
                if index[item] < shape[item] {
                    break;
                }
                index[item] = 0;
            }
            Ok(from)
        })
    }

    fn run_weighted(&self, ctx: &OpContext<'_>, input: &Tensor, plan: &[Axis]) -> Result<Tensor> {
        let mut current = as_floats(ctx, input)?;
        for (along, axis) in plan.iter().enumerate() {
            let changes = axis.scale != 1.0 || axis.new != axis.old;
            if changes || self.coordinates == Coordinates::CropAndResize {
                ctx.control.check()?;
                current = resample(ctx, &current, along, &self.taps(axis))?;
            }
        }
        from_floats(ctx, current, input.dtype())
    }

    /// Puts the constant wherever a position lies outside the input.
    fn extrapolate(&self, plan: &[Axis], output: &mut Tensor) -> Result<()> {
        let shape: Shape = output.shape().into();
        for (along, axis) in plan.iter().enumerate() {
            let inner: usize = shape[along + 1..].iter().product();
            for x in 0..axis.new {
                if self.is_outside(axis, self.original(axis, x)) {
                    by_dtype!(output.dtype(), [F32: f32, F64: f64, I32: i32, U8: u8, I8: i8], T => {
                        let rows = output.as_mut_slice::<T>()?.chunks_exact_mut(axis.new * inner);
                        for row in rows {
                            row[x * inner..(x + 1) * inner].fill(self.extrapolation as T);
                        }
                        Ok(())
                    })?;
                }
            }
        }
        Ok(())
    }
}

impl Axis {
    fn by_scale(&mut self, scale: f32) -> Result<()> {
        let new = (scale * self.old as f32).floor();
        if !(scale > 0.0 && new < (1u64 << 31) as f32) {
            return Err(Error::invalid(format!("a scale cannot be {scale}")));
        }
        (self.scale, self.new) = (scale, new as usize);
        Ok(())
    }
}

impl Operator for Resize {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let plan = self.plan(&inputs, input.shape())?;
        let shape: Shape = plan.iter().map(|axis| axis.new).collect();
        if element_count(&shape)? == 0 || input.is_empty() {
            return match element_count(&shape)? {
                0 => Ok(smallvec![ctx.allocate(input.dtype(), &shape)?.into()]),
                _ => Err(Error::invalid(format!("cannot resize {:?} to {shape:?}", input.shape()))),
            };
        }
        // Fails early when the answer alone is too large.
        drop(ctx.allocate(input.dtype(), &shape)?);
        let mut output = match self.mode {
            Mode::Nearest => self.run_nearest(ctx, input, &plan, &shape)?,
            Mode::Linear | Mode::Cubic => self.run_weighted(ctx, input, &plan)?,
        };
        if self.coordinates == Coordinates::CropAndResize {
            if output.mut_bytes().is_none() {
                output = copy_of(ctx, &output)?;
            }
            self.extrapolate(&plan, &mut output)?;
        }
        Ok(smallvec![output.into()])
    }
}

fn copy_of(ctx: &OpContext<'_>, tensor: &Tensor) -> Result<Tensor> {
    let mut copy = ctx.allocate(tensor.dtype(), tensor.shape())?;
    cells_mut::<u8>(&mut copy)?.copy_from_slice(cells::<u8>(tensor)?);
    Ok(copy)
}

fn mode(attributes: &Attributes<'_>) -> Result<Mode> {
    match attributes.text("mode")?.unwrap_or("nearest") {
        "nearest" => Ok(Mode::Nearest),
        "linear" | "bilinear" => Ok(Mode::Linear),
        "cubic" => Ok(Mode::Cubic),
        other => Err(Error::unsupported(format!("mode \"{other}\""))),
    }
}

fn coordinates(attributes: &Attributes<'_>) -> Result<Coordinates> {
    match attributes.text("coordinate_transformation_mode")?.unwrap_or("half_pixel") {
        "half_pixel" => Ok(Coordinates::HalfPixel),
        "half_pixel_symmetric" => Ok(Coordinates::HalfPixelSymmetric),
        "pytorch_half_pixel" => Ok(Coordinates::PytorchHalfPixel),
        "tf_half_pixel_for_nn" => Ok(Coordinates::TfHalfPixelForNearest),
        "align_corners" => Ok(Coordinates::AlignCorners),
        "asymmetric" => Ok(Coordinates::Asymmetric),
        "tf_crop_and_resize" => Ok(Coordinates::CropAndResize),
        other => Err(Error::unsupported(format!("coordinate_transformation_mode \"{other}\""))),
    }
}

fn rounding(attributes: &Attributes<'_>) -> Result<Rounding> {
    match attributes.text("nearest_mode")?.unwrap_or("round_prefer_floor") {
        "round_prefer_floor" => Ok(Rounding::PreferFloor),
        "round_prefer_ceil" => Ok(Rounding::PreferCeil),
        "floor" => Ok(Rounding::Floor),
        "ceil" => Ok(Rounding::Ceil),
        other => Err(Error::unsupported(format!("nearest_mode \"{other}\""))),
    }
}

/// For every position of an output axis, positions of the input and weights.
struct Taps {
    /// Where each position's entries start; one more for the end.
    starts: Vec<usize>,
    entries: Vec<(usize, f32)>,
}

fn push_linear(taps: &mut Taps, axis: &Axis, at: f32) {
    let last = axis.old - 1;
    let at = at.clamp(0.0, last as f32);
    let low = (at as usize).min(last);
    let share = at - low as f32;
    taps.entries.push((low, 1.0 - share));
    if share > 0.0 {
        taps.entries.push(((low + 1).min(last), share));
    }
}

fn resample(ctx: &OpContext<'_>, input: &Tensor, along: usize, taps: &Taps) -> Result<Tensor> {
    let mut shape: Shape = input.shape().into();
    let (old, new) = (shape[along], taps.starts.len() - 1);
    shape[along] = new;
    let inner: usize = shape[along + 1..].iter().product();
    let mut output = ctx.allocate(DType::F32, &shape)?;
    let source = input.as_slice::<f32>()?;
    let planes = output.as_mut_slice::<f32>()?.chunks_exact_mut(new * inner);
    for (plane, source) in planes.zip(source.chunks_exact(old * inner)) {
        for (x, line) in plane.chunks_exact_mut(inner).enumerate() {
            line.fill(0.0);
            for &(position, weight) in &taps.entries[taps.starts[x]..taps.starts[x + 1]] {
                let from = &source[position * inner..(position + 1) * inner];
                line.iter_mut().zip(from).for_each(|(cell, value)| *cell += weight * value);
            }
        }
    }
    Ok(output)
}

fn as_floats(ctx: &OpContext<'_>, input: &Tensor) -> Result<Tensor> {
    if input.dtype() == DType::F32 {
        return Ok(input.clone());
    }
    let mut output = ctx.allocate(DType::F32, input.shape())?;
    output.as_mut_slice::<f32>()?.copy_from_slice(&floats(input)?);
    Ok(output)
}

fn from_floats(ctx: &OpContext<'_>, values: Tensor, dtype: DType) -> Result<Tensor> {
    if dtype == DType::F32 {
        return Ok(values);
    }
    let mut output = ctx.allocate(dtype, values.shape())?;
    by_dtype!(dtype, [F64: f64, I32: i32, I64: i64, U8: u8, I8: i8], T => {
        let cells = output.as_mut_slice::<T>()?.iter_mut();
        cells.zip(values.as_slice::<f32>()?).for_each(|(cell, &value)| *cell = value as T);
        Ok(())
    })?;
    Ok(output)
}
