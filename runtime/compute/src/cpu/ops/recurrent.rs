//! RNN, GRU and LSTM in f32 (f16, bf16 and f64 are converted there and back).
//!
//! One code path serves all three: per direction, the input projection of all
//! time steps is one matrix product, and each step adds the projection of the
//! hidden state before the cell's own arithmetic.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use mortise_types::{DType, Error, NodeDef, Result, Tensor, bf16, f16};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::Matrix;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "RNN", since: 7, build: |node| Recurrent::build(node, Cell::Rnn) },
    Entry { op: "GRU", since: 7, build: |node| Recurrent::build(node, Cell::Gru) },
    Entry { op: "LSTM", since: 7, build: |node| Recurrent::build(node, Cell::Lstm) },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Rnn,
    Gru,
    Lstm,
}

impl Cell {
    /// Gates stacked in the weights: `i o f c` for LSTM, `z r h` for GRU.
    fn gates(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru => 3,
            Self::Lstm => 4,
        }
    }

    fn default_activations(self) -> &'static [&'static str] {
        match self {
            Self::Rnn => &["Tanh"],
            Self::Gru => &["Sigmoid", "Tanh"],
            Self::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Activation {
    Relu,
    Tanh,
    Sigmoid,
    Affine(f32, f32),
    LeakyRelu(f32),
    ThresholdedRelu(f32),
    ScaledTanh(f32, f32),
    HardSigmoid(f32, f32),
    Elu(f32),
    Softsign,
    Softplus,
}

impl Activation {
    fn parse(name: &str, alpha: Option<f32>, beta: Option<f32>) -> Option<Self> {
        let a = |default| alpha.unwrap_or(default);
        let b = |default| beta.unwrap_or(default);
        Some(match name.to_ascii_lowercase().as_str() {
            "relu" => Self::Relu,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "affine" => Self::Affine(a(1.0), b(0.0)),
            "leakyrelu" => Self::LeakyRelu(a(0.01)),
            "thresholdedrelu" => Self::ThresholdedRelu(a(1.0)),
            "scaledtanh" => Self::ScaledTanh(a(1.0), b(1.0)),
            "hardsigmoid" => Self::HardSigmoid(a(0.2), b(0.5)),
            "elu" => Self::Elu(a(1.0)),
            "softsign" => Self::Softsign,
            "softplus" => Self::Softplus,
            _ => return None,
        })
    }

    fn apply(self, x: f32) -> f32 {
        match self {
            Self::Relu => x.max(0.0),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Affine(a, b) => a * x + b,
            Self::LeakyRelu(a) => {
                if x < 0.0 {
                    a * x
                } else {
                    x
                }
            }
            Self::ThresholdedRelu(a) => {
                if x > a {
                    x
                } else {
                    0.0
                }
            }
            Self::ScaledTanh(a, b) => a * (b * x).tanh(),
            Self::HardSigmoid(a, b) => (a * x + b).clamp(0.0, 1.0),
            Self::Elu(a) => {
                if x < 0.0 {
                    a * x.exp_m1()
                } else {
                    x
                }
            }
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }
}

struct Recurrent {
    cell: Cell,
    /// `forward`, `reverse`, or both in that order.
    directions: Vec<Direction>,
    clip: Option<f32>,
    batch_first: bool,
    linear_before_reset: bool,
    input_forget: bool,
}

struct Direction {
    reverse: bool,
    activations: Vec<Activation>,
}

impl Recurrent {
    fn build(node: &NodeDef, cell: Cell) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            cell,
            directions: parse_directions(node, cell)?,
            clip: attributes.float("clip")?,
            batch_first: attributes.int_or("layout", 0)? != 0,
            linear_before_reset: attributes.int_or("linear_before_reset", 0)? != 0,
            input_forget: attributes.int_or("input_forget", 0)? != 0,
        }))
    }

    fn sizes(&self, inputs: &Inputs<'_>) -> Result<Sizes> {
        let (x, w, r) = (inputs.tensor(0)?, inputs.tensor(1)?, inputs.tensor(2)?);
        let (gates, directions) = (self.cell.gates(), self.directions.len());
        let fits = x.rank() == 3
            && w.rank() == 3
            && r.rank() == 3
            && w.shape()[0] == directions
            && r.shape()[0] == directions
            && w.shape()[2] == x.shape()[2]
            && r.shape()[1] == w.shape()[1]
            && gates.checked_mul(r.shape()[2]) == Some(w.shape()[1]);
        if !fits {
            return Err(Error::invalid(format!(
                "{:?}: X {:?}, W {:?} and R {:?} do not fit {directions} direction(s)",
                self.cell,
                x.shape(),
                w.shape(),
                r.shape()
            )));
        }
        let (first, second) = (x.shape()[0], x.shape()[1]);
        let (steps, batch) = if self.batch_first { (second, first) } else { (first, second) };
        Ok(Sizes { steps, batch, input: x.shape()[2], hidden: r.shape()[2], gates, directions })
    }

    fn operands(&self, inputs: &Inputs<'_>, sizes: &Sizes) -> Result<Operands> {
        let (d, h, b) = (sizes.directions, sizes.hidden, sizes.batch);
        let optional = |index: usize, len: usize, what: &str| -> Result<Option<Vec<f32>>> {
            let Some(tensor) = inputs.optional(index)? else { return Ok(None) };
            if tensor.len() != len {
                return Err(Error::invalid(format!(
                    "{:?}: {what} of shape {:?} does not have {len} elements",
                    self.cell,
                    tensor.shape()
                )));
            }
            floats(tensor).map(Some)
        };
        let mut state = [optional(5, d * b * h, "initial_h")?, None];
        let mut peepholes = None;
        if self.cell == Cell::Lstm {
            state[1] = optional(6, d * b * h, "initial_c")?;
            peepholes = optional(7, d * 3 * h, "P")?;
        }
        let swap = |state: Option<Vec<f32>>| match state {
            Some(values) if self.batch_first => Some(swap_leading(&values, b, d, h)),
            other => other,
        };
        let x = floats(inputs.tensor(0)?)?;
        let [initial_h, initial_c] = state.map(swap);
        Ok(Operands {
            x: if self.batch_first { swap_leading(&x, b, sizes.steps, sizes.input) } else { x },
            w: floats(inputs.tensor(1)?)?,
            r: floats(inputs.tensor(2)?)?,
            bias: optional(3, d * 2 * sizes.gates * h, "B")?,
            lengths: self.lengths(inputs, sizes)?,
            initial_h,
            initial_c,
            peepholes,
        })
    }

    fn lengths(&self, inputs: &Inputs<'_>, sizes: &Sizes) -> Result<Vec<usize>> {
        let Some(tensor) = inputs.optional(4)? else { return Ok(vec![sizes.steps; sizes.batch]) };
        let lengths: Option<Vec<usize>> = tensor
            .as_slice::<i32>()?
            .iter()
            .map(|&len| usize::try_from(len).ok().filter(|&len| len <= sizes.steps))
            .collect();
        lengths.filter(|lengths| lengths.len() == sizes.batch).ok_or_else(|| {
            Error::invalid(format!(
                "{:?}: sequence_lens must be {} numbers from 0 to {}",
                self.cell, sizes.batch, sizes.steps
            ))
        })
    }

    fn run_direction(
        &self,
        ctx: &OpContext<'_>,
        sizes: &Sizes,
        operands: &Operands,
        index: usize,
    ) -> Result<DirectionOutput> {
        let weights = Weights::of(sizes, operands, index);
        let direction = &self.directions[index];
        let projected = project(&operands.x, weights.w, sizes.steps * sizes.batch, sizes)?;
        let state_len = sizes.batch * sizes.hidden;
        let initial = |state: &Option<Vec<f32>>| match state {
            Some(values) => values[index * state_len..(index + 1) * state_len].to_vec(),
            None => vec![0.0; state_len],
        };
        let mut state = State {
            h: initial(&operands.initial_h),
            c: initial(&operands.initial_c),
            y: vec![0.0; sizes.steps * state_len],
        };
        for time in 0..sizes.steps {
            ctx.control.check()?;
            let recurrent = project_hidden(&state.h, weights.r, sizes)?;
            for row in 0..sizes.batch {
                let length = operands.lengths[row];
                if time >= length {
                    continue;
                }
                let at = if direction.reverse { length - 1 - time } else { time };
                let gate_row = (at * sizes.batch + row) * sizes.gates * sizes.hidden;
                let step = Step {
                    activations: &direction.activations,
                    weights: &weights,
                    x: &projected[gate_row..gate_row + sizes.gates * sizes.hidden],
                    r: &recurrent[row * sizes.gates * sizes.hidden..][..sizes.gates * sizes.hidden],
                };
                self.step(sizes, &step, &mut state, row)?;
                let h = &state.h[row * sizes.hidden..(row + 1) * sizes.hidden];
                let out = (at * sizes.batch + row) * sizes.hidden;
                state.y[out..out + sizes.hidden].copy_from_slice(h);
            }
        }
        Ok(DirectionOutput { y: state.y, h: state.h, c: state.c })
    }

    fn clipped(&self, value: f32) -> f32 {
        self.clip.map_or(value, |clip| value.clamp(-clip, clip))
    }

    /// One time step of one row: reads and replaces its state.
    fn step(&self, sizes: &Sizes, step: &Step<'_>, state: &mut State, row: usize) -> Result<()> {
        let range = row * sizes.hidden..(row + 1) * sizes.hidden;
        match self.cell {
            Cell::Rnn => self.rnn_step(step, &mut state.h[range]),
            Cell::Lstm => {
                self.lstm_step(step, &mut state.h[range.clone()], &mut state.c[range]);
            }
            Cell::Gru => self.gru_step(sizes, step, &mut state.h[range])?,
        }
        Ok(())
    }

    fn rnn_step(&self, step: &Step<'_>, h: &mut [f32]) {
        for (unit, h) in h.iter_mut().enumerate() {
            let sum = step.x[unit] + step.r[unit] + step.weights.both_biases(unit);
            *h = step.activations[0].apply(self.clipped(sum));
        }
    }

    fn lstm_step(&self, step: &Step<'_>, h: &mut [f32], c: &mut [f32]) {
        let hidden = h.len();
        let peep = |gate: usize, unit: usize| {
            step.weights.peepholes.map_or(0.0, |values| values[gate * hidden + unit])
        };
        let [f, g, out] = [step.activations[0], step.activations[1], step.activations[2]];
        for unit in 0..hidden {
            let gate = |index: usize| {
                let at = index * hidden + unit;
                step.x[at] + step.r[at] + step.weights.both_biases(at)
            };
            let input = f.apply(self.clipped(gate(0) + peep(0, unit) * c[unit]));
            let forget = if self.input_forget {
                1.0 - input
            } else {
                f.apply(self.clipped(gate(2) + peep(2, unit) * c[unit]))
            };
            c[unit] = forget * c[unit] + input * g.apply(self.clipped(gate(3)));
            let output = f.apply(self.clipped(gate(1) + peep(1, unit) * c[unit]));
            h[unit] = output * out.apply(c[unit]);
        }
    }

    fn gru_step(&self, sizes: &Sizes, step: &Step<'_>, h: &mut [f32]) -> Result<()> {
        let hidden = h.len();
        let [f, g] = [step.activations[0], step.activations[1]];
        let gate = |index: usize, unit: usize| {
            let at = index * hidden + unit;
            f.apply(self.clipped(step.x[at] + step.r[at] + step.weights.both_biases(at)))
        };
        let update: Vec<f32> = (0..hidden).map(|unit| gate(0, unit)).collect();
        let reset: Vec<f32> = (0..hidden).map(|unit| gate(1, unit)).collect();
        let candidate = 2 * hidden..3 * hidden;
        let projected: Vec<f32> = if self.linear_before_reset {
            let (_, bias) = step.weights.biases(candidate.clone());
            (0..hidden)
                .map(|unit| reset[unit] * (step.r[2 * hidden + unit] + at(bias, unit)))
                .collect()
        } else {
            let masked: Vec<f32> = reset.iter().zip(h.iter()).map(|(r, h)| r * h).collect();
            let r = &step.weights.r[2 * hidden * hidden..];
            let one = Sizes { batch: 1, gates: 1, ..*sizes };
            let (_, bias) = step.weights.biases(candidate.clone());
            let product = project_hidden(&masked, r, &one)?;
            product.iter().enumerate().map(|(unit, value)| value + at(bias, unit)).collect()
        };
        let (bias, _) = step.weights.biases(candidate);
        for unit in 0..hidden {
            let sum = step.x[2 * hidden + unit] + at(bias, unit) + projected[unit];
            let new = g.apply(self.clipped(sum));
            h[unit] = (1.0 - update[unit]) * new + update[unit] * h[unit];
        }
        Ok(())
    }
}

