//! Operators that choose elements by index, or answer with indices.

mod cache;
mod cumulate;
mod distance;
mod fill;
mod find;
mod gather;
mod rank;
mod scatter;
mod suppress;

use crate::cpu::op::Entry;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "ArgMax", since: 1, build: rank::ArgExtreme::build_max },
    Entry { op: "ArgMin", since: 1, build: rank::ArgExtreme::build_min },
    Entry { op: "Compress", since: 9, build: find::Compress::build },
    Entry { op: "CumProd", since: 26, build: cumulate::build_product },
    Entry { op: "CumSum", since: 11, build: cumulate::build_sum },
    Entry { op: "EyeLike", since: 9, build: fill::EyeLike::build },
    Entry { op: "Gather", since: 1, build: gather::Gather::build },
    Entry { op: "GatherElements", since: 11, build: gather::GatherElements::build },
    Entry { op: "GatherND", since: 11, build: gather::GatherNd::build },
    Entry { op: "NonMaxSuppression", since: 10, build: suppress::NonMaxSuppression::build },
    Entry { op: "NonZero", since: 9, build: |_| Ok(Box::new(find::NonZero)) },
    Entry { op: "OneHot", since: 9, build: fill::OneHot::build },
    Entry { op: "Range", since: 11, build: |_| Ok(Box::new(fill::Range)) },
    Entry { op: "Scatter", since: 9, build: scatter::ScatterElements::build },
    Entry { op: "ScatterElements", since: 11, build: scatter::ScatterElements::build },
    Entry { op: "ScatterND", since: 11, build: scatter::ScatterNd::build },
    Entry { op: "TensorScatter", since: 24, build: cache::TensorScatter::build },
    Entry { op: "TopK", since: 1, build: rank::TopK::build },
    Entry { op: "Trilu", since: 14, build: fill::Trilu::build },
    Entry { op: "Unique", since: 11, build: find::Unique::build },
];

pub(crate) const MS_ENTRIES: &[Entry] =
    &[Entry { op: "CDist", since: 1, build: distance::CDist::build }];
