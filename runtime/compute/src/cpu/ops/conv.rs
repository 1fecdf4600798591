//! Convolution and transposed convolution over 1 to 3 spatial dimensions.
//!
//! Up to two dimensions in f32 run as a matrix product of the weights with a
//! virtual im2col matrix; pointwise ones as a plain product; depthwise ones
//! directly. Everything else (3-D, f64, f16) unrolls patches explicitly.

mod winograd;

use super::elementwise::{Activation, writable};
use super::matmul::fused_activation;
use super::window::{AutoPad, Dims, Pads, Window, WindowAttributes};
use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::wide::{Loop, widest};
use mortise_types::{DType, Error, NodeDef, Result, Tensor, Value, bf16, f16};
use rten_gemm::{
    ColOffsets, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, Im2Col, PackedAMatrix,
    RowOffsets,
};
use rten_tensor::{Matrix, NdTensorView};
use smallvec::smallvec;
use winograd::Winograd;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "Conv", since: 1, build: Conv::build },
    Entry { op: "ConvTranspose", since: 1, build: ConvTranspose::build },
];

/// `FusedConv` of `com.microsoft`, which the planner writes, too.
pub(crate) const FUSED_ENTRIES: &[Entry] =
    &[Entry { op: "FusedConv", since: 1, build: Conv::build_fused }];

thread_local! {
    /// The executor only names a kernel, but is not `Send`.
    static GEMM: GemmExecutor = GemmExecutor::new();
}

struct Conv {
    window: WindowAttributes,
    groups: usize,
    /// Weights of each group, packed at compile time when they are constant.
    packed: Vec<PackedAMatrix<f32>>,
    /// In place of `packed` where it is faster for most images.
    winograd: Option<Winograd>,
    activation: Option<Activation>,
}

/// Sizes of one convolution, checked against each other.
struct Geometry {
    batch: usize,
    groups: usize,
    /// Input and output channels of one group.
    in_channels: usize,
    out_channels: usize,
    window: Window,
}

