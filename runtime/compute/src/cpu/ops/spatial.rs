//! Operators that move and sample pixels by computed coordinates.

mod deform;
mod fold;
mod grid;
mod regions;

use crate::cpu::op::Entry;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "AffineGrid", since: 20, build: grid::AffineGrid::build },
    Entry { op: "CenterCropPad", since: 18, build: fold::CenterCropPad::build },
    Entry { op: "Col2Im", since: 18, build: fold::Col2Im::build },
    Entry { op: "DeformConv", since: 19, build: deform::DeformConv::build },
    Entry { op: "GridSample", since: 16, build: grid::GridSample::build },
    Entry { op: "MaxUnpool", since: 9, build: fold::MaxUnpool::build },
    Entry { op: "RoiAlign", since: 10, build: regions::RoiAlign::build },
    Entry { op: "RoiAlign", since: 16, build: regions::RoiAlign::build_half_pixel },
];
