//! Operators that move data or talk about shapes, for every element type.

mod bitcast;
mod constant;
mod pad;
mod reshape;
mod resize;
mod slice;
mod space;

use crate::cpu::op::Entry;
pub(crate) use slice::concatenate;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "BitCast", since: 26, build: bitcast::BitCast::build },
    Entry { op: "Concat", since: 1, build: slice::Concat::build },
    Entry { op: "Constant", since: 1, build: constant::Constant::build },
    Entry { op: "ConstantOfShape", since: 9, build: constant::ConstantOfShape::build },
    Entry { op: "DepthToSpace", since: 1, build: space::DepthToSpace::build },
    Entry { op: "Dropout", since: 1, build: constant::Dropout::build },
    Entry { op: "Expand", since: 8, build: |_| Ok(Box::new(reshape::Expand)) },
    Entry { op: "Flatten", since: 1, build: reshape::Flatten::build },
    Entry { op: "Identity", since: 1, build: |_| Ok(Box::new(constant::Identity)) },
    Entry { op: "Pad", since: 1, build: pad::Pad::build },
    Entry { op: "Reshape", since: 1, build: reshape::Reshape::build },
    Entry { op: "Resize", since: 10, build: resize::Resize::build },
    Entry { op: "ReverseSequence", since: 10, build: space::ReverseSequence::build },
    Entry { op: "Shape", since: 1, build: reshape::ShapeOf::build },
    Entry { op: "Size", since: 1, build: |_| Ok(Box::new(reshape::Size)) },
    Entry { op: "Slice", since: 1, build: slice::Slice::build },
    Entry { op: "SpaceToDepth", since: 1, build: space::SpaceToDepth::build },
    Entry { op: "Split", since: 1, build: slice::Split::build },
    Entry { op: "Squeeze", since: 1, build: reshape::Squeeze::build },
    Entry { op: "Tile", since: 1, build: |_| Ok(Box::new(reshape::Tile)) },
    Entry { op: "Transpose", since: 1, build: reshape::Transpose::build },
    Entry { op: "Unsqueeze", since: 1, build: reshape::Unsqueeze::build },
    Entry { op: "Upsample", since: 7, build: resize::Resize::build_upsample },
];