impl Conv {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self {
            window: WindowAttributes::parse(node)?,
            groups: parse_groups(node)?,
            packed: Vec::new(),
            winograd: None,
            activation: None,
        }))
    }

    /// With a tensor that is added to the sums, and an activation.
    fn build_fused(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self {
            window: WindowAttributes::parse(node)?,
            groups: parse_groups(node)?,
            packed: Vec::new(),
            winograd: None,
            activation: fused_activation(&Attributes(node))?,
        }))
    }

    fn geometry(&self, input: &Tensor, weights: &Tensor) -> Result<Geometry> {
        let (x, w) = (input.shape(), weights.shape());
        let fits = x.len() >= 3
            && w.len() == x.len()
            && w[1].checked_mul(self.groups) == Some(x[1])
            && w[0].is_multiple_of(self.groups);
        if !fits {
            return Err(Error::invalid(format!(
                "Conv: input {x:?} and weights {w:?} do not fit with group = {}",
                self.groups
            )));
        }
        Ok(Geometry {
            batch: x[0],
            groups: self.groups,
            in_channels: w[1],
            out_channels: w[0] / self.groups,
            window: self.window.resolve(&x[2..], Some(&w[2..]))?,
        })
    }

    fn run_f32(
        &self,
        ctx: &OpContext<'_>,
        geometry: &Geometry,
        tensors: Operands<'_>,
        added: Option<Tensor>,
    ) -> Result<Tensor> {
        let operands = Slices {
            x: tensors.input.as_slice::<f32>()?,
            w: tensors.weights.as_slice::<f32>()?,
            bias: tensors.bias.map(Tensor::as_slice::<f32>).transpose()?,
            adds: added.is_some(),
        };
        let mut output = match added {
            Some(added) => writable(ctx, added)?,
            None => ctx.allocate(DType::F32, &geometry.output_shape())?,
        };
        let out = output.as_mut_slice::<f32>()?;
        if geometry.is_depthwise() && geometry.window.rank() <= 2 {
            depthwise(ctx, geometry, &operands, out)?;
            self.activate(out);
        } else if let Some(winograd) =
            self.winograd.as_ref().filter(|_| fits_winograd(geometry, &operands))
        {
            self.by_winograd(ctx, winograd, geometry, &operands, out)?;
        } else if geometry.window.rank() <= 2 && operands.x.len() < i32::MAX as usize {
            self.by_im2col(ctx, geometry, &operands, out)?;
        } else {
            self.by_unrolling(ctx, geometry, &operands, out)?;
        }
        Ok(output)
    }

    /// Weights `[out, in * taps]` times the virtual patch matrix
    /// `[in * taps, positions]`, for each image and group.
    fn by_im2col(
        &self,
        ctx: &OpContext<'_>,
        geometry: &Geometry,
        operands: &Slices<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let window = geometry.window.lifted(2);
        let image_len = geometry.image_len();
        let mut patches = (!window.is_pointwise())
            .then(|| {
                let plan = Im2ColPlan::new(&window, geometry.in_channels)?;
                plan.over(slice(operands.x, 0, image_len)?)
            })
            .transpose()?;
        let image_shape = [geometry.in_channels, window.input[0], window.input[1]];
        for (block, out_block) in geometry.blocks(out) {
            ctx.control.check()?;
            let image = slice(operands.x, block * image_len, image_len)?;
            let group = block % geometry.groups;
            match &mut patches {
                None => {
                    let b = matrix(geometry.in_channels, geometry.positions(), image)?;
                    self.product(geometry, operands, group, GemmInputB::Unpacked(b), out_block)?;
                }
                Some(patches) => {
                    patches.image = image_view(image_shape, image)?;
                    let b = GemmInputB::Im2Col(patches);
                    self.product(geometry, operands, group, b, out_block)?;
                }
            }
        }
        Ok(())
    }

    fn by_winograd(
        &self,
        ctx: &OpContext<'_>,
        winograd: &Winograd,
        geometry: &Geometry,
        operands: &Slices<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let image_len = geometry.image_len();
        for (block, out_block) in geometry.blocks(out) {
            let image = slice(operands.x, block * image_len, image_len)?;
            winograd.run(ctx, &geometry.window, image, out_block, operands.adds)?;
            self.finish(out_block, operands.bias);
        }
        Ok(())
    }

    fn by_unrolling(
        &self,
        ctx: &OpContext<'_>,
        geometry: &Geometry,
        operands: &Slices<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let rows = geometry.patch_rows();
        let mut columns = ctx.allocate(DType::F32, &[rows, geometry.positions()])?;
        let image_len = geometry.image_len();
        for (block, out_block) in geometry.blocks(out) {
            ctx.control.check()?;
            let image = slice(operands.x, block * image_len, image_len)?;
            unroll(image, &geometry.window, columns.as_mut_slice::<f32>()?);
            let b = matrix(rows, geometry.positions(), columns.as_slice::<f32>()?)?;
            let group = block % geometry.groups;
            self.product(geometry, operands, group, GemmInputB::Unpacked(b), out_block)?;
        }
        Ok(())
    }

    fn product(
        &self,
        geometry: &Geometry,
        operands: &Slices<'_>,
        group: usize,
        b: GemmInputB<'_, f32>,
        out: &mut [f32],
    ) -> Result<()> {
        let (rows, depth) = (geometry.out_channels, geometry.patch_rows());
        let a = match self.packed.get(group) {
            Some(packed) => GemmInputA::Packed(packed),
            None => {
                let weights = slice(operands.w, group * rows * depth, rows * depth)?;
                GemmInputA::Unpacked(matrix(rows, depth, weights)?)
            }
        };
        let beta = if operands.adds { 1.0 } else { 0.0 };
        let options = GemmOptions { beta, ..GemmOptions::default() };
        GEMM.with(|gemm| gemm.gemm(out, a, b, options))
            .map_err(|error| Error::internal(format!("Conv: {error}")))?;
        let bias = operands.bias.map(|bias| slice(bias, group * rows, rows)).transpose()?;
        self.finish(out, bias);
        Ok(())
    }

    /// Adds a number to each channel, and applies the activation.
    fn finish(&self, out: &mut [f32], bias: Option<&[f32]>) {
        let relu = self.activation == Some(Activation::Relu);
        if let Some(bias) = bias {
            widest(AddToChannels { out, bias, relu });
        }
        if bias.is_none() || !relu {
            self.activate(out);
        }
    }

    fn activate(&self, out: &mut [f32]) {
        if let Some(activation) = self.activation {
            activation.map_f32(out);
        }
    }

    /// The fused form, in f32 only: `activation(conv(x) + added)`.
    fn run_fused(
        &self,
        ctx: &OpContext<'_>,
        geometry: &Geometry,
        operands: Operands<'_>,
        added: Option<Tensor>,
    ) -> Result<Tensor> {
        let shape = geometry.output_shape();
        let misfit = added.as_ref().filter(|a| a.dtype() != DType::F32 || a.shape() != shape);
        if let Some(added) = misfit {
            let message = format!("{added:?} cannot be added to sums of shape {shape:?}");
            return Err(Error::invalid(message));
        }
        match operands.input.dtype() {
            DType::F32 if geometry.is_empty() => {
                let mut output = added.map_or_else(|| Tensor::zeros(DType::F32, &shape), Ok)?;
                output = writable(ctx, output)?;
                self.activate(output.as_mut_slice::<f32>()?);
                Ok(output)
            }
            DType::F32 => self.run_f32(ctx, geometry, operands, added),
            dtype => Err(Error::unsupported(format!("a fused convolution of {dtype}"))),
        }
    }
}

