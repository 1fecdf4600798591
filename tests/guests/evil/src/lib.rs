//! A model that does what its configuration tells it to:
//! `{"behave": "<name>"}`, with the names of [`Behave`] in kebab case. With
//! `"when": "negative"` it misbehaves only when the first element of its input
//! is negative, and echoes the input otherwise.
//!
//! It takes `x`, FP32 `[-1]`, and answers `y` of the same.

use mortise_plugin_sdk::{
    Context, DType, Error, Graph, GraphBuilder, Loaded, Model, Result, Signature, Tensor,
    TensorSpec, export_model, log,
};
use std::hint::black_box;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    behave: Behave,
    #[serde(default)]
    when: When,
}

#[derive(serde::Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum When {
    #[default]
    Always,
    Negative,
}

#[derive(serde::Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum Behave {
    /// Answers with its input.
    #[default]
    Echo,
    /// Never returns from `predict`.
    Loop,
    /// Traps in `predict`.
    Trap,
    /// Recurses without end.
    StackOverflow,
    /// Allocates without end.
    MemoryBomb,
    /// Makes tensors without end.
    HandleBomb,
    /// Makes large tensors without end.
    TensorBomb,
    /// Calls the host without end.
    CallBomb,
    /// Logs 100,000 lines, then answers.
    LogFlood,
    /// Logs one line of a megabyte, with control characters, then answers.
    LogLine,
    WrongShape,
    WrongDtype,
    WrongCount,
    /// Makes a tensor whose shape says more than its data.
    LyingLength,
    /// Makes a tensor with more elements than a machine can count.
    HugeShape,
    /// Makes strings whose offsets lie outside their bytes.
    LyingOffsets,
    Panic,
    /// Returns an error of each kind.
    ErrorInvalid,
    ErrorUnsupported,
    ErrorFailed,
    /// Runs a graph without end, once per call.
    RunLoop,

    /// The rest act in `load`.
    PanicInLoad,
    LoopInLoad,
    MemoryBombInLoad,
    ErrorInLoad,
    BadSignature,
    /// Another signature in the second instance is not possible without
    /// state, so this one takes it from the assets it is not given.
    MissingAsset,
    /// Its plan is an ONNX Loop that never ends.
    OnnxLoop,
    /// Its plan makes a tensor of 2^60 elements.
    ShapeBomb,
    /// Its plan holds a constant expression of 2^40 elements.
    FoldBomb,
    /// Its plan doubles a small tensor sixty times, by name and not by shape.
    DoublingBomb,
    /// Adds nodes without end.
    NodeBomb,
    /// Opens subgraphs without end.
    NestingBomb,
    /// Starts graph builders without end.
    BuilderBomb,
    /// Uses the builder wrongly in every way, then behaves.
    MisuseBuilder,
    /// An operator that does not exist.
    UnknownOp,
}

struct Evil {
    config: Config,
    graph: Option<Graph>,
}

fn x_spec() -> TensorSpec {
    TensorSpec::new("x", DType::F32, [-1])
}

impl Model for Evil {
    fn load(ctx: &Context) -> Result<Loaded<Self>> {
        let config: Config = ctx.config()?;
        let graph = match config.behave {
            Behave::PanicInLoad => panic!("boom in load"),
            Behave::LoopInLoad => endless(),
            Behave::MemoryBombInLoad => memory_bomb(),
            Behave::ErrorInLoad => return Err(Error::invalid("this model is not to be loaded")),
            Behave::MissingAsset => ctx.assets().read_all("model", 10).map(|_| None)?,
            Behave::OnnxLoop => return Ok(Loaded::Direct(endless_graph()?)),
            Behave::ShapeBomb => return Ok(Loaded::Direct(shape_bomb()?)),
            Behave::FoldBomb => return Ok(Loaded::Direct(fold_bomb()?)),
            Behave::DoublingBomb => return Ok(Loaded::Direct(doubling_bomb()?)),
            Behave::NodeBomb => return node_bomb().map(Loaded::Direct),
            Behave::NestingBomb => return nesting_bomb().map(Loaded::Direct),
            Behave::BuilderBomb => return builder_bomb(),
            Behave::UnknownOp => return Ok(Loaded::Direct(one_node("Frobnicate")?)),
            Behave::MisuseBuilder => misuse_builder().map(|()| None)?,
            Behave::RunLoop => Some(endless_graph()?),
            _ => None,
        };
        let mut outputs = vec![TensorSpec::new("y", DType::F32, [-1])];
        if matches!(config.behave, Behave::BadSignature) {
            outputs.push(TensorSpec::new("y", DType::F32, [-7]));
        }
        let signature = Signature { inputs: vec![x_spec()], outputs };
        Ok(Loaded::Custom { signature, plugin: Self { config, graph } })
    }

    fn predict(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let values = inputs[0].to_vec::<f32>()?;
        let negative = values.first().is_some_and(|&first| first < 0.0);
        if self.config.when == When::Always || negative {
            self.misbehave(&inputs[0], &values)
        } else {
            echo(&values)
        }
    }
}