impl Operator for Recurrent {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let dtype = inputs.tensor(0)?.dtype();
        let sizes = self.sizes(&inputs)?;
        // The largest intermediate is charged to the arena before it is made.
        let gates = sizes.gates.saturating_mul(sizes.hidden);
        ctx.allocate(DType::F32, &[sizes.steps, sizes.batch, gates, sizes.directions])?;
        let operands = self.operands(&inputs, &sizes)?;
        let results = (0..sizes.directions)
            .map(|index| self.run_direction(ctx, &sizes, &operands, index))
            .collect::<Result<Vec<_>>>()?;
        let outputs = self.assemble(&sizes, &results)?;
        let wanted = if self.cell == Cell::Lstm { 3 } else { 2 };
        outputs
            .into_iter()
            .take(ctx.output_count.clamp(1, wanted))
            .map(|tensor| convert(tensor, dtype).map(Into::into))
            .collect()
    }
}

impl Recurrent {
    /// `Y [T, D, B, H]`, `Y_h [D, B, H]`, `Y_c [D, B, H]`, or with the batch
    /// first: `[B, T, D, H]`, `[B, D, H]`.
    fn assemble(&self, sizes: &Sizes, results: &[DirectionOutput]) -> Result<Vec<Tensor>> {
        let (t, b, h, d) = (sizes.steps, sizes.batch, sizes.hidden, sizes.directions);
        let mut y = Vec::with_capacity(t * d * b * h);
        for time in 0..t {
            for result in results {
                y.extend_from_slice(&result.y[time * b * h..(time + 1) * b * h]);
            }
        }
        let last: Vec<f32> = results.iter().flat_map(|result| result.h.iter().copied()).collect();
        let cell: Vec<f32> = results.iter().flat_map(|result| result.c.iter().copied()).collect();
        if self.batch_first {
            return Ok(vec![
                Tensor::from_vec(&[b, t, d, h], swap_leading(&y, t * d, b, h))?,
                Tensor::from_vec(&[b, d, h], swap_leading(&last, d, b, h))?,
                Tensor::from_vec(&[b, d, h], swap_leading(&cell, d, b, h))?,
            ]);
        }
        Ok(vec![
            Tensor::from_vec(&[t, d, b, h], y)?,
            Tensor::from_vec(&[d, b, h], last)?,
            Tensor::from_vec(&[d, b, h], cell)?,
        ])
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    steps: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    gates: usize,
    directions: usize,
}

struct Operands {
    x: Vec<f32>,
    w: Vec<f32>,
    r: Vec<f32>,
    bias: Option<Vec<f32>>,
    lengths: Vec<usize>,
    initial_h: Option<Vec<f32>>,
    initial_c: Option<Vec<f32>>,
    peepholes: Option<Vec<f32>>,
}

struct State {
    h: Vec<f32>,
    c: Vec<f32>,
    y: Vec<f32>,
}

struct DirectionOutput {
    y: Vec<f32>,
    h: Vec<f32>,
    c: Vec<f32>,
}

/// The part of the operands that belongs to one direction.
struct Weights<'a> {
    w: &'a [f32],
    r: &'a [f32],
    /// Biases of the input and of the hidden projection.
    bias: Option<(&'a [f32], &'a [f32])>,
    peepholes: Option<&'a [f32]>,
}

