//! Sliding-window geometry shared by convolutions and pools.

use crate::cpu::op::Attributes;
use mortise_types::{Error, NodeDef, Result};
use smallvec::SmallVec;

/// One entry per spatial dimension, outermost first.
pub(crate) type Dims = SmallVec<[usize; 3]>;

/// More spatial dimensions than this appear in no exported model.
const MAX_SPATIAL_RANK: usize = 3;

/// The window attributes of a node, not yet resolved against an input.
#[derive(Clone, Debug)]
pub(crate) struct WindowAttributes {
    kernel: Option<Dims>,
    strides: Option<Dims>,
    dilations: Option<Dims>,
    pads: Option<Pads>,
    auto_pad: AutoPad,
    ceil_mode: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AutoPad {
    NotSet,
    Valid,
    SameUpper,
    SameLower,
}

/// Padding before and after each spatial dimension; may crop when negative
/// padding is given, which ONNX allows for pads of some exporters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pads {
    pub(crate) begin: SmallVec<[i64; 3]>,
    pub(crate) end: SmallVec<[i64; 3]>,
}

/// A window resolved against an input's spatial shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) input: Dims,
    pub(crate) kernel: Dims,
    pub(crate) strides: Dims,
    pub(crate) dilations: Dims,
    pub(crate) pads: Pads,
    pub(crate) output: Dims,
}

impl WindowAttributes {
    /// # Errors
    /// When an attribute has the wrong type or a non-positive entry.
    pub(crate) fn parse(node: &NodeDef) -> Result<Self> {
        let attributes = Attributes(node);
        let positive = |name: &str| -> Result<Option<Dims>> {
            attributes.ints(name)?.map(|values| positive_dims(node, name, values)).transpose()
        };
        Ok(Self {
            kernel: positive("kernel_shape")?,
            strides: positive("strides")?,
            dilations: positive("dilations")?,
            pads: attributes.ints("pads")?.map(|values| parse_pads(node, values)).transpose()?,
            auto_pad: parse_auto_pad(node, attributes.text("auto_pad")?)?,
            ceil_mode: attributes.int_or("ceil_mode", 0)? != 0,
        })
    }

    pub(crate) fn auto_pad(&self) -> AutoPad {
        self.auto_pad
    }

    /// The explicit pads, or zeros.
    ///
    /// # Errors
    /// When their number does not fit `rank` spatial dimensions.
    pub(crate) fn explicit_pads(&self, rank: usize) -> Result<Pads> {
        match &self.pads {
            None => Ok(Pads::zero(rank)),
            Some(pads) if pads.begin.len() == rank => Ok(pads.clone()),
            Some(_) => Err(Error::invalid(format!("pads must have {} entries", 2 * rank))),
        }
    }

    /// # Errors
    /// When the number of strides does not fit.
    pub(crate) fn strides(&self, rank: usize) -> Result<Dims> {
        or_ones(&self.strides, rank, "strides")
    }

    /// # Errors
    /// When the number of dilations does not fit.
    pub(crate) fn dilations(&self, rank: usize) -> Result<Dims> {
        or_ones(&self.dilations, rank, "dilations")
    }

    /// Whether no stride or dilation but 1 is asked for.
    pub(crate) fn steps_by_one(&self) -> bool {
        let given = [&self.strides, &self.dilations].into_iter().flatten();
        given.flatten().all(|&step| step == 1)
    }

    /// The kernel's shape: the attribute, or that of the weights.
    ///
    /// # Errors
    /// When neither is given or they disagree.
    pub(crate) fn kernel(&self, weights: Option<&[usize]>) -> Result<Dims> {
        match (&self.kernel, weights) {
            (Some(kernel), Some(weights)) if kernel.as_slice() != weights => Err(Error::invalid(
                format!("kernel_shape {kernel:?} does not fit weights of {weights:?}"),
            )),
            (Some(kernel), _) => Ok(kernel.clone()),
            (None, Some(weights)) => Ok(weights.into()),
            (None, None) => Err(Error::invalid("kernel_shape is required")),
        }
    }

    /// Resolves pads and output sizes for an input of spatial shape `input`.
    ///
    /// # Errors
    /// When ranks differ, or the window does not fit into the padded input.
    pub(crate) fn resolve(&self, input: &[usize], weights: Option<&[usize]>) -> Result<Window> {
        let rank = input.len();
        if rank == 0 || rank > MAX_SPATIAL_RANK {
            return Err(Error::unsupported(format!(
                "windows over {rank} spatial dimensions (1 to {MAX_SPATIAL_RANK} are supported)"
            )));
        }
        let kernel = self.kernel(weights)?;
        if kernel.len() != rank {
            return Err(Error::invalid(format!(
                "a kernel of shape {kernel:?} does not fit an input with {rank} spatial dimensions"
            )));
        }
        let mut window = Window {
            input: input.into(),
            kernel,
            strides: self.strides(rank)?,
            dilations: self.dilations(rank)?,
            pads: self.explicit_pads(rank)?,
            output: Dims::new(),
        };
        for axis in 0..rank {
            self.resolve_axis(&mut window, axis)?;
        }
        Ok(window)
    }

