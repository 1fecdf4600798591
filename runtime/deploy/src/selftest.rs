//! Tests that travel with a deployment. A deployment that fails one of them
//! never goes live.
//!
//! The file is TOML. Every table is optional; unknown keys are refused.
//!
//! ```toml
//! # Exact answers. Inputs and outputs are given by name, nested row by row, in
//! # the shapes of the endpoint's signature; the first dimension is the batch.
//! # Outputs that are left out are not compared.
//! [[example]]
//! name = "a malignant and a benign row"
//! inputs = { features = [[17.99, 10.38], [13.54, 14.36]] }
//! outputs = { label = [0, 1], probabilities = [[0.98, 0.02], [0.01, 0.99]] }
//! tolerance = 1e-5          # |got - expected| <= tolerance * max(1, |expected|)
//!
//! # The same from a JSON file that is uploaded with the tests: an array of
//! # {"name", "inputs", "outputs"}, where "name" may be left out.
//! [[example]]
//! file = "examples.json"
//! tolerance = 1e-5
//!
//! # A small change of the inputs gives a small change of the outputs. Every
//! # floating-point input named in `perturb` (default: all of them) is moved
//! # up by epsilon, then down.
//! [[invariance]]
//! examples = ["a malignant and a benign row"]   # default: every example
//! perturb = ["features"]
//! epsilon = 1e-4            # added, and with `relative = true` a share of the value
//! relative = false
//! max_change = 0.01         # of any number in any output; strings must not change
//! outputs = ["probabilities"]                   # default: all
//!
//! # What an output's values may be, checked on the answers to every example
//! # and to the hold-out.
//! [[range]]
//! output = "probabilities"
//! min = 0.0
//! max = 1.0
//! finite = true             # default: true
//! sums_to_one = true        # along the last dimension, within 1e-3
//!
//! # Labelled rows. The CSV has a header line; it is uploaded with the tests
//! # (`file`) or written here (`text`).
//! [holdout]
//! file = "holdout.csv"
//! label = "target"          # the column with the truth
//! output = "label"          # what is scored; see below
//! batch_rows = 64           # default: 64; 0 sends all rows at once
//! limits = ["accuracy >= 0.95", "accuracy no worse than live"]
//! # Input name -> its columns, in order. A list of n columns is a row of n
//! # numbers (shape [rows, n]); one name is shape [rows] or [rows, 1], whichever
//! # the endpoint wants. Default: every input is the column of its own name.
//! [holdout.features]
//! features = ["mean radius", "mean texture"]
//! ```
//!
//! Numbers that JSON and TOML cannot write are the strings `"nan"`, `"inf"` and
//! `"-inf"`; an empty field of a CSV file is NaN for a floating-point input.
//!
//! **Metrics.** `accuracy`: the share of rows whose answer is the label. An
//! output with one value a row is compared with the label itself (numbers as
//! numbers, otherwise as text); one with several is a score per class, whose
//! largest is the class number, or, with `classes = ["setosa", "virginica"]`
//! under `[holdout]`, the class of that name. `auc`: area under the ROC curve,
//! of a score a row or of the last of two, against labels of which the larger is
//! the positive one. `mae`, `rmse`: of one number a row.
//!
//! **Limits.** `METRIC >= NUMBER`, `METRIC <= NUMBER`, `METRIC no worse than
//! live`, `METRIC no worse than live by NUMBER` (which allows that much). What is
//! live is asked the same rows; when nothing is live, or what is live takes other
//! inputs, such a limit is passed over and the report says so.

mod checks;
pub(crate) mod difference;
mod holdout;
mod limit;
pub(crate) mod merging;
pub(crate) mod sample;
mod values;

use checks::{Example, Invariance, Range};
use holdout::Holdout;
use mortise_serve::Revision;
use mortise_types::{Bytes, Error, Result, RunControl, Signature, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;
pub(crate) use values::Named;
use values::tensors;

/// What the tests run against.
pub trait Subject {
    fn signature(&self) -> &Signature;

    /// # Errors
    /// When the inputs do not fit, or the model fails.
    fn predict(
        &self,
        inputs: Vec<(String, Tensor)>,
        control: &RunControl,
    ) -> Result<Vec<(String, Tensor)>>;
}

impl Subject for Revision {
    fn signature(&self) -> &Signature {
        Revision::signature(self)
    }

    fn predict(
        &self,
        inputs: Vec<(String, Tensor)>,
        control: &RunControl,
    ) -> Result<Vec<(String, Tensor)>> {
        self.run_blocking(inputs, control)
    }
}

/// The tests of one deployment.
#[derive(Debug)]
pub struct SelfTest {
    examples: Vec<Example>,
    invariances: Vec<Invariance>,
    ranges: Vec<Range>,
    holdout: Option<Holdout>,
}

/// What was checked, when everything passed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub examples: usize,
    pub invariances: usize,
    pub ranges: usize,
    /// Rows of the hold-out.
    pub holdout_rows: usize,
    /// Metrics of the hold-out that a limit names.
    pub metrics: BTreeMap<String, f64>,
    /// The same of what is live, where a limit compares with it.
    pub live_metrics: BTreeMap<String, f64>,
    /// Limits that were passed over, and why.
    pub notes: Vec<String>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    example: Vec<checks::RawExample>,
    #[serde(default)]
    invariance: Vec<Invariance>,
    #[serde(default)]
    range: Vec<Range>,
    holdout: Option<holdout::RawHoldout>,
}

