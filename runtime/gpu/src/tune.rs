//! Which variant of a kernel suits a shape on this adapter.

use crate::measure::Weights;
use std::collections::BTreeMap;

/// How a matrix product is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tiles {
    /// Rows and columns that a thread holds: 4 or 8.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) threads_m: usize,
    pub(crate) threads_n: usize,
    pub(crate) depth: usize,
    /// Tiles in workgroup memory at once: 1 or 2.
    pub(crate) stages: usize,
}

impl Tiles {
    pub(crate) const LARGE: Self = Self::new([8, 8], [16, 16], 16, 1);
    pub(crate) const MEDIUM: Self = Self::new([4, 4], [16, 16], 16, 1);
    pub(crate) const FLAT: Self = Self::new([4, 8], [4, 16], 16, 1);
    pub(crate) const WIDE: Self = Self::new([8, 8], [8, 16], 16, 1);
    pub(crate) const ALL: [Self; 7] = [
        Self::LARGE,
        Self::MEDIUM,
        Self::FLAT,
        Self::WIDE,
        Self::new([8, 8], [16, 16], 8, 2),
        Self::new([4, 4], [16, 16], 16, 2),
        Self::new([4, 8], [8, 16], 16, 2),
    ];

    const fn new(
        [rows, columns]: [usize; 2],
        [threads_m, threads_n]: [usize; 2],
        depth: usize,
        stages: usize,
    ) -> Self {
        Self { rows, columns, threads_m, threads_n, depth, stages }
    }

    pub(crate) fn m(self) -> usize {
        self.rows * self.threads_m
    }

    pub(crate) fn n(self) -> usize {
        self.columns * self.threads_n
    }

    /// Bytes of workgroup memory, padding included.
    pub(crate) fn shared_bytes(self) -> usize {
        self.stages * self.depth * ((self.m() / 4 + 1) + (self.n() / 4 + 1)) * 16
    }
}

/// How a product on matrix units is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UnitTiles {
    /// Warps along rows and columns of a tile.
    pub(crate) warps: [usize; 2],
    /// Fragments of 16 rows that a warp answers: 2 or 4; columns are 64.
    pub(crate) fragments: usize,
    pub(crate) depth: usize,
    /// Tiles in workgroup memory at once: 1 or 2.
    pub(crate) stages: usize,
}

impl UnitTiles {
    pub(crate) const LARGE: Self = Self::new([2, 4], 4, 32, 1);
    pub(crate) const MEDIUM: Self = Self::new([2, 2], 2, 32, 2);
    pub(crate) const FLAT: Self = Self::new([1, 4], 2, 32, 1);
    pub(crate) const ALL: [Self; 5] = [
        Self::LARGE,
        Self::MEDIUM,
        Self::FLAT,
        Self::new([4, 2], 2, 64, 1),
        Self::new([4, 2], 2, 32, 1),
    ];

    const fn new(warps: [usize; 2], fragments: usize, depth: usize, stages: usize) -> Self {
        Self { warps, fragments, depth, stages }
    }

    pub(crate) fn m(self) -> usize {
        self.fragments * 16 * self.warps[0]
    }

    pub(crate) fn n(self) -> usize {
        64 * self.warps[1]
    }

    /// Bytes of workgroup memory, padding included.
    pub(crate) fn shared_bytes(self) -> usize {
        let tiles = self.stages * (self.m() + self.n()) * (self.depth / 8 + 1) * 16;
        tiles + self.warps[0] * self.warps[1] * 16 * 20 * 4
    }
}

/// Rows that the kernel for few rows takes at most.
pub(crate) const GEMV_ROWS: usize = 8;

/// What was found best on this adapter; rules of thumb for all else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// Indices into the lists of choices; see [`class`].
    pub(crate) choices: BTreeMap<Class, usize>,
}

/// A kind of kernel, and logarithms of m, n and k.
pub(crate) type Class = (Kind, [u32; 3]);

/// What kernels are tuned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Tiles,
    /// Of f16 on matrix units.
    Units,
}

