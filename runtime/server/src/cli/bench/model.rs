use super::{dims, percent, print_peaks, report};
use crate::cli::args::BenchModelArgs;
use crate::cli::local::LocalModel;
use crate::cli::show::{print_table, row};
use anyhow::{Context, Result};
use mortise_compute::measure::{Arithmetic, Timing, time_executable, work_of};
use mortise_deploy::example_rows;
use mortise_serve::CompiledGraph;
use serde_json::json;

/// Times a model file in every batch size asked for, and prints a table and
/// JSON.
///
/// # Errors
/// When the model does not load, is no graph, or refuses made-up inputs.
pub(super) fn run(args: &BenchModelArgs) -> Result<()> {
    let model = LocalModel::load(&args.path, &args.local)?;
    let name = args.path.display().to_string();
    let graph = model.stage.graph().with_context(|| {
        format!("{name}: the plugin answers itself, and there is no graph to time")
    })?;
    let device = &*model.device;
    let peaks = device.peaks()?;
    let arithmetic = arithmetic(&graph);
    let mut table = vec![row(["BATCH", "INPUTS", "US", "US A ROW", "GFLOP/S", "GB/S", "OF FLOOR"])];
    let mut measured = Vec::new();
    for &batch in &args.batch {
        let inputs = example_rows(&model.stage.signature, 1, batch, args.length);
        let inputs = inputs.with_context(|| format!("{name}: inputs cannot be made up"))?;
        let inputs: Vec<_> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        let timing = Timing {
            work: work_of(device, graph.def(), graph.assets(), &inputs)?,
            time: time_executable(&**graph.executable(), &inputs)?,
        };
        let us = timing.time.as_secs_f64() * 1e6;
        let share = timing.floor_share(&peaks, arithmetic);
        let shapes: Vec<String> = inputs.iter().map(|input| dims(input.shape())).collect();
        table.push(vec![
            batch.to_string(),
            shapes.join(" "),
            format!("{us:.1}"),
            format!("{:.2}", us / batch.max(1) as f64),
            format!("{:.1}", timing.gflops()),
            format!("{:.1}", timing.gbs()),
            percent(share),
        ]);
        measured.push(json!({
            "name": name,
            "batch": batch,
            "us": us,
            "gflops": timing.gflops(),
            "gbs": timing.gbs(),
            "floor_share": share,
            "uncounted_nodes": timing.work.unknown_nodes,
        }));
    }
    if !args.json {
        print_peaks(device, &peaks);
        print_table(&table);
    }
    let mut report = report(device, &peaks);
    report["models"] = measured.into();
    println!("{report}");
    Ok(())
}

/// Integer products have another peak.
fn arithmetic(graph: &CompiledGraph) -> Arithmetic {
    const INTEGER: [&str; 5] =
        ["MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm"];
    let is_integer = |node: &mortise_types::NodeDef| INTEGER.contains(&&*node.op);
    match graph.def().body.nodes.iter().any(is_integer) {
        true => Arithmetic::Int8,
        false => Arithmetic::F32,
    }
}
