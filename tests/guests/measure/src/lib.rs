//! A small, well-behaved model that the cost of calls is measured on. With
//! `{"reads": n}` each call copies its first input in `n` times.

use mortise_plugin_sdk::{
    Context, DType, Loaded, Model, Result, Signature, Tensor, TensorSpec, export_model,
};
use std::hint::black_box;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Measure {
    #[serde(default)]
    reads: usize,
}

impl Model for Measure {
    fn load(ctx: &Context) -> Result<Loaded<Self>> {
        let inputs = vec![TensorSpec::new("x", DType::F32, [-1])];
        let signature = Signature { outputs: inputs.clone(), inputs };
        Ok(Loaded::Custom { signature, plugin: ctx.config()? })
    }

    /// Answers nothing, so that only the way in is measured.
    fn predict(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        for _ in 0..self.reads {
            black_box(inputs[0].to_vec::<f32>()?);
        }
        Ok(Vec::new())
    }
}

export_model!(Measure);
