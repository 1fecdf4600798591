//! Signal processing: Fourier transforms, the windows in front of them, and
//! the mel scale behind them.

mod fourier;
mod transform;

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::cast_tensor;
use crate::cpu::ops::layout::{dim, doubles, integers, one_integer};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;
use std::f64::consts::PI;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "BlackmanWindow", since: 17, build: |node| Window::build(node, blackman) },
    Entry { op: "DFT", since: 17, build: transform::Dft::build },
    Entry { op: "DFT", since: 20, build: transform::Dft::build_with_axis_input },
    Entry { op: "HammingWindow", since: 17, build: |node| Window::build(node, hamming) },
    Entry { op: "HannWindow", since: 17, build: |node| Window::build(node, hann) },
    Entry { op: "MelWeightMatrix", since: 17, build: MelWeightMatrix::build },
    Entry { op: "STFT", since: 17, build: transform::Stft::build },
];

/// The weight at a phase of 0 to 2π.
type Shape = fn(f64) -> f64;

fn hann(phase: f64) -> f64 {
    (phase / 2.0).sin().powi(2)
}

fn hamming(phase: f64) -> f64 {
    const ALPHA: f64 = 25.0 / 46.0;
    ALPHA - (1.0 - ALPHA) * phase.cos()
}

fn blackman(phase: f64) -> f64 {
    0.42 - 0.5 * phase.cos() + 0.08 * (2.0 * phase).cos()
}

/// The dtype that an attribute of numbers of `TensorProto.DataType` names.
fn output_dtype(node: &NodeDef) -> Result<DType> {
    let number = Attributes(node).int_or("output_datatype", 1)?;
    i32::try_from(number).ok().and_then(DType::from_onnx).ok_or_else(|| {
        Error::invalid(format!("{}: output_datatype = {number} is no dtype", node.describe()))
    })
}

/// A window of a given length.
struct Window {
    shape: Shape,
    periodic: bool,
    dtype: DType,
}

impl Window {
    fn build(node: &NodeDef, shape: Shape) -> Result<Box<dyn Operator>> {
        let periodic = Attributes(node).int_or("periodic", 1)? != 0;
        Ok(Box::new(Self { shape, periodic, dtype: output_dtype(node)? }))
    }
}

impl Operator for Window {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let length = dim(one_integer(inputs.tensor(0)?)?)?;
        let mut window = ctx.allocate(DType::F64, &[length])?;
        let period = if self.periodic { length } else { length.saturating_sub(1) };
        let step = 2.0 * PI / period.max(1) as f64;
        for (at, value) in window.as_mut_slice::<f64>()?.iter_mut().enumerate() {
            *value = (self.shape)(at as f64 * step);
        }
        Ok(smallvec![cast_tensor(ctx, &window, self.dtype)?.into()])
    }
}

/// Weights that turn a spectrum into triangular bands of the mel scale.
struct MelWeightMatrix(DType);

impl MelWeightMatrix {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(output_dtype(node)?)))
    }
}

/// The bins of the spectrum at which bands begin, peak and end.
fn band_edges(bands: usize, length: i64, rate: i64, [low, high]: [f64; 2]) -> Vec<i64> {
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let step = (mel(high) - mel(low)) / (bands as f64 + 2.0);
    let edge = |band: usize| {
        let hertz = 700.0 * (10f64.powf((band as f64 * step + mel(low)) / 2595.0) - 1.0);
        ((length as f64 + 1.0) * hertz / rate as f64).floor() as i64
    };
    (0..bands.saturating_add(2)).map(edge).collect()
}

impl Operator for MelWeightMatrix {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let integer = |index: usize| one_integer(inputs.tensor(index)?);
        let (bands, length, rate) = (dim(integer(0)?)?, dim(integer(1)?)?, integer(2)?);
        let hertz = |index: usize| -> Result<f64> {
            let wide = cast_tensor(ctx, inputs.tensor(index)?, DType::F64)?;
            match *wide.as_slice::<f64>()? {
                [hertz] => Ok(hertz),
                _ => Err(Error::invalid("the edges of the scale are one number each")),
            }
        };
        let range = [hertz(3)?, hertz(4)?];
        let bins = length / 2 + 1;
        let mut matrix = ctx.allocate(DType::F64, &[bins, bands])?;
        let cells = matrix.as_mut_slice::<f64>()?;
        cells.fill(0.0);
        let edges = band_edges(bands, length as i64, rate, range);
        for (band, edge) in edges.windows(3).enumerate() {
            let &[low, peak, high] = edge else { continue };
            if low < 0 || high < peak || peak < low || high as usize > bins {
                return Err(Error::invalid(format!("band {band} is outside of the spectrum")));
            }
            for bin in low..high.max(peak + 1).min(bins as i64) {
                cells[bin as usize * bands + band] = triangle(bin, [low, peak, high]);
            }
        }
        Ok(smallvec![cast_tensor(ctx, &matrix, self.0)?.into()])
    }
}

/// Rises from `low` to 1 at `peak`, and falls to 0 at `high`.
fn triangle(bin: i64, [low, peak, high]: [i64; 3]) -> f64 {
    if bin < peak {
        (bin - low) as f64 / (peak - low) as f64
    } else if bin == peak {
        1.0
    } else {
        (high - bin) as f64 / (high - peak) as f64
    }
}

/// The numbers of a signal that is `[…, 1]` (real) or `[…, 2]` (complex), as
/// pairs.
fn complex(ctx: &OpContext<'_>, signal: &Tensor) -> Result<Vec<[f64; 2]>> {
    let wide = cast_tensor(ctx, signal, DType::F64)?;
    let values = doubles(&wide)?;
    match signal.shape().last() {
        Some(1) => Ok(values.iter().map(|&real| [real, 0.0]).collect()),
        Some(2) => Ok(values.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()),
        _ => Err(Error::invalid(format!("a signal must end in 1 or 2 numbers, got {signal:?}"))),
    }
}

/// The optional length at `index`.
fn length(inputs: &Inputs<'_>, index: usize) -> Result<Option<usize>> {
    let Some(tensor) = inputs.optional(index)? else { return Ok(None) };
    match integers(tensor)?.as_ref() {
        &[length] if length > 0 => Ok(Some(dim(length)?)),
        other => Err(Error::invalid(format!("a length cannot be {other:?}"))),
    }
}
