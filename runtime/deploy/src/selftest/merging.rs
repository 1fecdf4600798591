//! Rows together against rows alone. Shape inference proves that rows do not
//! mix; this sees it, on the kernels that will serve.

use super::SelfTest;
use crate::generate;
use crate::status::Merging;
use mortise_serve::Revision;
use mortise_types::{Result, RunControl, Tensor};
use std::time::Instant;

/// Requests that are run together and alone: an odd number, so that kernels
/// which take several rows at a time have some left over.
const SAMPLES: u64 = 5;

/// What open dimensions are tried at, for models that refuse the smallest.
const SIZES: [usize; 3] = [1, 8, 64];

/// Allows merging when that gives the same answers as running alone.
pub(crate) fn check(revision: &Revision, tests: Option<&SelfTest>, deadline: Instant) -> Merging {
    if !revision.options().batching.merge {
        return Merging::Off("it is switched off with batching.enabled = false".to_string());
    }
    if !revision.rows_independent() {
        return Merging::Off("rows are not proven to be independent of each other".to_string());
    }
    let control = RunControl::new(Some(deadline), RunControl::DEFAULT_LOOP_ITERATIONS);
    let mut outcome = Ok(());
    for samples in candidates(revision, tests) {
        outcome = revision.compare_merged(&samples, &control);
        if outcome.is_ok() {
            revision.allow_merging();
            return Merging::On;
        }
        // Inputs that the model refuses say nothing; answers that differ do.
        if runs_alone(revision, &samples, &control).is_ok() {
            break;
        }
    }
    match outcome {
        Ok(()) => Merging::Off("no inputs are known to compare merged runs on".to_string()),
        Err(error) => Merging::Off(error.message().to_string()),
    }
}

type Named = Vec<(String, Tensor)>;

/// Sets of requests to compare on, the most telling first.
fn candidates(revision: &Revision, tests: Option<&SelfTest>) -> Vec<Vec<Named>> {
    let mut sets = Vec::new();
    let mut examples = tests.map_or_else(Vec::new, |tests| tests.all_inputs(revision));
    examples.truncate(SAMPLES as usize);
    if examples.len() > 1 {
        sets.push(examples);
    }
    for size in SIZES {
        sets.extend(
            (1..=SAMPLES)
                .map(|seed| generate::row(revision, seed, size))
                .collect::<Option<Vec<_>>>(),
        );
    }
    sets
}

fn runs_alone(revision: &Revision, samples: &[Named], control: &RunControl) -> Result<()> {
    samples.iter().try_for_each(|sample| revision.run_blocking(sample.clone(), control).map(drop))
}
