//! Parts of tensors, and tensors from parts.

use super::reshape::attribute_or_input;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{StringsOut, View, axes, axis, copy_view, dim, dims, element_count};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::smallvec;

/// Attributes before opset 10, inputs since.
pub(super) struct Slice {
    starts: Option<Vec<i64>>,
    ends: Option<Vec<i64>>,
    axes: Option<Vec<i64>>,
}

impl Slice {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let list = |name| Ok::<_, Error>(attributes.ints(name)?.map(<[i64]>::to_vec));
        Ok(Box::new(Self { starts: list("starts")?, ends: list("ends")?, axes: list("axes")? }))
    }
}

impl Operator for Slice {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let missing = |name| Error::invalid(format!("the {name} are missing"));
        let starts = attribute_or_input(self.starts.as_deref(), &inputs, 1)?
            .ok_or_else(|| missing("starts"))?;
        let ends =
            attribute_or_input(self.ends.as_deref(), &inputs, 2)?.ok_or_else(|| missing("ends"))?;
        let list = attribute_or_input(self.axes.as_deref(), &inputs, 3)?
            .unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = attribute_or_input(None, &inputs, 4)?.unwrap_or_else(|| vec![1; starts.len()]);
        let input = inputs.tensor(0)?;
        if [ends.len(), list.len(), steps.len()].iter().any(|&len| len != starts.len()) {
            return Err(Error::invalid("starts, ends, axes and steps must have equal lengths"));
        }
        let mut view = View::of(input.shape());
        for (item, &along) in axes(&list, input.rank())?.iter().enumerate() {
            narrow(&mut view, along, [starts[item], ends[item], steps[item]])?;
        }
        Ok(smallvec![copy_view(ctx, input, &view, &view.shape)?.into()])
    }
}

/// Restricts a view to `start..end` by `step` along an axis; positions beyond
/// the ends are clamped, as Python does.
fn narrow(view: &mut View, along: usize, [start, end, step]: [i64; 3]) -> Result<()> {
    let size = view.shape[along] as i64;
    let resolve = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
    let (start, end, count) = match step {
        0 => return Err(Error::invalid("a step of 0 never ends")),
        1.. => {
            let (start, end) = (resolve(start).clamp(0, size), resolve(end).clamp(0, size));
            (start, end, (end - start).max(0) as u64)
        }
        _ => {
            let last = (size - 1).max(0);
            let (start, end) = (resolve(start).clamp(0, last), resolve(end).clamp(-1, last));
            (start, end, if size == 0 { 0 } else { (start - end).max(0) as u64 })
        }
    };
    let count = count.div_ceil(step.unsigned_abs()) as usize;
    view.shape[along] = count;
    if count > 0 {
        view.offset += start as isize * view.strides[along];
        // With one element the step is never taken, and may be huge.
        view.strides[along] = if count == 1 { 0 } else { view.strides[along] * step as isize };
    }
    debug_assert!(end >= -1);
    Ok(())
}

/// Most parts of a split; beyond it lie only mistakes.
const MAX_PARTS: usize = 1 << 16;

pub(super) struct Split {
    axis: i64,
    sizes: Option<Vec<i64>>,
    count: Option<i64>,
}

impl Split {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            axis: attributes.int_or("axis", 0)?,
            sizes: attributes.ints("split")?.map(<[i64]>::to_vec),
            count: attributes.int("num_outputs")?,
        }))
    }

    fn sizes(&self, given: Option<Vec<i64>>, size: usize, outputs: usize) -> Result<Shape> {
        if let Some(list) = given {
            let sizes = dims(&list)?;
            let total = sizes.iter().try_fold(0usize, |sum, &part| sum.checked_add(part));
            if sizes.len() != outputs || total != Some(size) {
                return Err(Error::invalid(format!(
                    "cannot split {size} into {list:?} for {outputs} outputs"
                )));
            }
            return Ok(sizes);
        }
        if self.count.is_none() && !size.is_multiple_of(outputs) {
            return Err(Error::invalid(format!("cannot split {size} into {outputs} equal parts")));
        }
        let part = size.div_ceil(outputs);
        Ok((0..outputs).map(|item| part.min(size.saturating_sub(item * part))).collect())
    }
}

impl Operator for Split {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let given = attribute_or_input(self.sizes.as_deref(), &inputs, 1)?;
        let input = inputs.tensor(0)?;
        let along = axis(self.axis, input.rank())?;
        let outputs = match self.count {
            Some(count) => dim(count)?,
            None => ctx.output_count,
        };
        if outputs == 0 || outputs < ctx.output_count || outputs > MAX_PARTS {
            return Err(Error::invalid(format!("num_outputs cannot be {outputs}")));
        }
        let mut view = View::of(input.shape());
        let mut parts = Outputs::new();
        for size in self.sizes(given, input.shape()[along], outputs)? {
            view.shape[along] = size;
            parts.push(copy_view(ctx, input, &view, &view.shape)?.into());
            view.offset += size as isize * view.strides[along];
        }
        Ok(parts)
    }
}

pub(super) struct Concat(i64);

impl Concat {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).int_or("axis", 1)?)))
    }
}

impl Operator for Concat {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let parts: Vec<&Tensor> =
            (0..inputs.len()).map(|item| inputs.tensor(item)).collect::<Result<_>>()?;
        Ok(smallvec![concatenate(ctx, &parts, self.0)?.into()])
    }
}

/// Joins tensors that differ only in their size along one axis.
///
/// # Errors
/// When there are none, or they differ elsewhere.
pub(crate) fn concatenate(ctx: &OpContext<'_>, parts: &[&Tensor], along: i64) -> Result<Tensor> {
    let Some((first, rest)) = parts.split_first() else {
        return Err(Error::invalid("there is nothing to concatenate"));
    };
    let along = axis(along, first.rank())?;
    let mut shape: Shape = first.shape().into();
    for part in rest {
        let fits = part.rank() == shape.len()
            && part.dtype() == first.dtype()
            && (0..shape.len()).all(|item| item == along || part.shape()[item] == shape[item]);
        if !fits {
            return Err(Error::invalid(format!(
                "cannot concatenate {first:?} and {part:?} along axis {along}"
            )));
        }
        shape[along] = shape[along].saturating_add(part.shape()[along]);
    }
    let outer = element_count(&shape[..along])?;
    if first.dtype() == DType::String {
        return concatenate_strings(parts, &shape, along, outer);
    }
    let mut output = ctx.allocate(first.dtype(), &shape)?;
    let width = first.dtype().bits() / 8;
    let inner = element_count(&shape[along + 1..])? * width;
    if width == 0 {
        return Err(Error::unsupported(format!("Concat of {}", first.dtype())));
    }
    let mut rest = output.mut_bytes().unwrap_or_default();
    for row in 0..outer {
        for part in parts {
            let length = part.shape()[along] * inner;
            let source = part.bytes().unwrap_or_default();
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(length);
            head.copy_from_slice(&source[row * length..(row + 1) * length]);
            rest = tail;
        }
    }
    Ok(output)
}

fn concatenate_strings(
    parts: &[&Tensor],
    shape: &[usize],
    along: usize,
    outer: usize,
) -> Result<Tensor> {
    let inner = element_count(&shape[along + 1..])?;
    let mut output = StringsOut::new(element_count(shape)?)?;
    for row in 0..outer {
        for part in parts {
            let length = part.shape()[along] * inner;
            let source = part.strings()?;
            for item in row * length..(row + 1) * length {
                output.push(source.get(item))?;
            }
        }
    }
    output.finish(shape)
}
