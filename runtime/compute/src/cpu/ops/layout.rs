//! Axes, strides and element copies shared by the operators that move data.

use crate::cpu::op::OpContext;
use mortise_types::{DType, Error, Result, Shape, Strings, StringsBuilder, Tensor};
use smallvec::SmallVec;
use std::borrow::Cow;

/// Bytes one string tensor may take, offsets included. Strings live outside
/// the arena, so they have a limit of their own.
pub(crate) const MAX_STRING_TENSOR_BYTES: usize = 256 << 20;

/// Runs `$body` with `$T` standing for an unsigned integer as wide as one
/// element of `$dtype`; copies need no more than the width.
macro_rules! by_width {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype.bits() {
            8 => {
                type $T = u8;
                $body
            }
            16 => {
                type $T = u16;
                $body
            }
            32 => {
                type $T = u32;
                $body
            }
            64 => {
                type $T = u64;
                $body
            }
            _ => Err(mortise_types::Error::unsupported(format!(
                "{} elements cannot be moved one by one; cast them to an 8-bit type first",
                $dtype
            ))),
        }
    };
}
pub(crate) use by_width;

/// Runs `$body` with `$T` standing for the Rust type of a numeric `$dtype`
/// out of the list; other dtypes are `Unsupported`.
macro_rules! by_dtype {
    ($dtype:expr, [$($kind:ident : $ty:ty),* $(,)?], $T:ident => $body:expr) => {
        match $dtype {
            $(mortise_types::DType::$kind => {
                type $T = $ty;
                $body
            })*
            other => Err(mortise_types::Error::unsupported(format!(
                "element type {other} is not implemented here"
            ))),
        }
    };
}
pub(crate) use by_dtype;

/// The element types of ordinary arithmetic.
macro_rules! by_number {
    ($dtype:expr, $T:ident => $body:expr) => {
        $crate::cpu::ops::layout::by_dtype!($dtype, [
            F32: f32, F64: f64, I64: i64, I32: i32, I16: i16, I8: i8,
            U64: u64, U32: u32, U16: u16, U8: u8,
        ], $T => $body)
    };
}
pub(crate) use by_number;

/// Resolves an axis that may count from the end.
///
/// # Errors
/// When it is not in `-rank..rank`.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize> {
    let signed = rank as i64;
    let index = if axis < 0 { axis.checked_add(signed) } else { Some(axis) };
    index
        .filter(|&index| (0..signed).contains(&index))
        .map(|index| index as usize)
        .ok_or_else(|| Error::invalid(format!("axis {axis} is out of range for rank {rank}")))
}

/// Resolves a list of axes.
///
/// # Errors
/// When one is out of range or named twice.
pub(crate) fn axes(list: &[i64], rank: usize) -> Result<SmallVec<[usize; 6]>> {
    let mut resolved = SmallVec::new();
    for &item in list {
        let item = axis(item, rank)?;
        if resolved.contains(&item) {
            return Err(Error::invalid(format!("axis {item} is named twice in {list:?}")));
        }
        resolved.push(item);
    }
    Ok(resolved)
}

/// # Errors
/// When the product overflows.
pub(crate) fn element_count(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |count, &dim| count.checked_mul(dim))
        .ok_or_else(|| Error::invalid(format!("shape {shape:?} has too many elements")))
}

/// Row-major strides in elements.
pub(crate) fn strides(shape: &[usize]) -> SmallVec<[usize; 6]> {
    let mut strides: SmallVec<[usize; 6]> = SmallVec::from_elem(1, shape.len());
    for index in (1..shape.len()).rev() {
        strides[index - 1] = strides[index].saturating_mul(shape[index]);
    }
    strides
}

/// A dimension from the model or client.
///
/// # Errors
/// When negative.
pub(crate) fn dim(value: i64) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Error::invalid(format!("a dimension cannot be {value}: it must be >= 0")))
}

/// # Errors
/// When one is negative.
pub(crate) fn dims(values: &[i64]) -> Result<Shape> {
    values.iter().map(|&value| dim(value)).collect()
}

/// The values of an integer tensor that holds shapes, axes or indices.
///
/// # Errors
/// When it holds neither INT64 nor INT32.
pub(crate) fn integers(tensor: &Tensor) -> Result<Cow<'_, [i64]>> {
    match tensor.dtype() {
        DType::I64 => Ok(Cow::Borrowed(tensor.as_slice()?)),
        DType::I32 => Ok(tensor.as_slice::<i32>()?.iter().map(|&value| i64::from(value)).collect()),
        other => Err(Error::invalid(format!("expected INT64 or INT32, got {other}"))),
    }
}

