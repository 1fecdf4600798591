//! Examples, invariances and ranges.

use super::values::{
    Named, Written, difference, find, furthest, moved, numbers, position, show, tensors,
};
use super::{Run, data_file};
use mortise_types::{Bytes, Error, Result, Signature, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;

/// How far a row's sum may be from one.
const SUM_TOLERANCE: f64 = 1e-3;

/// `[[example]]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExample {
    name: Option<String>,
    file: Option<String>,
    #[serde(default)]
    inputs: Written,
    #[serde(default)]
    outputs: Written,
    tolerance: Option<f64>,
}

/// One example of a JSON file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExample {
    name: Option<String>,
    inputs: Written,
    #[serde(default)]
    outputs: Written,
}

/// Inputs and the outputs they must give.
#[derive(Debug)]
pub(super) struct Example {
    pub(super) name: String,
    pub(super) inputs: Written,
    outputs: Written,
    tolerance: f64,
}

/// `[[invariance]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invariance {
    #[serde(default)]
    pub(super) examples: Vec<String>,
    #[serde(default)]
    perturb: Vec<String>,
    epsilon: f64,
    #[serde(default)]
    relative: bool,
    max_change: f64,
    #[serde(default)]
    outputs: Vec<String>,
}

/// `[[range]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    output: String,
    min: Option<f64>,
    max: Option<f64>,
    #[serde(default = "yes")]
    finite: bool,
    #[serde(default)]
    sums_to_one: bool,
}

fn yes() -> bool {
    true
}

impl RawExample {
    const DEFAULT_TOLERANCE: f64 = 1e-5;

    /// Adds what this table stands for to `examples`.
    pub(super) fn read(
        self,
        data: &BTreeMap<String, Bytes>,
        examples: &mut Vec<Example>,
    ) -> Result<()> {
        let tolerance = self.tolerance.unwrap_or(Self::DEFAULT_TOLERANCE);
        let unnamed = |index: usize| format!("example {}", index + 1);
        let Some(file) = &self.file else {
            let name = self.name.unwrap_or_else(|| unnamed(examples.len()));
            let Self { inputs, outputs, .. } = self;
            examples.push(Example { name, inputs, outputs, tolerance });
            return Ok(());
        };
        if !self.inputs.is_empty() || !self.outputs.is_empty() {
            return Err(Error::invalid(
                "an [[example]] has either a file, or inputs and outputs, not both",
            ));
        }
        let read: Vec<FileExample> = serde_json::from_slice(data_file(data, file)?)
            .map_err(|error| Error::invalid(format!("{file} is no list of examples: {error}")))?;
        for (index, FileExample { name, inputs, outputs }) in read.into_iter().enumerate() {
            let name = name.unwrap_or_else(|| format!("{file} {}", unnamed(index)));
            examples.push(Example { name, inputs, outputs, tolerance });
        }
        Ok(())
    }
}

impl Example {
    /// Answers with the outputs.
    pub(super) fn check(&self, run: &Run<'_>) -> Result<Named> {
        self.compare(run).map_err(|error| error.context(format_args!("example \"{}\"", self.name)))
    }

    fn compare(&self, run: &Run<'_>) -> Result<Named> {
        let signature = run.subject.signature();
        let expected = tensors(&self.outputs, &signature.outputs)?;
        let got = run.predict(tensors(&self.inputs, &signature.inputs)?)?;
        for (name, expected) in &expected {
            self.compare_one(name, expected, output(&got, name)?)?;
        }
        Ok(got)
    }

    fn compare_one(&self, name: &str, expected: &Tensor, got: &Tensor) -> Result<()> {
        if expected.shape() != got.shape() {
            return Err(Error::invalid(format!(
                "output \"{name}\" has shape {:?}, expected {:?}",
                got.shape(),
                expected.shape()
            )));
        }
        let distance = |want: f64, got: f64| {
            let allowed = self.tolerance * want.abs().max(1.0);
            Some(difference(want, got)).filter(|far| !(*far <= allowed)).unwrap_or(0.0)
        };
        let Some((index, _)) = furthest(expected, got, distance) else { return Ok(()) };
        Err(Error::invalid(format!(
            "output \"{name}\" at {} is {}, expected {} (tolerance {})",
            position(got.shape(), index),
            show(got, index),
            show(expected, index),
            self.tolerance
        )))
    }
}

