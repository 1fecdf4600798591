//! Measures which tiles suit this adapter, once; the answer is kept in a file
//! under the adapter's and the driver's name.

use crate::device::Generation;
use crate::measure::{Weights, product};
use crate::tune::{Tiles, Tuning, class};
use mortise_types::Result;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Products that stand for their size class.
const SHAPES: [[usize; 3]; 6] = [
    [32, 1024, 1024],
    [128, 768, 768],
    [128, 768, 3072],
    [512, 512, 512],
    [1024, 1024, 1024],
    [4096, 4096, 4096],
];

/// How long all measurements may take; what is left unmeasured follows the
/// rules of thumb.
const MAX_TIME: Duration = Duration::from_secs(20);

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
        match measure(generation, &SHAPES) {
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
        for (class, index) in &self.tiles {
            let _ = writeln!(text, "{class} {index}");
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
            let (class, index) = line.split_once(' ')?;
            let index: usize = index.parse().ok().filter(|at| *at < Tiles::ALL.len())?;
            Some((class.to_owned(), index))
        };
        Some(Self { tiles: lines.map(entry).collect::<Option<_>>()? })
    }
}

/// The fastest tiles for each of `shapes`.
///
/// # Errors
/// As running a kernel.
pub(crate) fn measure(generation: &mut Generation, shapes: &[[usize; 3]]) -> Result<Tuning> {
    let start = Instant::now();
    let mut best = Tuning::default();
    for &[m, n, k] in shapes {
        let mut times = Vec::new();
        for index in 0..Tiles::ALL.len() {
            if start.elapsed() > MAX_TIME {
                return Ok(best);
            }
            let class = class(m, n, k);
            generation.tuning = Tuning { tiles: [(class, index)].into() };
            let time = product(generation, [m, n, k], Weights::F32)?.time(generation, REPEATS)?;
            times.push((time, index));
        }
        if let Some((_, index)) = times.into_iter().min() {
            best.tiles.insert(class(m, n, k), index);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tuned_is_read_back_for_the_same_driver_only() {
        let tiles = [(class(64, 64, 64), 1), (class(4096, 4096, 4096), 0)].into();
        let tuning = Tuning { tiles };
        let text = tuning.text("adapter|Vulkan|driver 1");
        let back = Tuning::parse(&text, "adapter|Vulkan|driver 1").unwrap();
        assert_eq!(back.tiles, tuning.tiles);
        assert!(Tuning::parse(&text, "adapter|Vulkan|driver 2").is_none());
        assert!(Tuning::parse("adapter\nrubbish", "adapter").is_none());
        assert!(Tuning::parse("adapter\n6x6x6 99", "adapter").is_none());
    }

    #[test]
    fn every_choice_of_tiles_can_be_measured() {
        let mut generation = Generation::open(crate::tests::adapter_index(), None).unwrap();
        let tuning = measure(&mut generation, &[[70, 130, 33]]).unwrap();
        assert_eq!(tuning.tiles.len(), 1);
    }
}
