//! The largest elements of two-dimensional windows, a row at a time.

use crate::cpu::op::OpContext;
use crate::cpu::ops::window::Window;
use crate::cpu::wide::{Loop, widest};
use mortise_types::{Element, Result};
use std::ops::Range;

/// Whether every window holds an element that is no padding.
pub(super) fn sees_input(window: &Window) -> bool {
    (0..2).all(|axis| {
        (0..window.output[axis])
            .all(|out| (0..window.kernel[axis]).any(|tap| window.source(axis, out, tap).is_some()))
    })
}

/// # Errors
/// The deadline.
pub(super) fn pool<T: Element + Copy>(
    ctx: &OpContext<'_>,
    input: &[T],
    window: &Window,
    output: &mut [T],
) -> Result<()> {
    let [height, width] = [window.input[0], window.input[1]];
    let plane = window.output[0] * window.output[1];
    if plane == 0 || height * width == 0 {
        return Ok(());
    }
    let columns = Columns::new(window);
    let planes = output.chunks_exact_mut(plane).zip(input.chunks_exact(height * width));
    for (output, input) in planes {
        ctx.control.check()?;
        widest(Plane { window, columns: &columns, input, output });
    }
    Ok(())
}

/// Where the outputs of a row look.
struct Columns {
    /// For each horizontal tap: outputs that see an element through it, and
    /// where the first of them lies.
    taps: Vec<(Range<usize>, usize)>,
    /// For each output: some element that it sees.
    anchors: Vec<usize>,
}

impl Columns {
    fn new(window: &Window) -> Self {
        let (outputs, taps) = (window.output[1], window.kernel[1]);
        let span = |tap: usize| {
            let seen = |out: &usize| window.source(1, *out, tap).is_some();
            let first = (0..outputs).find(seen)?;
            let last = (0..outputs).rfind(seen)?;
            Some((first..last + 1, window.source(1, first, tap)?))
        };
        let anchor = |out| (0..taps).find_map(|tap| window.source(1, out, tap)).unwrap_or(0);
        Self {
            taps: (0..taps).filter_map(span).collect(),
            anchors: (0..outputs).map(anchor).collect(),
        }
    }
}

/// One channel of one image.
struct Plane<'a, T> {
    window: &'a Window,
    columns: &'a Columns,
    input: &'a [T],
    output: &'a mut [T],
}

impl<T: Element + Copy> Loop for Plane<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (width, stride) = (self.window.input[1], self.window.strides[1]);
        let mut tallest = vec![self.input[0]; width];
        for (y, out) in self.output.chunks_exact_mut(self.window.output[1]).enumerate() {
            let rows = (0..self.window.kernel[0])
                .filter_map(|tap| self.window.source(0, y, tap))
                .map(|row| &self.input[row * width..(row + 1) * width]);
            for (index, row) in rows.enumerate() {
                if index == 0 {
                    tallest.copy_from_slice(row);
                } else {
                    tallest.iter_mut().zip(row).for_each(|(best, x)| *best = larger(*best, *x));
                }
            }
            out.iter_mut().zip(&self.columns.anchors).for_each(|(out, at)| *out = tallest[*at]);
            for (span, first) in &self.columns.taps {
                let sources = tallest[*first..].iter().step_by(stride);
                let outs = out[span.clone()].iter_mut().zip(sources);
                outs.for_each(|(best, value)| *best = larger(*best, *value));
            }
        }
    }
}

/// The larger of two, NaN being larger than anything.
#[inline(always)]
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
fn larger<T: Element + Copy>(best: T, value: T) -> T {
    if value > best || value != value { value } else { best }
}
