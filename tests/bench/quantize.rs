//! `bench quantize`: whole models with weights in fewer bits beside the same
//! models in floats, in one run, on one pinned core, taking turns.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use mortise_compute::{CpuDevice, CpuOptions, Executable, compile_graph, compile_quantised};
use mortise_graph::{GraphLimits, Precision, QuantReport, Quantisation, Ranges};
use mortise_tests::{paths, stats, wait};
use mortise_types::{RunControl, Tensor};
use serde_json::{Value, json};

use crate::models::{Case, Ours, PAUSE, TURN, as_f64, cases, made, native, pin};
use crate::report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Turns that each side takes on each model.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What weights become: int8, int4 or f16; may be repeated.
    #[arg(long, default_value = "int8", value_parser = ["int8", "int4", "f16"])]
    mode: Vec<String>,
}

/// The models measured, and the batch of those that have several.
const MODELS: [(&str, usize); 3] = [("mlp-1024", 32), ("bert-base", 1), ("digits", 32)];

pub(crate) fn run(args: &Args) -> Result<()> {
    pin(1)?;
    let folder = made()?;
    let cases = cases(&folder)?;
    let device = CpuDevice::new(CpuOptions { threads: 1 });
    println!("model       mode   size ratio  speedup   max error  accuracy before, after");
    let mut rows = Vec::new();
    for (name, batch) in MODELS {
        let case = cases.iter().find(|case| case.name == name && case.batch == batch);
        let case = case.with_context(|| format!("no model {name} of batch {batch}"))?;
        for mode in &args.mode {
            let row = measure(&device, &folder, case, mode, args.rounds)?;
            print_row(&row);
            rows.push(row);
        }
    }
    report::print(json!({"cores": 1, "models": rows}), Value::Null);
    Ok(())
}

fn print_row(row: &Value) {
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    println!(
        "{:<11} {:<6} {:>10.2} {:>8.2} {:>11.2e}  {:.4} {:.4}",
        row["name"].as_str().unwrap_or_default(),
        row["mode"].as_str().unwrap_or_default(),
        number("size_ratio"),
        number("speedup"),
        number("max_abs_error"),
        number("accuracy_before"),
        number("accuracy_after"),
    );
}

/// One model in floats and in fewer bits.
struct Pair {
    floats: Arc<dyn Executable>,
    quantised: Arc<dyn Executable>,
    report: QuantReport,
}

impl Pair {
    fn new(device: &CpuDevice, path: &Path, mode: &str) -> Result<Self> {
        let (graph, assets) = native::load(path)?;
        let limits = GraphLimits::default();
        let precision = Precision::ALL.into_iter().find(|each| each.name() == mode);
        let precision = precision.with_context(|| format!("no mode {mode}"))?;
        let how = Quantisation { precision, ranges: Ranges::new() };
        let wrong = |error: mortise_types::Error| anyhow!("{}: {error}", path.display());
        let floats = compile_graph(device, &graph, &assets, &limits).map_err(wrong)?;
        let (quantised, report) =
            compile_quantised(device, &graph, &assets, &limits, &how).map_err(wrong)?;
        Ok(Self { floats, quantised, report })
    }

    /// How much smaller the weights are, and what the device holds for them:
    /// the lesser of the two.
    fn size_ratio(&self) -> f64 {
        let [before, after] = [&self.floats, &self.quantised].map(|exe| exe.footprint());
        let held = before.weight_bytes as f64 / after.weight_bytes as f64;
        held.min(self.report.float_bytes as f64 / self.report.bytes as f64)
    }
}

fn measure(
    device: &CpuDevice,
    folder: &Path,
    case: &Case,
    mode: &str,
    rounds: usize,
) -> Result<Value> {
    let pair = Pair::new(device, &folder.join(&case.file), mode)?;
    let [accuracy_before, accuracy_after] = match case.name.as_str() {
        "digits" => [Some(accuracy(&pair.floats)?), Some(accuracy(&pair.quantised)?)],
        _ => [None, None],
    };
    let size_ratio = pair.size_ratio();
    let bytes = [pair.report.float_bytes, pair.report.bytes];
    let device_bytes =
        [&pair.floats, &pair.quantised].map(|exe| exe.footprint().weight_bytes as u64);
    let sides = [Ours::of(pair.floats, folder, case)?, Ours::of(pair.quantised, folder, case)?];
    let max_abs_error = largest_difference(&sides)?;
    let mut seconds = [Vec::new(), Vec::new()];
    let counts = [count(&sides[0])?, count(&sides[1])?];
    for _ in 0..rounds {
        for (side, (seconds, count)) in sides.iter().zip(seconds.iter_mut().zip(counts)) {
            seconds.push(stats::median(side.turn(count)?));
            wait::pass(PAUSE);
        }
    }
    let [before, after] = seconds.map(stats::median);
    Ok(json!({
        "name": case.name, "batch": case.batch, "mode": mode, "size_ratio": size_ratio,
        "speedup": before / after, "f32_ms": before * 1e3, "quantized_ms": after * 1e3,
        "max_abs_error": max_abs_error, "accuracy_before": accuracy_before,
        "accuracy_after": accuracy_after, "weight_bytes": bytes, "device_bytes": device_bytes,
    }))
}

/// Runs that fill a turn.
fn count(side: &Ours) -> Result<usize> {
    let one = side.turn(2)?[1];
    Ok((TURN.as_secs_f64() / one).clamp(2.0, 20_000.0) as usize)
}

fn largest_difference(sides: &[Ours; 2]) -> Result<f64> {
    let [want, got] = [sides[0].run()?, sides[1].run()?];
    let mut largest = 0.0f64;
    for (want, got) in want.iter().zip(&got) {
        let pairs = as_f64(want)?.into_iter().zip(as_f64(got)?);
        largest = pairs.fold(largest, |top, (a, b)| top.max((a - b).abs()));
    }
    Ok(largest)
}

/// Share of the demo's hold-out rows whose label is right.
fn accuracy(exe: &Arc<dyn Executable>) -> Result<f64> {
    const PIXELS: usize = 64;
    let file = paths::root().join("plugins/demo/digits/holdout.csv");
    let text = std::fs::read_to_string(file)?;
    let (mut pixels, mut targets) = (Vec::<f32>::new(), Vec::new());
    for line in text.lines().skip(1) {
        let (row, target) = line.rsplit_once(',').context("no target")?;
        for pixel in row.split(',') {
            pixels.push(pixel.trim().parse()?);
        }
        targets.push(target.trim().parse::<f64>()?);
    }
    let input = Tensor::from_vec(&[targets.len(), PIXELS], pixels);
    let outputs = input
        .and_then(|input| exe.execute(vec![input], &RunControl::unbounded()))
        .and_then(mortise_compute::Ticket::wait)
        .map_err(|error| anyhow!("{error}"))?;
    let names = exe.signature().outputs.iter().map(|spec| spec.name.as_str());
    let label = names.zip(&outputs).find(|(name, _)| *name == "label");
    let labels = as_f64(label.context("no label")?.1)?;
    let right = labels.iter().zip(&targets).filter(|(label, target)| label == target).count();
    Ok(right as f64 / targets.len() as f64)
}