impl Kind {
    /// What a product with such weights is tuned by, when it has many rows.
    pub(crate) fn of(weights: Weights, has_matrix_units: bool) -> Self {
        match weights {
            Weights::F16 | Weights::Int8 | Weights::Int4 if has_matrix_units => Self::Units,
            _ => Self::Tiles,
        }
    }

    /// A choice in words.
    pub(crate) fn describe(self, index: usize) -> String {
        match self {
            Self::Tiles => {
                let t = Tiles::ALL[index];
                let (m, n, depth, stages) = (t.m(), t.n(), t.depth, t.stages);
                format!("{m}x{n}x{depth}, {}x{} a thread, {stages} stages", t.rows, t.columns)
            }
            Self::Units => {
                let t = UnitTiles::ALL[index];
                let (m, n, depth, stages) = (t.m(), t.n(), t.depth, t.stages);
                format!("{m}x{n}x{depth}, {} warps, {stages} stages", t.warps[0] * t.warps[1])
            }
        }
    }

    pub(crate) fn choices(self) -> usize {
        match self {
            Self::Tiles => Tiles::ALL.len(),
            Self::Units => UnitTiles::ALL.len(),
        }
    }
}

impl Tuning {
    /// Tiles for an m × n product with `k` terms.
    pub(crate) fn tiles(&self, size: [usize; 3], shared_limit: usize) -> Tiles {
        let measured = self.nearest(Kind::Tiles, size).and_then(|at| Tiles::ALL.get(at));
        let chosen = measured.copied().unwrap_or_else(|| rule_of_thumb(size));
        if chosen.shared_bytes() <= shared_limit { chosen } else { Tiles::MEDIUM }
    }

    /// Tiles of matrix units for an m × n product with `k` terms, or `None` when
    /// the device has too little workgroup memory for them.
    pub(crate) fn units(&self, size: [usize; 3], shared_limit: usize) -> Option<UnitTiles> {
        let measured = self.nearest(Kind::Units, size).and_then(|at| UnitTiles::ALL.get(at));
        let chosen = measured.copied().unwrap_or_else(|| unit_rule_of_thumb(size));
        Some(chosen).filter(|tiles| tiles.shared_bytes() <= shared_limit)
    }

    /// One choice, for products of this size.
    pub(crate) fn only(kind: Kind, size: [usize; 3], index: usize) -> Self {
        Self { choices: [(class(kind, size), index)].into() }
    }

    /// What was best for the size class nearest to this one, if any is near.
    fn nearest(&self, kind: Kind, size: [usize; 3]) -> Option<usize> {
        let own = logs(size);
        let distance = |logs: &[u32; 3]| -> u32 {
            logs.iter().zip(own).map(|(log, own)| log.abs_diff(own)).sum()
        };
        let near = |(of, logs): &Class| *of == kind && distance(logs) <= NEAR;
        let measured = self.choices.iter().filter(|(class, _)| near(class));
        measured.min_by_key(|((_, logs), _)| distance(logs)).map(|(_, index)| *index)
    }
}

fn rule_of_thumb([m, n, _]: [usize; 3]) -> Tiles {
    match (m, n) {
        (..=16, _) => Tiles::FLAT,
        (256.., 256..) if m * n >= 512 * 512 => Tiles::LARGE,
        (64.., 128..) => Tiles::WIDE,
        _ => Tiles::MEDIUM,
    }
}

fn unit_rule_of_thumb([m, n, _]: [usize; 3]) -> UnitTiles {
    match m {
        ..=32 => UnitTiles::FLAT,
        _ if m * n <= 1024 * 1024 => UnitTiles::MEDIUM,
        _ => UnitTiles::LARGE,
    }
}

/// Factors of two, of all sizes together, within which one measurement speaks for
/// another size.
const NEAR: u32 = 5;

/// Sizes within a factor of two behave alike.
pub(crate) fn class(kind: Kind, size: [usize; 3]) -> Class {
    (kind, logs(size))
}

fn logs(size: [usize; 3]) -> [u32; 3] {
    size.map(|size| size.max(1).ilog2())
}