impl Operator for Conv {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let added = inputs.optional_value(3).is_some().then(|| inputs.take(3)).transpose()?;
        let operands = Operands {
            input: inputs.tensor(0)?,
            weights: inputs.tensor(1)?,
            bias: inputs.optional(2)?,
        };
        let geometry = self.geometry(operands.input, operands.weights)?;
        operands.check_bias(geometry.groups * geometry.out_channels)?;
        if added.is_some() || self.activation.is_some() {
            return Ok(smallvec![self.run_fused(ctx, &geometry, operands, added)?.into()]);
        }
        let output = match operands.input.dtype() {
            _ if geometry.is_empty() => {
                Tensor::zeros(operands.input.dtype(), &geometry.output_shape())?
            }
            DType::F32 => self.run_f32(ctx, &geometry, operands, None)?,
            DType::F64 => conv_f64(ctx, &geometry, &operands)?,
            dtype @ (DType::F16 | DType::BF16) => {
                let wide = operands.widened()?;
                narrow(&self.run_f32(ctx, &geometry, wide.borrow(), None)?, dtype)?
            }
            dtype => return Err(Error::unsupported(format!("Conv of {dtype}"))),
        };
        Ok(smallvec![output.into()])
    }

    fn packed_bytes(&self) -> usize {
        let direct = self.packed.iter().map(|group| group.rows() * group.cols());
        let winograd = self.winograd.as_ref().map_or(0, Winograd::packed_bytes);
        direct.sum::<usize>() * size_of::<f32>() + winograd
    }

    fn prepare(&mut self, constants: &[Option<Value>]) -> Result<()> {
        let Some(Some(Value::Tensor(weights))) = constants.get(1) else { return Ok(()) };
        let shape = weights.shape();
        let usable = weights.dtype() == DType::F32
            && shape.len() >= 3
            && !weights.is_empty()
            && shape[0].is_multiple_of(self.groups);
        // Depthwise weights are read directly and gain nothing from packing.
        let depthwise = self.groups > 1 && shape.get(1) == Some(&1);
        if !usable || depthwise {
            return Ok(());
        }
        let (rows, depth) = (shape[0] / self.groups, shape[1..].iter().product::<usize>());
        let data = weights.as_slice::<f32>()?;
        if self.groups == 1 && self.window.steps_by_one() {
            self.winograd = Winograd::new(shape, data)?;
        }
        if self.winograd.is_some() {
            return Ok(());
        }
        self.packed = data
            .chunks_exact(rows * depth)
            .map(|group| {
                let group = matrix(rows, depth, group)?;
                Ok(GEMM.with(|gemm| gemm.prepack_a(group)))
            })
            .collect::<Result<_>>()?;
        Ok(())
    }
}

/// Adds a number to each channel of an image, and bends it at zero.
struct AddToChannels<'a> {
    out: &'a mut [f32],
    bias: &'a [f32],
    relu: bool,
}

impl Loop for AddToChannels<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let size = self.out.len() / self.bias.len().max(1);
        for (channel, bias) in self.out.chunks_exact_mut(size.max(1)).zip(self.bias) {
            if self.relu {
                channel.iter_mut().for_each(|x| {
                    *x += bias;
                    *x = if *x < 0.0 { 0.0 } else { *x };
                });
            } else {
                channel.iter_mut().for_each(|x| *x += bias);
            }
        }
    }
}

/// Whether images have the size and the numbers for Winograd's way, in which
/// an infinity would come out as NaN.
fn fits_winograd(geometry: &Geometry, operands: &Slices<'_>) -> bool {
    Winograd::suits(&geometry.window) && widest(AllFinite(operands.x))
}

