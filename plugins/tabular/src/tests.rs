//! The plain code against scikit-learn and NumPy: `testdata/golden.json`,
//! which `testdata/make_golden.py` writes.

use crate::apply::{Features, Values, run};
use crate::config::{Pipeline, Raw};
use mortise_plugin_sdk::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Case {
    name: String,
    config: serde_json::Value,
    inputs: BTreeMap<String, Column>,
    expected: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Column {
    Numbers(Vec<Option<f64>>),
    Texts(Vec<String>),
}

fn pipeline(config: &str) -> Pipeline {
    Context::new(config).config::<Raw>().and_then(Pipeline::new).unwrap()
}

impl Case {
    fn run(&self) -> Result<Features> {
        let pipeline = pipeline(&self.config.to_string());
        let values = |name: &str| match &self.inputs[name] {
            Column::Texts(texts) => Values::Texts(texts.iter().map(|t| t.clone().into()).collect()),
            Column::Numbers(numbers) => {
                Values::Numbers(numbers.iter().map(|n| n.unwrap_or(f64::NAN)).collect())
            }
        };
        let columns = pipeline.columns.iter().map(|column| values(&column.name)).collect();
        run(&pipeline, columns)
    }
}

#[test]
fn features_are_those_of_scikit_learn() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../testdata/golden.json")).unwrap();
    for case in cases {
        let features = case.run().unwrap();
        let expected = case.expected.concat();
        assert_eq!(features.values.len(), expected.len(), "{}", case.name);
        for (index, (got, want)) in features.values.iter().zip(&expected).enumerate() {
            let close = (got - want).abs() <= 1e-5 * want.abs().max(1.0);
            assert!(close, "{}: feature {index} is {got}, scikit-learn gives {want}", case.name);
        }
    }
}

#[test]
fn unknown_categories_can_fail_the_request() {
    let pipeline = pipeline(
        r#"{"columns": [{"name": "city", "type": "string"}],
            "steps": [{"step": "one_hot", "columns": {"city": ["Oslo"]}, "unknown": "error"}]}"#,
    );
    assert!(!pipeline.is_graph());
    assert_eq!(pipeline.width(), 1);
    let known = run(&pipeline, vec![Values::Texts(vec![b"Oslo".to_vec()])]).unwrap();
    assert_eq!(known, Features { values: vec![1.0], width: 1 });
    let cities = vec![b"Oslo".to_vec(), b"Rome".to_vec()];
    let error = run(&pipeline, vec![Values::Texts(cities)]).unwrap_err();
    assert_eq!(
        error.message(),
        "column \"city\", row 1: \"Rome\" is not one of its categories [\"Oslo\"]"
    );
}

#[test]
fn columns_of_different_lengths_are_refused() {
    let pipeline = pipeline(
        r#"{"columns": [{"name": "a", "type": "number"}, {"name": "b", "type": "number"}]}"#,
    );
    let columns = vec![Values::Numbers(vec![1.0]), Values::Numbers(vec![1.0, 2.0])];
    let error = run(&pipeline, columns).unwrap_err();
    assert_eq!(error.message(), "column \"b\" has 2 rows, \"a\" has 1");
}