impl<'a> Weights<'a> {
    fn of(sizes: &Sizes, operands: &'a Operands, index: usize) -> Self {
        let gates = sizes.gates * sizes.hidden;
        let part = |values: &'a [f32], len: usize| &values[index * len..(index + 1) * len];
        Self {
            w: part(&operands.w, gates * sizes.input),
            r: part(&operands.r, gates * sizes.hidden),
            bias: operands.bias.as_deref().map(|bias| part(bias, 2 * gates).split_at(gates)),
            peepholes: operands.peepholes.as_deref().map(|p| part(p, 3 * sizes.hidden)),
        }
    }

    fn both_biases(&self, at: usize) -> f32 {
        self.bias.map_or(0.0, |(input, hidden)| input[at] + hidden[at])
    }

    fn biases(&self, range: std::ops::Range<usize>) -> (Option<&'a [f32]>, Option<&'a [f32]>) {
        match self.bias {
            Some((input, hidden)) => (Some(&input[range.clone()]), Some(&hidden[range])),
            None => (None, None),
        }
    }
}

fn at(values: Option<&[f32]>, index: usize) -> f32 {
    values.map_or(0.0, |values| values[index])
}

/// What one step of one row reads: its gate projections of input and state.
struct Step<'a> {
    activations: &'a [Activation],
    weights: &'a Weights<'a>,
    x: &'a [f32],
    r: &'a [f32],
}