/// Whether no number is infinite or NaN.
struct AllFinite<'a>(&'a [f32]);

impl Loop for AllFinite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        const LANES: usize = 32;
        let mut lanes = [0.0f32; LANES];
        for chunk in self.0.chunks(LANES) {
            lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x * 0.0);
        }
        lanes.into_iter().all(|lane| lane == 0.0)
    }
}

struct Operands<'a> {
    input: &'a Tensor,
    weights: &'a Tensor,
    bias: Option<&'a Tensor>,
}

struct Slices<'a> {
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    /// Whether the output holds something to add the sums to.
    adds: bool,
}

struct Widened {
    input: Tensor,
    weights: Tensor,
    bias: Option<Tensor>,
}

impl Operands<'_> {
    fn check_bias(&self, channels: usize) -> Result<()> {
        match self.bias {
            Some(bias) if bias.shape() != [channels] => Err(Error::invalid(format!(
                "the bias must have shape [{channels}], got {:?}",
                bias.shape()
            ))),
            _ => Ok(()),
        }
    }

    fn widened(&self) -> Result<Widened> {
        Ok(Widened {
            input: widen(self.input)?,
            weights: widen(self.weights)?,
            bias: self.bias.map(widen).transpose()?,
        })
    }
}

impl Widened {
    fn borrow(&self) -> Operands<'_> {
        Operands { input: &self.input, weights: &self.weights, bias: self.bias.as_ref() }
    }
}

impl Geometry {
    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.in_channels == 1
    }

    fn is_empty(&self) -> bool {
        self.batch == 0
            || self.groups * self.in_channels * self.out_channels == 0
            || self.window.input.contains(&0)
            || self.window.output.contains(&0)
    }

    fn output_shape(&self) -> Vec<usize> {
        let channels = self.groups * self.out_channels;
        [self.batch, channels].into_iter().chain(self.window.output.iter().copied()).collect()
    }

    fn positions(&self) -> usize {
        self.window.output.iter().product()
    }

    fn taps(&self) -> usize {
        self.window.kernel.iter().product()
    }

    fn patch_rows(&self) -> usize {
        self.in_channels * self.taps()
    }

    /// Elements of one group's channels of one image.
    fn image_len(&self) -> usize {
        self.in_channels * self.window.input.iter().product::<usize>()
    }

    /// Output of each (image, group) in turn; the index counts both.
    fn blocks<'o, T>(&self, out: &'o mut [T]) -> impl Iterator<Item = (usize, &'o mut [T])> {
        out.chunks_exact_mut(self.out_channels * self.positions()).enumerate()
    }
}

/// Offsets of a virtual im2col matrix, the same for every image and group.
struct Im2ColPlan {
    channels: usize,
    height: usize,
    width: usize,
    n_rows: usize,
    n_cols: usize,
    rows: [Vec<i32>; 3],
    cols: [Vec<i32>; 2],
}

impl Im2ColPlan {
    /// An offset that no input has: it reads as padding.
    const OUTSIDE: i32 = i32::MAX / 4;

    fn new(window: &Window, channels: usize) -> Result<Self> {
        let (height, width) = (window.input[0], window.input[1]);
        let [kernel_h, kernel_w] = [window.kernel[0], window.kernel[1]];
        let n_rows = channels * kernel_h * kernel_w;
        let n_cols = window.output[0] * window.output[1];
        let mut plan = Self {
            channels,
            height,
            width,
            n_rows,
            n_cols,
            rows: Default::default(),
            cols: Default::default(),
        };
        plan.fill_rows(window)?;
        plan.fill_cols(window)?;
        let (row_step, col_step) =
            GEMM.with(|gemm| (gemm.im2col_row_count_step(), gemm.im2col_col_count_step()));
        plan.rows.iter_mut().for_each(|row| row.resize(n_rows.next_multiple_of(row_step), 0));
        plan.cols
            .iter_mut()
            .for_each(|col| col.resize(n_cols.next_multiple_of(col_step), Self::OUTSIDE));
        Ok(plan)
    }

    fn fill_rows(&mut self, window: &Window) -> Result<()> {
        for channel in 0..self.channels {
            for y in 0..window.kernel[0] {
                for x in 0..window.kernel[1] {
                    self.rows[0].push(offset(channel * self.height * self.width)?);
                    self.rows[1].push(offset(y * window.dilations[0] * self.width)?);
                    self.rows[2].push(offset(x * window.dilations[1])?);
                }
            }
        }
        Ok(())
    }