/// What every check runs with.
struct Run<'a> {
    subject: &'a dyn Subject,
    control: RunControl,
}

impl Run<'_> {
    fn predict(&self, inputs: Named) -> Result<Named> {
        self.subject.predict(inputs, &self.control)
    }
}

impl SelfTest {
    /// Reads a test file and the data files that came with it.
    ///
    /// # Errors
    /// `InvalidInput` naming the line, key or file that is wrong.
    pub fn parse(text: &[u8], data: &BTreeMap<String, Bytes>) -> Result<Self> {
        let text = std::str::from_utf8(text)
            .map_err(|_| Error::invalid("the test file is not UTF-8 text"))?;
        let raw: RawFile = toml::from_str(text).map_err(|error| {
            Error::invalid(format!(
                "the test file is not as documented: {}",
                error.to_string().trim()
            ))
        })?;
        let mut examples = Vec::new();
        for example in raw.example {
            example.read(data, &mut examples)?;
        }
        let test = Self {
            examples,
            invariances: raw.invariance,
            ranges: raw.range,
            holdout: raw.holdout.map(|raw| raw.read(data)).transpose()?,
        };
        test.check_references()?;
        Ok(test)
    }

    /// Runs every test against `candidate`. `live` is what serves now.
    ///
    /// # Errors
    /// The first test that fails, with what was expected, what came, and the
    /// tolerance; `Deadline` when they take longer than `deadline`.
    pub fn run(
        &self,
        candidate: &dyn Subject,
        live: Option<&dyn Subject>,
        deadline: Instant,
    ) -> Result<Report> {
        let control = || RunControl::new(Some(deadline), RunControl::DEFAULT_LOOP_ITERATIONS);
        let run = Run { subject: candidate, control: control() };
        let live = live.map(|subject| Run { subject, control: control() });
        let mut report = Report {
            examples: self.examples.len(),
            invariances: self.invariances.len(),
            ranges: self.ranges.len(),
            ..Report::default()
        };
        for range in &self.ranges {
            range.check_name(candidate.signature())?;
        }
        for example in &self.examples {
            let outputs = example.check(&run)?;
            self.check_ranges(&outputs, &example.name)?;
        }
        for invariance in &self.invariances {
            invariance.check(&run, &self.examples)?;
        }
        if let Some(holdout) = &self.holdout {
            let in_range = |outputs: &Named| self.check_ranges(outputs, "the hold-out");
            holdout.check(&run, live.as_ref(), &in_range, &mut report)?;
        }
        Ok(report)
    }

    /// The inputs of every example that fits, for warm-up runs.
    pub(crate) fn all_inputs(&self, subject: &dyn Subject) -> Vec<Named> {
        let specs = &subject.signature().inputs;
        self.examples.iter().filter_map(|example| tensors(&example.inputs, specs).ok()).collect()
    }

    fn check_ranges(&self, outputs: &Named, on: &str) -> Result<()> {
        self.ranges.iter().try_for_each(|range| range.check(outputs, on))
    }

    fn check_references(&self) -> Result<()> {
        let mut wanted = self.invariances.iter().flat_map(|each| &each.examples);
        let known = |name: &String| self.examples.iter().any(|example| example.name == *name);
        match wanted.find(|name| !known(name)) {
            Some(name) => {
                Err(Error::invalid(format!("[[invariance]] names no [[example]]: \"{name}\"")))
            }
            None if self.examples.is_empty() && !self.invariances.is_empty() => {
                Err(Error::invalid("[[invariance]] needs an [[example]] to perturb"))
            }
            None if self.examples.is_empty()
                && self.holdout.is_none()
                && !self.ranges.is_empty() =>
            {
                Err(Error::invalid("[[range]] needs an [[example]] or a [holdout] to look at"))
            }
            None => Ok(()),
        }
    }
}

/// A data file that travels with the tests.
fn data_file<'a>(data: &'a BTreeMap<String, Bytes>, name: &str) -> Result<&'a Bytes> {
    data.get(name).ok_or_else(|| {
        let names: Vec<&str> = data.keys().map(String::as_str).collect();
        Error::invalid(format!(
            "the test file names \"{name}\", which was not uploaded with it; these were: {names:?}"
        ))
    })
}
