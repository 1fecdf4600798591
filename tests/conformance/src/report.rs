//! Outcomes, counted by operator.

use crate::cases::Case;
use mortise_types::{Error, ErrorKind};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How a case ended. The worst of its cases is that of a test.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Passed,
    /// Refused, with the reason.
    Unsupported(String),
    /// A wrong answer, or an error that is no refusal.
    Failed(String),
}

impl Outcome {
    pub(crate) fn of_error(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Unsupported => Self::Unsupported(error.message().to_owned()),
            _ => Self::Failed(error.message().to_owned()),
        }
    }
}

/// What is known so far, by test: its operator and outcome.
#[derive(Default)]
pub(crate) struct Report(BTreeMap<String, (String, Outcome)>);

#[derive(Clone, Copy, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    unsupported: usize,
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Unsupported(_) => self.unsupported += 1,
        }
    }

    fn json(self) -> Value {
        let Self { passed, failed, unsupported } = self;
        json!({"passed": passed, "failed": failed, "unsupported": unsupported})
    }
}

impl Report {
    pub(crate) fn add(&mut self, case: &Case, outcome: Outcome) {
        let first = || (case.operator.clone(), Outcome::Passed);
        let (_, worst) = self.0.entry(case.test.clone()).or_insert_with(first);
        if outcome > *worst {
            *worst = outcome;
        }
    }

    /// The tests that did not pass with their reasons, the operators that have
    /// such, and last all counts as one JSON object.
    pub(crate) fn print(&self, onnx_version: &str) {
        self.print_reasons();
        let mut by_operator = BTreeMap::<&str, Counts>::new();
        let mut total = Counts::default();
        for (operator, outcome) in self.0.values() {
            by_operator.entry(operator).or_default().add(outcome);
            total.add(outcome);
        }
        println!("\n{:<32} {:>7} {:>7} {:>12}", "operator", "passed", "failed", "unsupported");
        for (operator, Counts { passed, failed, unsupported }) in &by_operator {
            println!("{operator:<32} {passed:>7} {failed:>7} {unsupported:>12}");
        }
        let by_operator: BTreeMap<_, _> =
            by_operator.into_iter().map(|(operator, counts)| (operator, counts.json())).collect();
        let mut result = total.json();
        result["total"] = self.0.len().into();
        result["by_operator"] = json!(by_operator);
        result["failures"] = json!(self.failures());
        result["versions"] = json!({"onnx": onnx_version});
        println!("{result}");
    }

    /// The names of the tests that failed.
    fn failures(&self) -> Vec<&str> {
        let failed =
            self.0.iter().filter(|(_, (_, outcome))| matches!(outcome, Outcome::Failed(_)));
        failed.map(|(test, _)| test.as_str()).collect()
    }

    fn print_reasons(&self) {
        for (test, (_, outcome)) in &self.0 {
            match outcome {
                Outcome::Passed => {}
                Outcome::Unsupported(why) => println!("unsupported {test}: {why}"),
                Outcome::Failed(why) => println!("FAILED      {test}: {why}"),
            }
        }
    }
}
