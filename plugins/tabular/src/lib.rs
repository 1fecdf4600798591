//! Named columns in, a feature matrix out.
//!
//! A request has one tensor of shape `[rows, 1]` per column, or `[rows, width]`
//! where the column has a width; the output is one `FP32` tensor
//! `[rows, features]`. The steps run in the order in which they
//! are written. With few exceptions they become a graph that the host runs in
//! front of the model's, without entering this plugin.
//!
//! ```json
//! {
//!   "columns": [
//!     {"name": "age", "type": "number"},
//!     {"name": "income", "type": "number", "dtype": "FP64"},
//!     {"name": "city", "type": "string"}
//!   ],
//!   "steps": [
//!     {"step": "impute", "values": {"income": 41000, "city": "unknown"}},
//!     {"step": "log", "columns": ["income"], "plus_one": true},
//!     {"step": "scale", "columns": {"income": {"mean": 10.6, "std": 0.8}}},
//!     {"step": "clip", "columns": {"income": {"min": -3, "max": 3}}},
//!     {"step": "bin", "columns": {"age": {"edges": [20, 30, 40]}}},
//!     {"step": "one_hot", "columns": {
//!       "age": ["<20", "20-30", "30-40", ">=40"],
//!       "city": ["Berlin", "Paris", "unknown"]
//!     }}
//!   ],
//!   "output": {"name": "features", "columns": ["income", "age", "city"]}
//! }
//! ```
//!
//! - `columns`: `type` is `number` or `string`; numbers are sent as `dtype`
//!   `FP32` (the default), `FP64` or `INT64`, strings as `BYTES`. `FP64` and
//!   `INT64` columns are computed in `FP64`. A number column with `"width": 64`
//!   is a vector of 64 numbers in each row; `impute`, `scale`, `clip` and `log`
//!   treat all of them alike.
//! - `impute` replaces what is missing, which is NaN for numbers and the empty
//!   string for strings. The value is the training data's mean or median, or
//!   any other constant.
//! - `scale` is `(x - mean) / std`, or `(x - min) / (max - min)` when `min` and
//!   `max` are given.
//! - `clip` limits to `min`, `max` or both; NaN stays NaN.
//! - `log` is the natural logarithm of `x`, or of `1 + x` with `plus_one`.
//! - `one_hot` makes one feature per category: 1 where the value equals it.
//!   A value that is none of them gives zeros, or with `"unknown": "error"`
//!   fails the request.
//! - `bin` turns a number into the label of its bin. `n` edges make `n + 1`
//!   bins; `labels` default to `<20`, `20-30`, `>=30`. Bins are `[20, 30)`, or
//!   `(20, 30]` with `"closed": "right"`. NaN gives the empty string.
//! - `output`: the output's name (`features`) and the columns in order (all of
//!   them, as listed).

mod apply;
mod config;
mod graph;
#[cfg(test)]
mod tests;

use apply::Values;
use config::{Pipeline, Raw};
use mortise_plugin_sdk::{
    Context, DType, Loaded, Result, Signature, Tensor, TensorSpec, Transform, VARIABLE,
    export_transform,
};

/// Used only for what a graph cannot express.
struct Tabular {
    pipeline: Pipeline,
}

impl Transform for Tabular {
    fn load(ctx: &Context) -> Result<Loaded<Self>> {
        let pipeline = Pipeline::new(ctx.config::<Raw>()?)?;
        if pipeline.is_graph() {
            return Ok(Loaded::Direct(graph::build(&pipeline)?));
        }
        let signature = signature(&pipeline);
        Ok(Loaded::Custom { signature, plugin: Self { pipeline } })
    }

    fn apply(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let columns = inputs.iter().map(read).collect::<Result<Vec<_>>>()?;
        let rows = inputs.first().map_or(0, Tensor::len) / self.pipeline.columns[0].width;
        let features = apply::run(&self.pipeline, columns)?;
        Ok(vec![Tensor::from_slice(&[rows, features.width], &features.values)?])
    }
}

export_transform!(Tabular);

fn signature(pipeline: &Pipeline) -> Signature {
    let width = i64::try_from(pipeline.width()).unwrap_or(VARIABLE);
    let output = TensorSpec::new(&pipeline.output_name, DType::F32, [VARIABLE, width]);
    Signature {
        inputs: pipeline.columns.iter().map(config::Column::spec).collect(),
        outputs: vec![output],
    }
}

fn read(tensor: &Tensor) -> Result<Values> {
    Ok(match tensor.dtype() {
        DType::String => Values::Texts(tensor.to_strings()?.iter().map(<[u8]>::to_vec).collect()),
        DType::F32 => Values::Numbers(tensor.to_vec::<f32>()?.into_iter().map(f64::from).collect()),
        DType::I64 => {
            Values::Numbers(tensor.to_vec::<i64>()?.into_iter().map(|x| x as f64).collect())
        }
        _ => Values::Numbers(tensor.to_vec::<f64>()?),
    })
}
