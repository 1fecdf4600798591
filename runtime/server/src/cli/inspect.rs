//! `mortise inspect`: the operators of an endpoint or of a model file.

use super::args::InspectArgs;
use super::client::{AdminClient, segment};
use super::local::LocalModel;
use super::show::{bytes, print_json, print_table, row};
use anyhow::{Result, bail};
use mortise_deploy::{Inspection, StageInspection, example_rows};
use mortise_types::RunControl;
use serde_json::Value;
use std::path::Path;

/// # Errors
/// When there is neither such a file nor such an endpoint, or it does not load.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let path = Path::new(&args.target);
    let inspection = match path.exists() {
        true => serde_json::to_value(of_file(path, args)?)?,
        false => of_endpoint(args)?,
    };
    if args.admin.json {
        return print_json(&inspection);
    }
    print(&inspection);
    Ok(())
}

fn of_endpoint(args: &InspectArgs) -> Result<Value> {
    if Path::new(&args.target).extension().is_some() && args.local.plugin.is_some() {
        bail!("{} does not exist", args.target);
    }
    let path = format!("/v1/endpoints/{}/graph", segment(&args.target));
    AdminClient::connect(&args.admin)?.get(&path)
}

fn of_file(path: &Path, args: &InspectArgs) -> Result<Inspection> {
    let model = LocalModel::load(path, &args.local)?;
    // What the arena takes shows in a run. Inputs that are made up may be
    // refused; then it is not known.
    if let (Some(graph), Some(inputs)) =
        (model.stage.graph(), example_rows(&model.stage.signature, 1, 1, 1))
    {
        let inputs = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        let run = graph.executable().execute(inputs, &RunControl::unbounded());
        if let Err(error) = run.and_then(|ticket| ticket.wait()) {
            eprintln!("a run on made-up inputs failed: {error}");
        }
    }
    let stage = StageInspection::of_stage(&model.stage);
    Ok(Inspection {
        name: path.display().to_string(),
        version: None,
        revision: None,
        rows_independent: stage.graph.as_ref().is_some_and(|graph| graph.rows_independent),
        stages: vec![stage],
    })
}

fn print(inspection: &Value) {
    let independent = inspection["rows_independent"] == true;
    let rows = if independent { "independent: requests may be merged" } else { "may mix" };
    let version = match inspection["version"].as_u64() {
        Some(version) => format!(" version {version}"),
        None => String::new(),
    };
    println!("{}{version}: rows {rows}", text(&inspection["name"]));
    for stage in inspection["stages"].as_array().into_iter().flatten() {
        print_stage(stage);
    }
}

fn print_stage(stage: &Value) {
    let plugin = joined(&stage["plugins"], " > ");
    let graph = &stage["graph"];
    if graph.is_null() {
        println!("\n{plugin}: the plugin is entered for each batch");
        return;
    }
    let count = |key: &str| bytes(graph[key].as_u64().unwrap_or(0));
    println!(
        "\n{plugin}: {} operators, {} of weights, an arena of {}",
        graph["operators"].as_array().map_or(0, Vec::len),
        count("weight_bytes"),
        count("arena_bytes"),
    );
    let mut table = vec![row(["ON", "OPERATOR", "FUSED", "WEIGHTS", "OUTPUT", "NODE"])];
    for operator in graph["operators"].as_array().into_iter().flatten() {
        let weights = operator["weight_bytes"].as_u64().filter(|count| *count > 0);
        table.push(vec![
            text(&operator["placement"]),
            text(&operator["operator"]),
            joined(&operator["fused"], "+"),
            weights.map(bytes).unwrap_or_default(),
            outputs(&operator["outputs"]),
            text(&operator["node"]),
        ]);
    }
    print_table(&table);
}

/// `FP32[-1, 10], INT64[-1]`, with `?` for what is not known before a run.
fn outputs(outputs: &Value) -> String {
    let one = |output: &Value| {
        let shape: Vec<String> =
            output["shape"].as_array().into_iter().flatten().map(Value::to_string).collect();
        let datatype = output["datatype"].as_str().unwrap_or("?");
        match output["shape"].is_null() {
            true => format!("{datatype}[?]"),
            false => format!("{datatype}[{}]", shape.join(", ")),
        }
    };
    outputs.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(", ")
}

fn joined(list: &Value, separator: &str) -> String {
    list.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(separator)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}