    fn resolve_axis(&self, window: &mut Window, axis: usize) -> Result<()> {
        let (input, stride) = (window.input[axis] as i64, window.strides[axis] as i64);
        let extent = window.extent(axis)?;
        if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            let output = (input + stride - 1) / stride;
            let total = ((output - 1) * stride + extent - input).max(0);
            let small = total / 2;
            let upper = self.auto_pad == AutoPad::SameUpper;
            window.pads.begin[axis] = if upper { small } else { total - small };
            window.pads.end[axis] = total - window.pads.begin[axis];
            window.output.push(output.max(0) as usize);
            return Ok(());
        }
        if self.auto_pad == AutoPad::Valid {
            (window.pads.begin[axis], window.pads.end[axis]) = (0, 0);
        }
        let padded = input + window.pads.begin[axis] + window.pads.end[axis];
        let free = padded - extent;
        if free < 0 {
            return Err(Error::invalid(format!(
                "a window of {extent} does not fit into a padded input of {padded}"
            )));
        }
        window.output.push(self.output_size(free, stride, input + window.pads.begin[axis]));
        Ok(())
    }

    /// Windows that start inside the input or its leading pad; with
    /// `ceil_mode` the last may overhang, but not start in the trailing pad.
    fn output_size(&self, free: i64, stride: i64, start_limit: i64) -> usize {
        if !self.ceil_mode {
            return (free / stride + 1) as usize;
        }
        let count = (free + stride - 1) / stride + 1;
        let last_start = (count - 1) * stride;
        (if last_start >= start_limit { count - 1 } else { count }).max(0) as usize
    }
}

impl Window {
    /// Size of the dilated kernel along `axis`.
    fn extent(&self, axis: usize) -> Result<i64> {
        (self.kernel[axis] as i64 - 1)
            .checked_mul(self.dilations[axis] as i64)
            .and_then(|extent| extent.checked_add(1))
            .filter(|&extent| extent < i64::from(i32::MAX))
            .ok_or_else(|| Error::invalid("the dilated kernel is too large"))
    }

    pub(crate) fn rank(&self) -> usize {
        self.input.len()
    }

    /// The same window with leading dimensions of size 1 up to `rank`.
    pub(crate) fn lifted(&self, rank: usize) -> Self {
        let missing = rank.saturating_sub(self.rank());
        let lift = |dims: &Dims| -> Dims {
            std::iter::repeat_n(1, missing).chain(dims.iter().copied()).collect()
        };
        let lift_pads = |pads: &SmallVec<[i64; 3]>| {
            std::iter::repeat_n(0, missing).chain(pads.iter().copied()).collect()
        };
        Self {
            input: lift(&self.input),
            kernel: lift(&self.kernel),
            strides: lift(&self.strides),
            dilations: lift(&self.dilations),
            pads: Pads { begin: lift_pads(&self.pads.begin), end: lift_pads(&self.pads.end) },
            output: lift(&self.output),
        }
    }

    /// Input coordinate that kernel tap `tap` of output `out` reads along
    /// `axis`, or `None` in the padding.
    pub(crate) fn source(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        let at =
            (out * self.strides[axis] + tap * self.dilations[axis]) as i64 - self.pads.begin[axis];
        (at >= 0 && (at as usize) < self.input[axis]).then_some(at as usize)
    }

    /// No padding, stride or extent: each output reads one input.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel.iter().chain(&self.strides).all(|&value| value == 1)
            && self.pads.begin.iter().chain(&self.pads.end).all(|&pad| pad == 0)
    }
}

impl Pads {
    pub(crate) fn zero(rank: usize) -> Self {
        Self { begin: SmallVec::from_elem(0, rank), end: SmallVec::from_elem(0, rank) }
    }
}

fn or_ones(values: &Option<Dims>, rank: usize, name: &str) -> Result<Dims> {
    match values {
        None => Ok(Dims::from_elem(1, rank)),
        Some(values) if values.len() == rank => Ok(values.clone()),
        Some(_) => Err(Error::invalid(format!("{name} must have {rank} entries"))),
    }
}

fn positive_dims(node: &NodeDef, name: &str, values: &[i64]) -> Result<Dims> {
    values
        .iter()
        .map(|&value| i32::try_from(value).ok().filter(|&v| v > 0).map(|v| v as usize))
        .collect::<Option<Dims>>()
        .ok_or_else(|| {
            Error::invalid(format!("{}: {name} {values:?} must be positive", node.describe()))
        })
}

fn parse_pads(node: &NodeDef, values: &[i64]) -> Result<Pads> {
    let fits = values.len().is_multiple_of(2)
        && values.iter().all(|&value| value.unsigned_abs() < i32::MAX as u64);
    if !fits {
        return Err(Error::invalid(format!("{}: pads {values:?} are invalid", node.describe())));
    }
    let (begin, end) = values.split_at(values.len() / 2);
    Ok(Pads { begin: begin.into(), end: end.into() })
}

fn parse_auto_pad(node: &NodeDef, text: Option<&str>) -> Result<AutoPad> {
    match text {
        None | Some("NOTSET" | "") => Ok(AutoPad::NotSet),
        Some("VALID") => Ok(AutoPad::Valid),
        Some("SAME_UPPER") => Ok(AutoPad::SameUpper),
        Some("SAME_LOWER") => Ok(AutoPad::SameLower),
        Some(other) => {
            Err(Error::unsupported(format!("{}: auto_pad \"{other}\"", node.describe())))
        }
    }
}