/// The only value of an integer tensor.
///
/// # Errors
/// When there is not exactly one.
pub(crate) fn one_integer(tensor: &Tensor) -> Result<i64> {
    match integers(tensor)?.as_ref() {
        [value] => Ok(*value),
        _ => Err(Error::invalid(format!("expected one integer, got shape {:?}", tensor.shape()))),
    }
}

/// Numbers converted as a C cast does.
///
/// # Errors
/// When the dtype is no number.
pub(crate) fn floats(tensor: &Tensor) -> Result<Cow<'_, [f32]>> {
    if tensor.dtype() == DType::F32 {
        return tensor.as_slice().map(Cow::Borrowed);
    }
    by_number!(tensor.dtype(), T => {
        Ok(tensor.as_slice::<T>()?.iter().map(|&value| value as f32).collect())
    })
}

/// As [`floats`], in double precision.
///
/// # Errors
/// When the dtype is no number.
pub(crate) fn doubles(tensor: &Tensor) -> Result<Cow<'_, [f64]>> {
    if tensor.dtype() == DType::F64 {
        return tensor.as_slice().map(Cow::Borrowed);
    }
    by_number!(tensor.dtype(), T => {
        Ok(tensor.as_slice::<T>()?.iter().map(|&value| value as f64).collect())
    })
}

/// A feature matrix as `ai.onnx.ml` reads one: `[n, c]`, or `[c]` as one row.
///
/// # Errors
/// When the rank is neither 1 nor 2.
pub(crate) fn rows_and_columns(tensor: &Tensor) -> Result<(usize, usize)> {
    match *tensor.shape() {
        [columns] => Ok((1, columns)),
        [rows, columns] => Ok((rows, columns)),
        _ => Err(Error::invalid(format!("expected [n, features], got {:?}", tensor.shape()))),
    }
}

/// A strided window onto a tensor, in elements.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) shape: Shape,
    pub(crate) strides: SmallVec<[isize; 6]>,
    pub(crate) offset: isize,
}

impl View {
    /// All of a row-major tensor.
    pub(crate) fn of(shape: &[usize]) -> Self {
        let strides = strides(shape).iter().map(|&stride| stride as isize).collect();
        Self { shape: shape.into(), strides, offset: 0 }
    }

    /// The same elements with fewer dimensions: those of size 1 go, and
    /// neighbours that are one run become one.
    fn collapsed(&self) -> Self {
        let mut shape = Shape::new();
        let mut steps: SmallVec<[isize; 6]> = SmallVec::new();
        for (&size, &step) in self.shape.iter().zip(&self.strides) {
            if size == 1 {
                continue;
            }
            match (shape.last_mut(), steps.last_mut()) {
                (Some(outer), Some(outer_step)) if *outer_step == step * size as isize => {
                    *outer *= size;
                    *outer_step = step;
                }
                _ => {
                    shape.push(size);
                    steps.push(step);
                }
            }
        }
        Self { shape, strides: steps, offset: self.offset }
    }

    /// Whether every element lies in a buffer of `len` elements.
    fn fits(&self, len: usize) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let (mut low, mut high) = (self.offset as i128, self.offset as i128);
        for (&size, &step) in self.shape.iter().zip(&self.strides) {
            let reach = (size as i128 - 1) * step as i128;
            low += reach.min(0);
            high += reach.max(0);
        }
        low >= 0 && high < len as i128
    }

    /// Calls `visit` with the source offset of every row of the last
    /// `inner` dimensions, in output order.
    fn for_each_outer(&self, inner: usize, mut visit: impl FnMut(usize)) {
        let outer = self.shape.len() - inner;
        if self.shape.contains(&0) {
            return;
        }
        let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer);
        let mut offset = self.offset;
        loop {
            visit(offset as usize);
            let mut dim = outer;
            loop {
                if dim == 0 {
                    return;
                }
                dim -= 1;
                index[dim] += 1;
                offset += self.strides[dim];
                if index[dim] < self.shape[dim] {
                    break;
                }
                offset -= self.strides[dim] * self.shape[dim] as isize;
                index[dim] = 0;
            }
        }
    }
}

