//! Operators that slide a window over images: convolution and pooling. Signals
//! of one dimension are images one row high.

use super::matmul::{Bias, Product, parts, round, tile_constants};
use super::pointwise::Chain;
use super::{activation, float, input, int, ints, only_output, text};
use crate::lower::{Builder, MAX_GROUPS, THREADS};
use crate::operand::{Operand, Place};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use crate::weights::Format;
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor, ValueId};

/// A window of two dimensions and how it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) dilations: [usize; 2],
    /// In front of the image.
    pub(super) pads: [usize; 2],
}

impl Window {
    pub(super) fn new(node: &NodeDef, spatial: &[usize], kernel: &[usize]) -> Option<Self> {
        let rank = spatial.len();
        if !(1..=2).contains(&rank) || kernel.len() != rank || int(node, "ceil_mode", 0)? != 0 {
            return None;
        }
        let lifted = |values: &[usize], fill: usize| match *values {
            [x] => Some([fill, x]),
            [y, x] => Some([y, x]),
            _ => None,
        };
        let list = |name: &str| {
            let given = ints(node, name).map(<[i64]>::to_vec).unwrap_or_else(|| vec![1; rank]);
            let sizes: Option<Vec<usize>> =
                given.iter().map(|v| usize::try_from(*v).ok().filter(|v| *v > 0)).collect();
            lifted(&sizes?, 1)
        };
        let (strides, dilations) = (list("strides")?, list("dilations")?);
        let (input, kernel) = (lifted(spatial, 1)?, lifted(kernel, 1)?);
        let mut window = Self { input, output: [0; 2], kernel, strides, dilations, pads: [0; 2] };
        for axis in 0..2 {
            window.settle(node, axis, rank)?;
        }
        Some(window)
    }

    /// Works out padding and output of one axis.
    fn settle(&mut self, node: &NodeDef, axis: usize, rank: usize) -> Option<()> {
        let extent = self.dilations[axis].checked_mul(self.kernel[axis].checked_sub(1)?)? + 1;
        let size = self.input[axis];
        let own = (axis + rank).checked_sub(2);
        let (before, after) = match (text(node, "auto_pad", "NOTSET")?, own) {
            (_, None) | ("VALID", _) => (0, 0),
            ("NOTSET" | "", Some(own)) => {
                let pads = ints(node, "pads").unwrap_or_default();
                let pad = |at: usize| {
                    usize::try_from(pads.get(at).copied().unwrap_or(0))
                        .ok()
                        .filter(|p| *p < 1 << 20)
                };
                (pad(own)?, pad(own + rank)?)
            }
            (same @ ("SAME_UPPER" | "SAME_LOWER"), Some(_)) => {
                let outputs = size.div_ceil(self.strides[axis]);
                let all = ((outputs - 1) * self.strides[axis] + extent).saturating_sub(size);
                if same == "SAME_UPPER" {
                    (all / 2, all - all / 2)
                } else {
                    (all - all / 2, all / 2)
                }
            }
            _ => return None,
        };
        self.pads[axis] = before;
        self.output[axis] = (size + before + after).checked_sub(extent)? / self.strides[axis] + 1;
        Some(())
    }

    pub(super) fn positions(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Sizes of the output, without the dimension that lifting added.
    pub(super) fn spatial(&self, rank: usize) -> &[usize] {
        &self.output[2 - rank..]
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether every output is of the one input at its place.
    fn is_point(&self) -> bool {
        self.taps() == 1 && self.strides == [1; 2] && self.output == self.input
    }
}

/// A convolution, ready to emit.
struct Conv {
    x: ValueId,
    weights: ValueId,
    bias: Option<ValueId>,
    residual: Option<ValueId>,
    output: ValueId,
    groups: usize,
    window: Window,
    shape: Shape,
    activation: u32,
}

/// `Conv` over one or two spatial dimensions.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn conv(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = Conv::of(builder, node) else { return Ok(false) };
    let image = builder.dense(call.x)?;
    let weights = builder.dense(call.weights)?;
    let bias = call.bias.map(|bias| builder.dense(bias)).transpose()?;
    let residual = call.residual.map(|residual| builder.dense(residual)).transpose()?;
    let target = builder.allocate(DType::F32, &call.shape);
    if weights.shape[1] == 1 && call.groups > 1 && residual.is_none() {
        call.depthwise(builder, &image, &weights, bias, target.place.clone());
    } else {
        call.tiled(builder, &image, &weights, [bias, residual], target.place.clone());
    }
    builder.define(call.output, target);
    Ok(true)
}

impl Conv {
    fn of(builder: &Builder<'_>, node: &NodeDef) -> Option<Self> {
        let (x, weights) = (input(node, 0)?, input(node, 1)?);
        let (bias, residual) = (input(node, 2), input(node, 3));
        let single =
            |value: ValueId| builder.is_held(value) && builder.dtype(value) == Some(DType::F32);
        let held = [Some(x), Some(weights), bias, residual].into_iter().flatten().all(single);
        let (image, filters) = (builder.shape(x)?, builder.shape(weights)?);
        let groups = usize::try_from(int(node, "group", 1)?).ok().filter(|groups| *groups > 0)?;
        let fits = held
            && image.len() == filters.len()
            && image.len() > 2
            && filters[1] * groups == image[1]
            && filters[0].is_multiple_of(groups)
            && node.attribute("activation_params").is_none();
        fits.then_some(())?;
        let window = Window::new(node, &image[2..], &filters[2..])?;
        let mut shape = Shape::from_slice(&[image[0], filters[0]]);
        shape.extend_from_slice(window.spatial(image.len() - 2));
        let bias_fits = bias.is_none_or(|b| builder.shape(b).as_deref() == Some(&filters[..1]));
        let sum_fits = residual.is_none_or(|r| builder.shape(r).as_ref() == Some(&shape));
        let rows = filters[0] / groups;
        let small = image[0] * groups <= MAX_GROUPS
            && rows.div_ceil(16) <= MAX_GROUPS
            && window.positions().div_ceil(64) <= MAX_GROUPS
            && shape.iter().product::<usize>() < 1 << 29;
        let activation = activation(node)?;
        let output = only_output(node)?;
        (bias_fits && sum_fits && small).then_some(Self {
            x,
            weights,
            bias,
            residual,
            output,
            groups,
            window,
            shape,
            activation,
        })
    }

