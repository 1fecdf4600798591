//! Stages that tests make from closures.

use crate::options::ServingOptions;
use crate::revision::RevisionParts;
use crate::stage::{CustomStage, Stage, StageRun};
use mortise_host::{PluginHealth, PluginStats, PreparedGraph};
use mortise_types::{
    DType, GraphBody, GraphDef, NodeDef, Result, RunControl, Signature, Tensor, TensorSpec,
    ValueDef, ValueId, ValueSource,
};
use std::any::Any;
use std::sync::Arc;
use std::time::SystemTime;

/// `y = Relu(x)`
pub(crate) fn relu_graph() -> GraphDef {
    let value = |name: &str, source| ValueDef { name: name.to_string(), source };
    let node = NodeDef {
        domain: "".into(),
        op: "Relu".into(),
        opset: 14,
        name: String::new(),
        inputs: vec![Some(ValueId(0))],
        attributes: Vec::new(),
        outputs: vec![Some(ValueId(1))],
    };
    GraphDef {
        values: vec![value("x", ValueSource::Input), value("y", ValueSource::Node)],
        body: GraphBody { inputs: vec![ValueId(0)], nodes: vec![node], outputs: vec![ValueId(1)] },
        inputs: vec![spec("x")],
        output_names: vec!["y".to_string()],
    }
}

type Function = Box<dyn Fn(Vec<Tensor>) -> Result<Vec<Tensor>> + Send + Sync>;

/// A closure as a graph or as a plugin.
struct Fake {
    signature: Signature,
    function: Function,
}

pub(crate) fn spec(name: &str) -> TensorSpec {
    TensorSpec::new(name, DType::F32, &[-1])
}

pub(crate) fn inputs(columns: &[(&str, &[f32])]) -> Vec<(String, Tensor)> {
    let tensor = |values: &[f32]| Tensor::from_vec(&[values.len()], values.to_vec()).unwrap();
    columns.iter().map(|(name, values)| (name.to_string(), tensor(values))).collect()
}

pub(crate) fn parts(endpoint: &str, number: u64, stages: Vec<Stage>) -> RevisionParts {
    RevisionParts {
        endpoint: endpoint.to_string(),
        number,
        version: number,
        stages,
        options: ServingOptions::default(),
        created: SystemTime::UNIX_EPOCH,
    }
}

pub(crate) fn direct(
    name: &str,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    function: impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Stage {
    stage(name, inputs, outputs, Box::new(function), |fake| StageRun::Direct(fake))
}

pub(crate) fn custom(
    name: &str,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    function: impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Stage {
    stage(name, inputs, outputs, Box::new(function), |fake| StageRun::Custom(fake))
}

fn stage(
    name: &str,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    function: Function,
    run: impl Fn(Arc<Fake>) -> StageRun,
) -> Stage {
    let signature = Signature { inputs: inputs.to_vec(), outputs: outputs.to_vec() };
    let fake = Arc::new(Fake { signature: signature.clone(), function });
    Stage {
        name: name.to_string(),
        digest: String::new(),
        transforms: Vec::new(),
        signature,
        run: run(fake),
    }
}

impl PreparedGraph for Fake {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn rows_independent(&self) -> bool {
        true
    }

    fn run(&self, inputs: Vec<Tensor>, _control: &RunControl) -> Result<Vec<Tensor>> {
        (self.function)(inputs)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl CustomStage for Fake {
    fn call(&self, inputs: Vec<Tensor>, _control: &RunControl) -> Result<Vec<Tensor>> {
        (self.function)(inputs)
    }

    fn health(&self) -> PluginHealth {
        PluginHealth::Ready
    }

    fn stats(&self) -> PluginStats {
        PluginStats::default()
    }
}
