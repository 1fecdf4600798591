//! NumPy broadcasting: one walk over the output that hands out runs in which
//! every operand advances by 0 or 1.

use mortise_types::{Error, Result, Shape};
use smallvec::SmallVec;

/// The shape that all of `shapes` broadcast to.
///
/// # Errors
/// When two sizes differ and neither is 1.
pub(crate) fn broadcast_shape(shapes: &[&[usize]]) -> Result<Shape> {
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut output = Shape::from_elem(1, rank);
    for shape in shapes {
        let target = &mut output[rank - shape.len()..];
        for (out, &dim) in target.iter_mut().zip(*shape) {
            if *out == 1 {
                *out = dim;
            } else if dim != 1 && dim != *out {
                return Err(Error::invalid(format!("shapes {shapes:?} do not broadcast")));
            }
        }
    }
    Ok(output)
}

/// How `N` contiguous operands are read to fill one contiguous output.
pub(crate) struct Broadcast<const N: usize> {
    /// Dimensions outside the runs, outermost first, with each operand's step.
    outer: SmallVec<[(usize, [usize; N]); 4]>,
    /// Elements of one run.
    pub(crate) run: usize,
    /// 0 or 1: how far each operand moves with each element of a run.
    pub(crate) steps: [usize; N],
}

impl<const N: usize> Broadcast<N> {
    /// `output` must be what `shapes` broadcast to.
    pub(crate) fn new(output: &[usize], shapes: [&[usize]; N]) -> Self {
        let strides = shapes.map(|shape| element_strides(output.len(), shape));
        let mut dims: SmallVec<[(usize, [usize; N]); 4]> = SmallVec::new();
        for (axis, &dim) in output.iter().enumerate().filter(|(_, dim)| **dim != 1) {
            let step: [usize; N] = std::array::from_fn(|operand| strides[operand][axis]);
            match dims.last_mut() {
                Some((outer, outer_step)) if merges(outer_step, &step, dim) => {
                    *outer *= dim;
                    *outer_step = step;
                }
                _ => dims.push((dim, step)),
            }
        }
        let (run, steps) = dims.pop().unwrap_or((1, [0; N]));
        Self { outer: dims, run, steps }
    }

    /// Calls `visit` with the offset of each operand at the start of each run,
    /// in the order of the output.
    pub(crate) fn for_each_run(&self, mut visit: impl FnMut([usize; N])) {
        if self.run == 0 || self.outer.iter().any(|(dim, _)| *dim == 0) {
            return;
        }
        let mut index: SmallVec<[usize; 4]> = SmallVec::from_elem(0, self.outer.len());
        let mut offsets = [0; N];
        loop {
            visit(offsets);
            let mut axis = self.outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                let (dim, step) = &self.outer[axis];
                index[axis] += 1;
                if index[axis] < *dim {
                    add(&mut offsets, step);
                    break;
                }
                index[axis] = 0;
                rewind(&mut offsets, step, dim - 1);
            }
        }
    }
}

fn merges<const N: usize>(outer: &[usize; N], inner: &[usize; N], dim: usize) -> bool {
    outer.iter().zip(inner).all(|(outer, inner)| *outer == inner * dim)
}

fn add<const N: usize>(offsets: &mut [usize; N], step: &[usize; N]) {
    offsets.iter_mut().zip(step).for_each(|(offset, step)| *offset += step);
}

fn rewind<const N: usize>(offsets: &mut [usize; N], step: &[usize; N], count: usize) {
    offsets.iter_mut().zip(step).for_each(|(offset, step)| *offset -= step * count);
}

/// Strides of a contiguous operand under an output of rank `rank`; 0 where it
/// is repeated.
fn element_strides(rank: usize, shape: &[usize]) -> Shape {
    let mut strides = Shape::from_elem(0, rank);
    let mut stride = 1;
    for (axis, &dim) in shape.iter().enumerate().rev() {
        strides[rank - shape.len() + axis] = if dim == 1 { 0 } else { stride };
        stride *= dim;
    }
    strides
}