    /// The product of weights and images: of a window of one position with each
    /// image as it lies. Others can only add its parts.
    fn product(
        &self,
        [m, n, k]: [usize; 3],
        bias: Option<Operand>,
        residual: Option<Operand>,
    ) -> Product {
        let bias = bias.map(|bias| Bias { place: bias.place, row: 1, column: 0, beta: 1.0 });
        Product {
            m,
            n,
            k,
            batch: [1, self.shape[0]],
            a: [k, 1, 0, 0],
            b: [n, 1, 0, k * n],
            out: [n, 0, m * n],
            activation: self.activation,
            bias,
            residual: residual.map(|residual| residual.place),
            activates_residual: true,
            ..Product::default()
        }
    }

    fn tiled(
        &self,
        builder: &mut Builder<'_>,
        image: &Operand,
        weights: &Operand,
        [bias, residual]: [Option<Operand>; 2],
        out: Place,
    ) {
        let window = &self.window;
        let (m, n) = (self.shape[1] / self.groups, window.positions());
        let channels = weights.shape[1];
        let k = channels * window.taps();
        if self.groups == 1 && window.is_point() && n.div_ceil(8) <= MAX_GROUPS {
            let product = self.product([m, n, k], bias, residual);
            return product.launch(builder, weights.place.clone(), image.place.clone(), out);
        }
        let shared = builder.context.limits.max_compute_workgroup_storage_size as usize;
        let tiles = builder.tuning.tiles([m, n, k], shared);
        let batch = self.shape[0] * self.groups;
        let groups = [n.div_ceil(tiles.n()), m.div_ceil(tiles.m()), batch];
        let parts = if self.groups == 1 { parts(groups, k, tiles.depth) } else { 1 };
        let mut constants = vec![
            ("KERNEL_Y", window.kernel[0] as u32),
            ("KERNEL_X", window.kernel[1] as u32),
            ("PARTS", parts as u32),
        ];
        constants.extend(tile_constants(tiles));
        let params = Params::new()
            .sizes(&[m, n, k, self.groups])
            .sizes(&[window.input[0], window.input[1], window.output[1], channels])
            .sizes(&window.strides)
            .sizes(&window.dilations)
            .sizes(&window.pads);
        let own = [weights.place.clone(), image.place.clone()];
        let bindings = |out: Place, [bias, residual]: [Option<&Operand>; 2]| {
            let [weights, image] = own.clone();
            let place = |operand: Option<&Operand>| match operand {
                Some(operand) => operand.place.clone(),
                None => weights.clone(),
            };
            let (bias, residual) = (place(bias), place(residual));
            vec![weights, image, out, bias, residual]
        };
        if parts > 1 {
            let sums = builder.allocate(DType::F32, &[batch * parts * m * n]).place;
            let spread = [groups[0], groups[1], batch * parts];
            let kernel = Kernel::new(File::Conv, 5, &constants);
            builder.launch(kernel, bindings(sums.clone(), [None; 2]), params, spread);
            return self.product([m, n, k], bias, residual).combine(builder, sums, parts, out);
        }
        constants.extend([
            ("ACTIVATION", self.activation),
            ("HAS_BIAS", u32::from(bias.is_some())),
            ("HAS_RESIDUAL", u32::from(residual.is_some())),
        ]);
        let bindings = bindings(out, [bias.as_ref(), residual.as_ref()]);
        builder.launch(Kernel::new(File::Conv, 5, &constants), bindings, params, groups);
    }