    fn fill_cols(&mut self, window: &Window) -> Result<()> {
        let width = self.width as i64;
        for y in 0..window.output[0] {
            for x in 0..window.output[1] {
                let top = (y * window.strides[0]) as i64 - window.pads.begin[0];
                let left = (x * window.strides[1]) as i64 - window.pads.begin[1];
                self.cols[0].push(signed_offset(top * width)?);
                self.cols[1].push(signed_offset(left)?);
            }
        }
        Ok(())
    }

    /// The matrix over a first image; others take its place.
    fn over(self, image: &[f32]) -> Result<Im2Col<'_, f32>> {
        let [chan, y, x] = self.rows;
        let [col_y, col_x] = self.cols;
        Ok(Im2Col {
            image: image_view([self.channels, self.height, self.width], image)?,
            row_offsets: RowOffsets { chan, y, x },
            col_offsets: ColOffsets { y: col_y, x: col_x },
            n_cols: self.n_cols,
            n_rows: self.n_rows,
            max_y_offset: offset((self.height - 1) * self.width)?,
            max_x_offset: offset(self.width - 1)?,
        })
    }
}

fn image_view(shape: [usize; 3], image: &[f32]) -> Result<NdTensorView<'_, f32, 3>> {
    NdTensorView::try_from_data(shape, image)
        .map_err(|_| Error::internal("Conv: an image has the wrong size"))
}

fn offset(value: usize) -> Result<i32> {
    signed_offset(value as i64)
}

fn signed_offset(value: i64) -> Result<i32> {
    i32::try_from(value)
        .ok()
        .filter(|value| value.abs() < Im2ColPlan::OUTSIDE)
        .ok_or_else(|| Error::unsupported("Conv over an image of more than 2^29 elements"))
}

/// One input channel per group: each output row is a sum of shifted, scaled
/// input rows, which the compiler vectorises.
fn depthwise(
    ctx: &OpContext<'_>,
    geometry: &Geometry,
    operands: &Slices<'_>,
    out: &mut [f32],
) -> Result<()> {
    let window = geometry.window.lifted(2);
    let (image_len, taps) = (window.input[0] * window.input[1], geometry.taps());
    let channels = geometry.groups * geometry.out_channels;
    for (plane, out_plane) in out.chunks_exact_mut(geometry.positions()).enumerate() {
        ctx.control.check()?;
        let channel = plane % channels;
        let image_index = (plane / channels) * geometry.groups + channel / geometry.out_channels;
        let image = slice(operands.x, image_index * image_len, image_len)?;
        let weights = slice(operands.w, channel * taps, taps)?;
        let bias = operands.bias.map_or(0.0, |bias| bias[channel]);
        if operands.adds {
            out_plane.iter_mut().for_each(|out| *out += bias);
        } else {
            out_plane.fill(bias);
        }
        depthwise_plane(image, weights, &window, out_plane);
    }
    Ok(())
}

fn depthwise_plane(image: &[f32], weights: &[f32], window: &Window, out: &mut [f32]) {
    let width = window.input[1];
    for (y, out_row) in out.chunks_exact_mut(window.output[1]).enumerate() {
        for tap_y in 0..window.kernel[0] {
            let Some(source) = window.source(0, y, tap_y) else { continue };
            let row = &image[source * width..(source + 1) * width];
            let taps = &weights[tap_y * window.kernel[1]..(tap_y + 1) * window.kernel[1]];
            taps.iter().enumerate().for_each(|(tap_x, &weight)| {
                accumulate_row(row, weight, window, tap_x, out_row);
            });
        }
    }
}

/// `out[x] += weight * row[x * stride + tap - pad]` where that is inside.
fn accumulate_row(row: &[f32], weight: f32, window: &Window, tap: usize, out: &mut [f32]) {
    let stride = window.strides[1];
    let shift = (tap * window.dilations[1]) as i64 - window.pads.begin[1];
    let first = if shift < 0 { (shift.unsigned_abs() as usize).div_ceil(stride) } else { 0 };
    let Some(start) = usize::try_from((first * stride) as i64 + shift).ok() else { return };
    let Some(source) = row.get(start..) else { return };
    let Some(out) = out.get_mut(first..) else { return };
    if stride == 1 {
        out.iter_mut().zip(source).for_each(|(out, value)| *out += weight * value);
    } else {
        out.iter_mut().zip(source.iter().step_by(stride)).for_each(|(out, v)| *out += weight * v);
    }
}

