//! Updates by index.

use super::gather::{Places, offset};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{
    StringsOut, axis, by_number, by_width, cells, cells_mut, element_count, index, integers,
};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reduction {
    None,
    Add,
    Mul,
    Min,
    Max,
}

impl Reduction {
    fn of(node: &NodeDef) -> Result<Self> {
        match Attributes(node).text("reduction")?.unwrap_or("none") {
            "none" => Ok(Self::None),
            "add" => Ok(Self::Add),
            "mul" => Ok(Self::Mul),
            "min" => Ok(Self::Min),
            "max" => Ok(Self::Max),
            other => Err(Error::unsupported(format!("reduction \"{other}\""))),
        }
    }
}

pub(super) struct ScatterElements {
    axis: i64,
    reduction: Reduction,
}

impl ScatterElements {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let axis = Attributes(node).int_or("axis", 0)?;
        Ok(Box::new(Self { axis, reduction: Reduction::of(node)? }))
    }
}

impl Operator for ScatterElements {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let data = inputs.take(0)?;
        let (wanted, updates) = (inputs.tensor(1)?, inputs.tensor(2)?);
        if wanted.shape() != updates.shape() {
            return Err(Error::invalid(format!(
                "indices {:?} and updates {:?} must have one shape",
                wanted.shape(),
                updates.shape()
            )));
        }
        let along = axis(self.axis, data.rank())?;
        let indices = integers(wanted)?;
        let shape: Shape = data.shape().into();
        let places = Places::new(&shape, wanted.shape(), along)?;
        let output = scatter(ctx, data, updates, 1, self.reduction, |element| {
            Ok(places.of(element, index(indices[element], shape[along])?))
        })?;
        Ok(smallvec![output.into()])
    }
}

pub(super) struct ScatterNd(Reduction);

impl ScatterNd {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Reduction::of(node)?)))
    }
}

impl Operator for ScatterNd {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let data = inputs.take(0)?;
        let (wanted, updates) = (inputs.tensor(1)?, inputs.tensor(2)?);
        let Some((&depth, outer)) = wanted.shape().split_last() else {
            return Err(Error::invalid("the indices are a scalar"));
        };
        let shape: Shape = data.shape().into();
        let fits = depth <= shape.len()
            && updates.shape().starts_with(outer)
            && updates.shape()[outer.len()..] == shape[depth..];
        if !fits {
            return Err(Error::invalid(format!(
                "indices {:?} and updates {:?} do not fit data {shape:?}",
                wanted.shape(),
                updates.shape()
            )));
        }
        let indices = integers(wanted)?;
        let block = element_count(&shape[depth..])?;
        let output = scatter(ctx, data, updates, block, self.0, |run| {
            let tuple = &indices[run * depth..(run + 1) * depth];
            Ok(offset(tuple, &shape[..depth])? * block)
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Puts run `i` of `block` updates at element `place(i)` of a copy of `data`.
fn scatter(
    ctx: &OpContext<'_>,
    data: Tensor,
    updates: &Tensor,
    block: usize,
    reduction: Reduction,
    place: impl Fn(usize) -> Result<usize>,
) -> Result<Tensor> {
    if updates.dtype() != data.dtype() {
        return Err(Error::invalid(format!("updates {updates:?} do not fit data {data:?}")));
    }
    let runs = updates.len().checked_div(block).unwrap_or(0);
    if data.dtype() == DType::String {
        return scatter_strings(&data, updates, block, reduction, (0..runs).map(place));
    }
    let mut output = writable(ctx, data)?;
    if reduction == Reduction::None {
        by_width!(output.dtype(), T => {
            let source = cells::<T>(updates)?;
            let target = cells_mut::<T>(&mut output)?;
            for run in 0..runs {
                let at = place(run)?;
                let line = target.get_mut(at..at + block).ok_or_else(out_of_range)?;
                line.copy_from_slice(&source[run * block..(run + 1) * block]);
            }
            Ok(())
        })?;
        return Ok(output);
    }
    by_number!(output.dtype(), T => {
        let source = updates.as_slice::<T>()?;
        let target = output.as_mut_slice::<T>()?;
        for run in 0..runs {
            let at = place(run)?;
            let line = target.get_mut(at..at + block).ok_or_else(out_of_range)?;
            for (cell, &update) in line.iter_mut().zip(&source[run * block..]) {
                *cell = Reduce::reduce(*cell, update, reduction);
            }
        }
        Ok(())
    })?;
    Ok(output)
}

fn out_of_range() -> Error {
    Error::invalid("an update lies outside the data")
}

/// The tensor itself when nobody else holds it, else a copy.
fn writable(ctx: &OpContext<'_>, mut data: Tensor) -> Result<Tensor> {
    if data.mut_bytes().is_some() {
        return Ok(data);
    }
    let mut copy = ctx.allocate(data.dtype(), data.shape())?;
    cells_mut::<u8>(&mut copy)?.copy_from_slice(cells::<u8>(&data)?);
    Ok(copy)
}

fn scatter_strings(
    data: &Tensor,
    updates: &Tensor,
    block: usize,
    reduction: Reduction,
    places: impl Iterator<Item = Result<usize>>,
) -> Result<Tensor> {
    if reduction != Reduction::None {
        return Err(Error::unsupported("scattering strings with a reduction"));
    }
    let (old, new) = (data.strings()?, updates.strings()?);
    let mut items: Vec<&[u8]> = old.iter().collect();
    for (run, at) in places.enumerate() {
        let at = at?;
        let line = items.get_mut(at..at + block).ok_or_else(out_of_range)?;
        for (item, cell) in line.iter_mut().enumerate() {
            *cell = new.get(run * block + item);
        }
    }
    let mut output = StringsOut::new(items.len())?;
    for item in items {
        output.push(item)?;
    }
    output.finish(data.shape())
}

trait Reduce: Sized {
    fn reduce(old: Self, update: Self, reduction: Reduction) -> Self;
}

macro_rules! reduce {
    ($($ty:ty => $add:expr, $mul:expr);* $(;)?) => {
        $(impl Reduce for $ty {
            fn reduce(old: Self, update: Self, reduction: Reduction) -> Self {
                match reduction {
                    Reduction::None => update,
                    Reduction::Add => $add(old, update),
                    Reduction::Mul => $mul(old, update),
                    Reduction::Min => if update < old { update } else { old },
                    Reduction::Max => if update > old { update } else { old },
                }
            }
        })*
    };
}

reduce! {
    f32 => |a, b| a + b, |a, b| a * b;
    f64 => |a, b| a + b, |a, b| a * b;
    i64 => i64::wrapping_add, i64::wrapping_mul;
    i32 => i32::wrapping_add, i32::wrapping_mul;
    i16 => i16::wrapping_add, i16::wrapping_mul;
    i8 => i8::wrapping_add, i8::wrapping_mul;
    u64 => u64::wrapping_add, u64::wrapping_mul;
    u32 => u32::wrapping_add, u32::wrapping_mul;
    u16 => u16::wrapping_add, u16::wrapping_mul;
    u8 => u8::wrapping_add, u8::wrapping_mul;
}