/// `x [rows, input] · wᵀ` for `w [gates * hidden, input]`.
fn project(x: &[f32], w: &[f32], rows: usize, sizes: &Sizes) -> Result<Vec<f32>> {
    product(x, w, [rows, sizes.input, sizes.gates * sizes.hidden])
}

fn project_hidden(h: &[f32], r: &[f32], sizes: &Sizes) -> Result<Vec<f32>> {
    product(h, r, [sizes.batch, sizes.hidden, sizes.gates * sizes.hidden])
}

fn product(a: &[f32], b: &[f32], [rows, depth, cols]: [usize; 3]) -> Result<Vec<f32>> {
    let mut out = vec![0.0; rows * cols];
    if rows == 0 || depth == 0 || cols == 0 {
        return Ok(out);
    }
    let wrong = |_| Error::internal("a recurrent product has the wrong size");
    let a = Matrix::try_from_data([rows, depth], a).map_err(wrong)?;
    let b =
        Matrix::try_from_data([cols, depth], b.get(..cols * depth).unwrap_or(b)).map_err(wrong)?;
    GemmExecutor::<f32>::new()
        .gemm(
            &mut out,
            GemmInputA::Unpacked(a),
            GemmInputB::Unpacked(b.transposed()),
            GemmOptions::default(),
        )
        .map_err(|error| Error::internal(format!("a recurrent product: {error}")))?;
    Ok(out)
}