/// Writes the patch matrix `[channels * taps, positions]` of one image.
fn unroll<T: Copy + Default>(image: &[T], window: &Window, columns: &mut [T]) {
    let window = window.lifted(3);
    let positions: usize = window.output.iter().product();
    let taps: usize = window.kernel.iter().product();
    let channel_len: usize = window.input.iter().product();
    if positions == 0 {
        return;
    }
    for (row, column) in columns.chunks_exact_mut(positions).enumerate() {
        let (channel, tap) = (row / taps, row % taps);
        let source = &image[channel * channel_len..(channel + 1) * channel_len];
        unroll_row(source, &window, tap, column);
    }
}

fn unroll_row<T: Copy + Default>(image: &[T], window: &Window, tap: usize, column: &mut [T]) {
    let [kernel_h, kernel_w] = [window.kernel[1], window.kernel[2]];
    let taps = [tap / (kernel_h * kernel_w), tap / kernel_w % kernel_h, tap % kernel_w];
    let (height, width) = (window.input[1], window.input[2]);
    let mut out = column.iter_mut();
    for z in 0..window.output[0] {
        let plane = window.source(0, z, taps[0]);
        for y in 0..window.output[1] {
            let row =
                plane.zip(window.source(1, y, taps[1])).map(|(z, y)| (z * height + y) * width);
            for x in 0..window.output[2] {
                let at = row.zip(window.source(2, x, taps[2])).map(|(row, x)| row + x);
                if let Some(out) = out.next() {
                    *out = at.map_or(T::default(), |at| image[at]);
                }
            }
        }
    }
}

