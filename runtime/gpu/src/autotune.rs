//! Measures which tiles suit this adapter, once; the answer is kept in a file
//! under the adapter's and the driver's name.

use crate::device::Generation;
use crate::measure::{KEEP_WARM, WARM_UP, Weights, prepared};
use crate::tune::{Kind, Tuning, class};
use mortise_types::Result;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Products that stand for their size class, best known first.
const SHAPES: [[usize; 3]; 9] = [
    [4096, 4096, 4096],
    [1024, 1024, 1024],
    [128, 768, 768],
    [128, 3072, 768],
    [2048, 768, 768],
    [2048, 3072, 768],
    [256, 256, 2304],
    [512, 512, 512],
    [32, 1024, 1024],
];

/// The same on matrix units.
const UNIT_SHAPES: [[usize; 3]; 5] =
    [[4096, 4096, 4096], [1024, 1024, 1024], [128, 768, 768], [2048, 768, 768], [32, 1024, 1024]];

/// How long all measurements may take; what is left unmeasured follows the
/// rules of thumb.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Kinds that a file may speak of.
const KINDS: [Kind; 2] = [Kind::Tiles, Kind::Units];

/// Repeats of one measurement.
const REPEATS: usize = 10;

impl Tuning {
    /// What was measured on this adapter before, or now. A software adapter is
    /// not worth measuring.
    pub(crate) fn load_or_measure(generation: &mut Generation, file: Option<&Path>) {
        let key = generation.context.tuning_key.clone();
        let saved = file.and_then(|file| std::fs::read_to_string(file).ok());
        if let Some(tuning) = saved.and_then(|text| Self::parse(&text, &key)) {
            generation.tuning = tuning;
            return;
        }
        if generation.context.is_software {
            return;
        }
        let device = &*generation.context.name;
        let seconds = MAX_TIME.as_secs();
        tracing::info!(device, "measuring once which kernels suit it, for at most {seconds} s");
        match measure(generation, &plan(generation.context.has_matrix_units)) {
            Ok(tuning) => generation.tuning = tuning,
            Err(error) => tracing::warn!(%error, "the GPU's kernels were not tuned"),
        }
        let Some(file) = file else { return };
        if let Err(error) = std::fs::write(file, generation.tuning.text(&key)) {
            tracing::warn!(%error, file = %file.display(), "what was tuned is not kept");
        }
    }

    fn text(&self, key: &str) -> String {
        let mut text = format!("{key}\n");
        for ((kind, [m, n, k]), index) in &self.choices {
            // By name: what stands at an index changes with the kernels.
            let _ = writeln!(text, "{kind:?} {m} {n} {k} {}", kind.describe(*index));
        }
        text
    }

    /// `None` when the text is of another adapter or driver, or is none of ours.
    fn parse(text: &str, key: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(key) {
            return None;
        }
        let entry = |line: &str| {
            let mut parts = line.splitn(5, ' ');
            let name = parts.next()?;
            let kind = *KINDS.iter().find(|kind| format!("{kind:?}") == name)?;
            let mut size = || parts.next()?.parse().ok();
            let [m, n, k] = [size()?, size()?, size()?];
            let choice = parts.next()?;
            let index = (0..kind.choices()).find(|index| kind.describe(*index) == choice)?;
            Some(((kind, [m, n, k]), index))
        };
        Some(Self { choices: lines.map(entry).collect::<Option<_>>()? })
    }
}

/// Everything that is tuned.
fn plan(has_matrix_units: bool) -> Vec<(Kind, [usize; 3])> {
    let of = |kind: Kind, shapes: &[[usize; 3]]| {
        shapes.iter().map(|shape| (kind, *shape)).collect::<Vec<_>>()
    };
    let mut plan = of(Kind::Tiles, &SHAPES);
    if has_matrix_units {
        plan.extend(of(Kind::Units, &UNIT_SHAPES));
    }
    plan
}

/// The fastest choice for each of `plan`.
///
/// # Errors
/// As running a kernel.
pub(crate) fn measure(generation: &mut Generation, plan: &[(Kind, [usize; 3])]) -> Result<Tuning> {
    let start = Instant::now();
    let mut best = Tuning::default();
    for &(kind, size) in plan {
        let weights = match kind {
            Kind::Tiles => Weights::F32,
            Kind::Units => Weights::F16,
        };
        let (prepared, mut times) = (prepared(size, weights)?, Vec::new());
        for index in 0..kind.choices() {
            if start.elapsed() > MAX_TIME {
                return Ok(best);
            }
            generation.tuning = Tuning::only(kind, size, index);
            let warm_up = if index == 0 { WARM_UP } else { KEEP_WARM };
            let time = prepared.replay(generation)?.time(generation, REPEATS, warm_up)?;
            tracing::debug!(?kind, ?size, index, ?time, "measured");
            times.push((time, index));
        }
        if let Some((_, index)) = times.into_iter().min() {
            best.choices.insert(class(kind, size), index);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tuned_is_read_back_for_the_same_driver_only() {
        let choices = [(class(Kind::Tiles, [64; 3]), 1), (class(Kind::Units, [4096; 3]), 0)].into();
        let tuning = Tuning { choices };
        let text = tuning.text("adapter|Vulkan|driver 1");
        let back = Tuning::parse(&text, "adapter|Vulkan|driver 1").unwrap();
        assert_eq!(back, tuning);
        assert!(Tuning::parse(&text, "adapter|Vulkan|driver 2").is_none());
        assert!(Tuning::parse("adapter\nrubbish", "adapter").is_none());
        assert!(Tuning::parse("adapter\nTiles 6 6 6 1x1", "adapter").is_none());
        assert!(Tuning::parse("adapter\nTiles 6 6", "adapter").is_none());
        assert!(Tuning::parse("adapter\nOther 6 6 6 1x1", "adapter").is_none());
    }

    #[test]
    fn every_choice_of_tiles_can_be_measured() {
        let mut generation = Generation::open(crate::tests::adapter_index(), None).unwrap();
        let tuning = measure(&mut generation, &[(Kind::Tiles, [70, 130, 33])]).unwrap();
        assert_eq!(tuning.choices.len(), 1);
    }
}