/// Copies a view into a new tensor of shape `shape`.
///
/// # Errors
/// When the view leaves the tensor, or memory runs out.
pub(crate) fn copy_view(
    ctx: &OpContext<'_>,
    input: &Tensor,
    view: &View,
    shape: &[usize],
) -> Result<Tensor> {
    if !view.fits(input.len()) || element_count(&view.shape)? != element_count(shape)? {
        return Err(Error::internal(format!("view {view:?} does not fit {input:?} and {shape:?}")));
    }
    if input.dtype() == DType::String {
        let source = input.strings()?;
        let mut output = StringsOut::new(element_count(shape)?)?;
        let mut result = Ok(());
        view.for_each_outer(0, |offset| {
            if result.is_ok() {
                result = output.push(source.get(offset));
            }
        });
        result?;
        return output.finish(shape);
    }
    let view = view.collapsed();
    if let Some(output) = window(input, &view, shape)? {
        return Ok(output);
    }
    let mut output = ctx.allocate(input.dtype(), shape)?;
    by_width!(input.dtype(), T => {
        copy_elements::<T>(cells(input)?, cells_mut(&mut output)?, &view);
        Ok(())
    })?;
    Ok(output)
}

/// A collapsed view that is one run of memory needs no copy.
fn window(input: &Tensor, view: &View, shape: &[usize]) -> Result<Option<Tensor>> {
    let width = input.dtype().bits() / 8;
    let is_run = view.strides.iter().all(|&step| step == 1);
    match input.storage() {
        Some(storage) if is_run && view.shape.len() <= 1 && width > 0 => {
            let count = element_count(&view.shape)?;
            let first = if count == 0 { 0 } else { view.offset as usize * width };
            let bytes = storage.slice(first..first + count * width);
            Tensor::from_storage(input.dtype(), shape, bytes).map(Some)
        }
        _ => Ok(None),
    }
}

/// The elements of a numeric tensor as plain cells of their width.
///
/// # Errors
/// When the tensor holds strings.
pub(crate) fn cells<T: bytemuck::Pod>(tensor: &Tensor) -> Result<&[T]> {
    tensor
        .bytes()
        .map(bytemuck::cast_slice)
        .ok_or_else(|| Error::invalid(format!("expected numbers, got {}", tensor.dtype())))
}

/// As [`cells`], for writing.
///
/// # Errors
/// When the memory is shared or holds strings.
pub(crate) fn cells_mut<T: bytemuck::Pod>(tensor: &mut Tensor) -> Result<&mut [T]> {
    tensor
        .mut_bytes()
        .map(bytemuck::cast_slice_mut)
        .ok_or_else(|| Error::internal("output memory is shared and cannot be written"))
}

fn copy_elements<T: bytemuck::Pod>(source: &[T], target: &mut [T], view: &View) {
    let rank = view.shape.len();
    if view.shape.contains(&0) {
        return;
    }
    if rank == 0 {
        if let (Some(target), Some(value)) = (target.first_mut(), source.get(view.offset as usize))
        {
            *target = *value;
        }
    } else if view.strides[rank - 1] == 1 {
        copy_runs(source, target, view);
    } else if rank == 1 {
        copy_tile(source, target, [1, view.shape[0]], [0, view.strides[0]], view.offset);
    } else {
        let inner = [view.shape[rank - 2], view.shape[rank - 1]];
        let steps = [view.strides[rank - 2], view.strides[rank - 1]];
        let mut rest = target;
        view.for_each_outer(2, |offset| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(inner[0] * inner[1]);
            copy_tile(source, head, inner, steps, offset as isize);
            rest = tail;
        });
    }
}

fn copy_runs<T: bytemuck::Pod>(source: &[T], target: &mut [T], view: &View) {
    let run = view.shape[view.shape.len() - 1];
    let mut rest = target;
    view.for_each_outer(1, |offset| {
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(run);
        head.copy_from_slice(&source[offset..offset + run]);
        rest = tail;
    });
}

/// One strided matrix, in blocks small enough that both sides stay in cache.
fn copy_tile<T: bytemuck::Pod>(
    source: &[T],
    target: &mut [T],
    [rows, columns]: [usize; 2],
    [row_step, column_step]: [isize; 2],
    offset: isize,
) {
    const TILE: usize = 16;
    if rows < TILE {
        for (row, line) in target.chunks_exact_mut(columns).enumerate() {
            let mut at = offset + row as isize * row_step;
            for cell in line {
                *cell = source[at as usize];
                at += column_step;
            }
        }
        return;
    }
    for row_block in (0..rows).step_by(TILE) {
        for column_block in (0..columns).step_by(TILE) {
            for row in row_block..(row_block + TILE).min(rows) {
                let end = (column_block + TILE).min(columns);
                let line = &mut target[row * columns + column_block..row * columns + end];
                let mut at = offset + row as isize * row_step + column_block as isize * column_step;
                for cell in line {
                    *cell = source[at as usize];
                    at += column_step;
                }
            }
        }
    }
}