/// `output[i] = f(a[i], b[i])` under broadcasting.
pub(crate) fn zip_into<A: Copy, B: Copy, R: Copy>(
    shapes: (&[usize], &[usize], &[usize]),
    (a, b): (&[A], &[B]),
    output: &mut [R],
    f: impl Fn(A, B) -> R,
) {
    let walk = Broadcast::new(shapes.2, [shapes.0, shapes.1]);
    let mut rest = output;
    walk.for_each_run(|[at_a, at_b]| {
        let (run, tail) = std::mem::take(&mut rest).split_at_mut(walk.run);
        match walk.steps {
            [1, 1] => {
                let pairs = a[at_a..at_a + run.len()].iter().zip(&b[at_b..at_b + run.len()]);
                run.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = f(*a, *b));
            }
            [1, 0] => {
                let b = b[at_b];
                let a = &a[at_a..at_a + run.len()];
                run.iter_mut().zip(a).for_each(|(out, a)| *out = f(*a, b));
            }
            [0, 1] => {
                let a = a[at_a];
                let b = &b[at_b..at_b + run.len()];
                run.iter_mut().zip(b).for_each(|(out, b)| *out = f(a, *b));
            }
            _ => run.fill(f(a[at_a], b[at_b])),
        }
        rest = tail;
    });
}

/// `a[i] = f(a[i], b[i])` where `a` has the shape of the output.
pub(crate) fn zip_assign<A: Copy, B: Copy>(
    shapes: (&[usize], &[usize]),
    a: &mut [A],
    b: &[B],
    f: impl Fn(A, B) -> A,
) {
    let walk = Broadcast::new(shapes.0, [shapes.0, shapes.1]);
    walk.for_each_run(|[at_a, at_b]| {
        let run = &mut a[at_a..at_a + walk.run];
        if walk.steps[1] == 1 {
            let b = &b[at_b..at_b + run.len()];
            run.iter_mut().zip(b).for_each(|(a, b)| *a = f(*a, *b));
        } else {
            let b = b[at_b];
            run.iter_mut().for_each(|a| *a = f(*a, b));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        let cases: &[(&[&[usize]], Option<&[usize]>)] = &[
            (&[&[2, 3], &[3]], Some(&[2, 3])),
            (&[&[2, 1], &[1, 3]], Some(&[2, 3])),
            (&[&[], &[0, 2]], Some(&[0, 2])),
            (&[&[1], &[0]], Some(&[0])),
            (&[&[2], &[0]], None),
            (&[&[2, 3], &[2]], None),
        ];
        for (shapes, want) in cases {
            let got = broadcast_shape(shapes).ok();
            assert_eq!(got.as_deref(), *want, "{shapes:?}");
        }
    }

    #[test]
    fn walks_agree_with_index_arithmetic() {
        let cases: &[(&[usize], &[usize])] = &[
            (&[2, 3, 4], &[4]),
            (&[2, 3, 4], &[3, 1]),
            (&[2, 1, 4], &[1, 3, 1]),
            (&[], &[2, 2]),
            (&[2, 3, 4], &[2, 1, 4]),
            (&[5], &[]),
            (&[0, 3], &[3]),
        ];
        for (a, b) in cases {
            let out = broadcast_shape(&[a, b]).unwrap();
            let data_a: Vec<usize> = (0..a.iter().product()).collect();
            let data_b: Vec<usize> = (0..b.iter().product()).collect();
            let mut got = vec![(0, 0); out.iter().product()];
            zip_into((a, b, &out), (&data_a, &data_b), &mut got, |a, b| (a, b));
            let (sa, sb) = (element_strides(out.len(), a), element_strides(out.len(), b));
            for (flat, pair) in got.iter().enumerate() {
                let (mut rest, mut want) = (flat, (0, 0));
                for axis in (0..out.len()).rev() {
                    let at = rest % out[axis];
                    rest /= out[axis];
                    want = (want.0 + at * sa[axis], want.1 + at * sb[axis]);
                }
                assert_eq!(*pair, want, "{a:?} {b:?} at {flat}");
            }
        }
    }
}
