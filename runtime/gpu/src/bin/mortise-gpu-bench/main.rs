//! Measures the GPU's kernels and prints one JSON object as the last line.
//! `tests/bench/gpu.sh` runs it and puts torch beside it.
//!
//! Usage: `mortise-gpu-bench [--adapter N] [--small] [--record] [--choices]
//! [--profile] [--tuning FILE]`; `--small` keeps to sizes that a software adapter can do,
//! `--record` to what recording a dispatch costs, `--choices` to the times of one
//! product with every choice of tiles, `--profile` to those of each dispatch of the
//! models. What is tuned for the adapter is read
//! from the file, and kept there.

mod models;

use mortise_compute::{CpuDevice, CpuOptions, Device, compile_graph};
use mortise_gpu::{Bench, GpuDevice, RecordTimes, Weights, adapters};
use mortise_graph::GraphLimits;
use mortise_types::{
    Assets, DType, Error, GraphDef, NodeDef, Result, RunControl, Tensor, TensorSpec, ValueDef,
    ValueId, ValueSource,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

struct Options {
    adapter: usize,
    small: bool,
    only_record: bool,
    only_choices: bool,
    only_profile: bool,
    tuning: Option<PathBuf>,
}

/// Products on matrix units that have to give the same bits.
const STABLE: usize = 1_000;

/// How weights are stored, by name.
const FORMATS: [(&str, Weights); 4] = [
    ("f32", Weights::F32),
    ("f16", Weights::F16),
    ("int8", Weights::Int8),
    ("int4", Weights::Int4),
];

fn main() -> Result<()> {
    let options = parse(std::env::args().skip(1))?;
    let report = report(&options)?;
    println!("{report}");
    Ok(())
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let found = adapters();
    let hardware = found.iter().find(|adapter| !adapter.is_software);
    let mut options = Options {
        adapter: hardware.map_or(0, |a| a.index),
        small: false,
        only_record: false,
        only_choices: false,
        only_profile: false,
        tuning: None,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--small" => options.small = true,
            "--record" => options.only_record = true,
            "--choices" => options.only_choices = true,
            "--profile" => options.only_profile = true,
            "--tuning" => {
                let file = arguments.next();
                let file = file.ok_or_else(|| Error::invalid("--tuning takes a file"))?;
                options.tuning = Some(file.into());
            }
            "--adapter" => {
                let index = arguments.next().and_then(|text| text.parse().ok());
                options.adapter =
                    index.ok_or_else(|| Error::invalid("--adapter takes a number"))?;
            }
            other => return Err(Error::invalid(format!("unknown option {other}"))),
        }
    }
    if found.get(options.adapter).is_none() {
        return Err(Error::not_found(format!("there is no adapter {}", options.adapter)));
    }
    Ok(options)
}

fn report(options: &Options) -> Result<Value> {
    let mut bench = Bench::open(options.adapter, options.tuning.as_deref())?;
    eprintln!("measuring {}", bench.name());
    if options.only_record {
        return Ok(json!({ "machine": bench.name(), "record": record(&bench)? }));
    }
    if options.only_choices {
        let choices = choices(&mut bench, options)?;
        return Ok(json!({ "machine": bench.name(), "choices": choices }));
    }
    if options.only_profile {
        let scale = if options.small { &models::SMALL } else { &models::FULL };
        return Ok(json!({ "machine": bench.name(), "profiles": models::profile(&bench, scale)? }));
    }
    let bandwidth = bench.bandwidth(if options.small { 16 << 20 } else { 512 << 20 })?;
    let kernels = kernels(&bench, options, bandwidth)?;
    let unstable = bench.unstable_products(if options.small { 20 } else { STABLE })?;
    let cpu = CpuDevice::new(CpuOptions { threads: 1 });
    let device = GpuDevice::open(options.adapter, cpu, options.tuning.clone())?;
    let scale = if options.small { &models::SMALL } else { &models::FULL };
    Ok(json!({
        "machine": bench.name(),
        "bandwidth_gbs": bandwidth,
        "kernels": kernels,
        "record": record(&bench)?,
        "mlp_p50_us": mlp_p50_us(&*device, options)?,
        "models": models::measure(&*device, scale)?,
        "matrix_units": bench.has_matrix_units(),
        "bit_stable": unstable.map(|count| count == 0),
        "unstable": unstable,
    }))
}

fn record(bench: &Bench) -> Result<Value> {
    let RecordTimes { ours, bare, unbound } = bench.record_times()?;
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(json!({ "us": us(ours), "bare_us": us(bare), "bare_unbound_us": us(unbound) }))
}

