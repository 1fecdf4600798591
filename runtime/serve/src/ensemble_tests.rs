use super::*;
use crate::config::ServeConfig;
use crate::infer::InferCall;
use crate::testing::{direct, inputs, parts, spec};
use mortise_types::{DType, ErrorKind};

fn publish(registry: &Registry, name: &str, stage: Stage) {
    registry.publish(name, Arc::new(Revision::new(parts(name, 1, vec![stage])).unwrap()));
}

/// `double` (x to y), `sum` (a and b to c), `text` (strings).
fn registry() -> Arc<Registry> {
    let registry = Registry::new(ServeConfig::default()).unwrap();
    let map = |inputs: Vec<Tensor>, function: &dyn Fn(&[f32], &[f32]) -> Vec<f32>| {
        let (first, last) = (inputs[0].as_slice()?, inputs[inputs.len() - 1].as_slice()?);
        Ok(vec![Tensor::from_vec(inputs[0].shape(), function(first, last))?])
    };
    let double = direct("double", &[spec("x")], &[spec("y")], move |inputs| {
        map(inputs, &|x, _| x.iter().map(|value| value * 2.0).collect())
    });
    let sum = direct("sum", &[spec("a"), spec("b")], &[spec("c")], move |inputs| {
        map(inputs, &|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
    });
    let text = TensorSpec::new("x", DType::String, &[-1]);
    publish(&registry, "double", double);
    publish(&registry, "sum", sum);
    publish(&registry, "text", direct("text", &[text], &[spec("y")], Ok));
    registry
}

fn step(model: &str, inputs: &[(&str, &str)], outputs: &[(&str, &str)]) -> EnsembleStep {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(own, name)| (own.to_string(), name.to_string())).collect()
    };
    EnsembleStep { model: model.to_string(), inputs: pairs(inputs), outputs: pairs(outputs) }
}

fn plan(steps: &[EnsembleStep]) -> EnsemblePlan {
    EnsemblePlan { steps: steps.to_vec(), outputs: None }
}

#[tokio::test]
async fn steps_are_wired_by_name_and_counted_by_their_endpoints() {
    let registry = registry();
    // 2x + 4x
    let steps = [
        step("double", &[], &[("y", "twice")]),
        step("double", &[("x", "twice")], &[("y", "four")]),
        step("sum", &[("a", "twice"), ("b", "four")], &[]),
    ];
    let stage = Stage::ensemble("", &plan(&steps), &registry).unwrap();
    publish(&registry, "six", stage);
    let call = InferCall {
        endpoint: "six",
        inputs: inputs(&[("x", &[1.0, 5.0])]),
        ..InferCall::default()
    };
    let answer = registry.infer(call).await.unwrap();
    let [(name, tensor)] = answer.outputs.as_slice() else { panic!("{:?}", answer.outputs) };
    assert_eq!((name.as_str(), tensor.as_slice::<f32>().unwrap()), ("c", &[6.0, 30.0][..]));
    let requests = |name| registry.endpoint(name).unwrap().stats().requests;
    assert_eq!((requests("six"), requests("double"), requests("sum")), (1, 2, 1));

    let six = registry.endpoint("six").unwrap();
    let alone = six.live().unwrap();
    let control = RunControl::unbounded();
    let blocking = alone.run_blocking(inputs(&[("x", &[1.0])]), &control).unwrap();
    assert_eq!(blocking[0].1.as_slice::<f32>().unwrap(), [6.0], "as self-tests run it");

    registry.withdraw("sum", "it was unloaded");
    assert_ne!(six.readiness(), crate::Readiness::Ready, "readiness is truthful");
}

#[tokio::test]
async fn steps_are_noted_up_to_the_one_that_failed() {
    let registry = registry();
    let broken = direct("broken", &[spec("y")], &[spec("z")], |_| Err(Error::plugin("it broke")));
    publish(&registry, "broken", broken);
    let steps = [step("double", &[], &[]), step("broken", &[], &[])];
    publish(&registry, "both", Stage::ensemble("", &plan(&steps), &registry).unwrap());
    let log = StepLog::default();
    let call = InferCall {
        endpoint: "both",
        inputs: inputs(&[("x", &[1.0])]),
        steps: Some(&log),
        ..InferCall::default()
    };
    assert!(registry.infer(call).await.is_err());
    let noted = log.take();
    let models: Vec<&str> = noted.iter().map(|step| step.model.as_str()).collect();
    assert_eq!(models, ["double", "broken"]);
    assert!(noted[0].error.is_none());
    assert_eq!(noted[1].error.as_ref().map(Error::kind), Some(ErrorKind::PluginFailed));
}

#[test]
fn what_does_not_fit_is_named() {
    let registry = registry();
    publish(
        &registry,
        "pipe",
        Stage::ensemble("", &plan(&[step("double", &[], &[])]), &registry).unwrap(),
    );
    let cases = [
        (plan(&[]), "at least one [[step]]"),
        (plan(&[step("none", &[], &[])]), "step 1: model \"none\" is not deployed"),
        (plan(&[step("double", &[("q", "x")], &[])]), "the model has no input \"q\""),
        (plan(&[step("double", &[], &[("y", "x")])]), "there are two tensors \"x\""),
        (
            plan(&[step("double", &[], &[]), step("text", &[("x", "y")], &[("y", "z")])]),
            "step 2: takes x BYTES[-1], but \"y\" is y FP32[-1]",
        ),
        (plan(&[step("pipe", &[], &[])]), "model \"pipe\" is an ensemble"),
        (
            EnsemblePlan { outputs: Some(vec!["q".into()]), ..plan(&[step("double", &[], &[])]) },
            "no step gives \"q\"; the steps give [\"y\"]",
        ),
    ];
    for (plan, want) in cases {
        let error = Stage::ensemble("", &plan, &registry).err().unwrap();
        assert!(error.message().contains(want), "{error}");
    }
    let error = Stage::ensemble("", &plan(&[step("none", &[], &[])]), &registry).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotReady);
}
