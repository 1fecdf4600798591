//! Which variant of a kernel suits a shape on this adapter.

/// How a matrix product is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tiles {
    /// Rows and columns that a thread holds: 4 or 8.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) threads_m: usize,
    pub(crate) threads_n: usize,
    pub(crate) depth: usize,
}

impl Tiles {
    pub(crate) const LARGE: Self = Self::new(8, 8, 16, 16, 16);
    pub(crate) const MEDIUM: Self = Self::new(4, 4, 16, 16, 16);
    pub(crate) const FLAT: Self = Self::new(4, 8, 4, 16, 16);
    pub(crate) const WIDE: Self = Self::new(8, 8, 8, 16, 16);
    pub(crate) const ALL: [Self; 4] = [Self::LARGE, Self::MEDIUM, Self::FLAT, Self::WIDE];

    const fn new(
        rows: usize,
        columns: usize,
        threads_m: usize,
        threads_n: usize,
        depth: usize,
    ) -> Self {
        Self { rows, columns, threads_m, threads_n, depth }
    }

    pub(crate) fn m(self) -> usize {
        self.rows * self.threads_m
    }

    pub(crate) fn n(self) -> usize {
        self.columns * self.threads_n
    }

    /// Bytes of workgroup memory, padding included.
    pub(crate) fn shared_bytes(self) -> usize {
        self.depth * ((self.m() / 4 + 1) + (self.n() / 4 + 1)) * 16
    }
}

/// Rows that the kernel for few rows takes at most.
pub(crate) const GEMV_ROWS: usize = 8;

/// What was found best on this adapter; rules of thumb for all else.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tuning {
    /// Tiles by size class of the product, see [`class`].
    pub(crate) tiles: std::collections::BTreeMap<String, usize>,
}

impl Tuning {
    /// Tiles for an m × n product with `k` terms, `batch` of them.
    pub(crate) fn tiles(&self, m: usize, n: usize, k: usize, shared_limit: usize) -> Tiles {
        let measured = self.tiles.get(&class(m, n, k)).and_then(|at| Tiles::ALL.get(*at));
        let chosen = measured.copied().unwrap_or_else(|| rule_of_thumb(m, n));
        if chosen.shared_bytes() <= shared_limit { chosen } else { Tiles::MEDIUM }
    }
}

fn rule_of_thumb(m: usize, n: usize) -> Tiles {
    match (m, n) {
        (..=16, _) => Tiles::FLAT,
        (256.., 256..) if m * n >= 512 * 512 => Tiles::LARGE,
        (64.., 128..) => Tiles::WIDE,
        _ => Tiles::MEDIUM,
    }
}

/// Sizes within a factor of two behave alike.
pub(crate) fn class(m: usize, n: usize, k: usize) -> String {
    let log = |size: usize| size.max(1).ilog2();
    format!("{}x{}x{}", log(m), log(n), log(k))
}