    fn depthwise(
        &self,
        builder: &mut Builder<'_>,
        image: &Operand,
        weights: &Operand,
        bias: Option<Operand>,
        out: Place,
    ) {
        let window = &self.window;
        let total: usize = self.shape.iter().product();
        let multiplier = self.shape[1] / self.groups;
        let constants = [("ACTIVATION", self.activation), ("HAS_BIAS", u32::from(bias.is_some()))];
        let params = Params::new()
            .sizes(&[total, self.groups, multiplier, window.output[0]])
            .sizes(&[window.input[0], window.input[1], window.output[1], 0])
            .sizes(&window.kernel)
            .sizes(&window.strides)
            .sizes(&window.dilations)
            .sizes(&window.pads);
        let bias = bias.map_or(weights.place.clone(), |bias| bias.place);
        let bindings = vec![weights.place.clone(), image.place.clone(), out, bias];
        let groups = [total.div_ceil(THREADS), 1, 1];
        builder.launch(Kernel::new(File::Depthwise, 4, &constants), bindings, params, groups);
    }
}

/// `MaxPool` and `AveragePool` over one or two spatial dimensions.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn pool(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, output, window, shape)) = pooled(builder, node) else { return Ok(false) };
    let source = builder.dense(x)?;
    let target = builder.allocate(source.dtype, &shape);
    let kind = match (&*node.op, int(node, "count_include_pad", 0)) {
        ("MaxPool", _) => 0,
        (_, Some(0)) => 1,
        _ => 2,
    };
    let total: usize = shape.iter().product();
    let params = Params::new()
        .size(total)
        .sizes(&window.output)
        .sizes(&window.input)
        .sizes(&window.kernel)
        .sizes(&window.strides)
        .sizes(&window.dilations)
        .sizes(&window.pads);
    let bindings = vec![source.place, target.place.clone()];
    let groups = [total.div_ceil(THREADS), 1, 1];
    builder.launch(Kernel::new(File::Pool, 2, &[("KIND", kind)]), bindings, params, groups);
    round(builder, output, target);
    Ok(true)
}

fn pooled(builder: &Builder<'_>, node: &NodeDef) -> Option<(ValueId, ValueId, Window, Shape)> {
    let x = input(node, 0).filter(|x| builder.is_float(*x))?;
    let image = builder.shape(x).filter(|shape| shape.len() > 2)?;
    let kernel: Option<Vec<usize>> =
        ints(node, "kernel_shape")?.iter().map(|v| usize::try_from(*v).ok()).collect();
    let window = Window::new(node, &image[2..], &kernel?)?;
    // A window that sees padding alone has no largest value and no mean.
    let seen = |axis: usize| {
        let extent = window.dilations[axis] * (window.kernel[axis] - 1) + 1;
        let last = (window.output[axis] - 1) * window.strides[axis];
        window.pads[axis] < extent && last < window.input[axis] + window.pads[axis]
    };
    let mut shape = Shape::from_slice(&image[..2]);
    shape.extend_from_slice(window.spatial(image.len() - 2));
    let plain = int(node, "storage_order", 0)? == 0 && (0..2).all(seen);
    let output = only_output(node)?;
    plain.then_some((x, output, window, shape))
}

/// `BatchNormalization` with constant statistics: one factor and one addend a
/// channel.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn batch_norm(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some((x, output, factors, addends)) = statistics(builder, node) else { return Ok(false) };
    let Some(rank) = builder.shape(x).map(|shape| shape.len()) else { return Ok(false) };
    let mut shape = vec![factors.len()];
    shape.resize(rank - 1, 1);
    let mut row = |at, values: Vec<f32>| {
        let tensor = builder.derived((output, at), || Tensor::from_vec(&shape, values))?;
        let place = Place::Weight(builder.weight(&tensor, Format::Words)?);
        Ok::<_, Error>(Operand::dense(place, DType::F32, &shape))
    };
    let rows = [row(0, factors)?, row(1, addends)?];
    let x = builder.operand(x)?;
    let (dtype, shape) = (x.dtype, x.shape.clone());
    let inputs = std::iter::once(x).chain(rows).collect();
    match Chain::of("fma($0, $1, $2)", dtype, &shape, inputs) {
        Some(chain) => builder.defer(output, chain),
        None => return Ok(false),
    }
    Ok(true)
}

type Statistics = (ValueId, ValueId, Vec<f32>, Vec<f32>);

fn statistics(builder: &Builder<'_>, node: &NodeDef) -> Option<Statistics> {
    let x = input(node, 0).filter(|x| builder.is_held(*x))?;
    let shape = builder.shape(x).filter(|shape| shape.len() >= 2)?;
    let plain = builder.dtype(x) == Some(DType::F32) && int(node, "training_mode", 0)? == 0;
    let row = |index: usize| {
        let values = builder.constant(input(node, index)?)?.as_slice::<f32>().ok()?;
        (plain && values.len() == shape[1]).then_some(values)
    };
    let (scale, bias, mean, variance) = (row(1)?, row(2)?, row(3)?, row(4)?);
    let epsilon = f64::from(float(node, "epsilon", 1e-5)?);
    let factor = |at: usize| f64::from(scale[at]) / (f64::from(variance[at]) + epsilon).sqrt();
    let factors = (0..shape[1]).map(|at| factor(at) as f32).collect();
    let addend = |at: usize| (f64::from(bias[at]) - f64::from(mean[at]) * factor(at)) as f32;
    let addends = (0..shape[1]).map(addend).collect();
    Some((x, only_output(node)?, factors, addends))
}
