//! First-party transforms in front of a model, from outside.

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::Part;
use mortise_tests::onnx::Graph;
use mortise_tests::{Deployment, Server, infer, paths};
use serde_json::{Value, json};

/// The graph that the host runs, against scikit-learn: the same cases as the
/// plain code in the plugin's own tests.
#[test]
fn columns_become_the_features_of_scikit_learn() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let golden = paths::root().join("plugins/tabular/testdata/golden.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(golden)?)?;
    for (index, case) in cases.iter().enumerate() {
        let expected = rows(&case["expected"])?;
        let width = i64::try_from(expected[0].len())?;
        let model = Graph::default()
            .input("features", &[-1, width])
            .output("y", &[-1, width])
            .node("Identity", &["features"], &["y"])
            .model();
        let config = case["config"].as_object().context("no configuration")?.clone();
        let tabular = Part { config, ..Part::builtin("tabular") };
        let name = format!("case-{index}");
        admin.deploy(&name, &Deployment::onnx(model).transform(tabular))?;
        let answer =
            server.client().post(&infer::path(&name), request(case)?.as_bytes())?.ok()?.json()?;
        let got = infer::output(&answer, "y").context("no y")?;
        let want = expected.concat();
        ensure!(got.len() == want.len(), "{}: {answer}", case["name"]);
        for (at, (got, want)) in got.iter().zip(want).enumerate() {
            let got = got.as_f64().with_context(|| format!("{}: {got}", case["name"]))?;
            let is_close = (got - want).abs() <= 1e-5 * want.abs().max(1.0);
            ensure!(is_close, "{}: feature {at} is {got}, not {want}", case["name"]);
        }
    }
    Ok(())
}

fn rows(matrix: &Value) -> Result<Vec<Vec<f64>>> {
    Ok(serde_json::from_value(matrix.clone())?)
}

/// All columns as JSON tensors. What is missing in the file is NaN.
fn request(case: &Value) -> Result<String> {
    let columns = case["config"]["columns"].as_array().context("no columns")?;
    let tensor = |column: &Value| {
        let name = column["name"].as_str()?;
        let data = case["inputs"][name].as_array()?;
        let width = column["width"].as_u64().unwrap_or(1) as usize;
        let is_text = column["type"] == "string";
        let datatype = if is_text { "BYTES" } else { column["dtype"].as_str().unwrap_or("FP32") };
        let values: Vec<String> = data
            .iter()
            .map(|value| if value.is_null() { "NaN".to_owned() } else { value.to_string() })
            .collect();
        let head =
            json!({"name": name, "datatype": datatype, "shape": [data.len() / width, width]});
        let head = head.to_string();
        Some(format!("{}, \"data\": [{}]}}", head.trim_end_matches('}'), values.join(",")))
    };
    let tensors = columns.iter().map(tensor).collect::<Option<Vec<_>>>().context("a bad case")?;
    Ok(format!("{{\"inputs\": [{}]}}", tensors.join(",")))
}