impl Evil {
    fn misbehave(&self, input: &Tensor, values: &[f32]) -> Result<Vec<Tensor>> {
        match self.config.behave {
            Behave::Loop => endless(),
            Behave::Trap => trap(),
            Behave::StackOverflow => echo(&[recurse(values.len() as f32)]),
            Behave::MemoryBomb => memory_bomb(),
            Behave::HandleBomb => handle_bomb(1),
            Behave::TensorBomb => handle_bomb(1 << 20),
            Behave::CallBomb => loop {
                black_box(input.len());
            },
            Behave::LogFlood => {
                (0..100_000).for_each(|line| log::info!("line {line}"));
                echo(values)
            }
            Behave::LogLine => {
                log::warn!("forged\nline {}", "x".repeat(1 << 20));
                echo(values)
            }
            Behave::WrongShape => Ok(vec![Tensor::from_slice(&[values.len(), 1], values)?]),
            Behave::WrongDtype => Ok(vec![Tensor::from_slice(&[1], &[7i64])?]),
            Behave::WrongCount => Ok(Vec::new()),
            Behave::LyingLength => Ok(vec![Tensor::from_slice(&[values.len() + 1], values)?]),
            Behave::HugeShape => Ok(vec![Tensor::from_slice(&[1 << 31, 1 << 31, 4], values)?]),
            Behave::LyingOffsets => Ok(vec![Tensor::from_strings(&[3], ["only one"])?]),
            Behave::Panic => panic!("boom in predict"),
            Behave::ErrorInvalid => Err(Error::invalid("x must be tame")),
            Behave::ErrorUnsupported => Err(Error::unsupported("wild x")),
            Behave::ErrorFailed => Err(Error::failed("out of luck")),
            Behave::RunLoop => match &self.graph {
                Some(graph) => graph.run(&[input]),
                None => Err(Error::failed("no graph")),
            },
            _ => echo(values),
        }
    }
}

fn echo(values: &[f32]) -> Result<Vec<Tensor>> {
    Ok(vec![Tensor::from_slice(&[values.len()], values)?])
}

fn endless<T>() -> T {
    let mut count = 0u64;
    loop {
        count = black_box(count.wrapping_add(1));
    }
}

fn trap<T>() -> T {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
}

/// Recurses without end and without locals in linear memory, so that it is the
/// engine's stack that overflows. Two calls keep it from becoming a loop.
fn recurse(value: f32) -> f32 {
    if value.is_nan() {
        return value;
    }
    recurse(value + 1.0) * 0.5 + recurse(value - 1.0)
}

fn memory_bomb<T>() -> T {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    loop {
        hoard.push(black_box(vec![1; 1 << 20]));
    }
}

fn handle_bomb<T>(elements: usize) -> Result<T> {
    let values = vec![0f32; elements];
    let mut hoard = Vec::new();
    loop {
        hoard.push(Tensor::from_slice(&[elements], &values)?);
    }
}

/// `while true { x = x + x }` from any `x`.
fn endless_graph() -> Result<Graph> {
    let g = GraphBuilder::new();
    let x = g.input(&x_spec())?;
    let count = g.scalar(i64::MAX)?;
    let yes = g.constant(&Tensor::from_bools(&[], &[true])?)?;
    let body = g.begin_subgraph(3)?;
    let keep = g.node("Identity").input(body[1]).output()?;
    let next = g.node("Tanh").input(body[2]).output()?;
    let body = g.end_subgraph(&[keep, next])?;
    let y = g.node("Loop").inputs([count, yes, x]).attribute("body", body).output()?;
    g.output("y", y)?;
    g.finish()
}

/// An output 2^58 times as large as the input.
fn shape_bomb() -> Result<Graph> {
    let g = GraphBuilder::new();
    let x = g.input(&x_spec())?;
    let shape = g.vector(&[1i64 << 30, 1 << 28, 1])?;
    let y = g.node("Expand").inputs([x, shape]).output()?;
    g.output("y", y)?;
    g.finish()
}

/// A constant expression that takes 4 TiB if it is folded.
fn fold_bomb() -> Result<Graph> {
    let g = GraphBuilder::new();
    let x = g.input(&x_spec())?;
    let shape = g.vector(&[1i64 << 20, 1 << 20])?;
    let zeros = g.node("ConstantOfShape").input(shape).output()?;
    let sum = g.node("ReduceSum").input(zeros).attribute("keepdims", 0i64).output()?;
    let y = g.node("Add").inputs([x, sum]).output()?;
    g.output("y", y)?;
    g.finish()
}

/// Grows only while it runs.
fn doubling_bomb() -> Result<Graph> {
    let g = GraphBuilder::new();
    let mut value = g.input(&x_spec())?;
    for _ in 0..60 {
        value = g.node("Concat").inputs([value, value]).attribute("axis", 0i64).output()?;
    }
    g.output("y", value)?;
    g.finish()
}

fn node_bomb() -> Result<Graph> {
    let g = GraphBuilder::new();
    let mut value = g.input(&x_spec())?;
    loop {
        value = g.node("Relu").input(value).output()?;
    }
}

fn nesting_bomb() -> Result<Graph> {
    let g = GraphBuilder::new();
    loop {
        g.begin_subgraph(1)?;
    }
}

fn builder_bomb<T>() -> Result<T> {
    let mut hoard = Vec::new();
    loop {
        hoard.push(GraphBuilder::new());
    }
}

fn one_node(op: &str) -> Result<Graph> {
    let g = GraphBuilder::new();
    let x = g.input(&x_spec())?;
    let y = g.node(op).name("n1").input(x).output()?;
    g.output("y", y)?;
    g.finish()
}

fn misuse_builder() -> Result<()> {
    let g = GraphBuilder::new();
    let x = g.input(&x_spec())?;
    let outer = g.begin_subgraph(1)?;
    let subgraph = g.end_subgraph(&[outer[0]])?;
    let used_after_end = g.node("Relu").input(outer[0]).output().err();
    let never_opened = g.end_subgraph(&[x]).err();
    g.begin_subgraph(0)?;
    let other_body = g.node("Loop").attribute("body", subgraph).output().err();
    let output_inside = g.output("y", x).err();
    let unfinished = g.finish().err();
    let all = [used_after_end, never_opened, other_body, output_inside, unfinished];
    match all.iter().position(Option::is_none) {
        None => Ok(()),
        Some(index) => Err(Error::failed(format!("misuse {index} was accepted"))),
    }
}

export_model!(Evil);