impl Invariance {
    pub(super) fn check(&self, run: &Run<'_>, examples: &[Example]) -> Result<()> {
        let is_meant =
            |example: &&Example| self.examples.is_empty() || self.examples.contains(&example.name);
        for example in examples.iter().filter(is_meant) {
            self.check_one(run, example).map_err(|error| {
                error.context(format_args!("invariance on example \"{}\"", example.name))
            })?;
        }
        Ok(())
    }

    fn check_one(&self, run: &Run<'_>, example: &Example) -> Result<()> {
        let signature = run.subject.signature();
        self.perturb.iter().try_for_each(|name| find(&signature.inputs, name).map(drop))?;
        self.outputs.iter().try_for_each(|name| find(&signature.outputs, name).map(drop))?;
        let inputs = tensors(&example.inputs, &signature.inputs)?;
        let before = run.predict(inputs.clone())?;
        for (index, (name, tensor)) in inputs.iter().enumerate() {
            if !self.is_perturbed(name, tensor) {
                continue;
            }
            for sign in [1.0, -1.0] {
                let mut changed = inputs.clone();
                changed[index].1 = moved(tensor, |value| value + sign * self.step(value))?;
                self.compare(name, &before, &run.predict(changed)?)?;
            }
        }
        Ok(())
    }

    fn is_perturbed(&self, name: &String, tensor: &Tensor) -> bool {
        match self.perturb.is_empty() {
            true => tensor.dtype().is_float(),
            false => self.perturb.contains(name),
        }
    }

    fn step(&self, value: f64) -> f64 {
        if self.relative { self.epsilon * value.abs() } else { self.epsilon }
    }

    fn compare(&self, input: &str, before: &Named, after: &Named) -> Result<()> {
        for (name, before) in before {
            if !self.outputs.is_empty() && !self.outputs.contains(name) {
                continue;
            }
            let after = output(after, name)?;
            let Some((index, change)) = furthest(before, after, difference) else { continue };
            if change <= self.max_change {
                continue;
            }
            return Err(Error::invalid(format!(
                "moving input \"{input}\" by {} changes output \"{name}\" at {} from {} to {}, \
                 more than max_change = {}",
                self.epsilon,
                position(before.shape(), index),
                show(before, index),
                show(after, index),
                self.max_change
            )));
        }
        Ok(())
    }
}

impl Range {
    pub(super) fn check_name(&self, signature: &Signature) -> Result<()> {
        find(&signature.outputs, &self.output).map(drop).map_err(|error| error.context("[[range]]"))
    }

    pub(super) fn check(&self, outputs: &Named, on: &str) -> Result<()> {
        let tensor = output(outputs, &self.output)?;
        let Some(values) = numbers(tensor) else {
            return Err(Error::invalid(format!(
                "[[range]] needs numbers, and output \"{}\" is {}",
                self.output,
                tensor.dtype()
            )));
        };
        for (index, &value) in values.iter().enumerate() {
            if let Some(complaint) = self.complaint(value) {
                let place = position(tensor.shape(), index);
                return Err(Error::invalid(format!(
                    "range of output \"{}\" on {on}: at {place} it is {value}, {complaint}",
                    self.output
                )));
            }
        }
        self.check_sums(tensor, &values, on)
    }

    fn complaint(&self, value: f64) -> Option<String> {
        if self.finite && !value.is_finite() {
            return Some("which is not finite".to_string());
        }
        let below = self.min.filter(|min| value < *min).map(|min| format!("below min = {min}"));
        below
            .or_else(|| self.max.filter(|max| value > *max).map(|max| format!("above max = {max}")))
    }

    fn check_sums(&self, tensor: &Tensor, values: &[f64], on: &str) -> Result<()> {
        let width = tensor.shape().last().copied().unwrap_or(1).max(1);
        if !self.sums_to_one {
            return Ok(());
        }
        for (row, values) in values.chunks(width).enumerate() {
            let sum: f64 = values.iter().sum();
            if !(difference(sum, 1.0) <= SUM_TOLERANCE) {
                return Err(Error::invalid(format!(
                    "range of output \"{}\" on {on}: row {row} sums to {sum}, not to one \
                     (tolerance {SUM_TOLERANCE})",
                    self.output
                )));
            }
        }
        Ok(())
    }
}

pub(super) fn output<'a>(outputs: &'a Named, name: &str) -> Result<&'a Tensor> {
    let found = outputs.iter().find(|(found, _)| found == name);
    found.map(|(_, tensor)| tensor).ok_or_else(|| {
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
        Error::invalid(format!("the endpoint gives no output \"{name}\"; it gives {names:?}"))
    })
}