/// `[first, second, inner]` to `[second, first, inner]`.
fn swap_leading(values: &[f32], first: usize, second: usize, inner: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for j in 0..second {
        for i in 0..first {
            out.extend_from_slice(&values[(i * second + j) * inner..][..inner]);
        }
    }
    out
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(match tensor.dtype() {
        DType::F32 => tensor.as_slice::<f32>()?.to_vec(),
        DType::F64 => tensor.as_slice::<f64>()?.iter().map(|&value| value as f32).collect(),
        DType::F16 => tensor.as_slice::<f16>()?.iter().map(|value| value.to_f32()).collect(),
        DType::BF16 => tensor.as_slice::<bf16>()?.iter().map(|value| value.to_f32()).collect(),
        dtype => return Err(Error::unsupported(format!("a recurrent layer of {dtype}"))),
    })
}

fn convert(tensor: Tensor, dtype: DType) -> Result<Tensor> {
    let (shape, values) = (tensor.shape(), tensor.as_slice::<f32>()?);
    match dtype {
        DType::F64 => Tensor::from_vec(shape, values.iter().map(|&v| f64::from(v)).collect()),
        DType::F16 => Tensor::from_vec(shape, values.iter().map(|&v| f16::from_f32(v)).collect()),
        DType::BF16 => Tensor::from_vec(shape, values.iter().map(|&v| bf16::from_f32(v)).collect()),
        _ => Ok(tensor),
    }
}

fn parse_directions(node: &NodeDef, cell: Cell) -> Result<Vec<Direction>> {
    let attributes = Attributes(node);
    let reverse: &[bool] = match attributes.text("direction")?.unwrap_or("forward") {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => {
            return Err(Error::invalid(format!("{}: direction \"{other}\"", node.describe())));
        }
    };
    let defaults = cell.default_activations();
    let names: Vec<String> = match attributes.texts("activations")? {
        Some(names) if !names.is_empty() => {
            names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        }
        _ => defaults
            .iter()
            .cycle()
            .take(defaults.len() * reverse.len())
            .map(|name| (*name).to_owned())
            .collect(),
    };
    if names.len() != defaults.len() * reverse.len() {
        return Err(Error::invalid(format!(
            "{}: {} activations, expected {}",
            node.describe(),
            names.len(),
            defaults.len() * reverse.len()
        )));
    }
    let activations = parse_activations(node, &names)?;
    Ok(reverse
        .iter()
        .zip(activations.chunks_exact(defaults.len()))
        .map(|(&reverse, activations)| Direction { reverse, activations: activations.to_vec() })
        .collect())
}

/// Alphas and betas are listed only for the activations that take them.
fn parse_activations(node: &NodeDef, names: &[String]) -> Result<Vec<Activation>> {
    let attributes = Attributes(node);
    let mut alphas = attributes.floats("activation_alpha")?.unwrap_or_default().iter().copied();
    let mut betas = attributes.floats("activation_beta")?.unwrap_or_default().iter().copied();
    names
        .iter()
        .map(|name| {
            let lower = name.to_ascii_lowercase();
            let takes_both = matches!(lower.as_str(), "affine" | "scaledtanh" | "hardsigmoid");
            let takes_alpha =
                takes_both || matches!(lower.as_str(), "leakyrelu" | "thresholdedrelu" | "elu");
            let alpha = if takes_alpha { alphas.next() } else { None };
            let beta = if takes_both { betas.next() } else { None };
            Activation::parse(name, alpha, beta).ok_or_else(|| {
                Error::unsupported(format!("{}: activation \"{name}\"", node.describe()))
            })
        })
        .collect()
}
