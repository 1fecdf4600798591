use super::*;
use crate::testing::{direct, inputs, parts, spec};
use mortise_types::{DType, ErrorKind};

fn revision(stages: Vec<Stage>) -> Result<Revision> {
    Revision::new(parts("m", 1, stages))
}

/// Adds one to `x`, giving `y`.
fn add_one() -> Stage {
    direct("add", &[spec("x")], &[spec("y")], |inputs| add(inputs, 1.0))
}

/// Adds ten to `y`, giving `z`.
fn add_ten() -> Stage {
    direct("model", &[spec("y")], &[spec("z")], |inputs| add(inputs, 10.0))
}

fn add(inputs: Vec<Tensor>, amount: f32) -> Result<Vec<Tensor>> {
    let values = inputs[0].as_slice::<f32>()?.iter().map(|value| value + amount).collect();
    Ok(vec![Tensor::from_vec(inputs[0].shape(), values)?])
}

fn run(revision: &Revision, given: Vec<(String, Tensor)>) -> Result<Vec<f32>> {
    let outputs = revision.run_blocking(given, &RunControl::unbounded())?;
    Ok(outputs.iter().flat_map(|(_, out)| out.as_slice::<f32>().unwrap().to_vec()).collect())
}

#[test]
fn stages_are_connected_by_name() {
    let chained = revision(vec![add_one(), add_ten()]).unwrap();
    let names: Vec<&str> = chained.signature().inputs.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["x"]);
    assert_eq!(run(&chained, inputs(&[("x", &[1.0, 2.0])])).unwrap(), [12.0, 13.0]);
}

#[test]
fn what_no_stage_gives_comes_from_the_request() {
    let sum = direct("sum", &[spec("y"), spec("x"), spec("w")], &[spec("z")], |inputs| {
        let column = |at: usize| inputs[at].as_slice::<f32>().unwrap()[0];
        Ok(vec![Tensor::from_vec(&[1], vec![column(0) * 100.0 + column(1) * 10.0 + column(2)])?])
    });
    let mixed = revision(vec![add_one(), sum]).unwrap();
    assert_eq!(run(&mixed, inputs(&[("w", &[3.0]), ("x", &[1.0])])).unwrap(), [213.0]);
}

#[test]
fn stages_that_do_not_fit_are_refused() {
    let wants = |name: &str, dtype| {
        let input = TensorSpec::new(name, dtype, &[-1]);
        direct("model", &[input], &[spec("z")], |inputs| add(inputs, 0.0))
    };
    let cases = [
        (vec![], "a revision needs a model"),
        (
            vec![add_one(), wants("other", DType::F32)],
            "transform \"add\" gives \"y\" FP32[-1], but no later stage takes that",
        ),
        (
            vec![add_one(), wants("y", DType::I64)],
            "stage \"model\" takes y INT64[-1], but what comes before it is y FP32[-1]",
        ),
    ];
    for (stages, want) in cases {
        let error = revision(stages).err().unwrap();
        assert!(error.message().contains(want), "{error}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let model = revision(vec![add_ten()]).unwrap();
    let twice = [inputs(&[("y", &[1.0])]), inputs(&[("y", &[2.0])])].concat();
    let wrong_type = vec![("y".to_string(), Tensor::from_vec(&[1], vec![1i64]).unwrap())];
    let cases = [
        (inputs(&[("q", &[1.0])]), "unknown input \"q\"; the model takes \"y\" FP32[-1]"),
        (inputs(&[]), "missing input \"y\""),
        (twice, "input \"y\" is given twice"),
        (wrong_type, "\"y\" expects FP32, got INT64"),
    ];
    for (given, want) in cases {
        let error = run(&model, given).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains(want), "{error}");
    }
}

#[test]
fn a_panic_is_an_error_of_one_request() {
    let broken = direct("model", &[spec("y")], &[spec("z")], |inputs| match inputs[0].len() {
        1 => panic!("out of luck"),
        _ => add(inputs, 0.0),
    });
    let model = revision(vec![broken]).unwrap();
    let error = run(&model, inputs(&[("y", &[1.0])])).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!error.message().contains("luck"), "no internals reach a client: {error}");
    assert_eq!(run(&model, inputs(&[("y", &[1.0, 2.0])])).unwrap(), [1.0, 2.0]);
}