/// Copies runs of `block` elements; run `i` of the output starts at element
/// `start(i)` of the input.
///
/// # Errors
/// What `start` returns, or when a run leaves the input.
pub(crate) fn copy_blocks(
    ctx: &OpContext<'_>,
    input: &Tensor,
    shape: &[usize],
    block: usize,
    mut start: impl FnMut(usize) -> Result<usize>,
) -> Result<Tensor> {
    let total = element_count(shape)?;
    let count = total.checked_div(block).unwrap_or(0);
    if input.dtype() == DType::String {
        let source = input.strings()?;
        let mut output = StringsOut::new(total)?;
        for index in 0..count {
            let from = start(index)?;
            for element in from..from + block {
                if element >= source.len() {
                    return Err(outside(element, input));
                }
                output.push(source.get(element))?;
            }
        }
        return output.finish(shape);
    }
    let mut output = ctx.allocate(input.dtype(), shape)?;
    if block == 0 {
        return Ok(output);
    }
    by_width!(input.dtype(), T => {
        let source = cells::<T>(input)?;
        for (index, line) in cells_mut::<T>(&mut output)?.chunks_exact_mut(block).enumerate() {
            let from = start(index)?;
            let run = source.get(from..from + block).ok_or_else(|| outside(from, input))?;
            line.copy_from_slice(run);
        }
        Ok(())
    })?;
    Ok(output)
}

fn outside(element: usize, input: &Tensor) -> Error {
    Error::invalid(format!("element {element} is outside {input:?}"))
}

/// Resolves an index that may count from the end.
///
/// # Errors
/// When it is not in `-size..size`.
#[inline]
pub(crate) fn index(value: i64, size: usize) -> Result<usize> {
    let resolved = if value < 0 { value.wrapping_add(size as i64) } else { value };
    if resolved < 0 || resolved >= size as i64 {
        return Err(Error::invalid(format!("index {value} is out of range for size {size}")));
    }
    Ok(resolved as usize)
}

/// Collects the strings of an output under [`MAX_STRING_TENSOR_BYTES`].
pub(crate) struct StringsOut {
    builder: StringsBuilder,
    bytes: usize,
}

impl StringsOut {
    /// # Errors
    /// When the offsets of `count` strings alone are over the limit.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let mut output = Self { builder: StringsBuilder::default(), bytes: 0 };
        output.charge(count.saturating_mul(8))?;
        Ok(output)
    }

    /// # Errors
    /// When over the limit.
    pub(crate) fn push(&mut self, item: &[u8]) -> Result<()> {
        self.charge(item.len())?;
        self.builder.push(item);
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_STRING_TENSOR_BYTES {
            return Err(Error::limit(format!(
                "a string tensor would take more than {MAX_STRING_TENSOR_BYTES} bytes"
            )));
        }
        Ok(())
    }

    /// # Errors
    /// When the number of strings does not fit the shape.
    pub(crate) fn finish(self, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_strings(shape, self.builder.finish())
    }
}

/// A string tensor of `shape` with one `item` per element.
///
/// # Errors
/// When over the limit, or counts differ.
pub(crate) fn string_tensor<'a>(
    shape: &[usize],
    items: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Result<Tensor> {
    let mut output = StringsOut::new(items.len())?;
    for item in items {
        output.push(item)?;
    }
    output.finish(shape)
}

/// An element list of attribute or constant strings.
pub(crate) fn string_list(strings: &Strings) -> Vec<Vec<u8>> {
    strings.iter().map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_count_from_both_ends() {
        assert_eq!(axis(-1, 3).unwrap(), 2);
        assert!(axis(3, 3).is_err() && axis(-4, 3).is_err() && axis(0, 0).is_err());
        assert!(axis(i64::MIN, 3).is_err());
        assert!(axes(&[0, -3], 3).is_err());
    }

    #[test]
    fn views_collapse_to_runs() {
        let view = View::of(&[2, 1, 3, 4]).collapsed();
        assert_eq!((view.shape.as_slice(), view.strides.as_slice()), (&[24][..], &[1][..]));
    }

    #[test]
    fn views_outside_the_buffer_are_seen() {
        let mut view = View::of(&[2, 3]);
        assert!(view.fits(6) && !view.fits(5));
        view.strides[0] = -3;
        assert!(!view.fits(6));
        view.offset = 3;
        assert!(view.fits(6));
    }
}