fn conv_f64(ctx: &OpContext<'_>, geometry: &Geometry, operands: &Operands<'_>) -> Result<Tensor> {
    let mut output = ctx.allocate(DType::F64, &geometry.output_shape())?;
    let x = operands.input.as_slice::<f64>()?;
    let w = operands.weights.as_slice::<f64>()?;
    let bias = operands.bias.map(Tensor::as_slice::<f64>).transpose()?;
    let (rows, positions) = (geometry.patch_rows(), geometry.positions());
    let mut columns = ctx.allocate(DType::F64, &[rows, positions])?;
    let image_len = geometry.image_len();
    for (block, out_block) in geometry.blocks(output.as_mut_slice::<f64>()?) {
        ctx.control.check()?;
        let columns = columns.as_mut_slice::<f64>()?;
        unroll(&x[block * image_len..(block + 1) * image_len], &geometry.window, columns);
        let group = block % geometry.groups;
        for (channel, out_row) in out_block.chunks_exact_mut(positions).enumerate() {
            let channel = group * geometry.out_channels + channel;
            out_row.fill(bias.map_or(0.0, |bias| bias[channel]));
            let weights = &w[channel * rows..(channel + 1) * rows];
            for (weight, column) in weights.iter().zip(columns.chunks_exact(positions)) {
                out_row.iter_mut().zip(column).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
    Ok(output)
}

struct ConvTranspose {
    window: WindowAttributes,
    groups: usize,
    output_padding: Option<Dims>,
    output_shape: Option<Vec<i64>>,
}

impl ConvTranspose {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let output_padding = attributes.ints("output_padding")?.map(|values| {
            values.iter().map(|&value| value.clamp(0, i64::from(i32::MAX)) as usize).collect()
        });
        Ok(Box::new(Self {
            window: WindowAttributes::parse(node)?,
            groups: parse_groups(node)?,
            output_padding,
            output_shape: attributes.ints("output_shape")?.map(<[i64]>::to_vec),
        }))
    }

    /// The window of the convolution that this one is the transpose of: its
    /// input is our output and the other way round.
    fn transposed_window(&self, input: &[usize], kernel: &[usize]) -> Result<Window> {
        let rank = input.len();
        if rank == 0 || rank > 3 {
            return Err(Error::unsupported(format!("ConvTranspose over {rank} dimensions")));
        }
        let mut window = Window {
            input: Dims::new(),
            kernel: self.window.kernel(Some(kernel))?,
            strides: self.window.strides(rank)?,
            dilations: self.window.dilations(rank)?,
            pads: self.window.explicit_pads(rank)?,
            output: input.into(),
        };
        for axis in 0..rank {
            let size = self.output_size(&mut window, axis)?;
            window.input.push(size);
        }
        Ok(window)
    }

    fn output_size(&self, window: &mut Window, axis: usize) -> Result<usize> {
        let extra = self.output_padding.as_ref().and_then(|p| p.get(axis)).copied().unwrap_or(0);
        let extent = (window.kernel[axis] - 1).saturating_mul(window.dilations[axis]) + 1;
        let spread = window.output[axis].saturating_sub(1).saturating_mul(window.strides[axis]);
        let full = spread.saturating_add(extent).saturating_add(extra) as i64;
        let rank = window.output.len();
        let given = self
            .output_shape
            .as_ref()
            .and_then(|shape| shape.get(shape.len().saturating_sub(rank) + axis).copied());
        let same = matches!(self.window.auto_pad(), AutoPad::SameUpper | AutoPad::SameLower);
        let wanted = match given {
            Some(size) => Some(size),
            None if same => Some((window.output[axis] * window.strides[axis]) as i64),
            None => None,
        };
        if let Some(size) = wanted {
            let total = (full - size).max(0);
            let upper = self.window.auto_pad() == AutoPad::SameUpper;
            let begin = if upper { total / 2 } else { total - total / 2 };
            window.pads.begin[axis] = begin;
            window.pads.end[axis] = total - begin;
            return usize::try_from(size)
                .map_err(|_| Error::invalid(format!("output_shape {size} is negative")));
        }
        if self.window.auto_pad() == AutoPad::Valid {
            window.pads = Pads::zero(rank);
        }
        let size = full - window.pads.begin[axis] - window.pads.end[axis];
        usize::try_from(size)
            .map_err(|_| Error::invalid("ConvTranspose: pads are larger than the output"))
    }

    fn run_f32(&self, ctx: &OpContext<'_>, operands: Operands<'_>) -> Result<Tensor> {
        let (x, w) = (operands.input.shape(), operands.weights.shape());
        let fits = x.len() >= 3 && w.len() == x.len() && w[0] == x[1];
        if !fits || !x[1].is_multiple_of(self.groups) {
            return Err(Error::invalid(format!(
                "ConvTranspose: input {x:?} and weights {w:?} do not fit with group = {}",
                self.groups
            )));
        }
        let window = self.transposed_window(&x[2..], &w[2..])?;
        let channels = w[1] * self.groups;
        operands.check_bias(channels)?;
        let shape: Vec<usize> =
            [x[0], channels].into_iter().chain(window.input.iter().copied()).collect();
        let mut output = ctx.allocate(DType::F32, &shape)?;
        let sizes =
            Transposed { groups: self.groups, inner: x[1] / self.groups, outer: w[1], window };
        sizes.scatter(ctx, &operands, output.as_mut_slice::<f32>()?)?;
        Ok(output)
    }
}

impl Operator for ConvTranspose {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let operands = Operands {
            input: inputs.tensor(0)?,
            weights: inputs.tensor(1)?,
            bias: inputs.optional(2)?,
        };
        let output = match operands.input.dtype() {
            DType::F32 => self.run_f32(ctx, operands)?,
            dtype @ (DType::F16 | DType::BF16) => {
                narrow(&self.run_f32(ctx, operands.widened()?.borrow())?, dtype)?
            }
            dtype => return Err(Error::unsupported(format!("ConvTranspose of {dtype}"))),
        };
        Ok(smallvec![output.into()])
    }
}

/// Channel counts per group and the window of the forward convolution.
struct Transposed {
    groups: usize,
    inner: usize,
    outer: usize,
    window: Window,
}

impl Transposed {
    /// For each image and group: patches = weightsᵀ · input, then each patch
    /// row is added to the output where the forward window would read it.
    fn scatter(&self, ctx: &OpContext<'_>, operands: &Operands<'_>, out: &mut [f32]) -> Result<()> {
        let positions: usize = self.window.output.iter().product();
        let plane: usize = self.window.input.iter().product();
        let rows = self.outer * self.window.kernel.iter().product::<usize>();
        fill_bias(operands.bias, plane, out)?;
        if positions == 0 || plane == 0 || self.inner == 0 || rows == 0 {
            return Ok(());
        }
        let (x, w) = (operands.input.as_slice::<f32>()?, operands.weights.as_slice::<f32>()?);
        let mut columns = ctx.allocate(DType::F32, &[rows, positions])?;
        for (block, out_block) in out.chunks_exact_mut(self.outer * plane).enumerate() {
            ctx.control.check()?;
            let group = block % self.groups;
            let weights = slice(w, group * self.inner * rows, self.inner * rows)?;
            let image = slice(x, block * self.inner * positions, self.inner * positions)?;
            let a = matrix(self.inner, rows, weights)?;
            let a = GemmInputA::Unpacked(a.transposed());
            let b = GemmInputB::Unpacked(matrix(self.inner, positions, image)?);
            let columns = columns.as_mut_slice::<f32>()?;
            GEMM.with(|gemm| gemm.gemm(columns, a, b, GemmOptions::default()))
                .map_err(|error| Error::internal(format!("ConvTranspose: {error}")))?;
            fold(columns, &self.window, out_block);
        }
        Ok(())
    }
}

fn fill_bias(bias: Option<&Tensor>, plane: usize, out: &mut [f32]) -> Result<()> {
    let Some(bias) = bias.filter(|_| plane > 0) else {
        out.fill(0.0);
        return Ok(());
    };
    let bias = bias.as_slice::<f32>()?;
    out.chunks_exact_mut(plane).zip(bias.iter().cycle()).for_each(|(out, &value)| out.fill(value));
    Ok(())
}

/// The transpose of [`unroll`]: adds each patch element to its source.
fn fold(columns: &[f32], window: &Window, image: &mut [f32]) {
    let window = window.lifted(3);
    let positions: usize = window.output.iter().product();
    let taps: usize = window.kernel.iter().product();
    let plane: usize = window.input.iter().product();
    let [kernel_h, kernel_w] = [window.kernel[1], window.kernel[2]];
    for (row, column) in columns.chunks_exact(positions).enumerate() {
        let (channel, tap) = (row / taps, row % taps);
        let tap = [tap / (kernel_h * kernel_w), tap / kernel_w % kernel_h, tap % kernel_w];
        fold_row(column, &window, tap, &mut image[channel * plane..(channel + 1) * plane]);
    }
}

fn fold_row(column: &[f32], window: &Window, tap: [usize; 3], image: &mut [f32]) {
    let (height, width) = (window.input[1], window.input[2]);
    let mut values = column.iter();
    for z in 0..window.output[0] {
        for y in 0..window.output[1] {
            let row = window.source(0, z, tap[0]).zip(window.source(1, y, tap[1]));
            for x in 0..window.output[2] {
                let Some(value) = values.next() else { return };
                if let Some(((z, y), x)) = row.zip(window.source(2, x, tap[2])) {
                    image[(z * height + y) * width + x] += value;
                }
            }
        }
    }
}

fn parse_groups(node: &NodeDef) -> Result<usize> {
    let groups = Attributes(node).int_or("group", 1)?;
    usize::try_from(groups)
        .ok()
        .filter(|&groups| groups > 0)
        .ok_or_else(|| Error::invalid(format!("{}: group must be positive", node.describe())))
}

fn matrix(rows: usize, cols: usize, data: &[f32]) -> Result<Matrix<'_, f32>> {
    Matrix::try_from_data([rows, cols], data)
        .map_err(|_| Error::internal(format!("a matrix of {rows}x{cols} has the wrong size")))
}

fn slice(data: &[f32], start: usize, len: usize) -> Result<&[f32]> {
    data.get(start..start + len)
        .ok_or_else(|| Error::internal("a convolution block is out of bounds"))
}

fn widen(tensor: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = match tensor.dtype() {
        DType::F16 => tensor.as_slice::<f16>()?.iter().map(|value| value.to_f32()).collect(),
        DType::BF16 => tensor.as_slice::<bf16>()?.iter().map(|value| value.to_f32()).collect(),
        dtype => return Err(Error::unsupported(format!("a convolution operand of {dtype}"))),
    };
    Tensor::from_vec(tensor.shape(), values)
}

fn narrow(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let values = tensor.as_slice::<f32>()?;
    if dtype == DType::F16 {
        let values = values.iter().map(|&value| f16::from_f32(value)).collect();
        return Tensor::from_vec::<f16>(tensor.shape(), values);
    }
    let values = values.iter().map(|&value| bf16::from_f32(value)).collect();
    Tensor::from_vec::<bf16>(tensor.shape(), values)
}