fn kernels(bench: &Bench, options: &Options, bandwidth: f64) -> Result<Vec<Value>> {
    let large: &[[usize; 3]] = if options.small {
        &[[256, 256, 256]]
    } else {
        &[[1024, 1024, 1024], [2048, 2048, 2048], [4096, 4096, 4096]]
    };
    let size = if options.small { 512 } else { 8192 };
    let mut rows = Vec::new();
    for (dtype, weights) in FORMATS {
        for &[m, n, k] in large {
            let time = bench.product([m, n, k], weights, 10)?;
            let gflops = 2.0 * (m * n * k) as f64 / time.as_secs_f64() / 1e9;
            rows.push(row(&format!("matmul_{dtype}"), [m, n, k], gflops, "GFLOP/s", None));
        }
        let time = bench.product([1, size, size], weights, 50)?;
        let gbs = weights.bytes(size, size) as f64 / time.as_secs_f64() / 1e9;
        let share = Some(gbs / bandwidth);
        rows.push(row(&format!("gemv_{dtype}"), [1, size, size], gbs, "GB/s", share));
    }
    Ok(rows)
}

/// Times of one product with every choice of tiles there is for its weights.
fn choices(bench: &mut Bench, options: &Options) -> Result<Vec<Value>> {
    let sizes: &[[usize; 3]] =
        if options.small { &[[256; 3]] } else { &[[4096; 3], [1024; 3], [128, 768, 768]] };
    let mut rows = Vec::new();
    for size in sizes {
        for (dtype, weights) in FORMATS {
            for (choice, time) in bench.choices(*size, weights, 10)? {
                let [m, n, k] = *size;
                let gflops = 2.0 * (m * n * k) as f64 / time.as_secs_f64() / 1e9;
                eprintln!("{dtype:<5} {m:>5} x {n:>5} x {k:>5} {gflops:>10.1} GFLOP/s {choice}");
                rows.push(json!({
                    "dtype": dtype, "shape": size, "choice": choice, "gflops": gflops,
                }));
            }
        }
    }
    Ok(rows)
}

fn row(name: &str, shape: [usize; 3], ours: f64, unit: &str, share: Option<f64>) -> Value {
    let [m, n, k] = shape;
    eprintln!("{name:<14} {m:>5} x {n:>5} x {k:>5} {ours:>12.1} {unit}");
    json!({
        "name": name, "shape": shape, "ours": ours, "torch": null, "unit": unit,
        "ratio": null, "floor_share": share,
    })
}

/// The digits MLP, one row, from the request's tensor to the answer's.
fn mlp_p50_us(device: &dyn Device, options: &Options) -> Result<f64> {
    let limits = GraphLimits::default();
    let executable = compile_graph(device, &mlp()?, &Assets::default(), &limits)?;
    let input = Tensor::from_vec(&[1, 64], vec![0.5f32; 64])?;
    let control = RunControl::unbounded();
    let rounds = if options.small { 200 } else { 3_000 };
    let ms = median_ms(rounds, || executable.execute(vec![input.clone()], &control)?.wait())?;
    Ok(ms * 1e3)
}

/// Milliseconds of the median run.
fn median_ms(rounds: usize, mut run: impl FnMut() -> Result<Vec<Tensor>>) -> Result<f64> {
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(300) {
        run()?;
    }
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[rounds / 2].as_secs_f64() * 1e3)
}

fn mlp() -> Result<GraphDef> {
    let mut def = GraphDef::default();
    let mut value = |name: &str, source| {
        def.values.push(ValueDef { name: name.to_owned(), source });
        ValueId(def.values.len() as u32 - 1)
    };
    let constant = |shape: &[usize]| -> Result<ValueSource> {
        let values = (0..shape.iter().product()).map(|at: usize| (at % 13) as f32 / 50.0).collect();
        Ok(ValueSource::Constant(Tensor::from_vec(shape, values)?))
    };
    let x = value("x", ValueSource::Input);
    let layers = [
        (value("w1", constant(&[64, 100])?), value("b1", constant(&[100])?)),
        (value("w2", constant(&[100, 10])?), value("b2", constant(&[10])?)),
    ];
    let [hidden, active, scores] =
        ["hidden", "active", "scores"].map(|n| value(n, ValueSource::Node));
    let node = |op: &str, inputs: &[ValueId], output| NodeDef {
        domain: "".into(),
        op: op.into(),
        opset: 13,
        name: op.to_owned(),
        inputs: inputs.iter().copied().map(Some).collect(),
        attributes: Vec::new(),
        outputs: vec![Some(output)],
    };
    def.body.nodes = vec![
        node("Gemm", &[x, layers[0].0, layers[0].1], hidden),
        node("Relu", &[hidden], active),
        node("Gemm", &[active, layers[1].0, layers[1].1], scores),
    ];
    def.body.inputs.push(x);
    def.inputs.push(TensorSpec::new("x", DType::F32, &[-1, 64]));
    def.body.outputs.push(scores);
    def.output_names.push("scores".to_owned());
    Ok(def)
}
