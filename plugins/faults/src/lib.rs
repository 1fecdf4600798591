//! A transform that fails some requests and slows all of them down, for trying
//! out rollouts, deadlines and alerts. It passes one input through unchanged.
//!
//! **Configuration**:
//! - `input`: the model's input, `{"name": "x", "datatype": "FP32", "shape":
//!   [-1, 4]}`;
//! - `error_rate`: share of requests that fail, 0 to 1; 0 by default;
//! - `work`: rounds of arithmetic before each answer, about a nanosecond each;
//!   0 by default.
//!
//! A plugin has no source of randomness: which requests fail follows from what
//! they hold and from how many came before, in each instance on its own.

use mortise_plugin_sdk::hash::{self, mix, unit};
use mortise_plugin_sdk::{
    Context, DType, Error, Loaded, Result, Signature, Tensor, TensorSpec, Transform,
    export_transform,
};
use serde::Deserialize;
use std::cell::Cell;
use std::hint::black_box;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    input: Input,
    #[serde(default)]
    error_rate: f64,
    #[serde(default)]
    work: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

struct Faults {
    /// A request fails when its number is below this.
    fails_below: f64,
    work: u64,
    seen: Cell<u64>,
}

impl Transform for Faults {
    fn load(ctx: &Context) -> Result<Loaded<Self>> {
        let config: Config = ctx.config()?;
        if !(0.0..=1.0).contains(&config.error_rate) {
            return Err(Error::invalid("error_rate must lie between 0 and 1"));
        }
        let Input { name, datatype, shape } = config.input;
        let dtype = DType::from_name(&datatype)
            .ok_or_else(|| Error::invalid(format!("there is no datatype \"{datatype}\"")))?;
        let specs = vec![TensorSpec::new(&name, dtype, shape)];
        let signature = Signature { inputs: specs.clone(), outputs: specs };
        let plugin = Self { fails_below: config.error_rate, work: config.work, seen: Cell::new(0) };
        Ok(Loaded::Custom { signature, plugin })
    }

    fn apply(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        for round in 0..self.work {
            black_box(round);
        }
        if self.fails_below > 0.0 && self.fails(inputs)? {
            return Err(Error::failed("this failure was asked for (error_rate)"));
        }
        inputs.iter().map(copy).collect()
    }
}

impl Faults {
    /// Whether the next request, with these inputs, is one of those that fail.
    fn fails(&self, inputs: &[Tensor]) -> Result<bool> {
        let seen = self.seen.get();
        self.seen.set(seen + 1);
        let mut content = 0;
        for tensor in inputs.iter().filter(|tensor| tensor.dtype() != DType::String) {
            content = hash::bytes(content, &tensor.to_bytes()?);
        }
        // Each restart would otherwise begin with the same few that fail.
        Ok(draw(content, seen) < self.fails_below)
    }
}

export_transform!(Faults);

/// From 0 up to 1, for a request with this content after so many others.
fn draw(content: u64, seen: u64) -> f64 {
    unit(mix(content.wrapping_add(seen)))
}

fn copy(tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::String => Tensor::from_strings(&tensor.shape(), tensor.to_strings()?.iter()),
        dtype => Tensor::from_bytes(dtype, &tensor.shape(), &tensor.to_bytes()?),
    }
}

#[cfg(test)]
mod tests {
    use super::draw;
    use mortise_plugin_sdk::hash;

    #[test]
    fn about_as_many_fail_as_were_asked_for() {
        for rate in [0.005, 0.03, 0.5] {
            let failed = (0..100_000).filter(|&seen| draw(0, seen) < rate).count() as f64;
            let deviation = (100_000.0 * rate * (1.0 - rate)).sqrt();
            assert!((failed - 100_000.0 * rate).abs() < 4.0 * deviation, "{failed} at {rate}");
        }
    }

    /// Instances that are started again and again see few requests each.
    #[test]
    fn short_lives_fail_as_often_as_long_ones() {
        let content = |user: u16| hash::bytes(0, &f32::from(user).to_le_bytes());
        let fails = |user: u16, seen: u64| draw(content(user), seen) < 0.01;
        let failed: usize =
            (0..1_000).map(|user| (0..100).filter(|&seen| fails(user, seen)).count()).sum();
        assert!((880..1_120).contains(&failed), "{failed} of 100,000 at 0.01");
    }
}
