//! Whether matrix units can be trusted: an experimental feature of the API is
//! used only where its answers are right, and the same each time.

use crate::device::Generation;
use crate::measure::{Weights, product};
use crate::tune::{Kind, Tuning, UnitTiles};
use half::f16;
use mortise_types::{Result, RunControl, Tensor};

/// Repeats of one product when a device is opened.
const REPEATS: usize = 3;

/// Rounds of the test when a device is opened: every choice of tiles, with
/// tiles that are full and with such as are not.
const ROUNDS: usize = 2 * UnitTiles::ALL.len();

/// Turns matrix units off where they fail their test.
pub(crate) fn check(generation: &mut Generation) {
    if !generation.context.has_matrix_units {
        return;
    }
    let mut failed: Result<usize> = Ok(0);
    for round in 0..ROUNDS {
        failed = failed.and_then(|sum| Ok(sum + unstable(generation, round, REPEATS)?));
    }
    match failed {
        Ok(0) => {}
        Ok(count) => {
            tracing::warn!(count, "products on the GPU's matrix units are wrong; doing without");
            generation.context.has_matrix_units = false;
        }
        Err(error) => {
            tracing::warn!(%error, "the GPU's matrix units do not work; doing without");
            generation.context.has_matrix_units = false;
        }
    }
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, count: usize) -> usize {
        self.next() as usize % count
    }

    fn halves(&mut self, count: usize) -> Vec<f16> {
        let number = |bits: u64| f16::from_f32((bits % 2048) as f32 / 1024.0 - 1.0);
        (0..count).map(|_| number(self.next())).collect()
    }
}

/// Runs one product, of the tiles, format and size that are `round`'s turn,
/// `repeats` times and counts answers that differ from that of
/// the kernel without matrix units, or in any bit from the first.
///
/// # Errors
/// As a run.
pub(crate) fn unstable(generation: &mut Generation, round: usize, repeats: usize) -> Result<usize> {
    let mut numbers = Numbers((round as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    numbers.next();
    let weights = [Weights::F16, Weights::Int8, Weights::Int4][round % 3];
    let (whole, tiles) = (round / UnitTiles::ALL.len() % 2 == 1, round % UnitTiles::ALL.len());
    let mut size = |most: usize, unit: usize| match whole {
        true => (1 + numbers.below(most / 128)) * 128,
        false => 9 + numbers.below(most / unit) * unit,
    };
    let [m, n] = [size(400, 1), size(600, 1)];
    // Weights of few bits lie in blocks of 32.
    let k = size(512, 32).next_multiple_of(32);
    let control = RunControl::unbounded();
    let input = Tensor::from_vec(&[m, k], numbers.halves(m * k))?;
    generation.context.has_matrix_units = false;
    let want = product(generation, [m, n, k], weights);
    generation.context.has_matrix_units = true;
    let want = want?.run(generation, vec![input.clone()], &control)?;
    let choice = Tuning::only(Kind::Units, [m, n, k], tiles);
    let tuned = std::mem::replace(&mut generation.tuning, choice);
    let replay = product(generation, [m, n, k], weights);
    generation.tuning = tuned;
    let replay = replay?;
    let mut first: Option<Vec<Tensor>> = None;
    let mut failed = 0;
    for _ in 0..repeats {
        let got = replay.run(generation, vec![input.clone()], &control)?;
        let same = first.as_ref().is_none_or(|first| first[0].bytes() == got[0].bytes());
        failed += usize::from(!(same && agree(&got[0], &want[0])?));
        first.get_or_insert(got);
    }
    Ok(failed)
}

/// Within what rounding to `FP16`, of weights and of the answer, may change.
///
/// # Errors
/// `Internal` when the tensors are not of `FP16`.
fn agree(got: &Tensor, want: &Tensor) -> Result<bool> {
    let (got, want) = (got.as_slice::<f16>()?, want.as_slice::<f16>()?);
    let size = want.iter().map(|value| value.to_f32().abs()).fold(0.0, f32::max);
    let close = |(got, want): (&f16, &f16)| (got.to_f32() - want.to_f32()).abs() <= size * 2e-3;
    Ok(got.len() == want.len() && got.iter().zip(want).all(close))
}
