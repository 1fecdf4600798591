//! A transform that adds one: of the wrong world where a model is wanted.

use mortise_plugin_sdk::{
    Context, DType, Loaded, Result, Signature, Tensor, TensorSpec, Transform, export_transform,
};

struct AddOne;

impl Transform for AddOne {
    fn load(_: &Context) -> Result<Loaded<Self>> {
        let inputs = vec![TensorSpec::new("x", DType::F32, [-1])];
        let signature = Signature { outputs: inputs.clone(), inputs };
        Ok(Loaded::Custom { signature, plugin: Self })
    }

    fn apply(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let values: Vec<f32> =
            inputs[0].to_vec()?.into_iter().map(|value: f32| value + 1.0).collect();
        Ok(vec![Tensor::from_slice(&[values.len()], &values)?])
    }
}

export_transform!(AddOne);
