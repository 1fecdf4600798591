//! Where a value of a run lies on the device, and how it is laid out.

use crate::heap::Weight;
use mortise_types::{DType, Shape};
use std::sync::Arc;

/// Memory behind a value.
#[derive(Clone)]
pub(crate) enum Place {
    /// A buffer of the run's arena, by index; offsets are packed later.
    Arena(usize),
    Weight(Arc<Weight>),
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Arena(a), Self::Arena(b)) => a == b,
            (Self::Weight(a), Self::Weight(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A value on the device. Every element takes one 32-bit word: floats as `f32`
/// (`FP16` values keep their precision by rounding), integers and booleans as
/// `i32`. Packed weights are no operands but arguments of their kernels.
#[derive(Clone, PartialEq)]
pub(crate) struct Operand {
    pub(crate) place: Place,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    /// Elements from one index to the next, for each dimension.
    pub(crate) strides: Shape,
}

impl Operand {
    pub(crate) fn dense(place: Place, dtype: DType, shape: &[usize]) -> Self {
        Self { place, dtype, shape: shape.into(), strides: dense_strides(shape) }
    }

    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn is_dense(&self) -> bool {
        let want = dense_strides(&self.shape);
        let dims = self.shape.iter().zip(&self.strides).zip(&want);
        dims.into_iter().all(|((dim, stride), want)| *dim == 1 || stride == want)
    }

    /// Strides as seen from a broadcast of the value to `shape`, which it must
    /// be able to broadcast to.
    pub(crate) fn broadcast_strides(&self, shape: &[usize]) -> Shape {
        let skipped = shape.len() - self.shape.len();
        let own = |axis: usize| match self.shape[axis] {
            1 => 0,
            _ => self.strides[axis],
        };
        (0..shape.len()).map(|axis| axis.checked_sub(skipped).map_or(0, own)).collect()
    }
}

pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16)
}

/// Whether the device can hold tensors of this type.
pub(crate) fn is_held(dtype: DType) -> bool {
    is_float(dtype)
        || matches!(dtype, DType::I32 | DType::I64 | DType::Bool | DType::U8 | DType::I8)
}

pub(crate) fn dense_strides(shape: &[usize]) -> Shape {
    let mut strides: Shape = shape.into();
    let mut step = 1;
    for (stride, dim) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step *= dim;
    }
    strides
}

/// The joint shape, or `None`.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at])
    };
    (0..rank)
        .map(|axis| match (dim(a, axis), dim(b, axis)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Joins neighbouring dimensions that every layout steps through as one, and
/// drops those of size 1.
pub(crate) fn collapse(shape: &[usize], layouts: &[Shape]) -> (Shape, Vec<Shape>) {
    let mut dims = Shape::new();
    let mut kept = vec![Shape::new(); layouts.len()];
    for axis in (0..shape.len()).filter(|axis| shape[*axis] != 1) {
        let joins = dims.last().is_some()
            && layouts
                .iter()
                .zip(&kept)
                .all(|(layout, kept)| kept.last() == Some(&layout[axis].wrapping_mul(shape[axis])));
        if joins {
            if let Some(last) = dims.last_mut() {
                *last *= shape[axis];
            }
        } else {
            dims.push(shape[axis]);
        }
        for (layout, kept) in layouts.iter().zip(&mut kept) {
            if joins {
                kept.pop();
            }
            kept.push(layout[axis]);
        }
    }
    if dims.is_empty() {
        dims.push(1);
        kept.iter_mut().for_each(|kept| kept.push(0));
    }
    (dims, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_join_only_where_all_layouts_agree() {
        let shape = [2, 3, 4];
        let dense = dense_strides(&shape);
        let (dims, kept) = collapse(&shape, &[dense.clone(), dense.clone()]);
        assert_eq!((dims.as_slice(), kept[0].as_slice()), (&[24][..], &[1][..]));
        let row: Shape = [0, 0, 1].into_iter().collect();
        let (dims, kept) = collapse(&shape, &[dense.clone(), row]);
        assert_eq!(dims.as_slice(), [6, 4]);
        assert_eq!(kept[0].as_slice(), [4, 1]);
        assert_eq!(kept[1].as_slice(), [0, 1]);
        let turned: Shape = [1, 2, 6].into_iter().collect();
        assert_eq!(collapse(&shape, &[dense, turned]).0.as_slice(), shape);
        assert_eq!(collapse(&[1, 1], &[Shape::from_slice(&[0, 0])]).0.as_slice(), [1]);
    }
}
